"""How soon an elastic job trains again after a fault: `python benchmarks/runtime_faults.py [--json FILE]`.

Real processes on this machine's loopback train a small model with momentum through the numpy interface, with the
runtime's own time-outs (a member is dead after 10 s of silence, or 2 s after its connection broke) and a checkpoint
every 4 s. Each fault has a fresh job of two workers and two servers. Recovery seconds: the longest time between the
ends of two steps of a worker that stays, from the fault on, less the usual time; lost: what the job says that it cost.

Figures: `FAULT_s` for each of FAULTS; the median of `--rounds`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "runtime" / "tests")]

from harness import Cluster, Process, wait_for  # noqa: E402

BIG = 1_000_000  # numbers in the largest parameter
STEP_SECONDS = 0.05
TRAINEE = ("--steps", "1000000000", "--seconds", str(STEP_SECONDS), "--big", str(BIG), "--trace")
SETTLED = 10  # steps before the fault, and after it
DEFAULTS = {  # the runtime's own, where the tests' are shorter
    "DL2_HEARTBEAT_SECONDS": "1", "DL2_DEAD_AFTER_SECONDS": "10", "DL2_RETURN_SECONDS": "2",
}  # fmt: skip


class Job:
    """Two workers, two servers; worker 0 and server 0 stay, and worker 0's steps are what is looked at."""

    def __init__(self, cluster: Cluster, fault: str) -> None:
        both, second = PACE.get(fault, ()), SECOND.get(fault, ())
        self.cluster = cluster
        self.servers = [cluster.server(n) for n in range(2)]
        self.workers = [
            cluster.worker(0, *TRAINEE, *both),
            cluster.worker(1, *TRAINEE, *both, *second),
        ]
        self._watched: list[float] = []

        def saved() -> bool:
            return bool(cluster.status().get("counts", {}).get("checkpoints", 0) > 0)

        self.watch(lambda: len(self._watched) >= SETTLED and saved())

    @property
    def coordinator(self) -> Process:
        return self.cluster.processes["coordinator#1"]

    def steps(self) -> list[float]:
        """When worker 0's steps ended, up to now."""
        count = self.workers[0].text().count('"step"')
        self._watched.extend([time.monotonic()] * (count - len(self._watched)))
        return self._watched

    def watch(self, until: Callable[[], bool]) -> list[float]:
        """When worker 0's steps ended; returns once `until()`."""
        deadline = time.monotonic() + 60
        self.steps()
        while not until():
            self.steps()
            if time.monotonic() > deadline:
                raise AssertionError("the job did not go on within 60 s")
            time.sleep(0.005)
        return self._watched

    def recovery(self, fault: float, over: Callable[[], bool] = lambda: True) -> float:
        """Seconds that training stood still after `fault`, once what it led to is `over`."""
        self.watch(over)
        enough = len(self._watched) + SETTLED
        ends = self.watch(lambda: len(self._watched) >= enough)
        usual = statistics.median(b - a for a, b in pairwise(end for end in ends if end < fault))
        return max(b - a for a, b in pairwise(ends) if b > fault) - usual

    def size(self) -> tuple[int, int]:
        status = self.cluster.status()
        return status.get("workers", 0), status.get("servers", 0)


def worker_killed(job: Job) -> float:
    fault = time.monotonic()
    job.workers[1].kill()
    return job.recovery(fault, lambda: job.size() == (1, 2))


def server_killed(job: Job) -> float:
    fault = time.monotonic()
    job.servers[1].kill()
    return job.recovery(fault, lambda: job.size() == (2, 1))


