"""Online fitting: samples are pooled by kind, surfaces are honest about what they do not know."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dl2.scaling import JobView, Scale, SpeedSample
from dl2.scaling.beliefs import Measured
from dl2.scaling.history import History, kind_of
from dl2.scaling.lattice import SERVERS, SIZE, WORKERS, nearest, shapes_between
from dl2.scaling.surfaces import Surfaces
from tests.unit.scaling.worlds import job, seen


def truth(scale: Scale, level: float = 1e-3) -> float:
    return level * scale.workers**0.8 / (1.0 + 0.15 * scale.workers / max(scale.servers, 0.5))


def sampled(name: str, model: str, scales: list[Scale], level: float = 1e-3) -> JobView:
    samples = tuple(SpeedSample(scale, truth(scale, level), 60.0 * (n + 1)) for n, scale in enumerate(scales))
    return job(name, model=model, samples=samples)


MANY = [Scale(w, s) for w in (1, 2, 4, 8) for s in (1, 2, 4, 8)]


def test_predicts_between_what_was_measured() -> None:
    belief = Measured().beliefs(seen(sampled("a", "m", MANY)))["a"]
    for scale in (Scale(3, 3), Scale(6, 2), Scale(5, 7)):
        assert belief.at(scale) == pytest.approx(truth(scale), rel=0.1)


def test_is_surer_where_it_measured() -> None:
    belief = Measured().beliefs(seen(sampled("a", "m", [Scale(2, 2)] * 3)))["a"]
    at = {belief.shapes.scale(i): float(belief.deviation[i]) for i in range(len(belief.deviation))}
    assert at[Scale(2, 2)] < at[Scale(3, 2)] < at[Scale(8, 8)]


def test_other_labels_teach_the_common_part() -> None:
    """A label with one sample is predicted better where others like it are known."""
    lone = sampled("a", "new", [Scale(1, 1)], level=5e-3)
    others = [sampled(f"o{n}", f"old{n}", MANY, level=10.0 ** -(n + 1)) for n in range(4)]

    def miss(*jobs: JobView) -> float:
        belief = Measured().beliefs(seen(*jobs))["a"]
        return max(abs(math.log(belief.at(scale) / truth(scale, 5e-3))) for scale in MANY)

    assert miss(lone, *others) < 0.5 * miss(lone)


def test_a_new_job_of_a_known_label_believes_its_predecessor() -> None:
    source = Measured()
    source.beliefs(seen(sampled("first", "m", MANY)))
    belief = source.beliefs(seen(job("second"), now=9000.0))["second"]
    assert belief.at(Scale(4, 4)) == pytest.approx(truth(Scale(4, 4)), rel=0.1)
    assert belief.samples == len(MANY)


def test_kinds_differ_by_label_and_requests_and_unlabelled_jobs_stand_alone() -> None:
    a = job("a")
    assert kind_of(a) == kind_of(job("b"))
    assert kind_of(a) != kind_of(replace(job("b"), worker_requests={"cpu": 4000}))
    assert kind_of(replace(a, model=None)) != kind_of(replace(job("b"), model=None))


def test_a_sample_is_taken_in_once() -> None:
    history, observation = History(), seen(sampled("a", "m", MANY))
    history.take_in(observation)
    history.take_in(observation)
    (kind,) = history.kinds.values()
    assert sum(cell.weight for cell in kind.cells.values()) == len(MANY)


@pytest.mark.parametrize("measured", [MANY, [Scale(2, 2), Scale(4, 4)], [Scale(4, 4)]])
def test_a_stall_is_believed_where_it_was_and_nowhere_else(measured: list[Scale]) -> None:
    fine = sampled("a", "m", measured)
    stall = SpeedSample(Scale(6, 6), 1e-5, 9000.0)
    belief = Measured().beliefs(seen(replace(fine, samples=(*fine.samples, stall))))["a"]
    assert belief.at(Scale(4, 4)) == pytest.approx(truth(Scale(4, 4)), rel=0.1)
    assert belief.at(Scale(7, 7)) > 0.5 * belief.at(Scale(4, 4))
    assert belief.at(Scale(6, 6)) == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize("times", [10.0, 1e2, 1e6, 1e300, math.inf])
@pytest.mark.parametrize(
    "where", [pytest.param(Scale(8, 8), id="known"), pytest.param(Scale(6, 3), id="new")]
)
def test_a_lie_about_one_shape_hardly_changes_what_others_of_the_label_believe(
    times: float, where: Scale
) -> None:
    honest = sampled("a", "m", MANY * 3)
    lie = SpeedSample(where, truth(where) * times, 9000.0)
    liar = replace(sampled("b", "m", MANY), samples=(*sampled("b", "m", MANY).samples, lie))
    belief = Measured().beliefs(seen(honest, liar, now=9600.0))["a"]
    for scale in MANY:
        assert belief.at(scale) == pytest.approx(truth(scale), rel=0.2)


def test_a_shape_that_is_really_faster_now_is_believed_after_a_while() -> None:
    before = sampled("a", "m", MANY * 3).samples
    after = tuple(SpeedSample(Scale(8, 8), 3.0 * truth(Scale(8, 8)), 9000.0 + n) for n in range(12))
    belief = Measured().beliefs(seen(job("a", samples=(*before, *after)), now=9600.0))["a"]
    assert belief.at(Scale(8, 8)) > 2.0 * truth(Scale(8, 8))


def test_nothing_measured_is_still_finite() -> None:
    belief = Measured().beliefs(seen(job()))["a"]
    assert np.isfinite(belief.speed).all()
    assert (belief.speed > 0).all()
    assert belief.samples == 0


def test_refitting_only_what_changed_gives_the_same_surfaces() -> None:
    history, kept, every = History(), Surfaces(), np.arange(SIZE)
    names = []
    for step in range(3):
        jobs = [sampled(f"j{n}", f"m{n}", MANY[: 3 + step * (n + 1)]) for n in range(3)]
        history.take_in(seen(*jobs, now=3600.0 + step))
        names = [kind_of(view) for view in jobs]
        warm = kept.fit(history, names, every)
    fresh = Surfaces().fit(history, names, every)
    assert all(np.array_equal(warm[name].mean, fresh[name].mean) for name in names)


@pytest.mark.parametrize("axis", [WORKERS, SERVERS])
def test_every_lattice_number_is_its_own_neighbour(axis: tuple[int, ...]) -> None:
    numbers = np.array([n for n in axis if n])
    points = nearest(numbers, numbers)
    assert [WORKERS[p // len(SERVERS)] for p in points] == numbers.tolist()
    assert [SERVERS[p % len(SERVERS)] for p in points] == numbers.tolist()
    assert points.max() < SIZE


def test_bounds_that_are_not_on_the_lattice_are_shapes_all_the_same() -> None:
    shapes = shapes_between(Scale(17, 3), Scale(19, 3))
    assert {shapes.scale(i) for i in range(len(shapes.points))} == {Scale(17, 3), Scale(19, 3)}
