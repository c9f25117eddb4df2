"""The state of a training run on disk, written after every iteration and replaced in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from dl2.scaling.agent.network import SHAPES

if TYPE_CHECKING:
    from dl2.learning.evolution import State


class OtherRun(ValueError):
    """The folder holds the state of a run with another plan."""


def save_state(path: Path, state: State, plan: Mapping[str, Any]) -> None:
    """Weights, moments, the best so far and the plan, in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"weights.{name}": np.ascontiguousarray(state.weights[name]) for name in SHAPES}
    tensors |= {f"best.{name}": np.ascontiguousarray(state.best[name]) for name in SHAPES}
    tensors |= {"first": state.first, "second": state.second}
    said = {"plan": _plain(plan), "iteration": state.iteration, "best_score": state.best_score}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"run": json.dumps(said, sort_keys=True)})
    partial.replace(path)


def load_state(path: Path, plan: Mapping[str, Any]) -> State:
    """What `save_state` wrote. Raises OtherRun where the plan is not the same (more iterations are)."""
    from dl2.learning.evolution import State

    with safe_open(path, framework="numpy") as file:
        said = json.loads(file.metadata()["run"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    theirs, ours = dict(said["plan"]), _plain(plan)
    for either in (theirs, ours):
        either.pop("iterations")
    if theirs != ours:
        differ = sorted(name for name in ours if theirs.get(name) != ours[name])
        raise OtherRun(
            f"{path}: belongs to a run with another {', '.join(differ)}; continue with that or take another folder"
        )
    weights, best = ({name: tensors[f"{part}.{name}"] for name in SHAPES} for part in ("weights", "best"))
    return State(weights, said["iteration"], tensors["first"], tensors["second"], best, said["best_score"])


def _plain(plan: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(plan)))
