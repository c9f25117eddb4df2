"""The elastic runtime against MXNet's own parameter server, in one run: `python benchmarks/runtime.py [--json FILE]`.

Two workers and two servers on this machine's loopback train nothing: Gluon's Trainer pushes gradients and pulls
parameters that the servers update (SGD with momentum), through `dist_sync` (ps-lite) and through `dl2` in turn.

Figures:
  ratio_SET          steps a second of dl2 over those of ps-lite, median step of each, runs in turn
  add_servers_ms     how long the workers waited at the scaling clock, the longest of them, when 1, 2, 4, 6 servers
                     joined a job of ResNet-50's size, as they all reported; 0: nobody had to wait. Median of the
                     samples (three, with --quick one); `_worst_ms` is the worst of them
  remove_servers_ms  the same when they left again
  add_servers_longest_step_ms
                     the same from the outside: the longest of the steps from the one before the clock to the third
                     after it, less the median step; newcomers take their share of this machine's cores meanwhile
  add_workers_ms ... the same for 1, 2, 4 workers
  restart_ms         the same job stopped at a checkpoint and started again: from the last step to the next
It needs a Python with MXNet 1.9: DL2_MXNET_PYTHON, else one is made in ~/.cache/dl2 (pip).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from dl2.embedded.waiting import wait_until
from load.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "benchmarks" / "load" / "kvworker.py"
STEPS = {"mlp": 300, "resnet50": 40, "1gb": 6}
WARM = 2  # steps that do not count
SETTLED = 5  # steps to either side of a resize
FOREVER = 1_000_000
LIMIT = 240.0  # seconds for anything that is waited for


def mxnet_python() -> str:
    """Raises SystemExit that says what is missing."""
    python = os.environ.get("DL2_MXNET_PYTHON")
    if not python:
        made = subprocess.run(
            [ROOT / "runtime/tests/pythons", "mxnet"], stdout=subprocess.PIPE, check=True, text=True
        )
        python = made.stdout.strip()
    if (
        not python
        or subprocess.run([python, "-c", "import mxnet"], capture_output=True, check=False).returncode
    ):
        raise SystemExit("no Python with MXNet; name one in DL2_MXNET_PYTHON")
    return python


class Job:
    """The processes of one job; gone when its block ends."""

    def __init__(self, python: str, folder: Path, store: str, parameters: str, **environ: str) -> None:
        self.python, self.folder, self.store, self.parameters = python, folder, store, parameters
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []
        self.environ = {
            **os.environ, "PYTHONPATH": str(ROOT / "runtime"), "OMP_NUM_THREADS": "1", "DL2_LOG_LEVEL": "WARNING",
            "DL2_JOB": "bench", "DL2_COORDINATOR": f"127.0.0.1:{self.port}", "DL2_PORT": "0", "DL2_WORKERS": "2",
            "DL2_SERVERS": "2", "DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(self.port),
            "DMLC_NODE_HOST": "127.0.0.1", "DMLC_NUM_WORKER": "2", "DMLC_NUM_SERVER": "2", **environ,
        }  # fmt: skip

    def start(self, role: str, index: int, steps: int = FOREVER) -> Path:
        """Start a member; returns the file that it prints to."""
        log = self.folder / f"{self.store}-{role}-{index}-{len(self._logs)}.log"
        self._logs.append(log)
        own = {"DL2_ROLE": role, "DL2_INDEX": str(index)}
        if self.store != "dl2":
            own = {"DMLC_ROLE": {"coordinator": "scheduler"}.get(role, role)}
        command = [str(WORKER), "--store", self.store, "--set", self.parameters, "--steps", str(steps)]
        if role != "worker":
            command = ["-m", "dl2_runtime"] if self.store == "dl2" else ["-c", "import mxnet"]
        with log.open("wb") as out, Path(f"{log}.err").open("wb") as err:
            process = subprocess.Popen(
                [self.python, *command], env=self.environ | own, stdout=out, stderr=err
            )
        self.processes.append(process)
        return log

    def found(self, steps: int = FOREVER) -> list[Path]:
        """Coordinator, two servers, two workers; returns the workers' logs."""
        self.start("coordinator", 0)
        for n in range(2):
            self.start("server", n)
        return [self.start("worker", n, steps) for n in range(2)]

    def status(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/status", timeout=10) as answer:
                return dict(json.load(answer))
        except OSError:
            return {}

    def scale(self, **wish: int) -> None:
        body = json.dumps(wish).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/scale", body, timeout=10).close()

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes.clear()


@contextmanager
def job(python: str, store: str, parameters: str, **environ: str) -> Iterator[Job]:
    with tempfile.TemporaryDirectory() as folder:
        made = Job(python, Path(folder), store, parameters, **environ)
        try:
            yield made
        finally:
            made.stop()


def times(log: Path) -> list[float]:
    """When the steps of a worker ended."""
    lines = log.read_text().splitlines()
    return [json.loads(line)["at"] for line in lines if line.startswith('{"step"') and line.endswith("}")]


def step_seconds(python: str, store: str, parameters: str, steps: int) -> float:
    """Median step of both workers."""
    with job(python, store, parameters) as running:
        logs = running.found(steps)
        wait_until(
            lambda: all(len(times(log)) >= steps for log in logs),
            f"{steps} steps of {parameters} through {store}",
            LIMIT,
        )
        ends = [times(log)[WARM:] for log in logs]
    return statistics.median(b - a for at in ends for a, b in pairwise(at))


def ratio(python: str, parameters: str, rounds: int, scale: float) -> float:
    steps = max(WARM + 3, round(STEPS[parameters] * scale))
    measured: dict[str, list[float]] = {"dl2": [], "dist_sync": []}
    for _ in range(rounds):
        for store, found in measured.items():
            found.append(step_seconds(python, store, parameters, steps))
    ours, theirs = (statistics.median(found) for found in measured.values())
    print(
        f"{parameters:10} dl2 {1000 * ours:9.2f} ms a step   ps-lite {1000 * theirs:9.2f} ms   {theirs / ours:.2f}x"
    )
    return theirs / ours


def pause(python: str, role: str, more: int) -> tuple[float, float, float]:
    """Milliseconds that `more` members held the workers up when they came, as these told it and in the longest of
    their steps, and when they left.
    """
    with job(python, "dl2", "resnet50") as running:
        logs = running.found()
        reach(running, 2 * SETTLED)
        told, seen = resize(running, role, 2 + more, logs)
        leaving, _ = resize(running, role, 2, logs)
    print(f"{more} {role}s join: {told:.1f} ms, longest step {seen:+.1f} ms; leave: {leaving:.1f} ms")
    return told, seen, leaving


def pauses(python: str, samples: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {}
    for role, numbers in (("server", (1, 2, 4, 6)), ("worker", (1, 2, 4))):
        for more in numbers:
            told, seen, leaving = zip(*(pause(python, role, more) for _ in range(samples)), strict=True)
            for name, value in {
                f"add_{role}s_ms": statistics.median(told),
                f"add_{role}s_worst_ms": max(told),
                f"add_{role}s_longest_step_ms": statistics.median(seen),
                f"remove_{role}s_ms": statistics.median(leaving),
                f"remove_{role}s_worst_ms": max(leaving),
            }.items():
                figures.setdefault(name, []).append(round(value, 1))
    return figures


def resize(running: Job, role: str, target: int, logs: list[Path]) -> tuple[float, float]:
    """`logs`: of the workers that are there before and after."""
    running.scale(**{f"{role}s": target})
    for n in range(2, target):
        running.start(role, n)
    wait_until(lambda: running.status().get(f"{role}s") == target, f"a job of {target} {role}s", LIMIT)
    wait_until(lambda: bool(told(running, len(logs))), "reports of the pause", LIMIT)
    last = told(running, len(logs))
    clock = last["step"]
    wait_until(lambda: all(len(times(log)) > clock + SETTLED for log in logs), "a few more steps", LIMIT)
    return float(last["pause_ms"]), max(longest_step(times(log), clock) for log in logs)


def told(running: Job, workers: int) -> dict[str, Any]:
    """The last change of members, once so many workers have said how long it held them up."""
    last = running.status().get("last_scaling") or {}
    return last if last.get("reports", 0) >= workers else {}


def longest_step(ends: list[float], clock: int) -> float:
    """Milliseconds; `ends[n]` is when step n + 1 did. The clock is the number of steps that were over."""
    seconds = [b - a for a, b in pairwise(ends)]  # of the steps from 2 on
    usual = statistics.median(seconds[WARM:])
    return 1000 * (max(seconds[clock - 2 : clock + 2]) - usual)


def reach(running: Job, step: int) -> None:
    wait_until(lambda: running.status().get("round", 0) >= step, f"step {step}", LIMIT)


def restart(python: str) -> float:
    """Milliseconds from the last step before SIGTERM to the first step of the job that goes on from the checkpoint."""
    with tempfile.TemporaryDirectory() as saved:
        environ = {"DL2_CHECKPOINT_DIR": saved}
        with job(python, "dl2", "resnet50", **environ) as first:
            logs = first.found()
            wait_until(lambda: len(times(logs[0])) >= WARM, "the first steps", LIMIT)
            for process in first.processes:
                process.send_signal(signal.SIGTERM)
            wait_until(
                lambda: all(process.poll() is not None for process in first.processes), "the job's end", LIMIT
            )
            before = max(times(log)[-1] for log in logs)
        with job(python, "dl2", "resnet50", **environ) as second:
            logs = second.found()
            wait_until(lambda: all(times(log) for log in logs), "the next step", LIMIT)
            after = max(times(log)[0] for log in logs)
    print(f"stopped at a checkpoint and started again: {1000 * (after - before):.0f} ms")
    return 1000 * (after - before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="one round of a third of the steps, one sample")
    options = parser.parse_args()
    python = mxnet_python()
    rounds, scale = (1, 0.3) if options.quick else (3, 1.0)
    figures: dict[str, Any] = {
        f"ratio_{parameters}": round(ratio(python, parameters, rounds, scale), 2) for parameters in STEPS
    }
    figures.update(pauses(python, rounds))
    figures["restart_ms"] = round(restart(python))
    for name, value in figures.items():
        print(f"{name:26} {value}")
    print(f"load average: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}))


if __name__ == "__main__":
    main()
