"""Fine-tuning from the cluster's own decision log: a short training in the simulator fitted to it, and a verdict.

Weights begin where they are now and move by evolution strategies, which need no torch. What comes out is a candidate
only if completion times on draws that neither training nor the choice of the best has seen are surely shorter: the
95 % interval of the paired differences lies below 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dl2.learning import evolution
from dl2.learning.fitted import Fitted
from dl2.learning.statistics import Estimate, estimate
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
    """`change`: of the log of completion time against the weights before, below 0 is shorter."""

    weights: dict[str, Floats]
    change: Estimate

    @property
    def surely_better(self) -> bool:
        return self.change.mean + self.change.half < 0


def tune(fitted: Fitted, weights: Weights, tuning: Tuning, folder: Path) -> Tuned:
    """One lesson. `folder` holds its state: an interrupted one goes on."""
    plan = evolution.Plan(
        seed=tuning.seed, iterations=tuning.iterations, pairs=tuning.pairs, deviation=0.2, rate=0.08, validate_every=2
    )  # fmt: skip
    choosing = [fitted.case(n, Split.VALIDATION) for n in range(tuning.choosing)]
    state = evolution.train(plan, folder, weights, draw=fitted.case, validation=choosing)
    return Tuned(state.best, compared(fitted, weights, state.best, tuning.judging))


def compared(fitted: Fitted, before: Weights, after: Weights, cases: int) -> Estimate:
    """Change of the log of completion time over test draws, paired."""
    judging = [fitted.case(n, Split.TEST) for n in range(cases)]
    return estimate(validate(after, judging, validate(before, judging)))
