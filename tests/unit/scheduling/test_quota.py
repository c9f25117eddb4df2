"""Quota: max at every level, capacity, lending, what is charged and for how long."""

from dataclasses import replace

from dl2.scheduling.plan import Reason
from dl2.scheduling.snapshot import Limits, Pod
from tests.unit.scheduling.cases import Case, cases, ones
from tests.unit.scheduling.dsl import GPU, World, expr, g, m, node, nodes, q, run, told


@cases(
    Case(
        "up to max",
        [q("a", max=4)],
        [g("a/x", 2), g("a/y", 2), g("a/z", 1)],
        nodes(1),
        first={"a/x": "Admit 2", "a/y": "Admit 2", "a/z": "Wait WaitingForQuota"},
        end={"a/z": "-"},
    ),
    Case(
        "no limits, only capacity",
        [q("a")],
        [g("a/x", 8), g("a/y", 1)],
        nodes(1),
        first={"a/x": "Admit 8", "a/y": "Wait WaitingForQuota"},
        says={"a/y": "0 free under cluster"},
    ),
    Case(
        "the max of a grandparent",
        [q("r", max=3), q("s", "r", max=9), q("a", "s", max=9)],
        [g("a/x", 3), g("a/y", 1)],
        nodes(1),
        first={"a/x": "Admit 3", "a/y": "Wait WaitingForQuota"},
        says={"a/y": "0 free under r"},
    ),
    Case(
        "siblings share the max of their parent",
        [q("r", max=4), q("a", "r"), q("b", "r")],
        [g("a/x", 3), g("b/y", 2)],
        nodes(1),
        end={"a/x": "-", "b/y": "2"},
    ),
    Case(
        "more than max can never start",
        [q("a", max=4)],
        [g("a/x", 5)],
        nodes(1),
        first={"a/x": "Wait ExceedsMax"},
        says={"a/x": "needs 5 nvidia.com/gpu; the max of queue a is 4"},
    ),
    Case(
        "more than the cluster has",
        [q("a")],
        [g("a/x", 9)],
        nodes(1),
        first={"a/x": "Wait NoFittingNodes"},
        says={"a/x": "all ready, schedulable nodes together have 8"},
    ),
    Case(
        "one that exceeds max blocks nobody",
        [q("a", max=4)],
        [g("a/x", 5, prio=9), g("a/y", 4)],
        nodes(1),
        first={"a/x": "Wait ExceedsMax", "a/y": "Admit 4"},
    ),
    Case("max zero", [q("a", max=0)], [g("a/x")], nodes(1), first={"a/x": "Wait ExceedsMax"}),
    Case(
        "unnamed resources are not limited",
        [q("a", max=1)],
        [g("a/x", 50, gpu=0, cpu=1)],
        nodes(1),
        first={"a/x": "Admit 50"},
    ),
    Case(
        "two resources, one is short",
        [q("a", max=8, limits={"cpu": Limits(0, 4000)})],
        [g("a/x", 2, cpu=2), g("a/y", 1, cpu=1)],
        nodes(1),
        first={"a/x": "Admit 2", "a/y": "Wait WaitingForQuota"},
        says={"a/y": "needs 1 cpu; 0 free under a"},
    ),
    Case(
        "pods as a resource",
        [q("a", max=3, resource="pods")],
        [g("a/x", 2), g("a/y", 2)],
        nodes(1),
        end={"a/x": "2", "a/y": "-"},
    ),
    Case("borrowing beyond min", [q("a", min=2), q("b", min=6)], [g("a/x", 8)], nodes(1), end={"a/x": "8"}),
    Case(
        "nothing of an unused min is lent",
        [q("a", min=2), q("b", min=6, lend=0)],
        [g("a/x", 3), g("a/y", 2)],
        nodes(1),
        end={"a/x": "-", "a/y": "2"},
    ),
    Case(
        "lend caps what others may use",
        [q("a"), q("b", min=6, lend=4)],
        [g("a/x", 7), g("a/y", 6)],
        nodes(1),
        end={"a/x": "-", "a/y": "6"},
    ),
    Case(
        "the lender itself uses all of its min",
        [q("a"), q("b", min=6, lend=0)],
        [run("a/x", 2, on={"n1": 2}), g("b/y", 6)],
        nodes(1),
        first={"b/y": "Admit 6"},
    ),
    Case(
        "lend holds inside a subtree",
        [q("r", max=6), q("a", "r"), q("b", "r", min=4, lend=1)],
        [g("a/x", 4), g("a/y", 3)],
        nodes(1),
        end={"a/x": "-", "a/y": "3"},
    ),
    Case(
        "lend larger than min lends all",
        [q("a"), q("b", min=2, lend=9)],
        [g("a/x", 8)],
        nodes(1),
        end={"a/x": "8"},
    ),
    Case(
        "quota only: the sum of max is the capacity",
        [q("a", max=3), q("b", max=2)],
        [g("a/x", 3), g("b/y", 2)],
        end={"a/x": "3", "b/y": "2"},
    ),
    Case(
        "quota only: min where there is no max",
        [q("a", min=3), q("b", min=2)],
        [g("a/x", 5), g("b/y")],
        end={"a/x": "-", "b/y": "1"},
        first={"b/y": "Admit 1", "a/x": "Wait WaitingForQuota"},
    ),
    Case(
        "quota only: what nobody names is free",
        [q("a", max=1)],
        [g("a/x", 9, gpu=0, cpu=9)],
        end={"a/x": "9"},
    ),
    Case(
        "quota only: a parent guarantees its children's sum",
        [q("r"), q("a", "r", min=2), q("b", "r", min=3)],
        [g("a/x", 5)],
        end={"a/x": "5"},
    ),
    Case(
        "a running group above a lowered max stays",
        [q("a", max=1)],
        [run("a/x", 3, on={"n1": 3}), g("a/y")],
        nodes(1),
        first={"a/y": "Wait WaitingForQuota"},
        end={"a/x": "3"},
    ),
    Case(
        "an unready node is no capacity",
        [q("a")],
        [g("a/x", 8), g("a/y", 2)],
        [node("n1"), node("n2", ready=False)],
        end={"a/x": "8", "a/y": "-"},
    ),
    Case(
        "a cordoned node is no capacity",
        [q("a")],
        [g("a/x", 9)],
        [node("n1"), node("n2", unschedulable=True)],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "zero-request groups always fit",
        [q("a", max=0)],
        [g("a/x", 3, gpu=0)],
        nodes(1),
        first={"a/x": "Admit 3"},
    ),
)
def test_limits(case):
    case.check()


