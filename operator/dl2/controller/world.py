"""The snapshot, kept up to date piece by piece: only what changed since the last pass is read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from dl2.api import TenantQueue, conditions
from dl2.api.conditions import parse_time
from dl2.api.core import PodRecord, PriorityClassRecord
from dl2.api.names import GroupCondition
from dl2.cluster.applier import Applier
from dl2.cluster.resources import (
    DL_JOBS,
    NAMESPACES,
    NODE_TOPOLOGIES,
    NODES,
    POD_GROUPS,
    PRIORITY_CLASSES,
    TENANT_QUEUES,
)
from dl2.cluster.store import Entry, Store
from dl2.controller import intake
from dl2.scheduling.plan import Decision
from dl2.scheduling.snapshot import Group, Key, Node, Queue, Snapshot

log = structlog.get_logger(__name__)


class World:
    def __init__(self, store: Store, applier: Applier) -> None:
        self._store, self._applier = store, applier
        self._groups: dict[Key, Group] = {}
        self._nodes: dict[str, Node] = {}
        self._queues: tuple[Queue, ...] = ()
        self._namespaces: dict[str, dict[str, str]] = {}
        self._classes: dict[str, PriorityClassRecord] = {}
        # Groups that pods name but that take no part: their pods are others', on these nodes when last looked at.
        self._orphans: dict[Key, set[str]] = {}
        self._assumed: dict[Key, Mapping[str, Mapping[str, int]]] = {}  # group -> member -> node -> pods
        self._primed = False
        self.errors: dict[Key, str] = {}  # groups that cannot be read, and why
        self.capacity: dict[str, int] = {}  # allocatable of the ready, schedulable nodes
        self.news = True  # something changed that a decision may depend on; the reader resets it
        self.small_news = False  # only estimates changed

    # -- reading the store --------------------------------------------------------------------------------------
    def refresh(self, keys: set[Key], nodes: set[str], kinds: set[str]) -> set[Key]:
        """Read again what these keys, nodes and kinds stand for; everything, the first time. Returns all keys read."""
        store, keys, nodes = self._store, set(keys), set(nodes)
        if not self._primed or kinds:
            if not self._primed or PRIORITY_CLASSES.kind in kinds:
                self._classes = {e.name: e.value for e in store.all(PRIORITY_CLASSES) if e.value}
                keys |= {e.key for e in store.all(POD_GROUPS)}
            self._refresh_tree()
        if not self._primed:
            nodes |= {e.name for e in store.all(NODES)}
            keys |= set(store.groups_with_pods())
        for key in keys:
            self._put_group(key, self._read_group(key, nodes))
        for name in nodes:
            self._put_node(name, self._read_node(name))
        if nodes:
            self.capacity = _capacity(self._nodes.values())
        self._primed = True
        return keys

    def snapshot(self, now: float) -> Snapshot:
        return Snapshot(
            now=now,
            queues=self._queues,
            groups=tuple(self._groups.values()),
            nodes=tuple(self._nodes.values()),
            namespaces=self._namespaces,
        )

    def group(self, key: Key) -> Group | None:
        return self._groups.get(key)

    def assume(self, key: Key, decision: Decision | None) -> None:
        """Remember where the last plan puts a group's pods, until they are bound there or elsewhere."""
        nodes = {name: plan.nodes for name, plan in decision.members.items()} if decision else {}
        if any(nodes.values()):
            self._assumed[key] = nodes
        else:
            self._assumed.pop(key, None)

    # -- pieces -------------------------------------------------------------------------------------------------
    def _refresh_tree(self) -> None:
        namespaces = {e.name: dict(e.value.labels) for e in self._store.all(NAMESPACES) if e.value}
        queues = tuple(_queue(e) for e in self._store.all(TENANT_QUEUES))
        if namespaces != self._namespaces or queues != self._queues:
            self._namespaces, self._queues, self.news = namespaces, queues, True

    def _put_group(self, key: Key, group: Group | None) -> None:
        old = self._groups.pop(key, None) if group is None else self._groups.get(key)
        if group is None:
            self.news |= old is not None
            return
        if old == group:
            return  # the same object as before tells `decide` that nothing has changed
        self._groups[key] = group
        if old is None or replace(old, expected_end=group.expected_end) != group:
            self.news = True
        else:
            self.small_news = True

    def _put_node(self, name: str, node: Node | None) -> None:
        if node == self._nodes.get(name):
            return
        self.news = True
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node

    def _read_group(self, key: Key, nodes: set[str]) -> Group | None:
        """None: it takes no part in decisions. Adds the nodes that have to be read again to `nodes`."""
        pods = self._store.pods_of(key)
        group = self._try_group(key, pods)
        before = self._orphans.pop(key, set())
        if group is None and pods:
            self._orphans[key] = {pod.node for pod in pods if pod.node}
        nodes |= before | self._orphans.get(key, set())
        return group

    def _try_group(self, key: Key, pods: list[PodRecord]) -> Group | None:
        entry = self._store.get(POD_GROUPS, *key)
        self.errors.pop(key, None)
        if entry is None or entry.value is None or (self._is_going(entry) and not pods):
            self._assumed.pop(key, None)
            return None
        try:
            return self._group(entry, pods)
        except Exception as exc:  # whatever is wrong with one object must not stop the others
            log.exception("group cannot be read", job=str(key))
            self.errors[key] = f"it cannot be read: {exc}"
            return None

    def _group(self, entry: Entry, pods: list[PodRecord]) -> Group | None:
        status = self._applier.assumed_status(POD_GROUPS, entry.key) or entry.status
        over = conditions.is_true(status.get("conditions") or (), GroupCondition.FINISHED)
        if over and all(pod.finished or pod.gated for pod in pods):
            return None  # it holds nothing any more
        job = self._store.get(DL_JOBS, *entry.key)
        if job is not None and job.uid != entry.owner:
            job = None
        group = intake.read_group(
            entry.value,
            status,
            pods,
            self._classes,
            pods_expected=job is not None,
            assumed=self._assumed.get(entry.key) or {},
            **_of_job(job),
        )
        going = self._is_going(entry) or (job is not None and job.deleting)
        return replace(group, suspend=group.suspend or going)

    def _is_going(self, entry: Entry) -> bool:
        return entry.deleting or self._store.is_going(entry.namespace)

    def _read_node(self, name: str) -> Node | None:
        entry = self._store.get(NODES, "", name)
        if entry is None or entry.value is None:
            return None
        others = list(self._store.others_on(name))
        for key in self._orphans:
            others += [p for p in self._store.pods_of(key) if p.node == name and not p.finished]
        topology = self._store.get(NODE_TOPOLOGIES, "", name)
        zones = topology.value.zones if topology is not None and topology.value is not None else ()
        return intake.read_node(entry.value, others, zones)


def _of_job(job: Entry | None) -> dict[str, Any]:
    """What a group has from its job: its place in the queue and its expected end."""
    if job is None:
        return {}
    end = job.status.get("estimatedCompletion")
    return {
        "created": parse_time(job.created) if job.created else None,
        "expected_end": parse_time(end) if end else None,
    }


def _capacity(nodes: Iterable[Node]) -> dict[str, int]:
    total: dict[str, int] = {}
    for node in nodes:
        if node.ready and not node.unschedulable:
            for name, value in node.allocatable.items():
                total[name] = total.get(name, 0) + value
    return total


def _queue(entry: Entry) -> Queue:
    if isinstance(entry.value, TenantQueue):
        return intake.read_queue(entry.value)
    return intake.broken_queue(entry.name, entry.error)
