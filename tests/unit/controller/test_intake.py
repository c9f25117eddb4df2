"""From what the API server holds to what a decision sees."""

from __future__ import annotations

import pytest

from dl2.api import PodGroup
from dl2.api.core import PriorityClassRecord
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


def priorities(**classes: tuple[int, bool]) -> intake.Priorities:
    return {name: PriorityClassRecord(name, name, 1, *each) for name, each in classes.items()}


@pytest.mark.parametrize(
    ("name", "classes", "value"),
    [
        (None, priorities(), 0),
        (None, priorities(a=(5, False)), 0),
        (
            None,
            priorities(a=(5, True), b=(3, True), c=(1, False)),
            3,
        ),  # as Kubernetes does, in whatever order
        ("a", priorities(a=(5, False), b=(3, True)), 5),
        ("system-node-critical", priorities(), 2_000_001_000),  # every API server has it
    ],
)
def test_the_value_of_a_priority_class(name: str | None, classes: intake.Priorities, value: int) -> None:
    assert intake.priority_of(name, classes) == (value, "")


def test_a_group_that_nobody_has_decided_upon_keeps_what_runs() -> None:
    entry = group(COUNTS)
    assert isinstance(entry.value, PodGroup)
    found = intake.read_group(entry.value, {}, [pod("worker", 0, "running")], {})
    assert [pod.terminating for pod in found.pods] == [False]
