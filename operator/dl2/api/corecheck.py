"""What is read of Kubernetes' own objects, checked where no API server has done so: manifests in files.

`dl2.api.core` reads objects that an API server has let in; a file may say anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dl2.api.base import InvalidObject, Quantity
from dl2.api.errors import first_problem
from dl2.scheduling.quantities import QuantityError, parse_quantity


def _read(quantities: dict[str, Quantity]) -> dict[str, Quantity]:
    for resource, value in quantities.items():
        try:
            parse_quantity(value, resource)
        except QuantityError as error:
            raise ValueError(str(error)) from None
    return quantities


_Quantities = Annotated[dict[str, Quantity], AfterValidator(_read)]
_Texts = dict[str, str]


class _Condition(TypedDict):
    type: str
    status: Literal["True", "False", "Unknown"]


class _Taint(TypedDict):
    key: str
    value: NotRequired[str | None]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class _Metadata(TypedDict):
    labels: NotRequired[_Texts | None]
    annotations: NotRequired[_Texts | None]


class _NodeSpec(TypedDict):
    unschedulable: NotRequired[bool | None]
    taints: NotRequired[list[_Taint] | None]


class _NodeStatus(TypedDict):
    allocatable: NotRequired[_Quantities | None]
    capacity: NotRequired[_Quantities | None]
    conditions: NotRequired[list[_Condition] | None]


class _Node(TypedDict):
    metadata: _Metadata
    spec: NotRequired[_NodeSpec | None]
    status: NotRequired[_NodeStatus | None]


class _Resources(TypedDict):
    requests: NotRequired[_Quantities | None]
    limits: NotRequired[_Quantities | None]


class _Container(TypedDict):
    resources: NotRequired[_Resources | None]
    restartPolicy: NotRequired[str | None]


class _Gate(TypedDict):
    name: str


class _PodSpec(TypedDict):
    nodeName: NotRequired[str | None]
    containers: NotRequired[list[_Container] | None]
    initContainers: NotRequired[list[_Container] | None]
    overhead: NotRequired[_Quantities | None]
    resources: NotRequired[_Resources | None]
    schedulingGates: NotRequired[list[_Gate] | None]
    affinity: NotRequired[dict[str, Any] | None]


class _ContainerStatus(TypedDict):
    name: NotRequired[str]
    state: NotRequired[dict[str, dict[str, Any] | None] | None]
    allocatedResources: NotRequired[_Quantities | None]
    resources: NotRequired[_Resources | None]


class _PodStatus(TypedDict):
    phase: NotRequired[str | None]
    qosClass: NotRequired[str | None]
    conditions: NotRequired[list[_Condition] | None]
    containerStatuses: NotRequired[list[_ContainerStatus] | None]
    initContainerStatuses: NotRequired[list[_ContainerStatus] | None]
    allocatedResources: NotRequired[_Quantities | None]
    resources: NotRequired[_Resources | None]


class _Pod(TypedDict):
    metadata: _Metadata
    spec: NotRequired[_PodSpec | None]
    status: NotRequired[_PodStatus | None]


class _PriorityClass(TypedDict):
    value: int
    globalDefault: NotRequired[bool | None]


class _Namespace(TypedDict):
    metadata: _Metadata


class _ZoneResource(TypedDict):
    name: str
    available: Quantity


class _Zone(TypedDict):
    type: NotRequired[str]
    resources: NotRequired[list[_ZoneResource] | None]


class _NodeTopology(TypedDict):
    zones: NotRequired[list[_Zone] | None]


_CHECKS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "Node": TypeAdapter(_Node),
    "Pod": TypeAdapter(_Pod),
    "PriorityClass": TypeAdapter(_PriorityClass),
    "Namespace": TypeAdapter(_Namespace),
    "NodeResourceTopology": TypeAdapter(_NodeTopology),
}


def check(raw: Mapping[str, Any]) -> None:
    """Raises InvalidObject for the first thing of a core object that cannot be read; other kinds pass."""
    adapter = _CHECKS.get(str(raw.get("kind")))
    if adapter is None:
        return
    try:
        adapter.validate_python(dict(raw), strict=True)
    except ValidationError as error:
        metadata = raw["metadata"]
        namespace = str(metadata.get("namespace") or "default") if raw["kind"] == "Pod" else ""
        raise InvalidObject(raw["kind"], namespace, metadata["name"], *first_problem(error)) from None
