"""What a resize costs, measured from what jobs really got done."""

from __future__ import annotations

import math

from dl2.scaling.interface import JobView, Observation, Scale

_PRIOR_WEIGHT = 4.0  # in resizes; before any was seen they are taken to be free


class PauseMeter:
    """Mean seconds of training lost in an interval in which a job's shape changed.

    A job that trained at the measured speed for the whole interval would have done speed times interval epochs;
    what is missing is the pause. Starts are not counted: they cannot be avoided.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Scale, float]] = {}  # job -> (now, scale, epochs done) before
        self._lost, self._count = 0.0, 0.0
        self._now = -math.inf

    @property
    def seconds(self) -> float:
        return max(self._lost, 0.0) / (self._count + _PRIOR_WEIGHT)

    def take_in(self, observation: Observation) -> None:
        """Learn from what happened since the last observation; the same one twice changes nothing."""
        if observation.now < self._now:
            self._last, self._lost, self._count = {}, 0.0, 0.0
        if observation.now == self._now:
            return
        self._now = observation.now
        for job in sorted(observation.jobs, key=lambda job: job.id):
            before = self._last.get(job.id)
            if before is not None and before[1].workers and job.current.workers and before[1] != job.current:
                self._learn(job, observation.now - before[0], job.epochs_done - before[2])
        self._last = {job.id: (observation.now, job.current, job.epochs_done) for job in observation.jobs}

    def _learn(self, job: JobView, passed: float, done: float) -> None:
        sample = job.samples[-1] if job.samples else None
        if sample is None or sample.scale != job.current:
            return
        speed = sample.epochs_per_second
        if math.isfinite(speed) and speed > 0 and math.isfinite(done) and passed > 0:
            self._lost += min(max(passed - done / speed, -passed), passed)  # noise goes both ways
            self._count += 1.0
