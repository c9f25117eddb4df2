"""What speeds are like before anything was measured, learned from the families that the agent is trained on.

The log of a job's speed is a level of its own, coefficients on the features of `dl2.scaling.surfaces`, and white
roughness. The coefficients of all kinds of jobs are draws from one normal distribution; its mean and covariance are
fitted by expectation maximisation over many random speed functions (Dempster, Laird and Rubin, 1977; empirical Bayes
for Gaussian processes: Rasmussen and Williams, 2006, section 5.4.1). Where no speed function has shapes, as in
directions of very many pods, the distribution stays the one to begin with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dl2.learning.families import FAMILIES, TRAINED_ON
from dl2.learning.suites import SEEDS, Split
from dl2.scaling.interface import Scale
from dl2.scaling.lattice import Floats, Ints, nearest
from dl2.scaling.surfaces import by_hand, features

Progress = Callable[[int], None]
ROUNDS = 25

_POINTS = 48  # shapes of one speed function, rather small than large ones
_SMALL_JOBS, _WITHOUT_SERVERS = 0.25, 0.2  # parts of the draws: up to 8 of each, the others 16; workers alone
_ROUGHNESS = 0.12  # deviation of a shape's log speed from its surface
_FREE_LEVEL = 10.0  # variance of the level: it says nothing of the shape of a surface
_STALL = 0.45  # so far below its surface (log) a shape hardly trains and says nothing of it
_LOOKS = (3, 8)  # after these rounds stalls are left out


class Drawn(NamedTuple):
    """A speed function as it is fitted: lattice points and log speeds, both (n,)."""

    points: Ints
    speeds: Floats


def learn(
    seed: int = 0, surfaces: int = 3000, rounds: int = ROUNDS, progress: Progress = lambda done: None
) -> tuple[Floats, Floats]:
    """Mean (F,) and covariance (F, F) of coefficients, from so many speed functions of the training families.

    The same arguments give the same on one machine. `progress(rounds done)` is called after each round.
    """
    drawn = [draw(seed * 100_000 + n) for n in range(surfaces)]
    begin = by_hand()
    mean, covariance = begin.mean, begin.covariance
    for done in range(1, rounds + 1):
        fits = [_fit(one, mean, covariance) for one in drawn]
        if done in _LOOKS:
            drawn = [_without_stalls(one, fit) for one, (fit, _) in zip(drawn, fits, strict=True)]
        mean = np.mean([fit for fit, _ in fits], axis=0)
        covariance = np.mean([left + np.outer(fit - mean, fit - mean) for fit, left in fits], axis=0)
        covariance = (covariance + covariance.T) / 2.0
        progress(done)
    return mean, covariance


def draw(n: int) -> Drawn:
    """The n-th random speed function, in turn of each family."""
    rng = np.random.default_rng([SEEDS[Split.TRAINING][n % 900_000], 0x9B10])
    pods = 8 if rng.random() < _SMALL_JOBS else 16
    alone = rng.random() < _WITHOUT_SERVERS
    speed = FAMILIES[TRAINED_ON[n % len(TRAINED_ON)]](rng, Scale(pods, 0 if alone else pods))
    grid = np.meshgrid(range(1, pods + 1), [0] if alone else range(1, pods + 1), indexing="ij")
    workers, servers = (axis.ravel() for axis in grid)
    if len(workers) > _POINTS:
        odds = 1.0 / np.sqrt(workers * np.maximum(servers, 1))
        chosen = np.sort(rng.choice(len(workers), _POINTS, replace=False, p=odds / odds.sum()))
        workers, servers = workers[chosen], servers[chosen]
    scales = zip(workers.tolist(), servers.tolist(), strict=True)
    logs = np.log(np.maximum([speed(Scale(w, s)) for w, s in scales], 1e-12))
    return Drawn(nearest(workers, servers), logs - logs.mean())


def _fit(one: Drawn, mean: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """Mean (F,) and covariance (F, F) of one surface's coefficients, given its speeds."""
    x = features()[one.points]
    across = covariance @ x.T
    inner = x @ across + _FREE_LEVEL + _ROUGHNESS**2 * np.eye(len(x))
    gain = np.linalg.solve(inner, across.T).T
    return mean + gain @ (one.speeds - x @ mean), covariance - gain @ across.T


def _without_stalls(one: Drawn, fit: Floats) -> Drawn:
    off = one.speeds - features()[one.points] @ fit
    fair = off - np.median(off) > -_STALL
    return Drawn(one.points[fair], one.speeds[fair])
