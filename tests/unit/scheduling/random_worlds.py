"""Small random clusters: trees of queues, racks of nodes, running and waiting groups. All from one seed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from dl2.scheduling.snapshot import Group, Limits, Member, Queue
from tests.unit.scheduling.dsl import GPU, RACK, ZONE, World, g, m, node, q, run

POLICIES = ("Any", "Any", "Any", "LowerPriority", "Never")


def random_queues(rng: Random, total: int, *, cpu: bool = False) -> list[Queue]:
    queues: list[Queue] = []
    for n in range(rng.randint(1, 6)):
        parent = rng.choice([None, *[queue.name for queue in queues]]) if rng.random() < 0.6 else None
        least = rng.choice([None, 0, rng.randint(0, max(1, total // 3))])
        most = rng.choice([None, None, (least or 0) + rng.randint(0, total)])
        lend = rng.choice([None, None, None, rng.randint(0, 4)])
        limits = {"cpu": Limits(rng.randint(0, 20) * 1000)} if cpu and rng.random() < 0.5 else {}
        queues.append(
            q(
                f"q{n}",
                parent,
                min=least,
                max=most,
                lend=lend if least else None,
                weight=rng.choice([0, 1, 1, 1, 2, 3]),
                within=rng.choice(("LowerPriority", "Never")),
                reclaim=rng.choice(POLICIES),
                strategy=rng.choice(("BestEffortFIFO",) * 3 + ("StrictFIFO",)),
                limits=limits,
                created=float(rng.randint(0, 3)),
            )
        )
    return queues


def random_members(rng: Random, *, cpu: bool) -> list[Member]:
    def member(name: str, widest: int) -> Member:
        count = rng.randint(1, widest)
        least = rng.randint(1, count) if rng.random() < 0.5 else count
        return m(name, count, least, rng.choice([1, 1, 1, 2, 4]), cpu=rng.randint(0, 3) if cpu else 0)

    members = [member("worker", 5)]
    if rng.random() < 0.25:
        members.append(replace(member("server", 2), requests={"cpu": 1000} if cpu else {GPU: 1}))
    return members


def random_world(rng: Random, *, quota_only: bool | None = None, cpu: bool | None = None) -> World:
    quota_only = rng.random() < 0.5 if quota_only is None else quota_only
    cpu = rng.random() < 0.3 if cpu is None else cpu
    machines = [
        node(f"n{i}", rng.choice([4, 8, 8]), cpu=rng.choice([8, 32]), rack=f"r{i // 2}", zone=f"z{i // 4}")
        for i in range(rng.randint(1, 5))
    ]
    total = sum(machine.allocatable[GPU] for machine in machines)
    queues = random_queues(rng, total, cpu=cpu)
    world = World(queues, [] if quota_only else machines, [], quota_only=quota_only)
    world.groups = [random_group(rng, world, n, cpu=cpu) for n in range(rng.randint(1, 10))]
    world.groups = settled_some(rng, world)
    return world


def random_group(rng: Random, world: World, n: int, *, cpu: bool) -> Group:
    queue = rng.choice(list(world.queues)).name
    label = rng.choice([None, None, None, RACK, ZONE])
    return g(
        f"{queue}/g{n}", members=random_members(rng, cpu=cpu), prio=rng.choice([0, 0, 0, 1, 2]),
        age=rng.randint(0, 50), required=label if rng.random() < 0.5 else None,
        preferred=label if rng.random() < 0.3 else None, elastic=rng.random() < 0.9,
        progress_lost=float(rng.choice([0, 0, 10, 100])),
    )  # fmt: skip


def settled_some(rng: Random, world: World) -> list[Group]:
    """A past: some groups came first and have been running, placed as the core itself would place them."""
    early = [group for group in world.groups if rng.random() < 0.6]
    late = [group for group in world.groups if group not in early]
    past = World(world.queues, world.nodes, early, quota_only=world.quota_only)
    past.passes()
    return [*past.groups, *late]


__all__ = ["random_group", "random_queues", "random_world", "run"]
