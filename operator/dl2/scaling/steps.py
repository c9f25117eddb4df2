"""Greedy rules that give a few more workers, servers or pairs at a time to the job that gains most by them."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dl2.scaling.beliefs import Belief, Known, Measured, Source, TrueSpeeds
from dl2.scaling.bounds import in_order, remaining
from dl2.scaling.interface import STOPPED, JobView, Observation, Scale
from dl2.scaling.room import Room

# Gain of going from one speed to a faster one (epochs a second), for a part of the cluster (dominant share).
Gain = Callable[[JobView, float, float, float], float]
_STEPS = ((1, 0), (0, 1), (1, 1))
_LEAPS = tuple((n * w, n * s) for n in (1, 2, 3, 4) for w, s in _STEPS)


class SrptGain:
    """Largest (speed gain / remaining work / resource used) first: the strongest rule of single steps we know.

    Smith's rule for weighted completion times (1956), applied to marginal speed.
    """

    name = "srpt-gain"

    def __init__(self, source: Source | None = None) -> None:
        self._source = source or Measured()

    def allocate(self, observation: Observation) -> dict[str, Scale]:
        beliefs = self._source.beliefs(observation)
        jobs = [job for job in in_order(observation.jobs) if job.id in beliefs]
        return climb(jobs, beliefs, Room(observation), _relief, _STEPS, first=_relief)


class Optimus:
    """Optimus (Peng et al., EuroSys 2018, sections 3.2 and 4.1), with speeds fitted online.

    Everybody starts with its minimum, shortest remaining time first; then the job whose completion time it shortens
    most per dominant share is given more workers and servers, while anybody gains. Read in its strongest way: speeds
    are the surfaces that all policies share, where the paper's formula misfits what is measured; up to four pods at
    once, over the dips that stop single steps; and the placer is everybody's. `error`: the paper's error, each
    predicted speed off by up to so much (0.1: 10 %), the same way every time.
    """

    name = "optimus"

    def __init__(self, error: float = 0.0, source: Source | None = None) -> None:
        self._source = source or Measured()
        self._error = error

    def allocate(self, observation: Observation) -> dict[str, Scale]:
        beliefs = self._source.beliefs(observation)
        if self._error:
            beliefs = {name: _mistaken(belief, self._error, name) for name, belief in beliefs.items()}
        jobs = [job for job in in_order(observation.jobs) if job.id in beliefs]
        return climb(jobs, beliefs, Room(observation), _shortening, _LEAPS, first=_urgency)


class OptimusOracle(Optimus):
    """Optimus with the true speed function: a yardstick, not a policy that anybody could run."""

    name = "optimus-oracle"

    def __init__(self, speeds: TrueSpeeds, error: float = 0.0) -> None:
        super().__init__(error, Known(speeds))


def _relief(job: JobView, before: float, after: float, part: float) -> float:
    return (after - before) / remaining(job) / part


def _shortening(job: JobView, before: float, after: float, part: float) -> float:
    return remaining(job) * (1.0 / before - 1.0 / after) / part


def _urgency(job: JobView, before: float, after: float, part: float) -> float:
    """Shortest remaining time first."""
    return after / remaining(job)


def _mistaken(belief: Belief, error: float, job: str) -> Belief:
    """`belief` with errors drawn uniformly from ±`error` by a generator that job and shape alone seed."""
    draws = np.random.default_rng(zlib.crc32(job.encode())).uniform(-error, error, len(belief.speed))
    return belief._replace(speed=np.maximum(belief.speed * (1.0 + draws), 1e-15))


def climb(
    jobs: Sequence[JobView],
    beliefs: Mapping[str, Belief],
    room: Room,
    gain: Gain,
    steps: Sequence[tuple[int, int]],
    *,
    first: Gain,
) -> dict[str, Scale]:
    """Minimums by `first`, largest first, then step by step by `gain` while it is above 0 and there is room.

    Steps count along the lattice (single pods up to 16). What does not fit is not asked again: room
    only shrinks.
    """
    ladders = {job.id: Ladder(job, beliefs[job.id], room) for job in jobs if room.hosts(job)}
    if first is gain:
        start = [job for job in jobs if job.id in ladders]
    else:
        start = []
        urgent = [job for job in jobs if job.id in ladders]
        for job in sorted(urgent, key=lambda job: -first(job, 0.0, ladders[job.id].slowest, 1.0)):
            if ladders[job.id].begin():
                start.append(job)
    heap: list[tuple[float, int, tuple[int, int]]] = []

    def offer(n: int) -> None:
        best = ladders[start[n].id].best(gain, steps)
        if best is not None:
            heapq.heappush(heap, (-best[0], n, best[1]))

    for n in range(len(start)):
        offer(n)
    while heap:
        _, n, step = heapq.heappop(heap)
        ladders[start[n].id].take(step)
        offer(n)
    return {name: ladder.scale for name, ladder in ladders.items() if ladder.scale.workers}


class Ladder:
    """One job on its way up the lattice."""

    def __init__(self, job: JobView, belief: Belief, room: Room) -> None:
        self.job, self.room = job, room
        self._w = np.unique(belief.shapes.workers).tolist()
        self._s = np.unique(belief.shapes.servers).tolist()
        self._speed = belief.speed.reshape(len(self._w), len(self._s)).tolist()
        self._at: tuple[int, int] | None = None
        self._refused: set[tuple[int, int]] = set()
        self.scale = STOPPED
        self.slowest = self._speed[0][0]

    def begin(self) -> bool:
        """Take the minimum, if it fits."""
        if not self._fits((0, 0)):
            return False
        self.take((0, 0))
        return True

    def best(self, gain: Gain, steps: Sequence[tuple[int, int]]) -> tuple[float, tuple[int, int]] | None:
        """(gain, step) of the best step that fits, or None."""
        if self._at is None:
            part = max(self.room.dominant(self.room.amounts(self.job, self._target((0, 0)))), 1e-12)
            return (gain(self.job, 0.0, self.slowest, part), (0, 0)) if self._fits((0, 0)) else None
        (i, j), found = self._at, None
        for step in steps:
            a, b = i + step[0], j + step[1]
            if step in self._refused or a >= len(self._w) or b >= len(self._s):
                continue
            before, after = self._speed[i][j], self._speed[a][b]
            if after <= before:
                continue
            part = max(self.room.dominant(self._change(step)), 1e-12)
            worth = gain(self.job, before, after, part)
            if found is None or worth > found[0]:
                if self._fits(step):
                    found = (worth, step)
                else:
                    self._refused.add(step)
        return found

    def take(self, step: tuple[int, int]) -> None:
        """Do a step, if there still is room for it."""
        if not self._fits(step):
            self._refused.add(step)
            return
        self.room.take(self.job, self._change(step))
        self.scale = self._target(step)
        self._at = (0, 0) if self._at is None else (self._at[0] + step[0], self._at[1] + step[1])

    def _target(self, step: tuple[int, int]) -> Scale:
        i, j = self._at or (0, 0)
        return Scale(self._w[i + step[0]], self._s[j + step[1]])

    def _change(self, step: tuple[int, int]) -> list[int]:
        to = self._target(step)
        return self.room.amounts(
            self.job, Scale(to.workers - self.scale.workers, to.servers - self.scale.servers)
        )

    def _fits(self, step: tuple[int, int]) -> bool:
        return self.room.fits(self.job, self._change(step))
