"""Cuts an answer to what is possible: bounds, then budgets, then what the nodes can hold. Every cut is counted.

One function for all: the live operator's guardrail, the simulator and the tests. Whatever a policy answers,
what comes out is feasible, and every job that is left runs with at least its minimum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dl2.scaling.bounds import bounds, in_order, use, within
from dl2.scaling.interface import STOPPED, JobView, Observation, Scale
from dl2.scaling.packing import Demand, Packer


@dataclass(frozen=True, slots=True)
class Spread:
    """The nodes of a job's pods, one entry a pod."""

    workers: tuple[str, ...]
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """What may run, where, and how many jobs were cut by what ("unknown", "bounds", "budget", "nodes")."""

    scales: Mapping[str, Scale]  # jobs that run; never Scale(0, 0)
    spreads: Mapping[str, Spread]
    counts: Mapping[str, int]


def cut(observation: Observation, answer: Mapping[str, Any]) -> Cut:
    """The feasible part of `answer`, deterministic and independent of the order of jobs and nodes."""
    jobs = in_order(observation.jobs)
    counts: Counter[str] = Counter()
    known = {job.id for job in jobs}
    counts["unknown"] = sum(name not in known for name in answer)
    scales: dict[str, Scale] = {}
    for job in jobs:
        asked = answer.get(job.id, STOPPED)
        scale = within(_whole(asked), bounds(job))
        counts["bounds"] += scale != asked
        if scale.workers:
            scales[job.id] = scale
    running = [job for job in jobs if job.id in scales]
    _keep_budgets(running, observation.budgets, scales, counts)
    spreads = _place([job for job in running if job.id in scales], observation, scales, counts)
    return Cut(scales, spreads, {name: count for name, count in counts.items() if count})


def _whole(answer: Any) -> Scale:
    """Scale(0, 0) for what is no pair of whole numbers of 0 or more (NaN, None, -1, ...)."""
    try:
        workers, servers = answer
        if workers != int(workers) or servers != int(servers) or workers < 0 or servers < 0:
            return STOPPED
        return Scale(int(workers), int(servers))
    except (TypeError, ValueError, OverflowError):
        return STOPPED


def _keep_budgets(
    jobs: Sequence[JobView],
    budgets: Mapping[str, Mapping[str, int]],
    scales: dict[str, Scale],
    counts: Counter[str],
) -> None:
    for queue in sorted(budgets):
        members = [job for job in jobs if job.queue == queue]
        left = dict(budgets[queue])
        for job in members:
            for name, amount in use(job, scales[job.id]).items():
                if name in left:
                    left[name] -= amount
        if any(amount < 0 for amount in left.values()):
            granted = _ration(members, budgets[queue], scales)
            for job in members:
                counts["budget"] += granted.get(job.id) != scales[job.id]
                if job.id in granted:
                    scales[job.id] = granted[job.id]
                else:
                    del scales[job.id]


def _ration(
    jobs: Sequence[JobView], budget: Mapping[str, int], wanted: Mapping[str, Scale]
) -> dict[str, Scale]:
    """Minimums in order, then a pod each in turn, on whichever side a job is further from what it wants."""
    left = dict(budget)
    granted: dict[str, Scale] = {}
    for job in jobs:
        limits = bounds(job)
        if limits is not None and _charge(left, use(job, limits[0])):
            granted[job.id] = limits[0]
    open_ = [job for job in jobs if job.id in granted]
    while open_:
        open_ = [job for job in open_ if _grow(job, granted, wanted[job.id], left)]
    return granted


def _grow(job: JobView, granted: dict[str, Scale], goal: Scale, left: dict[str, int]) -> bool:
    """Give `job` one pod more, if it wants one that fits."""
    workers, servers = granted[job.id]
    steps = []
    if workers < goal.workers:
        steps.append((workers / goal.workers, Scale(1, 0)))
    if servers < goal.servers:
        steps.append((servers / goal.servers, Scale(0, 1)))
    for _, step in sorted(steps, key=lambda step: step[0]):
        if _charge(left, use(job, step)):
            granted[job.id] = Scale(workers + step.workers, servers + step.servers)
            return True
    return False


def _charge(left: dict[str, int], amounts: Mapping[str, int]) -> bool:
    if any(amount > left[name] for name, amount in amounts.items() if name in left):
        return False
    for name, amount in amounts.items():
        if name in left:
            left[name] -= amount
    return True


def _place(
    jobs: list[JobView], observation: Observation, scales: dict[str, Scale], counts: Counter[str]
) -> dict[str, Spread]:
    """Pack all; who gets less than its minimum does not run, and the others are packed anew without it."""
    asked = dict(scales)
    resources = sorted({name for job in jobs for name in (*job.worker_requests, *job.server_requests)})
    while jobs:
        packer = Packer(observation.nodes, resources)
        demands = []
        for job in jobs:
            (workers, servers), limits = asked[job.id], bounds(job)
            least = limits[0] if limits else STOPPED
            demands.append(Demand(job.worker_requests, workers, least.workers))
            demands.append(Demand(job.server_requests, servers, least.servers))
        found = packer.pack(demands)
        got = [Scale(len(found[i]), len(found[i + 1])) for i in range(0, len(found), 2)]
        whole = [bool(within(scale, bounds(job)).workers) for job, scale in zip(jobs, got, strict=True)]
        if all(whole):
            break
        for job, fits in zip(jobs, whole, strict=True):
            if not fits:
                counts["nodes"] += 1
                del scales[job.id]
        jobs = [job for job, fits in zip(jobs, whole, strict=True) if fits]
    spreads = {}
    for i, job in enumerate(jobs):
        sides = [tuple(packer.names[n] for n in found[2 * i + side]) for side in (0, 1)]
        spreads[job.id] = Spread(*sides)
        counts["nodes"] += got[i] != asked[job.id]
        scales[job.id] = got[i]
    return spreads
