"""From a manifest to a typed object, or to one sentence about what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from dl2.api.base import InvalidObject, Metadata, Problem
from dl2.api.dljob import DLJob
from dl2.api.errors import first_problem, shown
from dl2.api.names import API_VERSION, DL_JOB, GROUP, NAMESPACED, POD_GROUP, SCALING_POLICY, TENANT_QUEUE
from dl2.api.podgroup import PodGroup
from dl2.api.scalingpolicy import ScalingPolicy
from dl2.api.tenantqueue import TenantQueue

Object = TenantQueue | PodGroup | DLJob | ScalingPolicy
MODELS: Final[dict[str, type[TenantQueue] | type[PodGroup] | type[DLJob] | type[ScalingPolicy]]] = {
    TENANT_QUEUE: TenantQueue,
    POD_GROUP: PodGroup,
    DL_JOB: DLJob,
    SCALING_POLICY: ScalingPolicy,
}

_METADATA = tuple(str(field.alias) for field in Metadata.model_fields.values())


def parse(raw: Mapping[str, Any], *, strict: bool = False) -> Object:
    """The typed object of a manifest of group dl2.dev; `strict` also refuses unknown fields, as kubectl does.

    Raises InvalidObject for the first thing wrong with it.
    """
    kind = raw.get("kind")
    model = MODELS.get(kind) if isinstance(kind, str) else None
    if model is None or raw.get("apiVersion") != API_VERSION:
        raise _refusal(raw, _unknown_kind(raw))
    try:
        parsed: Object = model.model_validate(_readable(raw), extra="forbid" if strict else None)
    except ValidationError as error:
        raise _refusal(raw, first_problem(error)) from None
    problem = next(parsed.problems(), None)
    if problem is not None:
        raise _refusal(raw, problem)
    return parsed


def _readable(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The parts a model reads; a null is as good as absent, as for the API server."""
    parts = {
        key: value for key, value in raw.items() if value is not None and key not in ("apiVersion", "kind")
    }
    metadata = raw.get("metadata")
    if isinstance(metadata, Mapping):
        known = {key: metadata[key] for key in _METADATA if metadata.get(key) is not None}
        if raw["kind"] in NAMESPACED:
            known.setdefault("namespace", "default")
        parts["metadata"] = known
    return parts


def _refusal(raw: Mapping[str, Any], problem: Problem) -> InvalidObject:
    metadata = raw.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    kind = str(raw.get("kind") or "object")
    namespace = str(metadata.get("namespace") or ("default" if kind in NAMESPACED else ""))
    return InvalidObject(kind, namespace, shown(metadata.get("name") or "(unnamed)").strip('"'), *problem)


def _unknown_kind(raw: Mapping[str, Any]) -> Problem:
    version = raw.get("apiVersion")
    if isinstance(version, str) and version.startswith(f"{GROUP}/") and version != API_VERSION:
        return Problem("apiVersion", f"{shown(version)} is not served", f"use {API_VERSION}")
    return Problem(
        "kind",
        f"{shown(version)} {shown(raw.get('kind'))} is no kind of dl2",
        f"use {API_VERSION} {', '.join(MODELS)}",
    )
