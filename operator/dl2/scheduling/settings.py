"""What an installation may tune in the decision core."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = (
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "dl2.dev/block",
    "dl2.dev/rack",
    "kubernetes.io/hostname",
)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential: `first` seconds, doubled each time, never more than `limit`."""

    first: float
    limit: float

    def seconds(self, evictions: int) -> float:
        """How long a group has to wait that was evicted for the `evictions`-th time."""
        return min(self.first * 2.0 ** min(max(evictions - 1, 0), 32), self.limit)


@dataclass(frozen=True, slots=True)
class Settings:
    levels: tuple[str, ...] = LEVELS  # topology labels, outermost first; the last is the node itself
    reserve_after_seconds: float = 600.0  # a head passed over for so long gets a reservation
    # A group that was not ready in time waits so long; twice as long after each further eviction.
    backoff: Backoff = Backoff(60.0, 3600.0)
    # One that lost its room to another only has to let it pass: the rules keep it from taking it back.
    backoff_when_preempted: Backoff = Backoff(1.0, 60.0)
