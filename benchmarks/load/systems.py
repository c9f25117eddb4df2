"""What the groups of the load are to each system that admits them, on the API server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from dl2.api import conditions, names
from dl2.scheduling.quantities import parse_quantity
from load.manifests import manifest

TREES, QUEUES = 5, 6  # queues of each tree
MIN_CPUS, MAX_CPUS = 20, 120  # of each queue; a tree has the sum of its queues' min
CAPACITY = TREES * QUEUES * MIN_CPUS

Raw = dict[str, Any]


@dataclass(frozen=True)
class Class:
    """Groups of one kind: `count` in every queue, one `every` seconds, each running `runtime` seconds."""

    name: str
    priority: int
    cpus: int
    count: int
    every: float
    runtime: float


CLASSES = (
    Class("large", 200, 20, 50, 1.2, 1.0),
    Class("medium", 100, 5, 100, 0.5, 0.5),
    Class("small", 50, 1, 350, 0.1, 0.2),
)


class System(Protocol):
    """One that admits groups. Its groups have conditions, and Finished is one of them."""

    api: str  # path of the API group's version
    plural: str
    queues: str  # plural of what holds quota

    def objects(self) -> Iterator[Raw]:
        """What stands in the cluster before the first group: queues and namespaces."""

    def group(self, queue: str, kind: Class, name: str) -> Raw:
        """One group, in the namespace of its queue's name."""

    def admission(self, raw: Raw) -> str:
        """Names the admission that the group has; empty: it has none."""

    def finish(self, queue: str, token: str) -> list[Raw]:
        """The JSON patch of its status when it has run; refused when the admission `token` is not that any more."""

    def used(self, raw: Raw) -> float:
        """CPUs that are used as the status of a queue has it."""

    def give_back(self, raw: Raw) -> Raw | None:
        """The merge patch of its status that an evicted group's owner owes; None where nothing is owed."""


def queues() -> Iterator[tuple[str, str]]:
    """(tree, queue) of every leaf queue; its namespace has the queue's name."""
    for tree in range(TREES):
        for queue in range(QUEUES):
            yield f"tree-{tree}", f"tree-{tree}-queue-{queue}"


def told(raw: Raw) -> list[Raw]:
    """Its conditions."""
    return (raw.get("status") or {}).get("conditions") or []


def holds(raw: Raw, kind: str) -> bool:
    return conditions.is_true(told(raw), kind)


class Dl2:
    """PodGroups without pods."""

    api, plural, queues = "/apis/dl2.dev/v1alpha1", "podgroups", "tenantqueues"

    def objects(self) -> Iterator[Raw]:
        for kind in CLASSES:
            yield {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": kind.name},
                "value": kind.priority,
            }
        total = QUEUES * MIN_CPUS
        for tree in range(TREES):
            limits = {"cpu": {"min": total, "max": total}}
            yield manifest(names.TENANT_QUEUE, f"tree-{tree}", {"resources": limits})
        for tree_name, name in queues():
            spec = {
                "parent": tree_name,
                "resources": {"cpu": {"min": MIN_CPUS, "max": MAX_CPUS}},
                "preemption": {"withinQueue": "LowerPriority", "reclaim": "Any"},
            }
            yield manifest(names.TENANT_QUEUE, name, spec)
            yield _namespace(name)

    def group(self, queue: str, kind: Class, name: str) -> Raw:
        members = [{"name": "worker", "count": 1, "requests": {"cpu": kind.cpus}}]
        return {
            "apiVersion": "dl2.dev/v1alpha1",
            "kind": "PodGroup",
            "metadata": {"name": name, "namespace": queue},
            "spec": {"queue": queue, "priorityClassName": kind.name, "members": members},
        }

    def admission(self, raw: Raw) -> str:
        return str(raw["status"].get("admittedAt")) if holds(raw, "Admitted") else ""

    def finish(self, queue: str, token: str) -> list[Raw]:
        return [
            {"op": "test", "path": "/status/admittedAt", "value": token},
            {"op": "add", "path": "/status/conditions/-", "value": _finished()},
        ]

    def used(self, raw: Raw) -> float:
        return _cpus(_at(raw, "status", "resources", "cpu", "used"))

    def give_back(self, raw: Raw) -> Raw | None:
        return None


