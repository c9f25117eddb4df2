"""The scaling loop of a running operator with 1,000 elastic jobs: `python benchmarks/scaling_loop.py [--json FILE]`.

Brings up a cluster of its own with simulated nodes and the trainer simulator, starts the operator, creates the jobs
until all run, and only then a ScalingPolicy in stage Shadow (both policies are asked). The queues leave room for a
fifth of the jobs to grow by one pod, so that rounds have something to do. Then it watches some rounds.

Figures, of one round: `round_seconds` (wall, mean), `loop_ms` (time of the event loop, mean), `block_ms` (upper bound
of the longest time for which a round held up the loop, the worst round), `busy_block_ms` (the same without what it waits
for other threads and for a core); and `peak_rss_mib` of the operator.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from dl2.cluster.client import Credentials, KubeClient
from dl2.cluster.resources import SCALING_POLICIES, TENANT_QUEUES
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.processes import ProcessSpec
from dl2.embedded.waiting import wait_until
from dl2.web.metrics import BLOCK_SECONDS
from load.manifests import scaling_policy
from operator_scale import SLOTS, SPACES, TEMPLATE, Operator, create, dljob, load, prepare

TARGETS = {"round_seconds": 5.0, "loop_ms": 200.0, "block_ms": 20.0, "peak_rss_mib": 600.0}
FOUNDERS = 3  # pods of a job at first: coordinator, worker, server
INTERVAL = 20


def job(name: str) -> dict[str, Any]:
    """Of one worker and one server at least, eight and four at most, that trains for ever."""
    return dljob(
        name,
        runtime="elastic",
        model=f"model-{int(name.rsplit('-', 1)[1]) % 8}",
        training={"epochs": 100_000, "stepsPerEpoch": 1000},
        scaling={"cooldownSeconds": 0},
        workers={"min": 1, "max": 8, "template": TEMPLATE},
        servers={"min": 1, "max": 4, "template": TEMPLATE},
    )


async def bound(client: KubeClient, jobs: int) -> None:
    """Queues with quota for what runs and a fifth more jobs' worth of single pods."""
    pods = (jobs * FOUNDERS + jobs // 5) // SPACES
    for n in range(SPACES):
        patch = {"spec": {"resources": {"cpu": {"max": f"{pods * 100}m"}}}}
        await client.merge_patch(TENANT_QUEUES, "", f"space-{n}", patch)


async def measure(cluster: EmbeddedCluster, jobs: int, rounds: int, challenger: str) -> dict[str, Any]:
    options = ("--trust-status-url", "--decision-log", str(cluster.directory / "decisions.db"))
    operator = Operator(cluster, cluster.directory / "operator.log", *options)
    simulator = (sys.executable, "-m", "dl2.embedded.trainer_simulator", "--kubeconfig", str(cluster.kubeconfig),
                 "--port", str(cluster.port("trainer-simulator")), "--interval", "10")  # fmt: skip
    async with KubeClient(Credentials(str(cluster.kubeconfig))) as client:
        await prepare(cluster, client)
        with operator.running():
            began = time.monotonic()
            await load(operator, client, [job(f"job-{n}") for n in range(jobs)])
            figures: dict[str, Any] = {
                "jobs": jobs,
                "all_running_seconds": round(time.monotonic() - began, 1),
            }
            await bound(client, jobs)
            cluster.processes.ensure(ProcessSpec(name="trainer-simulator", argv=simulator))
            await asyncio.sleep(60)  # speeds are told
            shadow = scaling_policy(stage="Shadow", champion="drf", challenger=challenger, intervalSeconds=INTERVAL,
                                    guardrails={"minGainPercent": 0})  # fmt: skip
            await create(client, SCALING_POLICIES, shadow)
            await asyncio.to_thread(watch, operator, rounds)
            count = operator.metric("dl2_scaling_round_seconds_count")
            figures |= {
                "rounds": count,
                "round_seconds": round(operator.metric("dl2_scaling_round_seconds_sum") / count, 2),
                "loop_ms": round(operator.metric("dl2_scaling_loop_seconds_sum") / count * 1000, 1),
                "block_ms": longest(operator, "block") * 1000,
                "busy_block_ms": longest(operator, "busy_block") * 1000,
                "verdicts_as_asked": operator.metric("dl2_scaling_verdicts_total", ruling="AsAsked"),
                "resizes": operator.metric("dl2_scaling_resizes_total", result="Resized"),
                "peak_rss_mib": operator.memory("VmHWM"),
            }
    return figures


def watch(operator: Operator, rounds: int) -> None:
    wait_until(
        lambda: operator.metric("dl2_scaling_round_seconds_count") >= rounds,
        f"{rounds} rounds",
        rounds * INTERVAL * 3,
        interval=2.0,
    )


def longest(operator: Operator, kind: str) -> float:
    """Upper edge of the bucket in which the longest block of all rounds lies, in seconds."""
    name = f"dl2_scaling_{kind}_seconds"
    count = operator.metric(f"{name}_count")
    return next(
        (e for e in BLOCK_SECONDS if operator.metric(f"{name}_bucket", le=str(e)) >= count),
        float("inf"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--challenger", default="dl2")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    total = arguments.jobs * FOUNDERS + arguments.jobs // 5
    with EmbeddedCluster("scaling-loop", kwok_nodes=-(-total // SLOTS) + 1, owned=True) as cluster:
        figures = asyncio.run(measure(cluster, arguments.jobs, arguments.rounds, arguments.challenger))
    figures |= {"machine": f"{os.cpu_count()} cores, Python {platform.python_version()}"}
    for name, value in figures.items():
        print(f"{name:24} {value}" + (f"  (goal below {TARGETS[name]:g})" if name in TARGETS else ""))
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
