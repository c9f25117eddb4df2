"""What the network sees: per job (J, FEATURES) and of the cluster (CLUSTER,). No units, no counts that grow.

Everything is a ratio or the log of one, so that one checkpoint serves 1 or 500 jobs, any resources and any
cluster. Change anything here and raise VERSION: a checkpoint of another version is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dl2.scaling.beliefs import Belief
from dl2.scaling.bounds import remaining
from dl2.scaling.interface import JobView, Observation
from dl2.scaling.lattice import Floats
from dl2.scaling.room import Room

VERSION = 1
FEATURES = 16
CLUSTER = 6
_ENOUGH = 0.8
_BOUND = 4.0


def features(
    jobs: Sequence[JobView],
    beliefs: Mapping[str, Belief],
    observation: Observation,
    room: Room,
    pause: float,
) -> tuple[Floats, Floats]:
    """Of `jobs` in their order; `pause`: seconds a resize costs. Finite and within ±4."""
    gists = {id(belief): _gist(belief) for belief in {id(b): b for b in beliefs.values()}.values()}
    rows = np.array(
        [_job(job, beliefs[job.id], gists[id(beliefs[job.id])], observation, room, len(jobs)) for job in jobs]
    )
    rows = rows.reshape(len(jobs), FEATURES + 2)
    least, enough = rows[:, FEATURES].sum(), rows[:, FEATURES + 1].sum()
    cluster = np.array(
        [
            math.log1p(len(jobs)) / 4.0,
            math.log(least + 1e-3) / 3.0,
            math.log(enough + 1e-3) / 3.0,
            min(pause / max(observation.interval, 1e-9), 1.0) * 4.0,
            math.log1p(len(observation.nodes)) / 4.0,
            float(bool(observation.budgets)),
        ]
    )
    return _bounded(rows[:, :FEATURES]), _bounded(cluster)


def _bounded(values: Floats) -> Floats:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=_BOUND, neginf=-_BOUND), -_BOUND, _BOUND)


class _Gist(NamedTuple):
    """Of a belief: the largest and the first speed, the first shape that is fast enough, and the deviations."""

    top: float
    bottom: float
    enough: int
    mean_deviation: float
    best_deviation: float


def _gist(belief: Belief) -> _Gist:
    speed, sizes = belief.speed, belief.shapes.workers + belief.shapes.servers
    best = int(np.argmax(speed))
    enough = np.flatnonzero(speed >= _ENOUGH * speed[best])
    return _Gist(
        float(speed[best]),
        float(speed[0]),
        int(enough[np.argmin(sizes[enough])]),
        float(belief.deviation.mean()),
        float(belief.deviation[best]),
    )


def _job(
    job: JobView, belief: Belief, gist: _Gist, observation: Observation, room: Room, jobs: int
) -> list[float]:
    """One row; its last two entries are dominant shares at the smallest and at a sufficient shape."""
    interval = max(observation.interval, 1e-9)
    left, shapes = remaining(job), belief.shapes
    least_share = room.dominant(room.amounts(job, shapes.scale(0)))
    enough_share = room.dominant(room.amounts(job, shapes.scale(gist.enough)))
    current_share = room.dominant(room.amounts(job, job.current))
    running = job.current.workers > 0
    total = job.epochs_total or 0.0
    age = max(observation.now - job.submitted_at, 0.0) / interval
    return [
        math.log(left / (gist.top * interval)) / 3.0,
        math.log(left / (gist.bottom * interval)) / 3.0,
        math.log(gist.top / gist.bottom),
        math.log((enough_share + 1e-9) / (least_share + 1e-9)) / 2.0,
        gist.mean_deviation * 2.0,
        gist.best_deviation * 2.0,
        math.log1p(min(belief.samples, 1e6)) / 3.0,
        float(running),
        belief.at(job.current) / gist.top,
        math.log((current_share + 1e-9) * jobs + 1e-3) / 3.0,
        min(job.epochs_done / total, 1.0) if total > 0 else -1.0,
        math.log1p(age) / 3.0,
        float(job.model is not None),
        float(job.maximum.servers <= 0),
        math.log(least_share * jobs + 1e-3) / 3.0,
        math.log1p(len(job.samples)) / 3.0,
        least_share,
        enough_share,
    ]
