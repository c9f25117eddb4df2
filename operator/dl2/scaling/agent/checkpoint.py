"""Checkpoints: safetensors with a JSON header that says what the weights are and where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dl2.scaling.agent.features import VERSION
from dl2.scaling.agent.network import SHAPES, Weights
from dl2.scaling.lattice import Floats

_KEY = "dl2"


class CheckpointError(ValueError):
    """The file is missing, damaged, or not for this version; the message says which, and the mend."""


def save(path: Path, weights: Weights, header: Mapping[str, Any]) -> None:
    """Write `weights` (float32) and `header` (JSON: seeds, suite scores, parents, ...)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = json.dumps({"features": VERSION, **header}, sort_keys=True)
    partial = path.with_suffix(".partial")
    save_file(
        {name: np.asarray(weights[name], dtype=np.float32) for name in SHAPES},
        partial,
        metadata={_KEY: said},
    )
    partial.replace(path)


def read(path: Path) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Weights and header. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; train one with `dl2 train`")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            found = {name: file.get_tensor(name) for name in sorted(SHAPES.keys() & file.keys())}
    except (SafetensorError, OSError, ValueError) as exc:
        raise CheckpointError(
            f"{path}: damaged or no safetensors file ({exc}); fetch or train it anew"
        ) from exc
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: has no dl2 header, so it is no checkpoint of a scaling agent")
    if header.get("features") != VERSION:
        raise CheckpointError(
            f"{path}: made for features version {header.get('features')}, this dl2 has {VERSION}; "
            "train it anew or install the dl2 that made it"
        )
    wrong = sorted(name for name, shape in SHAPES.items() if not _fits(found.get(name), shape))
    if wrong:
        raise CheckpointError(
            f"{path}: {', '.join(wrong)} missing, of another shape or no floating-point numbers; train it anew"
        )
    return {name: array.astype(np.float64) for name, array in found.items()}, header


def _fits(array: Floats | None, shape: tuple[int, ...]) -> bool:
    return array is not None and array.shape == shape and array.dtype.kind == "f"
