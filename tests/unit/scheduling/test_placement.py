"""Placement: which nodes a pod may use, packing, topology, whole nodes."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl2.scheduling.fleet import PodShape
from dl2.scheduling.puzzle import balance
from dl2.scheduling.snapshot import Admitted, Domain, Pod, Taint, Toleration, Topology
from tests.unit.scheduling.cases import Case, cases
from tests.unit.scheduling.dsl import GPU, HOST, RACK, ZONE, World, expr, g, m, node, nodes, q, run

A = [q("a")]
HOLD = Taint("hold", "yes")
TOLERATES = (Toleration("hold", "Equal", "yes", "NoSchedule"),)
SSD = {"disk": "ssd", "slots": "8"}


def where(world: World, name: str, member: str = "worker") -> dict[str, int]:
    return dict(world.one(name).members[member].nodes)


@cases(
    Case(
        "node selector",
        A,
        [g("a/x", node_selector={"disk": "ssd"})],
        [node("n1"), node("n2", labels=SSD)],
        first={"a/x": "Admit 1"},
    ),
    Case(
        "node selector without a node",
        A,
        [g("a/x", node_selector={"disk": "nvme"})],
        [node("n1", labels=SSD)],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "affinity In",
        A,
        [g("a/x", affinity=((expr("disk", "In", "ssd", "nvme"),),))],
        [node("n1", labels=SSD)],
        first={"a/x": "Admit 1"},
    ),
    Case(
        "affinity NotIn",
        A,
        [g("a/x", affinity=((expr("disk", "NotIn", "ssd"),),))],
        [node("n1", labels=SSD)],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "affinity Exists and DoesNotExist",
        A,
        [g("a/x", affinity=((expr("disk", "Exists"), expr("fpga", "DoesNotExist")),))],
        [node("n1", labels=SSD)],
        first={"a/x": "Admit 1"},
    ),
    Case(
        "affinity Gt and Lt",
        A,
        [g("a/x", affinity=((expr("slots", "Gt", "7"), expr("slots", "Lt", "9")),))],
        [node("n1", labels=SSD)],
        first={"a/x": "Admit 1"},
    ),
    Case(
        "affinity Gt on no number",
        A,
        [g("a/x", affinity=((expr("disk", "Gt", "7"),),))],
        [node("n1", labels=SSD)],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "any of the terms",
        A,
        [g("a/x", affinity=((expr("fpga", "Exists"),), (expr("disk", "Exists"),)))],
        [node("n1", labels=SSD)],
        first={"a/x": "Admit 1"},
    ),
    Case(
        "an empty term matches no node",
        A,
        [g("a/x", affinity=((),))],
        nodes(1),
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "by node name",
        A,
        [g("a/x", affinity=((expr("metadata.name", "In", "n2"),),))],
        nodes(2),
        first={"a/x": "Admit 1"},
    ),
    Case(
        "an unknown operator never holds",
        A,
        [g("a/x", affinity=((expr("disk", "Like", "s"),),))],
        [node("n1", labels=SSD)],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "a taint repels",
        A,
        [g("a/x")],
        [node("n1", taints=(HOLD,))],
        first={"a/x": "Wait NoFittingNodes"},
        says={"a/x": f"of 1 node 1 is with the taint {HOLD.key}"},
    ),
    Case(
        "what keeps pods off the nodes is told with numbers",
        A,
        [g("a/x", node_selector={"disk": "ssd"}, affinity=((expr("zone", "In", "z"),),))],
        [
            *(node(f"n{n}") for n in range(3)),
            node("cordoned", unschedulable=True),
            node("silent", ready=False),
            node("elsewhere", labels=SSD),
            node("full", gpu=0, labels={**SSD, "zone": "z"}),
        ],
        first={"a/x": "Wait NoFittingNodes"},
        says={
            "a/x": "of 7 nodes 1 is cordoned, 1 is not ready, 1 is outside its node affinity, "
            "3 are without the labels it selects"
        },
    ),
    Case(
        "a toleration lets in",
        A,
        [g("a/x", tolerations=TOLERATES)],
        [node("n1", taints=(HOLD,))],
        first={"a/x": "Admit 1"},
    ),
    Case(
        "tolerate everything",
        A,
        [g("a/x", tolerations=(Toleration(operator="Exists"),))],
        [node("n1", taints=(HOLD,))],
        first={"a/x": "Admit 1"},
    ),
    Case(
        "a toleration of another effect",
        A,
        [g("a/x", tolerations=(Toleration("hold", "Exists", "", "NoExecute"),))],
        [node("n1", taints=(HOLD,))],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "PreferNoSchedule does not repel",
        A,
        [g("a/x")],
        [node("n1", taints=(Taint("t", "", "PreferNoSchedule"),))],
        first={"a/x": "Admit 1"},
    ),
    Case("pod slots", A, [g("a/x", 3, gpu=0)], [node("n1", pods=2)], first={"a/x": "Wait NoFittingNodes"}),
    Case(
        "other people's pods",
        A,
        [g("a/x", 2)],
        [node("n1", 8, used_by_others={GPU: 7, "pods": 7})],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "other people's pod slots",
        A,
        [g("a/x", gpu=0)],
        [node("n1", pods=3, used_by_others={"pods": 3})],
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "a node that hides its pod slots has plenty",
        A,
        [g("a/x", 9, gpu=0)],
        [replace(node("n1"), allocatable={"cpu": 1000})],
        first={"a/x": "Admit 9"},
    ),
    Case(
        "a resource that no node has",
        A,
        [g("a/x", requests={"example.com/fpga": 1})],
        nodes(1),
        first={"a/x": "Wait NoFittingNodes"},
    ),
    Case(
        "members on different nodes",
        A,
        [g("a/x", members=[m("worker", 2), m("server", 1, gpu=0, cpu=1, node_selector={"disk": "ssd"})])],
        [node("n1"), node("n2", 0, labels=SSD)],
        first={"a/x": "Admit 2+1"},
    ),
    Case(
        "required rack",
        A,
        [g("a/x", 4, gpu=4, required=RACK)],
        [node(f"n{i}", 8, rack=f"r{i // 2}") for i in range(4)],
        first={"a/x": "Admit 4"},
    ),
    Case(
        "required rack without room",
        A,
        [g("a/x", 3, gpu=8, required=RACK)],
        [node(f"n{i}", 8, rack=f"r{i // 2}") for i in range(4)],
        first={"a/x": "Wait TopologyUnsatisfied"},
        says={"a/x": "no single dl2.dev/rack has room"},
    ),
    Case(
        "preferred rack without room spreads",
        A,
        [g("a/x", 3, gpu=8, preferred=RACK)],
        [node(f"n{i}", 8, rack=f"r{i // 2}") for i in range(4)],
        first={"a/x": "Admit 3"},
    ),
    Case(
        "required label that no node has",
        A,
        [g("a/x", required="example.com/pod")],
        nodes(1),
        first={"a/x": "Wait TopologyUnsatisfied"},
    ),
    Case(
        "required hostname",
        A,
        [g("a/x", 2, gpu=4, required=HOST)],
        nodes(2, 4),
        first={"a/x": "Wait TopologyUnsatisfied"},
    ),
    Case(
        "required zone over racks",
        A,
        [g("a/x", 4, gpu=8, required=ZONE)],
        [node(f"n{i}", 8, rack=f"r{i // 2}", zone=f"z{i // 4}") for i in range(8)],
        first={"a/x": "Admit 4"},
    ),
    Case(
        "growth stays in the required domain",
        A,
        [run("a/x", 9, 1, gpu=8, on={"n0": 1}, has=1, required=RACK)],
        [node(f"n{i}", 8, rack=f"r{i // 2}") for i in range(4)],
        first={"a/x": "Resize 2"},
    ),
)
def test_where_a_pod_may_run(case):
    case.check()


def racks(count: int, per_rack: int = 2, gpu: int = 8):
    return [
        node(f"n{i}", gpu, rack=f"r{i // per_rack}", zone=f"z{i // (2 * per_rack)}") for i in range(count)
    ]


@pytest.mark.parametrize(
    ("machines", "group", "nodes_used"),
    [
        pytest.param(nodes(3), g("a/x", 8), {"n1": 8}, id="one node"),
        pytest.param(nodes(3), g("a/x", 12), {"n1": 8, "n2": 4}, id="fewest nodes"),
        pytest.param([node("n1", 8), node("n2", 4)], g("a/x", 4), {"n2": 4}, id="best fit"),
        pytest.param(
            [node("n1", 8, used_by_others={GPU: 5}), node("n2", 8, used_by_others={GPU: 2})], g("a/x", 2), {"n1": 2},
            id="the fuller node",
        ),
        pytest.param(racks(4), g("a/x", 16), {"n0": 8, "n1": 8}, id="one rack before two"),
        pytest.param(racks(4), g("a/x", 2, gpu=8), {"n0": 1, "n1": 1}, id="one rack for whole-node pods"),
        pytest.param(racks(8), g("a/x", 3, gpu=8), {"n0": 1, "n1": 1, "n2": 1}, id="one zone before two"),
        pytest.param(
            [node("n0", 4, rack="r0"), node("n1", 4, rack="r0"), node("n2", 6, rack="r1"), node("n3", 6, rack="r1")],
            g("a/x", 8), {"n0": 4, "n1": 4}, id="the tighter of two racks",
        ),
        pytest.param(
            [*(node(f"n{i}", 2, rack="r0") for i in range(4)), node("n8", 5, rack="r1"), node("n9", 5, rack="r1")],
            g("a/x", 8), {"n8": 5, "n9": 3}, id="fewer nodes before the tighter rack",
        ),
        pytest.param(
            [node("n1", 4, block="b1"), node("n2", 4, block="b2"), node("n3", 4, block="b2")], g("a/x", 8),
            {"n2": 4, "n3": 4}, id="blocks",
        ),
        pytest.param(
            [node("n1", 4, labels={"row": "1"}), node("n2", 4, labels={"row": "2"}), node("n3", 4, labels={"row": "2"})],
            replace(g("a/x", 8), topology=Topology("row", True)), {"n2": 4, "n3": 4}, id="a label of one's own",
        ),
    ],
)  # fmt: skip
def test_packing(machines, group, nodes_used):
    assert where(World(A, machines, [group]), "a/x") == nodes_used


def test_a_small_group_does_not_break_an_idle_node():
    busy = run("a/r", 2, on={"n2": 2})
    assert where(World(A, nodes(3), [busy, g("a/x", 2)]), "a/x") == {"n2": 2}


def test_an_idle_smaller_node_is_spared_for_a_broken_larger_one():
    machines = [node("n1", 4), node("n2", 8)]
    assert where(World(A, machines, [run("a/r", 1, on={"n2": 1}), g("a/x", 4)]), "a/x") == {"n2": 4}


def test_half_nodes_are_kept_whole():
    machines = nodes(2)
    running = [run("a/half", 4, on={"n1": 4}), run("a/most", 6, on={"n2": 6})]
    assert where(World(A, machines, [*running, g("a/x", 2)]), "a/x") == {"n2": 2}


def test_groups_of_one_plan_do_not_overlap():
    world = World(A, nodes(4), [g(f"a/{i}", 3, gpu=2) for i in range(5)])
    used = {}
    for decision in world.plan().actions:
        for name, count in decision.members["worker"].nodes.items():
            used[name] = used.get(name, 0) + 2 * count
    assert sum(used.values()) == 30
    assert max(used.values()) <= 8


@pytest.mark.parametrize(
    ("group", "domain"),
    [
        (g("a/x", 2, gpu=8, required=RACK), Domain(RACK, "r0")),
        (g("a/x", 2, gpu=8, preferred=RACK), Domain(RACK, "r0")),
        (g("a/x", 3, gpu=8, preferred=RACK), Domain(ZONE, "z0")),
        (g("a/x", 2, gpu=8, required=ZONE), Domain(ZONE, "z0")),
        (g("a/x", 2, required=HOST), Domain(HOST, "m0")),
        (g("a/x", 2, gpu=8), None),
        (g("a/x", 9, gpu=8, preferred=RACK), None),
    ],
    ids=["required", "preferred", "preferred, one wider", "required zone", "hostname", "none asked", "all over"],
)  # fmt: skip
def test_the_chosen_domain_is_told(group, domain):
    machines = [*racks(8), *(node(f"m{i}", 8, rack=f"s{i}", zone="z9") for i in range(2))]
    assert World(A, machines, [group]).one("a/x").members["worker"].domain == domain


def test_admitted_pods_that_are_nowhere_yet_keep_their_room():
    admitted = replace(run("a/r", 8), ready_at=None)
    assert where(World(A, nodes(2), [admitted, g("a/x", 8)]), "a/x") == {"n2": 8}


def test_assumed_pods_keep_their_room_until_they_are_bound():
    admitted = replace(run("a/r", 6), assumed={"worker": {"n2": 6}})
    world = World(A, nodes(2), [admitted, g("a/x", 8), g("a/y", 2, age=-1)])
    assert where(world, "a/x") == {"n1": 8}
    assert where(world, "a/y") == {"n2": 2}


def test_stale_assumptions_count_once():
    pods = tuple(Pod(f"r-{i}", "worker", requests={GPU: 1}, node="n1", ready=True) for i in range(4))
    admitted = replace(run("a/r", 4), pods=pods, assumed={"worker": {"n1": 4, "gone": 3}})
    assert where(World(A, nodes(1), [admitted, g("a/x", 4)]), "a/x") == {"n1": 4}


def test_loose_pods_go_where_they_are_pinned_to():
    pinned = replace(
        run("a/r", 1, gpu=4, required=RACK),
        ready_at=None,
        admitted={"worker": Admitted(1, Domain(RACK, "r1"))},
    )
    assert set(where(World(A, racks(4), [pinned]), "a/r")) <= {"n2", "n3"}


def test_an_elastic_group_moves_its_start_to_where_it_can_grow():
    machines = [node("n0", 2, rack="r0"), node("n1", 6, rack="r1")]
    world = World(A, machines, [g("a/x", 6, 2, required=RACK)])
    assert where(world, "a/x") == {"n1": 6}


def test_aligned_zones_are_preferred_for_guaranteed_pods():
    machines = [
        node("n1", 8, zones=({GPU: 1}, {GPU: 1})),
        node("n2", 8, zones=({GPU: 4}, {GPU: 0})),
    ]
    gated = (Pod("x-0", "worker", requests={GPU: 2}, gated=True, guaranteed=True),)
    assert where(World(A, machines, [replace(g("a/x", gpu=2), pods=gated)]), "a/x") == {"n2": 1}
    assert where(World(A, machines, [g("a/x", gpu=2)]), "a/x") == {"n1": 1}


def test_a_node_that_other_peoples_accelerator_pods_broke_goes_before_an_idle_one():
    machines = [node("n1", 4), node("n2", 8, used_by_others={GPU: 2, "pods": 1})]
    assert where(World(A, machines, [g("a/x", 2)]), "a/x") == {"n2": 2}


def test_a_node_that_only_daemons_run_on_is_idle():
    machines = [node("n1", 8, used_by_others={"cpu": 100, "pods": 1}), node("n2", 8)]
    world = World(A, machines, [run("a/r", 2, on={"n2": 2}), g("a/x", 2)])
    assert where(world, "a/x") == {"n2": 2}


def test_several_members_share_one_rack_where_only_a_clever_split_fits():
    machines = [
        node("n0", 4, cpu=8, rack="r2"),
        node("n1", 4, cpu=16, rack="r2"),
        node("n2", 4, cpu=4, rack="r0"),
    ]
    members = [m("m0", 2, cpu=4), m("m1", 2, cpu=4), m("m2", 4, cpu=1)]
    decision = World(A, machines, [g("a/x", members=members)]).one("a/x")
    assert {name for member in decision.members.values() for name in member.nodes} == {"n0", "n1"}


@cases(
    Case(
        "workers and servers that fit only evenly spread over many nodes",
        [q("a")],
        [g("a/x", members=[m("worker", 12, gpu=4, cpu=2), m("server", 19, gpu=0, cpu=3)])],
        nodes(12, 8, cpu=8),
        first={"a/x": "Admit 12+19"},
    ),
    Case(
        "beside a coordinator too",
        [q("a")],
        [
            g(
                "a/x",
                members=[
                    m("coordinator", gpu=0, cpu=1),
                    m("worker", 9, gpu=4, cpu=2),
                    m("server", 15, gpu=0, cpu=3),
                ],
            )
        ],
        nodes(10, 8, cpu=8),
        first={"a/x": "Admit 1+9+15"},
    ),
    Case(
        "what fits each by itself but not together",
        [q("a")],
        [g("a/x", members=[m("worker", 12, gpu=4, cpu=5), m("server", 8, gpu=0, cpu=4)])],
        nodes(12, 8, cpu=8),
        first={"a/x": "Wait NoFittingNodes"},
        says={"a/x": "8 of 8 server fit now, each by themselves"},
    ),
)
def test_kinds_of_pods_together_on_many_nodes(case: Case) -> None:
    case.check()


def test_a_preferred_label_that_is_no_level_is_one_for_this_group() -> None:
    rows = [node(f"n{i}", 4, labels={"example.com/row": row}) for i, row in enumerate("abb")]
    x = World([q("a")], rows, [g("a/x", 8, preferred="example.com/row")]).decisions()["a/x"]
    assert x.members["worker"].nodes == {"n1": 4, "n2": 4}


def pod_shape(number: int, vector: tuple[int, ...]) -> PodShape:
    return PodShape(
        number, vector, tuple((r, amount) for r, amount in enumerate(vector) if amount), [True] * 12, {}
    )


@given(st.integers(0, 10_000))
def test_balance_finds_a_way_wherever_there_is_one(seed: int) -> None:
    """Pods are drawn node by node, so that they fit; then it has to find that way or another."""
    rng = Random(seed)
    shapes = [pod_shape(n, (rng.randint(0, 2), rng.randint(1, 4))) for n in range(rng.randint(1, 3))]
    free = [(rng.randint(0, 4), rng.randint(2, 12)) for _ in range(rng.randint(1, 12))]
    counts = [0] * len(shapes)
    for row in free:
        left = list(row)
        for _ in range(4):
            n = rng.randrange(len(shapes))
            if all(has >= asks for has, asks in zip(left, shapes[n].vector, strict=True)):
                left = [has - asks for has, asks in zip(left, shapes[n].vector, strict=True)]
                counts[n] += 1
    wants = [(shape, count) for shape, count in zip(shapes, counts, strict=True) if count]
    if wants:
        found = balance(free, wants, list(range(len(free))))
        assert found is not None
        assert [sum(spread.values()) for spread in found] == [count for _, count in wants]
        for i, row in enumerate(free):
            used = [
                sum(
                    spread.get(i, 0) * shape.vector[r]
                    for (shape, _), spread in zip(wants, found, strict=True)
                )
                for r in (0, 1)
            ]
            assert all(has >= takes for has, takes in zip(row, used, strict=True))
