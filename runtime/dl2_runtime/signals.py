"""SIGTERM: begin to leave at once, and end in bounded time whatever the process waits for."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Callable

from dl2_runtime.settings import Settings

TERMINATED = 128 + signal.SIGTERM

log = logging.getLogger("dl2_runtime")


def on_sigterm(action: Callable[[], None], settings: Settings) -> None:
    """Run `action` on the first SIGTERM; if the process still lives `settings.grace` seconds later it exits with 143.

    `action` runs in a thread: what a handler interrupts may hold the lock that the action needs. Without effect outside
    the main thread, where Python lets nobody install handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    begun = threading.Event()

    def act() -> None:
        action()
        time.sleep(settings.grace)
        log.error("still here %g s after SIGTERM: exit", settings.grace)
        settings.mark_ready(False)
        os._exit(TERMINATED)

    def handle(number: int, frame: object) -> None:
        if not begun.is_set():
            begun.set()
            threading.Thread(target=act, name="dl2-sigterm", daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
