"""Order: within and between queues, StrictFIFO, reservations with backfill, positions, estimated starts."""

from dataclasses import replace

import pytest

from dl2.scheduling.plan import Action, Reason
from dl2.scheduling.settings import Settings
from tests.unit.scheduling.cases import Case, cases, ones
from tests.unit.scheduling.dsl import NOW, RACK, World, g, node, nodes, q, run, told

STRICT = [q("a", strategy="StrictFIFO")]


@cases(
    Case(
        "the older of equals",
        [q("a", max=1)],
        [g("a/y", age=1), g("a/x", age=2)],
        nodes(1),
        first={"a/x": "Admit 1", "a/y": "Wait WaitingForQuota"},
    ),
    Case(
        "names decide between twins",
        [q("a", max=1)],
        [g("a/y"), g("a/x")],
        nodes(1),
        first={"a/x": "Admit 1"},
    ),
    Case(
        "priority before age",
        [q("a", max=1)],
        [g("a/x", age=9), g("a/y", prio=1)],
        nodes(1),
        first={"a/y": "Admit 1"},
    ),
    Case(
        "best effort passes over",
        [q("a")],
        [g("a/big", 9), g("a/big2", 8), g("a/x", age=-1)],
        [node("n1", 7)],
        first={"a/x": "Admit 1"},
    ),
    Case(
        "strict does not",
        STRICT,
        [run("a/r", 4), g("a/big", 8, age=9), g("a/x")],
        nodes(1),
        first={"a/big": "Wait WaitingForQuota", "a/x": "Wait WaitingForQuota"},
        end={"a/x": "-"},
        says={"a/x": "behind the head of queue"},
    ),
    Case(
        "strict in order as long as it fits",
        STRICT,
        [g("a/1", 4, age=9), g("a/2", 4, age=8), g("a/3", 1)],
        nodes(1),
        end={"a/1": "4", "a/2": "4", "a/3": "-"},
    ),
    Case(
        "strict waits even for the impossible",
        STRICT,
        [g("a/no", 9, age=9), g("a/x")],
        nodes(1),
        end={"a/x": "-"},
    ),
    Case(
        "strict does not wait for those that may not run",
        STRICT,
        [g("a/s", 9, age=9, suspend=True), g("a/b", 8, age=8, requeue_at=NOW + 99_999), g("a/x")],
        nodes(1),
        first={"a/x": "Admit 1"},
    ),
    Case(
        "strict holds only its own queue",
        [*STRICT, q("b")],
        [g("a/no", 9, age=9), g("a/x"), g("b/y")],
        nodes(1),
        first={"b/y": "Admit 1"},
    ),
    Case(
        "the queue with less goes first",
        [q("a"), q("b")],
        [*ones("a", 3), *ones("b", 1), g("a/x", 4, age=9), g("b/y", 4)],
        nodes(1),
        first={"b/y": "Admit 4", "a/x": "Wait WaitingForQuota"},
    ),
    Case(
        "within min goes before any borrower",
        [q("a"), q("b", min=4)],
        [g("a/x", 4, age=9), g("b/y", 4), run("a/r", 1)],
        nodes(1),
        first={"b/y": "Admit 4"},
    ),
    Case(
        "smaller shares before larger by weight",
        [q("a", weight=1), q("b", weight=4)],
        [g("a/x", 6, age=9), g("b/y", 6)],
        nodes(1),
        first={"b/y": "Admit 6"},
    ),
    Case(
        "weight zero comes last",
        [q("a", weight=0), q("b")],
        [g("a/x", 1, age=9), g("b/y", 8)],
        nodes(1),
        first={"b/y": "Admit 8"},
    ),
    Case(
        "branches are compared where they meet",
        [q("l"), q("r"), q("a", "l"), q("b", "l"), q("c", "r")],
        [*ones("b", 3), g("a/x", 4, age=9), g("c/y", 4)],
        nodes(1),
        first={"c/y": "Admit 4"},
    ),
    Case(
        "a blocked head does not hide its queue",
        [q("a"), q("b")],
        [g("a/no", 9, prio=1), g("a/x", 4), g("b/y", 6), *ones("b", 2)],
        nodes(1),
        first={"a/x": "Admit 4"},
    ),
)
def test_whose_turn(case):
    case.check()


