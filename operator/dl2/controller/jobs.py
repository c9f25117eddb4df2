"""Keeping one DLJob: its PodGroup, Service and pods, its restarts and its end, its status. Pure.

Every step is decided from what the API server holds, never from what this process remembers, so a restart of the
operator at any line goes on where the last one stopped. Pods have fixed names: nothing can be created twice.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from dl2.api import DLJob, PodGroup, conditions, names
from dl2.api.conditions import parse_time
from dl2.api.core import PodRecord
from dl2.api.names import GroupCondition, JobCondition
from dl2.api.resources import pod_requests
from dl2.cluster.applier import Verb, Write
from dl2.cluster.resources import DL_JOBS, NATIVE_POD_GROUPS, POD_GROUPS, PODS, SECRETS, SERVICES
from dl2.cluster.store import Entry
from dl2.controller.frameworks import Framework, Role
from dl2.controller.groups import admitted_counts, delete_pod
from dl2.controller.jobstatus import OWNED, RESIZED, Report, job_status
from dl2.controller.outcome import Outcome, put_status
from dl2.controller.progress import Progress
from dl2.controller.resizing import SCALED, succeeded
from dl2.controller.settings import PodSettings
from dl2.controller.shapes import is_sizable
from dl2.scheduling.plan import Reason
from dl2.scheduling.quantities import format_quantity

SPEC_HASH = "dl2.dev/spec-hash"
_UNACCEPTABLE = (Reason.MISCONFIGURED, Reason.QUEUE_NOT_FOUND, Reason.NAMESPACE_NOT_ALLOWED)


@dataclass(frozen=True, slots=True)
class JobView:
    """All that keeping one job needs. `rejection`: what the API server refused to write for it, if anything."""

    entry: Entry
    job: DLJob
    framework: Framework
    group: Entry | None
    pods: Sequence[PodRecord]  # all of its group, also those that a namesake left behind
    service_exists: bool
    now: float
    settings: PodSettings = field(default_factory=PodSettings)
    progress: Progress | None = None
    rejection: str = ""
    creating: frozenset[str] = frozenset()  # names of pods whose creation is under way
    token: str = ""  # a fresh random one, for a job that has none yet
    scaled_by: str = ""  # the scaling policy that has chosen its shape, or that of one role

    @property
    def group_status(self) -> Mapping[str, Any]:
        return self.group.status if self.group else {}

    @property
    def attempt(self) -> int:
        return int(self.entry.status.get("attempt") or 0)

    @property
    def own_pods(self) -> list[PodRecord]:
        return [p for p in self.pods if p.owner is not None and p.owner[1] == self.entry.uid]

    @property
    def admitted(self) -> Mapping[str, int]:
        """Admitted pods by role; empty while it is not admitted."""
        if self.group is None or not isinstance(self.group.value, PodGroup):
            return {}
        return admitted_counts(self.group.value, self.group.status)


def reconcile(view: JobView) -> Outcome:
    outcome = Outcome()
    if view.entry.deleting:
        return outcome  # owner references take everything with it
    roles = view.framework.roles(view.job)
    report = _judge(view, roles)
    if report.ended:
        _clean_up(view, outcome)
    else:
        _ensure_group(view, roles, outcome)
        outcome.wake(_deadline_at(view))
        if not report.new_attempt:
            _keep_pods(view, roles, outcome)
    hot = None if view.framework.restarts_together else view.admitted
    status = job_status(
        view.entry, view.job, view.group_status, view.own_pods, roles, report, view.progress, view.now, hot,
        view.scaled_by if is_sizable(view.job) else "",
    )  # fmt: skip
    put_status(outcome, DL_JOBS, view.entry, status, OWNED)
    return outcome


# -- what has happened to it --------------------------------------------------------------------------------------
def _judge(view: JobView, roles: Sequence[Role]) -> Report:
    """Whether the job has ended, must start again, or just goes on."""
    was = view.entry.status.get("conditions") or ()
    for kind in (JobCondition.SUCCEEDED, JobCondition.FAILED):
        done = conditions.get(was, kind)
        if done and done["status"] == "True":
            return Report(ended=kind, reason=done["reason"], message=done["message"])
    current = [p for p in view.own_pods if p.attempt == view.attempt]
    if _all_workers_succeeded(view, current, roles):
        return Report(
            ended=JobCondition.SUCCEEDED, reason="WorkersSucceeded", message="all workers have succeeded"
        )
    late = _deadline(view)
    if late:
        return late
    failed = _new_failures(view, current)
    if failed:
        return _after_failure(view, failed)
    if view.framework.restarts_together and _reshaped(view, roles):
        return Report(new_attempt=True, reason=RESIZED, message="all start again in their new number")
    if view.framework.restarts_together and view.admitted and _torn(current, roles):
        return Report(
            new_attempt=True, reason="PodLost", message="a pod was lost; all start again from the checkpoint"
        )
    return Report(rejection=view.rejection)


def _all_workers_succeeded(view: JobView, pods: Sequence[PodRecord], roles: Sequence[Role]) -> bool:
    """All that were admitted; all that are wanted where the job lost its admission in that very moment.

    The coordinator of an elastic job ends well when all workers that had joined have: one that is still on its way then
    comes too late, and would wait for it in vain.
    """
    wanted = next((role.count for role in roles if role.name == names.WORKER), 0)
    done = succeeded(pods, names.WORKER)
    if done and not view.framework.restarts_together and succeeded(pods, names.COORDINATOR):
        return not any(p.joined for p in pods if p.member == names.WORKER and not (p.finished or p.deleting))
    return 0 < view.admitted.get(names.WORKER, wanted) <= done


def _deadline(view: JobView) -> Report | None:
    due = _deadline_at(view)
    if due is None or view.now < due:
        return None
    limit = view.job.spec.run_policy.active_deadline_seconds
    return Report(
        ended=JobCondition.FAILED,
        reason="DeadlineExceeded",
        message=f"it has been active for longer than runPolicy.activeDeadlineSeconds ({limit} s)",
    )


def _deadline_at(view: JobView) -> float | None:
    """When activeDeadlineSeconds strikes, if it can: it counts from the start, and not while suspended."""
    limit, started = view.job.spec.run_policy.active_deadline_seconds, view.entry.status.get("startTime")
    if limit is None or not started or view.job.spec.suspend:
        return None
    return parse_time(started) + limit


def _new_failures(view: JobView, current: Sequence[PodRecord]) -> list[PodRecord]:
    counted = set(view.entry.status.get("failedPods") or ())
    return [p for p in current if p.phase == "Failed" and p.uid not in counted and not p.deleting]


def _after_failure(view: JobView, failed: Sequence[PodRecord]) -> Report:
    first = min(failed, key=lambda p: p.name)
    what = f"pod {first.name}: {first.failure}"
    limit = view.job.spec.run_policy.backoff_limit
    restarts = int(view.entry.status.get("restarts") or 0)
    if restarts >= limit:
        message = f"{what}; restarted {restarts} times, which is runPolicy.backoffLimit"
        return Report(ended=JobCondition.FAILED, reason="BackoffLimitExceeded", message=message)
    return Report(
        new_attempt=view.framework.restarts_together,
        failed=tuple(p.uid for p in failed),
        reason="PodFailed",
        message=f"{what}; restart {restarts + 1} of {limit}",
    )


def _reshaped(view: JobView, roles: Sequence[Role]) -> bool:
    """The numbers that the present attempt was made for are no longer those that are wanted."""
    counts = {role.name: role.count for role in roles}
    made_for = {role: (view.entry.status.get(f"{role}s") or {}).get("desired") for role in SCALED}
    return any(made_for[role] not in (None, counts.get(role, 0)) for role in SCALED)


def _torn(current: Sequence[PodRecord], roles: Sequence[Role]) -> bool:
    """Some members run while others are gone: they wait for each other in vain."""
    whole = {role.name: [p for p in current if p.member == role.name and not p.deleting] for role in roles}
    running = any(not p.gated and not p.finished for pods in whole.values() for p in pods)
    return running and any(len(whole[role.name]) < role.count for role in roles)


# -- what it needs ------------------------------------------------------------------------------------------------
def _owner(view: JobView) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.DL_JOB,
        "name": view.entry.name,
        "uid": view.entry.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _owned(view: JobView, name: str) -> dict[str, Any]:
    """Metadata of what goes with its job."""
    return {
        "name": name,
        "namespace": view.entry.namespace,
        "labels": {names.LABEL_JOB: view.entry.name},
        "ownerReferences": [_owner(view)],
    }


def group_spec(job: DLJob, roles: Sequence[Role]) -> dict[str, Any]:
    """The spec of the one PodGroup that a DLJob owns."""
    spec: dict[str, Any] = {
        "queue": job.queue,
        "suspend": job.spec.suspend,
        "members": [_member(role) for role in roles],
    }
    if job.spec.priority_class_name:
        spec["priorityClassName"] = job.spec.priority_class_name
    if job.spec.topology:
        spec["topology"] = job.spec.topology.model_dump(by_alias=True, exclude_none=True)
    return spec


def _member(role: Role) -> dict[str, Any]:
    template = role.template.get("spec") or {}
    member: dict[str, Any] = {
        "name": role.name,
        "count": role.count,
        "minCount": role.min_count,
        "requests": {n: format_quantity(v, n) for n, v in sorted(pod_requests(template).items())},
    }
    node_affinity = (template.get("affinity") or {}).get("nodeAffinity")
    if template.get("nodeSelector"):
        member["nodeSelector"] = template["nodeSelector"]
    if node_affinity:
        member["affinity"] = {"nodeAffinity": node_affinity}
    if template.get("tolerations"):
        member["tolerations"] = template["tolerations"]
    return member


def _ensure_group(view: JobView, roles: Sequence[Role], outcome: Outcome) -> None:
    spec = group_spec(view.job, roles)
    digest = hashlib.sha256(orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    metadata: dict[str, Any] = {
        "name": view.entry.name,
        "namespace": view.entry.namespace,
        "labels": {names.LABEL_JOB: view.entry.name},
        "annotations": {SPEC_HASH: digest} | ({names.SCALED_BY: view.scaled_by} if view.scaled_by else {}),
        "ownerReferences": [_owner(view)],
    }
    if view.group is not None:
        group = view.group.value
        if view.group.deleting or not isinstance(group, PodGroup):
            return
        if group.metadata.annotations.get(SPEC_HASH) == digest:
            return
        if view.admitted and (view.job.spec.suspend or _must_stop(view, group, roles)):
            outcome.writes.extend(_stop(view, view.group, group))
            return
        metadata["uid"] = view.group.uid  # exactly this one, not a namesake
    body = {"apiVersion": names.API_VERSION, "kind": names.POD_GROUP, "metadata": metadata, "spec": spec}
    outcome.writes.append(
        Write(Verb.APPLY, POD_GROUPS, view.entry.namespace, view.entry.name, view.entry.key, body)
    )


def _must_stop(view: JobView, group: PodGroup, roles: Sequence[Role]) -> bool:
    """A framework that starts only whole takes another shape only by stopping first."""
    was = {member.name: member.count for member in group.spec.members}
    return view.framework.restarts_together and was != {role.name: role.count for role in roles}


def _stop(view: JobView, entry: Entry, group: PodGroup) -> list[Write]:
    """Suspend the group and nothing else: the rest of its spec may change only when it is no longer admitted."""
    if group.spec.suspend:
        return []  # it is about to lose its admission
    body = {"metadata": {"uid": entry.uid}, "spec": {"suspend": True}}
    return [Write(Verb.PATCH, POD_GROUPS, entry.namespace, entry.name, view.entry.key, body, uid=entry.uid)]


def _keep_pods(view: JobView, roles: Sequence[Role], outcome: Outcome) -> None:
    """Exactly `count` pods of the current attempt per role, held by the gate; none while suspended."""
    handled = set(view.entry.status.get("failedPods") or ())
    for pod in view.own_pods:
        stale = pod.attempt != view.attempt or pod.uid in handled
        if not pod.deleting and (stale or (view.job.spec.suspend and pod.gated)):
            outcome.writes.append(delete_pod(pod, view.entry))
    if view.job.spec.suspend or not _acceptable(view):
        return
    if not view.service_exists:
        outcome.writes.append(_service(view))
    shape = {role.name: role.count for role in roles}
    for role in roles:
        outcome.writes.extend(_fill(view, role, shape))
        outcome.writes.extend(_trim(view, role))
    makes_pods = any(write.verb is Verb.CREATE and write.resource is PODS for write in outcome.writes)
    if makes_pods and (secret := view.framework.secret(view.job)):
        outcome.writes.append(_secret(view, secret))
    if view.settings.native_gang and (makes_pods or _unbound(view)):
        outcome.writes.append(_native_gang(view, roles))


def _acceptable(view: JobView) -> bool:
    """Its PodGroup was looked at and found in order: pods of a job that nobody can admit only get in the way."""
    if view.group is None or view.group.deleting:
        return False
    told = view.group_status.get("conditions") or ()
    quota = conditions.get(told, GroupCondition.QUOTA_RESERVED)
    return (
        quota is not None
        and quota["reason"] not in _UNACCEPTABLE
        and not conditions.is_true(told, GroupCondition.FINISHED)
    )


def _fill(view: JobView, role: Role, shape: Mapping[str, int]) -> list[Write]:
    """Create what is missing under the lowest free numbers; a name in use by a dying pod is not free yet."""
    pods = [p for p in view.own_pods if p.member == role.name]
    in_use = {p.name for p in view.pods} | view.creating
    prefix = _pod_name(view, role, "")
    coming = sum(1 for name in view.creating - {p.name for p in pods} if name.startswith(prefix))
    missing = max(0, role.count - coming - sum(1 for p in pods if not p.deleting))
    # The coordinator, and members that restart together, are known by number: 0 to count - 1 and no other.
    fixed = view.framework.restarts_together or role.name == names.COORDINATOR
    numbers = range(role.count if fixed else role.count + len(in_use))
    free = [i for i in numbers if _pod_name(view, role, i) not in in_use]
    return [Write(Verb.CREATE, PODS, view.entry.namespace, _pod_name(view, role, i), view.entry.key,
                  _pod(view, role, i, shape)) for i in free[:missing]]  # fmt: skip


def _unbound(view: JobView) -> bool:
    """Pods are kube-scheduler's to bind: the gang that it looks for must be there."""
    return any(not p.gated and not p.node and not p.finished and not p.deleting for p in view.own_pods)


