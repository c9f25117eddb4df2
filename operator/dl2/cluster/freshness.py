"""Whether the watches keep up: what they told, compared with what LISTs and the answers of writes show.

A watch can freeze without an error. All versions of one API server are comparable numbers and a watch tells of
changes in their order, so a watch that has not told of a version seen elsewhere is behind.
"""

from __future__ import annotations

import time


class Freshness:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._heard: dict[str, int] = {}  # kind -> newest version that its watch told of
        self._heard_at: dict[str, float] = {}
        self._waiting: dict[
            str, tuple[int, float]
        ] = {}  # kind -> a version it has not told of, and since when
        self._relisted_at: dict[str, float] = {}

    def heard(self, kind: str, version: int, *, relisted: bool = False) -> None:
        """The watch told of an object; `relisted`: as part of its own LIST, so it may have missed deletions."""
        now = time.monotonic()
        self._heard[kind] = max(version, self._heard.get(kind, 0))
        self._heard_at[kind] = now
        if relisted:
            self._relisted_at[kind] = now
        if kind in self._waiting and self._waiting[kind][0] <= self._heard[kind]:
            del self._waiting[kind]

    def seen(self, kind: str, version: int) -> None:
        """A LIST or the answer of a write showed an object of this version."""
        if version > self._heard.get(kind, 0) and kind not in self._waiting:
            self._waiting[kind] = (version, time.monotonic())

    def behind(self, kind: str) -> float:
        """For how many seconds the watch of `kind` has been owing a change; 0 when it owes none."""
        owed = self._waiting.get(kind)
        return time.monotonic() - owed[1] if owed else 0.0

    def forgive(self) -> None:
        """The watches start anew: nothing is owed yet."""
        self._waiting.clear()

    def event_age(self, kind: str) -> float:
        """Seconds since the last watch event of `kind`, or since the start when there was none."""
        return time.monotonic() - self._heard_at.get(kind, self._started)

    def relisted_at(self, kind: str) -> float:
        """Monotonic time at which the watch last told of objects by a LIST of its own."""
        return self._relisted_at.get(kind, 0.0)
