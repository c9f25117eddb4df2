"""Status writes that nobody waits for: positions, estimates, progress. They go out at a bounded rate."""

from __future__ import annotations

import time

from dl2.cluster.applier import Applier, Slot, Write
from dl2.cluster.resources import Resource
from dl2.scheduling.snapshot import Key


class SoftWrites:
    """At most `rate` a second in all, and of each object one in `interval` seconds; the newest of them counts."""

    def __init__(self, applier: Applier, rate: float, interval: float) -> None:
        self._applier, self._rate, self._interval = applier, rate, interval
        self._waiting: dict[Slot, Write] = {}
        self._sent: dict[Slot, float] = {}
        self._tokens, self._at = rate, time.monotonic()

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def put(self, write: Write) -> None:
        self._waiting[write.slot] = write

    def drop(self, resource: Resource, key: Key) -> None:
        """Whatever waits for this object is out of date."""
        self._waiting.pop(Slot(resource.kind, key.namespace, key.name, "status"), None)

    def send(self) -> None:
        """Send what the rate allows now. Whoever could not be sent is looked at again by its owner."""
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._sent = {slot: at for slot, at in self._sent.items() if now - at < self._interval}
        for slot in [slot for slot in self._waiting if slot not in self._sent]:
            if self._tokens < 1 or self._applier.half_full:
                return
            self._applier.submit(self._waiting.pop(slot))
            self._sent[slot] = now
            self._tokens -= 1
