"""Evolution strategies: a policy gradient in the space of weights, without torch.

Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning" (2017), after
Rechenberg and Sehnke et al. ("Parameter-exploring policy gradients", 2010). One sample is an episode: a cluster
from the curriculum, run to its end twice, with the weights moved by +noise and by -noise. Everything else is
equal (arrivals, speeds, measurement noise), so the difference of the two mean completion times is down to the
noise alone. Exploration is constant over an episode, which suits a return that comes hours after the decision.

Iteration n draws from (seed, n) alone: a run that was killed goes on from its last state as if it never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dl2.learning.curriculum import training_case
from dl2.learning.state import load_state, save_state
from dl2.learning.suites import Case
from dl2.learning.validation import log_jct, validate, validation_cases
from dl2.scaling.agent.network import SHAPES, Weights, initial
from dl2.scaling.lattice import Floats


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. Two plans that are equal give equal checkpoints on one machine."""

    seed: int = 1
    iterations: int = 60
    pairs: int = 10  # episodes an iteration, each run twice
    deviation: float = 0.30  # of the noise on a weight
    rate: float = 0.10  # step size
    trained: tuple[str, ...] = ("head2.bias",)  # weights that move
    validate_every: int = 10
    validation_cases: int = 2  # of each suite


@dataclass(slots=True)
class State:
    """Where training stands."""

    weights: dict[str, Floats]
    iteration: int
    first: Floats  # mean of the gradient lately, over the trained weights flattened
    second: Floats  # mean of its square, one number for all: where there is only noise little moves
    best: dict[str, Floats]  # on validation
    best_score: float  # mean log of completion time against the start, there; below 0 is better


def start(plan: Plan, weights: Weights | None = None) -> State:
    """The beginning of a run, from given weights or from scratch."""
    begin = dict(weights or initial(plan.seed))
    size = len(flatten(begin, plan.trained))
    return State(begin, 0, np.zeros(size), np.zeros(size), dict(begin), 0.0)


def flatten(weights: Weights, names: Sequence[str]) -> Floats:
    return np.concatenate([weights[name].ravel() for name in names])


def moved(weights: Weights, names: Sequence[str], by: Floats) -> dict[str, Floats]:
    """`weights` with `by` (flat) added to those named."""
    result, at = dict(weights), 0
    for name in names:
        size = int(np.prod(SHAPES[name]))
        result[name] = weights[name] + by[at : at + size].reshape(SHAPES[name])
        at += size
    return result


def improve(state: State, plan: Plan, draw: Callable[[int], Case] | None = None) -> float:
    """One iteration on the cases `draw(n)` (default: the curriculum's).

    Returns the mean difference between the two runs of a pair, a measure of what noise does.
    """
    rng = np.random.default_rng([plan.seed, state.iteration, 0xE5])
    gradient, effect = np.zeros_like(state.first), 0.0
    for pair in range(plan.pairs):
        case = (draw or training_case)(plan.seed * 100_000 % 900_000 + state.iteration * plan.pairs + pair)
        noise = rng.standard_normal(len(gradient))
        there = log_jct(moved(state.weights, plan.trained, plan.deviation * noise), case)
        back = log_jct(moved(state.weights, plan.trained, -plan.deviation * noise), case)
        gradient += np.clip(there - back, -0.2, 0.2) / (2 * plan.deviation) * noise / plan.pairs
        effect += abs(there - back) / plan.pairs
    state.iteration += 1
    state.first = 0.9 * state.first + 0.1 * gradient
    state.second = 0.99 * state.second + 0.01 * np.mean(gradient**2)
    first = state.first / (1 - 0.9**state.iteration)
    second = state.second / (1 - 0.99**state.iteration)
    step = -plan.rate * first / (np.sqrt(second) + 1e-8)
    state.weights = moved(state.weights, plan.trained, step)
    return effect


def train(
    plan: Plan,
    folder: Path,
    weights: Weights | None = None,
    progress: Callable[[int, float, float | None], None] = lambda *_: None,
    draw: Callable[[int], Case] | None = None,
    validation: Sequence[Case] | None = None,
) -> State:
    """Train to the end of `plan`, going on from `folder` where that holds a state of the same plan.

    On the cases `draw(n)` (default: the curriculum's), chosen by those of `validation` (default: of its suites).
    `progress(iteration, effect, validation)` is called after each iteration. Writes `state.safetensors`.
    """
    path = folder / "state.safetensors"
    state = load_state(path, asdict(plan)) if path.is_file() else None
    state = state or start(plan, weights)
    cases = validation_cases(plan.validation_cases) if validation is None else validation
    reference = validate(start(plan, weights).weights, cases)
    while state.iteration < plan.iterations:
        effect, score = improve(state, plan, draw), None
        if state.iteration % plan.validate_every == 0 or state.iteration == plan.iterations:
            score = float(np.mean(validate(state.weights, cases, reference)))
            if score < state.best_score:
                state.best, state.best_score = dict(state.weights), score
        save_state(path, state, asdict(plan))
        progress(state.iteration, effect, score)
    return state