class Kueue:
    """Workloads of no job, as in Kueue's own benchmark: whoever runs them gives an evicted one's quota back."""

    api, plural, queues = "/apis/kueue.x-k8s.io/v1beta2", "workloads", "clusterqueues"
    _version = "kueue.x-k8s.io/v1beta2"

    def objects(self) -> Iterator[Raw]:
        yield self._object("ResourceFlavor", {"name": "any"}, {})
        for cohort, name in queues():
            quota = {"name": "cpu", "nominalQuota": MIN_CPUS, "borrowingLimit": MAX_CPUS - MIN_CPUS}
            spec = {
                "cohortName": cohort,
                "namespaceSelector": {},
                "preemption": {"withinClusterQueue": "LowerPriority", "reclaimWithinCohort": "Any"},
                "resourceGroups": [
                    {"coveredResources": ["cpu"], "flavors": [{"name": "any", "resources": [quota]}]}
                ],
            }
            yield self._object("ClusterQueue", {"name": name}, spec)
            yield _namespace(name)
            yield self._object("LocalQueue", {"name": name, "namespace": name}, {"clusterQueue": name})

    def group(self, queue: str, kind: Class, name: str) -> Raw:
        container = {"name": "c", "resources": {"requests": {"cpu": str(kind.cpus)}}}
        pods = {"restartPolicy": "Never", "containers": [container]}
        spec = {
            "queueName": queue,
            "priority": kind.priority,
            "podSets": [{"name": "main", "count": 1, "template": {"spec": pods}}],
        }
        return self._object("Workload", {"name": name, "namespace": queue}, spec)

    def admission(self, raw: Raw) -> str:
        if not holds(raw, "Admitted") or holds(raw, "Evicted"):
            return ""
        admitted = conditions.get(told(raw), "Admitted")
        return str(admitted and admitted["lastTransitionTime"])

    def finish(self, queue: str, token: str) -> list[Raw]:
        return [
            {"op": "test", "path": "/status/admission/clusterQueue", "value": queue},
            {"op": "add", "path": "/status/conditions/-", "value": _finished()},
        ]

    def used(self, raw: Raw) -> float:
        (usage,) = _at(raw, "status", "flavorsUsage") or [{}]
        (cpu,) = usage.get("resources") or [{}]
        return _cpus(cpu.get("total"))

    def give_back(self, raw: Raw) -> Raw | None:
        if not (holds(raw, "Evicted") and holds(raw, "QuotaReserved")):
            return None
        lost = {"status": "False", "reason": "Pending", "message": "evicted", "lastTransitionTime": _now()}
        left = [c | lost if c["type"] in ("QuotaReserved", "Admitted") else c for c in told(raw)]
        return {
            "metadata": {"resourceVersion": raw["metadata"]["resourceVersion"]},
            "status": {"admission": None, "conditions": left},
        }

    def _object(self, kind: str, metadata: Raw, spec: Raw) -> Raw:
        return {"apiVersion": self._version, "kind": kind, "metadata": metadata, "spec": spec}


def _cpus(quantity: Any) -> float:
    return parse_quantity(quantity or "0", "cpu") / 1000


def _at(raw: Raw, *path: str) -> Any:
    """What stands at a path, or None."""
    found: Any = raw
    for key in path:
        found = (found or {}).get(key)
    return found


def _namespace(name: str) -> Raw:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _finished() -> Raw:
    return {
        "type": "Finished",
        "status": "True",
        "reason": "Completed",
        "message": "has run its time",
        "lastTransitionTime": _now(),
    }


def _now() -> str:
    return conditions.format_time(time.time())
