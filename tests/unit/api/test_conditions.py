"""Conditions as pure values, and times as Kubernetes writes them."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl2.api import conditions as c
from dl2.api.names import GroupState, JobState

NOW = 1_795_426_200.0  # 2026-11-23T09:30:00Z


def build(*entries: tuple[str, bool, str]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for kind, status, reason in entries:
        made = c.set_condition(made, kind, status, reason, "", 1, NOW)
    return made


def test_a_condition_is_set_as_metav1_wants_it() -> None:
    assert c.set_condition([], "Admitted", True, "Fits", "4 pods", 7, NOW + 0.9) == [
        {
            "type": "Admitted",
            "status": "True",
            "observedGeneration": 7,
            "lastTransitionTime": "2026-11-23T09:30:00Z",
            "reason": "Fits",
            "message": "4 pods",
        }
    ]


@pytest.mark.parametrize(
    ("status", "moves"), [(True, False), ("True", False), (False, True), ("Unknown", True)]
)
def test_the_transition_time_moves_only_with_the_status(status: Any, moves: bool) -> None:
    before = build(("Admitted", True, "Fits"))
    after = c.set_condition(before, "Admitted", status, "Other", "said anew", 2, NOW + 60)
    assert (after[0]["lastTransitionTime"] != before[0]["lastTransitionTime"]) is moves
    assert (after[0]["reason"], after[0]["observedGeneration"]) == ("Other", 2)


def test_setting_one_condition_keeps_order_and_leaves_the_given_list_alone() -> None:
    before = build(("A", True, "X"), ("B", True, "X"), ("C", True, "X"))
    after = c.set_condition(before, "B", False, "Y", "", 2, NOW)
    assert [entry["type"] for entry in after] == ["A", "B", "C"]
    assert c.is_true(before, "B")
    assert not c.is_true(after, "B")


def test_a_message_is_cut_to_what_the_schema_takes() -> None:
    assert len(c.set_condition([], "A", True, "X", "m" * 100_000, 1, NOW)[0]["message"]) == 32768


def test_a_condition_that_is_not_there_is_not_true() -> None:
    assert c.get([], "Admitted") is None
    assert not c.is_true([], "Admitted")


@pytest.mark.parametrize(
    ("derive", "entries", "state"),
    [
        (c.group_state, [], (GroupState.PENDING, "")),
        (
            c.group_state,
            [("QuotaReserved", False, "WaitingForQuota")],
            (GroupState.PENDING, "WaitingForQuota"),
        ),
        (
            c.group_state,
            [("QuotaReserved", True, "Q"), ("Admitted", True, "Fits")],
            (GroupState.ADMITTED, "Fits"),
        ),
        (c.group_state, [("Admitted", True, "Fits"), ("PodsReady", True, "Up")], (GroupState.READY, "Up")),
        (
            c.group_state,
            [("PodsReady", True, "Up"), ("Finished", True, "Done")],
            (GroupState.FINISHED, "Done"),
        ),
        (c.job_state, [], (JobState.QUEUED, "")),
        (c.job_state, [("Queued", True, "WaitingForQuota")], (JobState.QUEUED, "WaitingForQuota")),
        (c.job_state, [("Admitted", True, "Fits"), ("Running", True, "Up")], (JobState.RUNNING, "Up")),
        (c.job_state, [("Running", True, "Up"), ("Scaling", True, "Grow")], (JobState.SCALING, "Grow")),
        (
            c.job_state,
            [("Running", True, "Up"), ("Failed", True, "BackoffLimit")],
            (JobState.FAILED, "BackoffLimit"),
        ),
        (c.job_state, [("Queued", True, "Q"), ("Suspended", True, "Asked")], (JobState.SUSPENDED, "Asked")),
    ],
)
def test_printed_state(
    derive: Callable[[Any], Any], entries: list[tuple[str, bool, str]], state: tuple[str, str]
) -> None:
    assert derive(build(*entries)) == state


def test_trainer_3666_the_printed_state_does_not_depend_on_the_order_of_conditions() -> None:
    """kubeflow/trainer#3666: the state shown was that of the last list element."""
    made = build(("Running", False, "Done"), ("Succeeded", True, "Completed"), ("Queued", False, "Started"))
    assert c.job_state(made) == c.job_state(made[::-1]) == (JobState.SUCCEEDED, "Completed")


@given(st.integers(min_value=0, max_value=4_000_000_000))
def test_whole_seconds_survive_writing_and_reading(seconds: int) -> None:
    assert c.parse_time(c.format_time(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-23T09:30:00Z", NOW),
        ("2026-11-23T09:30:00.25Z", NOW + 0.25),
        ("2026-11-23T10:30:00+01:00", NOW),
    ],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert c.parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-11-23", "2026-11-23T09:30:00", "20261123T093000Z", 3, None]
)
def test_what_is_no_time_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(ValueError, match="2026-11-23T09:30:00Z"):
        c.parse_time(text)
