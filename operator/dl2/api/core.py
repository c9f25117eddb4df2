"""The few core Kubernetes objects the operator reads, cut down to what decisions and job keeping need.

A cluster may hold tens of thousands of pods; a record of slots is a tenth of the JSON tree it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dl2.api.conditions import parse_time
from dl2.api.names import (
    GATE,
    LABEL_ATTEMPT,
    LABEL_INDEX,
    LABEL_MEMBER,
    LABEL_POD_GROUP,
    RELEASED,
    STATUS_URL,
)
from dl2.api.resources import container_requests, parse_quantities, pod_requests
from dl2.scheduling.quantities import QuantityError, parse_quantity
from dl2.scheduling.snapshot import EMPTY, Expression, Quantities, Taint, Term, Toleration

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One pod. `spec` is kept only while our gate holds it: the release patch needs its affinity and gates."""

    namespace: str
    name: str
    uid: str
    resource_version: int
    created: float
    group: str | None = None
    member: str = ""
    index: int = -1
    attempt: int = 0
    node: str | None = None
    phase: str = "Pending"
    ready: bool = False
    joined: bool = False  # it is ready, or was once
    gated: bool = False
    released: bool = False  # our annotation: the operator took the gate away
    deleting: bool = False
    ip: str | None = None
    status_url: str | None = None
    requests: Quantities = field(default_factory=lambda: EMPTY)
    guaranteed: bool = False
    owner: tuple[str, str] | None = None  # kind and uid of the controlling owner
    failure: str = ""  # why it failed, for people
    unschedulable: str = ""  # what kube-scheduler says while it cannot bind it
    spec: Raw | None = None

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class NodeRecord:
    name: str
    uid: str
    resource_version: int
    allocatable: Quantities
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    unschedulable: bool
    ready: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class NodeTopologyRecord:
    """What is free in each NUMA zone of the node of this name."""

    name: str
    uid: str
    resource_version: int
    zones: tuple[Quantities, ...]


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    name: str
    uid: str
    resource_version: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PriorityClassRecord:
    name: str
    uid: str
    resource_version: int
    value: int
    is_default: bool


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    name: str
    uid: str
    resource_version: int


_SHARED_REQUESTS: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}


def _interned(requests: dict[str, int]) -> dict[str, int]:
    """Pods of one job ask for the same: keep one dict, not thousands."""
    if len(_SHARED_REQUESTS) > 10_000:
        _SHARED_REQUESTS.clear()
    return _SHARED_REQUESTS.setdefault(tuple(sorted(requests.items())), requests)


def _failure(status: Raw) -> str:
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode"):
            return f"container {container.get('name')} exited with {ended['exitCode']} ({ended.get('reason', 'Error')})"
    return str(status.get("message") or status.get("reason") or "failed")


def _was_ready(ready: Raw, status: Raw) -> bool:
    """Who became unready after its first container had started was ready in between: kubelet begins with unready."""
    changed = ready.get("lastTransitionTime")
    if ready.get("status") == "True" or not changed:
        return ready.get("status") == "True"
    states = [container.get("state") or {} for container in status.get("containerStatuses") or ()]
    began = [
        (state.get("running") or state.get("terminated") or {}).get("startedAt") for state in states if state
    ]
    times = [parse_time(at) for at in began if at]
    return bool(times) and parse_time(changed) > min(times)


def _int(text: Any, default: int) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        return default


def _controller(meta: Raw) -> tuple[str, str] | None:
    for owner in meta.get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner.get("kind")), str(owner.get("uid"))
    return None


def parse_pod(raw: Raw) -> PodRecord:
    """Raises QuantityError when a request cannot be read."""
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    gates = [gate.get("name") for gate in spec.get("schedulingGates") or ()]
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    phase = status.get("phase") or "Pending"
    scheduled = conditions.get("PodScheduled") or {}
    return PodRecord(
        namespace=meta.get("namespace") or "default",
        name=meta["name"],
        uid=meta.get("uid") or f"{meta.get('namespace')}/{meta['name']}",
        resource_version=_int(meta.get("resourceVersion"), 0),
        created=parse_time(meta["creationTimestamp"]) if meta.get("creationTimestamp") else 0.0,
        group=labels.get(LABEL_POD_GROUP),
        member=labels.get(LABEL_MEMBER) or "",
        index=_int(labels.get(LABEL_INDEX), -1),
        attempt=_int(labels.get(LABEL_ATTEMPT), 0),
        node=spec.get("nodeName") or None,
        phase=phase,
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        joined=_was_ready(conditions.get("Ready") or {}, status),
        gated=GATE in gates,
        released=RELEASED in annotations,
        deleting=bool(meta.get("deletionTimestamp")),
        ip=status.get("podIP"),
        status_url=annotations.get(STATUS_URL),
        requests=_interned(pod_requests(spec, status)),
        guaranteed=_is_guaranteed(spec, status),
        owner=_controller(meta),
        failure=_failure(status) if phase == "Failed" else "",
        unschedulable=str(scheduled.get("message") or "")
        if scheduled.get("reason") == "Unschedulable"
        else "",
        spec={"affinity": spec.get("affinity"), "schedulingGates": spec.get("schedulingGates")}
        if gates
        else None,
    )


