"""What went wrong in systems like ours, each as a case that must not happen here (project and issue in the name)."""

from dataclasses import replace

from dl2.scheduling.apply import settle
from dl2.scheduling.decide import Cache, decide
from dl2.scheduling.plan import Action, Reason
from dl2.scheduling.snapshot import Group, Member, Pod
from tests.unit.scheduling.dsl import GPU, World, g, moves, nodes, q, run, told


def pods(count: int, **more) -> tuple[Pod, ...]:
    return tuple(
        Pod(f"x-{i}", "worker", requests={GPU: 1}, node="n1", ready=True, created=float(i), **more)
        for i in range(count)
    )


def wish(group: Group, count: int) -> Group:
    """The owner asks for another count."""
    return replace(group, members=(Member("worker", count, 1, {GPU: 1}),))


def used(world: World) -> int:
    return world.plan().queues["a"].usage[GPU].used


def test_kueue_11977_pods_beyond_the_admitted_count_are_charged():
    """Running pods are never more than what is charged."""
    world = World([q("a", max=4)], nodes(1), [replace(run("a/x", 4, 1, has=2), pods=pods(4)), g("a/y", 2)])
    assert used(world) == 4
    assert told(world.plan()) == {"a/y": "Wait WaitingForPreemption"}


def test_kueue_9015_a_resize_never_leaves_a_moment_without_a_charge():
    world = World([q("a", max=4)], nodes(1), [replace(run("a/x", 2, 1, has=4), pods=pods(4)), g("a/y", 2)])
    first = world.plan()
    assert told(first) == {"a/x": "Resize 2", "a/y": "Wait WaitingForPreemption"}
    assert first.queues["a"].usage[GPU].used == 4
    resized = run("a/x", 2, 1, has=2)
    leaving = tuple(replace(pod, terminating=True) for pod in pods(4)[2:])
    world.groups = [replace(resized, pods=(*pods(2), *leaving)), world.groups[1]]
    assert used(world) == 4
    assert told(world.plan()) == {"a/y": "Wait WaitingForPreemption"}
    world.groups = [replace(resized, pods=pods(2)), world.groups[1]]
    assert told(world.plan()) == {"a/y": "Admit 2"}


def test_kueue_12670_11553_many_quick_resizes_end_at_the_last_wish_charged_once():
    world = World([q("a", max=8)], nodes(1), [run("a/x", 1, 1, on={"n1": 1})])
    for count in (5, 2, 8, 3, 7, 1, 6):
        world.groups = [wish(world.groups[0], count)]
        plan = world.plan()
        assert plan.queues["a"].usage[GPU].used <= 8
        world.groups = settle(world.snapshot, plan).groups
    assert world.settled() == {"a/x": "6"}
    assert used(world) == 6


def test_kueue_15399_evicted_in_the_middle_of_a_resize_it_comes_back():
    world = World([q("a", min=8), q("b")], nodes(1), [run("b/x", 8, 4, has=6, on={"n1": 6}), g("a/y", 8)])
    world.passes()
    assert world.running() == {"a/y": "8"}
    world.groups = [replace(x, finished=True) if x.key.name == "y" else x for x in world.groups]
    assert world.later(10_000).settled() == {"a/y": "8", "b/x": "8"} or world.running() == {
        "a/y": "8",
        "b/x": "8",
    }


def test_kueue_14811_no_quota_without_pods_past_the_time_out():
    silent = replace(run("a/x", 8), ready_at=None, pods_expected=True)
    world = World([q("a")], nodes(1), [silent, g("a/y", 8)]).later(300)
    world.passes()
    assert world.running() == {"a/y": "8"}


def test_kueue_14811_admitted_and_evicted_exclude_each_other():
    world = World([q("a", min=4), q("b")], nodes(1), [run("b/x", 8), g("a/y", 4)])
    for _ in range(3):
        plan = world.plan()
        keys = [decision.key for decision in plan.decisions]
        assert len(keys) == len(set(keys))
        world.groups = settle(world.snapshot, plan).groups
        assert all(x.admitted is None or x.requeue_at <= world.now for x in world.groups)


