"""The status of every TenantQueue: its figures from the plan, Active and Overcommitted. Writes nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dl2.api import conditions
from dl2.api.names import QueueCondition
from dl2.cluster.resources import TENANT_QUEUES
from dl2.cluster.store import Entry
from dl2.controller.outcome import Outcome, put_status
from dl2.scheduling.plan import Plan, QueueState, Usage
from dl2.scheduling.quantities import format_quantity

OWNED = ("observedGeneration", "pending", "admitted", "dominant", "resources", "conditions")


def reconcile(entry: Entry, plan: Plan, totals: Mapping[str, int], now: float) -> Outcome:
    """`totals`: what percentages are of, the cluster's capacity."""
    outcome = Outcome()
    state = plan.queues.get(entry.name)
    if state is not None or entry.error:
        put_status(outcome, TENANT_QUEUES, entry, _status(entry, state or QueueState(), totals, now), OWNED)
    return outcome


def _status(entry: Entry, state: QueueState, totals: Mapping[str, int], now: float) -> dict[str, Any]:
    error = entry.error or state.error
    items = conditions.set_condition(
        entry.status.get("conditions") or (), QueueCondition.ACTIVE, not error,
        "Misconfigured" if error else "Ready", error or "the queue admits work", entry.generation, now,
    )  # fmt: skip
    items = conditions.set_condition(
        items, QueueCondition.OVERCOMMITTED, bool(state.overcommitted),
        "GuaranteesExceedParent" if state.overcommitted else "GuaranteesFit",
        state.overcommitted or "the guarantees below it fit", entry.generation, now,
    )  # fmt: skip
    return {
        "observedGeneration": entry.generation,
        "pending": state.pending,
        "admitted": state.admitted,
        "dominant": _dominant(state, totals),
        "resources": {name: _figures(name, usage) for name, usage in sorted(state.usage.items())},
        "conditions": items,
    }


def _figures(resource: str, usage: Usage) -> dict[str, str]:
    return {
        figure: format_quantity(getattr(usage, figure), resource)
        for figure in ("used", "share", "borrowed", "lent")
    }


def _dominant(state: QueueState, totals: Mapping[str, int]) -> str:
    """`used/share` in percent of the cluster, of the resource of which the queue uses most."""
    known = {name: usage for name, usage in state.usage.items() if totals.get(name)}
    if not known:
        return ""
    name = max(known, key=lambda n: (known[n].used / totals[n], known[n].share / totals[n], n))
    return f"{100 * known[name].used // totals[name]}%/{100 * known[name].share // totals[name]}% {name}"
