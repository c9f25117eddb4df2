"""Jobs side by side with what is believed of each, as arrays: what all jobs have in common is worked out at once.

Rows are jobs in their order, columns their shapes; rows of fewer shapes are padded with shapes of no speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dl2.scaling.beliefs import Belief
from dl2.scaling.bounds import remaining
from dl2.scaling.interface import JobView
from dl2.scaling.lattice import Floats, Ints
from dl2.scaling.room import Room


class Table:
    """`workers`, `servers`, `speed` (epochs a second), `deviation` (of its log): (J, C). `samples`, `left`, `kind` and
    `rank`: (J,). `held`: the workers and servers that it has, (J, 2). `pods`: requests of a worker and of a server,
    (J, 2, R), over the room's resources.

    Shapes that a job could not even have alone are left out: a hull that begins with one would keep it from starting.
    """

    def __init__(self, jobs: Sequence[JobView], beliefs: Mapping[str, Belief], room: Room) -> None:
        """`room` must host all `jobs`."""
        self.jobs = list(jobs)
        mine = [beliefs[job.id] for job in jobs]
        distinct = list({id(belief): belief for belief in mine}.values())
        row = {id(belief): n for n, belief in enumerate(distinct)}
        rows = np.array([row[id(belief)] for belief in mine], dtype=np.int64)
        columns = max((len(belief.speed) for belief in distinct), default=0)

        def stacked(arrays: Sequence[Floats | Ints]) -> Floats:
            padded = np.zeros((len(arrays), columns))
            for n, array in enumerate(arrays):
                padded[n, : len(array)] = array
            return np.asarray(padded[rows])

        self.workers = stacked([belief.shapes.workers for belief in distinct])
        self.servers = stacked([belief.shapes.servers for belief in distinct])
        self.speed = stacked([belief.speed for belief in distinct])
        self.deviation = stacked([belief.deviation for belief in distinct])
        size = (len(self.jobs), 2, len(room.resources))
        self.pods = np.array([room.vectors(job) for job in jobs], dtype=float).reshape(size)
        too_large = self._too_large(room)
        for array in (self.workers, self.servers, self.speed, self.deviation):
            array[too_large] = 0.0
        self.samples = np.array([belief.samples for belief in mine])
        self.left = np.array([remaining(job) for job in jobs])
        self.kind, self.rank = _kinds(mine)
        self.held = np.array([job.current for job in jobs], dtype=float).reshape(-1, 2)

    def _too_large(self, room: Room) -> npt.NDArray[np.bool_]:
        """(J, C): does the shape exceed what there is for the job?"""
        most = np.array([list(map(room.most, room.vectors(job))) for job in self.jobs]).reshape(-1, 2)
        too_large = (self.workers > most[:, :1]) | (self.servers > most[:, 1:])
        ceiling = [room.ceiling(job) for job in self.jobs]
        for r in range(len(room.resources)):
            asks = self.workers * self.pods[:, 0, r, None] + self.servers * self.pods[:, 1, r, None]
            too_large |= asks > np.array([limits[r] for limits in ceiling])[:, None]
        return np.asarray(too_large)

    @cached_property
    def current(self) -> Ints:
        """(J,): the column of the shape nearest to what each job has; there must be jobs."""
        off = np.abs(self.workers - self.held[:, :1]) + np.abs(self.servers - self.held[:, 1:])
        return np.asarray(np.where(self.workers > 0, off, np.inf).argmin(axis=1))


def _kinds(beliefs: Sequence[Belief]) -> tuple[Ints, Ints]:
    """Of each job (J,) the number of its kind, those that learn from the same samples, and how many of the kind stand
    before it. Where there are no samples yet, each is a kind of its own.
    """
    numbers: dict[tuple[int, int], int] = {}
    members: Counter[int] = Counter()
    kinds, ranks = np.zeros((2, len(beliefs)), dtype=np.int64)
    for n, belief in enumerate(beliefs):
        alone = -1 if belief.samples > 0 else n
        kinds[n] = numbers.setdefault((id(belief), alone), len(numbers))
        ranks[n] = members[int(kinds[n])]
        members[int(kinds[n])] += 1
    return kinds, ranks