def test_kueue_1654_1450_what_has_finished_is_not_admitted_again():
    world = World([q("a")], nodes(1), [replace(run("a/x", 8), finished=True), g("a/y", 8)])
    plan = world.plan()
    assert told(plan) == {"a/y": "Admit 8"}
    assert "a/x" not in {str(decision.key) for decision in plan.decisions}


def test_volcano_3869_two_elastic_groups_do_not_wait_for_each_other():
    world = World(
        [q("a", min=4), q("b", min=4)],
        nodes(1),
        [run("a/x", 8, 1, has=4), run("b/y", 8, 1, has=4), g("a/z", 2), g("b/z", 2)],
    )
    assert len(world.passes()) <= 4


def test_volcano_2074_pending_pods_go_first_and_survivors_stay():
    pending = Pod("x-0", "worker", requests={GPU: 1}, created=0.0)
    world = World([q("a")], nodes(1), [replace(run("a/x", 2, 1, has=3), pods=(pending, *pods(3)[1:]))])
    assert world.one("a/x").members["worker"].nodes == {"n1": 2}
    world.groups = settle(world.snapshot, world.plan()).groups
    assert {pod.name for pod in world.groups[0].pods} == {"x-1", "x-2"}


def test_kai_1968_a_gang_whose_first_pod_has_succeeded_is_not_evicted():
    done = (Pod("x-0", "worker", finished=True, succeeded=True), *pods(2)[1:])
    world = World([q("a")], nodes(1), [replace(run("a/x", 2), ready_at=None, pods=done)]).later(10_000)
    assert told(world.plan()) == {}


def test_one_bad_object_stops_nobody_else():
    world = World(
        [q("a"), q("bad", min=9, max=1), q("loop", "loop")],
        nodes(1),
        [g("a/ok"), g("a/err", error="spec.members[0].requests: bad"), g("bad/x"), g("loop/x"), g("none/x")],
    )
    plan = world.plan()
    assert [str(d.key) for d in plan.actions] == ["a/ok"]
    assert {d.reason for d in plan.decisions if d.action is Action.WAIT} == {
        Reason.MISCONFIGURED,
        Reason.QUEUE_NOT_FOUND,
    }


def test_a_restart_plans_the_same_as_the_running_operator():
    """A pass with everything remembered, and one from scratch after a restart, decide alike."""
    cache = Cache()
    world = World([q("a", min=4), q("b")], nodes(2), [g("b/x", 9, 1), g("a/y", 4), g("b/z", 8)])
    for _ in range(5):
        warm, cold = decide(world.snapshot, cache=cache), decide(world.snapshot)
        assert tuple(warm.decisions) == tuple(cold.decisions)
        world.groups = settle(world.snapshot, warm).groups


def test_a_node_that_dies_frees_nothing_until_its_pods_are_gone():
    world = World([q("a")], nodes(2), [run("a/x", 8, on={"n1": 8}), g("a/y", 8)])
    world.nodes = [replace(world.nodes[0], ready=False), world.nodes[1]]
    assert told(world.plan()) == {"a/y": "Wait WaitingForQuota"}
    world.nodes = [world.nodes[1]]
    assert not moves(world.plan())


def test_odd_objects_are_borne():
    """What the schema would refuse must not stop a pass either."""
    strange = [
        g("a/twice"), g("a/twice", 2), g("a/upside-down", 1, 3), g("a/empty", 0, 0), g("a/old", age=float("inf")),
        replace(run("a/lost", 2), pods=(Pod("p", "nobody", node="gone"), Pod("q", "worker", node="gone"))),
        replace(run("a/other", 1), admitted={}),
    ]  # fmt: skip
    deep = [q("q0"), *(q(f"q{i}", f"q{i - 1}") for i in range(1, 600))]
    world = World([q("a"), q("a", max=1), *deep], [*nodes(1), *nodes(1)], [*strange, g("q599/x")])
    assert world.one("q599/x").action is Action.ADMIT
    assert world.one("a/upside-down").members["worker"].count == 1
    assert len(world.plan().decisions) == 7


def test_nothing_to_do_is_an_empty_plan():
    plan = World().plan()
    assert (len(plan.decisions), plan.actions, dict(plan.queues), plan.wake_at) == (0, (), {}, None)
