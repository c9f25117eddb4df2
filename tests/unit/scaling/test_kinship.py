"""Unlabelled jobs share what they measure with those they resemble, and with nobody else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dl2.scaling import JobView, Observation, Scale, SpeedSample
from dl2.scaling.beliefs import Measured
from dl2.scaling.cells import Cell, Kind
from dl2.scaling.kinship import Kinship
from tests.unit.scaling.worlds import job, seen

ONE = [Scale(1, 1), Scale(2, 2), Scale(4, 2), Scale(8, 4)]
OTHER = [Scale(2, 2), Scale(8, 8), Scale(4, 2)]
FAR = Scale(8, 8)


def slow(scale: Scale) -> float:
    """Falls with every worker beyond two: nobody would expect that."""
    return 1e-3 * min(scale.workers, 2) / scale.workers


def fast(scale: Scale) -> float:
    return 3e-2 * scale.workers / (1.0 + 0.1 * scale.servers)


def ran(name: str, speed: object, scales: list[Scale], **changes: object) -> JobView:
    samples = tuple(SpeedSample(scale, speed(scale), 60.0 * (n + 1)) for n, scale in enumerate(scales))  # type: ignore[operator]
    return job(name, **{"model": None, "samples": samples, **changes})


def measured_kind(jobs: int) -> Kind:
    kind = Kind(jobs=jobs)
    kind.add(ONE[0], -3.0)
    return kind


def expected(name: str, observation: Observation) -> float:
    return Measured().beliefs(observation)[name].at(FAR)


def test_a_job_that_trains_like_another_believes_it() -> None:
    """One sample at a shape that the other had too tells where this job stands at shapes it never tried."""
    known = ran("known", slow, [*ONE, FAR] * 2)
    belief = Measured().beliefs(seen(known, ran("new", slow, ONE[:2])))["new"]
    assert belief.at(FAR) == pytest.approx(slow(FAR), rel=0.1)
    assert belief.samples == 12


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(ran("known", fast, [*ONE, FAR] * 2), id="another speed"),
        pytest.param(
            ran("known", slow, [*ONE, FAR] * 2, worker_requests={"cpu": 4000}), id="another request"
        ),
    ],
)
def test_a_job_that_is_another_stands_alone(other: JobView) -> None:
    new = ran("new", slow, ONE[:2])
    assert Measured().beliefs(seen(other, new))["new"].samples == 2


def test_it_may_join_a_label() -> None:
    known = ran("known", slow, [*ONE, FAR] * 2, model="m")
    assert expected("new", seen(known, ran("new", slow, ONE[:2]))) == pytest.approx(slow(FAR), rel=0.1)


def test_labels_never_join_each_other() -> None:
    known, new = ran("known", slow, [*ONE, FAR] * 2, model="m"), ran("new", slow, ONE, model="n")
    assert Measured().beliefs(seen(known, new))["new"].samples == len(ONE)


def test_it_leaves_when_samples_speak_against_it() -> None:
    """Alike at one shape and ten times faster at the next ones."""

    def turns(scale: Scale) -> float:
        return slow(scale) * (1.0 if scale == ONE[0] else 10.0)

    source, known = Measured(), ran("known", slow, ONE * 4)
    assert source.beliefs(seen(known, ran("new", turns, ONE[:1])))["new"].samples == 17
    assert source.beliefs(seen(known, ran("new", turns, ONE), now=4000.0))["new"].samples == 4


@pytest.mark.parametrize(
    ("jobs", "joins"), [pytest.param(2, False, id="a few"), pytest.param(12, True, id="many")]
)
def test_where_nothing_speaks_for_or_against_it_the_size_of_a_group_does(jobs: int, joins: bool) -> None:
    known, new = (("model", "m"), (), ()), (("job", "new"), (), ())
    kinds = {known: measured_kind(jobs), new: measured_kind(1)}
    kinship = Kinship()
    kinship.pools(kinds, lambda one, other: 0.0)
    assert (kinship.leader(new) == known) is joins


def test_a_job_whose_label_was_changed_is_of_the_new_kind() -> None:
    source, was = Measured(), ran("one", slow, ONE, model="m")
    source.beliefs(seen(was))
    samples = (*was.samples, SpeedSample(FAR, slow(FAR), 4000.0))
    relabelled, new = replace(was, model="n", samples=samples), ran("new", slow, [FAR])
    assert source.beliefs(seen(relabelled, new, now=4200.0))["one"].samples >= 1


def test_the_order_of_jobs_means_nothing() -> None:
    jobs = [ran(f"j{n}", slow if n % 2 else fast, ONE[: 1 + n % 4]) for n in range(8)]
    one, other = Measured().beliefs(seen(*jobs)), Measured().beliefs(seen(*reversed(jobs)))
    assert all(np.array_equal(one[name].speed, other[name].speed) for name in one)


def test_who_is_left_of_a_group_keeps_together() -> None:
    """The oldest is forgotten first, also where the others followed it."""
    source = Measured()
    jobs = [ran(name, slow, [*ONE, FAR]) for name in "abc"]
    assert source.beliefs(seen(*jobs))["c"].samples == 15
    for kind in [kind for kind in source.history.kinds if kind[0] == ("job", "a")]:
        del source.history.kinds[kind]
    assert source.beliefs(seen(*jobs[1:], now=4000.0))["c"].samples == 10


def test_cells_merge_as_if_all_samples_had_gone_into_one() -> None:
    values = [0.3, -0.1, 0.2, 0.4, 0.1]  # close together: what is far off counts as less
    whole, first, rest = Cell(), Cell(), Cell()
    for n, value in enumerate(values):
        whole.add(value)
        (first if n < 2 else rest).add(value)
    first.merge(rest)
    assert (first.weight, first.mean, first.squares) == pytest.approx(
        (whole.weight, whole.mean, whole.squares)
    )
