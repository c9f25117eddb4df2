"""What must hold of any plan, checked from the outside with plain sums."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from dl2.scheduling.plan import Action, Decision, Plan
from dl2.scheduling.snapshot import CapacityMode, Group, Queue, Snapshot

Amounts = Counter[str]


def held_by(group: Group) -> Amounts:
    """What an admitted group is charged."""
    total: Amounts = Counter()
    for member in group.members:
        count = group.admitted[member.name].count if group.admitted else 0
        for name, amount in member.requests.items():
            total[name] += amount * count
    return total


def usage(snapshot: Snapshot) -> dict[str, Amounts]:
    """By queue, children included; "" is the cluster."""
    parents = {queue.name: queue.parent for queue in snapshot.queues}
    used: dict[str, Amounts] = {"": Counter(), **{name: Counter() for name in parents}}
    for group in snapshot.groups:
        amounts = held_by(group)
        used[""] += amounts
        at: str | None = group.queue
        while at is not None and at in parents:
            used[at] += amounts
            at = parents[at]
    return used


def effective_min(snapshot: Snapshot, name: str, resource: str) -> int:
    """`min`; of a parent that names none the sum of its children's."""
    queue = next(queue for queue in snapshot.queues if queue.name == name)
    children = [child for child in snapshot.queues if child.parent == name]
    if resource in queue.min_declared or not children:
        return queue.limits[resource].min if resource in queue.limits else 0
    return sum(effective_min(snapshot, child.name, resource) for child in children)


def check_limits(before: Snapshot, after: Snapshot) -> None:
    """Nobody is above max or capacity because of the plan."""
    old, new = usage(before), usage(after)
    for queue in after.queues:
        for resource, limit in queue.limits.items():
            if limit.max is not None:
                used = new[queue.name][resource]
                assert used <= max(limit.max, old[queue.name][resource]), f"{queue.name} above max: {used}"
    if after.capacity is CapacityMode.NODES:
        total: Amounts = Counter()
        for node in after.nodes:
            if node.ready and not node.unschedulable:
                total.update(node.allocatable)
        for resource, used in new[""].items():
            assert used <= max(total[resource], old[""][resource]), f"cluster above capacity of {resource}"


def on_nodes(plan: Plan, groups: Iterable[Group]) -> dict[str, Amounts]:
    requests = {(g.key, m.name): m.requests for g in groups for m in g.members}
    used: dict[str, Amounts] = {}
    for decision in plan.decisions:
        for name, member in decision.members.items():
            for node, count in member.nodes.items():
                amounts = used.setdefault(node, Counter())
                amounts["pods"] += count
                for resource, amount in requests[decision.key, name].items():
                    amounts[resource] += amount * count
    return used


def check_nodes(snapshot: Snapshot, plan: Plan) -> None:
    """No node is planned beyond what it has, and every planned pod has a node (mode Nodes)."""
    if snapshot.capacity is not CapacityMode.NODES:
        return
    used = on_nodes(plan, snapshot.groups)
    for node in snapshot.nodes:
        for resource, amount in used.get(node.name, Counter()).items():
            assert amount <= node.allocatable.get(resource, 0), f"{node.name}: {amount} {resource}"
    for decision in plan.decisions:
        for name, member in decision.members.items():
            assert sum(member.nodes.values()) == member.count, f"{decision.key} {name}: pods without a node"


def check_gangs(snapshot: Snapshot, plan: Plan) -> None:
    """Between minCount and count of every member, or nothing."""
    groups = {group.key: group for group in snapshot.groups}
    for decision in plan.decisions:
        if decision.action in (Action.ADMIT, Action.RESIZE):
            for member in groups[decision.key].members:
                count = decision.members[member.name].count
                least = member.min_count if groups[decision.key].elastic else member.count
                assert least <= count <= member.count, f"{decision.key}: {count} {member.name}"


def check_topology(snapshot: Snapshot, plan: Plan) -> None:
    """All pods of a group that requires a label are in one domain of it."""
    labels = {node.name: node.labels for node in snapshot.nodes}
    groups = {group.key: group for group in snapshot.groups}
    for decision in plan.decisions:
        topology = groups[decision.key].topology
        if topology is not None and topology.required:
            nodes = {node for member in decision.members.values() for node in member.nodes}
            values = {labels[node].get(topology.label) for node in nodes}
            assert len(values) <= 1, f"{decision.key} is spread over {values}"


def asker_of(decision: Decision) -> tuple[str, str] | None:
    """(group, queue) for whom this one loses."""
    found = re.match(r"makes room for (\S+) \((\S+)\)", decision.message)
    return (found[1], found[2]) if found else None


def own_usage(snapshot: Snapshot, name: str) -> Amounts:
    total: Amounts = Counter()
    for group in snapshot.groups:
        if group.queue == name:
            total += held_by(group)
    return total


def own_min(snapshot: Snapshot, name: str, resource: str) -> int:
    """What a queue guarantees its own groups: its min less its children's."""
    children = [child.name for child in snapshot.queues if child.parent == name]
    below = sum(effective_min(snapshot, child, resource) for child in children)
    return max(0, effective_min(snapshot, name, resource) - below)


def check_guarantees(snapshot: Snapshot, plan: Plan) -> None:
    """A queue at or below its min of everything loses nothing to another queue."""
    groups = {group.key: group for group in snapshot.groups}
    for decision in plan.decisions:
        asker = asker_of(decision)
        if asker is None:
            continue
        queue = groups[decision.key].queue
        if asker[1] != queue:
            used = own_usage(snapshot, queue)
            above = [r for r, n in used.items() if n > own_min(snapshot, queue, r)]
            assert above, f"{decision.key} of {queue} loses to {asker[1]}, but {queue} is within its min"


def check_all(before: Snapshot, plan: Plan, after: Snapshot) -> None:
    check_limits(before, after)
    check_nodes(before, plan)
    check_gangs(before, plan)
    check_topology(before, plan)
    check_guarantees(before, plan)


def without(snapshot: Snapshot, names: Iterable[str]) -> Snapshot:
    gone = set(names)
    return replace(snapshot, groups=tuple(group for group in snapshot.groups if str(group.key) not in gone))


def unarmed(queues: Iterable[Queue]) -> tuple[Queue, ...]:
    """The queues with every preemption switched off."""
    never = Queue("x").reclaim.__class__("Never")
    return tuple(replace(queue, within_queue=never, reclaim=never) for queue in queues)


def by_name(plan: Plan) -> Mapping[str, Decision]:
    return {str(decision.key): decision for decision in plan.decisions}
