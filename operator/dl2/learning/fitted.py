"""The simulator fitted to a cluster: its nodes, jobs, arrivals and measured speeds, from what the operator observed.

Every case is another draw (a bootstrap; Efron, 1979): a stretch of the arrivals that were seen, filled with jobs that
were seen, some faster and some slower than is believed, as far as the measurements leave it open. What trains on many
such draws learns this cluster, not one history of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dl2.learning.logged import LessonError
from dl2.learning.physics import TrueSpeed
from dl2.learning.simulator import Clock, Settings
from dl2.learning.suites import SEEDS, Case, Split
from dl2.learning.workload import Job, Workload
from dl2.scaling.beliefs import Belief, Measured
from dl2.scaling.interface import JobView, NodeView, Observation, Scale
from dl2.scaling.lattice import Floats
from dl2.scheduling.snapshot import Limits, Queue

LEAST_JOBS = 8  # with a known end and a measured kind; fewer say nothing about the next ones
MOST_JOBS = 40  # of one case
_DECISIONS = 200.0  # of one case, about; a log of long jobs and short intervals would take hours to play
_LOADS = (0.7, 1.4)  # arrivals are so much closer or further apart than they were


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was seen of a cluster. `jobs` by submission, each with the belief about its speeds at the end of the log."""

    jobs: tuple[tuple[JobView, Belief], ...]
    nodes: tuple[NodeView, ...]
    queues: tuple[Queue, ...]
    settings: Settings

    def case(self, n: int, split: Split = Split.TRAINING) -> Case:
        """The n-th draw of a split."""
        seed = SEEDS[split][n]
        rng = np.random.default_rng([seed, 0xF177ED])
        count = min(len(self.jobs), MOST_JOBS)
        first = int(rng.integers(len(self.jobs) - count + 1))
        times = np.array([job.submitted_at for job, _ in self.jobs[first : first + count]])
        times = (times - times[0]) / rng.uniform(*_LOADS)
        draw = _Draw(rng)
        jobs = tuple(
            draw.job(f"job-{i:04d}", float(at), *self.jobs[int(rng.integers(len(self.jobs)))])
            for i, at in enumerate(times)
        )
        return Case(f"log/{seed}", Workload(jobs, self.nodes, self.queues), self.settings, seed)


def fit(rounds: Iterable[Observation], pauses: Sequence[float] = ()) -> Fitted:
    """From observations, the oldest first. `pauses`: seconds that resizes took. Raises LessonError."""
    measured, jobs, last = Measured(), dict[tuple[str, float], JobView](), None
    budgets: dict[str, dict[str, int]] = {}
    for last in rounds:
        measured.history.take_in(last)
        jobs |= {(job.id, job.submitted_at): job for job in last.jobs if job.epochs_total}
        for queue, most in last.budgets.items():
            mine = budgets.setdefault(queue, {})
            mine |= {name: max(amount, mine.get(name, 0)) for name, amount in most.items()}
    if last is None:
        raise LessonError("the log holds no round of a ScalingPolicy; let one observe for a while")
    known = _with_beliefs(jobs.values(), measured, last)
    if len(known) < LEAST_JOBS:
        raise LessonError(
            f"the log tells how long {len(known)} jobs are and how fast they train, {LEAST_JOBS} are needed; wait for "
            "more, and see that jobs say spec.training.epochs and stepsPerEpoch"
        )
    interval = max(last.interval, _span(known) / _DECISIONS)
    settings = Settings(
        interval=interval,
        clock=Clock.OPERATOR,
        resize=float(np.mean(pauses)) if len(pauses) else 0.0,
        most_intervals=int(20 * _DECISIONS),
    )
    return Fitted(known, last.nodes, tuple(_queue(name, most) for name, most in budgets.items()), settings)


def _with_beliefs(
    jobs: Iterable[JobView], measured: Measured, last: Observation
) -> tuple[tuple[JobView, Belief], ...]:
    """The jobs of which there is a measured kind, by submission."""
    # Kinds go by label, or else by id. Ids may have come again; what was measured has been taken in already.
    named = {str(n) if job.model is not None else job.id: job for n, job in enumerate(jobs)}
    views = tuple(replace(job, id=name, samples=()) for name, job in named.items())
    beliefs = measured.beliefs(replace(last, jobs=views))
    pairs = ((job, beliefs.get(name)) for name, job in named.items())
    known = ((job, belief) for job, belief in pairs if belief is not None and belief.samples > 0)
    return tuple(sorted(known, key=lambda pair: (pair[0].submitted_at, pair[0].id)))


def _span(known: Sequence[tuple[JobView, Belief]]) -> float:
    """Seconds from the first arrival to about the last end, of as many jobs as a case has."""
    count = min(len(known), MOST_JOBS)
    arrivals = known[-1][0].submitted_at - known[0][0].submitted_at
    lengths = [float(job.epochs_total or 0.0) / max(float(b.speed.max()), 1e-12) for job, b in known]
    return arrivals * count / len(known) + float(np.median(lengths))


def _queue(name: str, most: Mapping[str, int]) -> Queue:
    """What a queue's jobs were allowed to hold at most; guarantees and loans are not in the log."""
    return Queue(name, limits={resource: Limits(min=0, max=amount) for resource, amount in most.items()})


class _Draw:
    """The jobs of one case. Those of one belief err alike."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._speeds: dict[tuple[int, Scale], TrueSpeed] = {}
        self._errors: dict[int, float] = {}

    def job(self, name: str, at: float, seen: JobView, belief: Belief) -> Job:
        return Job(
            name, at, seen.model, float(seen.epochs_total or 1.0), seen.queue, seen.priority,
            seen.worker_requests, seen.server_requests, seen.minimum, seen.maximum,
            self._speed(belief, seen.maximum),
        )  # fmt: skip

    def _speed(self, belief: Belief, most: Scale) -> TrueSpeed:
        key = (id(belief.speed), most)
        if key not in self._speeds:
            error = self._errors.setdefault(id(belief.speed), float(self._rng.standard_normal()))
            self._speeds[key] = TrueSpeed(_table(belief, most, error))
        return self._speeds[key]


def _table(belief: Belief, most: Scale, error: float) -> Floats:
    """(workers + 1, servers + 1): believed speeds, off by `error` times their deviation (of the log)."""
    speed = belief.speed * np.exp(error * belief.deviation)
    table = np.zeros((most.workers + 1, most.servers + 1))
    columns = np.arange(most.servers + 1)
    for workers in range(1, most.workers + 1):
        off = abs(belief.shapes.workers - workers) + abs(belief.shapes.servers - columns[:, None])
        table[workers] = speed[off.argmin(axis=1)]
    return table
