"""Who decides for which job, and what rolls a challenger back."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.api.scalingpolicy import Canary, Guardrails
from dl2.controller.rollout import (
    Arm,
    Times,
    arm_of,
    asked,
    bad_answer,
    observed,
    regression,
    too_many_failures,
)

QUICK, SLOW = [100.0, 110.0, 90.0, 105.0, 95.0], [200.0, 210.0, 190.0, 205.0, 195.0]


@pytest.mark.parametrize(
    ("stage", "challenger", "arms"),
    [
        ("Observe", None, [Arm.CHAMPION]),
        ("Observe", "dl2", [Arm.CHAMPION]),
        ("Shadow", "dl2", [Arm.CHAMPION, Arm.CHALLENGER]),
        ("Active", "dl2", [Arm.CHAMPION, Arm.CHALLENGER]),
    ],
)
def test_who_is_asked(stage: str, challenger: str | None, arms: list[Arm]) -> None:
    assert list(asked(stage, challenger)) == arms


@pytest.mark.parametrize(
    ("stage", "canary", "queue", "arm"),
    [
        ("Observe", Canary(percent=100), "a", Arm.CHAMPION),
        ("Shadow", Canary(percent=100), "a", Arm.CHAMPION),
        ("Canary", Canary(percent=100), "a", Arm.CHALLENGER),
        ("Canary", Canary(percent=0), "a", Arm.CHAMPION),
        ("Canary", Canary(percent=0, queues=["a"]), "a", Arm.CHALLENGER),
        ("Canary", Canary(percent=100, queues=["a"]), "b", Arm.CHAMPION),
        ("Active", Canary(percent=0), "a", Arm.CHALLENGER),
    ],
)
def test_who_decides_for_a_job(stage: str, canary: Canary, queue: str, arm: Arm) -> None:
    assert arm_of("uid", queue, stage, canary) is arm


def test_the_draw_is_stable_close_to_its_percentage_and_only_grows_with_it() -> None:
    uids = [f"uid-{n}" for n in range(2000)]
    chosen = [
        {uid for uid in uids if arm_of(uid, "q", "Canary", Canary(percent=p)) is Arm.CHALLENGER}
        for p in (10, 30)
    ]
    assert chosen[0] < chosen[1]
    assert [0.07 < len(c) / len(uids) / share < 1.3 for c, share in zip(chosen, (0.1, 0.3), strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ({}, ""),
        ({"a": (1, 2)}, ""),
        ({"a": (1e6, 2)}, ""),
        (None, "NoneType"),
        ({"a": (float("nan"), 1)}, "a: "),
        ({"a": (float("inf"), 1)}, "a: "),
        ({"a": (-1, 1)}, "a: "),
        ({"a": (1.5, 1)}, "a: "),
        ({"a": (1,)}, "a: "),
        ({"b": (1, 1), "a": None}, "a: "),
    ],
)
def test_an_answer_is_bad_where_it_is_no_pair_of_whole_numbers(answer: Any, word: str) -> None:
    wrong = bad_answer(answer)
    assert bool(wrong) == bool(word)
    assert word in wrong


@pytest.mark.parametrize(
    ("champion", "challenger", "rolls_back"),
    [
        (QUICK, SLOW, True),
        (SLOW, QUICK, False),
        (QUICK, QUICK, False),
        (QUICK, SLOW[:4], False),  # too few to tell
        (QUICK, [105.0, 115.0, 95.0, 110.0, 100.0], False),  # worse, within the limit
        ([1.0, 1000.0, 10.0, 400.0, 90.0], [20.0, 2000.0, 10.0, 500.0, 90.0], False),  # worse, but who knows
        ([], [], False),
        ([0.0] * 5, QUICK, False),
    ],
)
def test_a_regression_rolls_back_where_it_is_sure(
    champion: list[float], challenger: list[float], rolls_back: bool
) -> None:
    assert bool(regression(Times(champion), Times(challenger), Guardrails())) is rolls_back


@pytest.mark.parametrize(("failures", "rolls_back"), [(0, False), (2, False), (3, True)])
def test_so_many_failed_resizes(failures: int, rolls_back: bool) -> None:
    assert bool(too_many_failures(failures, Guardrails())) is rolls_back


def test_the_status_shows_the_mean_with_its_interval() -> None:
    told = observed(Times(QUICK, [1.0, 2.0]))
    assert told == {
        "jobs": 5,
        "meanJctSeconds": 100.0,
        "lowJctSeconds": 93.1,
        "highJctSeconds": 106.9,
        "slowdown": 1.5,
    }
    assert observed(Times()) == {"jobs": 0}
