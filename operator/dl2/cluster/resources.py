"""The kinds the operator reads and writes, and where they live in the API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from dl2.api import core, names, parse


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object. `read` turns the API's JSON into the record that the store keeps."""

    kind: str
    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    read: Callable[[dict[str, Any]], Any] = dict

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


_specs: dict[tuple[str, bytes], Any] = {}  # as read, by kind and how they were printed
_MOST_SPECS = 4096


def _wish(raw: dict[str, Any]) -> Any:
    """What somebody asks for. The store keeps the status beside it, as the API server printed it.

    Thousands of objects ask for the same: they share one spec, which nobody can change.
    """
    wish = parse({key: value for key, value in raw.items() if key != "status"})
    if len(_specs) >= _MOST_SPECS:
        _specs.clear()
    printed = raw["kind"], orjson.dumps(raw.get("spec"))
    return wish.model_copy(update={"spec": _specs.setdefault(printed, wish.spec)})


def _custom(kind: str, plural: str, namespaced: bool = True) -> Resource:
    return Resource(kind, plural, names.GROUP, names.VERSION, namespaced, _wish)


TENANT_QUEUES = _custom("TenantQueue", "tenantqueues", namespaced=False)
POD_GROUPS = _custom("PodGroup", "podgroups")
DL_JOBS = _custom("DLJob", "dljobs")
SCALING_POLICIES = _custom("ScalingPolicy", "scalingpolicies", namespaced=False)
PODS = Resource("Pod", "pods", read=core.parse_pod)
NODES = Resource("Node", "nodes", namespaced=False, read=core.parse_node)
NAMESPACES = Resource("Namespace", "namespaces", namespaced=False, read=core.parse_namespace)
PRIORITY_CLASSES = Resource(
    "PriorityClass", "priorityclasses", "scheduling.k8s.io", namespaced=False, read=core.parse_priority_class
)
SERVICES = Resource("Service", "services", read=core.parse_service)
# Kubernetes' own gangs. Its kind is ours, too; in logs and metrics it goes by its full name.
NATIVE_POD_GROUPS = Resource("PodGroup.scheduling.k8s.io", "podgroups", "scheduling.k8s.io", "v1beta1")
SECRETS = Resource("Secret", "secrets")  # made, never read
EVENTS = Resource("Event", "events", "events.k8s.io")

# Of another project, served where that is installed. Listed, never watched: it changes with every pod that starts, and
# where a zone is free is a preference only.
NODE_TOPOLOGIES = Resource(
    "NodeResourceTopology",
    "noderesourcetopologies",
    "topology.node.k8s.io",
    "v1alpha2",
    False,
    core.parse_node_topology,
)

WATCHED = (
    TENANT_QUEUES,
    POD_GROUPS,
    DL_JOBS,
    SCALING_POLICIES,
    PODS,
    NODES,
    NAMESPACES,
    PRIORITY_CLASSES,
    SERVICES,
)
OPTIONAL = (NODE_TOPOLOGIES,)
