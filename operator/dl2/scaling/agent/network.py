"""The agent's network, in numpy: small enough that inference needs no torch, and so the operator neither.

Deep sets (Zaheer et al., NeurIPS 2017): every job is embedded by the same layers, the set by mean and maximum
over jobs, and the head sees a job beside the set. So it is equivariant to the order of jobs and indifferent to
their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dl2.scaling.agent.features import CLUSTER, FEATURES
from dl2.scaling.lattice import Floats

WIDTH = 24
OUTPUTS = 5
SHAPES: Mapping[str, tuple[int, ...]] = {
    "embed1.weight": (FEATURES + CLUSTER, WIDTH),
    "embed1.bias": (WIDTH,),
    "embed2.weight": (WIDTH, WIDTH),
    "embed2.bias": (WIDTH,),
    "head1.weight": (3 * WIDTH + CLUSTER, WIDTH),
    "head1.bias": (WIDTH,),
    "head2.weight": (WIDTH, OUTPUTS),
    "head2.bias": (OUTPUTS,),
}
Weights = Mapping[str, Floats]


class Preference(NamedTuple):
    """What the head says of each job, all (J,): how the value of its shapes is bent. All 0: plain envelope."""

    weight: Floats  # log of the weight of the job
    length: Floats  # added to the exponent of its length
    concavity: Floats  # log of the factor on the exponent of its speed
    optimism: Floats  # log of the factor on the optimism
    inertia: Floats  # part of a shape's value that moving there loses beyond the measured pause


def initial(seed: int) -> dict[str, Floats]:
    """Random weights, with a head that says 0: the agent starts as the envelope policy."""
    rng = np.random.default_rng([seed, 0xA6E7])
    weights = {}
    for name, shape in SHAPES.items():
        if name.endswith("bias") or name.startswith("head2"):
            weights[name] = np.zeros(shape)
        else:
            weights[name] = rng.standard_normal(shape) / np.sqrt(shape[0])
    return weights


def forward(weights: Weights, jobs: Floats, cluster: Floats) -> Floats:
    """(J, OUTPUTS) raw outputs from features (J, FEATURES) and (CLUSTER,); J may be 0."""
    if not len(jobs):
        return np.zeros((0, OUTPUTS))
    wide = np.concatenate([jobs, np.broadcast_to(cluster, (len(jobs), CLUSTER))], axis=1)
    embedded = np.tanh(wide @ weights["embed1.weight"] + weights["embed1.bias"])
    embedded = np.tanh(embedded @ weights["embed2.weight"] + weights["embed2.bias"])
    pooled = np.concatenate([embedded.mean(axis=0), embedded.max(axis=0), cluster])
    beside = np.concatenate([embedded, np.broadcast_to(pooled, (len(jobs), len(pooled)))], axis=1)
    hidden = np.tanh(beside @ weights["head1.weight"] + weights["head1.bias"])
    return np.asarray(hidden @ weights["head2.weight"] + weights["head2.bias"])


def preference(outputs: Floats) -> Preference:
    """Raw outputs, bounded to where a value is still concave and a policy still sane."""
    bent = np.tanh(outputs)
    return Preference(
        weight=2.0 * bent[:, 0],
        length=0.5 * bent[:, 1],
        concavity=0.7 * bent[:, 2],
        optimism=2.0 * bent[:, 3],
        inertia=0.25 * np.maximum(bent[:, 4], 0.0),
    )
