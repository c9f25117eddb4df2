"""How fast policies decide and the simulator runs: one core, no threads.

Prints CPU milliseconds of one decision (median of a few) for 200 and 1,000 jobs, and simulated job-slots a second
with DRF. `python benchmarks/scaling.py [--json]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the program `dl2` has it

import numpy as np

from dl2.learning.simulator import Settings, Simulation
from dl2.learning.workload import GPU, Recipe, draw
from dl2.scaling import JobView, NodeView, Observation, Scale, SpeedSample, load_policy

POLICIES = ("drf", "srtf", "srpt-gain", "optimus", "envelope", "dl2")
SIZES = ((200, 500), (1000, 500))  # jobs, nodes


INTERVAL = 1200.0


def observation(jobs: int, nodes: int, tick: int, unlabelled: float = 0.0) -> Observation:
    """Running jobs of eight labels with the samples of the last ten intervals, of which one is new each time."""
    rng, now = np.random.default_rng(7), tick * INTERVAL
    draws = [np.random.default_rng(t).integers(1, 17, size=(jobs, 2)) for t in range(tick - 9, tick + 1)]
    views = []
    for n in range(jobs):
        scales = [Scale(int(w), int(s)) for w, s in (draw[n] for draw in draws)]
        samples = tuple(
            SpeedSample(
                scale, 1e-3 * scale.workers**0.6 / (1.0 + 0.01 * scale.servers), now - INTERVAL * (9 - k)
            )
            for k, scale in enumerate(scales)
        )
        label = None if rng.random() < unlabelled else f"model-{n % 8}"
        worker = {"cpu": 2000, GPU: 4} if n % 8 < 4 else {"cpu": 2000}
        views.append(
            JobView(
                f"job-{n:04d}", label, "default", 0, 0.0, 0.0, worker, {"cpu": 2000}, Scale(1, 1), Scale(16, 16),
                scales[-1], float(rng.uniform(10, 500)), 1.0, samples,
            )
        )  # fmt: skip
    has = {"cpu": 8000, GPU: 8}
    return Observation(
        now, INTERVAL, tuple(views), tuple(NodeView(f"n{n:04d}", has, has) for n in range(nodes)), {}
    )


def decision(policy: str, jobs: int, nodes: int, unlabelled: float = 0.0, rounds: int = 5) -> float:
    """Median milliseconds of a decision in which every job brings a new sample; the first is not counted."""
    chosen, times = load_policy(policy), []
    for n in range(rounds):
        seen = observation(jobs, nodes, 10 + n, unlabelled)
        begin = time.process_time()
        chosen.allocate(seen)
        times.append(1000 * (time.process_time() - begin))
    return statistics.median(times[1:])


def job_slots(recipe: Recipe) -> float:
    """Simulated job-slots a second with DRF."""
    policy = load_policy("drf")
    simulation = Simulation(draw(recipe, 1), Settings(), 1)
    begin = time.process_time()
    while not simulation.over:
        seen = simulation.observe()
        simulation.step(policy.allocate(seen), seen)
    return simulation.tally.job_slots / (time.process_time() - begin)


def measure() -> dict[str, float]:
    node = {"cpu": 8000, GPU: 8}
    big = Recipe(jobs=60, nodes=24, node=node, gpus=(0, 4), minutes=900, load=1.5)
    found = {"job_slots_per_second": job_slots(big)}
    for jobs, nodes in SIZES:
        for policy in POLICIES:
            found[f"{policy}_{jobs}_ms"] = decision(policy, jobs, nodes)
        found[f"dl2_{jobs}_unlabelled_ms"] = decision("dl2", jobs, nodes, unlabelled=1.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure()
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:28} {value:10.1f}")


if __name__ == "__main__":
    main()