def server_killed_in_a_move(job: Job) -> float:
    """The newcomer stands still from before the clock on, so a server that gives chunks dies in the middle of it."""
    job.cluster.scale(servers=4)  # holds the newcomer until we want it
    taker = job.cluster.server(2)
    wait_for("the newcomer is known", lambda: len(job.cluster.status()["members"]) == 5)
    seen = len(job.watch(lambda: True))
    job.watch(lambda: len(job.steps()) > seen)  # a round begins
    job.cluster.scale(servers=3)
    wait_for("all servers are ready", lambda: waits_for(job.cluster, "clock") == {"worker"})
    taker.signal(signal.SIGSTOP)
    wait_for("chunks move", lambda: waits_for(job.cluster, "move") == {"server"})
    fault = time.monotonic()
    job.servers[1].kill()
    taker.signal(signal.SIGCONT)
    return job.recovery(fault, lambda: "died" in notes(job.cluster))


def waits_for(cluster: Cluster, phase: str) -> set[str]:
    """The roles of whom a scaling request in this phase waits for; empty in another phase, and at a checkpoint."""
    scaling = cluster.status().get("scaling") or {}
    asked = scaling.get("phase") == phase and scaling["reason"].startswith("request")
    waiting = scaling["waiting"] if asked else []
    return {name.partition("-")[0] for name in waiting}


def coordinator_killed(job: Job) -> float:
    fault = time.monotonic()
    job.coordinator.kill()
    job.cluster.coordinator()
    return job.recovery(fault, lambda: job.size() == (2, 2))


def worker_stalled(job: Job) -> float:
    fault = time.monotonic()
    job.workers[1].signal(signal.SIGSTOP)
    return job.recovery(fault, lambda: job.size() == (1, 2))


def server_stalled(job: Job) -> float:
    fault = time.monotonic()
    job.servers[1].signal(signal.SIGSTOP)
    return job.recovery(fault, lambda: job.size() == (2, 1))


def worker_slow(job: Job) -> float:
    """Every 15th of its gradients takes 3 s: the others wait for it, as synchronous training wants."""
    return job.recovery(time.monotonic())


FAULTS: dict[str, Callable[[Job], float]] = {
    "worker_killed": worker_killed,
    "server_killed": server_killed,
    "server_killed_in_a_move": server_killed_in_a_move,
    "coordinator_killed": coordinator_killed,
    "worker_stalled": worker_stalled,
    "server_stalled": server_stalled,
    "worker_slow": worker_slow,
}


# What workers do in a round beside the usual: both of them, and the second.
PACE = {"server_killed_in_a_move": ("--compute", "1")}
SECOND = {"worker_slow": ("--compute", "3", "--compute-every", "15")}


def notes(cluster: Cluster) -> str:
    return "; ".join(note["what"] for note in cluster.status().get("notes", ()))


def cost(cluster: Cluster) -> str:
    """What the job says that the fault cost."""
    told: list[dict[str, Any]] = cluster.status()["notes"]
    costs = []
    for note in told:
        if note.get("lost_shares"):
            costs.append(f"a worker's share of {len(note['lost_shares'])} round(s)")
        if "repeated_steps" in note:
            state = note["state_step"]
            age = "begins again" if state is None else f"is {note['round'] - state} steps old"
            costs.append(f"{note['repeated_steps']} step(s) repeated, state of {note['chunks']} chunks {age}")
    return ", ".join(costs) or "nothing"


def measure(fault: str) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as folder:
        environ = DEFAULTS | {"DL2_CHECKPOINT_DIR": f"{folder}/saved", "DL2_CHECKPOINT_SECONDS": "4"}
        with Cluster(Path(folder) / "job", DL2_WORKERS="2", DL2_SERVERS="2", **environ) as cluster:
            seconds = FAULTS[fault](Job(cluster, fault))
            return seconds, cost(cluster)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures = {}
    print("| fault | recovery seconds | lost |\n| --- | --- | --- |")
    for fault in FAULTS:
        measured = [measure(fault) for _ in range(options.rounds)]
        figures[f"{fault}_s"] = round(statistics.median(seconds for seconds, _ in measured), 2)
        lost = " / ".join(dict.fromkeys(lost for _, lost in measured))
        print(f"| {fault.replace('_', ' ')} | {figures[f'{fault}_s']:.2f} | {lost} |", flush=True)
    print(f"load average: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}))


if __name__ == "__main__":
    main()
