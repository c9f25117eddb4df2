"""Real MXNet training under two scaling policies, the same arrivals: `python benchmarks/scaling_mxnet.py [--json FILE]`.

An embedded cluster with one real node (containerd, kubelet) and the operator with a ScalingPolicy. Every repetition
plays the same elastic jobs, `examples/elastic/train.py` on handwritten digits, once under each policy, with an operator
that knows nothing yet. They are of two kinds, as their `model` says: in some an example takes its time, as in a larger
network, so that workers share out something; in the others a step does, as where loading the data is what takes long, and
more workers are of no use. A queue bounds how many members there may be at once.

Figures: `jct_POLICY_seconds`, mean completion times; `below_percent` and `half_width`, by how much the second policy
lies below the first, pair by pair, with 95 % confidence; `resizes`, `restarts` and `steps_back` over all of them (the
last two must be 0), `members_lost`: pods of a first coordinator, server or worker that were replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dl2.api import names
from dl2.demo.workload import example
from dl2.embedded.cluster import EmbeddedCluster
from dl2.learning.statistics import below
from load.manifests import manifest, scaling_policy
from operator_scale import Operator
from scaling_live import between

TEAM = "team"
COMPUTE, LOADING = "compute-bound", "loading-bound"
# An example, or else a step, takes this long at least.
SECONDS = {COMPUTE: ("DL2_EXAMPLE_SECONDS", 0.01), LOADING: ("DL2_STEP_SECONDS", 0.25)}
# Kind and epochs of the jobs, in the order in which they come: an epoch takes one worker 15 s, or any number 6.25 s.
JOBS = ((COMPUTE, 8), (LOADING, 12), (COMPUTE, 16), (LOADING, 12), (COMPUTE, 8), (COMPUTE, 12))
EVERY = 15.0  # seconds between two arrivals
INTERVAL = 10
CPU = "1200m"  # of the queue: a member asks for 50m, a coordinator for 100m
MOST = {"workers": 8, "servers": 4}
LIMIT = 600.0
Raw = dict[str, Any]


@dataclass
class Seen:
    """What was seen of the jobs of one play."""

    times: list[float] = field(default_factory=list)
    resizes: int = 0
    restarts: int = 0
    steps_back: int = 0
    members_lost: int = 0


def job(name: str, kind: str, epochs: int) -> Raw:
    spec = example("dljob-elastic.yaml")["spec"]
    spec["queue"], spec["model"], spec["training"]["epochs"] = TEAM, kind, epochs
    variable, seconds = SECONDS[kind]
    spec["scaling"] = {"mode": "Auto", "cooldownSeconds": 0}
    for role, most in MOST.items():
        spec[role]["max"] = most
        (container,) = spec[role]["template"]["spec"]["containers"]
        container["env"] = [{"name": variable, "value": str(seconds)}]
        container["resources"]["requests"] = {"cpu": "50m", "memory": "64Mi"}
    return manifest(names.DL_JOB, name, spec, namespace=TEAM)


def objects(policy: str) -> list[Raw]:
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}},
        manifest(names.TENANT_QUEUE, TEAM, {"resources": {"cpu": {"max": CPU}}}),
        scaling_policy(champion=policy, intervalSeconds=INTERVAL, guardrails={"minGainPercent": 0}),
    ]


def apply(cluster: EmbeddedCluster, *bodies: Raw) -> None:
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(bodies))


def items(cluster: EmbeddedCluster, kind: str) -> list[Raw]:
    return list(json.loads(cluster.kubectl("get", kind, "-n", TEAM, "-o", "json"))["items"])


def play(cluster: EmbeddedCluster, policy: str) -> Seen:
    """All jobs to their end, under an operator of its own."""
    seen, founders, steps, scalings = Seen(), dict[str, str](), dict[str, int](), set[tuple[str, str]]()
    operator = Operator(cluster, cluster.directory / "operator.log", "--progress-seconds", "1")
    with operator.running():
        apply(cluster, *objects(policy))
        cluster.wait_service_account(TEAM)
        began, left = time.monotonic(), list(enumerate(JOBS))
        while True:
            while left and time.monotonic() - began >= left[0][0] * EVERY:
                n, (kind, epochs) = left.pop(0)
                apply(cluster, job(f"job-{n}", kind, epochs))
            jobs = items(cluster, "dljobs")
            for pod in items(cluster, "pods"):
                name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
                if name.endswith("-0"):
                    seen.members_lost += founders.setdefault(name, uid) != uid
            for found in jobs:
                name, status = found["metadata"]["name"], found.get("status") or {}
                step = int((status.get("progress") or {}).get("step") or 0)
                seen.steps_back += step < steps.get(name, 0)
                steps[name] = step
                if status.get("lastScaling"):
                    scalings.add((name, json.dumps(status["lastScaling"]["to"])))
            ends = [found for found in jobs if (found.get("status") or {}).get("completionTime")]
            if len(ends) == len(JOBS):
                break
            if time.monotonic() - began > LIMIT:
                raise SystemExit(f"after {LIMIT:g} s only {len(ends)} jobs had ended")
            time.sleep(1.0)
        for found in ends:
            status = found["status"]
            seen.restarts += int(status.get("restarts") or 0)
            seen.times.append(between(found, "completionTime"))
        seen.resizes = len(scalings)
        cluster.kubectl("delete", "dljobs", "-n", TEAM, "--all", "--wait")
        cluster.kubectl("wait", "pods", "-n", TEAM, "--all", "--for=delete", "--timeout=60s")
        cluster.kubectl("delete", "scalingpolicy", "training")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policies", default="drf,dl2", help="two of them")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    asked = parser.parse_args()
    first, second = asked.policies.split(",")
    plays: dict[str, list[Seen]] = {first: [], second: []}
    with EmbeddedCluster("scaling-mxnet", real_nodes=1, owned=True) as cluster:
        for n in range(asked.repetitions):
            for policy in (first, second) if n % 2 == 0 else (second, first):
                seen = play(cluster, policy)
                plays[policy].append(seen)
                print(
                    f"  {n} {policy}: {[round(t) for t in seen.times]}, {seen.resizes} shapes",
                    file=sys.stderr,
                )
    means = {policy: [statistics.mean(seen.times) for seen in found] for policy, found in plays.items()}
    gain = below(means[second], means[first])
    everything = [seen for found in plays.values() for seen in found]
    figures: dict[str, Any] = {
        "repetitions": asked.repetitions,
        **{f"jct_{policy}_seconds": round(statistics.mean(found), 1) for policy, found in means.items()},
        "below_percent": round(gain.mean, 1),
        "half_width": round(gain.half, 1),
        **{
            name: sum(getattr(seen, name) for seen in everything)
            for name in ("resizes", "restarts", "steps_back", "members_lost")
        },
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for name, value in figures.items():
        print(f"{name:24} {value}")
    if asked.json:
        asked.json.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
