"""A job's bounds and requests made sane, and the one order in which jobs stand where nothing else decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dl2.scaling.interface import STOPPED, JobView, Scale

Amounts = Mapping[str, int]


def standing(job: JobView) -> tuple[int, float, str]:
    """Sort key: higher priority first, then older, then by id."""
    return -job.priority, job.submitted_at, job.id


def in_order(jobs: Sequence[JobView]) -> list[JobView]:
    """The jobs by `standing`, so that the order in which they were given means nothing."""
    return sorted(jobs, key=standing)


def bounds(job: JobView) -> tuple[Scale, Scale] | None:
    """(minimum, maximum) with at least one worker and no negative number, or None: no shape is allowed."""
    least = Scale(max(1, job.minimum.workers), max(0, job.minimum.servers))
    most = Scale(job.maximum.workers, max(0, job.maximum.servers))
    return (least, most) if most.workers >= least.workers and most.servers >= least.servers else None


def choices(job: JobView) -> tuple[Scale, Scale] | None:
    """The bounds that a policy chooses between: where the minimum says nothing, one of each kind that is allowed.

    A job that may have servers hardly trains without any, and no policy should have to find that out.
    """
    limits = bounds(job)
    if limits is None or job.minimum.workers > 0:
        return limits
    least, most = limits
    return Scale(least.workers, max(least.servers, min(1, most.servers))), most


def within(scale: Scale, limits: tuple[Scale, Scale] | None) -> Scale:
    """`scale` cut to the maximum; Scale(0, 0) where it is below the minimum (half a job does not run)."""
    if limits is None:
        return STOPPED
    least, most = limits
    cut = Scale(min(scale.workers, most.workers), min(scale.servers, most.servers))
    return cut if cut.workers >= least.workers and cut.servers >= least.servers else STOPPED


def use(job: JobView, scale: Scale) -> dict[str, int]:
    """What `job` holds at `scale`, by resource."""
    held = {name: amount * scale.workers for name, amount in job.worker_requests.items() if amount > 0}
    for name, amount in job.server_requests.items():
        if amount > 0:
            held[name] = held.get(name, 0) + amount * scale.servers
    return held


def remaining(job: JobView) -> float:
    """Epochs left to train (above 0). A job that declares no work is taken to have as much before it as behind it.

    That is the expectation of a heavy-tailed size, given what has passed (Gittins; see Tiresias, NSDI 2019).
    """
    done = job.epochs_done if math.isfinite(job.epochs_done) and job.epochs_done > 0 else 0.0
    total = job.epochs_total
    if total is None or not math.isfinite(total) or total <= 0:
        return max(done, 1.0)
    return max(total - done, 1e-3 * total)
