"""Objects of ours, as the benchmarks create them."""

from __future__ import annotations

from typing import Any

from dl2.api import names


def manifest(kind: str, name: str, spec: dict[str, Any], namespace: str | None = None) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def scaling_policy(**spec: Any) -> dict[str, Any]:
    """The one of the cluster."""
    return manifest("ScalingPolicy", "training", spec)