@cases(
    Case(
        "no such queue",
        [q("a")],
        [g("nope/x")],
        nodes(1),
        first={"nope/x": "Wait QueueNotFound"},
        says={"nope/x": 'there is no queue "nope"'},
    ),
    Case(
        "a foreign namespace",
        [q("a", namespace_selector=None)],
        [g("b/x", queue="a"), g("a/y")],
        nodes(1),
        first={"b/x": "Wait NamespaceNotAllowed", "a/y": "Admit 1"},
    ),
    Case(
        "a selected namespace",
        [q("a", namespace_selector=(expr("team", "In", "red"),))],
        [g("one/x", queue="a"), g("two/y", queue="a")],
        nodes(1),
        first={"one/x": "Admit 1", "two/y": "Wait NamespaceNotAllowed"},
        more={"namespaces": {"one": {"team": "red"}, "two": {"team": "blue"}}},
    ),
    Case(
        "a namespace by its own name label",
        [q("a", namespace_selector=(expr("kubernetes.io/metadata.name", "In", "b"),))],
        [g("b/x", queue="a")],
        nodes(1),
        first={"b/x": "Admit 1"},
    ),
    Case(
        "hold admits nothing and keeps what runs",
        [q("a", stop="Hold")],
        [run("a/x", 2, 1, has=1), g("a/y")],
        nodes(1),
        first={"a/x": "Keep", "a/y": "Wait QueueStopped"},
        end={"a/x": "1", "a/y": "-"},
    ),
    Case(
        "hold of a parent holds its children",
        [q("r", stop="Hold"), q("a", "r")],
        [g("a/y")],
        nodes(1),
        first={"a/y": "Wait QueueStopped"},
        says={"a/y": 'queue "r" has stop: Hold'},
    ),
    Case(
        "drain evicts",
        [q("a", stop="Drain")],
        [run("a/x", 2), g("a/y")],
        nodes(1),
        first={"a/x": "Evict QueueStopped", "a/y": "Wait QueueStopped"},
        end={"a/x": "-"},
    ),
    Case(
        "drain of a parent",
        [q("r", stop="Drain"), q("a", "r"), q("b")],
        [run("a/x", 2), run("b/y", 2)],
        nodes(1),
        first={"a/x": "Evict QueueStopped", "b/y": "Keep"},
    ),
    Case(
        "suspended",
        [q("a")],
        [run("a/x", 2, suspend=True), g("a/y", suspend=True)],
        nodes(1),
        first={"a/x": "Evict Suspended", "a/y": "Wait Suspended"},
        end={"a/x": "-", "a/y": "-"},
    ),
    Case(
        "a broken group waits and changes nothing else",
        [q("a")],
        [g("a/x", error="spec.members[0]: bad"), g("a/y")],
        nodes(1),
        first={"a/x": "Wait Misconfigured", "a/y": "Admit 1"},
    ),
    Case(
        "a broken group that runs is kept",
        [q("a")],
        [run("a/x", 2, error="spec: bad")],
        nodes(1),
        first={"a/x": "Keep"},
    ),
    Case(
        "a queue in error",
        [q("a", error="spec.resources: bad"), q("b")],
        [g("a/x"), g("b/y")],
        nodes(1),
        first={"a/x": "Wait Misconfigured", "b/y": "Admit 1"},
        says={"a/x": "spec.resources: bad"},
    ),
    Case(
        "min above max",
        [q("a", min=5, max=4)],
        [g("a/x")],
        nodes(1),
        first={"a/x": "Wait Misconfigured"},
        says={"a/x": "min 5 is above max 4"},
    ),
    Case(
        "an unknown parent",
        [q("a", "ghost"), q("b")],
        [g("a/x"), g("b/y")],
        nodes(1),
        first={"a/x": "Wait Misconfigured", "b/y": "Admit 1"},
        says={"a/x": 'there is no queue "ghost"'},
    ),
    Case(
        "a cycle is contained",
        [q("a", "b"), q("b", "a"), q("c", "a"), q("d")],
        [g("a/x"), g("c/y"), g("d/z")],
        nodes(1),
        first={"a/x": "Wait Misconfigured", "c/y": "Wait Misconfigured", "d/z": "Admit 1"},
        says={"a/x": "is a cycle"},
    ),
    Case("its own parent", [q("a", "a")], [g("a/x")], nodes(1), first={"a/x": "Wait Misconfigured"}),
    Case(
        "what runs without a queue is charged to the cluster",
        [q("a")],
        [run("gone/x", 6, on={"n1": 6}), g("a/y", 3)],
        nodes(1),
        first={"gone/x": "Keep", "a/y": "Wait WaitingForQuota"},
    ),
    Case(
        "no members", [q("a")], [replace(g("a/x"), members=())], nodes(1), first={"a/x": "Wait Misconfigured"}
    ),
    Case(
        "backing off",
        [q("a")],
        [g("a/x", requeue_at=1_000_060.0, evictions=1), g("a/y")],
        nodes(1),
        first={"a/x": "Wait BackingOff", "a/y": "Admit 1"},
    ),
)
def test_who_may_ask(case):
    case.check()


