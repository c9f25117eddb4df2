"""What was measured of one kind of job, shape by shape."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from dl2.scaling.interface import Scale

# ("model", label) or ("job", id), and the requests of a worker and of a server: what a kind is called.
Name = tuple[tuple[str, str], tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]
_LATEST = 64  # samples of a kind that can be told one by one
_RECENT = 12.0  # a shape's mean forgets samples older than about so many, to follow drift
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
