"""Speed over (workers, servers), learned online from samples, with its uncertainty.

The log of the speed is a Gaussian process over (log2 workers, log2 servers): per kind of job a level, a smooth
and a rough part of its own, on top of a smooth part that all kinds share. The shared part is a Bayesian linear
regression on radial bumps (a truncated Gaussian process), fitted over all kinds; the own parts are exact
Gaussian processes on what it leaves over (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006,
ch. 2 and 2.7). Textbook step-time formulas are no prior here: measured speeds contradict them too often, and are
not even monotone in workers or servers. What is expected before any sample is put down by hand below; the agent has
learned its own (`dl2.scaling.agent.prior`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dl2.scaling.cells import Kind, Name
from dl2.scaling.history import History
from dl2.scaling.interface import Scale
from dl2.scaling.kinship import Kinship
from dl2.scaling.lattice import Floats, Ints, coordinates, nearest

# Standard deviations (of the natural log of the speed) and length scales (in doublings).
LEVEL = 1.5  # how far the level of a kind may lie from the mean of all
SMOOTH, SMOOTH_LENGTH = 0.45, 2.0
ROUGH, ROUGH_LENGTH = 0.12, 0.12
BUMP, BUMP_LENGTH = 0.40, 1.9
SLOPES, SLOPE = (0.30, 0.10), 0.25  # prior means and deviation of the shared trend per doubling
NOISE, NOISE_STRENGTH = 0.05, 8.0  # prior noise of one sample, and how many samples that belief weighs
LEARNED_SHARED = 0.3  # part of a learned covariance that all kinds are taken to share
MOST_POINTS = 48  # shapes of one kind that are conditioned on: those with most samples
_STALL, _STALL_DEVIATIONS = 0.5, 3.0  # so far below what the other shapes say (log, deviations): a stall
_LIE, _LIE_DEVIATIONS = 1.4, 4.0  # so far above it: nothing trains like that,
_AGREED = 3.0  # unless so many samples say so


class Surface(NamedTuple):
    """Of one kind, over the points asked for (P,): mean log speed and its standard deviation; samples pooled."""

    mean: Floats
    deviation: Floats
    samples: float


class Prior:
    """What speeds are like before anything was measured, but for the level of a kind.

    `mean` (F,) and `covariance` (F, F): of the coefficients of the part that all kinds share; `own` (SIZE, SIZE): of
    what is a kind's own.
    """

    def __init__(self, mean: Floats, covariance: Floats, own: Floats) -> None:
        self.mean, self.covariance, self.own = mean, covariance, own
        self.precision: Floats = np.asarray(np.linalg.inv(covariance), dtype=float)
        self.pull: Floats = self.precision @ mean
        self._expected: Floats = features() @ mean

    @classmethod
    def learned(cls, mean: Floats, covariance: Floats) -> Prior:
        """From the distribution of the coefficients of single kinds: part of it is shared, the rest a kind's own."""
        own = features() @ ((1.0 - LEARNED_SHARED) * covariance) @ features().T
        return cls(mean, LEARNED_SHARED * covariance, own + ROUGH**2 * _alike(ROUGH_LENGTH))

    def trend(self, points: Ints) -> Floats:
        """Expected log speed, without its level."""
        return self._expected[points]

    def between(self, rows: Ints, columns: Ints) -> Floats:
        """(rows, columns): covariance of one kind's log speed."""
        shared = features()[rows] @ self.covariance @ features()[columns].T
        return np.asarray(self.own[np.ix_(rows, columns)] + shared + LEVEL**2)


class _Points(NamedTuple):
    """One kind's measured shapes, and what they say of the shared part."""

    points: Ints  # lattice points (n,)
    values: Floats  # mean log speed (n,)
    noise: Floats  # variance of that mean (n,)
    precision: Floats  # (F, F)
    pull: Floats  # (F,)
    stalls: Ints  # lattice points (m,) that hardly train and say nothing of their neighbours
    stalled: Floats  # mean log speed there (m,)


