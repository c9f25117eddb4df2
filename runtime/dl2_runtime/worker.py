"""A worker's side: exchange gradients for parameters, all in one round trip per server.

    worker = Worker.connect()                     # DL2_* from the environment
    worker.init({"w": w})                         # w now holds the job's value, wherever training stands
    worker.rule = Rule("sgd", lr=0.1)
    while worker.step < 1000:
        place = worker.position()                 # step, rank, workers: which part of the global batch is ours
        worker.pushpull({"w": gradient}, {"w": w})

The caller's thread does all input and output with the servers; a second thread keeps in touch with the coordinator.
Arrays are used where they are: they must be C-contiguous, and nobody may change them during a call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import time
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np

from dl2_runtime import wire
from dl2_runtime.codecs import RAW, Compressor
from dl2_runtime.membership import Left, Membership, RuntimeLost
from dl2_runtime.optimizers import Rule
from dl2_runtime.settings import Settings
from dl2_runtime.signals import on_sigterm
from dl2_runtime.slots import bytes_of
from dl2_runtime.view import MAX_CHUNK_BYTES, Chunk, Key, Table

DIAL_SECONDS = 5.0
REDIAL = 0.5  # seconds between attempts to reach a server that is still a member
Array = Any

log = logging.getLogger("dl2_runtime.worker")

__all__ = ["Left", "Position", "RuntimeLost", "Worker"]


class Position(NamedTuple):
    """Which share of which global batch this worker computes next."""

    step: int
    rank: int
    workers: int


class _Wanted:
    """A chunk that we wait for: what we push for it (None: we only pull), and where its value goes."""

    __slots__ = ("chunk", "codec", "minimum", "out", "payload")

    def __init__(
        self, chunk: Chunk, payload: memoryview | None, codec: int, out: memoryview, minimum: int
    ) -> None:
        self.chunk, self.payload, self.codec, self.out, self.minimum = chunk, payload, codec, out, minimum


class Worker:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rule = Rule()
        self.compressor = Compressor()
        self._table = Table()
        self._copies: dict[str, Array] = {}  # the arrays that hold the parameters
        self._links: dict[str, wire.Link] = {}
        self._ruled: dict[wire.Link, Rule] = {}
        self._redial_at: dict[str, float] = {}
        self._scratch: dict[wire.Link, memoryview] = {}
        self._wanted: dict[int, _Wanted] = {}
        self._prefetched = -1  # the step whose values a newcomer has asked for
        self._selector = selectors.DefaultSelector()
        self._writing: set[wire.Link] = set()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._members = Membership(settings, self._wake, self._table.to_json)
        self.refresh: Callable[[], Mapping[str, Array]] = (
            dict  # arrays that hold the parameters now, if others do
        )
        self._linked = 0  # the view that the links are for
        self._closed = False

    @classmethod
    def connect(cls, environ: Mapping[str, str] = os.environ) -> Worker:
        """Join the job that the environment names. Raises RuntimeLost if its coordinator does not answer in time."""
        worker = cls(Settings.from_environ(environ))
        worker.start()
        return worker

    def start(self) -> None:
        self._members.start()

    # -- where we are --

    @property
    def step(self) -> int:
        """Rounds that are over; the number of the next one."""
        return self._members.step

    @property
    def rank(self) -> int:
        return self._members.rank

    @property
    def workers(self) -> int:
        """How many workers share a global batch now."""
        return len(self._members.view.workers)

    def position(self) -> Position:
        """Where the next round stands. Waits at a scaling clock, so the answer holds for that whole round.

        Raises Left if this worker is not part of it any more.
        """
        self._await_turn()
        return Position(self.step, self.rank, self.workers)

    # -- parameters --

    def init(self, arrays: Mapping[str, Array]) -> None:
        """Declare parameters and fill `arrays` with the job's values; the first worker's are the job's first.

        The first call makes this worker a member, at a scaling clock if the job is already training. Raises ValueError
        if the job knows a parameter by another size or type, RuntimeLost if something does not answer in time.
        """
        keys = [Key(name, int(array.size), str(array.dtype)) for name, array in arrays.items()]
        for key, array in zip(keys, arrays.values()):
            Key.from_json(key.to_json())
            bytes_of(array)
            self._copies[key.name] = array
        self._members.declare(keys, self.rule.name == "sum")
        deadline = time.monotonic() + self.settings.limit
        while True:
            reply = self._members.await_declared(deadline)
            if reply["type"] == "clock":
                self._prefetch(reply, keys)
                continue
            break
        if reply.get("error"):
            raise ValueError(reply["error"])
        self._table.add([Key.from_json(body) for body in reply["keys"]])
        self._link()
        for wanted in self._wanted.values():  # a chunk that moved before its server could answer
            self._ask(wanted)
        self._seed(list(reply["seed"]))
        self._fetch([key.name for key in keys if key.name not in reply["seed"]])
        self._members.forget_declared()

    def _prefetch(self, clock: wire.Message, keys: list[Key]) -> None:
        """Fetch, from the servers as they still are, the values that the clock's round begins with."""
        self._table.add([Key.from_json(body) for body in clock["keys"]])
        if self._members.present is None:
            return
        self._link()
        self._prefetched = int(clock["step"])
        self._wanted.clear()
        for key in keys:
            if key.name in self._table.of:
                self._want(key.name, self._prefetched)
        self._exchange(until=self._members.settled)

    def _fetch(self, names: list[str]) -> None:
        minimum = self._members.view.step  # never what a transition that was undone had asked for
        fetched = self._prefetched == self._members.view.step and self._members.fresh
        for name in names:
            if not fetched:
                self._want(name, minimum)
        self._exchange()

    def _seed(self, names: list[str]) -> None:
        for name in names:
            for chunk in self._table.of[name]:
                self._bring(chunk, self.step)
        self._exchange()
        self._members.tell({"type": "seeded", "names": names})

    def pushpull(self, grads: Mapping[str, Array], out: Mapping[str, Array] | None = None) -> None:
        """One round: send gradients, receive the new values (rule "sum": the sums) into `out`, else into `grads`.

        All workers must exchange the same parameters in the same round. Raises Left, RuntimeLost.
        """
        self._await_turn()
        self._members.begin_round()
        codec, step = self.compressor.codec, self.step
        for name, grad in grads.items():
            array = grad if out is None else out[name]
            if self.rule.name != "sum":
                self._copies[name] = array
            source, target = bytes_of(grad), bytes_of(array)
            for chunk in self._table.of[name]:
                payload = source[chunk.within]
                if codec != RAW:
                    part = np.frombuffer(payload, chunk.dtype)
                    payload = bytes_of(self.compressor.encode(chunk.number, part))
                self._wanted[chunk.number] = wanted = _Wanted(
                    chunk, payload, codec, target[chunk.within], step
                )
                self._ask(wanted)
        self._exchange()
        self._members.end_round()

    # -- membership --

    def leave(self) -> None:
        """Ask to leave at the next scaling clock; the call that reaches it raises Left."""
        self._members.leave()

    def leave_on_sigterm(self) -> None:
        """Leave when the pod is deleted; the process ends within DL2_GRACE_SECONDS of it in any case."""
        on_sigterm(self.leave, self.settings)

    def checkpoint(self) -> None:
        """Ask for a checkpoint at the next scaling clock."""
        self._members.tell({"type": "checkpoint"})

    def close(self, finished: bool = True) -> None:
        """Say that this worker has `finished` (else it counts as dead), and disconnect. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._members.finish(finished)
        for link in list(self._links.values()):
            self._drop(link)
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: Any, *error: object) -> None:
        self.close(finished=kind is None or issubclass(kind, Left))

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # awake already, or closed
            self._waker.send(b"\0")

    def _await_turn(self) -> None:
        """Return when the next round may begin, with links to the servers of its view."""
        while True:
            self._members.await_turn()
            if self._members.recovery is None:
                break
            self._recover()
            self._exchange()
        if self._linked != self._members.view.version:
            self._link()
            self._publish()

    def _publish(self) -> None:
        """Where workers keep the values (rule "sum"), one brings them to the servers for those who join."""
        view, joined = self._members.view, self._members.take_joined()
        if self.rule.name != "sum" or not joined or self._members.id in joined:
            return
        if next(name for name in view.workers if name not in joined) == self._members.id:
            self._refresh()
            for chunk in self._table.chunks:
                self._bring(chunk, self.step)
            self._exchange()

    def _refresh(self) -> None:
        self._copies.update(self.refresh())

    # -- links to the servers --

    def _link(self) -> None:
        """Links to exactly the servers of the present view; those of the next one were dialled before its clock."""
        servers = self._members.servers
        for name, link in list(self._links.items()):
            if name not in servers:
                self._drop(link)
        for name in servers:
            if name not in self._links:
                self._connect(name)
        self._linked = self._members.view.version
        self._members.forget_dialled()

    def _connect(self, name: str) -> None:
        sock = self._members.dialled(name)
        if sock is None:
            try:
                sock = wire.connect(
                    self._members.servers[name],
                    self.settings.identity(),
                    self.settings.token,
                    min(DIAL_SECONDS, self.settings.limit),
                )
            except OSError as error:
                log.warning("server %s cannot be reached: %s", name, error)
                self._redial_at[name] = time.monotonic() + REDIAL
                return
        link = wire.Link(sock, self._place, self._deliver)
        link.peer = name
        self._links[name] = link
        self._scratch[link] = memoryview(bytearray(MAX_CHUNK_BYTES))
        self._selector.register(sock, selectors.EVENT_READ, link)

    def _drop(self, link: wire.Link) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._selector.unregister(link.sock)
        self._writing.discard(link)
        self._scratch.pop(link, None)
        self._ruled.pop(link, None)
        link.close()

    def _owner(self, chunk: Chunk) -> wire.Link | None:
        """The link to a chunk's server; None while that server is away."""
        return self._links.get(self._members.owners[chunk.number])

    def _want(self, name: str, minimum: int) -> None:
        """Pull a parameter as it is after `minimum` rounds, or later."""
        target = bytes_of(self._copies[name])
        for chunk in self._table.of[name]:
            self._wanted[chunk.number] = wanted = _Wanted(chunk, None, RAW, target[chunk.within], minimum)
            self._ask(wanted)

    def _ask(self, wanted: _Wanted) -> None:
        """Queue the push, or the pull, for one chunk. If its server is away that happens when it is back."""
        chunk = wanted.chunk
        link = self._owner(chunk)
        if link is None:
            return
        dtype, view = chunk.code, self._members.view.version
        if wanted.payload is None:
            link.send(wire.Frame(wire.PULL, dtype, view, chunk.number, 0, 0, wanted.minimum))
            return
        if self._ruled.get(link) is not self.rule:
            self._ruled[link] = self.rule
            link.tell(self._numbered(self.rule), wire.RULE)
        payload = wanted.payload
        codec = dtype | wanted.codec << 4
        frame = wire.Frame(wire.PUSH, codec, view, chunk.number, payload.nbytes, chunk.size, wanted.minimum)
        link.send(frame, (payload,))

    def _numbered(self, rule: Rule) -> wire.Message:
        """Servers know parameters by number."""
        numbers = {name: str(n) for n, name in enumerate(self._table.keys)}
        body = rule.to_json()
        for field in ("lr_mult", "wd_mult"):
            body[field] = {numbers[name]: value for name, value in body[field].items() if name in numbers}
        return body

    def _bring(self, chunk: Chunk, version: int) -> None:
        """Queue a value for its server; `_exchange` sends it before it returns."""
        link = self._owner(chunk)
        if link is None:
            return
        part = bytes_of(self._copies[chunk.key])[chunk.within]
        number = list(self._table.keys).index(chunk.key)
        view = self._members.view.version
        frame = wire.Frame(wire.SEED, chunk.code, view, chunk.number, part.nbytes, number, version)
        link.send(frame, (part,))

    # -- input and output --

    def _place(self, link: wire.Link, frame: wire.Frame) -> memoryview:
        """Values come into a small buffer first, so that a parameter is never half old and half new."""
        if frame.size > MAX_CHUNK_BYTES:
            raise wire.WireError(f"{link.peer} sends {frame.size} bytes for chunk {frame.chunk}")
        return self._scratch[link]

    def _deliver(self, link: wire.Link, frame: wire.Frame, payload: memoryview) -> None:
        if frame.kind != wire.VALUE:
            raise wire.WireError(f"{link.peer} sent frame kind {frame.kind}")
        wanted = self._wanted.get(frame.chunk)
        if wanted is None or frame.step < wanted.minimum + self._ahead(wanted):
            return  # an answer to a question that was asked again
        if frame.aux != wanted.chunk.size or frame.size != wanted.chunk.nbytes:
            raise wire.WireError(f"{link.peer} sends {frame.aux} numbers for chunk {frame.chunk}")
        wanted.out[:] = payload
        del self._wanted[frame.chunk]

    def _ahead(self, wanted: _Wanted) -> int:
        """An answer to a push is newer than the round; asynchronous rounds are over for nobody in particular."""
        if wanted.payload is None:
            return 0
        return -wanted.minimum if self.rule.asynchronous else 1

    def _exchange(self, until: Any = None) -> None:
        """Send and receive until nothing is wanted and all is sent, or until `until()`."""
        deadline = time.monotonic() + self.settings.limit
        for link in list(self._links.values()):
            self._attempt(link, selectors.EVENT_WRITE)
        while self._wanted or self._writing:
            if until is not None and until():
                return
            for key, events in self._selector.select(REDIAL):
                if key.data is None:
                    self._drain_waker()
                else:
                    self._attempt(key.data, events)
            self._members.check()
            if self._members.recovery is not None:
                self._recover()
            elif self._redial_at or len(self._links) < len(self._members.servers):
                self._redial()
            if time.monotonic() > deadline:
                raise RuntimeLost(self._describe_wait())

    def _attempt(self, link: wire.Link, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                link.receive()
            if events & selectors.EVENT_WRITE or link.sending:
                wire.flush(link, self._selector, self._writing)
        except wire.WireError as error:
            log.warning("%s", error)
            self._redial_at[link.peer] = time.monotonic() + REDIAL
            self._drop(link)

    def _drain_waker(self) -> None:
        with contextlib.suppress(OSError):
            self._woken.recv(4096)

    def _redial(self) -> None:
        """Reach again a server that is still a member; a dead one is soon replaced by a recovery."""
        now = time.monotonic()
        for name, at in list(self._redial_at.items()):
            if name not in self._members.servers or name in self._links or name in self._members.shunned:
                del self._redial_at[name]
            elif now >= at:
                del self._redial_at[name]
                self._connect(name)
                self._ask_again({name})

    def _ask_again(self, servers: set[str]) -> None:
        for wanted in self._wanted.values():
            if self._members.owners[wanted.chunk.number] in servers:
                self._ask(wanted)
        for name in servers & set(self._links):
            self._attempt(self._links[name], selectors.EVENT_WRITE)

    def _describe_wait(self) -> str:
        missing: dict[str, int] = {}
        for wanted in self._wanted.values():
            owner = self._members.owners[wanted.chunk.number]
            missing[owner] = missing.get(owner, 0) + 1
        who = ", ".join(f"{count} chunks from {name}" for name, count in missing.items())
        return (
            f"round {self.step}: waited {self.settings.limit:g} s for {who or 'room to send'}"
            f"{self._members.laggards()}"
        )

    # -- a server died --

    def _recover(self) -> None:
        """Answer what the coordinator asks about lost chunks, or carry out what it decided."""
        message = self._members.take_recovery()
        if message is None:
            return
        if message["type"] == "recover":
            for link in list(self._links.values()):
                if (
                    link.peer not in message["servers"]
                ):  # should it come back to life, it must not change our copies
                    self._drop(link)
            in_round = self._members.in_round
            versions = [
                [number, self.step + (in_round and number not in self._wanted)]
                for number in message["lost"]
                if self._table.chunks[number].key in self._copies
            ]
            answer = {"type": "inventory", "version": message["version"], "step": self.step}
            self._members.tell({**answer, "in_round": in_round, "versions": versions})
            return
        self._refresh()
        self._link()
        donors: dict[str, tuple[int, str]] = message["donors"]
        for number in message["lost"]:
            version, worker = donors.get(str(number), (-1, ""))
            if worker == self._members.id:
                self._bring(self._table.chunks[number], version)
            if number in self._wanted:
                self._ask(self._wanted[number])
        for link in list(self._links.values()):
            self._attempt(link, selectors.EVENT_WRITE)
