"""What imitation and reinforcement learning share: iterations that can be killed, and the best on validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dl2.learning.actor import Parameters, parameters, weights_of
from dl2.learning.state import OtherRun
from dl2.learning.validation import validate, validation_cases
from dl2.scaling.agent.network import Weights
from dl2.scaling.lattice import Floats

Progress = Callable[[int, float, float | None], None]
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. Two plans that are equal give equal checkpoints on one machine."""

    seed: int = 1
    iterations: int = 40
    rate: float = 1e-3
    validate_every: int = 10
    validation_cases: int = 2  # of each suite


class Learner:
    """Parameters, their optimiser, and the best weights so far. Iteration n may draw from (seed, n) alone."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.plan = plan
        self.params: Parameters = parameters(weights, plan.seed)
        self.optimiser = torch.optim.Adam(self.params.values(), lr=plan.rate)
        self.iteration = 0
        self.best: dict[str, Floats] = dict(weights)
        self.best_score = (
            0.0  # mean log of completion time on validation against the start; below 0 is better
        )

    def descend(self, loss: torch.Tensor) -> None:
        """One step of the optimiser."""
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params.values(), _LARGEST_GRADIENT)
        self.optimiser.step()

    def run(self, folder: Path, improve: Callable[[Learner], float], progress: Progress) -> None:
        """Iterate to the end of the plan, from where `folder` says that an equal run was stopped.

        `progress(iteration, training measure, validation or None)` is called after each iteration.
        """
        torch.set_num_threads(1)  # sums in one order: the same seed gives the same checkpoint
        begin, path = dict(self.best), folder / "state.pt"
        if path.is_file():
            self._load(path)
        cases = validation_cases(self.plan.validation_cases)
        reference = validate(begin, cases)
        while self.iteration < self.plan.iterations:
            measure, score = improve(self), None
            self.iteration += 1
            if self.iteration % self.plan.validate_every == 0 or self.iteration == self.plan.iterations:
                weights = weights_of(self.params)
                score = float(np.mean(validate(weights, cases, reference)))
                if score < self.best_score:
                    self.best, self.best_score = weights, score
            self._save(path)
            progress(self.iteration, measure, score)

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"plan": asdict(self.plan), "iteration": self.iteration, "best_score": self.best_score}
        state: dict[str, Any] = {
            "told": json.dumps(told),
            "params": {name: tensor.detach() for name, tensor in self.params.items()},
            "best": {name: torch.from_numpy(array) for name, array in self.best.items()},
            "optimiser": self.optimiser.state_dict()["state"],  # the rest of it is the plan's
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if "told" not in state:
            raise OtherRun(f"{path}: written by another version of dl2; take another folder")
        told = json.loads(state["told"])
        theirs, ours = told["plan"], json.loads(json.dumps(asdict(self.plan)))
        differ = sorted(name for name in ours if name != "iterations" and theirs.get(name) != ours[name])
        if differ:
            raise OtherRun(
                f"{path}: belongs to a run with another {', '.join(differ)}; continue with that or take another folder"
            )
        self.iteration, self.best_score = told["iteration"], told["best_score"]
        self.best = {name: tensor.numpy() for name, tensor in state["best"].items()}
        with torch.no_grad():
            for name, tensor in self.params.items():
                tensor.copy_(state["params"][name])
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state["optimiser"], "param_groups": groups})
