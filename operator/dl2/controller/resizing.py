"""What a DLJob's status tells about its changes of shape. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dl2.api import names
from dl2.api.conditions import format_time, parse_time
from dl2.api.core import PodRecord
from dl2.controller.frameworks import Role
from dl2.controller.progress import Progress

SCALED = (names.WORKER, names.SERVER)
RESTARTED = "checkpoint and restart"


def ready(pods: Sequence[PodRecord], role: str) -> int:
    return sum(1 for p in pods if p.member == role and p.ready and not p.gated and not p.deleting)


def succeeded(pods: Sequence[PodRecord], role: str) -> int:
    """How many have ended well; one that is sent away counts for nothing."""
    return sum(1 for p in pods if p.member == role and p.phase == "Succeeded" and not p.deleting)


def _is_finished(pods: Sequence[PodRecord]) -> bool:
    """Only a worker that has finished the training ends well of its own accord."""
    return succeeded(pods, names.WORKER) > 0


def can_train(pods: Sequence[PodRecord], roles: Sequence[Role]) -> bool:
    """A job that takes members in as it runs needs the minimum of every role, no more; and nobody at its very end."""
    if _is_finished(pods):
        return True
    return all(ready(pods, role.name) >= role.min_count for role in roles)


def under_way(pods: Sequence[PodRecord], admitted: Mapping[str, int]) -> tuple[str, str] | None:
    """(reason, message) while members join or leave a job that goes on training; None: it has settled."""
    if _is_finished(pods):
        return None  # the training is finished; the others end, too
    joining = [(role, ready(pods, role), admitted.get(role, 0)) for role in SCALED]
    missing = [f"{have} of {want} {role}s have joined" for role, have, want in joining if have < want]
    leaving = [p for p in pods if p.member in SCALED and p.deleting and not p.gated and not p.finished]
    if missing:
        return "Joining", ", ".join(missing)
    if leaving:
        return "Leaving", ", ".join(sorted(f"{p.name} leaves" for p in leaving))
    return None


def told_of(progress: Progress | None) -> dict[str, Any] | None:
    """`lastScaling` as the coordinator tells it."""
    resize = progress.resize if progress else None
    if resize is None:
        return None
    return {
        "time": format_time(resize.time),
        "from": _shape(*resize.before),
        "to": _shape(*resize.after),
        "reason": resize.reason,
        "pauseMilliseconds": resize.pause_milliseconds,
    }


def explained(
    told: Mapping[str, Any], before: Mapping[str, Any] | None, asked: Mapping[str, int], policy: str
) -> dict[str, Any]:
    """`told` with who decided it and why, as it was `asked` for when it was first heard of."""
    if before and before["time"] == told["time"]:
        return {**told, **{key: before[key] for key in ("policy", "reason") if before.get(key)}}
    short = any(told["to"][f"{role}s"] != asked.get(role, 0) for role in SCALED)
    reason = "admission: there is no room for all that it asks for"
    if not short:
        reason = "the scaling policy asked for it" if policy else "its spec asks for it"
    decided = {"policy": policy} if policy and not short else {}
    return {**told, **decided, "reason": told.get("reason") or reason}


def restarted(old: Mapping[str, Any], roles: Sequence[Role], now: float) -> dict[str, Any]:
    """`lastScaling` of a job that stops and starts again in another shape; its pause is known when it runs again."""
    counts = {role.name: role.count for role in roles}
    before = [int((old.get(f"{role}s") or {}).get("desired") or 0) for role in SCALED]
    after = [counts.get(role, 0) for role in SCALED]
    return {"time": format_time(now), "from": _shape(*before), "to": _shape(*after), "reason": RESTARTED}


def runs_again(scaling: Mapping[str, Any] | None, now: float) -> dict[str, Any] | None:
    """The same with the pause, once the restarted job runs."""
    if not scaling or scaling.get("reason") != RESTARTED or scaling.get("pauseMilliseconds") is not None:
        return dict(scaling) if scaling else None
    pause = max(0.0, now - parse_time(scaling["time"]))
    return {**scaling, "pauseMilliseconds": round(pause * 1000)}


def _shape(workers: int, servers: int) -> dict[str, int]:
    return {"workers": workers, "servers": servers}
