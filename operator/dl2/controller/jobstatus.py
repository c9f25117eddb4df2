"""The status of one DLJob, from what happened to it, its PodGroup and its pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dl2.api import DLJob, conditions, names
from dl2.api import dljob as types
from dl2.api.conditions import format_time
from dl2.api.core import PodRecord
from dl2.api.names import GroupCondition, JobCondition
from dl2.cluster.store import Entry
from dl2.controller import resizing
from dl2.controller.frameworks import Role
from dl2.controller.outcome import WRITE_REJECTED
from dl2.controller.progress import Progress

OWNED = (
    "observedGeneration", "queue", "state", "reason", "restarts", "attempt", "failedPods", "workers", "servers",
    "progress",
    "estimatedCompletion", "queuePosition", "estimatedStart", "startTime", "completionTime", "lastScaling",
    "labelSelector", "printed", "conditions",
)  # fmt: skip


RESIZED = "Resized"  # reason of an attempt that a change of shape makes necessary
_LONGEST = 1e9  # seconds: an estimate beyond it is no date


@dataclass(frozen=True, slots=True)
class Report:
    """What a look at a job found: its end, a failure that means another attempt, or nothing new."""

    ended: JobCondition | None = None
    new_attempt: bool = False
    failed: tuple[str, ...] = ()  # uids of the pods whose failure is being counted
    reason: str = ""
    message: str = ""
    rejection: str = ""


def job_status(
    entry: Entry,
    job: DLJob,
    group_status: Mapping[str, Any],
    pods: Sequence[PodRecord],
    roles: Sequence[Role],
    report: Report,
    progress: Progress | None,
    now: float,
    hot: Mapping[str, int] | None = None,
    scaled_by: str = "",
) -> dict[str, Any]:
    """All fields in OWNED; None means absent.

    `hot`: the admitted pods by role of a job whose members join and leave as it trains; None: it starts only whole.
    `scaled_by`: the scaling policy that chose its shape, if one did.
    """
    old = entry.status
    status: dict[str, Any] = {key: old.get(key) for key in OWNED}
    status |= {
        "observedGeneration": entry.generation,
        "queue": job.queue,
        "labelSelector": f"{names.LABEL_JOB}={entry.name},{names.LABEL_MEMBER}={names.WORKER}",
        "restarts": int(old.get("restarts") or 0) + (1 if report.failed else 0),
        "attempt": int(old.get("attempt") or 0) + (1 if report.new_attempt else 0),
        "failedPods": _failed_pods(old, pods, report),
        "queuePosition": group_status.get("queuePosition"),
        "estimatedStart": group_status.get("estimatedStart"),
    }
    for role in (names.WORKER, names.SERVER):
        status[f"{role}s"] = _counts(role, roles, pods)
    conditions_now = _Conditions(old.get("conditions") or (), entry.generation, now)
    if report.ended:
        _follow(status, job, progress, running=False)
        _end(status, conditions_now, report, now)
    else:
        _live(status, conditions_now, job, group_status, pods, report, now)
        if hot is None:
            _restart(status, conditions_now, old, roles, report, now)
        else:
            _resize(status, conditions_now, pods, roles, hot, progress, scaled_by)
        _follow(status, job, progress, conditions_now.true(JobCondition.RUNNING))
    status["conditions"] = conditions_now.items
    state, reason = conditions.job_state(conditions_now.items)
    status["state"], status["reason"] = str(state), reason
    status["printed"] = _printed(status)
    return status


def _restart(
    status: dict[str, Any],
    now_conditions: _Conditions,
    old: Mapping[str, Any],
    roles: Sequence[Role],
    report: Report,
    now: float,
) -> None:
    """What only starts whole takes another shape by checkpoint and restart."""
    if report.new_attempt and report.reason == RESIZED:
        status["lastScaling"] = resizing.restarted(old, roles, now)
        now_conditions.set(JobCondition.SCALING, True, "Restarting", report.message)
    elif now_conditions.true(JobCondition.RUNNING):
        status["lastScaling"] = resizing.runs_again(status["lastScaling"], now)
        now_conditions.set(JobCondition.SCALING, False, "Settled", "it has the shape that was asked for")


def _resize(
    status: dict[str, Any],
    now_conditions: _Conditions,
    pods: Sequence[PodRecord],
    roles: Sequence[Role],
    admitted: Mapping[str, int],
    progress: Progress | None,
    scaled_by: str,
) -> None:
    """Members come and go while the others train: it runs as long as its minimum does."""
    all_ready, has_run = now_conditions.true(JobCondition.RUNNING), status["startTime"] is not None
    if admitted and has_run and not all_ready and resizing.can_train(pods, roles):
        now_conditions.set(JobCondition.RUNNING, True, "Training", "its minimum is ready; others may join")
    change = resizing.under_way(pods, admitted) if now_conditions.true(JobCondition.RUNNING) else None
    reason, message = change or ("Settled", "everybody who was admitted has joined")
    now_conditions.set(JobCondition.SCALING, change is not None, reason, message)
    told, counts = resizing.told_of(progress), {role.name: role.count for role in roles}
    if told is not None:
        status["lastScaling"] = resizing.explained(told, status["lastScaling"], counts, scaled_by)


class _Conditions:
    """A list of conditions being rewritten at one moment."""

    def __init__(self, items: Sequence[Mapping[str, Any]], generation: int, now: float) -> None:
        self.items = [dict(item) for item in items]
        self._generation, self._now = generation, now

    def set(self, kind: JobCondition, value: bool, reason: str, message: str) -> None:
        if value or conditions.get(self.items, kind):  # a condition that never was needs no denial
            self.items = conditions.set_condition(
                self.items, kind, value, reason, message, self._generation, self._now
            )

    def true(self, kind: JobCondition) -> bool:
        return conditions.is_true(self.items, kind)


def _failed_pods(old: Mapping[str, Any], pods: Sequence[PodRecord], report: Report) -> list[str] | None:
    """Failures already counted, of pods that still exist: what keeps a crash from counting one twice."""
    existing = {p.uid for p in pods}
    counted = [uid for uid in old.get("failedPods") or () if uid in existing]
    return [*counted, *report.failed] or None


def _counts(role: str, roles: Sequence[Role], pods: Sequence[PodRecord]) -> dict[str, int]:
    desired = next((r.count for r in roles if r.name == role), 0)
    return {"desired": desired, "ready": resizing.ready(pods, role)}


def _end(status: dict[str, Any], now_conditions: _Conditions, report: Report, now: float) -> None:
    assert report.ended is not None
    status["completionTime"] = status.get("completionTime") or format_time(now)
    status["queuePosition"] = status["estimatedStart"] = status["estimatedCompletion"] = None
    for kind in (JobCondition.QUEUED, JobCondition.ADMITTED, JobCondition.RUNNING, JobCondition.SCALING):
        now_conditions.set(kind, False, report.reason, report.message)
    now_conditions.set(report.ended, True, report.reason, report.message)
    if (
        report.ended is JobCondition.SUCCEEDED
    ):  # all is done, also where nobody was quick enough to read how far it is
        status["progress"] = {**(status.get("progress") or {}), "fraction": 1.0}


def _live(
    status: dict[str, Any],
    now_conditions: _Conditions,
    job: DLJob,
    group_status: Mapping[str, Any],
    pods: Sequence[PodRecord],
    report: Report,
    now: float,
) -> None:
    group = group_status.get("conditions") or ()
    admitted = conditions.is_true(group, GroupCondition.ADMITTED)
    held = any(not p.gated and not p.finished for p in pods)
    if job.spec.suspend and not admitted and not held:
        now_conditions.set(
            JobCondition.SUSPENDED, True, "Suspended", "spec.suspend is true; set it to false to resume"
        )
        status["startTime"] = None  # as for batch Jobs, the deadline counts from the last start
    else:
        now_conditions.set(JobCondition.SUSPENDED, False, "Resumed", "spec.suspend is false")
    quota = conditions.get(group, GroupCondition.QUOTA_RESERVED) or {}
    if admitted:
        now_conditions.set(JobCondition.QUEUED, False, "Admitted", "its PodGroup is admitted")
        now_conditions.set(JobCondition.ADMITTED, True, "Admitted", str(quota.get("message") or "admitted"))
    else:
        reason, message = (
            str(quota.get("reason") or "Pending"),
            str(quota.get("message") or "waiting for a decision"),
        )
        now_conditions.set(JobCondition.ADMITTED, False, reason, message)
        now_conditions.set(
            JobCondition.QUEUED, not now_conditions.true(JobCondition.SUSPENDED), reason, message
        )
    _running(status, now_conditions, group, admitted, report, now)


def _running(
    status: dict[str, Any],
    now_conditions: _Conditions,
    group: Any,
    admitted: bool,
    report: Report,
    now: float,
) -> None:
    if report.new_attempt or report.failed:
        now_conditions.set(JobCondition.RUNNING, False, report.reason, report.message)
    elif admitted and conditions.is_true(group, GroupCondition.PODS_READY):
        status["startTime"] = status.get("startTime") or format_time(now)
        now_conditions.set(JobCondition.RUNNING, True, "PodsReady", "all admitted pods are ready")
    elif not admitted:
        evicted = conditions.get(group, GroupCondition.EVICTED) or {}
        now_conditions.set(
            JobCondition.RUNNING,
            False,
            str(evicted.get("reason") or "NotAdmitted"),
            str(evicted.get("message") or "not admitted"),
        )
    else:
        ready = conditions.get(group, GroupCondition.PODS_READY) or {}
        now_conditions.set(
            JobCondition.RUNNING,
            False,
            str(ready.get("reason") or "PodsNotReady"),
            str(ready.get("message") or "pods are starting"),
        )
    if report.rejection and not now_conditions.true(JobCondition.SUSPENDED):
        kind = JobCondition.ADMITTED if admitted else JobCondition.QUEUED
        now_conditions.set(kind, True, WRITE_REJECTED, f"the API server refuses: {report.rejection}")


def _follow(status: dict[str, Any], job: DLJob, progress: Progress | None, running: bool) -> None:
    """Progress and the expected end, from the newest report: equal reports make equal statuses."""
    if not running:
        status["estimatedCompletion"] = None
    if progress is None:
        return
    fraction, remaining = _work(job, progress)
    told = {
        "epoch": progress.epoch,
        "step": progress.step,
        "fraction": fraction,
        "stepsPerSecond": round(progress.steps_per_second, 3),
        "updatedAt": format_time(progress.updated_at) if progress.updated_at else None,
        "metrics": progress.metrics or None,
    }
    status["progress"] = {k: v for k, v in told.items() if v is not None}
    if running and remaining is not None and progress.steps_per_second > 0:
        seconds = min(remaining / progress.steps_per_second, _LONGEST)
        status["estimatedCompletion"] = format_time(progress.received_at + seconds)


def _work(job: DLJob, progress: Progress) -> tuple[float | None, float | None]:
    """(done fraction 0..1, remaining steps), each None where the work was not declared."""
    epochs, steps = job.spec.training.epochs, job.spec.training.steps_per_epoch
    if epochs and steps:
        total = epochs * steps
        return round(min(1.0, progress.step / total), 4), max(0.0, total - progress.step)
    if epochs:
        return round(min(1.0, progress.epoch / epochs), 4), None
    return None, None


def _printed(status: Mapping[str, Any]) -> dict[str, str]:
    progress = status.get("progress")
    return types.printed(
        types.RoleStatus(**status["workers"]),
        types.RoleStatus(**status["servers"]),
        types.Progress(fraction=progress.get("fraction"), steps_per_second=progress.get("stepsPerSecond"))
        if progress
        else None,
    )
