"""Handing out shapes for all jobs at once gives what handing them out one by one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl2.scaling import JobView, Scale, load_policy
from dl2.scaling import envelope as under_test
from dl2.scaling.envelope import hulls
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
