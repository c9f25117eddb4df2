"""Selectors, affinity and tolerations in Kubernetes' own shape, as checked dicts.

They stay dicts because they are handed on: to pods as they are, and to `dl2.api.core` for decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dl2.api.base import LabelKey, LabelValue, NodeName, Problem, Problems
from dl2.api.errors import first_problem

Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]


class SelectorRequirement(TypedDict):
    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: NotRequired[Annotated[list[LabelValue], Field(max_length=64)]]


class LabelSelector(TypedDict):
    matchLabels: NotRequired[Labels]
    matchExpressions: NotRequired[Annotated[list[SelectorRequirement], Field(max_length=16)]]


class NodeRequirement(TypedDict):
    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: NotRequired[Annotated[list[LabelValue], Field(max_length=64)]]


class FieldRequirement(TypedDict):
    key: Literal["metadata.name"]
    operator: Literal["In", "NotIn"]
    values: Annotated[list[NodeName], Field(min_length=1, max_length=64)]


class NodeTerm(TypedDict):
    matchExpressions: NotRequired[Annotated[list[NodeRequirement], Field(max_length=16)]]
    matchFields: NotRequired[Annotated[list[FieldRequirement], Field(max_length=16)]]


class RequiredNodes(TypedDict):
    nodeSelectorTerms: Annotated[list[NodeTerm], Field(min_length=1, max_length=16)]


class NodeAffinity(TypedDict):
    requiredDuringSchedulingIgnoredDuringExecution: NotRequired[RequiredNodes]


class Affinity(TypedDict):
    nodeAffinity: NotRequired[NodeAffinity]


class Toleration(TypedDict):
    key: NotRequired[Annotated[str, Field(max_length=317)]]
    operator: NotRequired[Literal["Exists", "Equal"]]
    value: NotRequired[LabelValue]
    effect: NotRequired[Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]]
    tolerationSeconds: NotRequired[int]


_AFFINITY = TypeAdapter(Affinity)


def selector_problems(field: str, selector: LabelSelector | None) -> Problems:
    if selector:
        yield from _requirement_problems(f"{field}.matchExpressions", selector.get("matchExpressions", ()))


def affinity_problems(field: str, affinity: dict[str, Any] | None) -> Problems:
    """`affinity` as it was written: what else it may say is kept for kube-scheduler, unread."""
    if not affinity:
        return
    try:
        checked = _AFFINITY.validate_python(affinity, strict=True)
    except ValidationError as error:
        yield first_problem(error, field)
        return
    required = checked.get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return
    path = f"{field}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
    for index, term in enumerate(required["nodeSelectorTerms"]):
        yield from _requirement_problems(
            f"{path}[{index}].matchExpressions", term.get("matchExpressions", ())
        )


def toleration_problems(field: str, tolerations: Iterable[Toleration]) -> Problems:
    for index, toleration in enumerate(tolerations):
        exists = toleration.get("operator", "Equal") == "Exists"
        if exists and toleration.get("value"):
            yield Problem(
                f"{field}[{index}].value", "is set though operator is Exists", "remove value, or use Equal"
            )
        if not exists and not toleration.get("key"):
            yield Problem(
                f"{field}[{index}].key", "is missing", "name a taint, or use operator Exists for every taint"
            )


def _requirement_problems(field: str, requirements: Iterable[Mapping[str, Any]]) -> Problems:
    for index, requirement in enumerate(requirements):
        operator, values = requirement["operator"], requirement.get("values") or []
        where = f"{field}[{index}].values"
        if operator in ("In", "NotIn") and not values:
            yield Problem(
                where, f"is empty though operator is {operator}", "list at least one value, or use Exists"
            )
        if operator in ("Exists", "DoesNotExist") and values:
            yield Problem(where, f"is set though operator is {operator}", "remove values, or use In")
        if operator in ("Gt", "Lt") and not (len(values) == 1 and _is_integer(values[0])):
            yield Problem(
                where, f"is no single integer though operator is {operator}", "list exactly one integer"
            )


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()
