"""How fast status writes go out that nobody waits for: positions, estimates, progress."""

from __future__ import annotations

import time

_LEAST = 0.1  # of the rate, however much else is written


class Pace:
    """At most `rate` status writes a second, those that somebody waits for included; these never wait themselves."""

    def __init__(self, rate: float) -> None:
        self._rate, self._tokens, self._others, self._at = rate, rate, 0, time.monotonic()

    def count(self) -> None:
        """A write has gone out that does not wait."""
        self._others += 1

    def allows(self) -> int:
        """So many may go out now."""
        now = time.monotonic()
        earned = (now - self._at) * self._rate
        self._tokens = min(self._rate, self._tokens + max(earned * _LEAST, earned - self._others))
        self._others, self._at = 0, now
        return int(self._tokens)

    def spend(self) -> None:
        self._tokens -= 1
