"""Policies by name. Modules are imported when a policy is asked for, so that the light ones stay light."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from dl2.scaling.interface import Policy

GROUP = "dl2.policies"
BUILT_IN = {
    "fifo": "dl2.scaling.queueing:Fifo",
    "srtf": "dl2.scaling.queueing:Srtf",
    "tiresias": "dl2.scaling.queueing:Tiresias",
    "tetris": "dl2.scaling.queueing:Tetris",
    "drf": "dl2.scaling.drf:Drf",
    "srpt-gain": "dl2.scaling.steps:SrptGain",
    "optimus": "dl2.scaling.steps:Optimus",
    "optimus-oracle": "dl2.scaling.steps:OptimusOracle",
    "envelope": "dl2.scaling.envelope:Envelope",
    "envelope-oracle": "dl2.scaling.envelope:EnvelopeOracle",
    "dl2": "dl2.scaling.agent:shipped",
}
_CHECKPOINT = ".safetensors"


class UnknownPolicy(ValueError):
    """No policy of that name; the message lists those there are."""


def policy_names() -> list[str]:
    """Built-in policies and those that installed packages register under the entry point group."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def load_policy(name_or_checkpoint: str, **options: Any) -> Policy:
    """A fresh policy: a built-in name, a registered one, or the path of an agent's checkpoint.

    Raises UnknownPolicy for a name nobody registers, TypeError for an option the policy does not take, and
    `dl2.scaling.agent.checkpoint.CheckpointError` for a file that is missing, truncated or of another version.
    """
    if name_or_checkpoint.endswith(_CHECKPOINT):
        return _make("dl2.scaling.agent:load", path=Path(name_or_checkpoint), **options)
    if name_or_checkpoint in BUILT_IN:
        return _make(BUILT_IN[name_or_checkpoint], **options)
    for point in entry_points(group=GROUP):
        if point.name == name_or_checkpoint:
            return cast("Policy", point.load()(**options))
    raise UnknownPolicy(
        f'there is no policy "{name_or_checkpoint}"; known are {", ".join(policy_names())}, '
        f"or give the path of a checkpoint that ends in {_CHECKPOINT}"
    )


def _make(target: str, **options: Any) -> Policy:
    module, _, attribute = target.partition(":")
    factory: Callable[..., Policy] = getattr(importlib.import_module(module), attribute)
    return factory(**options)
