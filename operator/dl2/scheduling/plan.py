"""What one pass of `decide` answers: for every group one decision, for every queue its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dl2.scheduling.snapshot import EMPTY, Domain, Key


class Action(StrEnum):
    ADMIT = "Admit"
    RESIZE = "Resize"
    EVICT = "Evict"
    WAIT = "Wait"
    KEEP = "Keep"


class Reason(StrEnum):
    """Why a group waits or was evicted. Stable: people and alerts match on them."""

    NONE = ""
    WAITING_FOR_QUOTA = "WaitingForQuota"
    EXCEEDS_MAX = "ExceedsMax"
    NO_FITTING_NODES = "NoFittingNodes"
    TOPOLOGY_UNSATISFIED = "TopologyUnsatisfied"
    WAITING_FOR_PREEMPTION = "WaitingForPreemption"
    RESERVED = "Reserved"
    QUEUE_STOPPED = "QueueStopped"
    QUEUE_NOT_FOUND = "QueueNotFound"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    SUSPENDED = "Suspended"
    BACKING_OFF = "BackingOff"
    MISCONFIGURED = "Misconfigured"
    PREEMPTED = "Preempted"
    RECLAIMED = "Reclaimed"
    PODS_READY_TIMEOUT = "PodsReadyTimeout"


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """`count` pods of a member, where they are meant to go, and the domain to pin them to (None: any)."""

    count: int
    nodes: Mapping[str, int] = field(default_factory=lambda: EMPTY)
    domain: Domain | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    key: Key
    action: Action
    reason: Reason = Reason.NONE
    message: str = ""
    position: int | None = None  # 1 = next in its queue; None for groups that do not wait
    members: Mapping[str, MemberPlan] = field(default_factory=lambda: EMPTY)  # for Admit, Resize and Keep
    estimated_start: float | None = None
    estimate_certain: bool = False  # every group it waits for has said when it ends
    requeue_at: float | None = None  # for Evict: not before then
    passed_over: bool = (
        False  # this plan admits a later group of its queue (starts `Group.passed_over_since`)
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """One resource of one queue, in smallest units."""

    used: int = 0
    share: int = 0
    borrowed: int = 0
    lent: int = 0


@dataclass(frozen=True, slots=True)
class QueueState:
    usage: Mapping[str, Usage] = field(default_factory=lambda: EMPTY)
    pending: int = 0
    admitted: int = 0
    overcommitted: str = ""  # why its guarantees shrink, or ""
    error: str = ""  # why the queue is not active, or ""


@dataclass(frozen=True, slots=True)
class Plan:
    """`decisions` may be made only when somebody looks at them; `actions` are those that change something."""

    decisions: Sequence[Decision] = ()  # one per unfinished group, ordered by key
    actions: tuple[Decision, ...] = ()  # Admit, Resize and Evict, ordered by key
    queues: Mapping[str, QueueState] = field(default_factory=lambda: EMPTY)
    wake_at: float | None = None  # when time alone may change the plan (back-off, ready time-out)