def _is_guaranteed(spec: Raw, status: Raw) -> bool:
    """As the API server says; a manifest that no API server has seen is judged by the rule that it applies."""
    if "qosClass" in status:
        return bool(status["qosClass"] == "Guaranteed")
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    limits = [parse_quantities((c.get("resources") or {}).get("limits")) for c in containers]
    return bool(containers) and all(
        limit.get("cpu") and limit.get("memory") and container_requests(container) == limit
        for container, limit in zip(containers, limits, strict=True)
    )


def parse_node(raw: Raw) -> NodeRecord:
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    ready = any(
        c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()
    )
    error = ""
    try:
        allocatable = parse_quantities(status.get("allocatable") or status.get("capacity"))
    except QuantityError as exc:  # a node that cannot be read has no room, and says so
        allocatable, error = {}, f"Node {meta['name']}: status.allocatable: {exc}"
    return NodeRecord(
        name=meta["name"],
        uid=meta.get("uid") or meta["name"],
        resource_version=_int(meta.get("resourceVersion"), 0),
        allocatable=allocatable,
        labels=dict(meta.get("labels") or {}),
        taints=tuple(
            Taint(str(t.get("key")), str(t.get("value") or ""), str(t.get("effect")))
            for t in spec.get("taints") or ()
        ),
        unschedulable=bool(spec.get("unschedulable")),
        ready=ready or not status.get("conditions"),  # a manifest without conditions is taken as ready
        error=error,
    )


def parse_node_topology(raw: Raw) -> NodeTopologyRecord:
    """topology.node.k8s.io/v1alpha2; only zones of type Node are NUMA nodes. Raises QuantityError."""
    meta = raw["metadata"]
    zones = [zone for zone in raw.get("zones") or () if zone.get("type") == "Node"]
    return NodeTopologyRecord(
        meta["name"],
        meta.get("uid") or meta["name"],
        _int(meta.get("resourceVersion"), 0),
        tuple(
            {r["name"]: parse_quantity(r["available"], r["name"]) for r in zone.get("resources") or ()}
            for zone in zones
        ),
    )


def parse_namespace(raw: Raw) -> NamespaceRecord:
    meta = raw["metadata"]
    labels = {"kubernetes.io/metadata.name": meta["name"], **(meta.get("labels") or {})}
    return NamespaceRecord(
        meta["name"], meta.get("uid") or meta["name"], _int(meta.get("resourceVersion"), 0), labels
    )


def parse_priority_class(raw: Raw) -> PriorityClassRecord:
    meta = raw["metadata"]
    return PriorityClassRecord(
        meta["name"],
        meta.get("uid") or meta["name"],
        _int(meta.get("resourceVersion"), 0),
        _int(raw.get("value"), 0),
        bool(raw.get("globalDefault")),
    )


def parse_service(raw: Raw) -> ServiceRecord:
    meta = raw["metadata"]
    return ServiceRecord(meta["name"], meta.get("uid") or meta["name"], _int(meta.get("resourceVersion"), 0))


def parse_expressions(raw: Iterable[Raw] | None) -> Term:
    return tuple(
        Expression(str(e.get("key")), str(e.get("operator")), tuple(str(v) for v in e.get("values") or ()))
        for e in raw or ()
    )


def parse_selector(raw: Raw | None) -> Term | None:
    """A LabelSelector: None stays None (nothing chosen), {} is the empty term (everything)."""
    if raw is None:
        return None
    exact = tuple(Expression(k, "In", (str(v),)) for k, v in sorted((raw.get("matchLabels") or {}).items()))
    return exact + parse_expressions(raw.get("matchExpressions"))


def parse_required_affinity(affinity: Raw | None) -> tuple[Term, ...]:
    """requiredDuringScheduling node affinity as a choice of terms; matchFields becomes the key `metadata.name`."""
    required = ((affinity or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    return tuple(
        parse_expressions(term.get("matchExpressions")) + parse_expressions(term.get("matchFields"))
        for term in required.get("nodeSelectorTerms") or ()
    )


def parse_tolerations(raw: Iterable[Raw] | None) -> tuple[Toleration, ...]:
    return tuple(
        Toleration(
            str(t.get("key") or ""),
            str(t.get("operator") or "Equal"),
            str(t.get("value") or ""),
            str(t.get("effect") or ""),
        )
        for t in raw or ()
    )
