"""What a policy believes about the speed of each job at each shape it may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from dl2.scaling.bounds import choices
from dl2.scaling.history import History
from dl2.scaling.interface import JobView, Observation, Scale
from dl2.scaling.lattice import Floats, Shapes, shapes_between
from dl2.scaling.surfaces import Prior, Surfaces

TrueSpeeds = Callable[[JobView, Scale], float]  # epochs a second


class Belief(NamedTuple):
    """Of one job, over its shapes (C,): expected epochs a second, and the deviation of the log of that.

    `samples`: how many measurements of its kind stand behind it.
    """

    shapes: Shapes
    speed: Floats
    deviation: Floats
    samples: float

    def at(self, scale: Scale, deviations: float = 0.0) -> float:
        """Believed speed at the shape nearest to `scale`, so many deviations above what is expected; 0 for a job that
        does not run.
        """
        if scale.workers <= 0:
            return 0.0
        off = np.abs(self.shapes.workers - scale.workers) + np.abs(self.shapes.servers - scale.servers)
        nearest = int(np.argmin(off))
        return float(self.speed[nearest] * np.exp(deviations * self.deviation[nearest]))


class Source(Protocol):
    """Where beliefs come from."""

    def beliefs(self, observation: Observation) -> dict[str, Belief]:
        """Of every job that has an allowed shape."""


class Measured:
    """Fitted online from samples, pooled by kind (`dl2.scaling.surfaces`): what a real operator can know.

    `prior`: what is expected of speeds before; by hand where none is given.
    """

    def __init__(self, history: History | None = None, prior: Prior | None = None) -> None:
        self.history = history or History()
        self._surfaces = Surfaces(prior)

    def beliefs(self, observation: Observation) -> dict[str, Belief]:
        kinds = self.history.take_in(observation)
        shapes = {
            job.id: shapes_between(*limits)
            for job in observation.jobs
            if (limits := choices(job)) is not None
        }
        distinct = {id(each): each.points for each in shapes.values()}
        points = np.unique(np.concatenate([*distinct.values(), np.zeros(1, np.int64)]))
        places = {key: np.searchsorted(points, at) for key, at in distinct.items()}
        surfaces = self._surfaces.fit(self.history, sorted(set(kinds.values())), points)
        alike: dict[tuple[int, int], Belief] = {}  # jobs of one surface and bounds share theirs
        found = {}
        for name, each in shapes.items():
            surface = surfaces[kinds[name]]
            key = (id(surface), id(each))
            if key not in alike:
                mean, deviation, samples = surface
                at = places[id(each)]
                alike[key] = Belief(each, np.exp(mean[at]), deviation[at], samples)
            found[name] = alike[key]
        return found


class Blinkers:
    """Ablations: a source that is shown no labels (`labels` false), or nothing that was measured (`speeds` false)."""

    def __init__(self, source: Source, *, labels: bool = True, speeds: bool = True) -> None:
        self._source, self._labels, self._speeds = source, labels, speeds

    def beliefs(self, observation: Observation) -> dict[str, Belief]:
        jobs = observation.jobs
        if not self._labels:
            jobs = tuple(replace(job, model=None) for job in jobs)
        if not self._speeds:
            jobs = tuple(replace(job, samples=()) for job in jobs)
        return self._source.beliefs(replace(observation, jobs=jobs))


class Known:
    """The true speeds, for the yardsticks that say so in their names."""

    def __init__(self, speeds: TrueSpeeds) -> None:
        self._speeds = speeds

    def beliefs(self, observation: Observation) -> dict[str, Belief]:
        found = {}
        for job in observation.jobs:
            limits = choices(job)
            if limits is not None:
                shapes = shapes_between(*limits)
                speed = np.array([self._speeds(job, shapes.scale(i)) for i in range(len(shapes.points))])
                found[job.id] = Belief(shapes, np.maximum(speed, 1e-15), np.zeros(len(speed)), np.inf)
        return found
