"""What a scaling policy sees and answers. The same for the operator, the simulator and third parties.

Times are seconds, amounts are integers in a resource's smallest unit (see `dl2.scheduling.quantities`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class Scale(NamedTuple):
    """How many workers and parameter servers a job has. Scale(0, 0): it does not run."""

    workers: int
    servers: int


STOPPED = Scale(0, 0)


@dataclass(frozen=True, slots=True)
class SpeedSample:
    """What was measured over one interval at one scale; `at`: when the interval ended."""

    scale: Scale
    epochs_per_second: float
    at: float


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as a real operator knows it: what it asks for, what it has, what was measured. No speed function."""

    id: str
    model: str | None
    queue: str
    priority: int
    submitted_at: float
    started_at: float | None
    worker_requests: Mapping[str, int]
    server_requests: Mapping[str, int]
    minimum: Scale
    maximum: Scale
    current: Scale  # Scale(0, 0): not running
    epochs_total: float | None
    epochs_done: float
    samples: tuple[SpeedSample, ...]  # oldest first


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node; `free` counts as if no job of the observation ran."""

    name: str
    free: Mapping[str, int]
    capacity: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a decision may depend on. `budgets`: per queue, what its jobs may hold in all; empty: no limit.

    Raises ValueError where two jobs have one id.
    """

    now: float
    interval: float
    jobs: tuple[JobView, ...]
    nodes: tuple[NodeView, ...]
    budgets: Mapping[str, Mapping[str, int]]

    def __post_init__(self) -> None:
        ids = Counter(job.id for job in self.jobs)
        if len(ids) < len(self.jobs):
            raise ValueError(f'two jobs have the id "{ids.most_common(1)[0][0]}"; give each its own')


@runtime_checkable
class Policy(Protocol):
    """Allocates one interval. A job that is not in the answer, or at Scale(0, 0), does not run in it.

    Deterministic: no I/O, no clock, no global random state. A policy may remember the samples of jobs that
    have finished; beyond that its answer depends on the observation alone, and not on the order of its jobs.
    """

    name: str

    def allocate(self, observation: Observation) -> dict[str, Scale]: ...
