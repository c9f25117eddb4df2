"""What reconciling one object comes to: writes, notices for people, and when to look again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dl2.api import conditions, names
from dl2.cluster.applier import Verb, Write
from dl2.cluster.resources import Resource
from dl2.cluster.store import Entry
from dl2.scheduling.plan import Reason

Status = Mapping[str, Any]
WRITE_REJECTED = "WriteRejected"  # reason of a condition: the API server refuses what an object needs
_WARNINGS = frozenset({
    names.GroupCondition.EVICTED, names.JobCondition.FAILED, names.PolicyCondition.ROLLED_BACK
})  # fmt: skip
# What has to be written differently before it can be used.
_UNUSABLE = frozenset({
    Reason.MISCONFIGURED, Reason.QUEUE_NOT_FOUND, Reason.NAMESPACE_NOT_ALLOWED, WRITE_REJECTED,
})  # fmt: skip
# Fields and parts of conditions that change all the time and that nobody waits for.
_SOFT = frozenset({
    "queuePosition", "estimatedStart", "estimatedCompletion", "progress", "printed", "observedGeneration",
    "pending", "admitted", "dominant", "resources",
})  # fmt: skip
_CONDITIONS: Mapping[str, frozenset[str]] = {
    names.TENANT_QUEUE: frozenset(names.QueueCondition),
    names.POD_GROUP: frozenset(names.GroupCondition),
    names.DL_JOB: frozenset(names.JobCondition),
    names.SCALING_POLICY: frozenset(names.PolicyCondition),
}
_SOFT_IN_CONDITION = frozenset({"message", "observedGeneration", "lastTransitionTime"})


@dataclass(frozen=True, slots=True)
class Notice:
    """An Event to be: about which object, what and why."""

    entry: Entry
    resource: Resource
    reason: str
    message: str
    warning: bool = False


@dataclass(slots=True)
class Outcome:
    writes: list[Write] = field(default_factory=list)
    soft_writes: list[Write] = field(default_factory=list)  # may wait
    notices: list[Notice] = field(default_factory=list)
    wake_at: float | None = None

    def wake(self, at: float | None) -> None:
        if at is not None:
            self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


def hard(status: Status) -> dict[str, Any]:
    """The part of a status that others act on."""
    firm = {k: v for k, v in status.items() if k not in _SOFT and k != "conditions"}
    firm["conditions"] = [
        {k: v for k, v in condition.items() if k not in _SOFT_IN_CONDITION}
        for condition in status.get("conditions") or ()
    ]
    return firm


def put_status(
    outcome: Outcome,
    resource: Resource,
    entry: Entry,
    status: Mapping[str, Any],
    owned: Sequence[str],
    patient: bool = False,
) -> None:
    """Ask for `status` to be written when it differs from what is there in the fields that the operator owns.

    The write holds for exactly this object at exactly this version: a decision made from an older picture, or for
    a namesake that is gone, is refused by the API server instead of overwriting what is newer. `patient`: it may wait,
    for nobody acts on any of it.
    """
    # an empty map that is applied where there was one with entries becomes a null, which no schema allows
    wanted = {k: v for k, v in status.items() if v is not None and v != {}}
    present = {k: entry.status[k] for k in owned if entry.status.get(k) is not None}
    ours = _CONDITIONS[resource.kind]
    for side in (wanted, present):  # conditions of other writers are theirs
        side["conditions"] = [c for c in side.get("conditions") or () if c["type"] in ours]
    if wanted == present:
        return
    metadata = {"name": entry.name, "uid": entry.uid, "resourceVersion": str(entry.version)}
    if entry.namespace:
        metadata["namespace"] = entry.namespace
    body = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": metadata,
        "status": wanted,
    }
    write = Write(Verb.APPLY_STATUS, resource, entry.namespace, entry.name, entry.key, body, uid=entry.uid)
    firm = not patient and hard(wanted) != hard(present)
    (outcome.writes if firm else outcome.soft_writes).append(write)
    if firm:
        outcome.notices.extend(_transitions(resource, entry, present, wanted))


def _transitions(resource: Resource, entry: Entry, before: Status, after: Status) -> list[Notice]:
    """One notice for every condition that became true; reserving quota goes without saying beside the admission."""
    was = before.get("conditions") or ()
    return [
        Notice(
            entry,
            resource,
            condition["reason"],
            condition["message"],
            condition["type"] in _WARNINGS or condition["reason"] in _UNUSABLE,
        )
        for condition in after.get("conditions") or ()
        if condition["status"] == "True"
        and condition["type"] != names.GroupCondition.QUOTA_RESERVED
        and not _same(conditions.get(was, condition["type"]), condition)
    ]


def _same(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    return before is not None and before["status"] == "True" and before["reason"] == after["reason"]
