"""Gangs: all of minCount or nothing, growth, shrinks, ready time-out; which pods go."""

from dataclasses import replace

from dl2.scheduling.items import leaving_first
from dl2.scheduling.plan import Action, Reason
from dl2.scheduling.snapshot import Admitted, Limits, Pod
from tests.unit.scheduling.cases import Case, cases, ones
from tests.unit.scheduling.dsl import GPU, RACK, World, g, m, node, nodes, q, run, told

TRAINING = [m("worker", 4, 2, 1), m("server", 2, 1, 0, cpu=2), m("coordinator", 1, 1, 0, cpu=1)]


@cases(
    Case(
        "all or nothing over nodes",
        [q("a")],
        [g("a/x", 3, gpu=4)],
        nodes(2, 6),
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "enough in sum, not by node",
        [q("a")],
        [g("a/x", 2, gpu=5)],
        [node("n1", 6), node("n2", 4)],
        first={"a/x": "Wait NoFittingNodes"},
        says={"a/x": "1 of 2 worker fit now"},
    ),
    Case(
        "a partial start between minCount and count",
        [q("a")],
        [g("a/x", 9, 2)],
        nodes(1),
        first={"a/x": "Admit 8"},
    ),
    Case("not below minCount", [q("a")], [g("a/x", 9, 9)], nodes(1), first={"a/x": "Wait NoFittingNodes"}),
    Case(
        "several members together",
        [q("a")],
        [g("a/x", members=TRAINING)],
        nodes(1),
        first={"a/x": "Admit 4+2+1"},
    ),
    Case(
        "one member cannot: none starts",
        [q("a")],
        [g("a/x", members=TRAINING)],
        [node("n1", cpu=2)],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "every minimum before any growth",
        [q("a")],
        [g("a/x", 8, 1, age=9), g("a/y", 2)],
        nodes(1),
        first={"a/x": "Admit 6", "a/y": "Admit 2"},
    ),
    Case(
        "minimum across queues first",
        [q("a"), q("b")],
        [g("a/x", 8, 2), g("b/y", 4)],
        nodes(1),
        first={"a/x": "Admit 4", "b/y": "Admit 4"},
    ),
    Case(
        "growth goes where the share is lowest",
        [q("a"), q("b")],
        [g("a/x", 8, 1), g("b/y", 8, 1)],
        nodes(1),
        first={"a/x": "Admit 4", "b/y": "Admit 4"},
    ),
    Case(
        "growth by weight",
        [q("a", weight=1), q("b", weight=3)],
        [g("a/x", 8, 1), g("b/y", 8, 1)],
        nodes(1),
        first={"a/x": "Admit 2", "b/y": "Admit 6"},
    ),
    Case(
        "within a queue the first in order grows first",
        [q("a")],
        [g("a/x", 4, 1, age=9), g("a/y", 8, 1)],
        nodes(1),
        first={"a/x": "Admit 4", "a/y": "Admit 4"},
    ),
    Case(
        "a running group grows into free room",
        [q("a")],
        [run("a/x", 4, 1, has=2, on={"n1": 2})],
        nodes(1),
        first={"a/x": "Resize 4"},
    ),
    Case("growth up to max", [q("a", max=3)], [run("a/x", 4, 1, has=2)], nodes(1), end={"a/x": "3"}),
    Case(
        "members grow in proportion",
        [q("a", max=6)],
        [g("a/x", members=[m("w", 8, 2), m("s", 4, 1)])],
        nodes(1),
        first={"a/x": "Admit 4+2"},
    ),
    Case(
        "a member without room does not hold the other",
        [q("a")],
        [g("a/x", members=[m("w", 8, 1), m("s", 4, 1, gpu=0, cpu=2)])],
        [node("n1", 2, cpu=100)],
        first={"a/x": "Admit 2+4"},
    ),
    Case(
        "an owner's smaller count shrinks at once",
        [q("a")],
        [run("a/x", 2, 1, has=5, on={"n1": 5})],
        nodes(1),
        first={"a/x": "Resize 2"},
    ),
    Case(
        "a raised minimum grows when it can",
        [q("a")],
        [run("a/x", 4, 4, has=2), run("a/y", 4)],
        nodes(1),
        first={"a/x": "Resize 4"},
    ),
    Case(
        "a raised minimum without room runs on",
        [q("a")],
        [run("a/x", 6, 6, has=2), run("a/y", 6)],
        nodes(1),
        first={"a/x": "Keep"},
        end={"a/x": "2"},
    ),
    Case(
        "growth evicts nobody",
        [q("a"), q("b")],
        [run("a/x", 8, 1, has=1), run("b/y", 7)],
        nodes(1),
        first={"a/x": "Keep", "b/y": "Keep"},
    ),
    Case(
        "growth does not shrink its own queue",
        [q("a")],
        [run("a/x", 8, 1, has=4, prio=5), run("a/y", 4, 1)],
        nodes(1),
        first={"a/x": "Keep", "a/y": "Keep"},
    ),
    Case(
        "fair growth levels two running groups",
        [q("a"), q("b")],
        [run("a/x", 8, 1), run("b/y", 8, 1, has=0), g("b/z", 1)],
        nodes(1),
        end={"a/x": "4"},
    ),
    Case(
        "growth within the guarantee goes first, though the queue borrows of something else",
        [q("a", weight=0, min=2, limits={"cpu": Limits()}), q("b", limits={"cpu": Limits()})],
        [g("a/x", members=[m("w", 2, 1), m("s", 1, gpu=0, cpu=1)]), g("b/y", 2, 1)],
        nodes(1, 3),
        first={"a/x": "Admit 2+1", "b/y": "Admit 1"},
    ),
    Case(
        "growth within the guarantee takes elastic pods",
        [q("a", min=4), q("b", min=4)],
        [run("a/x", 4, 1, has=2), run("b/y", 6, 1, has=6)],
        nodes(1),
        end={"a/x": "4", "b/y": "4"},
    ),
    Case(
        "growth never takes a minimum",
        [q("a", min=4), q("b", min=4)],
        [run("a/x", 4, 1, has=2), run("b/y", 6, 6)],
        nodes(1),
        end={"a/x": "2", "b/y": "6"},
    ),
    Case(
        "an inelastic group starts whole",
        [q("a")],
        [g("a/x", 8, 2, elastic=False), run("a/y", 2)],
        nodes(1),
        first={"a/x": "Wait WaitingForQuota"},
    ),
    Case(
        "an inelastic group grows by the whole step",
        [q("a")],
        [run("a/x", 4, 4, has=2, elastic=False)],
        nodes(1),
        first={"a/x": "Resize 4"},
    ),
    Case(
        "an inelastic group does not take a half step",
        [q("a")],
        [run("a/x", 4, 1, has=2, elastic=False), run("a/y", 5)],
        nodes(1),
        first={"a/x": "Keep"},
    ),
    Case(
        "quota only gangs",
        [q("a", max=5)],
        [g("a/x", 4, 2), g("a/y", 2)],
        first={"a/x": "Admit 3", "a/y": "Admit 2"},
    ),
)
def test_gangs(case):
    case.check()


