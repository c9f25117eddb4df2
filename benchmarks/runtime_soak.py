"""Hundreds of random resizes of one elastic job: `python benchmarks/runtime_soak.py [--resizes N] [--json FILE]`.

Real processes on this machine's loopback train a small model with momentum through the numpy interface while members
of both roles come and go, between 1 and `--members` of each. One worker, one server and the coordinator stay. At the
end everybody is stopped and the final checkpoint is compared with a training that nobody resized.

Figures:
  resizes             that were committed, and `undone` that were not
  rounds              that the job trained in `wall_seconds`
  rss_growth_mib      of the member that stays whose memory grew most: median of the last quarter of the resizes minus
                      median of the second (by then every size has been seen); descriptor_growth likewise
  largest_error       of a parameter, relative to the training that nobody resized
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "runtime" / "tests")]

from harness import Cluster, Process  # noqa: E402
from test_job import alone  # noqa: E402

from dl2_runtime import checkpoint  # noqa: E402
from dl2_runtime.view import Key, Table  # noqa: E402

BIG = 40_000  # numbers in the largest parameter
TRAINEE = ("--steps", "1000000000", "--seconds", "0.02", "--big", str(BIG))
Crew = dict[str, list[Process]]


def resident_mib(process: Process) -> float:
    pages = int(Path(f"/proc/{process.popen.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def descriptors(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.popen.pid}/fd"))


def resize(job: Cluster, crew: Crew, members: int, choose: random.Random) -> None:
    """Up to half of `members` of one role come or go at once. Raises AssertionError if that takes too long."""
    role = choose.choice(["worker", "server"])
    present = crew[role]
    target = choose.choice(
        [size for size in range(1, members + 1) if 0 < abs(size - len(present)) <= members // 2 + 1]
    )
    for index in range(len(present), target):
        present.append(job.worker(index, *TRAINEE) if role == "worker" else job.server(index))
    leaving = present[target:]
    del present[target:]
    for process in leaving:
        process.signal(signal.SIGTERM)
    job.await_size(len(crew["worker"]), len(crew["server"]))
    for process in leaving:
        if process.wait() != 143:
            raise AssertionError(f"{process.name} was sent away and failed:\n{process.text()[-3000:]}")
        process.log.unlink()


def growth(samples: list[list[float]]) -> float:
    """Of the member that grew most, by its samples."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    members = zip(zip(*early, strict=True), zip(*late, strict=True), strict=True)
    grown: list[float] = [statistics.median(after) - statistics.median(before) for before, after in members]
    return max(grown)


def saved_parameters(folder: Path) -> tuple[int, dict[str, Any]]:
    """(step, the flat parameters) of the newest checkpoint."""
    found = checkpoint.latest(folder)
    if found is None:
        raise SystemExit("the job left no checkpoint")
    path, step, keys = found
    table = Table([Key.from_json(body) for body in keys])
    flat = {key.name: np.empty(key.size, key.dtype) for key in table.keys.values()}
    for body, arrays in checkpoint.read_parts(str(path), {chunk.number for chunk in table.chunks}):
        chunk = table.chunks[body["chunk"]]
        flat[chunk.key][chunk.start : chunk.start + chunk.size] = arrays[0]
    return step, flat


def largest_error(folder: Path) -> tuple[int, float]:
    step, found = saved_parameters(folder)
    expected = alone(step, big=BIG)
    errors = [
        np.max(np.abs(found[name] - value.reshape(-1)) / (1e-6 + np.abs(value.reshape(-1))))
        for name, value in expected.items()
    ]
    return step, float(max(errors))


def soak(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    choose, started = random.Random(options.seed), time.monotonic()
    memory, open_files = [], []
    patience = {
        "DL2_DEAD_AFTER_SECONDS": "10",
        "DL2_RETURN_SECONDS": "2",
    }  # as outside of tests: nobody dies here
    environ = {"DL2_CHECKPOINT_DIR": str(folder / "saved"), "DL2_CHECKPOINT_SECONDS": "0", **patience}
    with Cluster(folder / "job", **environ) as job:
        crew: Crew = {"worker": [job.worker(0, *TRAINEE)], "server": [job.server(0)]}
        job.await_size(1, 1)
        stay = [job.processes["coordinator#1"], crew["worker"][0], crew["server"][0]]
        for number in range(options.resizes):
            if time.monotonic() - started > 60 * options.minutes:
                break
            resize(job, crew, options.members, choose)
            memory.append([resident_mib(process) for process in stay])
            open_files.append([float(descriptors(process)) for process in stay])
            print(f"{number + 1:4}: {len(crew['worker'])} workers, {len(crew['server'])} servers", flush=True)
        counts, wall = job.status()["counts"], time.monotonic() - started
        for process in (*stay, *crew["worker"][1:], *crew["server"][1:]):
            process.signal(signal.SIGTERM)
        for process in (*stay, *crew["worker"][1:], *crew["server"][1:]):
            process.wait()
    rounds, error = largest_error(folder / "saved")
    return {
        "resizes": len(memory),
        "undone": counts.get("undone", 0),
        "rounds": rounds,
        "wall_seconds": round(wall, 1),
        "rss_growth_mib": round(growth(memory), 2),
        "descriptor_growth": growth(open_files),
        "largest_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resizes", type=int, default=200)
    parser.add_argument("--members", type=int, default=8, help="the most of each role")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further resize after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), options)
    for name, value in figures.items():
        print(f"{name:18} {value}")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}))


if __name__ == "__main__":
    main()