def _secret(view: JobView, name: str) -> Write:
    """Whoever comes second finds it made: the operator may not read Secrets, so it cannot look first."""
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _owned(view, name),
        "immutable": True,
        "data": {"token": base64.b64encode(view.token.encode()).decode()},
    }
    return Write(Verb.CREATE, SECRETS, view.entry.namespace, name, view.entry.key, body)


def _native_gang(view: JobView, roles: Sequence[Role]) -> Write:
    """The job's gang in Kubernetes' own terms. Applying it again changes nothing, so nobody has to watch it."""
    least = sum(role.min_count for role in roles)
    body = {
        "apiVersion": NATIVE_POD_GROUPS.api_version,
        "kind": "PodGroup",
        "metadata": _owned(view, view.entry.name),
        "spec": {"schedulingPolicy": {"gang": {"minCount": least}}},
    }
    return Write(Verb.APPLY, NATIVE_POD_GROUPS, view.entry.namespace, view.entry.name, view.entry.key, body)


def _trim(view: JobView, role: Role) -> list[Write]:
    """Gated pods beyond the wanted count; released ones are the admission's to take back."""
    pods = [p for p in view.own_pods if p.member == role.name and not p.deleting]
    gated = sorted((p for p in pods if p.gated), key=lambda p: p.index, reverse=True)
    return [delete_pod(pod, view.entry) for pod in gated[: max(0, len(pods) - role.count)]]


