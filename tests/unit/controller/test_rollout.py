"""Who decides for which job, and what rolls a challenger back."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.api.scalingpolicy import Canary, Guardrails, ScalingPolicySpec
from dl2.cluster.store import Entry
from dl2.controller.rollout import (
    Arm,
    Evidence,
    Move,
    Times,
    Trigger,
    arm_of,
    asked,
    bad_answer,
    observed,
    promotes,
    regression,
    rolls_back,
    stage_in_force,
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


OLD, NEW, WORSE = Times(SLOW), Times(QUICK), Times([n * 2 for n in SLOW])


@pytest.mark.parametrize(
    ("stage", "evidence", "trigger"),
    [
        ("Active", Evidence(champion=OLD, challenger=NEW), None),
        ("Canary", Evidence(fault=(Trigger.BAD_ANSWER, "NaN")), Trigger.BAD_ANSWER),
        ("Active", Evidence(failures=3), Trigger.SCALING_FAILURES),
        ("Active", Evidence(failures=2), None),
        ("Canary", Evidence(champion=OLD, challenger=WORSE), Trigger.JCT_REGRESSION),
        ("Shadow", Evidence((Trigger.FAILED, "x"), 9, OLD, WORSE), None),  # on paper it harms nobody
        ("Observe", Evidence((Trigger.FAILED, "x"), 9, OLD, WORSE), None),
    ],
)
def test_what_rolls_a_challenger_back(stage: str, evidence: Evidence, trigger: Trigger | None) -> None:
    found = rolls_back(stage, evidence, Guardrails())
    assert (found[0] if found else None) is trigger


@pytest.mark.parametrize(
    ("stage", "evidence", "moves"),
    [
        ("Observe", Evidence(), True),
        ("Shadow", Evidence(rounds=10, gain=0.05), True),
        ("Shadow", Evidence(rounds=9, gain=0.05), False),
        ("Shadow", Evidence(rounds=10, gain=0.02), False),  # minGainPercent is 3
        ("Shadow", Evidence(rounds=10, gain=None), False),
        ("Shadow", Evidence((Trigger.TOO_SLOW, "x"), rounds=10, gain=0.5), False),
        ("Canary", Evidence(champion=OLD, challenger=NEW), True),
        ("Canary", Evidence(champion=OLD, challenger=OLD), False),
        ("Canary", Evidence(champion=OLD, challenger=Times(QUICK[:4])), False),  # too few jobs
        ("Active", Evidence(champion=OLD, challenger=NEW), False),  # nobody becomes champion by himself
    ],
)
def test_what_moves_a_challenger_on(stage: str, evidence: Evidence, moves: bool) -> None:
    def why(promotion: str, challenger: str | None = "dl2") -> str:
        spec = ScalingPolicySpec.model_validate({"promotion": promotion, "challenger": challenger})
        return promotes(stage, evidence, spec)

    assert bool(why("Automatic")) is moves
    assert why("Manual") == ""
    assert why("Automatic", None) == ""


def _policy(stage: str, history: list[tuple[str, int]]) -> Entry:
    spec = ScalingPolicySpec.model_validate({"stage": stage, "challenger": "dl2"})
    moves = [Move("t", "", after, "r", "m", generation).record() for after, generation in history]
    value = type("Policy", (), {"spec": spec})
    return Entry("u", "", "p", 1, value, generation=2, status={"history": moves})


@pytest.mark.parametrize(
    ("spec", "history", "pending", "stage"),
    [
        ("Active", [], [], "Active"),
        ("Active", [("Shadow", 2)], [], "Shadow"),  # rolled back
        ("Active", [("Shadow", 1)], [], "Active"),  # the spec has changed since
        ("Shadow", [("Canary", 2)], [], "Canary"),  # moved on by its evidence
        ("Shadow", [("Canary", 2), ("Shadow", 2)], [], "Shadow"),
        ("Active", [], [("Shadow", 2)], "Shadow"),  # not written yet
    ],
)
def test_the_stage_in_force(
    spec: str, history: list[tuple[str, int]], pending: list[tuple[str, int]], stage: str
) -> None:
    moves = [Move("t", "", after, "r", "m", generation) for after, generation in pending]
    assert stage_in_force(_policy(spec, history), moves) == stage