def waiting_pods(count: int, **more: object) -> tuple[Pod, ...]:
    return tuple(Pod(f"x-{i}", "worker", requests={GPU: 1}, **more) for i in range(count))  # type: ignore[arg-type]


def test_not_ready_in_time_is_evicted_and_requeued_with_growing_patience():
    late = replace(run("a/x", 2), ready_at=None, pods=waiting_pods(2), evictions=1, ready_timeout=300.0)
    world = World([q("a")], nodes(1), [late])
    assert world.plan().wake_at == late.admitted_at + 300
    decision = world.later(300).one("a/x")
    assert (decision.action, decision.reason) == (Action.EVICT, Reason.PODS_READY_TIMEOUT)
    assert decision.requeue_at == world.now + 120
    assert decision.message == "2 worker not ready after 300 s"


def test_finished_members_count_as_ready():
    pods = (Pod("x-0", "worker", finished=True, succeeded=True), Pod("x-1", "worker", node="n1", ready=True))
    world = World([q("a")], nodes(1), [replace(run("a/x", 2), ready_at=None, pods=pods)]).later(10_000)
    assert told(world.plan()) == {}


def test_once_ready_a_lost_pod_is_no_time_out():
    world = World([q("a")], nodes(1), [replace(run("a/x", 2), pods=waiting_pods(2))]).later(10_000)
    assert told(world.plan()) == {}


