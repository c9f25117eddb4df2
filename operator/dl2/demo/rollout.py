"""The second half of the demonstration: the same jobs arrive twice, first under the champion, then under `dl2`.

While they run, another queue asks for what it is guaranteed, and elastic jobs shrink for it; in the end a challenger
that cannot decide is rolled back by itself.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dl2.api import names
from dl2.api.conditions import parse_time
from dl2.demo.workload import NAMESPACE, Manifest, Wave, example

SEED = 11
JOBS = 12
MODELS = ("lstm", "resnet50")  # in turn: one soon trains slower with more workers, one faster for long
POLICY = "demo"
CHAMPION, CHALLENGER = "drf", "dl2"
BORROWER, OWNER = "speech", "vision"  # queues: the first borrows what is guaranteed to the second
ASKS = 20.0  # seconds after the first arrival, when the owner asks for its guarantee


def policy(stage: str, challenger: str = CHALLENGER) -> Manifest:
    """The ScalingPolicy of a stage; decisions come quickly, so that all of it can be watched."""
    guardrails = {"maxScaleStep": 8, "minGainPercent": 1}
    spec = {"stage": stage, "champion": CHAMPION, "challenger": challenger, "intervalSeconds": 5,
            "guardrails": guardrails}  # fmt: skip
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ScalingPolicy",
        "metadata": {"name": POLICY},
        "spec": spec,
    }


def waves(act: str) -> tuple[Wave, ...]:
    """Elastic jobs of very different lengths, one every 1.5 s, and the owner's gang; equal in every act but for names."""
    draw = random.Random(SEED)
    arrivals = []
    for n in range(JOBS):
        steps = min(int(130 * draw.paretovariate(1.3)), 220)
        arrivals.append(Wave(1.5 * n, (_job(f"{act}-{n + 1}", BORROWER, steps, MODELS[n % len(MODELS)]),)))
    gang = _job(f"{act}-owner", OWNER, 150, MODELS[-1])
    gang["spec"]["workers"] |= {"min": 10, "max": 10}
    gang["spec"]["scaling"]["mode"] = "Fixed"
    return tuple(sorted([*arrivals, Wave(ASKS, (gang,))], key=lambda wave: wave.at))


def _job(name: str, queue: str, steps: int, model: str) -> Manifest:
    job = copy.deepcopy(example("dljob-simulated.yaml"))
    job["metadata"] = {"name": name, "namespace": NAMESPACE}
    spec = job["spec"]
    spec["queue"], spec["model"] = queue, model
    spec["training"] = {"epochs": steps // 10, "stepsPerEpoch": 10}
    spec["scaling"] = {"mode": "Auto", "cooldownSeconds": 0}
    spec["workers"] |= {"min": 1, "max": 8}
    spec["servers"] |= {"min": 1, "max": 4}
    for key in ("priorityClassName", "topology"):
        spec.pop(key, None)
    spec["workers"].pop("initial")
    return job


@dataclass(slots=True)
class Act:
    """What was seen of one replay: (seconds since its start, workers by job), once a look."""

    name: str
    policy: str
    shapes: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    jobs: list[Mapping[str, Any]] = field(default_factory=list)

    def note(self, elapsed: float, jobs: Iterable[Mapping[str, Any]]) -> None:
        self.jobs = [job for job in jobs if job["metadata"]["name"].startswith(f"{self.name}-")]
        self.shapes.append((elapsed, {job["metadata"]["name"]: _workers(job) for job in self.jobs}))

    def times(self) -> list[float]:
        """Completion times of the borrower's jobs, in seconds."""
        return [
            parse_time(job["status"]["completionTime"]) - parse_time(job["metadata"]["creationTimestamp"])
            for job in self.jobs
            if job["spec"]["queue"] == BORROWER and (job.get("status") or {}).get("completionTime")
        ]

    def shrunk(self) -> int:
        """Jobs that had fewer workers after the owner had asked, and went on."""
        before = [shape for at, shape in self.shapes if at <= ASKS]
        after = [shape for at, shape in self.shapes if ASKS < at <= ASKS + 15]
        had = before[-1] if before else {}
        return sum(any(0 < shape.get(job, 0) < n for shape in after) for job, n in had.items())

    def panel(self) -> tuple[str, list[tuple[float, dict[str, int]]]]:
        """Title, and workers by job over time, as `workers_over_time` draws them."""
        shapes = [
            (at, {job.removeprefix(f"{self.name}-"): n for job, n in seen.items()})
            for at, seen in self.shapes
        ]
        return f"{self.policy} decides; dotted: {OWNER} asks for its guarantee", shapes

    def restarts(self) -> int:
        return sum(int((job.get("status") or {}).get("restarts") or 0) for job in self.jobs)


def _workers(job: Mapping[str, Any]) -> int:
    status = job.get("status") or {}
    running = status.get("state") in ("Running", "Scaling")
    return int((status.get("workers") or {}).get("ready") or 0) if running else 0


def summary(acts: Iterable[Act], rollback: str) -> RenderableType:
    """Champion against `dl2`, who shrank for whom, and what became of the broken challenger."""
    acts = list(acts)
    table = Table("policy that decided", "jobs", "mean completion", "longest", "shrunk for the owner", "restarts",
                  title="The same arrivals, twice")  # fmt: skip
    for act in acts:
        times = act.times()
        told = (f"{mean(times):.1f} s", f"{max(times):.0f} s") if times else ("-", "-")
        table.add_row(act.policy, str(len(times)), *told, str(act.shrunk()), str(act.restarts()))
    lines = []
    if len(acts) == 2 and all(act.times() for act in acts):
        change = mean(acts[1].times()) / mean(acts[0].times()) - 1
        lines.append(
            f"Mean completion time under {acts[1].policy}: {change:+.1%}. One replay of each proves nothing."
        )
    lines.append(f"A challenger that cannot decide was rolled back by itself: {rollback or 'it was not!'}")
    return Group(table, *(Text(line) for line in lines))