def test_positions_follow_the_order():
    waiting = [g("a/third", age=1), g("a/second", age=5), g("a/first", prio=1, gpu=9), g("a/s", suspend=True)]
    decisions = World([q("a")], nodes(1), [*waiting, *ones("a", 8)]).decisions()
    names = ("first", "second", "third", "s", "0")
    assert [decisions[f"a/{name}"].position for name in names] == [1, 2, 3, None, None]


def overtaken(since: float):
    """A big head that small ones have been passing; a running group ends in 100 s."""
    head = replace(g("a/big", 8, age=2000), passed_over_since=NOW - since)
    return World([q("a")], nodes(1), [run("a/r", 4, on={"n1": 4}, age=3000, ends=100), head, g("a/x", 2)])


def test_passing_over_is_told_once_it_happens():
    decisions = overtaken(0).decisions()
    assert decisions["a/x"].action is Action.ADMIT
    assert decisions["a/big"].passed_over


def test_a_head_passed_over_too_long_keeps_what_is_free():
    decisions = overtaken(600).decisions()
    assert decisions["a/x"].reason is Reason.RESERVED
    assert (
        decisions["a/x"].message
        == "needs 2 nvidia.com/gpu; what is free is kept for a/big, which is expected to start in 100 s"
    )
    assert not decisions["a/big"].passed_over


def test_how_long_is_a_setting():
    world = overtaken(60)
    assert world.one("a/x").action is Action.ADMIT
    world.settings = Settings(reserve_after_seconds=30)
    assert world.one("a/x").reason is Reason.RESERVED


def test_backfill_uses_what_would_not_delay_the_head():
    head = replace(g("a/big", 8, gpu=1, age=2000), passed_over_since=NOW - 700)
    world = World(
        [q("a")],
        nodes(2),
        [
            run("a/r", 4, on={"n1": 4}, age=3000, ends=100),
            run("a/s", 6, on={"n2": 6}, age=3000, ends=9000),
            head,
            g("a/x", 2),
            g("a/y", 2, age=-1),
        ],
    )
    decisions = world.decisions()
    assert decisions["a/x"].members["worker"].nodes == {"n2": 2}
    assert decisions["a/y"].reason is Reason.RESERVED


def test_a_reserved_head_starts_when_its_room_is_there():
    world = overtaken(600)
    world.groups = [replace(world.groups[0], finished=True, pods=()), *world.groups[1:]]
    assert told(world.plan()) == {"a/big": "Admit 8", "a/x": "Wait WaitingForQuota"}


def test_what_can_never_start_reserves_nothing():
    head = replace(g("a/big", gpu=9, age=2000), passed_over_since=NOW - 700)
    world = World([q("a")], nodes(2), [head, g("a/x", 2)])
    assert world.one("a/x").action is Action.ADMIT


def test_a_head_that_not_even_an_empty_cluster_could_hold_spoils_no_later_reservation():
    never = replace(g("a/wide", 2, gpu=8, required=RACK, age=3000), passed_over_since=NOW - 900)
    head = replace(g("b/big", gpu=8, age=2000), passed_over_since=NOW - 700)
    running = [run("c/r", 4, on={"n1": 4}, ends=100), run("c/s", 8, on={"n2": 8})]
    world = World(
        [q("a", reclaim="Never"), q("b", reclaim="Never"), q("c")],
        [node("n1", rack="r1"), node("n2", rack="r2")],
        [*running, never, head, g("c/x", 2)],
    )
    assert world.one("c/x").message.endswith("kept for b/big, which is expected to start in 100 s")


def growing_beside(ends: float, asked: int):
    """An elastic group with 2 of its 6 pods on the node that a head waits for; a rigid one there ends in 100 s."""
    head = replace(g("a/big", asked, age=2000), passed_over_since=NOW - 700)
    elastic = run("a/e", 6, 2, on={"n1": 2}, age=3000, ends=ends)
    return World([q("a", max=8)], nodes(1), [elastic, run("a/r", on={"n1": 1}, age=3000, ends=100), head])


