"""The best known shape of a job: what a policy gives that decides who runs, but not how large."""

from __future__ import annotations

import numpy as np

from dl2.scaling.beliefs import Belief
from dl2.scaling.interface import JobView, Scale
from dl2.scaling.room import Room

ENOUGH = 0.7  # of the speed that could be had


def best_fitting(job: JobView, belief: Belief, room: Room, enough: float = ENOUGH) -> Scale | None:
    """The cheapest shape (by dominant share) with so much of the best speed among those that fit, or None.

    The last part of the speed costs more than all before it: of 50, 70 and 90 %, 70 serves these policies best.
    """
    worker, server = (np.array(vector, dtype=float) for vector in room.vectors(job))
    shapes = belief.shapes
    asked = np.outer(shapes.workers, worker) + np.outer(shapes.servers, server)
    fits = (asked <= np.array(room.limits(job), dtype=float)).all(axis=1)
    if not fits.any():
        return None
    speed = np.where(fits, belief.speed, 0.0)
    fast = np.flatnonzero(speed >= enough * speed.max())
    cost = (asked[fast] * np.array(room.prices())).max(axis=1, initial=0.0)
    order = np.lexsort((-speed[fast], cost))
    return shapes.scale(int(fast[order[0]]))
