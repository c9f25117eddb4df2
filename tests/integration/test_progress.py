"""Progress from the workers of a job to whoever asks its coordinator: over real sockets, good and bad."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dl2_runtime import progress

RUNTIME = Path(progress.__file__).parents[1]
GOOD = {
    "epoch": 2,
    "step": 150,
    "steps_per_second": 12.5,
    "updated_at": 1.0,
    "metrics": {"loss": -0.5, "accuracy": 0.9},
}


@pytest.fixture
def server() -> Iterator[progress.ProgressServer]:
    with progress.serve("127.0.0.1", 0) as running:
        yield running


def get(port: int, path: str = "/v1/status") -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def post(port: int, body: bytes, path: str = "/v1/progress") -> tuple[int, str]:
    """The status and the error that a report is answered with."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


def say(port: int, text: bytes) -> bytes:
    """What the server answers to raw bytes before it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def eventually(probe: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < deadline, "did not come about in time"
        time.sleep(0.01)


def test_before_the_first_report_the_status_is_zero(server: progress.ProgressServer) -> None:
    assert get(server.port) == {
        "epoch": 0,
        "step": 0,
        "steps_per_second": 0.0,
        "updated_at": 0.0,
        "metrics": {},
    }


def test_a_report_is_the_status_with_the_coordinators_time(server: progress.ProgressServer) -> None:
    before = time.time()

    assert post(server.port, json.dumps(GOOD).encode()) == (204, "")

    status = get(server.port)
    assert status | {"updated_at": 1.0} == GOOD
    assert before <= status["updated_at"] <= time.time()


def test_the_last_report_wins_also_with_fewer_steps(server: progress.ProgressServer) -> None:
    """A run that resumes from a checkpoint is behind where it was."""
    for step in (150, 40):
        post(server.port, json.dumps(GOOD | {"step": step}).encode())

    assert get(server.port)["step"] == 40


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"", "JSON"),
        (b"\xff\x00", "JSON"),
        (b"[" * 10_000, "JSON"),
        (b"[1, 2]", "object"),
        (b"{}", "epoch"),
        (json.dumps(GOOD | {"epoch": -1}).encode(), "epoch"),
        (json.dumps(GOOD | {"epoch": True}).encode(), "epoch"),
        (json.dumps(GOOD | {"step": 1.5}).encode(), "step"),
        (json.dumps(GOOD | {"step": "7"}).encode(), "step"),
        (json.dumps(GOOD | {"step": 2**60}).encode(), "step"),
        (json.dumps(GOOD | {"steps_per_second": -1}).encode(), "steps_per_second"),
        (json.dumps(GOOD | {"steps_per_second": float("nan")}).encode(), "steps_per_second"),
        (json.dumps(GOOD | {"steps_per_second": float("inf")}).encode(), "steps_per_second"),
        (json.dumps(GOOD | {"updated_at": None}).encode(), "updated_at"),
        (json.dumps(GOOD | {"metrics": []}).encode(), "metrics"),
        (json.dumps(GOOD | {"metrics": {"loss": float("nan")}}).encode(), "metrics.loss"),
        (json.dumps(GOOD | {"metrics": {"loss": "low"}}).encode(), "metrics.loss"),
        (json.dumps(GOOD | {"metrics": {"x" * 65: 1}}).encode(), "metrics"),
        (json.dumps(GOOD | {"metrics": {str(i): i for i in range(33)}}).encode(), "metrics"),
        (json.dumps(GOOD).encode().replace(b"150", b"1" + b"0" * 400), "step"),
    ],
)
def test_a_wrong_report_is_refused_by_name_and_changes_nothing(
    server: progress.ProgressServer, body: bytes, names: str
) -> None:
    post(server.port, json.dumps(GOOD).encode())
    before = get(server.port)

    code, error = post(server.port, body)

    assert code == 400
    assert names in error
    assert get(server.port) == before


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"POST /v1/progress HTTP/1.1\r\n\r\n", b"411"),
        (b"POST /v1/progress HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"411"),
        (b"POST /v1/progress HTTP/1.1\r\nContent-Length: many\r\n\r\n", b"411"),
        (b"POST /v1/progress HTTP/1.1\r\nContent-Length: 16385\r\n\r\n", b"413"),
        (b"POST /v1/progress HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", b"413"),
        (b"POST /v1/progress HTTP/1.1\r\nContent-Length: 100\r\n\r\n{", b"400"),
        (b"POST /v1/status HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"404"),
        (b"GET /v1/progress HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"DELETE /v1/status HTTP/1.1\r\n\r\n", b"501"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
    ],
)
def test_garbage_ends_one_connection_only(
    server: progress.ProgressServer, request_: bytes, code: bytes
) -> None:
    assert code in say(server.port, request_).split(b"\r\n", 1)[0]
    assert get(server.port)["step"] == 0


def test_a_flood_of_connections_does_not_become_threads(server: progress.ProgressServer) -> None:
    idle = [
        socket.create_connection(("127.0.0.1", server.port), timeout=10)
        for _ in range(2 * progress.MAX_CONNECTIONS)
    ]
    try:
        for refused in idle[progress.MAX_CONNECTIONS :]:
            assert refused.recv(1) == b""
        assert (
            sum("process_request_thread" in thread.name for thread in threading.enumerate())
            <= progress.MAX_CONNECTIONS
        )
    finally:
        for connection in idle:
            connection.close()

    def answers() -> bool:
        try:
            return bool(get(server.port)["step"] == 0)
        except OSError:  # the places are not all free yet
            return False

    eventually(answers)


def test_a_reporter_reports_and_leaves_out_what_is_not_finite(server: progress.ProgressServer) -> None:
    with progress.Reporter(f"127.0.0.1:{server.port}", interval=0.01) as reporter:
        reporter.report(epoch=1, step=10, loss=float("nan"), accuracy=0.5)
        eventually(lambda: get(server.port)["step"] == 10)

    assert get(server.port)["metrics"] == {"accuracy": 0.5}


def test_a_reporter_tells_the_speed_of_the_steps(server: progress.ProgressServer) -> None:
    with progress.Reporter(f"127.0.0.1:{server.port}", interval=0.01) as reporter:
        step = 0

        def has_speed() -> bool:
            nonlocal step
            step += 1
            reporter.report(epoch=0, step=step)
            return bool(get(server.port)["steps_per_second"] > 0)

        eventually(has_speed)


def test_many_reports_become_few_posts_and_the_last_one_arrives(server: progress.ProgressServer) -> None:
    posts = 0
    accept = server.RequestHandlerClass._accept  # type: ignore[attr-defined]

    def counted(handler: Any, body: bytes) -> None:
        nonlocal posts
        posts += 1
        accept(handler, body)

    server.RequestHandlerClass._accept = counted  # type: ignore[attr-defined]
    try:
        with progress.Reporter(f"127.0.0.1:{server.port}", interval=60) as reporter:
            for step in range(1, 10_001):
                reporter.report(epoch=0, step=step)
    finally:
        server.RequestHandlerClass._accept = accept  # type: ignore[attr-defined]

    assert get(server.port)["step"] == 10_000
    assert posts <= 2  # the first at once, the last when it is closed


def test_training_goes_on_while_the_coordinator_is_away_and_it_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with progress.Reporter(f"127.0.0.1:{port}", interval=0.01, max_interval=0.02) as reporter:
        for step in range(1, 4):
            reporter.report(epoch=0, step=step)
        eventually(lambda: "progress is not reported" in caplog.text)
        with progress.serve("127.0.0.1", port) as back:

            def arrived() -> bool:
                reporter.report(epoch=0, step=5)
                return back.latest.step == 5

            eventually(arrived)
            assert caplog.text.count("progress is not reported") == 1


def test_a_coordinator_that_does_not_answer_does_not_hold_up_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reporter = progress.Reporter(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        reporter.report(epoch=0, step=1)
        ended = threading.Thread(target=reporter.close)
        ended.start()
        ended.join(timeout=30)
        assert not ended.is_alive()


def test_one_script_serves_as_coordinator_and_reports_as_worker() -> None:
    """The scheduler of a static job blocks in native code for its whole life; the status is served all the same."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = "import dl2_runtime.progress, sys; dl2_runtime.progress.start(); print('up', flush=True); sys.stdin.read()"
    environment = {
        "PYTHONPATH": str(RUNTIME),
        "DL2_ROLE": "coordinator",
        "DL2_COORDINATOR": f"127.0.0.1:{port}",
    }
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as coordinator:
        assert coordinator.stdin is not None
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == b"up\n"
        worker = progress.start({"DL2_ROLE": "worker", "DL2_COORDINATOR": f"127.0.0.1:{port}"})
        worker.report(epoch=3, step=33)
        worker.close()
        assert get(port)["step"] == 33
        coordinator.stdin.close()
    assert coordinator.returncode == 0


def test_outside_of_dl2_a_script_runs_and_reports_to_nobody() -> None:
    with progress.start({}) as reporter:
        reporter.report(epoch=0, step=1, loss=0.5)
    assert not reporter._thread.is_alive()
