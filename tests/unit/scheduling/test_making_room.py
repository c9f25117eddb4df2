"""Making room: reclaim of guarantees, fair sharing, priority in a queue; shrink before evict; victims."""

from dataclasses import replace

from dl2.scheduling.plan import Action, Reason
from dl2.scheduling.snapshot import Limits
from tests.unit.scheduling.cases import Case, cases, ones
from tests.unit.scheduling.dsl import GPU, World, g, m, node, nodes, q, run, told


def trio(least: int = 3):
    """Three queues of equal min and weight in one tree."""
    return [q("t"), q("a", "t", min=least), q("b", "t", min=least), q("c", "t", min=least)]


def halves():
    """b and c hold groups of 2 and 2.5 each, in halves of a GPU; the smaller ones are the younger."""
    return [run("b/2", 4, age=1), run("b/25", 5, age=2), run("c/2", 4, age=1), run("c/25", 5, age=2)]


@cases(
    Case(
        "contract: within min takes one of b",
        trio(),
        [*ones("a", 3), *ones("b", 5), *ones("c", 1), g("c/new")],
        nodes(1, 9),
        first={"c/new": "Wait WaitingForPreemption", "b/4": "Evict Reclaimed"},
        end={"c/new": "1", "b/4": "-", "b/3": "1", "a/2": "1"},
    ),
    Case(
        "contract: above min takes one of b by fairness",
        trio(),
        [*ones("a", 3), *ones("b", 5), *ones("c", 1), g("a/new")],
        nodes(1, 9),
        first={"b/4": "Evict Preempted"},
        end={"a/new": "1", "b/4": "-", "c/0": "1"},
    ),
    Case(
        "contract: nobody for two",
        trio(),
        [*ones("a", 3), *ones("b", 5), g("a/new", 2)],
        nodes(1, 9),
        first={"a/new": "Wait WaitingForQuota"},
        end={"a/new": "-", "b/4": "1"},
    ),
    Case(
        "contract: one of b and one of c",
        trio(6),
        [*halves(), g("a/new", 7)],
        nodes(1, 18),
        first={"b/2": "Evict Preempted", "c/2": "Evict Preempted", "b/25": "Keep", "c/25": "Keep"},
        end={"a/new": "7", "b/25": "5", "c/25": "5"},
    ),
    Case(
        "contract: then b asks back in vain",
        trio(6),
        [run("a/x", 7), run("b/25", 5), run("c/25", 5), g("b/new", 4)],
        nodes(1, 18),
        first={"b/new": "Wait WaitingForQuota"},
        end={"b/new": "-", "a/x": "7"},
    ),
    Case(
        "contract: growth shrinks another's elastic part",
        [q("a", min=1, weight=0), q("b", min=2)],
        [run("a/e", 2, 1), g("b/n", 3, 1)],
        nodes(1, 3),
        first={"a/e": "Resize Reclaimed", "b/n": "Admit 1"},
        end={"a/e": "1", "b/n": "2"},
    ),
    Case(
        "nobody leaves for whom a third would then replace",
        [q("a", weight=2), q("b")],
        [
            run("a/x", 3),
            run("b/4", 4, age=1),
            run("b/3", 3, age=2),
            run("b/2", 2, age=3),
            g("a/new", 6),
            g("b/late", 2),
        ],
        nodes(1, 12),
        first={"a/new": "Wait WaitingForQuota", "b/4": "Keep", "b/3": "Keep"},
        end={"a/x": "3", "b/4": "4", "b/3": "3", "b/2": "2", "a/new": "-", "b/late": "-"},
    ),
    Case(
        "without the third two leave for it",
        [q("a", weight=2), q("b")],
        [run("a/x", 3), run("b/4", 4, age=1), run("b/3", 3, age=2), run("b/2", 2, age=3), g("a/new", 6)],
        nodes(1, 12),
        end={"a/new": "6", "b/4": "-", "b/3": "-", "b/2": "2"},
    ),
    Case(
        "a head evicts a lower priority though somebody small of another queue waits who fits beside it",
        [q("a"), q("b")],
        [run("a/low", 4), g("a/head", 4, prio=1), g("b/small", 2)],
        nodes(1, 6),
        first={"a/low": "Evict Preempted", "a/head": "Wait WaitingForPreemption", "b/small": "Admit 2"},
        end={"a/head": "4", "b/small": "2", "a/low": "-"},
    ),
    Case(
        "a start that is withdrawn by fairness does not take a guarantee with it",
        [q("a", min=5, weight=0), q("b")],
        [g("a/1", 2, age=9), g("a/2", 3, age=8), g("a/3", 3, age=7), g("b/1", 6, age=6), g("b/2", 4, age=5)],
        nodes(1, 14),
        first={
            "a/1": "Admit 2",
            "a/2": "Admit 3",
            "a/3": "Admit 3",
            "b/1": "Admit 6",
            "b/2": "Wait WaitingForQuota",
        },
        end={"a/1": "2", "a/2": "3", "a/3": "3", "b/1": "6", "b/2": "-"},
    ),
    Case(
        "nobody leaves for whom a higher priority of its queue would then replace",
        [q("a"), q("b")],
        [run("b/x", 8), g("a/high", 8, prio=1), g("a/low", 2)],
        nodes(1),
        first={"a/high": "Wait WaitingForQuota", "a/low": "Wait WaitingForQuota"},
        end={"b/x": "8", "a/high": "-", "a/low": "-"},
    ),
    Case(
        "whom others left for comes before an older one of its queue",
        [q("a"), q("b")],
        [run("b/x", 8), g("a/old", 8, age=20), g("a/young", 2, age=10)],
        nodes(1),
        first={"b/x": "Evict Preempted", "a/young": "Wait WaitingForPreemption"},
        end={"a/young": "2", "a/old": "-", "b/x": "-"},
    ),
    Case(
        "the owner reclaims all of its min",
        [q("a", min=4), q("b", min=4)],
        [*ones("b", 8), g("a/x", 4)],
        nodes(1),
        end={"a/x": "4", "b/3": "1", "b/4": "-", "b/7": "-"},
    ),
    Case(
        "not more than its min without fairness",
        [q("a", min=4, weight=0), q("b", min=4)],
        [*ones("b", 8), g("a/x", 5)],
        nodes(1),
        first={"a/x": "Wait WaitingForQuota"},
        end={"a/x": "-", "b/7": "1"},
    ),
    Case(
        "reclaim Never",
        [q("a", min=4, reclaim="Never"), q("b")],
        [*ones("b", 8), g("a/x", 2)],
        nodes(1),
        first={"a/x": "Wait WaitingForQuota"},
        end={"a/x": "-"},
    ),
    Case(
        "reclaim LowerPriority spares equals",
        [q("a", min=4, reclaim="LowerPriority"), q("b")],
        [*ones("b", 8), g("a/x", 2)],
        nodes(1),
        end={"a/x": "-"},
    ),
    Case(
        "reclaim LowerPriority takes lower",
        [q("a", min=4, reclaim="LowerPriority"), q("b")],
        [*ones("b", 6), run("b/low", 2, prio=-1), g("a/x", 2)],
        nodes(1),
        first={"b/low": "Evict Reclaimed"},
        end={"a/x": "2", "b/low": "-"},
    ),
    Case(
        "reclaim Any takes higher priority too",
        [q("a", min=4), q("b")],
        [run("b/x", 8, prio=100), g("a/x", 4)],
        nodes(1),
        end={"a/x": "4", "b/x": "-"},
    ),
    Case(
        "an indivisible victim may take its queue below min",
        [q("a", min=4), q("b", min=4)],
        [run("b/x", 8), g("a/x", 1)],
        nodes(1),
        end={"a/x": "1", "b/x": "-"},
    ),
    Case(
        "a queue at its min loses nothing",
        [q("a", min=8), q("b", min=4), q("c")],
        [*ones("b", 4), *ones("c", 4), g("a/x", 6)],
        nodes(1),
        end={"a/x": "-", "b/3": "1", "c/3": "1"},
    ),
    Case(
        "borrowing inside a branch within its guarantee is safe from outside",
        [q("r", min=4), q("a", "r"), q("b", "r", min=2), q("x", min=4)],
        [*ones("a", 4), run("x/r", 4), g("x/new")],
        nodes(1),
        end={"x/new": "-", "a/3": "1"},
    ),
    Case(
        "but not from the sibling that owns it",
        [q("r", min=4), q("a", "r"), q("b", "r", min=2), q("x", min=4)],
        [*ones("a", 4), run("x/r", 4), g("b/new", 2)],
        nodes(1),
        end={"b/new": "2", "a/1": "1", "a/2": "-"},
    ),
    Case(
        "a branch reclaims what its cousin borrowed",
        [q("r", min=6), q("a", "r"), q("b", "r"), q("x", min=2)],
        [*ones("x", 6), run("a/r", 2), g("b/new", 4)],
        nodes(1),
        end={"b/new": "4", "x/1": "1", "x/2": "-"},
    ),
    Case(
        "a guarantee deep in the tree",
        [q("r"), q("s", "r"), q("a", "s", min=3), q("x")],
        [run("x/r", 8, 1, has=8), g("a/new", 3)],
        nodes(1),
        end={"a/new": "3", "x/r": "5"},
    ),
    Case(
        "its own max still binds",
        [q("a", min=2, max=3), q("b")],
        [run("a/r", 3), *ones("b", 5), g("a/new")],
        nodes(1),
        first={"a/new": "Wait WaitingForQuota"},
        says={"a/new": "0 free under a"},
        end={"b/4": "1"},
    ),
)
def test_reclaim_and_fairness(case):
    case.check()


