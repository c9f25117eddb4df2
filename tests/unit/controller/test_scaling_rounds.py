"""One scaling round: whose answer each job is given, and what makes a challenger go."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dl2.api import names
from dl2.cluster.resources import POD_GROUPS
from dl2.cluster.store import Store
from dl2.controller import rounds
from dl2.controller.rollout import Arm, Trigger
from dl2.controller.rounds import Answer, Question
from dl2.controller.scaler import Change, Scaler, Seat
from dl2.controller.threads import in_thread
from dl2.controller.trial import _fault
from dl2.scaling.beliefs import Measured
from dl2.scaling.guardrails import Limits, Ruling
from dl2.scaling.interface import JobView, NodeView, Observation, Scale, SpeedSample
from dl2.scheduling.snapshot import Admitted, Group, Key, Member, Node, Pod, Queue, Snapshot
from tests.unit.controller.objects import condition, job, raw


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


def running(name: str, workers: int, least: int, elastic: bool = True) -> Group:
    """A group of the queue of its name with 1-CPU workers on the only node."""
    pods = tuple(
        Pod(f"{name}-{i}", "worker", f"{name}-{i}", {"cpu": 1000}, "n", ready=True) for i in range(workers)
    )
    return Group(
        Key(name, name), name, (Member("worker", workers, least, {"cpu": 1000}),), created=1.0,
        admitted={"worker": Admitted(workers)}, admitted_at=1.0, ready_at=2.0, elastic=elastic, pods=pods,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("others", "least", "elastic", "asked", "given", "ruling"),
    [
        (6, 6, False, 4, 2, Ruling.NO_ROOM),  # over its share, but nobody is evicted for growth
        (5, 5, False, 4, 3, Ruling.NO_ROOM),
        (6, 1, True, 4, 4, Ruling.AS_ASKED),  # it gives back what is above its share
        (6, 1, True, 6, 4, Ruling.NO_ROOM),  # and no more
        (3, 3, False, 4, 4, Ruling.AS_ASKED),
        (6, 6, False, 1, 1, Ruling.AS_ASKED),
    ],
)
def test_a_job_is_not_made_to_ask_for_what_admission_would_not_grant(
    others: int, least: int, elastic: bool, asked: int, given: int, ruling: Ruling
) -> None:
    """Two queues of equal weight and no guarantee on eight CPUs: half is the share of each."""
    groups = (running("a", others, least, elastic), running("b", 2, 1))
    queues = tuple(Queue(name, namespace_selector=(), created=1.0) for name in ("a", "b"))
    snapshot = Snapshot(100.0, queues, groups, (Node("n", {"cpu": 8000, "pods": 100}),))
    mine = replace(
        view("b/b"), queue="b", minimum=Scale(1, 0), maximum=Scale(8, 0), current=Scale(2, 0),
        worker_requests={"cpu": 1000}, samples=(),
    )  # fmt: skip
    seen = Observation(100.0, 60.0, (mine,), (NodeView("n", {"cpu": 8000}, {"cpu": 8000}),), {})
    question = Question(snapshot, {Key("b", "b"): job().value}, {}, {}, {}, Limits(4, 0.0), 60.0)
    answer = Answer("p", {"b/b": Scale(asked, 0)})
    verdict = rounds.judge(question, seen, {Arm.CHAMPION: answer}, Measured()).verdicts["b/b"]
    assert (verdict.given, verdict.ruling) == (Scale(given, 0), ruling)
    assert bool(verdict.message) == (ruling is Ruling.NO_ROOM)


@pytest.mark.parametrize(
    ("admitted", "scaling", "by", "followed"),
    [
        (2, False, "drf", (Scale(2, 1), Scale(5, 1))),  # not granted yet
        (5, True, "drf", (Scale(3, 1), Scale(5, 1))),  # granted; three of them are ready
        (5, False, "drf", None),  # it has come to its end
        (2, False, "", None),  # no policy has chosen that
    ],
)
def test_a_resize_under_way_is_followed_after_a_restart(
    admitted: int, scaling: bool, by: str, followed: tuple[Scale, Scale] | None
) -> None:
    store, meta = Store(), {"annotations": {names.SCALED_BY: by}} if by else {}
    members = [{"name": n, "count": c, "requests": {"cpu": "1"}} for n, c in (("worker", 5), ("server", 1))]
    store.upsert(POD_GROUPS, raw("PodGroup", "j", {"queue": "team-a", "members": members}, **meta))
    status = {
        "conditions": [condition("Scaling")] if scaling else [], "workers": {"ready": 3}, "servers": {"ready": 1},
    }  # fmt: skip
    group = Group(
        Key("team-a", "j"), "team-a", (Member("worker", 5, 1), Member("server", 1, 1)),
        admitted={"worker": Admitted(admitted), "server": Admitted(1)},
    )  # fmt: skip
    scaler = SimpleNamespace(_store=store, _changes={})
    Scaler._adopt(scaler, job(status=status), group, Arm.CHAMPION)  # type: ignore[arg-type]
    changes = [(change.before, change.target) for change in scaler._changes.values()]
    assert changes == ([followed] if followed else [])


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
    seat.take("/gone.safetensors")
    assert seat.error.startswith("cannot be loaded: there is no such file")  # the name is told before it
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
