"""What the operator believes the cluster looks like: a UID-keyed store fed by watches, write responses and LISTs.

Three channels tell about the same object in any order, so an older resource version never replaces a newer one
(versions of one API server are comparable numbers), a deleted UID never comes back, one that a LIST did not show comes
back only by something newer than the LIST, and of two objects of one name only the younger exists.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import structlog

from dl2.api import Object
from dl2.api.core import PodRecord
from dl2.cluster.freshness import Freshness
from dl2.cluster.resources import (
    DL_JOBS,
    NAMESPACES,
    NODE_TOPOLOGIES,
    NODES,
    POD_GROUPS,
    PODS,
    SERVICES,
    Resource,
)
from dl2.scheduling.snapshot import Key

log = structlog.get_logger(__name__)
TOMBSTONE_SECONDS = 600.0
_NEVER = 1 << 63  # the version from which a deleted object exists again
_KEEP_STATUS = {"TenantQueue", "PodGroup", "DLJob", "ScalingPolicy"}


@dataclass(slots=True)
class Entry:
    """One object: its record (None when it cannot be read, then `error` says why) and its status as last seen."""

    uid: str
    namespace: str
    name: str
    version: int
    value: Any
    error: str = ""
    deleting: bool = False
    owner: str = ""  # uid of the controlling owner
    owner_name: str = ""  # its Kind/name
    generation: int = 0
    created: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.name)


class Store:
    """Single-threaded (one event loop). `changed` is set whenever a pass could come out differently."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Entry]] = defaultdict(dict)
        self._names: dict[tuple[str, str, str], str] = {}
        self._tombstones: dict[str, tuple[float, int]] = {}  # uid -> (since, up to which version it is gone)
        self._pods_of: dict[Key, dict[str, Entry]] = defaultdict(dict)
        self._others_on: dict[str, dict[str, PodRecord]] = defaultdict(dict)
        self.freshness = Freshness()
        self.changed = asyncio.Event()
        self.dirty: set[Key] = set()  # groups and jobs (one name) to look at in the next pass
        self.dirty_nodes: set[str] = set()
        self.dirty_kinds: set[str] = set()

    # -- reading ------------------------------------------------------------------------------------------------
    def all(self, resource: Resource) -> Iterable[Entry]:
        return self._kinds[resource.kind].values()

    def get(self, resource: Resource, namespace: str, name: str) -> Entry | None:
        uid = self._names.get((resource.kind, namespace, name))
        return self._kinds[resource.kind].get(uid) if uid else None

    def is_going(self, namespace: str) -> bool:
        """Is the namespace being deleted? Nothing new can start in there."""
        entry = self.get(NAMESPACES, "", namespace)
        return entry is not None and entry.deleting

    def count(self, resource: Resource) -> int:
        return len(self._kinds[resource.kind])

    def pods_of(self, key: Key) -> list[PodRecord]:
        return [entry.value for entry in self.pod_entries_of(key)]

    def pod_entries_of(self, key: Key) -> Iterable[Entry]:
        entries = self._pods_of.get(key)
        return entries.values() if entries else ()

    def groups_with_pods(self) -> Iterator[Key]:
        return (key for key, pods in self._pods_of.items() if pods)

    def others_on(self, node: str) -> Iterable[PodRecord]:
        found = self._others_on.get(node)
        return found.values() if found else ()

    # -- writing ------------------------------------------------------------------------------------------------
    def upsert(self, resource: Resource, raw: Mapping[str, Any]) -> None:
        """Take in one object as the API server printed it."""
        meta = raw["metadata"]
        uid, version = str(meta["uid"]), int(meta.get("resourceVersion") or 0)
        self.freshness.seen(resource.kind, version)
        kind = self._kinds[resource.kind]
        old = kind.get(uid)
        if self._is_gone(uid, version) or (old is not None and old.version >= version):
            return
        if old is None and not self._takes_name(resource, meta, uid, version):
            return
        entry = self._read(resource, raw, uid, version, old)
        if old is not None:
            self._unindex(resource, old)
        kind[uid] = entry
        self._names[(resource.kind, entry.namespace, entry.name)] = uid
        self._index(resource, entry)
        self._mark(resource, entry, old)

    def _takes_name(self, resource: Resource, meta: Mapping[str, Any], uid: str, version: int) -> bool:
        """A name belongs to one object at a time: the elder of two is gone, though nobody told."""
        namesake = self.get(resource, meta.get("namespace") or "", meta["name"])
        if namesake is None:
            return True
        if namesake.version > version:
            self._tombstones[uid] = time.monotonic(), _NEVER
            return False
        self.remove(resource, namesake.uid)
        return True

    def _is_gone(self, uid: str, version: int) -> bool:
        return uid in self._tombstones and version <= self._tombstones[uid][1]

    def remove(self, resource: Resource, uid: str, version: int = _NEVER) -> None:
        """Forget an object, and what is still told of it up to `version`."""
        self._tombstones[uid] = time.monotonic(), version
        old = self._kinds[resource.kind].pop(uid, None)
        if old is None:
            return
        self._names.pop((resource.kind, old.namespace, old.name), None)
        self._unindex(resource, old)
        self._mark(resource, None, old)

    def hear(self, resource: Resource, kind_of_event: str | None, raw: Mapping[str, Any]) -> None:
        """Take in one watch event; kind None: an object that the watch found by a LIST of its own."""
        version = int(raw["metadata"].get("resourceVersion") or 0)
        self.freshness.heard(resource.kind, version, relisted=kind_of_event is None)
        if kind_of_event == "DELETED":
            self.remove(resource, str(raw["metadata"]["uid"]))
        else:
            self.upsert(resource, raw)

    def keep_only(self, resource: Resource, listed: Set[str], version: int) -> int:
        """After a full LIST at `version`: forget what was not in it and is not newer. Returns how many were stale."""
        gone = [e.uid for e in self.all(resource) if e.uid not in listed and e.version <= version]
        for uid in gone:
            self.remove(resource, uid, version)
        horizon = time.monotonic() - TOMBSTONE_SECONDS
        self._tombstones = {uid: stone for uid, stone in self._tombstones.items() if stone[0] > horizon}
        return len(gone)

    def touch(self, key: Key) -> None:
        """Look at this group and job again in the next pass."""
        self.dirty.add(key)
        self.changed.set()

    def _read(
        self, resource: Resource, raw: Mapping[str, Any], uid: str, version: int, old: Entry | None
    ) -> Entry:
        meta = raw["metadata"]
        owner: Mapping[str, str] = next(
            (o for o in meta.get("ownerReferences") or () if o.get("controller")), {}
        )
        entry = Entry(
            uid=uid,
            namespace=meta.get("namespace") or "",
            name=meta["name"],
            version=version,
            value=None,
            deleting=bool(meta.get("deletionTimestamp")),
            owner=sys.intern(owner.get("uid", "")),
            owner_name=sys.intern(f"{owner['kind']}/{owner['name']}") if owner else "",
            generation=int(meta.get("generation") or 0),
            created=meta.get("creationTimestamp") or "",
            status=_shared(raw.get("status") or {}) if resource.kind in _KEEP_STATUS else {},
        )
        if old is not None and _asks_the_same(old, entry, meta):
            entry.value = old.value
            return entry
        try:
            entry.value = resource.read(dict(raw))
        except Exception as exc:  # whatever is wrong with one object must not stop the others
            entry.error = str(exc) or type(exc).__name__
            log.warning(
                "object cannot be read",
                kind=resource.kind,
                namespace=entry.namespace,
                name=entry.name,
                error=entry.error,
            )
        return entry

    def _index(self, resource: Resource, entry: Entry) -> None:
        if resource is not PODS or entry.value is None:
            return
        pod: PodRecord = entry.value
        if pod.group:
            self._pods_of[Key(pod.namespace, pod.group)][entry.uid] = entry
        elif pod.node and not pod.finished:
            self._others_on[pod.node][entry.uid] = pod

    def _unindex(self, resource: Resource, entry: Entry) -> None:
        if resource is not PODS or entry.value is None:
            return
        pod: PodRecord = entry.value
        if pod.group:
            pods = self._pods_of[Key(pod.namespace, pod.group)]
            pods.pop(entry.uid, None)
            if not pods:
                del self._pods_of[Key(pod.namespace, pod.group)]
        elif pod.node in self._others_on:
            others = self._others_on[pod.node]
            others.pop(entry.uid, None)
            if not others:
                del self._others_on[pod.node]

    def _mark(self, resource: Resource, new: Entry | None, old: Entry | None) -> None:
        """Note what a change concerns. What cannot change a decision wakes nobody."""
        if _indifferent(resource, new, old):
            return
        for entry in (new, old):
            if entry is None:
                continue
            if resource in (POD_GROUPS, DL_JOBS, SERVICES):
                self.dirty.add(entry.key)
            elif resource in (NODES, NODE_TOPOLOGIES):
                self.dirty_nodes.add(entry.name)
            elif resource is PODS:
                self._mark_pod(entry)
            else:
                self.dirty_kinds.add(resource.kind)
        if resource is NAMESPACES and new is not None and new.deleting:
            self.dirty |= {group.key for group in self.all(POD_GROUPS) if group.namespace == new.name}
        self.changed.set()

    def _mark_pod(self, entry: Entry) -> None:
        if entry.value is None:
            return
        pod: PodRecord = entry.value
        if pod.group:
            self.dirty.add(Key(entry.namespace, pod.group))
        elif pod.node:
            self.dirty_nodes.add(pod.node)


