"""Handing out shapes for all jobs at once gives what handing them out one by one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl2.scaling import JobView, Scale, SpeedSample, load_policy
from dl2.scaling import envelope as under_test
from dl2.scaling.beliefs import Measured
from dl2.scaling.envelope import hopeful, hulls
from dl2.scaling.room import Room
from dl2.scaling.table import Table
from tests.unit.scaling.worlds import GPU, job, nodes, seen


class OneByOne(under_test._Walk):
    """Looks at what is left anew for each job."""

    def _squeeze(self, blocked: Sequence[int]) -> None:
        for i in blocked:
            (best,) = self._best_that_fit([i])
            if best:
                assert self._move(i, best)


def jagged(seed: int) -> Callable[[JobView, Scale], float]:
    """Speeds with which hulls are of few shapes far apart, so that the next one often does not fit."""
    table = np.exp(np.random.default_rng(seed).standard_normal((8, 9, 9)))

    def speed(view: JobView, scale: Scale) -> float:
        return float(table[int(view.id), scale.workers, scale.servers] * scale.workers)

    return speed


@settings(max_examples=200)
@given(st.integers(0, 10_000))
def test_what_is_left_is_given_out_as_one_by_one(seed: int) -> None:
    worker = ({"cpu": 2000}, {"cpu": 1000, GPU: 1})
    jobs = [job(str(n), worker_requests=worker[n % 2]) for n in range(8)]
    observation = seen(*jobs, on=nodes(6, cpu=16000, gpu=3))
    at_once = load_policy("envelope-oracle", speeds=jagged(seed)).allocate(observation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "_Walk", OneByOne)
        assert load_policy("envelope-oracle", speeds=jagged(seed)).allocate(observation) == at_once


@pytest.mark.parametrize("policy", ["envelope-oracle", "envelope", "dl2"])
@pytest.mark.parametrize("where", ["small cluster", "small budget", "few nodes that hold a worker"])
def test_a_job_starts_whose_speed_grows_faster_than_what_it_holds(policy: str, where: str) -> None:
    """The hull of such a job begins with a shape that is larger than all there is for it."""
    worker, cluster, budgets = {"cpu": 2000}, nodes(1), {}
    if where == "small budget":
        cluster, budgets = nodes(24), {"q": {"cpu": 8000}}
    elif where == "few nodes that hold a worker":
        worker, cluster = {"cpu": 5000}, (*nodes(1), *nodes(20, cpu=3000))

    def speed(view: JobView, scale: Scale) -> float:
        return 1e-5 * (scale.workers + scale.servers) ** 3

    shapes = [Scale(1, 1), Scale(2, 1), Scale(1, 2), Scale(1, 3), Scale(2, 2)]
    one = job(worker_requests=worker, maximum=Scale(16, 16))
    samples = tuple(SpeedSample(shape, speed(one, shape), 600.0 * n) for n, shape in enumerate(shapes))
    alone = replace(one, samples=samples)
    found = load_policy(policy, **({"speeds": speed} if policy == "envelope-oracle" else {}))
    given = found.allocate(seen(alone, on=cluster, budgets=budgets))[alone.id]
    assert given.workers + given.servers >= 4
    assert given.workers == 1 or where != "few nodes that hold a worker"


def steepest_path(value: Sequence[float], cost: Sequence[float]) -> list[int]:
    """From nothing, always to the shape in whose direction value rises most; the definition, shape by shape."""
    path, x, y = [], 0.0, 0.0
    while True:
        ahead = [(v - y) / (c - x) if c > x else 0.0 for v, c in zip(value, cost, strict=True)]
        best = int(np.argmax(ahead))
        if ahead[best] <= 0.0:
            return path
        path.append(best)
        x, y = cost[best], value[best]


@given(st.integers(0, 10_000))
def test_the_hull_goes_up_by_the_steepest_path(seed: int) -> None:
    """Some rows have costs in common, some shapes are padding, which costs more than there is."""
    rng = np.random.default_rng(seed)
    value, cost = rng.random((6, 20)), rng.random((6, 20)) + 0.01
    cost[3:] = cost[0]
    cost[1, 12:] = np.inf
    shapes, slopes = hulls(value, cost)
    assert shapes == [steepest_path(*rows) for rows in zip(value.tolist(), cost.tolist(), strict=True)]
    assert all(line == sorted(line, reverse=True) for line in slopes)


def hope(*left: float) -> float:
    """What is hoped for beyond what is believed, of alike jobs that do 1.2 epochs an interval and have so many left."""
    sample = SpeedSample(Scale(1, 1), 1e-3, 3000.0)
    jobs = [
        job(str(n), current=sample.scale, epochs_total=more, samples=(sample,)) for n, more in enumerate(left)
    ]
    observation = seen(*jobs, on=nodes(8))
    table = Table(jobs, Measured().beliefs(observation), Room(observation))
    hoped = hopeful(table, np.full(len(jobs), 0.1), observation.interval)
    return float(np.log(hoped[0] / table.speed[0]).sum())


def test_less_is_tried_out_where_all_of_a_kind_are_nearly_done() -> None:
    assert 0 < hope(1.0) < hope(30.0) < hope(1000.0)
    assert hope(1.0) == hope(0.5)  # never nothing: what is believed may be wrong
    assert hope(1000.0) == hope(5000.0)


def test_what_one_of_a_kind_finds_out_serves_the_others() -> None:
    assert hope(1.0, 1000.0) > 2.0 * hope(1.0)