class Surfaces:
    """Fitted surfaces by kind. What depends on one kind's samples alone is kept until it has new ones."""

    def __init__(self, prior: Prior | None = None) -> None:
        self._prior = prior or by_hand()
        self._kinship = Kinship()
        self._tables: dict[int, tuple[Kind, int, float, _Points]] = {}

    def fit(self, history: History, wanted: Sequence[Name], points: Ints) -> dict[Name, Surface]:
        """The surface of each wanted kind at the lattice `points` (P,), given everything in `history`."""
        noise = _noise([kind for kind in history.kinds.values() if kind.cells])
        before, self._tables = self._tables, {}

        def table(kind: Kind) -> _Points:
            known = self._tables.get(id(kind)) or before.get(id(kind))
            if known is None or known[1:3] != (kind.version, noise):
                known = (kind, kind.version, noise, _table(kind, noise, self._prior))
            self._tables[id(kind)] = known
            return known[3]

        pools = self._kinship.pools(history.kinds, lambda a, b: _evidence(table(a), table(b), self._prior))
        tables = {leader: table(pool) for leader, pool in pools.items()}
        shared = _Shared(list(tables.values()), self._prior)
        unknown = Surface(shared.mean[points] + shared.level, np.sqrt(shared.prior[points]), 0.0)
        found = {}
        for name in dict.fromkeys(self._kinship.leader(name) for name in wanted):
            if name in tables:
                found[name] = _condition(tables[name], pools[name].samples, shared, points)
        return {name: found.get(self._kinship.leader(name), unknown) for name in wanted}


def _noise(measured: Sequence[Kind]) -> float:
    """Variance of one sample, from repeated measurements of the same shapes and a prior.

    In steps of about 20 %, so that a fit stays valid for a while.
    """
    squares = freedom = 0.0
    for kind in measured:
        for cell in kind.cells.values():
            squares += cell.squares
            freedom += max(0.0, cell.weight - 1.0)
    variance = (NOISE_STRENGTH * NOISE**2 + squares) / (NOISE_STRENGTH + freedom)
    return float(np.exp(np.round(np.log(variance) * 5.0) / 5.0))


def _table(kind: Kind, noise: float, prior: Prior) -> _Points:
    cells = sorted(kind.cells.items(), key=lambda item: (-item[1].weight, item[0]))[:MOST_POINTS]
    scales: list[Scale] = [scale for scale, _ in cells]
    points = nearest(np.array([s.workers for s in scales]), np.array([s.servers for s in scales]))
    values = np.array([cell.mean for _, cell in cells])
    spread = noise / np.array([cell.weight for _, cell in cells])
    verdict = _judged(points, values, spread, noise / spread >= _AGREED, prior)
    fair, stall = verdict == 0, verdict < 0
    stalls, stalled = points[stall], values[stall]
    points, values, spread = points[fair], values[fair], spread[fair]
    # What a kind's own parts may do is noise to the shared one, and its points tell of one kind only.
    weight = min(1.0, 6.0 / len(points)) / (spread + SMOOTH**2 + ROUGH**2)
    centre = weight / weight.sum()  # the level is integrated out
    x = features()[points]
    x = x - centre @ x
    y = values - centre @ values
    weighted = (x * weight[:, None]).T
    return _Points(points, values, spread, weighted @ x, weighted @ y, stalls, stalled)


def _judged(points: Ints, values: Floats, noise: Floats, agreed: npt.NDArray[np.bool_], prior: Prior) -> Ints:
    """Of each measured shape (n,) 0, or -1 for a stall and 1 for a lie: the worst is taken out until each of the others
    fits what the rest says of it. What many samples have `agreed` on (n,) is no lie, whatever a few others say.

    Leave-one-out residuals of the prior process (Rasmussen and Williams, section 5.4.2).
    """
    verdict, left = np.zeros(len(points), dtype=np.int64), np.arange(len(points))
    off = values - prior.trend(points)
    inverse = np.linalg.inv(prior.between(points, points) + np.diag(noise))
    while len(left) > 1:
        variance = 1.0 / inverse.diagonal()
        residual, deviation = (inverse @ (off - np.median(off))) * variance, np.sqrt(variance)
        low = residual + np.maximum(_STALL, _STALL_DEVIATIONS * deviation)
        high = np.where(agreed[left], np.inf, np.maximum(_LIE, _LIE_DEVIATIONS * deviation) - residual)
        worst = int(np.argmin(np.minimum(low, high)))
        if min(low[worst], high[worst]) >= 0.0:
            break
        verdict[left[worst]] = -1 if low[worst] < 0.0 else 1
        # The inverse of the matrix without a row and a column, from the whole inverse (Schur complement).
        column = inverse[:, worst, None]
        kept = np.arange(len(left)) != worst
        inverse = (inverse - column * column.T * variance[worst])[np.ix_(kept, kept)]
        left, off = left[kept], off[kept]
    return verdict