def test_backing_off_wakes_the_loop_in_time():
    world = World([q("a")], nodes(1), [g("a/x", requeue_at=1_000_060.0, evictions=1)])
    assert world.plan().wake_at == 1_000_060.0
    assert told(world.later(61).plan()) == {"a/x": "Admit 1"}


def test_quota_stays_charged_until_the_pods_are_gone():
    leaving = Pod("x-0", "worker", requests={GPU: 4}, node="n1", terminating=True)
    gone = replace(g("a/x", gpu=4), pods=(leaving,))
    world = World([q("a", max=4)], nodes(1), [gone, g("a/y", 4, age=-1)])
    assert world.one("a/x").reason is Reason.BACKING_OFF
    assert world.one("a/y").reason is Reason.WAITING_FOR_PREEMPTION
    world.groups = [replace(gone, pods=(), finished=True), world.groups[1]]
    assert told(world.plan()) == {"a/y": "Admit 4"}


def test_a_finished_group_whose_pods_linger_is_still_charged():
    lingering = Pod("x-0", "worker", requests={GPU: 1}, node="n1", terminating=True)
    world = World([q("a", max=1)], nodes(1), [replace(g("a/x"), finished=True, pods=(lingering,)), g("a/y")])
    assert world.plan().queues["a"].usage[GPU].used == 1
    assert told(world.plan()) == {"a/y": "Wait WaitingForPreemption"}