@cases(
    Case(
        "higher priority evicts the youngest lower",
        [q("a")],
        [*ones("a", 8), g("a/high", 2, prio=1)],
        nodes(1),
        first={"a/7": "Evict Preempted", "a/6": "Evict Preempted", "a/5": "Keep"},
        end={"a/high": "2"},
    ),
    Case(
        "equal priority evicts nobody",
        [q("a")],
        [*ones("a", 8), g("a/high", 2)],
        nodes(1),
        end={"a/high": "-"},
    ),
    Case(
        "within queue Never",
        [q("a", within="Never")],
        [*ones("a", 8), g("a/high", prio=5)],
        nodes(1),
        end={"a/high": "-"},
    ),
    Case(
        "the lowest of the lower goes first",
        [q("a")],
        [run("a/mid", 4, prio=1, age=1), run("a/low", 4, age=99), g("a/high", 2, prio=2)],
        nodes(1),
        first={"a/low": "Evict Preempted", "a/mid": "Keep"},
    ),
    Case(
        "least lost work goes first",
        [q("a")],
        [run("a/old", 4, age=99, lost=5), run("a/new", 4, age=1, lost=500), g("a/high", 2, prio=2)],
        nodes(1),
        first={"a/old": "Evict Preempted", "a/new": "Keep"},
    ),
    Case(
        "inside a max of its own",
        [q("a", max=4), q("b")],
        [run("a/low", 4), g("a/high", 4, prio=1)],
        nodes(2),
        end={"a/high": "4", "a/low": "-"},
    ),
    Case(
        "only the own queue helps against the own max",
        [q("a", max=4), q("b")],
        [run("a/same", 4), *ones("b", 8), g("a/high", 4)],
        nodes(2),
        end={"a/high": "-", "b/7": "1"},
    ),
    Case(
        "priority does not reach into other queues",
        [q("a", reclaim="Never"), q("b")],
        [*ones("b", 8), g("a/x", prio=99)],
        nodes(1),
        end={"a/x": "-"},
    ),
    Case(
        "shrink before evict",
        [q("a")],
        [run("a/elastic", 4, 1), *ones("a", 4), g("a/high", 3, prio=1)],
        nodes(1),
        first={"a/elastic": "Resize Preempted", "a/3": "Keep"},
        end={"a/elastic": "1", "a/high": "3"},
    ),
    Case(
        "shrink only as far as needed",
        [q("a")],
        [run("a/elastic", 8, 1), g("a/high", 3, prio=1)],
        nodes(1),
        end={"a/elastic": "5", "a/high": "3"},
    ),
    Case(
        "never below minCount: evict whole",
        [q("a")],
        [run("a/elastic", 8, 4), g("a/high", 5, prio=1)],
        nodes(1),
        first={"a/elastic": "Evict Preempted"},
        end={"a/high": "5", "a/elastic": "-"},
    ),
    Case(
        "shrinks that do not help are given back",
        [q("a")],
        [run("a/elastic", 3, 1), run("a/big", 5), g("a/high", 5, prio=1)],
        nodes(1),
        first={"a/elastic": "Keep", "a/big": "Evict Preempted"},
    ),
    Case(
        "a cheaper pause shrinks first",
        [q("a")],
        [
            run("a/slow", 4, 1, resize_pause=9.0),
            run("a/fast", 4, 1, resize_pause=1.0),
            g("a/high", 2, prio=1),
        ],
        nodes(1),
        first={"a/slow": "Keep", "a/fast": "Resize Preempted"},
    ),
    Case(
        "nobody is evicted for one that cannot be placed",
        [q("a")],
        [
            *ones("a", 4, on={"n1": 1}),
            *[run(f"a/o{i}", on={"n2": 1}) for i in range(4)],
            g("a/high", gpu=8, prio=1),
        ],
        nodes(2, 4),
        first={"a/high": "Wait NoFittingNodes"},
        end={"a/0": "1", "a/o0": "1"},
    ),
    Case(
        "fragments are cleared for a whole-node pod",
        [q("a")],
        [run("a/1", on={"n1": 1}), run("a/2", on={"n2": 1}), g("a/high", gpu=8, prio=1)],
        nodes(2),
        end={"a/high": "1"},
    ),
    Case(
        "only victims on nodes it may use",
        [q("a")],
        [
            run("a/x", 8, on={"n1": 8}),
            run("a/y", 8, on={"n2": 8}),
            g("a/high", 4, prio=1, node_selector={"kubernetes.io/hostname": "n1"}),
        ],
        nodes(2),
        first={"a/x": "Evict Preempted", "a/y": "Keep"},
    ),
    Case(
        "an inelastic run is not shrunk",
        [q("a")],
        [run("a/static", 8, 1, elastic=False), g("a/high", 2, prio=1)],
        nodes(1),
        first={"a/static": "Evict Preempted"},
    ),
    Case(
        "weight zero loses first",
        [q("a", weight=0), q("b"), q("c")],
        [*ones("a", 2), *ones("b", 6), g("c/x", 2)],
        nodes(1),
        first={"a/1": "Evict Preempted", "a/0": "Keep", "b/5": "Evict Preempted"},
        end={"c/x": "2"},
    ),
    Case(
        "weights decide how much",
        [q("a", weight=1), q("b", weight=3)],
        [*ones("a", 8), *[g(f"b/{i}") for i in range(8)]],
        nodes(1),
        end={"a/1": "1", "a/2": "-", "b/5": "1", "b/6": "-"},
    ),
    Case(
        "the furthest above its share loses",
        [q("a"), q("b"), q("c")],
        [*ones("a", 5), *ones("b", 3), g("c/x", 2)],
        nodes(1),
        first={"a/4": "Evict Preempted", "b/2": "Keep"},
    ),
    Case(
        "fairness between branches first",
        [q("l"), q("r"), q("a", "l"), q("b", "l"), q("x", "r")],
        [*ones("a", 4), *ones("b", 4), g("x/new", 4)],
        nodes(1),
        end={"x/new": "4", "a/1": "1", "b/1": "1", "a/2": "-"},
    ),
    Case(
        "dominant share over two resources",
        [q("a", limits={"cpu": Limits()}, min=0), q("b", limits={"cpu": Limits()}, min=0)],
        [run("a/r", 4, cpu=1), run("b/r", 4, cpu=100), g("b/x"), g("a/x")],
        nodes(1, 9),
        first={"a/x": "Admit 1"},
        end={"a/x": "1", "b/x": "-"},
    ),
)
def test_victims(case):
    case.check()


