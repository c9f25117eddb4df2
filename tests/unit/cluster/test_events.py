"""Events: one per transition, bounded whatever happens."""

from __future__ import annotations

from dl2.cluster import events as module
from dl2.cluster.events import EventRecorder
from dl2.cluster.resources import DL_JOBS
from tests.unit.cluster.fake_api import FakeApi, FakeClient
from tests.unit.controller.objects import job


def recorder() -> EventRecorder:
    return EventRecorder(FakeClient(FakeApi()))  # type: ignore[arg-type]


def test_the_same_is_not_told_twice() -> None:
    events, about = recorder(), job()
    for _ in range(100):
        events.post(DL_JOBS, about, "Admitted", "admitted 2 worker", False)
    events.post(DL_JOBS, about, "Admitted", "admitted 3 worker", False)
    assert events._queue.qsize() == 2


def test_a_flood_is_cut_off_and_counted_and_memory_stays_bounded() -> None:
    events, about = recorder(), job()
    for n in range(module.REMEMBERED + module.BACKLOG):
        events.post(DL_JOBS, about, "Noise", str(n), True)
    assert events._queue.qsize() == module.BACKLOG
    assert events.dropped == module.REMEMBERED
    assert len(events._recent) == module.REMEMBERED


def test_an_event_is_within_the_limits_of_the_api() -> None:
    made = module._event(DL_JOBS, job(), "Failed", "x" * 5000, True)
    assert len(made["note"]) <= 1024
    assert len(made["metadata"]["name"]) <= 253
    assert (made["type"], made["regarding"]["uid"]) == ("Warning", "uid-j")
