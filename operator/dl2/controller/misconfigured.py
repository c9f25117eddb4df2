"""An object that cannot be acted on: one condition that names field and mend, and nothing else is touched."""

from __future__ import annotations

from dl2.api import conditions
from dl2.api.names import GroupCondition, JobCondition
from dl2.cluster.resources import DL_JOBS, Resource
from dl2.cluster.store import Entry
from dl2.controller.outcome import Notice, Outcome, put_status
from dl2.scheduling.plan import Reason


def outcome(resource: Resource, entry: Entry, error: str, now: float) -> Outcome:
    """What it has goes on as it is; what it waits for, it waits for with this reason."""
    items = entry.status.get("conditions") or ()
    kind, value = _where(resource, items)
    reason = str(Reason.MISCONFIGURED)
    items = conditions.set_condition(items, kind, value, reason, error, entry.generation, now)
    state, why = (conditions.job_state if resource is DL_JOBS else conditions.group_state)(items)
    status = {
        **entry.status,
        "conditions": items,
        "state": str(state),
        "reason": why,
        "observedGeneration": entry.generation,
    }
    result = Outcome()
    put_status(result, resource, entry, status, tuple(status))
    if result.writes:
        result.notices = [Notice(entry, resource, reason, error, True)]
    return result


def _where(resource: Resource, items: conditions.Conditions) -> tuple[str, bool]:
    """The condition that tells what the object is at: queued, or admitted."""
    if resource is not DL_JOBS:
        admitted = conditions.is_true(items, GroupCondition.ADMITTED)
        return (GroupCondition.ADMITTED, True) if admitted else (GroupCondition.QUOTA_RESERVED, False)
    admitted = conditions.is_true(items, JobCondition.ADMITTED)
    return (JobCondition.ADMITTED if admitted else JobCondition.QUEUED), True
