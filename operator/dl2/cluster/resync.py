"""LIST: before the first decision, and then periodically, to find what a lost watch missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from dl2.cluster.client import ApiError, KubeClient
from dl2.cluster.resources import OPTIONAL, WATCHED, Resource
from dl2.cluster.store import Store

log = structlog.get_logger(__name__)


UNWATCHED_SECONDS = 30.0  # between two LISTs of a kind that is not watched
SETTLE_SECONDS = 2.0  # a watch that lists again is left alone for so long before we look for what it missed


class Resync:
    """Keeps `Store` complete. `primed` once every kind was listed; `age()` tells how old the oldest LIST is."""

    def __init__(
        self, client: KubeClient, store: Store, resources: Iterable[Resource] = (*WATCHED, *OPTIONAL)
    ) -> None:
        self._client, self._store, self._resources = client, store, tuple(resources)
        self._listed_at: dict[str, float] = {}  # when the last successful LIST began
        self._failures: dict[str, int] = {}  # in a row
        self._not_before: dict[str, float] = {}
        self._failing_since = 0.0
        self.failure = ""

    @property
    def primed(self) -> bool:
        return len(self._listed_at) == len(self._resources)

    def age(self) -> float:
        """Seconds since the least recent successful LIST; infinite before the first."""
        return time.monotonic() - min(self._listed_at.values()) if self.primed else float("inf")

    def failing(self) -> float:
        """Seconds for which there has always been a kind whose last LIST failed."""
        return time.monotonic() - self._failing_since if self._failures else 0.0

    async def list_once(self, resource: Resource) -> int:
        """One LIST of one kind. Returns how many stale objects it removed. Raises ApiError."""
        began = time.monotonic()
        seen: set[str] = set()
        version = 0
        async for items, listed_at in self._client.list(resource, optional=resource in OPTIONAL):
            version = listed_at
            for raw in items:
                seen.add(raw["metadata"]["uid"])
                self._store.upsert(resource, raw)
            await asyncio.sleep(0)
        stale = self._store.keep_only(resource, seen, version)
        self._listed_at[resource.kind] = began
        return stale

    async def prime(self) -> None:
        """LIST every kind, patiently: nothing may be decided before all are known."""
        for resource in self._resources:
            while True:
                if await self._try(resource):
                    break
                await asyncio.sleep(max(0.0, self._not_before[resource.kind] - time.monotonic()))
        self._store.changed.set()

    async def run(self, interval: float) -> None:
        """Forever: LIST a kind every `interval` seconds, and soon after its watch has listed by itself.

        Kinds that are not watched come more often.
        """
        while True:
            await asyncio.sleep(min(1.0, interval))
            for resource in self._resources:
                every = min(interval, UNWATCHED_SECONDS) if resource in OPTIONAL else interval
                if self._due(resource.kind, every):
                    await self._try(resource)

    def _due(self, kind: str, interval: float) -> bool:
        now, listed = time.monotonic(), self._listed_at.get(kind, 0.0)
        if now < self._not_before.get(kind, 0.0):
            return False
        relisted = self._store.freshness.relisted_at(kind)
        return now - listed >= interval or listed < relisted <= now - SETTLE_SECONDS

    async def _try(self, resource: Resource) -> bool:
        """One LIST; a failure is noted, logged and tried again with capped back-off."""
        kind, again = resource.kind, resource.kind in self._listed_at
        try:
            stale = await self.list_once(resource)
        except ApiError as exc:
            if not self._failures:
                self._failing_since = time.monotonic()
            failures = self._failures[kind] = self._failures.get(kind, 0) + 1
            delay = min(0.2 * 2.0 ** min(failures, 10), 30.0)
            self._not_before[kind] = time.monotonic() + delay
            self.failure = f"cannot list {resource.plural}: {exc}"
            log.warning("cannot list", kind=kind, error=str(exc), retry_seconds=round(delay, 1))
            return False
        if stale and again:
            log.warning("the watch had missed deletions", kind=kind, objects=stale)
        self._failures.pop(kind, None)
        if not self._failures:
            self.failure = ""
        return True
