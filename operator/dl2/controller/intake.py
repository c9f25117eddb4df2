"""From what the API server holds to the snapshot that `decide` looks at. Pure; the operator and the CLI share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dl2.api import PodGroup, TenantQueue, conditions, core
from dl2.api.conditions import parse_time
from dl2.api.core import NodeRecord, PodRecord, PriorityClassRecord
from dl2.api.names import GroupCondition
from dl2.api.resources import parse_quantities
from dl2.scheduling.plan import Reason
from dl2.scheduling.quantities import QuantityError, parse_quantity
from dl2.scheduling.snapshot import (
    EMPTY,
    Admitted,
    Domain,
    Group,
    Key,
    Limits,
    Member,
    Node,
    Pod,
    Preemption,
    Quantities,
    Queue,
    Stop,
    Strategy,
    Topology,
)

Priorities = Mapping[str, PriorityClassRecord]

# Priority classes that every API server makes itself.
_EVERYWHERE = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}


def read_queue(queue: TenantQueue) -> Queue:
    spec = queue.spec
    limits: dict[str, Limits] = {}
    error = ""
    for name, resource in spec.resources.items():
        try:
            limits[name] = Limits(
                parse_quantity(resource.min, name),
                _limit(resource.max, name),
                _limit(resource.lend, name),
            )
        except QuantityError as exc:
            error = f"spec.resources[{name}]: {exc}"
    return Queue(
        name=queue.metadata.name,
        parent=spec.parent,
        weight=spec.weight,
        limits=limits,
        min_declared=frozenset(n for n, r in spec.resources.items() if "min" in r.model_fields_set),
        namespace_selector=core.parse_selector(spec.namespace_selector),
        strategy=Strategy(spec.strategy),
        within_queue=Preemption(spec.preemption.within_queue),
        reclaim=Preemption(spec.preemption.reclaim),
        stop=Stop(spec.stop),
        created=queue.metadata.creation_timestamp or 0.0,
        error=error,
    )


def broken_group(key: Key, queue: str, created: float, error: str) -> Group:
    """A PodGroup, or a DLJob's, that cannot be read: it waits and says why."""
    return Group(key=key, queue=queue, members=(), created=created, error=error)


def broken_queue(name: str, error: str) -> Queue:
    """A TenantQueue that cannot be read: nobody is admitted through it, and its groups say why."""
    return Queue(name=name, error=error)


def _limit(value: Any, resource: str) -> int | None:
    return None if value is None else parse_quantity(value, resource, down=True)


def read_node(node: NodeRecord, others: Iterable[PodRecord], zones: tuple[Quantities, ...] = ()) -> Node:
    used: dict[str, int] = {}
    for pod in others:
        for name, value in pod.requests.items():
            used[name] = used.get(name, 0) + value
        used["pods"] = used.get("pods", 0) + 1
    return Node(
        name=node.name,
        allocatable=node.allocatable,
        labels=node.labels,
        taints=node.taints,
        unschedulable=node.unschedulable,
        ready=node.ready and not node.error,
        used_by_others=used,
        zones=zones,
    )


def priority_of(name: str | None, classes: Priorities) -> tuple[int, str]:
    """(value, error) of a priority class name; none means the global default (the least of several), else 0."""
    if not name:
        return min((c.value for c in classes.values() if c.is_default), default=0), ""
    if name in classes:
        return classes[name].value, ""
    if name in _EVERYWHERE:
        return _EVERYWHERE[name], ""
    known = ", ".join(sorted(classes)[:8]) or "none"
    return (
        0,
        f'spec.priorityClassName: there is no PriorityClass "{name}" (there are: {known}); create it or use another',
    )


def read_pod(pod: PodRecord, evicted: bool = False) -> Pod:
    """`evicted`: its group is not admitted, so what was released for it is on its way out, deleted already or not."""
    return Pod(
        name=pod.name,
        member=pod.member,
        uid=pod.uid,
        requests=pod.requests,
        node=pod.node,
        gated=pod.gated,
        ready=pod.ready,
        finished=pod.finished,
        succeeded=pod.phase == "Succeeded",
        terminating=pod.deleting or (evicted and pod.released and not pod.gated),
        created=pod.created,
        guaranteed=pod.guaranteed,
    )


