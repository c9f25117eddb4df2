"""Workloads: reproducible, as loaded and as shaped as they were ordered; traces go out and come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dl2.learning.curriculum import training_case
from dl2.learning.families import FAMILIES, TRAINED_ON
from dl2.learning.suites import SEEDS, SUITES, Split, suite_named
from dl2.learning.traces import COLUMNS, TraceError, read_trace, write_trace
from dl2.learning.workload import Recipe, draw
from dl2.scaling import Scale


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    recipe = Recipe(families=TRAINED_ON)
    told = [
        [(job.submitted_at, job.epochs, job.speed(Scale(3, 2))) for job in draw(recipe, seed).jobs]
        for seed in (1, 1, 2)
    ]
    assert told[0] == told[1] != told[2]


def test_seeds_of_the_splits_are_disjoint() -> None:
    ranges = [SEEDS[split] for split in Split]
    assert sum(len(each) for each in ranges) == len({seed for each in ranges for seed in each})


def test_the_family_that_is_kept_back_is_not_trained_on() -> None:
    labels = {
        job.model.split("-")[0] for n in range(12) for job in training_case(n).workload.jobs if job.model
    }
    assert "staircase" not in labels
    shift = suite_named("shift").case(0).workload.jobs
    assert {job.model.split("-")[0] for job in shift if job.model} == {"staircase"}


@pytest.mark.parametrize("arrivals", ["poisson", "bursts", "day"])
def test_arrivals_keep_their_number_and_order(arrivals: str) -> None:
    times = [job.submitted_at for job in draw(Recipe(jobs=80, arrivals=arrivals), 4).jobs]
    assert len(times) == 80
    assert times == sorted(times)
    assert times[0] == 0.0


def test_bursts_are_burstier_and_days_have_nights() -> None:
    def gaps(arrivals: str) -> np.ndarray:
        return np.diff([job.submitted_at for job in draw(Recipe(jobs=300, arrivals=arrivals), 4).jobs])

    def variation(values: np.ndarray) -> float:
        return float(values.std() / values.mean())

    assert variation(gaps("bursts")) > 1.5 * variation(gaps("poisson"))
    week = draw(Recipe(jobs=400, arrivals="day", load=0.02), 4).jobs
    hours = np.array([job.submitted_at % 86_400 / 3600 for job in week])
    shifted = (hours - hours.min()) % 24
    counts = np.histogram(shifted, bins=4, range=(0, 24))[0]
    assert counts.max() > 2 * counts.min()


def test_twice_the_load_is_half_the_time() -> None:
    spans = [draw(Recipe(jobs=200, load=load), 4).jobs[-1].submitted_at for load in (0.5, 1.0)]
    assert spans[0] == pytest.approx(2 * spans[1], rel=0.05)


def test_sizes_have_a_heavy_tail_and_the_mean_that_was_asked_for() -> None:
    jobs = draw(Recipe(jobs=3000, labels=1, minutes=147.0), 4).jobs
    minutes = np.array([job.epochs / job.speed(Scale(4, 4)) / 60 for job in jobs])
    assert minutes.mean() == pytest.approx(147.0, rel=0.15)
    assert np.percentile(minutes, 99) > 5 * np.median(minutes)


def test_slotted_jobs_last_ten_to_a_hundred_slots() -> None:
    jobs = suite_named("slotted").case(0).workload.jobs
    slots = np.array([job.epochs / job.speed(Scale(4, 4)) / 1200 for job in jobs])
    assert slots.min() >= 10
    assert slots.max() <= 100
    assert slots.std() > 15


@pytest.mark.parametrize("most", [Scale(16, 16), Scale(16, 0)])
def test_jagged_speeds_are_positive_and_not_monotone(most: Scale) -> None:
    for seed in range(20):
        speed = FAMILIES["jagged"](np.random.default_rng(seed), most)
        by_workers = np.array([speed(Scale(w, min(4, most.servers))) for w in range(17)])
        assert by_workers[0] == 0.0
        assert (by_workers[1:] > 0).all()
        assert (np.diff(by_workers[1:]) < 0).any()


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_draws_cases(name: str) -> None:
    case = suite_named(name).case(0)
    assert case.workload.jobs
    assert case.workload.nodes
    assert case.seed in SEEDS[Split.TEST]


def test_an_unknown_suite_or_rhythm_is_refused() -> None:
    with pytest.raises(ValueError, match="testbed"):
        suite_named("nonsense")
    with pytest.raises(ValueError, match="poisson"):
        draw(Recipe(arrivals="tidal"), 1)


def test_a_trace_comes_back_as_it_was_written(tmp_path: Path) -> None:
    jobs = draw(Recipe(unlabelled=0.3), 4).jobs
    write_trace(tmp_path / "t.csv", jobs)
    again = read_trace(tmp_path / "t.csv", seed=1)
    for old, new in zip(jobs, again, strict=True):
        for name in ("submitted_at", "model", "epochs", "queue", "maximum", "minimum", "worker_requests"):
            assert getattr(old, name) == getattr(new, name)
    same = [job for job in again if job.model == again[0].model]
    assert len({job.speed(Scale(2, 2)) for job in same}) == 1


GOOD = "0,resnet-50,10,,2,1,2,8,8,default,0"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param(GOOD.replace("10", "ten", 1), "t.csv:2: epochs", id="no number"),
        pytest.param(GOOD.replace("8,8", "0,8"), "max_workers", id="no workers"),
        pytest.param(GOOD.replace("2,1,2", "2x,1,2"), "worker_cpu", id="no quantity"),
        pytest.param("-5" + GOOD[1:], "submit_seconds", id="before time"),
        pytest.param("nan" + GOOD[1:], "submit_seconds", id="never"),
    ],
)
def test_a_bad_trace_says_where_and_what(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",".join(COLUMNS) + "\n" + row + "\n")
    with pytest.raises(TraceError, match=message):
        read_trace(path, 0)


def test_a_trace_needs_all_columns_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("submit_seconds,model\n0,x\n")
    with pytest.raises(TraceError, match="epochs"):
        read_trace(path, 0)
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.csv", 0)


def test_a_batch_changes_the_speed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",".join(COLUMNS) + f"\n{GOOD}\n{GOOD.replace(',,', ',256,')}\n")
    small, large = read_trace(path, 0)
    assert replace(small, id="", speed=large.speed) == replace(large, id="")
    assert small.speed(Scale(4, 4)) != large.speed(Scale(4, 4))
