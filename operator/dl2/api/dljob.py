"""DLJob: one training job of workers and parameter servers whose numbers may change while it runs."""

# ruff: noqa: RUF012 - pydantic copies mutable defaults

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dl2.api.base import (
    Count,
    DnsLabel,
    LabelValue,
    Metadata,
    Model,
    Name,
    Positive,
    PositiveSeconds,
    Problem,
    Problems,
    Seconds,
    Status,
    Tally,
    Text,
    Time,
    Topology,
    Word,
    topology_problems,
)
from dl2.api.podtemplate import template_problems

MAX_NAME = 49  # `<job>-coordinator-0` is a host name of at most 63 characters


class Role(Model):
    """Workers or servers: how many, and what a pod of them is. `template` is a raw PodTemplateSpec."""

    min: Positive = 1
    max: Positive | None = None
    initial: Positive | None = None
    replicas: Count = 0
    template: dict[str, Any]  # checked as a podtemplate.PodTemplate

    @property
    def wanted(self) -> int | None:
        """The number asked for by `replicas` (kubectl scale), or None: the scaling policy decides."""
        return self.replicas or None

    @property
    def start(self) -> int:
        """How many to start with."""
        return self.replicas or self.initial or self.min

    @property
    def maximum(self) -> int:
        """The most there may be; without `max` the job does not grow by itself."""
        return max(self.min, self.start) if self.max is None else self.max


class Training(Model):
    epochs: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    steps_per_epoch: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None


class Scaling(Model):
    mode: Literal["Auto", "Fixed"] = "Auto"
    cooldown_seconds: Seconds = 60


class RunPolicy(Model):
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    active_deadline_seconds: PositiveSeconds | None = None
    ttl_seconds_after_finished: Seconds | None = None
    clean_pod_policy: Literal["None", "Running", "All"] = "Running"


class DLJobSpec(Model):
    queue: Name | None = None
    priority_class_name: Name | None = None
    suspend: bool = False
    framework: DnsLabel = "mxnet"
    runtime: Literal["elastic", "static"] = "elastic"
    model: LabelValue | None = None
    training: Training = Training()
    workers: Role
    servers: Role | None = None
    scaling: Scaling = Scaling()
    topology: Topology | None = None
    run_policy: RunPolicy = RunPolicy()


class RoleStatus(Model):
    desired: Count = 0
    ready: Count = 0


class Progress(Model):
    """`step` counts from the start of training, `fraction` is 0..1 of the declared or estimated work."""

    epoch: Tally = 0
    step: Tally = 0
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    steps_per_second: Annotated[float, Field(ge=0)] | None = None
    updated_at: Time | None = None
    metrics: Annotated[dict[str, float], Field(max_length=32)] = {}


class Shape(Model):
    workers: Count = 0
    servers: Count = 0


class LastScaling(Model):
    time: Time
    from_: Annotated[Shape, Field(alias="from")]
    to: Shape
    policy: Word = ""
    reason: Text = ""
    pause_milliseconds: Tally | None = None


class Printed(Model):
    """What `kubectl get` shows of the fields beside it; nothing reads it."""

    workers: Word = ""
    servers: Word = ""
    progress: Word = ""
    speed: Word = ""


class DLJobStatus(Status):
    queue: Word = ""
    state: Word = ""
    reason: Word = ""
    restarts: Tally = 0
    attempt: Tally = 0
    failed_pods: Annotated[list[Word], Field(max_length=1024)] = []
    workers: RoleStatus = RoleStatus()
    servers: RoleStatus = RoleStatus()
    progress: Progress | None = None
    estimated_completion: Time | None = None
    queue_position: Tally | None = None
    estimated_start: Time | None = None
    start_time: Time | None = None
    completion_time: Time | None = None
    last_scaling: LastScaling | None = None
    label_selector: Annotated[str, Field(max_length=1024)] = ""
    printed: Printed = Printed()


class DLJob(Model):
    metadata: Metadata
    spec: DLJobSpec
    status: DLJobStatus = DLJobStatus()

    @property
    def queue(self) -> str:
        """The queue it is charged to: the one named, else the one named like its namespace."""
        return self.spec.queue or self.metadata.namespace

    def problems(self) -> Problems:
        """What the schema alone cannot tell; the server holds the same rules in CEL."""
        name, spec = self.metadata.name, self.spec
        if len(name) > MAX_NAME or not name[:1].isalpha() or "." in name:
            yield Problem(
                "metadata.name",
                f'"{name[:MAX_NAME]}" cannot name a Service and the host names of its pods',
                f"use at most {MAX_NAME} lower-case letters, digits and '-', beginning with a letter",
            )
        yield from _role_problems("spec.workers", spec.workers)
        if spec.servers:
            yield from _role_problems("spec.servers", spec.servers)
        elif spec.framework == "mxnet":
            yield Problem("spec.servers", "is missing", "MXNet trains with parameter servers: add servers")
        yield from topology_problems("spec.topology", spec.topology)


def printed(workers: RoleStatus, servers: RoleStatus, progress: Progress | None) -> dict[str, str]:
    """`status.printed` from the fields it repeats: "2/4", "1/1", "42%", "12.5/s"."""
    columns = {
        "workers": f"{workers.ready}/{workers.desired}",
        "servers": f"{servers.ready}/{servers.desired}",
    }
    if progress and progress.fraction is not None:
        columns["progress"] = f"{int(progress.fraction * 100)}%"
    if progress and progress.steps_per_second is not None:
        columns["speed"] = f"{progress.steps_per_second:.3g}/s"
    return columns


def _role_problems(field: str, role: Role) -> Problems:
    if role.max is not None and role.min > role.max:
        yield Problem(f"{field}.min", f"{role.min} is above max {role.max}", "lower min or raise max")
        return
    for name, value in (("initial", role.initial), ("replicas", role.wanted)):
        if value is not None and not role.min <= value <= (role.max or value):
            upper = role.max or "unbounded"
            yield Problem(
                f"{field}.{name}",
                f"{value} is outside of min {role.min} and max {upper}",
                "choose a number between them",
            )
    yield from template_problems(f"{field}.template", role.template)