@pytest.mark.parametrize("asked", [6, 7, 8])
def test_what_ends_before_a_head_starts_grows_into_what_is_kept_for_it_at_once(asked):
    world = growing_beside(50, asked)
    assert [told(plan)["a/e"] for plan in world.passes()] == ["Resize 6"]


def test_what_ends_after_a_head_starts_does_not_grow_into_what_is_kept_for_it():
    assert growing_beside(9000, 6).passes() == []


def test_what_a_group_takes_of_kept_room_is_kept_no_longer():
    world = growing_beside(50, 6)
    world.groups = [*world.groups, g("a/x"), g("a/y", age=-1)]
    assert len(world.passes()) == 1
    assert world.running() == {"a/e": "6", "a/r": "1", "a/x": "1"}  # one pod more would delay the head


def test_who_stands_behind_a_promised_head_of_a_strict_queue_makes_its_room_in_the_same_pass():
    running = [run("a/x", 3), run("a/y", 3)]
    waiting = [g("a/h", 2, prio=2, age=9), g("a/i", 1, prio=2), g("a/j", 3, prio=1)]
    world = World([q("a", max=6, strategy="StrictFIFO")], groups=[*running, *waiting], quota_only=True)
    first, *_ = world.passes()
    assert {name for name, words in told(first).items() if words == "Evict Preempted"} == {"a/x", "a/y"}
    assert world.running() == {"a/h": "2", "a/i": "1", "a/j": "3"}


def test_nobody_grows_into_what_a_head_waits_for_by_way_of_another_group():
    """What ends before the head may have more; whom it does not end before takes nothing of that from it."""
    head = replace(g("h/big", 6, age=2000), passed_over_since=NOW - 700)
    elastic = [run("a/e", 4, 1, has=1, on={"n1": 1}, ends=50), run("b/x", 4, 1, has=1, on={"n1": 1})]
    world = World(
        [q("a"), q("b", weight=3), q("h", reclaim="Never"), q("r")],
        nodes(1),
        [*elastic, run("r/r", 3, on={"n1": 3}, ends=100), head],
    )
    assert len(world.passes()) == 1
    assert world.running() == {"a/e": "3", "b/x": "2", "r/r": "3"}


def test_who_has_just_started_ends_before_a_head_as_if_it_had_been_running():
    head = replace(g("h/big", 4, age=2000), passed_over_since=NOW - 700)
    world = World(
        [q("a"), q("h", reclaim="Never")],
        nodes(1, 4),
        [run("h/r", on={"n1": 1}), g("a/x", 3, 1), head],
    )
    assert len(world.passes()) == 1
    assert world.running() == {"a/x": "3", "h/r": "1"}


def test_a_guarantee_of_another_queue_is_not_delayed_by_a_reservation():
    world = overtaken(600)
    world.queues = [q("a"), q("b", min=2)]
    world.groups = [*world.groups, g("b/y", 2)]
    assert world.one("b/y").action is Action.ADMIT


def test_estimated_start_follows_expected_ends():
    ending = [run("a/r", 4, ends=100), run("a/s", 4, ends=500)]
    decisions = World([q("a")], nodes(1), [*ending, g("a/x", 3, age=9), g("a/y", 4)]).decisions()
    assert (decisions["a/x"].estimated_start, decisions["a/x"].estimate_certain) == (NOW + 100, True)
    assert decisions["a/y"].estimated_start == NOW + 500


def test_no_estimate_without_ends():
    decisions = World([q("a")], nodes(1), [run("a/r", 8), g("a/x")]).decisions()
    assert decisions["a/x"].estimated_start is None


def test_an_uncertain_estimate_says_so():
    ending = [run("a/r", 4, ends=100), run("a/s", 4)]
    decision = World([q("a")], nodes(1), [*ending, g("a/x", 3)]).one("a/x")
    assert (decision.estimated_start, decision.estimate_certain) == (NOW + 100, False)


def test_a_late_end_is_now():
    assert World([q("a")], nodes(1), [run("a/r", 8, ends=-50), g("a/x")]).one("a/x").estimated_start == NOW