def test_the_preemptor_waits_until_the_pods_are_gone_and_nobody_takes_its_room():
    world = World([q("a", min=4), q("b")], nodes(1), [*ones("b", 8, on={"n1": 1}), g("a/x", 4), g("b/new")])
    plan = world.plan()
    evicted = {str(d.key) for d in plan.actions if d.action is Action.EVICT}
    assert len(evicted) == 4
    leaving = [
        replace(
            group,
            admitted=None,
            requeue_at=world.now + 60,
            evictions=1,
            pods=tuple(replace(pod, terminating=True) for pod in group.pods),
        )
        if str(group.key) in evicted
        else group
        for group in world.groups
    ]
    world.groups = leaving
    assert told(world.plan())["a/x"] == "Wait WaitingForPreemption"
    assert not world.plan().actions
    world.groups = [replace(x, pods=()) if str(x.key) in evicted else x for x in leaving]
    assert [(str(d.key), d.action) for d in world.plan().actions] == [("a/x", Action.ADMIT)]


def test_an_evicted_group_backs_off_longer_each_time_and_keeps_its_place():
    victim = replace(run("b/x", 8, on={"n1": 8}), evictions=2)
    world = World([q("a", min=4), q("b")], nodes(1), [victim, g("a/x", 4)])
    decision = world.one("b/x")
    assert (decision.reason, decision.requeue_at) == (Reason.RECLAIMED, world.now + 4)
    assert "makes room for a/x (a), within the guarantee of its queue" in decision.message


