"""Frames between the members of a job: fixed header, raw payload, nothing that could execute.

Every frame starts with 32 bytes (little endian): magic "DL2", protocol version, kind, codec, flags, view, chunk, payload
size, auxiliary number, step. Control frames carry JSON, data frames the bytes of one chunk. A connection opens with a
mutual proof that both ends hold the job's token (HMAC-SHA256 over fresh nonces), so the token itself never travels.

Whatever is wrong with what a peer sent raises WireError, which ends that connection and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import selectors
import socket
import struct
from collections import deque
from itertools import islice
from typing import Any, Callable, Dict, Iterable, NamedTuple, Sequence

MAGIC = b"DL2"
VERSION = 1
HEADER = struct.Struct("<3sBBBHIIIIq")
MAX_CONTROL_BYTES = 16 << 20
MAX_DATA_BYTES = 64 << 20
MAX_HANDSHAKE_BYTES = 4096
BUFFERS_PER_CALL = 64  # for one sendmsg; the kernel's limit is 1,024
BYTES_PER_TURN = 8 << 20  # what one connection may read before the others have their turn

# Kinds of frames. CONTROL carries a JSON object with a "type"; the data frames say which chunk they carry.
HELLO, CHALLENGE, PROOF, WELCOME, REFUSED = range(1, 6)
CONTROL, RULE, PUSH, VALUE, SEED, PULL, MOVE = range(16, 23)
_DATA = frozenset((PUSH, VALUE, SEED, MOVE))

Message = Dict[str, Any]


class WireError(ConnectionError):
    """The peer broke the protocol, or the connection broke; the message says which and who."""


class Refused(WireError):
    """The peer would not have us: wrong token, other protocol version, declared dead."""


class Frame(NamedTuple):
    """The header of a frame. `view`, `chunk`, `aux` and `step` mean something to data frames only."""

    kind: int
    codec: int = 0
    view: int = 0
    chunk: int = 0
    size: int = 0
    aux: int = 0
    step: int = 0

    def pack(self) -> bytes:
        return HEADER.pack(
            MAGIC, VERSION, self.kind, self.codec, 0, self.view, self.chunk, self.size, self.aux, self.step
        )


def unpack(header: Any, limit: int) -> Frame:
    """Read a header; `limit` bounds the payload of everything but data frames."""
    magic, version, kind, codec, _, view, chunk, size, aux, step = HEADER.unpack(header)
    if magic != MAGIC:
        raise WireError("what arrived is no DL2 frame")
    if version != VERSION:
        raise WireError(f"the peer speaks protocol version {version}, this is version {VERSION}")
    allowed = MAX_DATA_BYTES if kind in _DATA and limit > MAX_HANDSHAKE_BYTES else limit
    if size > allowed:
        raise WireError(f"a frame of {size} bytes, {allowed} are allowed")
    return Frame(kind, codec, view, chunk, size, aux, step)


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()


def decode(payload: Any) -> Message:
    try:
        message = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise WireError(f"a control frame is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise WireError("a control frame must be a JSON object")
    return message


# -- blocking use: handshakes and the members' connection to the coordinator --


def send_frame(sock: socket.socket, kind: int, message: Message) -> None:
    payload = encode(message)
    sock.sendall(Frame(kind, size=len(payload)).pack() + payload)


def receive_frame(sock: socket.socket, limit: int = MAX_CONTROL_BYTES) -> tuple[Frame, Message]:
    """Read one JSON frame from a blocking socket. Raises WireError, or OSError (a time-out is one)."""
    frame = unpack(_read(sock, HEADER.size), limit)
    if frame.kind in _DATA:
        raise WireError("a data frame where a control frame was due")
    return frame, decode(_read(sock, frame.size))


def _read(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = sock.recv_into(rest)
        if not count:
            raise WireError("the peer closed the connection")
        rest = rest[count:]
    return data


# -- handshake --


def _proof(token: bytes, side: str, identity: Message, nonces: Sequence[str]) -> str:
    text = json.dumps([side, identity, *nonces], sort_keys=True).encode()
    return hmac.new(token, text, hashlib.sha256).hexdigest()


class Greeting:
    """The accepting side of the handshake, fed frame by frame so that it never waits.

    `answer` returns the frame to send; after the PROOF `identity` is what the peer proved to be.
    """

    def __init__(self, token: bytes, job: str) -> None:
        self._token, self._job = token, job
        self._nonces = ["", os.urandom(16).hex()]
        self._claim: Message | None = None
        self.identity: Message | None = None

    def answer(self, kind: int, message: Message) -> tuple[int, Message]:
        if kind == HELLO and self._claim is None:
            self._claim = message.get("identity")
            self._nonces[0] = str(message.get("nonce"))
            if not isinstance(self._claim, dict) or self._claim.get("job") != self._job:
                raise Refused(f"this is job {self._job!r}")
            return CHALLENGE, {"nonce": self._nonces[1]}
        if kind == PROOF and self._claim is not None:
            expected = _proof(self._token, "client", self._claim, self._nonces)
            if not hmac.compare_digest(expected, str(message.get("proof"))):
                raise Refused("the token is not this job's")
            self.identity = self._claim
            return WELCOME, {"proof": _proof(self._token, "server", self._claim, self._nonces)}
        raise WireError(f"frame kind {kind} during the handshake")


def connect(address: str, identity: Message, token: bytes, timeout: float) -> socket.socket:
    """Open a connection to `host:port` and shake hands within `timeout` seconds; returns a blocking socket.

    Raises Refused if the peer does not accept us or is not of this job, OSError if it cannot be reached.
    """
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)), timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nonces = [os.urandom(16).hex()]
        send_frame(sock, HELLO, {"identity": identity, "nonce": nonces[0]})
        nonces.append(str(_expect(sock, CHALLENGE, address).get("nonce")))
        send_frame(sock, PROOF, {"proof": _proof(token, "client", identity, nonces)})
        welcome = _expect(sock, WELCOME, address)
        if not hmac.compare_digest(_proof(token, "server", identity, nonces), str(welcome.get("proof"))):
            raise Refused(f"{address} does not hold this job's token")
    except BaseException:
        sock.close()
        raise
    return sock


def _expect(sock: socket.socket, kind: int, address: str) -> Message:
    frame, message = receive_frame(sock, MAX_HANDSHAKE_BYTES)
    if frame.kind == REFUSED:
        raise Refused(f"{address} refused: {message.get('error')}")
    if frame.kind != kind:
        raise WireError(f"{address} sent frame kind {frame.kind} during the handshake")
    return message


# -- non-blocking use: everything that carries parameters --


class Link:
    """A framed connection that never waits; its owner calls `receive` and `flush` when the socket is ready.

    `place(frame)` returns the writable buffer for a data frame's payload (it may be larger), `deliver(frame, payload)`
    gets each complete frame. A payload and the header that follows it are read in one system call.
    """

    def __init__(
        self,
        sock: socket.socket,
        place: Callable[[Link, Frame], memoryview],
        deliver: Callable[[Link, Frame, memoryview], None],
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.peer = "a stranger"
        self.identity: Message = {}
        self.limit = MAX_CONTROL_BYTES
        self.closed = False
        self._place, self._deliver = place, deliver
        self._out: deque[memoryview] = deque()
        self._header = memoryview(bytearray(HEADER.size))
        self._have = 0  # bytes of the header that are there
        self._frame: Frame | None = None
        self._payload = memoryview(b"")
        self._rest = memoryview(b"")  # what is missing of the payload

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def sending(self) -> bool:
        return bool(self._out)

    def send(self, frame: Frame, payload: Iterable[memoryview] = ()) -> None:
        """Queue a frame. The payload's buffers are not copied: they must stay as they are until they are sent."""
        self._out.append(memoryview(frame.pack()))
        self._out.extend(payload)

    def tell(self, message: Message, kind: int = CONTROL) -> None:
        """Queue a JSON frame and send what the socket takes at once."""
        payload = encode(message)
        self.send(Frame(kind, size=len(payload)), (memoryview(payload),))

    def flush(self) -> bool:
        """Send what the socket takes; true if nothing is left."""
        out = self._out
        while out:
            try:
                sent = self.sock.sendmsg(list(islice(out, BUFFERS_PER_CALL)))
            except BlockingIOError:
                return False
            except OSError as error:
                raise WireError(f"sending to {self.peer}: {error}") from None
            while sent:
                size = out[0].nbytes
                if sent < size:
                    out[0] = out[0][sent:]
                    break
                sent -= size
                out.popleft()
        return True

    def receive(self) -> None:
        """Read what is there, up to this connection's turn, and deliver the frames that are complete."""
        turn = BYTES_PER_TURN
        while turn > 0 and not self.closed:
            buffers = [self._rest, self._header] if self._frame is not None else [self._header[self._have :]]
            try:
                count = self.sock.recvmsg_into(buffers)[0]
            except BlockingIOError:
                return
            except OSError as error:
                raise WireError(f"reading from {self.peer}: {error}") from None
            if not count:
                raise WireError(f"{self.peer} closed the connection")
            turn -= count
            self._take(count)

    def _take(self, count: int) -> None:
        if self._frame is not None:
            missing = self._rest.nbytes
            if count < missing:
                self._rest = self._rest[count:]
                return
            count -= missing
            self._have = 0
            self._finish()
        self._have += count
        if self._have == HEADER.size:
            self._start(unpack(self._header, self.limit))

    def _start(self, frame: Frame) -> None:
        self._frame, self._have = frame, 0
        if frame.kind in _DATA:
            self._payload = self._place(self, frame)[: frame.size]
        else:
            self._payload = memoryview(bytearray(frame.size))
        self._rest = self._payload
        if not frame.size:
            self._finish()

    def _finish(self) -> None:
        frame, payload = self._frame, self._payload
        self._frame, self._payload, self._rest = None, memoryview(b""), memoryview(b"")
        assert frame is not None
        self._deliver(self, frame, payload)

    def close(self) -> None:
        self.closed = True
        self._out.clear()
        self.sock.close()


def flush(link: Link, selector: selectors.BaseSelector, writing: set[Link]) -> None:
    """Send what the socket takes; while something is left the selector says when to go on, and `writing` has the link."""
    done = link.flush()
    if done and link in writing:
        writing.discard(link)
        selector.modify(link.sock, selectors.EVENT_READ, link)
    elif not done and link not in writing:
        writing.add(link)
        selector.modify(link.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, link)
