"""Lists of `metav1.Condition` dicts as pure values, and the RFC 3339 times that Kubernetes writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from dl2.api.names import GroupCondition, GroupState, JobCondition, JobState

Condition = dict[str, Any]
Conditions = Sequence[Mapping[str, Any]]

_LONGEST_MESSAGE = 32768  # characters, as the schema bounds it

# Which true condition a printed state comes from; the first that is true wins, so two can never show at once.
_GROUP_STATES = (
    (GroupCondition.FINISHED, GroupState.FINISHED),
    (GroupCondition.PODS_READY, GroupState.READY),
    (GroupCondition.ADMITTED, GroupState.ADMITTED),
)
_JOB_STATES = (
    (JobCondition.FAILED, JobState.FAILED),
    (JobCondition.SUCCEEDED, JobState.SUCCEEDED),
    (JobCondition.SUSPENDED, JobState.SUSPENDED),
    (JobCondition.SCALING, JobState.SCALING),
    (JobCondition.RUNNING, JobState.RUNNING),
    (JobCondition.ADMITTED, JobState.ADMITTED),
    (JobCondition.QUEUED, JobState.QUEUED),
)


def format_time(seconds: float) -> str:
    """Seconds since the epoch as Kubernetes writes times: UTC, whole seconds (rounded down), `Z`."""
    return datetime.fromtimestamp(int(seconds // 1), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> float:
    """An RFC 3339 time as seconds since the epoch; fractions and offsets are kept.

    Raises ValueError when `text` is no such time or names no offset from UTC.
    """
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        time = None
    if time is None or time.tzinfo is None or len(text) < len("2026-01-01T00:00:00Z"):
        raise ValueError(f"{text!r} is not an RFC 3339 time; write it like 2026-11-23T09:30:00Z")
    return time.timestamp()


def get(conditions: Conditions, kind: str) -> Mapping[str, Any] | None:
    """The condition of type `kind`, or None."""
    return next((condition for condition in conditions if condition.get("type") == kind), None)


def is_true(conditions: Conditions, kind: str) -> bool:
    """Whether the condition of type `kind` is there and "True"."""
    found = get(conditions, kind)
    return found is not None and found.get("status") == "True"


def set_condition(
    conditions: Conditions,
    kind: str,
    status: bool | Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    generation: int,
    now: float,
) -> list[Condition]:
    """A new list with condition `kind` set; `lastTransitionTime` moves only when the status changes.

    `reason` is CamelCase, `generation` the `metadata.generation` that was looked at, `now` seconds since the
    epoch. The others keep their places, a new type goes last, so equal inputs give equal lists.
    """
    before = get(conditions, kind)
    value = status if isinstance(status, str) else str(status)  # str(True) is Kubernetes' own spelling
    same = before is not None and before.get("status") == value and bool(before.get("lastTransitionTime"))
    after: Condition = {
        "type": str(kind),
        "status": value,
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if same and before else format_time(now),
        "reason": str(reason),
        "message": message[:_LONGEST_MESSAGE],
    }
    if before is None:
        return [*map(dict, conditions), after]
    return [after if condition is before else dict(condition) for condition in conditions]


def group_state(conditions: Conditions) -> tuple[GroupState, str]:
    """Printed state and reason of a PodGroup; one that is not admitted is Pending for its quota's reason."""
    for kind, state in _GROUP_STATES:
        if is_true(conditions, kind):
            return state, _reason(conditions, kind)
    return GroupState.PENDING, _reason(conditions, GroupCondition.QUOTA_RESERVED)


def job_state(conditions: Conditions) -> tuple[JobState, str]:
    """Printed state and reason of a DLJob; one without any true condition is Queued."""
    for kind, state in _JOB_STATES:
        if is_true(conditions, kind):
            return state, _reason(conditions, kind)
    return JobState.QUEUED, _reason(conditions, JobCondition.QUEUED)


def _reason(conditions: Conditions, kind: str) -> str:
    return str((get(conditions, kind) or {}).get("reason") or "")