def test_what_is_free_is_not_taken_from_others():
    world = World([q("a", min=4), q("b")], nodes(1), [*ones("b", 4), g("a/x", 4)])
    assert told(world.plan()) == {"a/x": "Admit 4"}


def test_the_plan_names_the_borrowers():
    world = World([q("a"), q("b", min=2)], [node("n1", 4)], [*ones("b", 4), g("a/x", 4)])
    assert world.one("a/x").message == "needs 4 nvidia.com/gpu; 0 free under cluster, 2 more borrowed by b"


@cases(
    Case(
        "an elastic asker does not come in whose elastic part alone would be evicted for it",
        [q("a", min=1), q("b", min=1, weight=3)],
        [run("b/g2", 4, on={"n1": 4}), g("a/g3", 4, 1)],
        nodes(1, 4),
    ),
    Case(
        "nobody flips back after a guarantee and a share have been served",
        [q("a", min=3), q("b", min=3, weight=3)],
        [g("a/g1", 1, age=3), g("b/g2", 5, age=2), g("a/g3", 4, 1, age=1)],
        nodes(1, 6),
    ),
    Case(
        "nobody flips back without a guarantee",
        [q("a"), q("b", min=1, weight=2)],
        [run("b/b1", 3, on={"n1": 3}), run("b/b2", 3, on={"n1": 3}), g("a/e", 3, 2)],
        nodes(1, 7),
    ),
    Case(
        "an elastic borrower does not fall below its guarantee",
        [q("a", min=4), q("b", min=6)],
        [run("b/e", 8, 1, on={"n1": 8}), g("a/new", 4)],
        nodes(1),
        end={"a/new": "-", "b/e": "8"},
    ),
    Case(
        "a victim does not come back by priority for somebody of its queue who takes the room back",
        [q("a"), q("b", limits={GPU: Limits(4, 8)})],
        [run("b/high", 4, prio=10), run("b/elastic", 4, 2), g("a/new", 3)],
        nodes(1),
        end={"a/new": "-", "b/high": "4", "b/elastic": "4"},
    ),
    Case(
        "two victims of two resources do not come back one by one",
        [
            q("a", limits={GPU: Limits(3, 9)}),
            q("b", weight=2, limits={"cpu": Limits(6294)}),
        ],
        [
            run("b/b4", 5),
            run("a/a3", 4),
            run("a/a6", members=[m("worker", 4, gpu=0, cpu=1)]),
            g("b/b5", members=[m("m0", 4, gpu=0, cpu=1), m("m1", 1, requests={GPU: 2, "cpu": 500})]),
        ],
    ),
)
def test_nothing_flips_back(case: Case):
    case.check()


