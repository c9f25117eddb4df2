"""A role's pod template: what of it is checked before pods are made of it. The rest is the API server's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dl2.api.base import DnsLabel, LabelKey, Problem, Problems, Quantity, child, quantity_problems
from dl2.api.errors import first_problem
from dl2.api.selectors import Labels

MAX_BYTES = 128 * 1024  # it is copied into every pod

Line = Annotated[str, Field(max_length=65536)]
Lines = Annotated[list[Line], Field(max_length=512)]
Quantities = Annotated[dict[LabelKey, Quantity], Field(max_length=16)]


class TemplateMetadata(TypedDict):
    labels: NotRequired[Labels]
    annotations: NotRequired[Annotated[dict[str, Line], Field(max_length=64)]]


class Variable(TypedDict):
    name: Annotated[str, Field(min_length=1, max_length=1024)]
    value: NotRequired[Line]


class Resources(TypedDict):
    requests: NotRequired[Quantities]
    limits: NotRequired[Quantities]


class Container(TypedDict):
    name: DnsLabel
    image: Annotated[str, Field(min_length=1, max_length=1024)]
    command: NotRequired[Lines]
    args: NotRequired[Lines]
    env: NotRequired[Annotated[list[Variable], Field(max_length=512)]]
    resources: NotRequired[Resources]


class PodSpec(TypedDict):
    restartPolicy: NotRequired[Literal["Never"]]
    nodeSelector: NotRequired[Labels]
    initContainers: NotRequired[Annotated[list[Container], Field(max_length=16)]]
    containers: Annotated[list[Container], Field(min_length=1, max_length=16)]


class PodTemplate(TypedDict):
    metadata: NotRequired[TemplateMetadata]
    spec: PodSpec


_TEMPLATE = TypeAdapter(PodTemplate)


def template_problems(field: str, template: dict[str, Any]) -> Problems:
    """`template` as it was written: what is not described above is kept, unread."""
    try:
        checked = _TEMPLATE.validate_python(template, strict=True)
    except ValidationError as error:
        yield first_problem(error, field)
        return
    for kind in ("initContainers", "containers"):
        where = f"{field}.spec.{kind}"
        containers: Iterable[Container] = checked["spec"].get(kind, ())  # type: ignore[assignment]
        yield from _duplicates(where, containers)
        for index, container in enumerate(containers):
            yield from _duplicates(f"{where}[{index}].env", container.get("env", ()))
            resources: Mapping[str, Any] = container.get("resources", {})
            for part in ("requests", "limits"):
                yield from quantity_problems(f"{where}[{index}].resources.{part}", resources.get(part, {}))
    yield from _size_problems(field, template)


def _size_problems(field: str, template: dict[str, Any]) -> Problems:
    try:
        size = len(json.dumps(template, default=str))
    except (TypeError, ValueError, RecursionError):  # YAML can say what JSON cannot: other keys, circles
        yield Problem(field, "cannot be written as JSON", "use text as keys, and no anchor within itself")
        return
    if size > MAX_BYTES:
        yield Problem(
            field,
            f"is {size // 1024} KiB long, and is copied into every pod",
            f"keep it under {MAX_BYTES // 1024} KiB: move data to a ConfigMap or a volume",
        )


def _duplicates(field: str, named: Iterable[Any]) -> Problems:
    seen: set[str] = set()
    for index, item in enumerate(named):
        if item["name"] in seen:
            yield Problem(
                child(child(field, index), "name"), f'"{item["name"]}" is there twice', "keep one of them"
            )
        seen.add(item["name"])
