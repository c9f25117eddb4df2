"""One scaling round: whose answer each job is given, and what makes a challenger go."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from dl2.controller import rounds
from dl2.controller.rollout import Arm, Trigger
from dl2.controller.rounds import Answer, Question
from dl2.controller.scaler import Change, Scaler, Seat
from dl2.controller.threads import in_thread
from dl2.controller.trial import _fault
from dl2.scaling.beliefs import Measured
from dl2.scaling.guardrails import Limits
from dl2.scaling.interface import JobView, NodeView, Observation, Scale, SpeedSample
from dl2.scheduling.snapshot import Admitted, Group, Key, Snapshot
from tests.unit.controller.objects import job


def view(name: str) -> JobView:
    return JobView(
        id=name, model="m", queue="q", priority=0, submitted_at=0.0, started_at=0.0, worker_requests={"cpu": 1},
        server_requests={"cpu": 1}, minimum=Scale(1, 1), maximum=Scale(8, 8), current=Scale(2, 2), epochs_total=1000.0,
        epochs_done=0.0, samples=(SpeedSample(Scale(2, 2), 0.01, 50.0),),
    )  # fmt: skip


SEEN = Observation(100.0, 60.0, (view("a"), view("b")), (NodeView("n", {"cpu": 100}, {"cpu": 100}),), {})


def judged(answers: dict[Arm, Answer], arms: dict[str, Arm]) -> rounds.Round:
    question = Question(Snapshot(100.0), {}, {}, {}, arms, Limits(step=4, gain=0.0), 60.0)
    return rounds.judge(question, SEEN, answers, Measured())


def says(workers: int, servers: int = 2, error: str = "") -> Answer:
    return Answer("p", {name: Scale(workers, servers) for name in ("a", "b")}, error=error)


@pytest.mark.parametrize(
    ("answers", "arms", "given"),
    [
        ({Arm.CHAMPION: says(1)}, {}, [1, 1]),
        ({Arm.CHAMPION: says(1), Arm.CHALLENGER: says(3)}, {}, [1, 1]),
        ({Arm.CHAMPION: says(1), Arm.CHALLENGER: says(3)}, {"b": Arm.CHALLENGER}, [1, 3]),
        ({Arm.CHAMPION: says(1), Arm.CHALLENGER: says(3, error="NaN")}, {"b": Arm.CHALLENGER}, [1, 2]),
        ({Arm.CHAMPION: says(1, error="gone"), Arm.CHALLENGER: says(3)}, {"b": Arm.CHALLENGER}, [2, 3]),
    ],
)
def test_each_job_is_given_the_answer_of_its_arm(
    answers: dict[Arm, Answer], arms: dict[str, Arm], given: list[int]
) -> None:
    verdicts = judged(answers, arms).verdicts
    assert [verdicts[name].given.workers for name in ("a", "b")] == given


def test_agreement_and_gain_are_told_where_both_have_answered() -> None:
    both = judged({Arm.CHAMPION: says(1), Arm.CHALLENGER: says(4, 4)}, {})
    assert both.agreement == 0.0
    assert both.predicted_gain is not None
    assert both.predicted_gain > 0
    same = judged({Arm.CHAMPION: says(3), Arm.CHALLENGER: says(3)}, {})
    assert (same.agreement, same.predicted_gain) == (1.0, 0.0)
    for alone in ({Arm.CHAMPION: says(1)}, {Arm.CHAMPION: says(1), Arm.CHALLENGER: says(3, error="x")}):
        assert judged(alone, {}).agreement is None


class Told:
    """A policy that answers with what it is told to, or raises it."""

    name = "told"

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def allocate(self, observation: Observation) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "broken", "word"),
    [
        ({"a": Scale(3, 1)}, False, ""),
        ({"a": (float("nan"), 1)}, True, "a: "),
        (ZeroDivisionError("by zero"), True, "ZeroDivisionError"),
        (None, True, "NoneType"),
    ],
)
def test_a_policy_that_breaks_costs_its_own_answer(answer: Any, broken: bool, word: str) -> None:
    given = rounds.ask(Told(answer), SEEN)
    assert (given.broken, bool(given.error)) == (broken, broken)
    assert word in given.error


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (None, None),
        (says(1), None),
        (rounds.ask(Told({"a": (float("nan"), 1)}), SEEN), Trigger.BAD_ANSWER),
        (rounds.ask(Told(ValueError("x")), SEEN), Trigger.FAILED),
        (Answer("dl2", seconds=30.0, error="no decision within 30 s"), Trigger.TOO_SLOW),
    ],
)
def test_what_an_unusable_answer_is_called(answer: Answer | None, fault: Trigger | None) -> None:
    found = _fault(answer)
    assert (found[0] if found else None) is fault


@pytest.mark.parametrize(
    ("admitted", "ready", "waited", "kind"),
    [
        ((3, 2), (3, 2), 1, "Resized"),
        ((3, 2), (2, 2), 1, ""),
        ((3, 2), (2, 2), 121, "ResizeFailed"),
        ((2, 2), (2, 2), 1, ""),
        ((2, 2), (2, 2), 121, "NoRoom"),
    ],
)
def test_how_a_resize_ends(
    admitted: tuple[int, int], ready: tuple[int, int], waited: float, kind: str
) -> None:
    """Of a job that is to grow from 2x2 to 3x2."""
    change = Change(Scale(2, 2), Scale(3, 2), time.time() - waited, Arm.CHAMPION, "drf", 1)
    entry = job(runtime="elastic", status={"workers": {"ready": ready[0]}, "servers": {"ready": ready[1]}})
    has = {"worker": Admitted(admitted[0]), "server": Admitted(admitted[1])}
    group = Group(Key("team-a", "train"), "q", (), admitted=has)
    assert Scaler._judged(None, change, entry, group)[0] == kind  # type: ignore[arg-type]


def test_a_policy_that_cannot_be_loaded_leaves_its_seat_empty_and_is_tried_again() -> None:
    seat = Seat()
    seat.take("nobody")
    assert seat.policy is None
    assert "nobody" in seat.error
    seat.take("drf")
    assert seat.policy is not None
    first = seat.policy
    seat.take("drf")
    assert seat.policy is first  # it remembers what it has learned


def test_a_thread_that_never_ends_holds_up_nobody() -> None:
    release = threading.Event()

    async def main() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_thread(release.wait), 0.05)
        return await in_thread(lambda: 7)

    assert asyncio.run(main()) == 7
    release.set()
    time.sleep(0.05)  # the thread ends after its loop is closed: nobody is told, nothing is raised
