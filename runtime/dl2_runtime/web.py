"""The coordinator's HTTP, on the port where the members connect too: a connection that starts like a frame is theirs.

    GET  /v1/status      progress (as progress.py) with members, view, last_scaling, request and notes
    POST /v1/scale       {"workers": 3, "servers": 2, "timeout_seconds": 120}; at least one number  -> 202
    POST /v1/checkpoint  save at the next scaling clock                                             -> 202
    POST /v1/progress    a report (as progress.py)
    GET  /metrics        Prometheus text

Whoever changes something proves to know the token: `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import hmac
import json
import socket
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, Callable

from dl2_runtime import wire
from dl2_runtime.coordinator import Coordinator
from dl2_runtime.progress import MAX_CONNECTIONS, ProgressHandler, ProgressServer
from dl2_runtime.settings import Settings

ANSWER_SECONDS = 5.0
MAX_MEMBERS_OF_A_ROLE = 256


class Web(ProgressServer):
    """Serves one coordinator's HTTP and hands members' connections to its reactor."""

    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, settings: Settings, port: int, coordinator: Coordinator) -> None:
        self.settings, self.coordinator = settings, coordinator
        super().__init__(settings.bind, port, _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(_Handler.timeout)
            first = request.recv(len(wire.MAGIC), socket.MSG_PEEK)
        except OSError:
            first = b""
        if not first or not wire.MAGIC.startswith(first):
            super().process_request_thread(request, client_address)
            return
        self._slots.release()
        reactor = self.coordinator.reactor
        reactor.call(lambda: reactor.adopt(request))

    def ask(self, question: Callable[[], Any]) -> Any:
        """The answer of a function run in the reactor's thread. Raises TimeoutError."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(question())
            except Exception as error:
                future.set_exception(error)

        self.coordinator.reactor.call(run)
        return future.result(ANSWER_SECONDS)


class _Handler(ProgressHandler):
    server: Web
    server_version = "dl2-coordinator"

    def do_GET(self) -> None:
        path = self.path.split("?", 1)[0]
        if path == "/v1/status":
            self.answer(200, json.dumps(self._status()).encode())
        elif path == "/metrics":
            self.answer(200, metrics(self._status()).encode(), "text/plain; version=0.0.4")
        else:
            self.refuse(404, "GET /v1/status and /metrics are what there is")

    def do_POST(self) -> None:
        if self.path not in ("/v1/scale", "/v1/checkpoint"):
            super().do_POST()
            return
        if not self._authorized():
            self.refuse(401, "Authorization: Bearer must carry the job's token")
        elif self.path == "/v1/checkpoint":
            self.server.ask(self.server.coordinator.save)
            self.answer(202, b"{}")
        else:
            self._scale()

    def _authorized(self) -> bool:
        token = self.server.settings.token
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        return not token or hmac.compare_digest(given, b"Bearer " + token)

    def _scale(self) -> None:
        body = self.read_body()
        if body is None:
            return
        try:
            wish = read_wish(body, self.server.settings.scale_within)
        except ValueError as error:
            self.refuse(400, str(error))
            return
        coordinator = self.server.coordinator
        self.answer(202, json.dumps(self.server.ask(lambda: coordinator.scale(**wish))).encode())

    def _status(self) -> dict[str, Any]:
        coordinator = self.server.coordinator
        progress = asdict(self.server.latest)
        status: dict[str, Any] = self.server.ask(coordinator.status)
        if not progress["updated_at"]:
            progress["step"], progress["steps_per_second"] = coordinator.step, coordinator.steps_per_second
        return {**progress, **status}


def read_wish(body: bytes, within: float) -> dict[str, Any]:
    """Read what /v1/scale takes. Raises ValueError that names the field."""
    try:
        wish = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body must be JSON: {error}") from None
    if not isinstance(wish, dict) or not wish or set(wish) - {"workers", "servers", "timeout_seconds"}:
        raise ValueError(
            'the body must be an object with "workers", "servers" or both, and "timeout_seconds"'
        )
    counts: dict[str, int | None] = {}
    for role in ("workers", "servers"):
        count = wish.get(role)
        if count is not None and (type(count) is not int or not 1 <= count <= MAX_MEMBERS_OF_A_ROLE):
            raise ValueError(
                f"{role} must be an integer from 1 to {MAX_MEMBERS_OF_A_ROLE}, not {count!r:.40}"
            )
        counts[role] = count
    if counts["workers"] is None and counts["servers"] is None:
        raise ValueError("workers and servers are both missing")
    seconds = wish.get("timeout_seconds", within)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= 86400:
        raise ValueError(f"timeout_seconds must be a number up to 86400, not {seconds!r:.40}")
    return {**counts, "within": float(seconds)}


def metrics(status: dict[str, Any]) -> str:
    last = status["last_scaling"] or {}
    rows = [
        ("dl2_runtime_workers", "gauge", status["workers"]),
        ("dl2_runtime_servers", "gauge", status["servers"]),
        ("dl2_runtime_view", "gauge", status["view"]),
        ("dl2_runtime_step", "gauge", status["step"]),
        ("dl2_runtime_steps_per_second", "gauge", status["steps_per_second"]),
        ("dl2_runtime_parameter_bytes", "gauge", status["bytes"]),
        ("dl2_runtime_last_scaling_pause_seconds", "gauge", last.get("pause_ms", 0.0) / 1000),
    ]
    rows += [
        (f"dl2_runtime_{name}_total", "counter", status["counts"].get(name, 0))
        for name in ("committed", "undone", "deaths", "checkpoints")
    ]
    return "".join(f"# TYPE {name} {kind}\n{name} {value}\n" for name, kind, value in rows)
