"""The least a pass must do: order, limits, gangs against real nodes."""

from dl2.scheduling.decide import plan_of
from dl2.scheduling.state import State
from tests.unit.scheduling.dsl import GPU, NOW, World, g, moves, node, nodes, q, run, told


def test_priority_then_creation_within_the_max_of_every_ancestor():
    world = World(
        [q("top", max=3), q("a", "top", max=8)],
        nodes(1),
        [g("a/late", age=1), g("a/early", age=9), g("a/high", prio=5), g("a/last")],
    )
    assert told(world.plan()) == {
        "a/early": "Admit 1",
        "a/high": "Admit 1",
        "a/late": "Admit 1",
        "a/last": "Wait WaitingForQuota",
    }


def test_a_gang_starts_whole_or_not_at_all():
    world = World([q("a")], [node("n1", 3)], [g("a/gang", 4)])
    assert told(world.plan()) == {"a/gang": "Wait NoFittingNodes"}


def test_what_runs_is_charged_and_kept():
    world = World([q("a", max=4)], nodes(1), [run("a/r", 3, on={"n1": 3}), g("a/new", 2)])
    assert told(world.plan()) == {"a/new": "Wait WaitingForQuota"}
    assert "needs 2 nvidia.com/gpu; 1 free under a" in world.one("a/new").message


def test_the_last_attempt_is_told_as_it_is() -> None:
    """Also where somebody would still evict for what it lets others grow: the plan is of that attempt, whole."""
    world = World(
        [q("root", max=9), q("l", "root"), q("i", "root")],
        groups=[run("l/rigid", 4), run("l/elastic", 3, 2, has=2), run("i/0", 2), g("i/1", 4)],
        quota_only=True,
    )
    state = State(world.snapshot, world.settings)
    hasty = plan_of(state, NOW, {}, attempts=1)
    assert moves(hasty) == {"l/elastic": "Resize 3"}
    assert hasty.queues["l"].usage[GPU].used == 7
    careful = plan_of(state, NOW, {}, attempts=2)
    assert (moves(careful), careful.queues["l"].usage[GPU].used) == ({}, 6)
