"""What was measured, pooled by kind of job: jobs of one label and equal pods share their samples.

Pooling is what makes online fitting work: a new job of a known label starts with everything its predecessors
measured. A label that says little (a user's name, one for all) misleads instead: it is believed as long as its jobs do
not contradict each other (`dl2.scaling.labels`); from then on each of them is a kind of its own, as without a label.
Samples of jobs that have left are remembered here; everything else is in the observation.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence, Set

from dl2.scaling.cells import Kind, Name
from dl2.scaling.interface import JobView, Observation, SpeedSample
from dl2.scaling.labels import Labels

MOST_KINDS = 512  # unlabelled jobs are kinds of their own; the ones unused for longest are forgotten
_FASTEST = 1e9  # epochs a second: nothing trains faster, whatever is told


def kind_of(job: JobView) -> Name:
    """Jobs of one kind are expected to train equally fast at equal scale."""
    return _alone(job) if job.model is None else _named(job, ("model", job.model))


def _alone(job: JobView) -> Name:
    return _named(job, ("job", job.id))


def _named(job: JobView, label: tuple[str, str]) -> Name:
    return label, tuple(sorted(job.worker_requests.items())), tuple(sorted(job.server_requests.items()))


def label_of(name: Name) -> str | None:
    """None: a job of its own."""
    kind, label = name[0]
    return label if kind == "model" else None


def is_unlabelled(name: Name) -> bool:
    return label_of(name) is None


def requests_of(name: Name) -> Hashable:
    return name[1:]


def _first_after(samples: Sequence[SpeedSample], at: float) -> int:
    """Index of the first sample later than `at`; looks from the end, where the new ones are."""
    index = len(samples)
    while index and samples[index - 1].at > at:
        index -= 1
    return index


class History:
    """Takes in each sample once. Time that runs backwards means a new cluster: all is forgotten."""

    def __init__(self) -> None:
        self.kinds: dict[Name, Kind] = {}
        self._labels = Labels()
        self._read: dict[str, float] = {}  # job -> time of its last sample taken in
        self._now = -math.inf

    def take_in(self, observation: Observation) -> dict[str, Name]:
        """Add the new samples of `observation`; taking in the same one twice changes nothing. Each job's kind."""
        if observation.now < self._now:
            self.__init__()  # type: ignore[misc]
        self._now = observation.now
        known = {
            job.id: self._kind_of(job) for job in observation.jobs
        }  # a label may fall while they are read
        for job in sorted(observation.jobs, key=lambda job: job.id):
            self._read_samples(job, known[job.id])
        self._dissolve(observation.jobs)
        names = {job.id: self._kind_of(job) for job in observation.jobs}
        for name in names.values():
            self.kinds.setdefault(name, Kind()).used_at = observation.now
        self._forget(names.keys())
        return names

    def _kind_of(self, job: JobView) -> Name:
        return kind_of(job) if job.model is None or self._labels.believes(job.model) else _alone(job)

    def _read_samples(self, job: JobView, name: Name) -> None:
        if not job.samples:
            return
        after = self._read.get(job.id, -math.inf)
        kind, label = self.kinds.setdefault(name, Kind()), label_of(name)
        for sample in job.samples[_first_after(job.samples, after) :]:
            speed = sample.epochs_per_second
            if sample.scale.workers > 0 and 0 <= speed <= _FASTEST:
                value = math.log(max(speed, 1e-12))
                if label is not None:
                    self._labels.hear(label, _alone(job), sample.scale, value, kind.cells.get(sample.scale))
                kind.add(sample.scale, value)
        kind.jobs += job.id not in self._read
        self._read[job.id] = max(after, job.samples[-1].at)

    def _dissolve(self, jobs: Sequence[JobView]) -> None:
        """The jobs of labels that are not believed go on with what each has measured by itself."""
        labels = {job.model for job in jobs if job.model is not None and not self._labels.believes(job.model)}
        if labels:
            self.kinds = {name: kind for name, kind in self.kinds.items() if label_of(name) not in labels}
        for label in sorted(labels):
            for job, kind in self._labels.fall(label).items():
                kind.used_at = self._now
                self.kinds[job] = kind

    def _forget(self, active: Set[str]) -> None:
        self._read = {name: at for name, at in self._read.items() if name in active}
        if len(self.kinds) > MOST_KINDS:
            by_use = sorted(self.kinds, key=lambda kind: (-self.kinds[kind].used_at, kind))
            kept = max(MOST_KINDS, sum(kind.used_at == self._now for kind in self.kinds.values()))
            self.kinds = {kind: self.kinds[kind] for kind in by_use[:kept]}
            self._labels.forget({label for name in by_use[kept:] if (label := label_of(name)) is not None})
