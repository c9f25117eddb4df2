"""Random small clusters to train on: everything that can vary varies, so that nothing can be learned by heart."""

from __future__ import annotations

import numpy as np

from dl2.learning.families import TRAINED_ON
from dl2.learning.simulator import Settings
from dl2.learning.suites import SEEDS, Case, Split
from dl2.learning.workload import GPU, Recipe, draw
from dl2.scaling.interface import Scale

_NODES = ({"cpu": 8000, GPU: 8}, {"cpu": 8000, GPU: 2}, {"cpu": 16000, GPU: 4}, {"cpu": 32000, GPU: 8})


def training_case(n: int) -> Case:
    """The n-th training draw: cluster, load, sizes, families, labels and disturbances."""
    seed = SEEDS[Split.TRAINING][n]
    rng = np.random.default_rng([seed, 0xC0DE])
    most = int(rng.choice([8, 16, 16, 16]))
    recipe = Recipe(
        jobs=int(rng.integers(16, 40)),
        nodes=int(rng.integers(4, 16)),
        node=_NODES[int(rng.integers(len(_NODES)))],
        load=float(np.exp(rng.uniform(np.log(0.4), np.log(3.0)))),
        arrivals=str(rng.choice(["poisson", "bursts", "day"])),
        minutes=float(rng.uniform(300.0, 1200.0)),
        tail=float(rng.uniform(0.3, 1.2)),
        families=("table", *TRAINED_ON),
        labels=int(rng.integers(2, 9)),
        unlabelled=float(rng.choice([0.0, 0.0, 0.5, 1.0])),
        gpus=((0, 1), (0, 2), (0, 4), (1,))[int(rng.integers(4))],
        maximum=Scale(most, most),
        worker_only=float(rng.choice([0.0, 0.0, 0.3, 1.0])),
    )
    rough = rng.random() < 0.5
    settings = Settings(
        noise=float(rng.uniform(0.01, 0.10)),
        interference=float(rng.uniform(0.0, 0.3)) if rough else 0.0,
        start_up=float(rng.uniform(0.0, 120.0)) if rough else 0.0,
        resize=float(rng.uniform(0.0, 240.0)) if rough else 0.0,
        most_intervals=3000,
    )
    return Case(f"training/{seed}", draw(recipe, seed), settings, seed)
