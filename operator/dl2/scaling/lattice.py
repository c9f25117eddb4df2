"""The shapes that are considered: all pairs of a few numbers of workers and servers, dense where small."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dl2.scaling.interface import Scale

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WORKERS = (*range(1, 17), 20, 24, 32, 40, 48, 64, 96, 128, 192, 256)
SERVERS = (0, *WORKERS)
SIZE = len(WORKERS) * len(SERVERS)


class Shapes(NamedTuple):
    """Shapes that a job may take, as parallel arrays (C,), and the lattice point that stands for each."""

    workers: Ints
    servers: Ints
    points: Ints

    def scale(self, i: int) -> Scale:
        return Scale(int(self.workers[i]), int(self.servers[i]))


@lru_cache(maxsize=1)
def coordinates() -> Floats:
    """(SIZE, 2): log2 of workers and servers of every lattice point; no server counts as half of one."""
    workers, servers = np.meshgrid(np.array(WORKERS, float), np.array(SERVERS, float), indexing="ij")
    return np.stack([np.log2(workers.ravel()), np.log2(np.maximum(servers.ravel(), 0.5))], axis=1)


def nearest(workers: Ints, servers: Ints) -> Ints:
    """Numbers of the lattice points next to the given shapes."""
    return _snap(WORKERS, workers) * len(SERVERS) + _snap(SERVERS, servers)


def _snap(axis: tuple[int, ...], values: Ints) -> Ints:
    """Index of the nearest entry of a sorted axis, the larger of two equally near."""
    known = np.array(axis)
    right = np.clip(np.searchsorted(known, values), 1, len(known) - 1)
    return np.where(values - known[right - 1] < known[right] - values, right - 1, right)


@lru_cache(maxsize=1024)
def shapes_between(least: Scale, most: Scale) -> Shapes:
    """Lattice shapes from `least` to `most`; the bounds themselves are always among them."""
    workers = np.unique(np.clip(np.array(WORKERS), least.workers, most.workers))
    servers = np.unique(np.clip(np.array(SERVERS), least.servers, most.servers))
    grid_w, grid_s = (axis.ravel().astype(np.int64) for axis in np.meshgrid(workers, servers, indexing="ij"))
    return Shapes(grid_w, grid_s, nearest(grid_w, grid_s))
