"""Kubernetes Events, without floods: one per transition, repeats suppressed, a bounded backlog, never in the way."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import structlog

from dl2.cluster.client import ApiError, KubeClient
from dl2.cluster.resources import EVENTS, Resource
from dl2.cluster.store import Entry

log = structlog.get_logger(__name__)
REPEAT_SECONDS = 600.0
PER_SECOND = 20.0
BACKLOG = 2000
REMEMBERED = 20_000


class EventRecorder:
    """`post` never blocks and never raises; `run` sends at most PER_SECOND. What does not fit is dropped, and counted."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(BACKLOG)
        self._recent: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self.dropped = 0

    def post(self, resource: Resource, entry: Entry, reason: str, message: str, warning: bool) -> None:
        now = time.monotonic()
        key = (entry.uid, reason, message)
        if now - self._recent.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return
        self._recent[key] = now
        self._recent.move_to_end(key)
        while len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        try:
            self._queue.put_nowait(_event(resource, entry, reason, message, warning))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        while True:
            event = await self._queue.get()
            try:
                await self._client.create(EVENTS, event)
            except ApiError as exc:  # an Event is an aid: its loss is noted and nothing else
                self.dropped += 1
                log.debug("event not written", error=str(exc))
            await asyncio.sleep(1 / PER_SECOND)


def _event(resource: Resource, entry: Entry, reason: str, message: str, warning: bool) -> dict[str, Any]:
    namespace = entry.namespace or "default"
    return {
        "apiVersion": EVENTS.api_version,
        "kind": "Event",
        "metadata": {"name": f"{entry.name[:200]}.{uuid4().hex[:16]}", "namespace": namespace},
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": "dl2.dev/operator",
        "reportingInstance": os.environ.get("POD_NAME") or os.uname().nodename,
        "action": reason,
        "reason": reason,
        "note": message[:1000],
        "type": "Warning" if warning else "Normal",
        "regarding": {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "name": entry.name,
            "namespace": entry.namespace or None,
            "uid": entry.uid,
        },
    }
