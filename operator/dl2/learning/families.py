"""Random speed functions: what an agent is trained on, and the one family that it never is.

A policy that knows nine textbook models knows nothing: measured speeds contradict the textbook. Training and
validation draw from wide families; `staircase` is kept back for the suite `shift`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dl2.learning.physics import GIGABIT, MODELS, Model, TrueSpeed, true_speed
from dl2.scaling.interface import Scale
from dl2.scaling.lattice import Floats

Family = Callable[[np.random.Generator, Scale], TrueSpeed]


def varied(model: Model, rng: np.random.Generator, spread: float = 0.5) -> Model:
    """`model` with every parameter off by a lognormal factor, and its own roughness."""

    def off() -> float:
        return float(np.exp(spread * rng.standard_normal()))

    return replace(
        model,
        compute=model.compute * off(),
        size=model.size * off(),
        bandwidth=model.bandwidth * off(),
        server_bandwidth=model.server_bandwidth * off(),
        update=model.update * off(),
        per_worker=model.per_worker * off(),
        per_server=model.per_server * off(),
        per_connection=model.per_connection * off(),
        straggle=float(rng.uniform(0.0, 0.2)),
        roughness=float(rng.uniform(0.02, 0.12)),
        synchronous=bool(rng.random() < 0.6),
    )


def textbook(rng: np.random.Generator, most: Scale) -> TrueSpeed:
    """One of the table's models, varied."""
    names = sorted(MODELS)
    return true_speed(varied(MODELS[names[rng.integers(len(names))]], rng), most, rng)


def physical(rng: np.random.Generator, most: Scale) -> TrueSpeed:
    """Any compute, size and network: from free to bound by the servers."""
    model = Model(
        "any",
        compute=float(10 ** rng.uniform(-1.5, 0.5)),
        size=float(10 ** rng.uniform(6.5, 9.0)),
        steps=float(10 ** rng.uniform(2.0, 3.5)),
        bandwidth=float(rng.choice([1, 10, 25, 50])) * GIGABIT,
        server_bandwidth=float(rng.choice([1, 10, 25, 50])) * GIGABIT,
        per_worker=float(10 ** rng.uniform(-4.0, -1.5)),
        per_server=float(10 ** rng.uniform(-4.0, -1.5)),
        per_connection=float(10 ** rng.uniform(-4.5, -2.2)),
        fixed_batch=bool(rng.random() < 0.3),
    )
    return true_speed(varied(model, rng, 0.2), most, rng)


def smooth_surface(rng: np.random.Generator, most: Scale) -> TrueSpeed:
    """No formula at all: a random smooth surface over (log workers, log servers), rough on top."""
    w, p = np.meshgrid(
        np.log2(np.maximum(np.arange(most.workers + 1), 0.5)),
        np.log2(np.maximum(np.arange(most.servers + 1), 0.5)),
        indexing="ij",
    )
    log = rng.uniform(0.1, 0.6) * w + rng.uniform(-0.05, 0.35) * p
    for _ in range(6):
        centre = rng.uniform(-0.5, 4.5, 2)
        width = rng.uniform(0.8, 2.0)
        log += rng.normal(0, 0.35) * np.exp(-0.5 * ((w - centre[0]) ** 2 + (p - centre[1]) ** 2) / width**2)
    return _rough(log, rng)


def peaked(rng: np.random.Generator, most: Scale) -> TrueSpeed:
    """Best at one ratio and one size, and worse on every side: contention at switches and servers."""
    w = np.arange(most.workers + 1, dtype=float)[:, None]
    p = np.arange(most.servers + 1, dtype=float)[None, :]
    ratio, knee = 2.0 ** rng.uniform(-1.5, 1.0), rng.uniform(4, 24)
    off = np.log(np.maximum(w, 0.5) / np.maximum(p, 0.3) / ratio)
    log = rng.uniform(0.5, 1.0) * np.log(np.maximum(w, 0.5)) - rng.uniform(0.02, 0.25) * off**2
    log -= rng.uniform(0.2, 1.2) * np.maximum(np.log((w + p + 1) / knee), 0.0)
    return _rough(log, rng)


def jagged(rng: np.random.Generator, most: Scale) -> TrueSpeed:
    """As measured on a real system: a bottleneck on either side, a warp, teeth, and a few shapes that hardly train.

    Fastest anywhere from few pods to all, at any ratio of servers to workers. Without servers the batch is fixed
    and split over the workers.
    """
    w = np.maximum(np.arange(most.workers + 1, dtype=float), 0.5)[:, None]
    p = np.maximum(np.arange(most.servers + 1, dtype=float), 0.5)[None, :]
    serve, overhead = 10 ** rng.uniform(-1.5, 0.5), 10 ** rng.uniform(-2.8, -0.8, 3)
    seconds = 1.0 + overhead[0] * w + overhead[1] * p + 0.1 * overhead[2] * w * p
    if most.servers:
        log = rng.uniform(0.6, 1.0) * np.log(w) - np.log(seconds + serve * w / p)
    else:
        log = -np.log(1.0 / w + 0.1 * overhead[0] * w + overhead[1] + 0.0 * p)
    log = log + _warp(rng, np.log2(w), np.log2(p))
    teeth = rng.uniform(0.0, 0.08, 2)
    log += teeth[0] * rng.standard_normal(w.shape) + teeth[1] * rng.standard_normal(p.shape)
    stalls = rng.random(log.shape) < rng.uniform(0.0, 0.03)
    stalls[4, 4:5] = False  # where the sizes of jobs are told
    return _rough(np.where(stalls, log - rng.uniform(1.0, 4.0, log.shape), log), rng)


def _warp(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Six smooth bumps of either sign over (log2 workers, log2 servers)."""
    bumps = []
    for _ in range(6):
        centre, width = rng.uniform(-0.5, 4.5, 2), rng.uniform(0.7, 2.0)
        bumps.append(
            rng.normal(0, 0.2) * np.exp(-0.5 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / width**2)
        )
    return np.asarray(sum(bumps))


def staircase(rng: np.random.Generator, most: Scale) -> TrueSpeed:
    """Kept back: full speed only where workers split evenly over servers and racks, with steps in between."""
    w = np.arange(most.workers + 1)[:, None]
    p = np.arange(most.servers + 1)[None, :]
    rack = int(rng.choice([3, 4, 6]))
    steps = np.log(np.maximum(w, 0.5)) - rng.uniform(0.1, 0.4) * np.floor(np.maximum(w - 1, 0) / rack)
    uneven = np.where(p > 0, np.mod(w, np.maximum(p, 1)), w)
    starved = np.maximum(np.log(np.maximum(w, 1) / np.maximum(p, 0.5) / rng.uniform(1, 4)), 0.0)
    return _rough(steps - rng.uniform(0.1, 0.3) * (uneven > 0) - rng.uniform(0.2, 0.8) * starved, rng)


def _rough(log: Floats, rng: np.random.Generator) -> TrueSpeed:
    rough = rng.uniform(0.02, 0.12) * rng.standard_normal((257, 257))
    level = 10 ** rng.uniform(-4.0, -2.0)
    table = level * np.exp(log + rough[: log.shape[0], : log.shape[1]])
    table[0] = 0.0
    return TrueSpeed(table)


FAMILIES: dict[str, Family] = {
    "textbook": textbook,
    "physical": physical,
    "smooth": smooth_surface,
    "peaked": peaked,
    "jagged": jagged,
    "staircase": staircase,
}
TRAINED_ON = ("textbook", "physical", "smooth", "peaked", "jagged")
