"""`dl2 train online`: the low-priority process that learns from a cluster's decision log and proposes what it found.

It shares nothing with the operator but the log, which it only reads, and the API server: whatever becomes of it, the
operator goes on. It takes one core when nobody else wants it, and no more memory than it was given.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.resources import SCALING_POLICIES
from dl2.cluster.store import Store
from dl2.controller import decisionlog, rollout
from dl2.controller.decisionlog import LogError
from dl2.learning.fitted import Fitted, fit
from dl2.learning.logged import LessonError, observation_from
from dl2.learning.online import Tuned, Tuning, tune
from dl2.scaling.agent import SHIPPED
from dl2.scaling.agent.checkpoint import read, save

log = structlog.get_logger(__name__)
MOST_ROUNDS = 5000  # of the log, the latest
NEWS = 8  # jobs that have to end between two lessons
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Online:
    """`start`: a checkpoint; None: the agent of the ScalingPolicy in charge, or the one that is shipped."""

    decision_log: Path
    folder: Path
    start: Path | None
    tuning: Tuning
    propose: bool
    credentials: Credentials


def be_modest(memory_mib: int) -> None:
    """One core, only while it is idle, and so much memory (of the heap) at most."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))


def end_with_parent() -> None:
    """Ends this process when standard input does: whoever started it is gone then, however that came."""

    def wait() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def lessons(online: Online, every: float) -> None:
    """One lesson; with `every` (seconds) above 0 another one so long after each, for ever.

    Raises LessonError or CheckpointError for a single lesson that is none; of many, each says why and goes.
    """
    learned_from = -NEWS
    while True:
        try:
            learned_from = lesson(online, learned_from)
        except (LogError, ApiError, ValueError) as exc:
            if not every:
                raise LessonError(str(exc)) from exc
            log.warning("no lesson", reason=str(exc))
        if not every:
            return
        time.sleep(every)


def lesson(online: Online, learned_from: int) -> int:
    """Learn from the log as it is. `learned_from`, and what it returns: how many jobs had ended by then."""
    ended = _ended(online.decision_log, learned_from + NEWS)
    policy = asyncio.run(_in_charge(online.credentials)) if online.propose else None
    start = online.start or agent_of(policy)
    online.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=online.folder, prefix="lesson-") as folder:
        tuned = tune(fitted_to(online.decision_log), read(start)[0], online.tuning, Path(folder))
    figures = {
        "change_percent": round(100 * tuned.change.mean, 2),
        "margin_percent": round(100 * tuned.change.half, 2),
    }
    if not tuned.surely_better:
        log.info("nothing better was found", start=str(start), **figures)
        return ended
    path = _written(online, tuned, start, ended)
    log.info("candidate", checkpoint=str(path), start=str(start), **figures)
    if online.propose:
        asyncio.run(_propose(online.credentials, path))
    return ended


def _ended(path: Path, least: int) -> int:
    """How many jobs have ended. Raises LessonError where they are fewer than `least`."""
    with decisionlog.reading(path) as db:
        ended = decisionlog.finished(db)
    if ended < least:
        raise LessonError(f"{ended} jobs have ended so far; the next lesson is due with {least}")
    return ended


def fitted_to(path: Path) -> Fitted:
    """The simulator fitted to a decision log. Raises LogError or LessonError."""
    with decisionlog.reading(path) as db:
        rounds = map(observation_from, decisionlog.observations(db, MOST_ROUNDS))
        return fit(rounds, decisionlog.pauses(db))


def _written(online: Online, tuned: Tuned, start: Path, ended: int) -> Path:
    path = online.folder.absolute() / f"dl2-{ended:06d}{SUFFIX}"
    test = {
        "log_jct_against_start": tuned.change.mean,
        "margin": tuned.change.half,
        "cases": online.tuning.judging,
    }
    save(
        path,
        tuned.weights,
        {"method": "online", "plan": asdict(online.tuning), "from": start.name, "test": test},
    )
    return path


# -- the ScalingPolicy ----------------------------------------------------------------------------------------------
def agent_of(policy: Mapping[str, Any] | None) -> Path:
    """The checkpoint to go on from: the champion, else the challenger, where that is an agent; else the shipped one."""
    spec = policy["spec"] if policy else {}
    named = [str(spec.get(seat) or "") for seat in ("champion", "challenger")]
    return next((Path(name) for name in named if name.endswith(SUFFIX)), SHIPPED)


def proposal(policy: Mapping[str, Any], candidate: Path) -> tuple[dict[str, Any] | None, str]:
    """(merge patch, why). A challenger in power, or one that a person named, is left alone: then there is no patch."""
    spec, name = policy["spec"], policy["metadata"]["name"]
    written = spec.get("stage", "Observe")
    in_force = (policy.get("status") or {}).get("stage") or written
    challenger = spec.get("challenger")
    by_hand = f'`kubectl patch dlsp {name} --type=merge -p \'{{"spec": {{"challenger": "{candidate}"}}}}\'`'
    for stage in (written, in_force):
        if rollout.decides(stage):
            why = f"{challenger} is in stage {stage}, where a newcomer would decide at once"
            return None, f"{why}; in turn: {by_hand}"
    if challenger is not None and Path(challenger).parent != candidate.parent:
        return None, f"{challenger} is on trial; in turn: {by_hand}"
    return {
        "metadata": {"resourceVersion": policy["metadata"]["resourceVersion"]},  # nobody was faster
        "spec": {"challenger": str(candidate)},
    }, f"challenger of ScalingPolicy {name}"


async def _in_charge(credentials: Credentials) -> dict[str, Any] | None:
    async with KubeClient(credentials) as client:
        return await _the_policy(client)


async def _the_policy(client: KubeClient) -> dict[str, Any] | None:
    """The ScalingPolicy that decides, as it is now."""
    store, found = Store(), {}
    async for page, _ in client.list(SCALING_POLICIES):
        for item in page:
            store.upsert(SCALING_POLICIES, item)
            found[item["metadata"]["uid"]] = item
    entry = rollout.in_charge(list(store.all(SCALING_POLICIES)))
    return found[entry.uid] if entry else None


async def _propose(credentials: Credentials, candidate: Path) -> None:
    """To the policy as it is after the lesson: its status has been written many times since."""
    async with KubeClient(credentials) as client:
        policy = await _the_policy(client)
        patch, why = proposal(policy, candidate) if policy else (None, "there is no ScalingPolicy")
        if policy is not None and patch is not None:
            await client.merge_patch(SCALING_POLICIES, "", policy["metadata"]["name"], patch)
    log.info("proposed" if patch else "not proposed", checkpoint=str(candidate), reason=why)
