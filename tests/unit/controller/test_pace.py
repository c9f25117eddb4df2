"""What only people read is written as fast as is left over, and never not at all."""

from __future__ import annotations

import pytest

from dl2.controller import pace
from dl2.controller.pace import Pace


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def drained(rate: float) -> Pace:
    made = Pace(rate)
    for _ in range(made.allows()):
        made.spend()
    return made


@pytest.mark.parametrize(
    ("others", "seconds", "allowed"),
    [
        (0, 1.0, 50),  # nobody else writes
        (0, 0.1, 5),
        (0, 60.0, 50),  # what is not used is not saved up
        (20, 1.0, 30),  # what others write comes first
        (50, 1.0, 5),  # a tenth is left in any case
        (5000, 1.0, 5),
        (5000, 0.01, 0),
    ],
)
def test_a_rate_is_shared_with_what_somebody_waits_for(
    clock: Clock, others: int, seconds: float, allowed: int
) -> None:
    made = drained(50)
    for _ in range(others):
        made.count()
    clock.now += seconds
    assert made.allows() == allowed


def test_many_short_looks_earn_as_much_as_one_long_one(clock: Clock) -> None:
    made = drained(50)
    for _ in range(100):
        clock.now += 0.01
        made.allows()
    assert made.allows() in (49, 50)
