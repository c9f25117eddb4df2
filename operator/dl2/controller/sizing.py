"""How many workers and servers a scaling policy would give the jobs of a snapshot. Pure.

A policy sizes jobs within what their queues may hold; whether and where they start is `decide`'s, as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from dl2.api import DLJob, names
from dl2.controller.shapes import admitted_shape
from dl2.scaling.cutter import cut
from dl2.scaling.interface import STOPPED, JobView, NodeView, Observation, Policy, Scale, SpeedSample
from dl2.scheduling.apply import settle
from dl2.scheduling.decide import decide
from dl2.scheduling.snapshot import CapacityMode, Group, Key, Snapshot

INTERVAL = 60.0  # seconds, where no ScalingPolicy says otherwise
_ENOUGH = 1 << 40
_PASSES = 3  # who gives back leaves, who grows takes that; few steps come after
Sizable = Mapping[Key, DLJob]


def sized(snapshot: Snapshot, jobs: Sizable, policy: Policy, interval: float = INTERVAL) -> Snapshot:
    """`snapshot` with the members that `policy` gives each of `jobs`, cut to what is feasible.

    A job that the policy would not run keeps its minimum: it waits for that, or runs with it.
    """
    observation = observe(snapshot, jobs, interval)
    scales = cut(observation, policy.allocate(observation)).scales
    keys = {str(key): key for key in jobs}
    given = {keys[job.id]: _at_least(scales.get(job.id, STOPPED), job.minimum) for job in observation.jobs}
    return _with_counts(snapshot, given)


def granted(snapshot: Snapshot, scales: Mapping[Key, Scale]) -> dict[Key, Scale]:
    """What admission would leave the groups of `scales` with if they were to ask for that."""
    current = _with_counts(snapshot, scales)
    for _ in range(_PASSES):
        plan = decide(current)
        if not plan.actions:
            break
        current = settle(current, plan)
    return {group.key: admitted_shape(group) for group in current.groups if group.key in scales}


def observe(snapshot: Snapshot, jobs: Sizable, interval: float) -> Observation:
    """What a policy sees of `snapshot`; groups that are not in `jobs` are other people's load."""
    groups = [g for g in snapshot.groups if g.key in jobs and not (g.error or g.finished or g.suspend)]
    budgets = _budgets(snapshot, groups, jobs)
    by_nodes = snapshot.capacity is CapacityMode.NODES
    return Observation(
        now=snapshot.now,
        interval=interval,
        jobs=tuple(_view(group, jobs[group.key]) for group in groups),
        nodes=_nodes(snapshot, {group.key for group in groups})
        if by_nodes
        else (_everything(groups, budgets),),
        budgets=budgets,
    )


def _view(group: Group, job: DLJob) -> JobView:
    spec = job.spec
    requests = {member.name: member.requests for member in group.members}
    return JobView(
        id=str(group.key),
        model=spec.model,
        queue=group.queue,
        priority=group.priority,
        submitted_at=group.created,
        started_at=group.ready_at or group.admitted_at,
        worker_requests=requests.get(names.WORKER, {}),
        server_requests=requests.get(names.SERVER, {}),
        minimum=Scale(spec.workers.min, spec.servers.min if spec.servers else 0),
        maximum=_maximum(job),
        current=admitted_shape(group),
        epochs_total=float(spec.training.epochs) if spec.training.epochs else None,
        epochs_done=_epochs_done(job),
        samples=_samples(job, admitted_shape(group)),
    )


def _maximum(job: DLJob) -> Scale:
    return Scale(job.spec.workers.maximum, job.spec.servers.maximum if job.spec.servers else 0)


def _epochs_done(job: DLJob) -> float:
    progress, steps = job.status.progress, job.spec.training.steps_per_epoch
    if progress is None:
        return 0.0
    return progress.step / steps if steps else float(progress.epoch)


def _samples(job: DLJob, current: Scale) -> tuple[SpeedSample, ...]:
    """The speed that the job reports, measured at the shape that it has."""
    progress, steps = job.status.progress, job.spec.training.steps_per_epoch
    if (
        current == STOPPED
        or progress is None
        or not (progress.steps_per_second and progress.updated_at and steps)
    ):
        return ()
    return (SpeedSample(current, progress.steps_per_second / steps, progress.updated_at),)


def _nodes(snapshot: Snapshot, mine: Set[Key]) -> tuple[NodeView, ...]:
    """The nodes where pods may start; `free` counts as if none of `mine` ran."""
    usable = [node for node in snapshot.nodes if node.ready and not node.unschedulable]
    free = {
        node.name: {
            name: amount - node.used_by_others.get(name, 0) for name, amount in node.allocatable.items()
        }
        for node in usable
    }
    for pod in (pod for group in snapshot.groups if group.key not in mine for pod in group.pods):
        if pod.node in free and not pod.finished:
            for name, amount in pod.requests.items():
                free[pod.node][name] = free[pod.node].get(name, 0) - amount
    return tuple(
        NodeView(node.name, {name: max(0, left) for name, left in free[node.name].items()}, node.allocatable)
        for node in usable
    )


def _everything(groups: Sequence[Group], budgets: Mapping[str, Mapping[str, int]]) -> NodeView:
    """Where nodes are not looked at, one that has all that the queues may hold, and enough of what none of them names."""
    asked = {name for group in groups for member in group.members for name in member.requests}
    total = {
        name: sum(budget[name] for budget in budgets.values())
        if all(name in budget for budget in budgets.values())
        else _ENOUGH
        for name in sorted(asked)
    }
    return NodeView("quota", total, total)


def _budgets(snapshot: Snapshot, groups: Sequence[Group], jobs: Sizable) -> dict[str, dict[str, int]]:
    """What the jobs of each queue may hold in all: its share, were every job to ask for its maximum, without the rest
    of its load."""
    widest = {group.key: _maximum(jobs[group.key]) for group in groups}
    shares = decide(_with_counts(snapshot, widest)).queues
    budgets: dict[str, dict[str, int]] = {}
    for name in {group.queue for group in groups}:
        usage = shares[name].usage if name in shares else {}
        others = [
            g for g in snapshot.groups if g.queue == name and g.key not in widest and g.admitted is not None
        ]
        budgets[name] = {
            resource: max(0, figures.share - sum(_held(group, resource) for group in others))
            for resource, figures in usage.items()
        }
    return budgets


def _held(group: Group, resource: str) -> int:
    given = group.admitted or {}
    return sum(
        member.requests.get(resource, 0) * given[member.name].count
        for member in group.members
        if member.name in given
    )


def _with_counts(snapshot: Snapshot, scales: Mapping[Key, Scale]) -> Snapshot:
    groups = tuple(_resized(g, scales[g.key]) if g.key in scales else g for g in snapshot.groups)
    return replace(snapshot, groups=groups)


def _resized(group: Group, scale: Scale) -> Group:
    counts = {names.WORKER: scale.workers, names.SERVER: scale.servers}
    members = tuple(
        replace(m, count=counts.get(m.name, m.count), min_count=min(m.min_count, counts.get(m.name, m.count)))
        for m in group.members
    )
    return replace(group, members=members, elastic=any(m.min_count < m.count for m in members))


def _at_least(scale: Scale, minimum: Scale) -> Scale:
    return Scale(max(scale.workers, minimum.workers), max(scale.servers, minimum.servers))
