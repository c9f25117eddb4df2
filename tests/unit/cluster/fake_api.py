"""An API server in memory, as far as the operator uses one: versions, uids, preconditions, owner references.

It stands in where a test must choose the exact moment at which a request fails, an answer is lost or the process
dies; what a real API server makes of the same requests is tried in tests/integration.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from dl2.cluster.client import ApiError
from dl2.cluster.resources import WATCHED, Resource

Object = dict[str, Any]
Place = tuple[str, str, str]  # kind, namespace, name


@dataclass
class FakeApi:
    objects: dict[Place, Object] = field(default_factory=dict)
    versions: Any = field(default_factory=lambda: count(1))

    def put(self, raw: Object) -> Object:
        """Create or replace, as somebody else."""
        place = _place(raw)
        before = self.objects.get(place)
        meta = raw["metadata"]
        meta.setdefault("uid", before["metadata"]["uid"] if before else f"uid-{next(self.versions)}")
        meta.setdefault("creationTimestamp", "2026-11-23T09:00:00Z")
        changed = before is None or before.get("spec") != raw.get("spec")
        was = before["metadata"].get("generation", 0) if before else 0
        meta["generation"] = was + 1 if changed else was
        if (
            before is not None
            and {**before, "metadata": 0} == {**raw, "metadata": 0}
            and _same_meta(before, raw)
        ):
            return copy.deepcopy(before)
        meta["resourceVersion"] = str(next(self.versions))
        self.objects[place] = raw
        return copy.deepcopy(raw)

    def remove(self, place: Place) -> None:
        """Delete it, and what it owns, as the garbage collector would."""
        gone = self.objects.pop(place, None)
        if gone is None:
            return
        next(self.versions)
        for other, raw in list(self.objects.items()):
            owners = {owner["uid"] for owner in raw["metadata"].get("ownerReferences") or ()}
            if gone["metadata"]["uid"] in owners:
                self.remove(other)

    def of_kind(self, kind: str) -> list[Object]:
        return [raw for (k, _, _), raw in sorted(self.objects.items()) if k == kind]


class FakeClient:
    """The `KubeClient` of one operator process. `script` answers the n-th write: None lets it happen."""

    def __init__(
        self, api: FakeApi, script: Callable[[int, str], Fault | None] = lambda _n, _what: None
    ) -> None:
        self.api, self._script = api, script
        self.log: list[str] = []  # every write that was sent
        self.dead = False

    # -- reading ------------------------------------------------------------------------------------------------
    async def list(self, resource: Resource, **_: Any) -> AsyncIterator[tuple[list[Object], int]]:
        await self._alive()
        yield copy.deepcopy(self.api.of_kind(resource.kind)), next(self.api.versions)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        await self._alive()
        return copy.deepcopy(self._there((resource.kind, namespace or "", name)))

    # -- writing ------------------------------------------------------------------------------------------------
    async def create(self, resource: Resource, body: Mapping[str, Any]) -> Object:
        def act() -> Object:
            if _place(body) in self.api.objects:
                raise ApiError(409, "AlreadyExists", f"{resource.plural} already exists")
            return self.api.put(copy.deepcopy(dict(body)))

        return await self._write(f"create {resource.kind} {body['metadata']['name']}", act)

    async def apply(self, resource: Resource, body: Mapping[str, Any], subresource: str = "") -> Object:
        def act() -> Object:
            place = _place(body)
            if subresource and place not in self.api.objects:
                raise ApiError(404, "NotFound", "not found")
            there = copy.deepcopy(self.api.objects.get(place) or {})
            _check(there, body["metadata"])
            if subresource:
                return self.api.put({**there, subresource: copy.deepcopy(body[subresource])})
            meta = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
            return self.api.put(
                {**there, **copy.deepcopy(dict(body)), "metadata": {**there.get("metadata", {}), **meta}}
            )

        return await self._write(
            f"apply {resource.kind} {body['metadata']['name']} {subresource}".rstrip(), act
        )

    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Mapping[str, Any]
    ) -> Object:
        def act() -> Object:
            there = copy.deepcopy(self._there((resource.kind, namespace or "", name)))
            _check(there, patch.get("metadata") or {})
            return self.api.put(_merge(there, patch))

        return await self._write(f"patch {resource.kind} {name}", act)

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, uid: str, grace_seconds: int | None = None
    ) -> Object:
        def act() -> Object:
            place = (resource.kind, namespace or "", name)
            if self._there(place)["metadata"]["uid"] != uid:
                raise ApiError(409, "Conflict", "precondition failed: uid")
            self.api.remove(place)
            return {"kind": "Status", "status": "Success"}

        return await self._write(f"delete {resource.kind} {name}", act)

    async def _write(self, what: str, act: Callable[[], Object]) -> Object:
        await self._alive()
        fault = self._script(len(self.log), what)
        self.log.append(what)
        if fault is None:
            return act()
        if fault.happens:
            with contextlib.suppress(ApiError):  # refused: nobody hears that either
                act()
        if fault.dies:
            self.dead = True
        await self._alive()
        raise fault.error

    async def _alive(self) -> None:
        """The dead ask nothing any more, and hear no answer."""
        await asyncio.sleep(0)
        if self.dead:
            await asyncio.Event().wait()

    def _there(self, place: Place) -> Object:
        if place not in self.api.objects:
            raise ApiError(404, "NotFound", f"{place[0]} {place[2]} not found")
        return self.api.objects[place]


@dataclass(frozen=True)
class Fault:
    """What becomes of one write: whether it takes effect, and what the writer hears or whether it dies of it."""

    happens: bool = False
    dies: bool = False
    error: ApiError = field(default_factory=lambda: ApiError(0, "Timeout", "no answer"))


def _place(raw: Mapping[str, Any]) -> Place:
    return raw["kind"], raw["metadata"].get("namespace") or "", raw["metadata"]["name"]


def _check(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for field_ in ("uid", "resourceVersion"):
        if wanted.get(field_) and (there.get("metadata") or {}).get(field_) != wanted[field_]:
            raise ApiError(409, "Conflict", f"precondition failed: {field_}")


def _merge(there: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping) or not isinstance(there, dict):
        return copy.deepcopy(patch)
    merged = dict(there)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key, {}), value)
    return merged


def _same_meta(before: Object, after: Object) -> bool:
    ignored = {"generation", "resourceVersion"}
    left, right = ({k: v for k, v in raw["metadata"].items() if k not in ignored} for raw in (before, after))
    return left == right


KINDS = {resource.kind: resource for resource in WATCHED}
