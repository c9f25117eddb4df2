"""The agent's network in torch, with a value head: for training alone. What it learns is run in numpy.

The same layers, names and layout as `dl2.scaling.agent.network`, so that a checkpoint is a copy of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dl2.scaling.agent.features import CLUSTER
from dl2.scaling.agent.network import SHAPES, WIDTH, Weights
from dl2.scaling.lattice import Floats

VALUE_SHAPES: Mapping[str, tuple[int, ...]] = {
    "value1.weight": (2 * WIDTH + CLUSTER, WIDTH),
    "value1.bias": (WIDTH,),
    "value2.weight": (WIDTH, 1),
    "value2.bias": (1,),
}
Parameters = dict[str, Tensor]


def parameters(weights: Weights, seed: int) -> Parameters:
    """Trainable copies of `weights`, and a value head that begins by saying 0."""
    rng = np.random.default_rng([seed, 0x7A1E])
    found = {name: torch.tensor(np.asarray(weights[name]), dtype=torch.float64) for name in SHAPES}
    for name, shape in VALUE_SHAPES.items():
        drawn = rng.standard_normal(shape) / np.sqrt(shape[0]) if name == "value1.weight" else np.zeros(shape)
        found[name] = torch.tensor(drawn, dtype=torch.float64)
    return {name: tensor.requires_grad_() for name, tensor in found.items()}


def weights_of(params: Parameters) -> dict[str, Floats]:
    """What the agent runs: everything but the value head."""
    return {name: params[name].detach().numpy().copy() for name in SHAPES}


def forward(params: Parameters, jobs: Floats, cluster: Floats) -> tuple[Tensor, Tensor]:
    """Raw outputs (J, OUTPUTS) and the value () of the state, from features (J, FEATURES) and (CLUSTER,)."""
    seen, around = torch.from_numpy(jobs), torch.from_numpy(cluster)
    wide = torch.cat([seen, around.expand(len(jobs), -1)], dim=1)
    embedded = torch.tanh(wide @ params["embed1.weight"] + params["embed1.bias"])
    embedded = torch.tanh(embedded @ params["embed2.weight"] + params["embed2.bias"])
    pooled = torch.cat([embedded.mean(dim=0), embedded.amax(dim=0), around])
    beside = torch.cat([embedded, pooled.expand(len(jobs), -1)], dim=1)
    hidden = torch.tanh(beside @ params["head1.weight"] + params["head1.bias"])
    outputs = hidden @ params["head2.weight"] + params["head2.bias"]
    judged = torch.tanh(pooled @ params["value1.weight"] + params["value1.bias"])
    return outputs, (judged @ params["value2.weight"] + params["value2.bias"]).squeeze(0)
