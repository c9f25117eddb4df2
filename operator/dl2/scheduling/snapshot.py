"""What one pass of `decide` sees: an immutable picture of queues, groups, pods and nodes.

All quantities are integers in the resource's smallest unit (milli-CPU, bytes, counts), all times are
seconds since the epoch. Nothing here knows Kubernetes objects; `dl2.controller.intake` builds
snapshots from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

Quantities = Mapping[str, int]
EMPTY: Mapping[str, Any] = MappingProxyType({})


class Key(NamedTuple):
    """Namespace and name of a group."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Strategy(StrEnum):
    BEST_EFFORT_FIFO = "BestEffortFIFO"
    STRICT_FIFO = "StrictFIFO"


class Preemption(StrEnum):
    NEVER = "Never"
    LOWER_PRIORITY = "LowerPriority"
    ANY = "Any"


class Stop(StrEnum):
    NONE = "None"
    HOLD = "Hold"
    DRAIN = "Drain"


class CapacityMode(StrEnum):
    NODES = "Nodes"
    QUOTA = "Quota"


@dataclass(frozen=True, slots=True)
class Limits:
    """One resource of one queue: guarantee, ceiling (None: none), what of an unused guarantee is lent."""

    min: int = 0
    max: int | None = None
    lend: int | None = None


@dataclass(frozen=True, slots=True)
class Expression:
    """One requirement of a label or node selector (operator: In, NotIn, Exists, DoesNotExist, Gt, Lt)."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


Term = tuple[Expression, ...]  # all must hold


@dataclass(frozen=True, slots=True)
class Queue:
    name: str
    parent: str | None = None
    weight: int = 1
    limits: Mapping[str, Limits] = field(default_factory=lambda: EMPTY)
    min_declared: frozenset[str] = frozenset()  # resources whose min was written down (not defaulted)
    namespace_selector: Term | None = None  # None: only the namespace named like the queue; (): all
    strategy: Strategy = Strategy.BEST_EFFORT_FIFO
    within_queue: Preemption = Preemption.LOWER_PRIORITY
    reclaim: Preemption = Preemption.ANY
    stop: Stop = Stop.NONE
    created: float = 0.0
    error: str = ""  # why this queue cannot be used (bad quantity, ...); its groups wait as Misconfigured


@dataclass(frozen=True, slots=True)
class Toleration:
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True, slots=True)
class Member:
    """One role of a group: `count` equal pods, of which `min_count` must start together."""

    name: str
    count: int
    min_count: int
    requests: Quantities = field(default_factory=lambda: EMPTY)
    node_selector: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    affinity: tuple[Term, ...] = ()  # required node affinity: any of the terms (empty: no requirement)
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    label: str
    required: bool


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a group, as far as decisions need it."""

    name: str
    member: str
    uid: str = ""
    requests: Quantities = field(default_factory=lambda: EMPTY)  # as kube-scheduler counts them
    node: str | None = None  # bound to
    gated: bool = False  # still held by our scheduling gate
    ready: bool = False
    finished: bool = False  # Succeeded or Failed: holds nothing any more
    succeeded: bool = False
    terminating: bool = False  # deleted, but not gone: still holds its quota and its room
    created: float = 0.0
    guaranteed: bool = False  # QoS class Guaranteed


@dataclass(frozen=True, slots=True)
class Domain:
    """A topology domain: all nodes whose `label` has `value`."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a group was given, per member: the pods admitted and the domain they were pinned to."""

    count: int
    domain: Domain | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The unit of admission (a PodGroup)."""

    key: Key
    queue: str
    members: tuple[Member, ...]
    uid: str = ""
    priority: int = 0
    created: float = 0.0  # original creation: an evicted group keeps its place
    topology: Topology | None = None
    suspend: bool = False
    ready_timeout: float = 300.0
    admitted: Mapping[str, Admitted] | None = None  # None: not admitted
    admitted_at: float | None = None
    ready_at: float | None = None  # when every admitted pod was first ready; None: not yet
    finished: bool = False
    evictions: int = 0  # so far; the back-off grows with it
    requeue_at: float = 0.0  # backing off until then
    passed_over_since: float | None = None  # first time a later group of its queue was admitted before it
    promised: bool = False  # the last plan has others leave for it
    expected_end: float | None = None  # estimated completion of a running group
    progress_lost: float = 0.0  # seconds of work an eviction now would throw away
    resize_pause: float = 0.0  # seconds a shrink costs
    elastic: bool = True  # False: min_count == count for the life of one run
    pods: tuple[Pod, ...] = ()
    pods_expected: bool = False  # somebody makes pods for it: without any, the ready time-out counts too
    assumed: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: EMPTY)  # member -> node -> pods
    error: str = ""  # why this group cannot be decided (Misconfigured), naming field and mend


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    allocatable: Quantities
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    ready: bool = True
    used_by_others: Quantities = field(default_factory=lambda: EMPTY)  # bound pods of no group, "pods" too
    zones: tuple[Quantities, ...] = ()  # free per NUMA zone, from NodeResourceTopology where served


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that one pass may look at. Equal snapshots give equal plans, in whatever order their parts come."""

    now: float
    queues: tuple[Queue, ...] = ()
    groups: tuple[Group, ...] = ()
    nodes: tuple[Node, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: EMPTY)  # name -> labels
    capacity: CapacityMode = CapacityMode.NODES
