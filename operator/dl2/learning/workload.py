"""Jobs to simulate: who arrives when, how large, of what kind. Everything is drawn from one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dl2.learning.families import FAMILIES
from dl2.learning.physics import MODELS, TrueSpeed, true_speed
from dl2.scaling.interface import NodeView, Scale
from dl2.scheduling.snapshot import Queue

GPU = "nvidia.com/gpu"
HOUR = 3600.0
_LARGEST = Scale(16, 16)
_REFERENCE = Scale(4, 4)


@dataclass(frozen=True, slots=True)
class Job:
    """One job with its true speed. Only the simulator holds these."""

    id: str
    submitted_at: float
    model: str | None
    epochs: float
    queue: str
    priority: int
    worker_requests: Mapping[str, int]
    server_requests: Mapping[str, int]
    minimum: Scale
    maximum: Scale
    speed: TrueSpeed


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs by submission, the nodes they share, and the queues with their quotas (none: no budgets)."""

    jobs: tuple[Job, ...]
    nodes: tuple[NodeView, ...]
    queues: tuple[Queue, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to draw. `load`: offered work at 4 workers and 4 servers as a part of the scarcest resource."""

    jobs: int = 30
    nodes: int = 13
    node: Mapping[str, int] = field(default_factory=lambda: {"cpu": 8000, GPU: 2})
    load: float = 0.8
    arrivals: str = "poisson"  # or "bursts", "day"
    minutes: float = 147.0  # mean size at that scale, as DL2's paper gives for its trace
    tail: float = 1.0  # sigma of the lognormal of sizes
    sizes: tuple[float, float] | None = None  # minutes: evenly spread between these instead
    families: tuple[str, ...] = ("table",)  # "table": the models of `physics` as they stand
    labels: int = 8  # kinds of jobs
    unlabelled: float = 0.0  # part of the jobs that carry no label
    users: int = 0  # labels are the names of so many users, who train anything; 0: of what is trained
    gpus: tuple[int, ...] = (0, 1)  # of a worker, drawn per kind
    maximum: Scale = _LARGEST
    queues: tuple[Queue, ...] = ()
    worker_only: float = 0.0  # part of the kinds that have no servers


@dataclass(frozen=True, slots=True)
class _Kind:
    label: str
    worker: Mapping[str, int]
    server: Mapping[str, int]
    maximum: Scale
    speed: TrueSpeed


def draw(recipe: Recipe, seed: int) -> Workload:
    """The workload of `seed`; equal recipes and seeds give equal workloads."""
    rng = np.random.default_rng([seed, 0x0D12])
    owner = np.random.default_rng([seed, 0x05E2]).integers(max(1, recipe.users), size=recipe.jobs)
    kinds = [_kind(recipe, n, rng) for n in range(recipe.labels)]
    nodes = nodes_of(recipe.nodes, recipe.node)
    of = rng.integers(len(kinds), size=recipe.jobs)
    minutes = recipe.minutes * np.exp(recipe.tail * rng.standard_normal(recipe.jobs) - recipe.tail**2 / 2)
    if recipe.sizes is not None:
        minutes = rng.uniform(*recipe.sizes, recipe.jobs)
    times = _arrivals(recipe, _span(recipe, [kinds[k] for k in of], minutes, nodes), rng)
    queues = sorted(queue.name for queue in recipe.queues) or ["default"]
    jobs = []
    for n, at in enumerate(times):
        kind = kinds[of[n]]
        labelled = rng.random() >= recipe.unlabelled
        label = f"user-{owner[n]}" if recipe.users else kind.label
        jobs.append(
            Job(
                f"job-{n:04d}", float(at), label if labelled else None,
                float(max(1.0, kind.speed(_reference(kind)) * minutes[n] * 60.0)),
                queues[int(rng.integers(len(queues)))], 0, kind.worker, kind.server,
                Scale(1, min(1, kind.maximum.servers)), kind.maximum, kind.speed,
            )
        )  # fmt: skip
    return Workload(tuple(jobs), nodes, recipe.queues)


def nodes_of(count: int, node: Mapping[str, int]) -> tuple[NodeView, ...]:
    return tuple(NodeView(f"node-{n:04d}", dict(node), dict(node)) for n in range(count))


def _kind(recipe: Recipe, n: int, rng: np.random.Generator) -> _Kind:
    family = recipe.families[int(rng.integers(len(recipe.families)))]
    alone = rng.random() < recipe.worker_only
    most = Scale(recipe.maximum.workers, 0 if alone else recipe.maximum.servers)
    gpus = int(rng.choice(recipe.gpus))
    worker = {"cpu": 2000, GPU: gpus} if gpus else {"cpu": 2000}
    if family == "table":
        label = sorted(MODELS)[n % len(MODELS)]
        speed = true_speed(MODELS[label], most, rng)
    else:
        label, speed = f"{family}-{n}", FAMILIES[family](rng, most)
    return _Kind(label, worker, {"cpu": 2000}, most, speed)


def _reference(kind: _Kind) -> Scale:
    return Scale(min(_REFERENCE.workers, kind.maximum.workers), min(_REFERENCE.servers, kind.maximum.servers))


def _span(recipe: Recipe, kinds: Sequence[_Kind], minutes: np.ndarray, nodes: Sequence[NodeView]) -> float:
    """Seconds over which the jobs arrive, so that the scarcest resource is asked for `load` times."""
    work: dict[str, float] = {}
    for kind, length in zip(kinds, minutes, strict=True):
        scale = _reference(kind)
        for requests, pods in ((kind.worker, scale.workers), (kind.server, scale.servers)):
            for name, amount in requests.items():
                work[name] = work.get(name, 0.0) + amount * pods * length * 60.0
    has = {name: sum(node.capacity.get(name, 0) for node in nodes) for name in work}
    return max(work[name] / max(has[name], 1) for name in work) / recipe.load


def _arrivals(recipe: Recipe, span: float, rng: np.random.Generator) -> np.ndarray:
    """(jobs,) sorted seconds within `span`."""
    if recipe.arrivals == "bursts":  # a few moments at which many come, as from parameter sweeps
        moments = rng.uniform(0.0, span, max(1, recipe.jobs // 8))
        times = rng.choice(moments, recipe.jobs) + rng.uniform(0.0, 0.02 * span, recipe.jobs)
    elif recipe.arrivals == "day":  # thinned to the rhythm of working days
        times = rng.uniform(0.0, span, recipe.jobs * 8)
        kept = rng.random(len(times)) < 0.55 - 0.45 * np.cos(2 * np.pi * times / (24 * HOUR))
        times = times[kept][: recipe.jobs]
        times = np.concatenate([times, rng.uniform(0.0, span, recipe.jobs - len(times))])
    elif recipe.arrivals == "poisson":
        times = np.cumsum(rng.exponential(span / recipe.jobs, recipe.jobs))
    else:
        raise ValueError(f'arrivals "{recipe.arrivals}" are not known; use poisson, bursts or day')
    ordered = np.sort(times)
    return np.asarray(ordered - ordered[0])
