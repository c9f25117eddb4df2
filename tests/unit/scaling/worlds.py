"""Small observations for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dl2.scaling import JobView, NodeView, Observation, Scale, SpeedSample

GPU = "nvidia.com/gpu"
EVERY_POLICY = (
    "fifo", "drf", "tetris", "srtf", "tiresias", "srpt-gain", "optimus", "envelope", "dl2",
    "optimus-oracle", "envelope-oracle",
)  # fmt: skip


def job(name: str = "a", **changes: Any) -> JobView:
    """2 CPU a pod, 1 to 8 workers and servers, 100 epochs."""
    fields: dict[str, Any] = {
        "id": name, "model": "m", "queue": "q", "priority": 0, "submitted_at": 0.0, "started_at": None,
        "worker_requests": {"cpu": 2000}, "server_requests": {"cpu": 2000},
        "minimum": Scale(1, 1), "maximum": Scale(8, 8), "current": Scale(0, 0),
        "epochs_total": 100.0, "epochs_done": 0.0, "samples": (),
    }  # fmt: skip
    return JobView(**{**fields, **changes})


def nodes(count: int, cpu: int = 8000, gpu: int = 0) -> tuple[NodeView, ...]:
    has = {"cpu": cpu, **({GPU: gpu} if gpu else {})}
    return tuple(NodeView(f"n{i:03d}", has, has) for i in range(count))


def seen(
    *jobs: JobView,
    on: tuple[NodeView, ...] = (),
    budgets: Mapping[str, Mapping[str, int]] | None = None,
    now: float = 3600.0,
) -> Observation:
    return Observation(now, 1200.0, jobs, on, budgets or {})


def speed(view: JobView, scale: Scale) -> float:
    """A speed for the yardsticks: concave in workers, best with as many servers."""
    return 1e-3 * scale.workers**0.7 / (1.0 + 0.2 * abs(scale.workers - scale.servers))


def options(policy: str) -> dict[str, Any]:
    return {"speeds": speed} if policy.endswith("-oracle") else {}


def random_observation(seed: int, count: int = 12, unlabelled: float = 0.2) -> Observation:
    """Jobs of a few kinds, running and waiting, sampled and not, on a cluster that does not hold all."""
    rng = np.random.default_rng(seed)
    jobs = []
    for n in range(count):
        samples = tuple(
            SpeedSample(
                Scale(int(rng.integers(1, 9)), int(rng.integers(1, 9))),
                float(rng.uniform(1e-4, 1e-2)),
                60.0 * k,
            )
            for k in range(int(rng.integers(0, 6)))
        )
        jobs.append(
            job(
                f"j{n:03d}",
                model=None if rng.random() < unlabelled else f"m{rng.integers(3)}",
                queue=f"q{rng.integers(2)}",
                submitted_at=float(rng.integers(0, 3000)),
                worker_requests={"cpu": 2000, GPU: 1} if rng.random() < 0.5 else {"cpu": 2000},
                current=samples[-1].scale if samples else Scale(0, 0),
                epochs_total=float(rng.uniform(5, 500)),
                epochs_done=float(rng.uniform(0, 5)),
                samples=samples,
            )
        )
    budgets = {"q0": {"cpu": 24000}} if seed % 2 else {}
    return seen(*jobs, on=nodes(int(rng.integers(1, 12)), gpu=2), budgets=budgets)


observations = st.integers(0, 10_000).map(random_observation)
