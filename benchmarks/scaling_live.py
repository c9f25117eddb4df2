"""Is `dl2 simulate` true to the operator? `python benchmarks/scaling_live.py [--policy drf] [--json FILE]`.

Draws a trace of jobs, asks `dl2 simulate` for their mean completion time, and plays the same trace on a cluster of its
own: 200 simulated nodes of 8 GPUs, a real API server, kube-scheduler, the operator with a ScalingPolicy. The trainer
simulator lets each job train as fast as its trace says for the shape that it has at the time. Only time is compressed:
`--speedup` seconds of the trace pass in a second.

Figures: `simulated_seconds` and `live_seconds`, mean completion times on the trace's clock, `difference_percent`, and
`start_seconds`, how long a job took from its creation until it ran (real seconds, median; the simulator is told
START_SECONDS beforehand).
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dl2.api import names
from dl2.api.conditions import parse_time
from dl2.cluster.client import Credentials, KubeClient
from dl2.cluster.resources import DL_JOBS, SCALING_POLICIES, TENANT_QUEUES
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.processes import ProcessSpec
from dl2.learning.traces import read_trace, write_trace
from dl2.learning.workload import GPU, Job, Recipe, draw
from dl2.scaling.guardrails import Ruling
from dl2.scaling.interface import Scale
from dl2.scheduling.quantities import format_quantity
from load.manifests import manifest, scaling_policy
from operator_scale import Operator, create

TARGET_PERCENT = 5.0
NODE_CPU, NODE_GPU = 64, 8
INTERVAL = 120  # of the trace's seconds between two decisions
START_SECONDS = 1.5  # real: until a job that starts trains, and until its end is seen
RESIZE_SECONDS = 1.0  # real: what a job loses while members come that it could use already
LARGEST_STEP = 16
SEED = 0  # of the trace's speeds


def trace(path: Path, jobs: int, nodes: int, seed: int) -> tuple[Job, ...]:
    """Jobs of four GPUs a worker that want more than the nodes have; whole epochs, as a DLJob declares them."""
    recipe = Recipe(
        jobs=jobs, nodes=nodes, node={"cpu": NODE_CPU * 1000, GPU: NODE_GPU}, load=0.9, minutes=15.0, tail=0.5,
        gpus=(4,), maximum=Scale(6, 4),
    )  # fmt: skip
    drawn = draw(recipe, seed).jobs
    write_trace(path, [replace(job, epochs=float(max(1, round(job.epochs)))) for job in drawn])
    return read_trace(path, SEED)


def simulate(path: Path, policy: str, nodes: int, speedup: float) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "dl2", "simulate", "--trace", str(path), "--policy", policy, "--nodes", str(nodes),
        "--node-cpu", str(NODE_CPU), "--node-gpu", str(NODE_GPU), "--seed", str(SEED), "--clock", "operator",
        "--interval", str(INTERVAL), "--start-up", str(START_SECONDS * speedup),
        "--resize", str(RESIZE_SECONDS * speedup), "--cooldown", "0", "--max-scale-step", str(LARGEST_STEP),
        "--min-gain-percent", "0", "--json",
    ]  # fmt: skip
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(answer.stdout))


def dljob(job: Job) -> dict[str, Any]:
    def role(requests: dict[str, int], least: int, most: int) -> dict[str, Any]:
        wanted = {name: format_quantity(amount, name) for name, amount in requests.items()}
        limits = {name: amount for name, amount in wanted.items() if name == GPU}
        container = {"name": "main", "image": "none", "resources": {"requests": wanted, "limits": limits}}
        template = {"spec": {"containers": [container], "terminationGracePeriodSeconds": 1}}
        return {"min": least, "max": most, "template": template}

    spec = {
        "runtime": "elastic",
        "model": job.model,
        "training": {"epochs": int(job.epochs), "stepsPerEpoch": 100},
        "scaling": {"cooldownSeconds": 0},
        "workers": role(dict(job.worker_requests), job.minimum.workers, job.maximum.workers),
        "servers": role(dict(job.server_requests), job.minimum.servers, job.maximum.servers),
    }
    return manifest(names.DL_JOB, job.id, spec, namespace="default")


async def play(
    cluster: EmbeddedCluster, jobs: Sequence[Job], path: Path, policy: str, speedup: float
) -> list[Any]:
    """The DLJobs, all of them finished."""
    operator = Operator(cluster, cluster.directory / "operator.log", "--trust-status-url")
    simulator = (
        sys.executable, "-m", "dl2.embedded.trainer_simulator", "--kubeconfig", str(cluster.kubeconfig), "--port",
        str(cluster.port("trainer-simulator")), "--speedup", str(speedup), "--trace", str(path), "--trace-seed",
        str(SEED),
    )  # fmt: skip
    capacity = {"cpu": {"max": "1M"}, GPU: {"max": "1M"}}
    guardrails = {"minGainPercent": 0, "maxScaleStep": LARGEST_STEP}
    async with KubeClient(Credentials(str(cluster.kubeconfig))) as client:
        await create(client, TENANT_QUEUES, manifest(names.TENANT_QUEUE, "default", {"resources": capacity}))
        with operator.running():
            cluster.processes.ensure(ProcessSpec(name="trainer-simulator", argv=simulator))
            decides = scaling_policy(
                champion=policy, intervalSeconds=round(INTERVAL / speedup), guardrails=guardrails
            )
            await create(client, SCALING_POLICIES, decides)
            await asyncio.sleep(5)
            began = time.monotonic()
            for n, job in enumerate(jobs):
                await asyncio.sleep(max(0.0, began + job.submitted_at / speedup - time.monotonic()))
                await create(client, DL_JOBS, dljob(job))
                if n % 25 == 0:
                    print(f"  {n} came after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            while True:
                found = [job async for page, _ in client.list(DL_JOBS) for job in page]
                left = sum(not (job.get("status") or {}).get("completionTime") for job in found)
                print(f"  {left} left after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
                if not left:
                    for ruling in Ruling:
                        count = operator.metric("dl2_scaling_verdicts_total", ruling=ruling.value)
                        print(f"  verdicts {ruling.value}: {count:.0f}", file=sys.stderr)
                    return found
                await asyncio.sleep(10)


def between(job: dict[str, Any], field: str) -> float:
    """Real seconds from a job's creation to a time of its status."""
    return parse_time(job["status"][field]) - parse_time(job["metadata"]["creationTimestamp"])


