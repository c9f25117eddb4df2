"""Fine-tuning from the cluster's own decision log: a short training in the simulator fitted to it, and a verdict.

Weights begin where they are now and move by evolution strategies, which need no torch. What comes out is a candidate
only if completion times on draws that neither training nor the choice of the best has seen are surely shorter: the
95 % interval of the paired differences lies below 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dl2.learning import evolution
from dl2.learning.fitted import Fitted
from dl2.learning.suites import Split
from dl2.learning.validation import validate
from dl2.scaling.agent.network import Weights
from dl2.scaling.lattice import Floats


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long, and how surely. Cases of the fitted simulator."""

    seed: int = 1
    iterations: int = 10
    pairs: int = 4
    choosing: int = 4  # cases by which the best weights are chosen
    judging: int = 12  # cases by which they are compared with the weights before


@dataclass(frozen=True, slots=True)
class Tuned:
    """`change`: mean log of completion time against the weights before, below 0 is shorter; `margin`: half of its
    95 % interval."""

    weights: dict[str, Floats]
    change: float
    margin: float

    @property
    def surely_better(self) -> bool:
        return self.change + self.margin < 0


def tune(
    fitted: Fitted,
    weights: Weights,
    tuning: Tuning,
    folder: Path,
    progress: Callable[[int, float, float | None], None] = lambda *_: None,
) -> Tuned:
    """One lesson. `folder` holds its state: an interrupted one goes on."""
    plan = evolution.Plan(
        seed=tuning.seed, iterations=tuning.iterations, pairs=tuning.pairs, deviation=0.2, rate=0.08, validate_every=2
    )  # fmt: skip
    choosing = [fitted.case(n, Split.VALIDATION) for n in range(tuning.choosing)]
    state = evolution.train(plan, folder, weights, progress, fitted.case, choosing)
    judging = [fitted.case(n, Split.TEST) for n in range(tuning.judging)]
    off = np.array(validate(state.best, judging, validate(weights, judging)))
    margin = 1.96 * float(off.std(ddof=1)) / np.sqrt(len(off)) if len(off) > 1 else np.inf
    return Tuned(state.best, float(off.mean()), float(margin))
