"""From what the API server holds to what a decision sees."""

from __future__ import annotations

import pytest

from dl2.api import PodGroup
from dl2.controller import intake
from dl2.scheduling.snapshot import Group
from tests.unit.controller.objects import group, pod

COUNTS = {"worker": 2}


def read(admitted: dict[str, int] | None, *states: str) -> Group:
    entry = group(COUNTS, admitted)
    assert isinstance(entry.value, PodGroup)
    pods = [pod("worker", index, state) for index, state in enumerate(states)]
    return intake.read_group(entry.value, entry.status, pods, {})


@pytest.mark.parametrize(
    ("admitted", "state", "leaving"),
    [
        (COUNTS, "running", False),
        (
            None,
            "running",
            True,
        ),  # its eviction is written, its deletion not yet: nobody else has to go for it
        (None, "running-", True),
        (None, "gated", False),  # it holds nothing and waits
    ],
)
def test_what_was_released_for_an_admission_that_has_ended_is_on_its_way_out(
    admitted: dict[str, int] | None, state: str, leaving: bool
) -> None:
    assert [pod.terminating for pod in read(admitted, state, state).pods] == [leaving, leaving]


def test_a_group_that_nobody_has_decided_upon_keeps_what_runs() -> None:
    entry = group(COUNTS)
    assert isinstance(entry.value, PodGroup)
    found = intake.read_group(entry.value, {}, [pod("worker", 0, "running")], {})
    assert [pod.terminating for pod in found.pods] == [False]