def _asks_the_same(old: Entry, new: Entry, meta: Mapping[str, Any]) -> bool:
    """Only the status has changed, which is most of what happens to objects of ours: they are not parsed again."""
    if not isinstance(old.value, Object) or not new.generation:
        return False
    before = old.value.metadata
    return (
        (old.generation, old.deleting, old.owner) == (new.generation, new.deleting, new.owner)
        and before.labels == (meta.get("labels") or {})
        and before.annotations == (meta.get("annotations") or {})
    )


def _shared(value: Any) -> Any:
    """The same JSON with its strings shared: thousands of statuses say the same words."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {sys.intern(key): _shared(item) for key, item in value.items()}
    return [_shared(item) for item in value] if isinstance(value, list) else value


def _indifferent(resource: Resource, new: Entry | None, old: Entry | None) -> bool:
    """A node's heartbeat, or news of a pod of no group that takes the same room as before."""
    if resource is PODS:
        room = _room(new)
        return bool(room == _room(old) and room != _OURS)
    if resource is NODE_TOPOLOGIES:
        return bool(_zones(new) == _zones(old))
    return resource is NODES and new is not None and old is not None and _same_node(new.value, old.value)


_OURS = "a pod of a group"


def _room(entry: Entry | None) -> Any:
    """What a pod of no group takes, and where: None while it takes nothing."""
    if entry is None or entry.value is None:
        return None
    pod: PodRecord = entry.value
    if pod.group:
        return _OURS
    return (pod.node, pod.requests) if pod.node and not pod.finished else None


def _zones(entry: Entry | None) -> Any:
    return entry.value.zones if entry is not None and entry.value is not None else ()


def _same_node(a: Any, b: Any) -> bool:
    fields = ("allocatable", "labels", "taints", "unschedulable", "ready", "error")
    return a is not None and b is not None and all(getattr(a, f) == getattr(b, f) for f in fields)