def tabulate(
    path: Path, jobs: Sequence[Job], predicted: dict[str, Any], done: Sequence[Any], speedup: float
) -> None:
    """One row a job: simulated and live completion time on the trace's clock."""
    expected = {job["id"]: job["jct"] for job in predicted["jobs"]}
    found = {job["metadata"]["name"]: between(job, "completionTime") * speedup for job in done}
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("job", "model", "submitted", "epochs", "simulated", "live"))
        for job in jobs:
            rows.writerow((job.id, job.model, job.submitted_at, job.epochs, expected[job.id], found[job.id]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", default="drf")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1, help="which trace is drawn")
    parser.add_argument("--table", type=Path, help="write a CSV of all jobs to this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    asked = parser.parse_args()
    with EmbeddedCluster(
        "scaling-live", kwok_nodes=asked.nodes, cpus=NODE_CPU, gpus=NODE_GPU, owned=True
    ) as cluster:
        path = cluster.directory / "trace.csv"
        jobs = trace(path, asked.jobs, asked.nodes, asked.seed)
        predicted = simulate(path, asked.policy, asked.nodes, asked.speedup)
        print(
            f"  simulated: {predicted['mean_jct']:.0f} s, makespan {predicted['makespan']:.0f} s",
            file=sys.stderr,
        )
        done = asyncio.run(play(cluster, jobs, path, asked.policy, asked.speedup))
    if asked.table:
        tabulate(asked.table, jobs, predicted, done, asked.speedup)
    live = statistics.mean(between(job, "completionTime") for job in done) * asked.speedup
    figures = {
        "policy": asked.policy,
        "jobs": len(done),
        "failed": sum(job["status"].get("state") != "Succeeded" for job in done),
        "simulated_seconds": round(predicted["mean_jct"], 1),
        "live_seconds": round(live, 1),
        "difference_percent": round(100 * (live / predicted["mean_jct"] - 1), 2),
        "start_seconds": statistics.median(between(job, "startTime") for job in done),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for name, value in figures.items():
        print(f"{name:24} {value}" + (f"  (goal: within {TARGET_PERCENT:g})" if "percent" in name else ""))
    if asked.json:
        asked.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
