"""A member's connection to the coordinator: a thread that keeps it up, sends heartbeats and hands on what it hears.

While the coordinator is away the training goes on; the thread tries again until `limit`, then reports that to the
member, who must not wait for ever.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from typing import Callable

from dl2_runtime import wire
from dl2_runtime.settings import Settings

RETRY = 0.2  # seconds at first, doubled up to MAX_RETRY
MAX_RETRY = 2.0
CONNECT_SECONDS = 5.0

log = logging.getLogger("dl2_runtime")


class Control(threading.Thread):
    """`hello()` is what we tell the coordinator on (re)connecting; `heard(message)` is called in this thread.

    A message of type "refused" means that we are no member any more, "lost" that the coordinator stayed away.
    """

    def __init__(
        self,
        settings: Settings,
        hello: Callable[[], wire.Message],
        heard: Callable[[wire.Message], None],
        beat: Callable[[], wire.Message],
    ) -> None:
        super().__init__(name="dl2-control", daemon=True)
        self._settings = settings
        self._hello, self._heard, self._beat = hello, heard, beat
        self._sending = threading.Lock()
        self._sock: socket.socket | None = None
        self._closed = threading.Event()
        self._last_beat = 0.0
        self.local_host: str | None = None
        self.connected = threading.Event()

    def tell(self, message: wire.Message) -> bool:
        """Send to the coordinator if it is there. A message lost with it is made good by the next hello."""
        with self._sending:
            if self._sock is None:
                return False
            try:
                wire.send_frame(self._sock, wire.CONTROL, message)
                return True
            except OSError:
                return False

    def close(self) -> None:
        self._closed.set()
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self.is_alive() and threading.current_thread() is not self:
            self.join(2 * CONNECT_SECONDS)

    def run(self) -> None:
        retry, away_since = RETRY, time.monotonic()
        while not self._closed.is_set():
            try:
                sock = wire.connect(
                    self._settings.coordinator,
                    self._settings.identity(),
                    self._settings.token,
                    CONNECT_SECONDS,
                )
            except wire.Refused as error:
                self._heard({"type": "refused", "error": str(error)})
                return
            except (OSError, ValueError) as error:
                away = time.monotonic() - away_since
                if away > self._settings.limit:
                    self._heard(
                        {
                            "type": "lost",
                            "error": f"coordinator {self._settings.coordinator} was away {away:.0f} s: {error}",
                        }
                    )
                    return
                self._closed.wait(retry)
                retry = min(2 * retry, MAX_RETRY)
                continue
            self._serve(sock)
            retry, away_since = RETRY, time.monotonic()
            self._closed.wait(RETRY)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(CONNECT_SECONDS)
        self.local_host = sock.getsockname()[0]
        with self._sending:
            self._sock = sock
        try:
            self.tell({"type": "hello", **self._hello()})
            self.connected.set()
            self._listen(sock)
        except OSError as error:
            if not self._closed.is_set():
                log.warning("the connection to the coordinator broke: %s; trying again", error)
        finally:
            self.connected.clear()
            with self._sending:
                self._sock = None
            sock.close()

    def _listen(self, sock: socket.socket) -> None:
        reader = _Reader(sock)
        last_heard = time.monotonic()
        while not self._closed.is_set():
            now = time.monotonic()
            if now - self._last_beat >= self._settings.heartbeat:
                self._last_beat = now
                self.tell({"type": "beat", **self._beat()})
            message = reader.read(max(0.01, self._last_beat + self._settings.heartbeat - time.monotonic()))
            if message is not None:
                last_heard = time.monotonic()
                if message.get("type") != "beat":
                    self._heard(message)
            elif time.monotonic() - last_heard > self._settings.dead_after:
                raise wire.WireError(f"the coordinator was silent for {self._settings.dead_after:g} s")


class _Reader:
    """Frames from a blocking socket with a limit for each wait, without losing half a frame."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = bytearray()
        self._poll = select.poll()  # a time-out on the socket would also be the senders'
        self._poll.register(sock, select.POLLIN)

    def read(self, timeout: float) -> wire.Message | None:
        while True:
            message = self._next()
            if message is not None:
                return message
            if not self._poll.poll(timeout * 1000):
                return None
            data = self._sock.recv(1 << 16)
            if not data:
                raise wire.WireError("the coordinator closed the connection")
            self._data += data

    def _next(self) -> wire.Message | None:
        size = wire.HEADER.size
        if len(self._data) < size:
            return None
        end = size + wire.unpack(bytes(self._data[:size]), wire.MAX_CONTROL_BYTES).size
        if len(self._data) < end:
            return None
        message = wire.decode(self._data[size:end])
        del self._data[:end]
        return message
