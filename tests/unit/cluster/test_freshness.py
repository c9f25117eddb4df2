"""Whether a watch keeps up: it has to tell of every version that was seen elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dl2.cluster import freshness
from dl2.cluster.freshness import Freshness


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(freshness.time, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def test_kopf_a_watch_that_freezes_in_silence_is_noticed(clock: Callable[[float], None]) -> None:
    fresh = Freshness()
    fresh.heard("Pod", 5)
    fresh.seen("Pod", 7)  # a LIST, or the answer of a write
    clock(40)
    assert fresh.behind("Pod") == 40
    assert fresh.event_age("Pod") == 40


def test_a_quiet_kind_is_not_behind_however_old_its_last_event(clock: Callable[[float], None]) -> None:
    fresh = Freshness()
    fresh.heard("PriorityClass", 5)
    fresh.seen("PriorityClass", 5)
    clock(1e6)
    assert fresh.behind("PriorityClass") == 0
    assert fresh.event_age("PriorityClass") == 1e6


@pytest.mark.parametrize(("told", "behind"), [(6, 3.0), (7, 0.0), (9, 0.0)])
def test_it_is_no_longer_behind_once_it_has_told_of_that_version(
    clock: Callable[[float], None], told: int, behind: float
) -> None:
    fresh = Freshness()
    fresh.seen("Pod", 7)
    clock(3)
    fresh.heard("Pod", told)
    assert fresh.behind("Pod") == behind


def test_watches_that_start_anew_owe_nothing(clock: Callable[[float], None]) -> None:
    fresh = Freshness()
    fresh.seen("Pod", 7)
    clock(100)
    fresh.forgive()
    assert fresh.behind("Pod") == 0
