"""Training progress over HTTP: the job's coordinator serves it, its workers report it, the operator reads it.

    GET  /v1/status    -> the latest report
    POST /v1/progress  <- a report

Both carry the same JSON object: `epoch` and `step` (integers, the step counted since the start of training),
`steps_per_second`, `updated_at` (Unix seconds by the coordinator's clock, 0 before the first report) and `metrics`
(name -> number). The last report wins, so a run that resumes from an older checkpoint is shown where it really is.

A `static` MXNet job runs one script in every role, and in the coordinator `import mxnet` becomes the ps-lite
scheduler and does not return; so call `start()` first thing in the script.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
import urllib.request
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Mapping

PORT = 8470
MAX_BODY_BYTES = 16 * 1024
MAX_METRICS = 32
MAX_NAME = 64
MAX_COUNT = 2**53  # the largest integer that every JSON reader keeps exact
MAX_CONNECTIONS = 64

log = logging.getLogger("dl2_runtime.progress")


class ProgressError(ValueError):
    """A report that is not valid; the message names the field and what it must be."""


def _count(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ProgressError(f"{name} must be an integer from 0 to 2^53, not {value!r:.40}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e300:
        raise ProgressError(f"{name} must be a finite number, not {value!r:.40}")
    return float(value)


def _metrics(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) > MAX_METRICS:
        raise ProgressError(f"metrics must be an object of at most {MAX_METRICS} numbers")
    for name in value:
        if not 0 < len(name) <= MAX_NAME:
            raise ProgressError(f"metrics: a name must have 1 to {MAX_NAME} characters, not {name!r:.80}")
    return {name: _number(number, f"metrics.{name}") for name, number in value.items()}


@dataclass(frozen=True)
class Progress:
    """How far a training run is. `steps_per_second` is the pace of the synchronous step, not summed over workers."""

    epoch: int = 0
    step: int = 0
    steps_per_second: float = 0.0
    updated_at: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: bytes) -> Progress:
        """Read a report. Fields it does not know are ignored; raises ProgressError for everything else that is wrong."""
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProgressError(f"the body must be JSON: {error}") from None
        if not isinstance(body, dict):
            raise ProgressError("the body must be a JSON object")
        speed = _number(body.get("steps_per_second", 0.0), "steps_per_second")
        updated_at = _number(body.get("updated_at", 0.0), "updated_at")
        if speed < 0 or updated_at < 0:
            raise ProgressError("steps_per_second and updated_at must not be negative")
        return cls(
            _count(body, "epoch"), _count(body, "step"), speed, updated_at, _metrics(body.get("metrics", {}))
        )

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), allow_nan=False).encode()


class ProgressServer(ThreadingHTTPServer):
    """Serves the latest report from a daemon thread until `close()`; `port` is the one really bound."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, host: str, port: int, handler: type[ProgressHandler] | None = None) -> None:
        super().__init__((host, port), handler or ProgressHandler)
        self.latest = Progress()
        self.port = int(self.server_address[1])
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        # The interval is how long `close()` may take, not how soon a request is seen.
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.1,), name="dl2-progress", daemon=True
        )
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A connection beyond the limit is closed at once: a flood must not become threads of a training process."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection from %s broke off", client_address, exc_info=True)

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def __enter__(self) -> ProgressServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ProgressHandler(BaseHTTPRequestHandler):
    server: ProgressServer
    timeout = 10  # seconds for a client to say the next thing
    server_version = "dl2-progress"

    def do_GET(self) -> None:
        if self.path.split("?", 1)[0] != "/v1/status":
            self.answer(404, b'{"error": "GET /v1/status is what there is"}')
            return
        self.answer(200, self.server.latest.to_json())

    def do_POST(self) -> None:
        if self.path != "/v1/progress":
            self.refuse(404, "POST /v1/progress is what there is")
            return
        body = self.read_body()
        if body is not None:
            self._accept(body)

    def read_body(self) -> bytes | None:
        """The request's body; None if it was refused."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self.refuse(411, "Content-Length is missing or is no number")
        elif len(length) > 9 or int(length) > MAX_BODY_BYTES:
            self.refuse(413, f"a body has at most {MAX_BODY_BYTES} bytes")
        else:
            return self.rfile.read(int(length))
        return None

    def _accept(self, body: bytes) -> None:
        try:
            report = Progress.from_json(body)
        except ProgressError as error:
            self.refuse(400, str(error))
            return
        self.server.latest = replace(report, updated_at=time.time())
        self.answer(204, b"")

    def refuse(self, code: int, why: str) -> None:
        self.answer(code, json.dumps({"error": why}).encode())

    def answer(self, code: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def serve(host: str = "", port: int = PORT) -> ProgressServer:
    """Serve progress on `host:port` (port 0: any free one) from a daemon thread. Raises OSError if the port is taken."""
    return ProgressServer(host, port)


class Reporter:
    """Sends progress to the coordinator from a thread of its own.

    `report()` only stores the newest values, so it costs microseconds and never fails; the thread posts them at most
    once per `interval` seconds. While the coordinator is away it tries ever more rarely, up to `max_interval`, and
    says so once. With no coordinator (`None`) nothing is sent.
    """

    def __init__(
        self,
        coordinator: str | None,
        interval: float = 1.0,
        max_interval: float = 15.0,
        timeout: float = 2.0,
    ) -> None:
        self._url = f"http://{coordinator}/v1/progress" if coordinator else None
        self._interval, self._max_interval, self._timeout = interval, max_interval, timeout
        # A pod's http_proxy is meant for the outside, never for its own coordinator.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self._pending: Progress | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=64)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dl2-progress-reporter", daemon=True)
        if self._url:
            self._thread.start()

    def report(self, epoch: int, step: int, **metrics: float) -> None:
        """Say that `step` steps are done since the start of training. Metrics that are not finite are left out."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        with self._changed:
            self._pending = Progress(int(epoch), int(step), self._speed(int(step)), time.time(), finite)
            self._changed.notify()

    def close(self) -> None:
        """Send what is pending, for at most the time-out of one request, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(self._timeout)

    def _speed(self, step: int) -> float:
        """Steps per second over the last 16 seconds or so (64 samples, at least a quarter of a second apart)."""
        now = time.monotonic()
        samples = self._samples
        if samples and step < samples[-1][1]:  # resumed from an older checkpoint
            samples.clear()
        if not samples or now - samples[-1][0] >= 0.25:
            samples.append((now, step))
        elapsed = now - samples[0][0]
        return (step - samples[0][1]) / elapsed if elapsed >= 0.25 else 0.0

    def _run(self) -> None:
        wait = self._interval
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closed)
                report, self._pending = self._pending, None
            if report is not None:
                wait = (
                    self._interval
                    if self._send(report, quiet=wait > self._interval)
                    else min(2 * wait, self._max_interval)
                )
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, wait) and self._pending is None:
                    return

    def _send(self, report: Progress, quiet: bool) -> bool:
        assert self._url is not None
        request = urllib.request.Request(self._url, report.to_json(), {"Content-Type": "application/json"})
        try:
            with self._open(request, timeout=self._timeout):
                return True
        except (OSError, ValueError) as error:  # refused, unresolved, timed out, answered with an error
            if not quiet:
                log.warning("progress is not reported: %s: %s; training goes on", self._url, error)
            return False

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start(environ: Mapping[str, str] = os.environ) -> Reporter:
    """What a training script calls first, in every role.

    In the coordinator (`DL2_ROLE`) it serves progress for the life of the process, on the port that `DL2_COORDINATOR`
    names. Returns a Reporter to that address; the coordinator's own, and that of a script run outside DL2, is silent.
    """
    coordinator = environ.get("DL2_COORDINATOR") or None
    if environ.get("DL2_ROLE") == "coordinator":
        port = coordinator.rpartition(":")[2] if coordinator else ""
        serve(port=int(port) if port.isdigit() else PORT)
        return Reporter(None)
    return Reporter(coordinator)
