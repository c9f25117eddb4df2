"""The learned agent: features, network, inference and checkpoints. Training lives in `dl2.learning`."""

from __future__ import annotations

from pathlib import Path

from dl2.scaling.agent.checkpoint import CheckpointError, read
from dl2.scaling.agent.policy import Agent

SHIPPED = Path(__file__).parent / "checkpoints" / "dl2.safetensors"


def load(path: Path, **options: bool) -> Agent:
    """The agent of a checkpoint; options are those of `Agent`. Raises CheckpointError."""
    weights, _ = read(path)
    return Agent(weights, **options)


def shipped(**options: bool) -> Agent:
    """The agent that comes with dl2."""
    return load(SHIPPED, **options)


__all__ = ["SHIPPED", "Agent", "CheckpointError", "load", "shipped"]
