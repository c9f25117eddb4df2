"""The shape of a DLJob: as it was written, or as a scaling policy has chosen it. Pure.

What was chosen is remembered by the PodGroup alone, as its counts and the policy's name in an annotation, so a restart
of the operator changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dl2.api import DLJob, PodGroup, names
from dl2.api.podgroup import Member as SpecMember
from dl2.scaling.interface import STOPPED, Scale
from dl2.scheduling.snapshot import Group, Member


@dataclass(frozen=True, slots=True)
class Target:
    """What a policy gives a job."""

    scale: Scale
    policy: str


def chosen(job: DLJob, group: PodGroup | None, target: Target | None) -> tuple[DLJob, str, bool]:
    """(`job` in the shape that a policy has chosen for it, that policy, whether its PodGroup has this shape).

    Without a new target it keeps the shape that its PodGroup was given by a policy; without any it is as it was
    written. Somebody who names a number of replicas decides about these alone: the other role stays as it is, and so
    does this one when he leaves the number to the policy again.
    """
    if not may_be_sized(job):
        return job, "", True
    has_scale = shape_of(group.spec.members) if group else STOPPED
    by = scaled_by(group)
    if target is None or not is_sizable(job):
        if not by:
            return job, "", True
        target = Target(has_scale, by)
    return _shaped(job, target.scale), target.policy, has_scale == target.scale


def scaled_by(group: object) -> str:
    """The policy that has chosen the counts of a PodGroup; "" where none has, or it cannot be read."""
    return group.metadata.annotations.get(names.SCALED_BY, "") if isinstance(group, PodGroup) else ""


def _shaped(job: DLJob, scale: Scale) -> DLJob:
    """`job` as if it were to start with `scale`, as far as its bounds allow."""
    spec, shapes = job.spec, {"workers": (job.spec.workers, scale.workers)}
    if spec.servers:
        shapes["servers"] = (spec.servers, scale.servers)
    changed = {
        name: role.model_copy(
            update={"initial": min(max(count, role.min), role.maximum), "max": role.maximum}
        )
        for name, (role, count) in shapes.items()
    }
    return job.model_copy(update={"spec": spec.model_copy(update=changed)})


def shape_of(members: Iterable[Member | SpecMember]) -> Scale:
    """What the counts of a group's members ask for."""
    counts = {member.name: member.count for member in members}
    return Scale(counts.get(names.WORKER, 0), counts.get(names.SERVER, 0))


def admitted_shape(group: Group) -> Scale:
    """Scale(0, 0): it is not admitted."""
    given = {name: member.count for name, member in (group.admitted or {}).items()}
    return Scale(given.get(names.WORKER, 0), given.get(names.SERVER, 0))


def may_be_sized(job: DLJob) -> bool:
    """A static job would have to restart."""
    return job.spec.scaling.mode == "Auto" and job.spec.runtime == "elastic"


def is_sizable(job: DLJob) -> bool:
    """Whoever names a number of replicas decides himself."""
    spec = job.spec
    fixed = spec.workers.wanted or (spec.servers and spec.servers.wanted)
    return may_be_sized(job) and not fixed
