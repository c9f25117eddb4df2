"""What the typed custom resources share: metadata, bounded field types, and reports of wrong objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from dl2.api.conditions import format_time, parse_time
from dl2.scheduling.quantities import QuantityError, parse_quantity

MAX_COUNT: Final = 10_000  # pods of one role
MAX_WEIGHT: Final = 1_000_000
MAX_SECONDS: Final = 31_536_000  # a year: longer limits are typing errors

LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
NAME_PATTERN: Final = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
VALUE_PATTERN: Final = r"^([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?$"
KEY_PATTERN: Final = r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$"
POLICY_PATTERN: Final = r"^[!-~]+$"
REASON_PATTERN: Final = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"

# What a value that misses a pattern should look like.
PATTERNS: Final = {
    LABEL_PATTERN: "use lower-case letters, digits and '-'",
    NAME_PATTERN: "use lower-case letters, digits, '-' and '.'",
    VALUE_PATTERN: "use letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    KEY_PATTERN: "write a name such as cpu or nvidia.com/gpu",
    REASON_PATTERN: "write one CamelCase word",
    POLICY_PATTERN: "write the name of a policy or the path of a checkpoint, without spaces",
}


class Problem(NamedTuple):
    """One thing wrong with an object: where, what, and how to mend it."""

    field: str
    problem: str
    mend: str


Problems = Iterator[Problem]


class InvalidObject(ValueError):
    """An object that breaks the rules of its kind; as text it names object, field, problem and mend."""

    def __init__(self, kind: str, namespace: str, name: str, field: str, problem: str, mend: str) -> None:
        self.kind, self.namespace, self.name = kind, namespace, name
        self.field, self.problem, self.mend = field, problem, mend
        where = f"{namespace}/{name}" if namespace else name
        super().__init__(f"{kind} {where}: {field}: {problem}; {mend}")


class Model(BaseModel):
    """camelCase outside, snake_case inside; fields of a newer version are ignored when read."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="ignore",
        frozen=True,
        strict=True,
    )


def _time(value: Any) -> Any:
    if isinstance(value, datetime):  # YAML reads an unquoted time as one, in UTC
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value if value is None or isinstance(value, float) else parse_time(value)


_WRITTEN_TIME = {"type": "string", "format": "date-time"}
Time = Annotated[
    float,
    BeforeValidator(_time),
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema(_WRITTEN_TIME),
]
"""Seconds since the epoch; RFC 3339 in manifests."""

Quantity = int | Annotated[str, Field(max_length=32)]
"""As written; `dl2.scheduling.quantities` reads it."""

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS)]
PositiveSeconds = Annotated[int, Field(ge=1, le=MAX_SECONDS)]
Tally = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=NAME_PATTERN)]
DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=LABEL_PATTERN)]
NodeName = Annotated[str, Field(min_length=1, max_length=253)]
LabelValue = Annotated[str, Field(max_length=63, pattern=VALUE_PATTERN)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=KEY_PATTERN)]
Text = Annotated[str, Field(max_length=32768)]
Word = Annotated[str, Field(max_length=256)]


class OwnerReference(Model):
    api_version: str
    kind: str
    name: str
    uid: str = ""
    controller: bool = False


class Metadata(Model):
    name: Name
    namespace: Annotated[str, Field(max_length=63)] = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []


class Condition(TypedDict):
    """A metav1.Condition. A dict, so that `dl2.api.conditions` works on what was read as it is."""

    type: Annotated[str, Field(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    observedGeneration: NotRequired[Tally]
    lastTransitionTime: Annotated[str, WithJsonSchema(_WRITTEN_TIME)]
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=REASON_PATTERN)]
    message: Text


Conditions = Annotated[list[Condition], Field(max_length=16)]


class Status(Model):
    """What the status of every kind has."""

    observed_generation: Tally = 0
    conditions: Conditions = []


class Topology(Model):
    """Node label whose domains the pods of a group must, or should, share."""

    required: LabelKey | None = None
    preferred: LabelKey | None = None


def child(field: str, key: str | int) -> str:
    """The path of `key` under `field`: `spec.members[0].requests[nvidia.com/gpu]`."""
    plain = isinstance(key, str) and key.isidentifier()
    return (f"{field}.{key}" if plain else f"{field}[{key}]").removeprefix(".")


def topology_problems(field: str, topology: Topology | None) -> Problems:
    if topology is None:
        return
    if topology.required is not None and topology.preferred is not None:
        yield Problem(field, "has both required and preferred", "keep one of them")
    if topology.required is None and topology.preferred is None:
        yield Problem(
            field, "has neither required nor preferred", "name a node label in one of them, or remove it"
        )


def quantity_problems(field: str, quantities: Mapping[str, Quantity]) -> Problems:
    """Names, grammar and sign of a resource list; devices are counted in whole numbers."""
    for resource, value in quantities.items():
        yield from one_quantity_problems(child(field, resource), resource, value)


def one_quantity_problems(field: str, resource: str, value: Quantity) -> Problems:
    try:
        parse_quantity(value, resource)
    except QuantityError as error:
        problem, _, mend = str(error).removeprefix(f"{resource}: ").partition("; ")
        yield Problem(field, problem, mend or 'write a quantity such as "4", "500m" or "16Gi"')
