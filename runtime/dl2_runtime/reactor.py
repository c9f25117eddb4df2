"""One thread, many connections: the loop that the coordinator and the servers run in."""

from __future__ import annotations

import collections
import contextlib
import logging
import selectors
import socket
import time
from typing import Callable

from dl2_runtime import wire
from dl2_runtime.settings import Settings

TICK = 0.05  # seconds between two calls of `tick`
HANDSHAKE_SECONDS = 5.0
MAX_LINKS = 512

log = logging.getLogger("dl2_runtime")


class Reactor:
    """Accepts, greets and serves links. Its callbacks run in the loop's thread, so they need no locks.

    joined(link)  a peer has proved its identity        lost(link)  an open link is gone
    place, deliver  as in wire.Link                     tick()      every TICK seconds
    """

    def __init__(
        self,
        settings: Settings,
        *,
        place: Callable[[wire.Link, wire.Frame], memoryview],
        deliver: Callable[[wire.Link, wire.Frame, memoryview], None],
        joined: Callable[[wire.Link], None],
        lost: Callable[[wire.Link], None],
        tick: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._place, self._deliver_open = place, deliver
        self._joined, self._lost, self._tick = joined, lost, tick
        self._selector = selectors.DefaultSelector()
        self._greetings: dict[wire.Link, tuple[wire.Greeting, float]] = {}
        self._links: set[wire.Link] = set()
        self._writing: set[wire.Link] = set()
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._listener: socket.socket | None = None
        self.dirty: set[wire.Link] = set()  # links with something to send; flushed once a turn
        self.stopped = False

    def listen(self, host: str, port: int) -> int:
        """Accept on `host:port` (0: any); returns the port."""
        self._listener = listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        return int(listener.getsockname()[1])

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` in the loop; may be called from any thread."""
        self._calls.append(function)
        with contextlib.suppress(OSError):  # it is awake already, or gone
            self._waker.send(b"\0")

    def adopt(self, sock: socket.socket) -> None:
        """Greet a connection that was accepted here or elsewhere."""
        if len(self._links) >= MAX_LINKS:
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = self._open(sock)
        link.limit = wire.MAX_HANDSHAKE_BYTES
        greeting = wire.Greeting(self._settings.token, self._settings.job)
        self._greetings[link] = (greeting, time.monotonic() + HANDSHAKE_SECONDS)

    def attach(self, sock: socket.socket, peer: str) -> wire.Link:
        """Take over a connection on which we have shaken hands as the client."""
        link = self._open(sock)
        link.peer = peer
        return link

    def close(self, link: wire.Link, why: str = "") -> None:
        """End a link; `lost` is called unless it was still a stranger's."""
        if link not in self._links:
            return
        if why:
            log.warning("connection to %s ends: %s", link.peer, why)
        stranger = self._greetings.pop(link, None) is not None
        self._links.discard(link)
        self._writing.discard(link)
        self.dirty.discard(link)
        self._selector.unregister(link.sock)
        link.close()
        if not stranger:
            self._lost(link)

    def run(self) -> None:
        next_tick = time.monotonic()
        while not self.stopped:
            self.turn(max(0.0, next_tick - time.monotonic()))
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK
                self._expire_greetings()
                self._tick()
        self.flush()

    def linger(self, seconds: float) -> None:
        """Go on until every peer has closed its link: closing one with unread input would lose what we sent last."""
        deadline = time.monotonic() + seconds
        while self._links and time.monotonic() < deadline:
            self.turn(TICK)

    def turn(self, timeout: float) -> None:
        for key, events in self._selector.select(timeout):
            link = key.data
            if link is None:
                self._internal(key.fileobj)
            elif link in self._links:
                if events & selectors.EVENT_READ:
                    self._guard(link, link.receive)
                if events & selectors.EVENT_WRITE:
                    self.dirty.add(link)
        self.flush()

    def flush(self) -> None:
        while self.dirty:
            link = self.dirty.pop()
            if link in self._links:
                self._guard(link, lambda link=link: wire.flush(link, self._selector, self._writing))  # type: ignore[misc]

    def shut(self) -> None:
        """Close everything; for after `run`."""
        for link in list(self._links):
            self._links.discard(link)
            link.close()
        for sock in (self._listener, self._waker, self._woken):
            if sock is not None:
                sock.close()
        self._selector.close()

    # -- within the loop --

    def _open(self, sock: socket.socket) -> wire.Link:
        link = wire.Link(sock, self._place, self._deliver)
        self._links.add(link)
        self._selector.register(sock, selectors.EVENT_READ, link)
        return link

    def _guard(self, link: wire.Link, action: Callable[[], None]) -> None:
        """What one peer does wrong ends its connection, never the process."""
        try:
            action()
        except wire.WireError as error:
            self._refuse(link, str(error))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self._refuse(link, f"what {link.peer} sent makes no sense: {type(error).__name__}: {error}")

    def _refuse(self, link: wire.Link, why: str) -> None:
        if link in self._greetings:
            try:
                link.tell({"error": why}, wire.REFUSED)
                link.flush()
            except wire.WireError:
                pass
        self.close(link, why)

    def _internal(self, sock: object) -> None:
        if sock is self._listener and self._listener is not None:
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # gone again, or no descriptor is left
                return
            self.adopt(accepted)
            return
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        while self._calls:
            self._calls.popleft()()

    def _deliver(self, link: wire.Link, frame: wire.Frame, payload: memoryview) -> None:
        entry = self._greetings.get(link)
        if entry is None:
            self._deliver_open(link, frame, payload)
            return
        greeting = entry[0]
        kind, message = greeting.answer(frame.kind, wire.decode(payload))
        link.tell(message, kind)
        self.dirty.add(link)
        if greeting.identity is not None:
            del self._greetings[link]
            link.identity = greeting.identity
            link.peer = str(greeting.identity.get("id"))
            link.limit = wire.MAX_CONTROL_BYTES
            self._joined(link)

    def _expire_greetings(self) -> None:
        now = time.monotonic()
        for link, (_, deadline) in list(self._greetings.items()):
            if now > deadline:
                self.close(link, f"no handshake within {HANDSHAKE_SECONDS:g} s")
