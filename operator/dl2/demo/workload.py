"""What the demonstration applies: the repository's own examples, and thirty variations of the simulated one."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from dl2 import resources

SEED = 7
SIMULATED = 30
STATIC, ELASTIC = REAL = ("digits", "elastic")
NAMESPACE = "demo"
TOO_BIG = "too-big"

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wave:
    """Jobs that arrive together, `at` seconds after the start."""

    at: float
    jobs: tuple[Manifest, ...]


def setup() -> list[Manifest]:
    """Namespace, priority classes and the three queues."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "urgent"},
            "value": 1000,
            "preemptionPolicy": "Never",
        },
        _queue("research", None, 40, 8),
        _queue("vision", "research", 24, 12),
        _queue("speech", "research", 40, 4),
    ]


def waves(checkpoints: str) -> tuple[Wave, ...]:
    """Real jobs first, then the simulated ones in three bursts; the last brings one that can never fit.

    The elastic job comes three times: with one worker, then grown, then shrunk. `checkpoints`: folder of the real node's
    machine for the checkpoints of the other real job.
    """
    simulated = list(_simulated())
    third = len(simulated) // 3
    return (
        Wave(
            0,
            (
                _real(checkpoints),
                _elastic(workers=1, servers=1),
                *simulated[:third],
            ),
        ),
        Wave(8, tuple(simulated[third : 2 * third])),
        Wave(16, (*simulated[2 * third :], _too_big())),
        Wave(45, (_elastic(workers=3, servers=2),)),
        Wave(85, (_elastic(workers=2, servers=1),)),
    )


def _queue(name: str, parent: str | None, most: int, least: int) -> Manifest:
    spec: Manifest = {
        "resources": {"nvidia.com/gpu": {"min": str(least), "max": str(most)}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
    }
    if parent:
        spec["parent"] = parent
    return {"apiVersion": "dl2.dev/v1alpha1", "kind": "TenantQueue", "metadata": {"name": name}, "spec": spec}


def example(file: str) -> Manifest:
    """The job of one of the repository's examples."""
    text = (resources.directory("examples") / file).read_text()
    return next(d for d in yaml.safe_load_all(text) if d and d["kind"] == "DLJob")


def _real(checkpoints: str) -> Manifest:
    """The example that trains MXNet on handwritten digits, in the demonstration's queue."""
    job = copy.deepcopy(example("dljob-digits.yaml"))
    job["metadata"] = {"name": STATIC, "namespace": NAMESPACE}
    job["spec"]["queue"] = "vision"
    job["spec"]["training"]["epochs"] = 60  # long enough to be watched
    (volume,) = job["spec"]["workers"]["template"]["spec"]["volumes"]
    volume["hostPath"]["path"] = checkpoints
    return job


def _elastic(workers: int, servers: int) -> Manifest:
    """The example whose members come and go while it trains; small, so that all fit on one machine."""
    job = copy.deepcopy(example("dljob-elastic.yaml"))
    job["metadata"] = {"name": ELASTIC, "namespace": NAMESPACE}
    job["spec"]["queue"] = "speech"
    job["spec"]["training"]["epochs"] = 40
    for role, count in (("workers", workers), ("servers", servers)):
        job["spec"][role]["replicas"] = count
        (container,) = job["spec"][role]["template"]["spec"]["containers"]
        container["resources"]["requests"] = {"cpu": "100m", "memory": "256Mi"}
    return job


def _simulated() -> Iterator[Manifest]:
    random_ = random.Random(SEED)
    base = example("dljob-simulated.yaml")
    for number in range(SIMULATED):
        job = copy.deepcopy(base)
        job["metadata"] = {"name": f"sim-{number + 1:02}", "namespace": NAMESPACE}
        workers = random_.choice((1, 2, 2, 4, 4, 6))
        spec = job["spec"]
        spec["queue"] = random_.choice(("vision", "speech"))
        spec["training"] = {"epochs": random_.randint(5, 15), "stepsPerEpoch": random_.randint(15, 30)}
        spec["workers"] |= {"min": 1, "max": 8, "initial": workers}
        spec["servers"] |= {"min": 1, "max": 4, "initial": max(1, workers // 2)}
        spec.pop("priorityClassName", None)
        if number % 10 == 9:
            spec["priorityClassName"] = "urgent"
        yield job


def _too_big() -> Manifest:
    """Asks for more than its queue may ever have, to show how the operator says so."""
    job = copy.deepcopy(example("dljob-simulated.yaml"))
    job["metadata"] = {"name": TOO_BIG, "namespace": NAMESPACE}
    job["spec"]["queue"] = "speech"
    job["spec"]["workers"] |= {"min": 64, "max": 64, "initial": 64}
    job["spec"].pop("priorityClassName", None)
    return job
