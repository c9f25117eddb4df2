"""Work beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


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

    threading.Thread(target=body, daemon=True, name="scaling").start()
    return future
