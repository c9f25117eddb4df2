"""What the network sees: per job (J, FEATURES) and of the cluster (CLUSTER,). No units, no counts that grow.

Everything is a ratio or the log of one, so that one checkpoint serves 1 or 500 jobs, any resources and any
cluster. Change anything here and raise VERSION: a checkpoint of another version is refused.
"""

from __future__ import annotations

import numpy as np

from dl2.scaling.interface import JobView, Observation
from dl2.scaling.lattice import Floats
from dl2.scaling.room import Room
from dl2.scaling.table import Table

VERSION = 1
FEATURES = 16
CLUSTER = 6
_ENOUGH = 0.8
_BOUND = 4.0


def features(table: Table, observation: Observation, room: Room, pause: float) -> tuple[Floats, Floats]:
    """Of the table's jobs; `pause`: seconds a resize costs. Finite and within ±4."""
    jobs, count = table.jobs, len(table.jobs)
    if not jobs:
        return np.zeros((0, FEATURES)), _cluster(observation, pause, 0, 0.0, 0.0)
    interval, at = max(observation.interval, 1e-9), np.arange(count)
    best = table.speed.argmax(axis=1)
    top, bottom = table.speed[at, best], table.speed[:, 0]
    sizes = np.where(table.speed >= _ENOUGH * top[:, None], table.workers + table.servers, np.inf)
    enough = sizes.argmin(axis=1)
    running = (table.held[:, 0] > 0).astype(float)
    least_share = _shares(table.pods, room, table.workers[:, 0], table.servers[:, 0])
    enough_share = _shares(table.pods, room, table.workers[at, enough], table.servers[at, enough])
    current_share = _shares(table.pods, room, table.held[:, 0], table.held[:, 1])
    age = np.array([max(observation.now - job.submitted_at, 0.0) for job in jobs]) / interval
    columns = [
        np.log(table.left / (top * interval)) / 3.0,
        np.log(table.left / (bottom * interval)) / 3.0,
        np.log(top / bottom),
        np.log((enough_share + 1e-9) / (least_share + 1e-9)) / 2.0,
        table.deviation.sum(axis=1) / (table.workers > 0).sum(axis=1) * 2.0,
        table.deviation[at, best] * 2.0,
        np.log1p(np.minimum(table.samples, 1e6)) / 3.0,
        running,
        running * table.speed[at, table.current] / top,
        np.log((current_share + 1e-9) * count + 1e-3) / 3.0,
        np.array([_progress(job) for job in jobs]),
        np.log1p(age) / 3.0,
        np.array([job.model is not None for job in jobs], dtype=float),
        np.array([job.maximum.servers <= 0 for job in jobs], dtype=float),
        np.log(least_share * count + 1e-3) / 3.0,
        np.log1p([len(job.samples) for job in jobs]) / 3.0,
    ]
    cluster = _cluster(observation, pause, count, float(least_share.sum()), float(enough_share.sum()))
    return _bounded(np.stack(columns, axis=1)), cluster


def _cluster(observation: Observation, pause: float, jobs: int, least: float, enough: float) -> Floats:
    """`least`, `enough`: dominant shares of all jobs together at their smallest and at a sufficient shape."""
    return _bounded(
        np.array(
            [
                np.log1p(jobs) / 4.0,
                np.log(least + 1e-3) / 3.0,
                np.log(enough + 1e-3) / 3.0,
                min(pause / max(observation.interval, 1e-9), 1.0) * 4.0,
                np.log1p(len(observation.nodes)) / 4.0,
                float(bool(observation.budgets)),
            ]
        )
    )


def _bounded(values: Floats) -> Floats:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=_BOUND, neginf=-_BOUND), -_BOUND, _BOUND)


def _progress(job: JobView) -> float:
    """Part of the work that is done, -1 where nobody knows."""
    total = job.epochs_total or 0.0
    return min(job.epochs_done / total, 1.0) if total > 0 else -1.0


def _shares(pods: Floats, room: Room, workers: Floats, servers: Floats) -> Floats:
    """(J,): dominant share of each job at the given shape, as `Room.dominant` has it. `pods`: (J, 2, R)."""
    amounts = pods[:, 0] * workers[:, None] + pods[:, 1] * servers[:, None]
    has = np.array(room.capacity, dtype=float)
    parts = np.where(has > 0, amounts / np.maximum(has, 1.0), amounts > 0)
    return np.asarray(parts.max(axis=1, initial=0.0))