def _evidence(one: _Points, other: _Points, prior: Prior) -> float:
    """Log of p(both | one surface) / p(both | two surfaces)."""
    few, many = sorted((one, other), key=lambda table: len(table.points))
    if not len(few.points):
        return 0.0
    off, known = few.values - prior.trend(few.points), many.values - prior.trend(many.points)
    across = prior.between(few.points, many.points)
    alone = prior.between(few.points, few.points) + np.diag(few.noise)
    gain = across @ np.linalg.inv(prior.between(many.points, many.points) + np.diag(many.noise))
    level = float(known.mean())
    return _log_density(off - level - gain @ (known - level), alone - gain @ across.T) - _log_density(
        off - level, alone
    )


def _log_density(off: Floats, covariance: Floats) -> float:
    """Of a centred normal, less the constant."""
    return float(-0.5 * (off @ np.linalg.solve(covariance, off) + np.linalg.slogdet(covariance)[1]))


def _alike(length: float) -> Floats:
    """(SIZE, SIZE): 1 for a point with itself, less the further two are apart."""
    x = coordinates()
    squared = ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-0.5 * squared / length**2))


@lru_cache(maxsize=1)
def features() -> Floats:
    """(SIZE, F): trend and bumps, by which surfaces are alike."""
    x = coordinates()
    centres = np.array([(w, s) for w in range(0, 9, 2) for s in range(-1, 9, 2)], float)
    bumps = np.exp(-0.5 * ((x[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2) / BUMP_LENGTH**2)
    return np.concatenate([x, bumps], axis=1)


@lru_cache(maxsize=1)
def by_hand() -> Prior:
    """Of whoever has learned none: more pods are a little faster, and surfaces are smooth."""
    mean = np.zeros(features().shape[1])
    variance = np.full(len(mean), BUMP**2)
    mean[:2], variance[:2] = SLOPES, SLOPE**2
    return Prior(mean, np.diag(variance), SMOOTH**2 * _alike(SMOOTH_LENGTH) + ROUGH**2 * _alike(ROUGH_LENGTH))


class _Shared:
    """Posterior of the part that all kinds share, from all kinds' points at once."""

    def __init__(self, tables: Sequence[_Points], prior: Prior) -> None:
        precision, pull, self.own = prior.precision, prior.pull, prior.own
        if tables:
            precision = precision + np.sum([table.precision for table in tables], axis=0)
            pull = pull + np.sum([table.pull for table in tables], axis=0)
        factor = np.linalg.cholesky(precision)
        self.half: Floats = np.linalg.solve(factor, features().T).T  # (SIZE, F): products are the covariance
        self.mean: Floats = features() @ np.linalg.solve(precision, pull)
        self.prior: Floats = self.own.diagonal() + (self.half**2).sum(axis=1) + LEVEL**2
        levels = [float((table.values - self.mean[table.points]).mean()) for table in tables]
        self.level = float(np.mean(levels)) if levels else 0.0


def _condition(table: _Points, samples: float, shared: _Shared, points: Ints) -> Surface:
    """Exact Gaussian-process posterior of one kind at `points`."""
    own, at = shared.own[table.points], table.points
    half = shared.half[at]
    inner = own[:, at] + half @ half.T + LEVEL**2 + np.diag(table.noise)
    cross = own[:, points] + half @ shared.half[points].T + LEVEL**2  # (n, P)
    inverse = np.linalg.inv(np.linalg.cholesky(inner))
    solved = inverse @ cross
    residual = inverse @ (table.values - shared.mean[at] - shared.level)
    variance = shared.prior[points] - (solved**2).sum(axis=0)
    mean = shared.mean[points] + shared.level + solved.T @ residual
    for stall, value in zip(table.stalls, table.stalled, strict=True):
        mean[points == stall], variance[points == stall] = value, 0.0
    return Surface(mean, np.sqrt(np.maximum(variance, 1e-8)), samples)
