"""Cuts an answer to what is possible: bounds, then budgets, then what the nodes can hold. Every cut is counted.

One function for all: the live operator's guardrail, the simulator and the tests. Whatever a policy answers,
what comes out is feasible, and every job that is left runs with at least its minimum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
    """Pack all. Where that leaves a job without its minimum, it goes without if it would not fit alone either; else the
    nodes are rationed like a budget; then who lacks its minimum asks for no more than that; in the end the later half of
    them goes without, round by round. Who went without gets what is left over, in order.
    """
    packing = _Packing(observation)
    wanted = {job.id: scales.pop(job.id) for job in jobs}
    asked = dict(wanted)
    while True:
        got = packing.pack(jobs, asked)
        misfits = [job for job in jobs if not within(got[job.id], bounds(job)).workers]
        if not misfits:
            break
        hopeless = [job for job in misfits if not packing.fits_alone(job)]
        rationed = _ration(jobs, packing.capacity, asked)
        least = {job.id: _least(job) for job in misfits}
        if hopeless:
            asked = _without(hopeless, asked)
        elif rationed != asked:
            asked = rationed
        elif any(asked[name] != scale for name, scale in least.items()):
            asked.update(least)
        else:
            asked = _without(misfits[len(misfits) // 2 :], asked)
        jobs = [job for job in jobs if job.id in asked]
    for job in in_order([job for job in observation.jobs if job.id in wanted and job.id not in got]):
        got.update(packing.pack_beside(job, wanted[job.id]))
    scales.update(got)
    counts["nodes"] += sum(got.get(name) != scale for name, scale in wanted.items())
    return {name: packing.spread(name) for name in got}


def _without(gone: Sequence[JobView], asked: Mapping[str, Scale]) -> dict[str, Scale]:
    names = {job.id for job in gone}
    return {name: scale for name, scale in asked.items() if name not in names}


def _least(job: JobView) -> Scale:
    limits = bounds(job)
    return limits[0] if limits else STOPPED


class _Packing:
    """The nodes of an observation, and what was packed on them last."""

    def __init__(self, observation: Observation) -> None:
        requested = {
            name for job in observation.jobs for name in (*job.worker_requests, *job.server_requests)
        }
        self._nodes, self._resources = observation.nodes, sorted(requested)
        self._packer = Packer((), ())
        self._placed: dict[str, list[list[int]]] = {}
        self._alone: dict[tuple[object, ...], bool] = {}

    @cached_property
    def capacity(self) -> dict[str, int]:
        """All that is free, together."""
        return {name: sum(max(0, node.free.get(name, 0)) for node in self._nodes) for name in self._resources}

    def pack(self, jobs: Sequence[JobView], asked: Mapping[str, Scale]) -> dict[str, Scale]:
        """What each job gets of what it asks for, on empty nodes."""
        self._packer = Packer(self._nodes, self._resources)
        found = self._packer.pack([demand for job in jobs for demand in _demands(job, asked[job.id])])
        self._placed = {job.id: found[2 * n : 2 * n + 2] for n, job in enumerate(jobs)}
        return {name: Scale(*map(len, sides)) for name, sides in self._placed.items()}

    def pack_beside(self, job: JobView, asked: Scale) -> dict[str, Scale]:
        """What `job` gets beside what was packed; nothing if that is less than its minimum."""
        free = [list(row) for row in self._packer.free]
        found = self._packer.pack(_demands(job, asked))
        scale = within(Scale(*map(len, found)), bounds(job))
        if not scale.workers:
            self._packer.free = free
            return {}
        self._placed[job.id] = found
        return {job.id: scale}

    def spread(self, name: str) -> Spread:
        return Spread(*(tuple(self._packer.names[n] for n in side) for side in self._placed[name]))

    def fits_alone(self, job: JobView) -> bool:
        """Would its minimum fit if there were nobody else? Jobs that ask for the same share the answer."""
        alike = (
            _least(job), tuple(sorted(job.worker_requests.items())), tuple(sorted(job.server_requests.items())),
        )  # fmt: skip
        if alike not in self._alone:
            self._alone[alike] = self.pack([job], {job.id: _least(job)})[job.id] == _least(job)
        return self._alone[alike]


def _demands(job: JobView, asked: Scale) -> list[Demand]:
    least = _least(job)
    return [
        Demand(job.worker_requests, asked.workers, least.workers),
        Demand(job.server_requests, asked.servers, least.servers),
    ]
