"""The fast code against the slow reference, over thousands of random small cases."""

from dataclasses import replace
from random import Random

import pytest

from dl2.scheduling.plan import Action
from dl2.scheduling.shares import Ask, fair_shares
from dl2.scheduling.snapshot import Topology
from tests.unit.scheduling.dsl import GPU, HOST, RACK, World, g, m, node, q
from tests.unit.scheduling.laws import unarmed
from tests.unit.scheduling.random_worlds import random_world
from tests.unit.scheduling.reference import Reference, placements, slow_shares


def planned(world: World) -> dict[str, list[int]]:
    """Pods by member of every group that runs after a plan."""
    return {
        str(decision.key): [decision.members[member.name].count for member in group.members]
        for group, decision in ((x, world.one_of(x)) for x in world.groups)
        if decision.members
    }


@pytest.mark.parametrize("block", range(10))
def test_admissions_and_growth(block):
    """Who starts with how many pods, and how running groups grow: quota trees, weights, strategies, lending."""
    for seed in range(block * 150, block * 150 + 150):
        world = random_world(Random(seed), quota_only=True)
        world.queues = unarmed(world.queues)
        assert planned(world) == Reference(world.snapshot).admit(), f"seed {seed}"


@pytest.mark.parametrize("block", range(5))
def test_shares(block):
    rng = Random(block)
    for _ in range(400):
        found = [(rng.randint(0, 9), rng.randint(0, 30), rng.randint(0, 4)) for _ in range(rng.randint(1, 6))]
        rows = [(min(least, request), request, weight) for least, request, weight in found]
        total = rng.randint(0, 60)
        assert fair_shares(total, [Ask(*row) for row in rows]) == slow_shares(total, rows), (total, rows)


@pytest.mark.parametrize("block", range(10))
def test_placement_finds_room_wherever_there_is_any(block):
    """A gang on an empty cluster is admitted exactly if an exhaustive search finds room for it."""
    rng = Random(1000 + block)
    for case in range(100):
        machines = [
            node(
                f"n{i}", rng.randint(0, 4), cpu=rng.randint(1, 6), pods=rng.choice([2, 110]), rack=f"r{i % 2}"
            )
            for i in range(rng.randint(1, 4))
        ]
        members = [
            m(name, rng.randint(1, 3), None, rng.randint(0, 3), cpu=rng.randint(0, 3),
              node_selector={HOST: rng.choice(machines).name} if rng.random() < 0.15 else {})
            for name in ("worker", "server")[: rng.randint(1, 2)]
        ]  # fmt: skip
        group = replace(
            g("a/x", members=members), topology=Topology(RACK, True) if rng.random() < 0.3 else None
        )
        world = World([q("a")], machines, [group])
        found = next(placements(machines, group), "no") is None
        admitted = world.one("a/x").action is Action.ADMIT
        assert admitted == found, (block, case, [dict(x.allocatable) for x in machines], members)


@pytest.mark.parametrize("block", range(5))
def test_a_guarantee_is_always_met_by_borrowers(block):
    """Single resource, rigid one-pod groups: who stays within its min gets it whenever borrowing groups hold it."""
    for seed in range(block * 100, block * 100 + 100):
        rng = Random(seed)
        least = [rng.randint(0, 4) for _ in range(3)]
        total = sum(least) + rng.randint(0, 3)
        queues = [q(name, min=n) for name, n in zip("abc", least, strict=True)]
        world = World(queues, [node("n1", total)], [])
        world.groups = [g(f"{rng.choice('abc')}/{i}") for i in range(total + 2)]
        world.passes()
        held = {name: sum(x.admitted is not None and x.queue == name for x in world.groups) for name in "abc"}
        asker = min("abc", key=lambda name: held[name] - least["abc".index(name)])
        missing = least["abc".index(asker)] - held[asker]
        if missing > 0:
            world.groups = [*world.groups, *(g(f"{asker}/new{i}") for i in range(missing))]
            world.passes()
            running = world.running()
            assert all(f"{asker}/new{i}" in running for i in range(missing)), f"seed {seed}"
        assert sum(x.admitted is not None for x in world.groups) * 1 <= total
        assert GPU in world.nodes[0].allocatable
