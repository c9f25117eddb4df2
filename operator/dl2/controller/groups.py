"""Keeping one PodGroup: its status from the decision, its pods released, taken back or counted. Pure.

What is written down comes first, what follows from it second: pods are released only for an admission that the
API server already holds, and deleted only after its end is written there. A crash between the two loses nothing,
because the next operator reads the same status and does the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dl2.api import PodGroup, conditions, names
from dl2.api.conditions import format_time, parse_time
from dl2.api.core import PodRecord
from dl2.api.names import GroupCondition
from dl2.api.resources import parse_quantities
from dl2.cluster.applier import Verb, Write
from dl2.cluster.resources import POD_GROUPS, PODS
from dl2.cluster.store import Entry
from dl2.controller import intake
from dl2.controller.outcome import WRITE_REJECTED, Notice, Outcome, put_status
from dl2.scheduling.explain import evicted
from dl2.scheduling.items import leaving_first
from dl2.scheduling.plan import Action, Decision, Reason
from dl2.scheduling.quantities import format_quantity

OWNED = (
    "observedGeneration", "queue", "state", "reason", "queuePosition", "estimatedStart", "requeueAt", "evictions",
    "admittedAt", "readyAt", "passedOverSince", "members", "conditions",
)  # fmt: skip
_HELD = (Action.ADMIT, Action.RESIZE, Action.KEEP)
_GONE = "PodsGone"


@dataclass(frozen=True, slots=True)
class GroupView:
    """All that keeping one group needs.

    `job_uid`: of the DLJob that owns it ("": it belongs to no DLJob); `job_end`: (reason, message) once that has
    ended. `rejection`: what the API server refused to write for it, if anything.
    """

    entry: Entry
    group: PodGroup
    pods: Sequence[PodRecord]
    decision: Decision | None
    now: float
    job_end: tuple[str, str] | None = None
    job_uid: str = ""
    rejection: str = ""


def reconcile(view: GroupView) -> Outcome:
    outcome = Outcome()
    if view.entry.deleting:
        return outcome
    rejected = _keep_pods(view, outcome)
    status = _status(view, rejected, outcome)
    put_status(outcome, POD_GROUPS, view.entry, status, OWNED, _is_news_for_people_only(view, status))
    return outcome


def _is_news_for_people_only(view: GroupView, status: Mapping[str, Any]) -> bool:
    """That somebody else has finished it, or why a reservation waits: under load, admissions go first."""
    before = view.entry.status.get("conditions") or ()
    if conditions.is_true(before, GroupCondition.FINISHED) and conditions.is_true(
        status["conditions"], GroupCondition.FINISHED
    ):
        return True
    idle = not view.pods and not view.job_uid and not conditions.is_true(before, GroupCondition.ADMITTED)
    return idle and (view.decision is None or view.decision.action is Action.WAIT)


# -- pods -------------------------------------------------------------------------------------------------------
def admitted_counts(group: PodGroup, status: Mapping[str, Any]) -> dict[str, int]:
    """Member -> admitted pods; empty when the group is not admitted."""
    given = intake.admitted(status, {member.name: member.count for member in group.spec.members})
    return {name: member.count for name, member in (given or {}).items()}


def _keep_pods(view: GroupView, outcome: Outcome) -> list[str]:
    """Release, take back or delete pods as the status in the API server says. Returns why some are not released."""
    status = view.entry.status
    told = status.get("conditions") or ()
    if conditions.is_true(told, GroupCondition.FINISHED):
        return []
    admitted = admitted_counts(view.group, status)
    rejected: list[str] = []
    release: list[PodRecord] = []
    whole = True
    for member in view.group.spec.members:
        pods = [p for p in view.pods if p.member == member.name]
        fit, misfits = _fitting(view, pods, member)
        rejected += misfits
        allowed = admitted.get(member.name, 0)
        if conditions.get(told, GroupCondition.QUOTA_RESERVED):  # undecided is not refused
            _take_back(view, outcome, pods, allowed)
        chosen = _to_release(fit, pods, min(allowed, _decided(view, member.name)))
        release += chosen
        started = sum(1 for p in pods if not p.gated and not p.deleting)
        whole &= started + len(chosen) >= min(member.minimum, allowed)
    rejected += [
        f"pod {p.name}: label {names.LABEL_MEMBER}={p.member or '(none)'} names no member of this group; "
        f"use one of {', '.join(m.name for m in view.group.spec.members)}"
        for p in view.pods
        if p.member not in {m.name for m in view.group.spec.members}
    ]
    if whole:  # a gang starts whole, and what replaces lost pods waits until nobody is missing any more
        domains = {m["name"]: m.get("domain") for m in status.get("members") or ()}
        outcome.writes.extend(_release(view, pod, domains.get(pod.member)) for pod in release)
    return rejected


def _decided(view: GroupView, member: str) -> int:
    """What the decision of this pass leaves a member: nothing starts that is about to be taken away."""
    if view.decision is None or view.decision.action not in _HELD:
        return 0
    plan = view.decision.members.get(member)
    return plan.count if plan else 0


def _fitting(view: GroupView, pods: Sequence[PodRecord], member: Any) -> tuple[list[PodRecord], list[str]]:
    """Gated pods that may be released, the oldest first, and why the others may not."""
    limits = parse_quantities(member.requests)
    fit: list[PodRecord] = []
    misfits: list[str] = []
    for pod in sorted(pods, key=lambda p: (p.created, p.index, p.name)):
        if not pod.gated or pod.deleting:
            continue
        over = next((name for name, value in pod.requests.items() if value > limits.get(name, 0)), None)
        if view.job_uid and (pod.owner is None or pod.owner[1] != view.job_uid):
            if pod.owner is None or pod.owner[0] != names.DL_JOB:  # else of a deleted namesake: it will go
                misfits.append(f"pod {pod.name} is not made by DLJob {view.entry.name}; take its labels off")
        elif over:
            misfits.append(
                f"pod {pod.name} asks for {format_quantity(pod.requests[over], over)} {over}, but member "
                f"{member.name} requests {format_quantity(limits.get(over, 0), over)}; "
                "lower the pod or raise the member"
            )
        else:
            fit.append(pod)
    if view.job_uid:
        return fit, misfits  # what is too many there, the job takes back
    room = max(
        0, member.count - sum(1 for p in pods if not p.gated and not p.deleting and p.phase != "Failed")
    )
    misfits += [
        f"pod {p.name} is one too many: member {member.name} has count {member.count}; raise it or delete the pod"
        for p in fit[room:]
    ]
    return fit[:room], misfits


def _to_release(fit: Sequence[PodRecord], pods: Sequence[PodRecord], allowed: int) -> Sequence[PodRecord]:
    """As many as the admission has room for; those that still hold room count, deleted or not."""
    holding = sum(
        1 for p in pods if not p.gated and p.phase != "Failed" and (not p.finished or not p.deleting)
    )
    return fit[: max(0, allowed - holding)]


def _take_back(view: GroupView, outcome: Outcome, pods: Sequence[PodRecord], allowed: int) -> None:
    """Delete released pods beyond the admission, in the order that decisions count on; survivors stay as they are."""
    live = [p for p in pods if p.released and not p.gated and not p.finished and not p.deleting]
    succeeded = sum(1 for p in pods if p.phase == "Succeeded")
    surplus = len(live) + min(succeeded, allowed) - allowed
    if surplus > 0:
        leaving = {pod.uid for pod in leaving_first(map(intake.read_pod, live))[:surplus]}
        outcome.writes.extend(delete_pod(pod, view.entry) for pod in live if pod.uid in leaving)


def delete_pod(pod: PodRecord, owner: Entry) -> Write:
    return Write(Verb.DELETE, PODS, pod.namespace, pod.name, owner.key, uid=pod.uid)


def _release(view: GroupView, pod: PodRecord, domain: Mapping[str, str] | None) -> Write:
    """Take our gate away and, in the same patch, pin the pod to the domain that was chosen for it."""
    held = pod.spec or {}
    spec: dict[str, Any] = {
        "schedulingGates": [g for g in held.get("schedulingGates") or () if g.get("name") != names.GATE]
    }
    if domain:
        spec["affinity"] = tightened(held.get("affinity"), domain["label"], domain["value"])
    metadata = {
        "uid": pod.uid,  # exactly this pod, not one that took its name
        "annotations": {names.RELEASED: format_time(view.now)},
    }
    body = {"metadata": metadata, "spec": spec}
    return Write(Verb.PATCH, PODS, pod.namespace, pod.name, view.entry.key, body, uid=pod.uid)


def tightened(affinity: Mapping[str, Any] | None, label: str, value: str) -> dict[str, Any]:
    """`affinity` with one more requirement, `label` in [`value`], in every required node selector term."""
    result = dict(affinity or {})
    node = dict(result.get("nodeAffinity") or {})
    key = "requiredDuringSchedulingIgnoredDuringExecution"
    requirement = {"key": label, "operator": "In", "values": [value]}
    terms = (node.get(key) or {}).get("nodeSelectorTerms") or [{}]
    node[key] = {
        "nodeSelectorTerms": [
            {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), requirement]}
            for term in terms
        ]
    }
    return {**result, "nodeAffinity": node}


# -- status -----------------------------------------------------------------------------------------------------
def _status(view: GroupView, rejected: Sequence[str], outcome: Outcome) -> dict[str, Any]:
    old = view.entry.status
    status: dict[str, Any] = {key: old.get(key) for key in OWNED}
    status["observedGeneration"], status["queue"] = view.entry.generation, view.group.queue
    status["conditions"] = [dict(c) for c in old.get("conditions") or ()]
    end = view.job_end or _pods_end(view, outcome)
    decision = view.decision
    if conditions.is_true(status["conditions"], GroupCondition.FINISHED):
        _clear_queue(status)
        _reopen(view, status)
    elif end:
        _finish(view, status, *end)
    elif decision is not None:
        if decision.action in _HELD:
            _hold(view, status, decision, rejected)
        elif decision.action is Action.EVICT:
            _evict(view, status, decision)
        else:
            _wait(view, status, decision, rejected)
        outcome.notices += [
            Notice(view.entry, POD_GROUPS, "PodNotReleased", text, True) for text in rejected[:1]
        ]
    status["state"], status["reason"] = (str(part) for part in conditions.group_state(status["conditions"]))
    return status


def _set(
    view: GroupView, status: dict[str, Any], kind: GroupCondition, value: bool, reason: str, message: str
) -> None:
    status["conditions"] = conditions.set_condition(
        status["conditions"], kind, value, reason, message, view.entry.generation, view.now
    )


def _clear_queue(status: dict[str, Any]) -> None:
    status["queuePosition"] = status["estimatedStart"] = status["requeueAt"] = None


def _hold(view: GroupView, status: dict[str, Any], decision: Decision, rejected: Sequence[str]) -> None:
    given = ", ".join(f"{plan.count} {name}" for name, plan in decision.members.items() if plan.count)
    _clear_queue(status)
    status["passedOverSince"] = None
    if not conditions.is_true(status["conditions"], GroupCondition.ADMITTED) or not status["admittedAt"]:
        status["admittedAt"], status["readyAt"] = format_time(view.now), None
    _set(view, status, GroupCondition.QUOTA_RESERVED, True, "QuotaReserved", f"quota reserved for {given}")
    _set(view, status, GroupCondition.ADMITTED, True, "Admitted", f"admitted {given}")
    if conditions.get(status["conditions"], GroupCondition.EVICTED):
        _set(view, status, GroupCondition.EVICTED, False, "Admitted", "admitted again")
    ready = {
        m.name: sum(1 for p in view.pods if p.member == m.name and _counts_as_ready(p))
        for m in view.group.spec.members
    }
    status["members"] = [
        _member(name, plan.count, min(ready.get(name, 0), plan.count), plan.domain)
        for name, plan in decision.members.items()
    ]
    _note_ready(view, status, rejected)


def _member(name: str, admitted: int, ready: int, domain: Any) -> dict[str, Any]:
    member: dict[str, Any] = {"name": name, "admitted": admitted, "ready": ready}
    if domain is not None:
        member["domain"] = {"label": domain.label, "value": domain.value}
    return member


def _counts_as_ready(pod: PodRecord) -> bool:
    return pod.phase == "Succeeded" or (pod.ready and not pod.gated and not pod.deleting)


def _note_ready(view: GroupView, status: dict[str, Any], rejected: Sequence[str]) -> None:
    had_pods = view.pods or view.job_uid or conditions.get(status["conditions"], GroupCondition.PODS_READY)
    if not had_pods:
        return  # a reservation, or pods that are still to come
    lagging = [m for m in status["members"] if m["ready"] < m["admitted"]]
    if not lagging:
        more = f"; not released: {rejected[0]}" if rejected else ""
        _set(view, status, GroupCondition.PODS_READY, True, "PodsReady", f"all admitted pods are ready{more}")
        status["readyAt"] = status["readyAt"] or format_time(view.now)
        return
    counts = ", ".join(f"{m['name']} {m['ready']}/{m['admitted']}" for m in lagging)
    why = next((f"; {p.name}: {p.unschedulable}" for p in view.pods if p.unschedulable and not p.gated), "")
    reason, text = "PodsNotReady", f"ready: {counts}{why}"
    if all(p.finished for p in view.pods):
        reason = _GONE if not view.job_uid else "PodsNotReady"
    if view.rejection:
        reason, text = WRITE_REJECTED, f"{text}; the API server refuses: {view.rejection}"
    if rejected:
        reason, text = "PodsRejected", rejected[0]
    _set(view, status, GroupCondition.PODS_READY, False, reason, text)


def _evict(view: GroupView, status: dict[str, Any], decision: Decision) -> None:
    reason, message = str(decision.reason), decision.message
    status["admittedAt"] = status["readyAt"] = None
    if decision.reason is not Reason.SUSPENDED:  # the owner's own wish earns no longer back-off
        status["evictions"] = (status["evictions"] or 0) + 1
    status["requeueAt"] = format_time(decision.requeue_at) if decision.requeue_at else None
    status["members"] = None
    _set(view, status, GroupCondition.QUOTA_RESERVED, False, reason, message)
    _set(view, status, GroupCondition.ADMITTED, False, reason, message)
    if conditions.get(status["conditions"], GroupCondition.PODS_READY):
        _set(view, status, GroupCondition.PODS_READY, False, reason, message)
    _set(view, status, GroupCondition.EVICTED, True, reason, message)


def _wait(view: GroupView, status: dict[str, Any], decision: Decision, rejected: Sequence[str]) -> None:
    reason, message = decision.reason, decision.message
    status["queuePosition"] = decision.position
    status["estimatedStart"] = format_time(decision.estimated_start) if decision.estimated_start else None
    status["admittedAt"] = status["readyAt"] = status["members"] = None
    if decision.passed_over and not status["passedOverSince"]:
        status["passedOverSince"] = format_time(view.now)
    if reason is Reason.BACKING_OFF and status["requeueAt"]:  # a moment, not a countdown: it is written once
        message = f"{evicted(status['evictions'] or 0)}; tries again at {status['requeueAt']}"
    if rejected:
        message = f"{message}; {rejected[0]}"
    _set(view, status, GroupCondition.QUOTA_RESERVED, False, str(reason), message)
    if conditions.get(status["conditions"], GroupCondition.ADMITTED):
        _set(view, status, GroupCondition.ADMITTED, False, str(reason), message)


def _finish(view: GroupView, status: dict[str, Any], reason: str, message: str) -> None:
    _clear_queue(status)
    _set(view, status, GroupCondition.FINISHED, True, reason, message)


def _reopen(view: GroupView, status: dict[str, Any]) -> None:
    """A group that ended because its pods were gone queues again when new ones come (a batch Job backing off)."""
    ended = conditions.get(status["conditions"], GroupCondition.FINISHED) or {}
    if ended.get("reason") != _GONE or all(p.finished or p.deleting for p in view.pods):
        return
    status["admittedAt"] = status["readyAt"] = status["members"] = None
    for kind in (GroupCondition.FINISHED, GroupCondition.QUOTA_RESERVED, GroupCondition.ADMITTED):
        _set(view, status, kind, False, "PodsBack", "new pods have come; it queues again")


def _pods_end(view: GroupView, outcome: Outcome) -> tuple[str, str] | None:
    """How a group of somebody else's pods ends: all succeeded, or all gone for longer than the ready time-out."""
    status = view.entry.status
    if view.job_uid or not admitted_counts(view.group, status):
        return None
    members = view.group.spec.members
    succeeded = {
        m.name: sum(1 for p in view.pods if p.member == m.name and p.phase == "Succeeded") for m in members
    }
    if view.pods and all(succeeded[m.name] >= m.count for m in members):
        return "PodsSucceeded", "all pods have succeeded"
    ready = conditions.get(status.get("conditions") or (), GroupCondition.PODS_READY)
    if ready and ready["reason"] == _GONE and all(p.finished for p in view.pods):
        since = max(parse_time(at) for at in (ready["lastTransitionTime"], status.get("admittedAt")) if at)
        due = since + view.group.spec.ready_timeout_seconds
        if view.now >= due:
            return (
                _GONE,
                "its pods have been gone for longer than readyTimeoutSeconds; its quota is free again",
            )
        outcome.wake(due)
    return None
