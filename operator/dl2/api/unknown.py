"""Fields of an object that its definition does not have: an API server refuses or drops them, as the caller asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from dl2.api import names
from dl2.api.reference import definition

Schema = Mapping[str, Any]
_NOT_LOOKED_AT = frozenset({"apiVersion", "kind", "metadata", "status"})


def unknown_fields(raw: Mapping[str, Any]) -> list[str]:
    """Paths such as `spec.workers.mim`, in the order they stand in; nothing for kinds that are not ours."""
    if raw.get("kind") not in names.PLURALS or raw.get("apiVersion") != names.API_VERSION:
        return []
    written = {key: value for key, value in raw.items() if key not in _NOT_LOOKED_AT}
    return list(_unknown(_schema(names.PLURALS[raw["kind"]]), written, ""))


@lru_cache
def _schema(plural: str) -> Schema:
    (version,) = definition(plural)["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def _unknown(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for n, item in enumerate(value):
            yield from _unknown(schema.get("items") or {}, item, f"{path}[{n}]")
    elif isinstance(value, Mapping):
        properties, others = schema.get("properties") or {}, schema.get("additionalProperties")
        closed = bool(properties) and not others and not schema.get("x-kubernetes-preserve-unknown-fields")
        for key, item in value.items():
            at = f"{path}.{key}" if path else str(key)
            if key in properties:
                yield from _unknown(properties[key], item, at)
            elif isinstance(others, Mapping):
                yield from _unknown(others, item, at)
            elif closed:
                yield at
