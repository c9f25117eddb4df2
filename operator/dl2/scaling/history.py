"""What was measured, pooled by kind of job: jobs of one label and equal pods share their samples.

Pooling is what makes online fitting work: a new job of a known label starts with everything its predecessors
measured. Samples of jobs that have left are remembered here; everything else is in the observation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass, field

from dl2.scaling.interface import JobView, Observation, Scale, SpeedSample

# ("model", label) or ("job", id), and the requests of a worker and of a server.
Name = tuple[tuple[str, str], tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]
MOST_KINDS = 512  # unlabelled jobs are kinds of their own; the ones unused for longest are forgotten
_LATEST = 64  # samples of a kind that can be told one by one
_RECENT = 12.0  # a shape's mean forgets samples older than about so many, to follow drift
_FASTEST = 1e9  # epochs a second: nothing trains faster, whatever is told
_KNOWN = 3.0  # from so many samples at a shape on,
_STEP = math.log(2.0)  # one more moves its mean as if it were no further off than this


@dataclass(slots=True)
class Cell:
    """All samples of one kind at one shape: weighted count, mean and sum of squares of the log of the speed."""

    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """One sample; what is wildly off what is known counts as a little off, so that one liar does little harm."""
        if self.weight >= _KNOWN:
            value = min(max(value, self.mean - _STEP), self.mean + _STEP)
        self.weight *= 1.0 - 1.0 / _RECENT if self.weight > _RECENT else 1.0
        self.weight += 1.0
        step = value - self.mean
        self.mean += step / self.weight
        self.squares = min(self.squares + step * (value - self.mean), _RECENT)

    def merge(self, other: Cell) -> None:
        """Take in another's samples (Chan et al., 1979)."""
        weight, step = self.weight + other.weight, other.mean - self.mean
        self.squares += other.squares + step**2 * self.weight * other.weight / weight
        self.mean += step * other.weight / weight
        self.weight = weight


@dataclass(slots=True)
class Kind:
    """One kind's cells. `version` counts samples, for those who keep what they fitted; `latest`: the last of them.

    `jobs`: how many have been measured.
    """

    cells: dict[Scale, Cell] = field(default_factory=dict)
    version: int = 0
    jobs: int = 0
    used_at: float = 0.0
    latest: deque[tuple[Scale, float]] = field(default_factory=lambda: deque(maxlen=_LATEST))

    def add(self, scale: Scale, value: float) -> None:
        """One sample: the log of a speed."""
        self.cells.setdefault(scale, Cell()).add(value)
        self.latest.append((scale, value))
        self.version += 1

    @property
    def samples(self) -> float:
        return sum(cell.weight for cell in self.cells.values())


def kind_of(job: JobView) -> Name:
    """Jobs of one kind are expected to train equally fast at equal scale."""
    label = ("job", job.id) if job.model is None else ("model", job.model)
    return (
        label,
        tuple(sorted(job.worker_requests.items())),
        tuple(sorted(job.server_requests.items())),
    )


def is_unlabelled(name: Name) -> bool:
    return name[0][0] == "job"


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
        self._read: dict[str, float] = {}  # job -> time of its last sample taken in
        self._now = -math.inf

    def take_in(self, observation: Observation) -> dict[str, Name]:
        """Add the new samples of `observation`; taking in the same one twice changes nothing. Each job's kind."""
        if observation.now < self._now:
            self.__init__()  # type: ignore[misc]
        self._now = observation.now
        names = {job.id: kind_of(job) for job in observation.jobs}
        for job in sorted(observation.jobs, key=lambda job: job.id):
            name = names[job.id]
            kind = self.kinds.get(name) or self.kinds.setdefault(name, Kind())
            kind.used_at = observation.now
            after = self._read.get(job.id, -math.inf)
            for sample in job.samples[_first_after(job.samples, after) :]:
                speed = sample.epochs_per_second
                if sample.scale.workers > 0 and 0 <= speed <= _FASTEST:
                    kind.add(sample.scale, math.log(max(speed, 1e-12)))
            if job.samples:
                kind.jobs += job.id not in self._read
                self._read[job.id] = max(after, job.samples[-1].at)
        self._forget(names.keys())
        return names

    def _forget(self, active: Set[str]) -> None:
        self._read = {name: at for name, at in self._read.items() if name in active}
        if len(self.kinds) > MOST_KINDS:
            by_use = sorted(self.kinds, key=lambda kind: (-self.kinds[kind].used_at, kind))
            kept = max(MOST_KINDS, sum(kind.used_at == self._now for kind in self.kinds.values()))
            self.kinds = {kind: self.kinds[kind] for kind in by_use[:kept]}
