"""The learned policy: equivariant, bounded, and never worse off than without its network."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl2.scaling import Scale, SpeedSample, cut, load_policy
from dl2.scaling.agent import SHIPPED, Agent, CheckpointError
from dl2.scaling.agent.checkpoint import read, save
from dl2.scaling.agent.features import CLUSTER, FEATURES
from dl2.scaling.agent.meters import PauseMeter
from dl2.scaling.agent.network import OUTPUTS, SHAPES, forward, initial
from dl2.scaling.beliefs import Blinkers, Measured
from dl2.scaling.lattice import Floats
from tests.unit.scaling.worlds import job, nodes, random_observation, seen


def wild(seed: int, size: float = 1.0) -> dict[str, Floats]:
    """Random weights everywhere, the head included."""
    rng = np.random.default_rng(seed)
    return {name: size * rng.standard_normal(array.shape) for name, array in initial(0).items()}


@given(st.integers(0, 500), st.sampled_from([0.1, 1.0, 100.0]))
@settings(max_examples=25, deadline=None)
def test_any_weights_stay_within_bounds_and_budgets(seed: int, size: float) -> None:
    observation = random_observation(seed)
    answer = Agent(wild(seed, size)).allocate(observation)
    assert answer
    assert not cut(observation, answer).counts.keys() & {"unknown", "bounds", "budget"}


def test_the_network_is_equivariant() -> None:
    rng = np.random.default_rng(0)
    jobs, cluster, order = (
        rng.standard_normal((9, FEATURES)),
        rng.standard_normal(CLUSTER),
        rng.permutation(9),
    )
    outputs = forward(wild(1), jobs, cluster)
    assert outputs.shape == (9, OUTPUTS)
    assert forward(wild(1), jobs[order], cluster) == pytest.approx(outputs[order])


def test_permuted_jobs_get_exactly_the_same_answer() -> None:
    observation = random_observation(3, count=40)
    jobs = list(observation.jobs)
    random.Random(1).shuffle(jobs)
    mixed = replace(observation, jobs=tuple(jobs))
    assert Agent(wild(2)).allocate(mixed) == Agent(wild(2)).allocate(observation)


def test_the_weights_matter() -> None:
    observation = random_observation(4, count=30)
    assert Agent(wild(1)).allocate(observation) != Agent(wild(2)).allocate(observation)


def test_starts_as_the_champion() -> None:
    observation = random_observation(6, count=20)
    agent = Agent(initial(5), prior=False)
    assert agent.allocate(observation) == load_policy("envelope").allocate(observation)


def test_falls_back_to_the_champion_when_it_is_not_finite() -> None:
    weights = initial(5) | {"head2.bias": np.full(OUTPUTS, np.nan)}
    agent, observation = Agent(weights), random_observation(6, count=20)
    assert agent.allocate(observation) == load_policy("envelope").allocate(observation)
    assert agent.fallbacks == 1


@pytest.mark.parametrize("count", [1, 200])
def test_one_checkpoint_serves_any_number_of_jobs(count: int) -> None:
    observation = replace(random_observation(8, count=count), nodes=nodes(2 * count, gpu=2), budgets={})
    answer = load_policy(str(SHIPPED)).allocate(observation)
    assert len(answer) == count


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = wild(7)
    save(tmp_path / "a.safetensors", weights, {"seed": 7})
    found, header = read(tmp_path / "a.safetensors")
    assert header["seed"] == 7
    assert all(np.array_equal(found[name], weights[name].astype(np.float32)) for name in weights)


def test_checkpoints_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save(good, wild(7), {})
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(good.read_bytes()[:-100])
    old = tmp_path / "old.safetensors"
    save(old, wild(7), {"features": -1})
    from safetensors.numpy import save_file

    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3)}, other)
    partial = tmp_path / "part.safetensors"
    save_file({"x": np.zeros(3)}, partial, metadata={"dl2": '{"features": 1}'})
    whole = tmp_path / "whole.safetensors"
    numbers = {name: np.zeros(shape, dtype=np.int32) for name, shape in SHAPES.items()}
    save_file(numbers, whole, metadata={"dl2": '{"features": 1}'})
    for path, message in (
        (tmp_path / "none.safetensors", "no such file"),
        (broken, "damaged"),
        (old, "features version -1"),
        (other, "no dl2 header"),
        (partial, "embed1.weight"),
        (whole, "no floating-point"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_policy(str(path))


def test_the_shipped_checkpoint_is_small_and_says_where_it_comes_from() -> None:
    _, header = read(SHIPPED)
    assert SHIPPED.stat().st_size < 5_000_000
    assert {"plan", "validation"} <= header.keys()


def test_the_pause_of_a_resize_is_measured() -> None:
    """Ten epochs should have been done in an interval and seven were: three tenths of it were lost."""
    meter = PauseMeter()
    for n in range(40):
        scale = Scale(1 + n % 2, 1)
        sample = SpeedSample(scale, 10 / 1200, 1200.0 * n)
        view = job(current=scale, samples=(sample,), epochs_done=7.0 * n)
        meter.take_in(seen(view, now=1200.0 * n))
    assert meter.seconds == pytest.approx(360.0, rel=0.15)


def test_without_resizes_no_pause_is_seen() -> None:
    meter = PauseMeter()
    for n in range(10):
        view = job(current=Scale(1, 1), samples=(SpeedSample(Scale(1, 1), 1.0, 1200.0 * n),), epochs_done=n)
        meter.take_in(seen(view, now=1200.0 * n))
    assert meter.seconds == 0.0


def test_ablations_hide_what_they_say() -> None:
    observation = replace(random_observation(12, count=20), nodes=nodes(60, gpu=2), budgets={})
    weights = wild(3, 0.3)
    bare = replace(observation, jobs=tuple(replace(view, samples=()) for view in observation.jobs))
    nameless = replace(observation, jobs=tuple(replace(view, model=None) for view in observation.jobs))
    beliefs = Blinkers(Measured(), speeds=False).beliefs(observation)
    assert all(
        np.array_equal(beliefs[name].speed, belief.speed) for name, belief in Measured().beliefs(bare).items()
    )
    beliefs = Blinkers(Measured(), labels=False).beliefs(observation)
    assert all(
        np.array_equal(beliefs[name].speed, belief.speed)
        for name, belief in Measured().beliefs(nameless).items()
    )
    whole = Agent(weights).allocate(observation)
    for ablation in ({"exploration": False}, {"labels": False}, {"speeds": False}):
        assert Agent(weights, **ablation).allocate(observation) != whole
