"""Waiting on conditions with a deadline, and telling what is being done meanwhile."""

import time
from collections.abc import Callable
from typing import Protocol

from dl2.embedded.errors import ClusterError


class Progress(Protocol):
    """Where long work tells how far it is."""

    def step(self, text: str) -> None:
        """A new step has begun; the one before it is done."""

    def failed(self) -> None:
        """The step at work has not been done, and another follows all the same."""

    def advance(self, task: str, done: int, total: int) -> None:
        """`task` has finished `done` of `total` units; equal numbers end it."""


class Silent:
    """Progress that nobody watches."""

    def step(self, text: str) -> None:
        pass

    def failed(self) -> None:
        pass

    def advance(self, task: str, done: int, total: int) -> None:
        pass


def wait_until(
    probe: Callable[[], bool | str], what: str, timeout: float = 60.0, interval: float = 0.05, mend: str = ""
) -> None:
    """Calls `probe` every `interval` seconds until it returns True.

    A string means "not yet, because ..." and is shown when `timeout` seconds are over, as ClusterError.
    An exception of the probe ends the wait at once.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer is True:
            return
        if time.monotonic() >= deadline:
            reason = f": {answer}" if isinstance(answer, str) else ""
            raise ClusterError(f"{what} did not happen within {timeout:g} s{reason}", mend)
        time.sleep(interval)
