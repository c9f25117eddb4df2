"""PodGroup: the unit of admission, a gang of pods that start together or not at all."""

# ruff: noqa: RUF012 - pydantic copies mutable defaults

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from dl2.api.base import (
    Count,
    DnsLabel,
    LabelKey,
    Metadata,
    Model,
    Name,
    Positive,
    PositiveSeconds,
    Problem,
    Problems,
    Quantity,
    Status,
    Tally,
    Time,
    Topology,
    Word,
    quantity_problems,
    topology_problems,
)
from dl2.api.selectors import Labels, Toleration, affinity_problems, toleration_problems

MAX_NAME = 63  # it is a label value on its pods


class Member(Model):
    """One role: `count` equal pods, of which `minimum` must start together."""

    name: DnsLabel
    count: Positive
    min_count: Count | None = None
    requests: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = {}
    node_selector: Labels = {}
    affinity: dict[str, Any] | None = None  # checked as a selectors.Affinity
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []

    @property
    def minimum(self) -> int:
        """`min_count`, which is `count` where it is not written down."""
        return self.count if self.min_count is None else self.min_count


class PodGroupSpec(Model):
    queue: Name | None = None
    priority_class_name: Name | None = None
    members: Annotated[list[Member], Field(min_length=1, max_length=16)]
    topology: Topology | None = None
    ready_timeout_seconds: PositiveSeconds = 300
    suspend: bool = False


class Domain(Model):
    """A topology domain: the nodes whose `label` has `value`."""

    label: Annotated[str, Field(min_length=1, max_length=317)]
    value: Annotated[str, Field(max_length=63)]


class MemberStatus(Model):
    name: Annotated[str, Field(min_length=1, max_length=63)]
    admitted: Count = 0
    ready: Count = 0
    domain: Domain | None = None


class PodGroupStatus(Status):
    queue: Word = ""
    state: Word = ""
    reason: Word = ""
    queue_position: Tally | None = None
    estimated_start: Time | None = None
    requeue_at: Time | None = None
    evictions: Tally = 0
    admitted_at: Time | None = None
    ready_at: Time | None = None
    passed_over_since: Time | None = None
    members: Annotated[list[MemberStatus], Field(max_length=16)] = []


class PodGroup(Model):
    metadata: Metadata
    spec: PodGroupSpec
    status: PodGroupStatus = PodGroupStatus()

    @property
    def queue(self) -> str:
        """The queue it is charged to: the one named, else the one named like its namespace."""
        return self.spec.queue or self.metadata.namespace

    def problems(self) -> Problems:
        """What the schema alone cannot tell; the server holds the same rules in CEL."""
        if len(self.metadata.name) > MAX_NAME:
            yield Problem(
                "metadata.name",
                f"is longer than {MAX_NAME} characters",
                "shorten it: it is a label value on its pods",
            )
        seen: set[str] = set()
        for index, member in enumerate(self.spec.members):
            field = f"spec.members[{index}]"
            if member.name in seen:
                yield Problem(
                    f"{field}.name", f'"{member.name}" is there twice', "give every member its own name"
                )
            seen.add(member.name)
            yield from _member_problems(field, member)
        if not any(member.minimum for member in self.spec.members):
            yield Problem(
                "spec.members", "asks for no pod: every minCount is 0", "raise minCount of one to 1 or more"
            )
        yield from topology_problems("spec.topology", self.spec.topology)


def _member_problems(field: str, member: Member) -> Problems:
    if member.minimum > member.count:
        yield Problem(
            f"{field}.minCount",
            f"{member.minimum} is above count {member.count}",
            "lower minCount or raise count",
        )
    yield from quantity_problems(f"{field}.requests", member.requests)
    yield from affinity_problems(f"{field}.affinity", member.affinity)
    yield from toleration_problems(f"{field}.tolerations", member.tolerations)
