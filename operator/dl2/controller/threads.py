"""Work beside the event loop, and how much of the loop's own time something takes."""

from __future__ import annotations

import _thread
import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LoopTime(Generic[T]):
    """Awaits a coroutine and adds up the seconds in which it, and nobody else, has the event loop.

    `longest` is without giving way; `longest_busy` leaves out of that what went into waiting for the interpreter, which
    other threads use too, and for a core.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self.seconds = 0.0
        self.longest = 0.0
        self.longest_busy = 0.0

    def __await__(self) -> Generator[Any, Any, T]:
        resume: Callable[[Any], Any] = self._work.send
        given: Any = None
        while True:
            started, busy = time.perf_counter(), time.thread_time()
            try:
                waits_for = resume(given)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                busy = time.thread_time() - busy
                taken = time.perf_counter() - started
                self.seconds, self.longest = self.seconds + taken, max(self.longest, taken)
                self.longest_busy = max(self.longest_busy, busy)
            try:
                yield waits_for
                resume, given = self._work.send, None
            except BaseException as exc:  # cancelled, or what it waits for has failed: that is its own affair
                resume, given = self._work.throw, exc


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Like asyncio.to_thread, in a daemon thread of its own: one that never ends holds up nobody, not even the exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def body() -> None:
        try:
            result = work()
        except Exception as exc:
            done: tuple[Callable[[Any], None], Any] = (future.set_exception, exc)
        else:
            done = (future.set_result, result)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *done)

    _thread.start_new_thread(body, ())  # threading.Thread waits until it runs, which the event loop must not
    return future