def test_a_job_whose_pods_never_come_is_evicted_too():
    world = World([q("a")], nodes(1), [replace(run("a/x", 2), ready_at=None, pods_expected=True)]).later(301)
    assert told(world.plan()) == {"a/x": "Evict PodsReadyTimeout"}


def test_a_shrink_takes_unbound_pods_first_then_the_newest():
    pods = [
        Pod("w-0", "worker", node="n1", created=1.0),
        Pod("w-1", "worker", node="n1", created=9.0),
        Pod("w-2", "worker", created=2.0),
        Pod("w-10", "worker", node="n1", created=5.0),
        Pod("w-9", "worker", node="n1", created=5.0),
    ]
    assert [pod.name for pod in leaving_first(pods)] == ["w-2", "w-1", "w-10", "w-9", "w-0"]


def test_the_node_of_the_newest_pod_becomes_free():
    pods = tuple(
        Pod(f"w-{i}", "worker", requests={GPU: 4}, node=f"n{i}", ready=True, created=float(i)) for i in (1, 2)
    )
    elastic = replace(run("a/x", 2, 1, gpu=4), pods=pods)
    world = World([q("a")], nodes(2, 4), [elastic, g("a/high", gpu=4, prio=1)])
    decisions = world.decisions()
    assert decisions["a/x"].members["worker"].nodes == {"n1": 1}
    world.passes()
    assert world.one("a/high").members["worker"].nodes == {"n2": 1}


def test_growth_pays_for_pods_that_are_still_leaving():
    leaving = Pod("w-1", "worker", requests={GPU: 1}, node="n1", terminating=True)
    pods = (Pod("w-0", "worker", requests={GPU: 1}, node="n1", ready=True), leaving)
    growing = replace(run("a/x", 2, 1, has=1), pods=pods)
    world = World([q("a", max=2)], nodes(1), [growing])
    assert told(world.plan()) == {}
    world.groups = [replace(growing, pods=pods[:1])]
    assert told(world.plan()) == {"a/x": "Resize 2"}


def test_pods_that_run_already_are_taken_over():
    pods = tuple(Pod(f"w-{i}", "worker", requests={GPU: 1}, node="n1", ready=True) for i in range(2))
    world = World([q("a", max=4)], nodes(1), [replace(g("a/x", 3), pods=pods), g("a/y", 2)])
    plan = world.decisions()
    assert plan["a/x"].members["worker"].nodes == {"n1": 3}
    assert plan["a/y"].reason is Reason.WAITING_FOR_QUOTA


def test_the_domain_of_a_running_group_stays():
    members = {"worker": Admitted(2)}
    world = World(
        [q("a")],
        [node(f"n{i}", 4, rack=f"r{i // 3}") for i in range(6)],
        [replace(run("a/x", 4, 2, gpu=4, has=2, on={"n0": 1, "n1": 1}, required=RACK), admitted=members)],
    )
    decision = world.one("a/x")
    assert decision.members["worker"].count == 3
    assert set(decision.members["worker"].nodes) == {"n0", "n1", "n2"}


def test_ones_are_not_gangs_of_each_other():
    assert told(World([q("a")], nodes(1), [*ones("a", 7), g("a/x", 2), g("a/y")]).plan())["a/y"] == "Admit 1"