def read_members(group: PodGroup) -> tuple[Member, ...]:
    return tuple(
        Member(
            name=member.name,
            count=member.count,
            min_count=member.minimum,
            requests=parse_quantities(member.requests),
            node_selector=member.node_selector,
            affinity=core.parse_required_affinity(member.affinity),
            tolerations=core.parse_tolerations(member.tolerations),
        )
        for member in group.spec.members
    )


def read_group(
    group: PodGroup,
    status: Mapping[str, Any],
    pods: Sequence[PodRecord],
    classes: Priorities,
    *,
    expected_end: float | None = None,
    created: float | None = None,
    pods_expected: bool = False,
    assumed: Mapping[str, Mapping[str, int]] = EMPTY,
) -> Group:
    """One PodGroup as decisions see it. `status` may be newer than the object's own: one being written counts.

    `assumed`: where the last plan put its pods, by member and node.
    """
    spec = group.spec
    priority, error = priority_of(spec.priority_class_name, classes)
    wanted = {member.name: member.count for member in spec.members}
    given = admitted(status, wanted)
    told = conditions.get(status.get("conditions") or (), GroupCondition.QUOTA_RESERVED)
    evicted = given is None and told is not None  # a group that nobody has decided upon keeps what runs
    return Group(
        key=Key(group.metadata.namespace, group.metadata.name),
        uid=group.metadata.uid,
        queue=group.queue,
        members=read_members(group),
        priority=priority,
        created=created if created is not None else group.metadata.creation_timestamp or 0.0,
        topology=_topology(group),
        suspend=spec.suspend,
        ready_timeout=float(spec.ready_timeout_seconds),
        admitted=given,
        admitted_at=_time(status.get("admittedAt")),
        ready_at=_time(status.get("readyAt")),
        finished=conditions.is_true(status.get("conditions") or (), GroupCondition.FINISHED),
        evictions=int(status.get("evictions") or 0),
        requeue_at=_time(status.get("requeueAt")) or 0.0,
        passed_over_since=_time(status.get("passedOverSince")),
        promised=evicted and (told or {}).get("reason") == Reason.WAITING_FOR_PREEMPTION,
        expected_end=expected_end,
        elastic=any(member.minimum < member.count for member in spec.members),
        pods=tuple(read_pod(pod, evicted) for pod in pods),
        pods_expected=pods_expected,
        assumed=_not_bound_yet(assumed, pods),
        error=error,
    )


def _not_bound_yet(
    assumed: Mapping[str, Mapping[str, int]], pods: Sequence[PodRecord]
) -> dict[str, dict[str, int]]:
    """`assumed` without the pods that have arrived where they were meant to go."""
    left = {member: dict(nodes) for member, nodes in assumed.items()}
    for pod in pods:
        if pod.node and not pod.finished and left.get(pod.member, {}).get(pod.node):
            left[pod.member][pod.node] -= 1
    return {m: {n: c for n, c in nodes.items() if c} for m, nodes in left.items() if any(nodes.values())}


def _topology(group: PodGroup) -> Topology | None:
    wish = group.spec.topology
    if wish is None:
        return None
    label = wish.required or wish.preferred
    return Topology(label, wish.required is not None) if label else None


def admitted(status: Mapping[str, Any], wanted: Mapping[str, int]) -> dict[str, Admitted] | None:
    """Member -> what it was given, when the status says Admitted; a status that names no members gave all."""
    if not conditions.is_true(status.get("conditions") or (), GroupCondition.ADMITTED):
        return None
    given: dict[str, Admitted] = {}
    for member in status.get("members") or ():
        if member.get("name") in wanted:
            domain = member.get("domain")
            given[member["name"]] = Admitted(
                int(member.get("admitted") or 0), Domain(domain["label"], domain["value"]) if domain else None
            )
    return given or {name: Admitted(count) for name, count in wanted.items()}


def _time(text: str | None) -> float | None:
    if not text:
        return None
    try:
        return parse_time(text)
    except ValueError:
        return None
