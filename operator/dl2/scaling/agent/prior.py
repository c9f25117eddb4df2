"""What the agent expects of speeds before anything was measured, learned in simulation (`dl2.learning.prior`)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dl2.scaling.agent.checkpoint import CheckpointError
from dl2.scaling.lattice import Floats
from dl2.scaling.surfaces import Prior, features

LEARNED = Path(__file__).parent / "checkpoints" / "prior.safetensors"


@lru_cache(maxsize=1)
def learned() -> Prior:
    """The one that comes with dl2."""
    return read(LEARNED)


def read(path: Path) -> Prior:
    """The prior of a file that `save` wrote. Raises CheckpointError."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: {exc}; install dl2 anew, or `dl2 train prior --to` there") from exc
    size = features().shape[1]
    if {name: array.shape for name, array in tensors.items()} != {
        "mean": (size,),
        "covariance": (size, size),
    }:
        raise CheckpointError(f"{path}: no prior of this version of dl2; `dl2 train prior --to` there")
    return Prior.learned(tensors["mean"], tensors["covariance"])


def save(path: Path, mean: Floats, covariance: Floats) -> None:
    """Write the distribution of a kind's coefficients, (F,) and (F, F)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"mean": mean, "covariance": covariance}, path)
