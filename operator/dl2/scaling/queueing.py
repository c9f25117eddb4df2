"""Policies that put jobs in an order and give each, in turn, its best known shape: FIFO, SRTF, Tiresias, Tetris.

As published they know rigid jobs, whose size the user fixed. Read in their strongest way, the size is the
cheapest shape that is fast enough by what was measured (`dl2.scaling.known`), cut to what is left; where all
are served, what is left over goes to the first in the order, up to their fastest shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dl2.scaling.beliefs import Belief, Measured, Source
from dl2.scaling.bounds import in_order, remaining, standing
from dl2.scaling.interface import STOPPED, JobView, Observation, Scale
from dl2.scaling.known import ENOUGH, best_fitting
from dl2.scaling.room import Room


class _Ordered:
    """Serves jobs in `order`; who does not fit is passed over (backfill)."""

    name = ""

    def __init__(self, source: Source | None = None) -> None:
        self._source = source or Measured()

    def order(
        self, jobs: Sequence[JobView], beliefs: Mapping[str, Belief], observation: Observation
    ) -> list[JobView]:
        raise NotImplementedError

    def allocate(self, observation: Observation) -> dict[str, Scale]:
        beliefs = self._source.beliefs(observation)
        room = Room(observation)
        jobs = [job for job in in_order(observation.jobs) if job.id in beliefs and room.hosts(job)]
        order = self.order(jobs, beliefs, observation)
        answer: dict[str, Scale] = {}
        for enough in (ENOUGH, 1.0):  # what is left when all are served is worth something to the first
            for job in order:
                held = answer.get(job.id, STOPPED)
                room.take(job, room.amounts(job, Scale(-held.workers, -held.servers)))
                shape = best_fitting(job, beliefs[job.id], room, enough)
                if shape is not None:
                    room.take(job, room.amounts(job, shape))
                    answer[job.id] = shape
        return answer


class Fifo(_Ordered):
    """First in, first out: by priority, then submission, as Kubernetes batch queues and YARN's FIFO scheduler do."""

    name = "fifo"

    def order(
        self, jobs: Sequence[JobView], beliefs: Mapping[str, Belief], observation: Observation
    ) -> list[JobView]:
        return sorted(jobs, key=standing)


class Srtf(_Ordered):
    """Shortest remaining time first, at the best known speed (preemptive SRPT; Schrage, 1968)."""

    name = "srtf"

    def order(
        self, jobs: Sequence[JobView], beliefs: Mapping[str, Belief], observation: Observation
    ) -> list[JobView]:
        return sorted(
            jobs, key=lambda job: (remaining(job) / float(beliefs[job.id].speed.max()), standing(job))
        )


class Tiresias(_Ordered):
    """Discretised two-queue least attained service (Gu et al., NSDI 2019, section 3.3).

    Attained service is dominant share times time. Jobs below `threshold` are served before those above, each
    queue first in, first out. Default threshold: the median of attained service over active jobs that have any.
    """

    name = "tiresias"

    def __init__(self, threshold: float | None = None, source: Source | None = None) -> None:
        super().__init__(source)
        self._threshold = threshold

    def order(
        self, jobs: Sequence[JobView], beliefs: Mapping[str, Belief], observation: Observation
    ) -> list[JobView]:
        room = Room(observation)
        served = {job.id: attained(job, room, observation.interval) for job in jobs}
        known = sorted(service for service in served.values() if service > 0)
        limit = self._threshold
        if limit is None:
            limit = known[len(known) // 2] if known else 0.0
        return sorted(jobs, key=lambda job: (served[job.id] > limit, standing(job)))


class Tetris(_Ordered):
    """Packing by alignment and short remaining work (Grandl et al., SIGCOMM 2014, sections 3.2 and 3.3.1).

    Score = alignment / mean alignment + shortness / mean shortness, both of the job's best known shape; the
    alignment is the product of what it asks and what is free, both as parts of the cluster, and is worked out
    anew after each placement.
    """

    name = "tetris"

    def order(
        self, jobs: Sequence[JobView], beliefs: Mapping[str, Belief], observation: Observation
    ) -> list[JobView]:
        room = Room(observation)
        prices = room.prices()
        asked = {}
        for job in jobs:
            shape = best_fitting(job, beliefs[job.id], room)
            if shape is not None:
                asked[job.id] = room.amounts(job, shape)
        waiting = [job for job in jobs if job.id in asked]
        short = {job.id: float(beliefs[job.id].speed.max()) / remaining(job) for job in waiting}
        ordered: list[JobView] = []
        while waiting:
            free = [left * price for left, price in zip(room.cluster, prices, strict=True)]
            weights = [part * price for part, price in zip(free, prices, strict=True)]
            align = {
                job.id: sum(amount * weight for amount, weight in zip(asked[job.id], weights, strict=True))
                for job in waiting
            }
            means = (_mean(align.values()), _mean(short[job.id] for job in waiting))
            best = min(
                waiting,
                key=lambda job: (-(align[job.id] / means[0] + short[job.id] / means[1]), standing(job)),
            )
            waiting.remove(best)
            ordered.append(best)
            if room.fits(best, asked[best.id]):
                room.take(best, asked[best.id])
        return ordered


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return max(sum(numbers) / len(numbers), 1e-300)


def attained(job: JobView, room: Room, interval: float) -> float:
    """Dominant share times seconds so far; every sample stands for one interval at its scale."""
    return sum(room.dominant(room.amounts(job, sample.scale)) for sample in job.samples) * interval
