"""TenantQueue: one node of the tree that the cluster's quota is shared along."""

# ruff: noqa: RUF012 - pydantic copies mutable defaults

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dl2.api.base import (
    MAX_WEIGHT,
    LabelKey,
    Metadata,
    Model,
    Name,
    Problem,
    Problems,
    Quantity,
    Status,
    Tally,
    Word,
    child,
    one_quantity_problems,
)
from dl2.api.selectors import LabelSelector, selector_problems
from dl2.scheduling.quantities import parse_quantity


class ResourceLimits(Model):
    """One resource of a queue: what it is guaranteed, may reach, and lends."""

    min: Quantity = 0
    max: Quantity | None = None
    lend: Quantity | None = None


class QueuePreemption(Model):
    within_queue: Literal["Never", "LowerPriority"] = "LowerPriority"
    reclaim: Literal["Never", "LowerPriority", "Any"] = "Any"


class TenantQueueSpec(Model):
    parent: Name | None = None
    weight: Annotated[int, Field(ge=0, le=MAX_WEIGHT)] = 1
    resources: Annotated[dict[LabelKey, ResourceLimits], Field(max_length=16)] = {}
    namespace_selector: LabelSelector | None = None
    strategy: Literal["BestEffortFIFO", "StrictFIFO"] = "BestEffortFIFO"
    preemption: QueuePreemption = QueuePreemption()
    stop: Literal["None", "Hold", "Drain"] = "None"


class ResourceUsage(Model):
    """Quantities as `dl2.scheduling.quantities` formats them."""

    used: Quantity = "0"
    share: Quantity = "0"
    borrowed: Quantity = "0"
    lent: Quantity = "0"


class TenantQueueStatus(Status):
    pending: Tally = 0
    admitted: Tally = 0
    dominant: Word = ""
    resources: Annotated[dict[str, ResourceUsage], Field(max_length=64)] = {}


class TenantQueue(Model):
    metadata: Metadata
    spec: TenantQueueSpec
    status: TenantQueueStatus = TenantQueueStatus()

    def problems(self) -> Problems:
        """What the schema alone cannot tell; the server holds the same rules in CEL."""
        spec = self.spec
        if spec.parent == self.metadata.name:
            yield Problem("spec.parent", "is the queue itself", "name another queue, or remove parent")
        for resource, limits in spec.resources.items():
            yield from _limits_problems(child("spec.resources", resource), resource, limits)
        yield from selector_problems("spec.namespaceSelector", spec.namespace_selector)


def _limits_problems(field: str, resource: str, limits: ResourceLimits) -> Problems:
    unreadable = False
    for name in ("min", "max", "lend"):
        value = getattr(limits, name)
        if value is not None:
            for problem in one_quantity_problems(f"{field}.{name}", resource, value):
                unreadable = True
                yield problem
    if unreadable or limits.max is None:
        return
    if parse_quantity(limits.min, resource) > parse_quantity(limits.max, resource):
        yield Problem(f"{field}.min", f"{limits.min} is above max {limits.max}", "lower min or raise max")