GPU_AND_CPU_PODS = [m("w", 1, gpu=4, cpu=1), m("s", 2, 1, gpu=0, cpu=1)]
CPU_AND_GPU = {GPU: Limits(2), "cpu": Limits(2000)}


@cases(
    Case(
        "a guarantee needs own pods and those of a borrower",
        [q("root"), q("a", "root", min=4), q("b", "root", min=4)],
        [run("a/low", 2, age=9), run("b/x", 4, age=8), run("b/y", age=7), run("b/z", age=6), g("a/n", 4, prio=9)],
        first={"a/low": "Evict Preempted", "b/y": "Evict Reclaimed", "b/z": "Evict Reclaimed"},
        end={"a/n": "4", "b/x": "4"},
    ),
    Case(
        "a guarantee deep in the tree needs pods of its own branch and those of a borrower",
        [q("root"), q("pa", "root", min=4), q("a1", "pa"), q("a2", "pa", min=4), q("b", "root", min=4)],
        [run("a1/x", 2, age=9), run("b/x", 4, age=8), run("b/y", age=7), run("b/z", age=6), g("a2/n", 4)],
        end={"a2/n": "4", "a1/x": "-", "b/x": "4"},
    ),
    Case(
        "growth leaves a queue that borrows one resource the pods of another that it is guaranteed",
        [q("a"), q("b", min=0, limits={"cpu": Limits(4000)})],
        [run("b/y", members=GPU_AND_CPU_PODS, on={"n1": 1}), run("a/x", 2, 1, cpu=2, on={"n1": 1})],
        [node("n1", 8, cpu=6), node("n2", 0)],
        end={"a/x": "1", "b/y": "1+2"},
    ),
    Case(
        "a start takes such a pod rather than the whole group",
        [q("a"), q("b", min=0, limits={"cpu": Limits(4000)})],
        [run("b/y", members=GPU_AND_CPU_PODS, on={"n1": 1}), g("a/x", cpu=2)],
        [node("n1", 8, cpu=4), node("n2", 0)],
        first={"b/y": "Resize Preempted"},
        end={"a/x": "1", "b/y": "1+2"},  # the pod comes back on the other node
    ),
    Case(
        "who holds only what no queue counts may lose it all the same",
        [q("a", min=0)],
        [run("a/low", gpu=0, cpu=4, on={"n1": 1}), g("a/high", cpu=2, prio=1)],
        [node("n1", 8, cpu=4)],
        end={"a/high": "1", "a/low": "-"},
    ),
    Case(
        "a queue that borrows one resource keeps groups that hold only what it is guaranteed",
        [q("a"), q("b", min=0, limits={"cpu": Limits(4000)})],
        [run("b/gpus", 4, on={"n1": 4}), run("b/cpus", gpu=0, cpu=2, on={"n1": 1}), g("a/x", cpu=3)],
        [node("n1", 8, cpu=4), node("n2", 0)],
        end={"a/x": "-", "b/gpus": "4", "b/cpus": "1"},
    ),
    Case(
        "a guarantee of one resource in a queue that borrows another",
        [
            q("root", limits={GPU: Limits(max=4), "cpu": Limits(max=8000)}),
            q("a", "root", limits=CPU_AND_GPU),
            q("b", "root", limits=CPU_AND_GPU),
        ],
        [run("a/cpus", gpu=0, cpu=6), run("b/x", 2, age=9), run("b/y", 2, age=8), g("a/n", 2)],
        first={"b/y": "Evict Reclaimed"},
        end={"a/n": "2", "a/cpus": "1", "b/x": "2"},
    ),
    Case(
        "who has others leave starts before a queue with the lower share",
        [q("root", max=4), q("b", "root"), q("c", "root", reclaim="Never")],
        [run("b/0", 4, age=9), g("b/1", 4, prio=9), g("c/1", 3, age=1)],
        first={"b/0": "Evict Preempted", "b/1": "Wait WaitingForPreemption", "c/1": "Wait WaitingForQuota"},
        says={"b/1": "needs 4 nvidia.com/gpu; its room is being freed"},
        end={"b/1": "4", "c/1": "-"},
    ),
    Case(
        "nobody takes in its own queue what another queue would take from it",
        [q("root", max=6), q("c", "root", min=2), q("f", "root", min=2)],
        [
            run("c/0", 2, prio=100), run("f/0"),
            g("f/1", 3, age=1), g("c/1", 3, prio=50, age=2), g("c/2", age=3),
        ],
        first={"c/2": "Admit 1"},
        end={"c/0": "2", "f/0": "1", "c/1": "-", "c/2": "1", "f/1": "-"},
    ),
)  # fmt: skip
def test_found_by_an_independent_reading_of_the_rules(case: Case) -> None:
    case.check()


