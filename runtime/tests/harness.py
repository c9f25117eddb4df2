"""Jobs of real processes on this machine's loopback, for the tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable

import numpy as np

HERE = Path(__file__).parent
PYTHON = os.environ.get("DL2_RUNTIME_PYTHON") or sys.executable  # what members run on
TRAINEE = HERE / "trainee.py"
LIMIT = 40.0  # seconds for anything a test waits for


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(what: str, condition: Callable[[], Any], limit: float = LIMIT) -> Any:
    deadline = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit:g} s: {what}")
        time.sleep(0.02)


class Process:
    def __init__(self, name: str, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(command, env=environ, stdout=file, stderr=subprocess.STDOUT)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, limit: float = LIMIT) -> int:
        try:
            return self.popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} did not end within {limit:g} s:\n{self.text()[-3000:]}"
            ) from None

    def text(self) -> str:
        """What it has printed; nothing once its log was removed, as long runs do with those who left."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.kill()
        self.popen.wait()


class Cluster:
    """A job; use as a context manager. Environment beyond the defaults by `**environ` (DL2_... names in full)."""

    def __init__(self, folder: Path, token: str = "a secret", **environ: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        token_file = folder / "token"
        token_file.write_text(token)
        self.token = token
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "DL2_JOB": "test",
            "DL2_COORDINATOR": f"127.0.0.1:{self.port}",
            "DL2_TOKEN_FILE": str(token_file),
            "DL2_PORT": "0",
            "DL2_HEARTBEAT_SECONDS": "0.3",
            "DL2_DEAD_AFTER_SECONDS": "1.5",
            "DL2_RETURN_SECONDS": "0.4",
            "DL2_LIMIT_SECONDS": "30",
            **environ,
        }
        self.processes: dict[str, Process] = {}
        self._started = 0

    def __enter__(self) -> Cluster:
        self.coordinator()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for process in self.processes.values():
            process.kill()
        if error is not None:
            for process in self.processes.values():
                print(f"---- {process.name}\n{process.text()[-2500:]}")

    def _start(self, name: str, role: str, index: int, command: list[str], **environ: str) -> Process:
        return self.run(name, role, index, [PYTHON, *command], **environ)

    def run(self, name: str, role: str, index: int, command: list[str], **environ: str) -> Process:
        self._started += 1
        log = self.folder / f"{name}-{self._started}.log"
        variables = {**self.environ, "DL2_ROLE": role, "DL2_INDEX": str(index), **environ}
        process = Process(name, command, variables, log)
        self.processes[f"{name}#{self._started}"] = process
        return process

    def coordinator(self) -> Process:
        process = self._start("coordinator", "coordinator", 0, ["-m", "dl2_runtime"])
        wait_for("the coordinator listens", lambda: "on port" in process.text() or process.popen.poll())
        return process

    def server(self, index: int, **environ: str) -> Process:
        return self._start(f"server-{index}", "server", index, ["-m", "dl2_runtime"], **environ)

    def worker(self, index: int, *options: str, environ: dict[str, str] | None = None) -> Process:
        command = [str(TRAINEE), *options, "--out", str(self.result(index))]
        return self._start(f"worker-{index}", "worker", index, command, **(environ or {}))

    def result(self, index: int) -> Path:
        return self.folder / f"worker-{index}.npz"

    def parameters(self, index: int) -> dict[str, Any]:
        with np.load(str(self.result(index))) as file:
            return {name: file[name] for name in file.files}

    def http(self, path: str, body: Any = None, token: str | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Authorization", f"Bearer {self.token if token is None else token}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if "json" in answer.headers["Content-Type"] else text.decode()

    def status(self) -> dict[str, Any]:
        """The coordinator's status; empty while it does not answer."""
        try:
            return dict(self.http("/v1/status"))
        except (OSError, urllib.error.URLError):
            return {}

    def scale(self, **wish: Any) -> Any:
        return self.http("/v1/scale", wish)

    def await_size(self, workers: int, servers: int) -> dict[str, Any]:
        def reached() -> Any:
            status = self.status()
            return status if (status.get("workers"), status.get("servers")) == (workers, servers) else None

        return dict(wait_for(f"{workers} workers and {servers} servers", reached))

    def await_step(self, step: int) -> None:
        wait_for(f"round {step}", lambda: self.status().get("round", 0) >= step)