def _pod_name(view: JobView, role: Role, index: int | str) -> str:
    return f"{view.entry.name}-{role.name}-{index}"


def _pod(view: JobView, role: Role, index: int, shape: Mapping[str, int]) -> dict[str, Any]:
    made = view.framework.pod(view.job, role, index, shape, view.settings)
    template, spec = made["metadata"], made["spec"]
    labels = {
        **(template.get("labels") or {}),
        names.LABEL_JOB: view.entry.name,
        names.LABEL_POD_GROUP: view.entry.name,
        names.LABEL_MEMBER: role.name,
        names.LABEL_INDEX: str(index),
        names.LABEL_ATTEMPT: str(view.attempt),
    }
    if view.settings.native_gang:
        spec["schedulingGroup"] = {"podGroupName": view.entry.name}
    spec["schedulingGates"] = [*(spec.get("schedulingGates") or ()), {"name": names.GATE}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": _pod_name(view, role, index),
            "namespace": view.entry.namespace,
            "labels": labels,
            "annotations": template.get("annotations") or {},
            "ownerReferences": [_owner(view)],
        },
        "spec": spec,
    }


def _service(view: JobView) -> Write:
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _owned(view, view.entry.name),
        **view.framework.service(view.job),
    }
    return Write(Verb.CREATE, SERVICES, view.entry.namespace, view.entry.name, view.entry.key, body)


# -- after its end ------------------------------------------------------------------------------------------------
def _clean_up(view: JobView, outcome: Outcome) -> None:
    """cleanPodPolicy for its pods, then ttlSecondsAfterFinished for the job itself."""
    policy = view.job.spec.run_policy
    if not conditions.is_true(view.entry.status.get("conditions") or (), JobCondition.SUCCEEDED) and not (
        conditions.is_true(view.entry.status.get("conditions") or (), JobCondition.FAILED)
    ):
        return  # its end is not written down yet
    for pod in view.own_pods:
        doomed = (
            pod.gated
            or policy.clean_pod_policy == "All"
            or (policy.clean_pod_policy == "Running" and not pod.finished)
        )
        if doomed and not pod.deleting:
            outcome.writes.append(delete_pod(pod, view.entry))
    done, ttl = view.entry.status.get("completionTime"), policy.ttl_seconds_after_finished
    if done and ttl is not None:
        due = parse_time(done) + ttl
        if view.now >= due:
            outcome.writes.append(
                Write(
                    Verb.DELETE,
                    DL_JOBS,
                    view.entry.namespace,
                    view.entry.name,
                    view.entry.key,
                    uid=view.entry.uid,
                )
            )
        else:
            outcome.wake(due)