def test_a_reservation_without_pods_is_charged_and_never_times_out():
    world = World([q("a", max=2)], [], [replace(run("a/x", 2), ready_at=None), g("a/y")], quota_only=True)
    world.later(10_000)
    assert told(world.plan()) == {"a/y": "Wait WaitingForQuota"}


def test_usage_share_borrowed_and_lent_are_shown():
    world = World(
        [q("a", min=4), q("b", min=4)], nodes(1), [run("a/x", 6, on={"n1": 6}), run("b/y", 1, on={"n1": 1})]
    )
    usage = {name: state.usage[GPU] for name, state in world.plan().queues.items()}
    assert (usage["a"].used, usage["a"].borrowed, usage["a"].lent) == (6, 2, 0)
    assert (usage["b"].used, usage["b"].borrowed, usage["b"].lent) == (1, 0, 2)


def test_what_one_child_never_lends_does_not_cut_its_siblings_share():
    world = World(
        [q("lab"), q("vision", "lab", min=160), q("speech", "lab", min=80, lend=40)],
        [node("n1", gpu=400)],
        [g("vision/x", 16), g("speech/y", 4)],
    )
    shares = {name: state.usage[GPU].share for name, state in world.plan().queues.items()}
    assert shares == {"lab": 96, "vision": 16, "speech": 80}


def test_overcommitted_guarantees_shrink_in_proportion_and_say_so():
    world = World([q("a", min=6), q("b", min=10)], nodes(1), [g("a/x", 8), g("b/y", 10)])
    plan = world.plan()
    assert [plan.queues[name].usage[GPU].share for name in "ab"] == [3, 5]
    assert "guaranteed 16 nvidia.com/gpu; the cluster has 8" in plan.queues["a"].overcommitted


def test_overcommitted_guarantees_do_not_let_anybody_take_what_lies_within_anothers_min():
    running = [run(f"a/{n}", on={"n1": 1}) for n in range(8)]
    asking = [g(f"b/{n}") for n in range(8)]
    full = World([q("a", min=8), q("b", min=8)], nodes(1), [*running, *asking])
    half = World([q("a", min=4), q("b", min=8)], nodes(1), [*running, *asking])
    assert [sum(key.startswith("a/") for key in world.settled()) for world in (full, half)] == [8, 4]


def test_a_parent_that_guarantees_less_than_its_children_is_overcommitted():
    plan = World([q("r", min=2), q("a", "r", min=2), q("b", "r", min=2)], nodes(1)).plan()
    assert "4 nvidia.com/gpu together, but its own min is 2" in plan.queues["r"].overcommitted
    assert plan.queues["a"].overcommitted == ""


def test_broken_queues_are_reported_and_count_their_groups():
    plan = World([q("a", "a"), q("b")], nodes(1), [g("a/x"), g("b/y")]).plan()
    assert "is a cycle" in plan.queues["a"].error
    assert (plan.queues["a"].pending, plan.queues["b"].admitted) == (1, 1)


def test_groups_of_an_inner_queue_of_its_own():
    world = World(
        [q("r", max=6), q("a", "r", min=4)], nodes(1), [run("r/x", 6, 1, on={"n1": 6}), g("a/y", 4)]
    )
    assert world.settled() == {"r/x": "2", "a/y": "4"}


def test_pods_of_a_member_by_many_sizes():
    members = [m("worker", 2, 2, 2), m("server", 1, 1, 1)]
    world = World([q("a", max=5)], nodes(1), [g("a/x", members=members), g("a/y")])
    assert told(world.plan()) == {"a/x": "Admit 2+1", "a/y": "Wait WaitingForQuota"}


def test_ones_helper_runs_and_nothing_moves():
    world = World([q("a")], nodes(1), ones("a", 8))
    assert len(world.settled()) == 8