@cases(
    Case(
        "no growth that would give another queue the right to evict",
        [q("root", max=9), q("l", "root"), q("i", "root")],
        [run("l/rigid", 4, age=9), run("l/elastic", 3, 2, has=2, age=8), run("i/0", 2, age=7), g("i/1", 4)],
        first={"l/elastic": "Keep", "l/rigid": "Keep", "i/1": "Wait WaitingForQuota"},
        end={"l/elastic": "2", "l/rigid": "4", "i/1": "-"},
    ),
    Case(
        "no growth by what another group loses that would give another queue the right to evict",
        [q("p", min=1), *(q(name, "p") for name in "xyz"), q("w", within="Never")],
        [
            run("x/x", 3, 1, has=1, lost=10), run("y/y", 3, 2, has=2), run("z/z", gpu=2, prio=2),
            run("w/w", 2), g("w/new", gpu=2, prio=2),
        ],
        nodes(1),
        first={"y/y": "Resize 3"},
        end={"x/x": "1", "y/y": "3", "z/z": "1", "w/w": "2", "w/new": "-"},
    ),
    Case(
        "no growth by what another group would grow by again before the asker's queue comes to it",
        [q("a", min=6, limits={"cpu": Limits(8000)}), q("b", min=6, limits={"cpu": Limits(6000)})],
        [
            run("a/rigid", 4), run("a/elastic", 3, 2),
            run("b/wide", members=[m("w", 2, 1, gpu=2, cpu=3)], has={"w": 1}, age=9),
            run("b/slim", members=[m("w", 2, 1, gpu=2, cpu=2)], has={"w": 1}, age=8),
        ],
        end={"a/rigid": "4", "a/elastic": "3", "b/wide": "1", "b/slim": "1"},
    ),
    Case(
        "a group that grows only by a step that finds no room stands in nobody's way",
        [q("a", min=6, limits={"cpu": Limits(8000)}), q("b", min=6, limits={"cpu": Limits(6000)})],
        [
            run("a/rigid", 4), run("a/elastic", 3, 2),
            run("b/steps", members=[m("w", 3, 1, gpu=2, cpu=3)], has={"w": 1}, age=9, elastic=False),
            run("b/slim", members=[m("w", 2, 1, gpu=2, cpu=2)], has={"w": 1}, age=8),
        ],
        end={"a/rigid": "4", "a/elastic": "2", "b/steps": "1", "b/slim": "2"},
    ),
    Case(
        "an elastic start grows no further than nobody is evicted for it",
        [q("root", max=9), q("l", "root"), q("i", "root")],
        [run("l/rigid", 4, age=9), run("i/0", 2, age=7), g("l/elastic", 3, 1, age=3), g("i/1", 4)],
        first={"l/elastic": "Admit 2", "l/rigid": "Keep", "i/1": "Wait WaitingForQuota"},
        end={"l/elastic": "2", "l/rigid": "4", "i/1": "-"},
    ),
    Case(
        "a right that comes from a start is used at once",
        [q("root", max=10), q("a", "root", weight=2), q("b", "root", min=1), q("c", "root", min=1)],
        [run("c/0", age=9), run("c/1", 5, age=8), run("b/0", 3, age=7), g("c/new", age=3), g("a/new", 4)],
        first={"c/new": "Admit 1", "c/1": "Evict Preempted", "a/new": "Wait WaitingForPreemption"},
        end={"c/new": "1", "a/new": "4", "c/0": "1", "b/0": "3"},
    ),
    Case(
        "a right that comes from an eviction is used at once",
        [q("root", max=10), q("a", "root", min=2, weight=2), q("b", "root"), q("c", "root")],
        [
            run("b/0", age=9), run("a/0", age=8), run("c/0", 5, age=7), run("b/1", 3, age=6),
            g("a/new", 3, age=3), g("b/new", 3, age=2),
        ],
        first={"b/1": "Evict Preempted", "c/0": "Evict Preempted"},
        end={"a/new": "3", "b/new": "3"},
    ),
    Case(
        "what an eviction frees beside the asker is promised at once",
        [q("root", max=12), q("a", "root", min=2, weight=2), q("b", "root", min=1)],
        [
            run("a/0", 2, age=9), run("b/0", 5, age=8), run("b/1", 5, age=7),
            g("b/2", age=5), g("a/1", 3, age=4), g("a/2", 4, age=3),
        ],
        first={
            "b/0": "Evict Preempted", "b/1": "Evict Preempted", "b/2": "Wait WaitingForPreemption",
            "a/1": "Wait WaitingForPreemption", "a/2": "Wait WaitingForPreemption",
        },
        end={"a/0": "2", "a/1": "3", "a/2": "4", "b/2": "1"},
    ),
    Case(
        "who gave way to another start may still take what it has a right to",
        [q("root", max=7), q("a", "root"), q("b", "root")],
        [
            run("b/0", 4, age=9), run("a/0", 3, age=8),
            g("b/1", prio=1, age=5), g("b/2", age=4), g("a/1", 5, prio=1, age=3), g("a/2", 4, prio=1, age=2),
        ],
        first={"b/0": "Evict Preempted", "a/0": "Evict Preempted"},
        end={"a/1": "5", "b/1": "1", "b/2": "1"},
    ),
)  # fmt: skip
def test_one_pass_decides_what_the_next_would(case: Case) -> None:
    case.check()


def test_room_left_over_from_others_victims_is_enough_with_what_may_be_taken_in_the_same_pass():
    """a/h needs both of its queue's others, one pod of which is left over; with it and b/z there is room for c/w."""
    queues = [q("a", weight=3), q("p"), q("b", "p", weight=0), q("c", "p")]
    running = [run("a/x", 3), run("a/y", 3), run("b/z", 2)]
    world = World(queues, nodes(1), [*running, g("a/h", 5, prio=2), g("c/w", 3)])
    first, *_ = world.passes()
    assert {name for name, words in told(first).items() if words.startswith("Evict")} == {"a/x", "a/y", "b/z"}
    assert world.running() == {"a/h": "5", "c/w": "3"}
