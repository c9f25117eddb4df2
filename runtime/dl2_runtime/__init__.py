"""What a training image needs to run as a DL2 job: progress reports, and the elastic parameter server.

`dl2_runtime.progress` needs the standard library only, so the names below that need numpy are imported on first use.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "ElasticSampler": "dl2_runtime.sampler",
    "Rule": "dl2_runtime.optimizers",
    "Worker": "dl2_runtime.worker",
    "Left": "dl2_runtime.membership",
    "RuntimeLost": "dl2_runtime.membership",
    "enter": "dl2_runtime.roles",
}
__all__ = ["ElasticSampler", "Left", "Rule", "RuntimeLost", "Worker", "enter"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dl2_runtime' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
