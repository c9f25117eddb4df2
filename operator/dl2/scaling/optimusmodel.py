"""Optimus' speed model, fitted online by non-negative least squares, one per kind of job.

Seconds an epoch of synchronous training (Optimus, EuroSys 2018, eq. 4, inverted):

    1 / f(w, p) = t0 / w + t1 + t2 * w / p + t3 * w + t4 * p

(compute, constant, transfer to p servers shared by w workers, overheads of connections), all t >= 0. The
paper's offline trial runs are replaced by a weak prior of the same form around what was measured.
"""

from __future__ import annotations

import numpy as np

from dl2.scaling.beliefs import Belief
from dl2.scaling.bounds import choices
from dl2.scaling.history import History, Kind, Name, kind_of
from dl2.scaling.interface import Observation
from dl2.scaling.lattice import Floats, Ints, shapes_between

# Of the time at one worker and one server. Overheads are small: who believes in large ones never tries large shapes.
_PRIOR = np.array([0.77, 0.05, 0.178, 0.001, 0.001])
_PRIOR_WEIGHT = 0.3  # in samples
_SWEEPS = 200


class OptimusModels:
    """Beliefs from fitted Optimus models. Without any sample of a kind: the prior at the mean level of the others."""

    def __init__(self) -> None:
        self._history = History()
        self._known: dict[Name, tuple[int, Floats]] = {}

    def beliefs(self, observation: Observation) -> dict[str, Belief]:
        self._history.take_in(observation)
        kinds = self._history.kinds
        fitted = {name: self._fitted(name, kind) for name, kind in kinds.items() if kind.cells}
        level = float(np.mean([theta.sum() for theta in fitted.values()])) if fitted else 1.0
        self._known = {name: known for name, known in self._known.items() if name in kinds}
        found = {}
        for job in observation.jobs:
            limits = choices(job)
            if limits is not None:
                shapes = shapes_between(*limits)
                kind = kind_of(job)
                theta = fitted.get(kind, level * _PRIOR)
                speed = 1.0 / np.maximum(_terms(shapes.workers, shapes.servers) @ theta, 1e-12)
                samples = kinds[kind].samples
                found[job.id] = Belief(shapes, speed, np.zeros(len(speed)), samples)
        return found

    def _fitted(self, name: Name, kind: Kind) -> Floats:
        known = self._known.get(name)
        if known is None or known[0] != kind.version:
            known = self._known[name] = (kind.version, fit(kind))
        return known[1]


def _terms(workers: Ints, servers: Ints) -> Floats:
    """(C, 5): the factors of t0..t4; a job without servers is taken to have one at each worker."""
    w = workers.astype(float)
    p = np.where(servers > 0, servers, w)
    return np.stack([1.0 / w, np.ones_like(w), w / p, w, p], axis=1)


def fit(kind: Kind) -> Floats:
    """(5,) non-negative parameters from a kind's cells, by relative error; independent of the order of samples."""
    cells = sorted(kind.cells.items())
    terms = _terms(
        np.array([scale.workers for scale, _ in cells]), np.array([scale.servers for scale, _ in cells])
    )
    speed = np.exp([cell.mean for _, cell in cells])
    weight = np.sqrt([cell.weight for _, cell in cells])
    level = float(np.median(1.0 / (speed * (terms @ _PRIOR))))
    x = np.concatenate([terms * (speed * weight)[:, None] * level * _PRIOR, np.eye(5) * _PRIOR_WEIGHT**0.5])
    y = np.concatenate([weight, np.full(5, _PRIOR_WEIGHT**0.5)])
    return level * _PRIOR * non_negative(x.T @ x, x.T @ y)


def non_negative(gram: Floats, pull: Floats) -> Floats:
    """argmin over t >= 0 of t'Gt/2 - p't, G positive definite, by cyclic coordinate descent (Franc et al., 2005)."""
    at = np.ones(len(pull))
    for _ in range(_SWEEPS):
        before = at.copy()
        for i in range(len(at)):
            at[i] = max(0.0, at[i] + (pull[i] - gram[i] @ at) / gram[i, i])
        if np.abs(at - before).max() < 1e-9:
            break
    return at
