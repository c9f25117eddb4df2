"""The physics against published facts about training with parameter servers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dl2.learning.families import FAMILIES, TRAINED_ON
from dl2.learning.physics import MODELS, epochs_per_second, true_speed
from dl2.scaling import Scale

LARGEST = Scale(16, 16)


@pytest.mark.parametrize("name", MODELS)
def test_speed_saturates_with_workers(name: str) -> None:
    """Optimus, EuroSys 2018, figure 4: each further worker brings less."""
    model = MODELS[name]
    speeds = [epochs_per_second(model, w, 4) for w in range(1, 17)]
    gains = np.diff(speeds)
    assert gains[0] > 0
    assert gains[-1] < 0.5 * gains[0]


def test_the_best_ratio_of_servers_depends_on_the_model() -> None:
    """Optimus, figure 3: with 20 pods in all, models differ in how many should be servers."""
    best = {
        name: max(range(1, 20), key=lambda p, m=model: epochs_per_second(m, 20 - p, p))  # type: ignore[misc]
        for name, model in MODELS.items()
    }
    assert best["vgg-16"] > best["dssm"]
    assert len(set(best.values())) >= 4


def test_more_of_one_side_alone_can_hurt() -> None:
    slow = replace(MODELS["dssm"], per_server=0.05)
    assert epochs_per_second(slow, 2, 16) < epochs_per_second(slow, 2, 2)
    starved = replace(MODELS["vgg-16"], per_worker=0.1)
    assert epochs_per_second(starved, 16, 16) > epochs_per_second(starved, 4, 4)
    stuck = replace(starved, straggle=0.5, fixed_batch=True)
    assert epochs_per_second(stuck, 16, 1) < epochs_per_second(stuck, 4, 1)


def test_large_models_are_bound_by_the_network() -> None:
    """Doubling the servers helps VGG (528 MB) much, and Inception (91 MB) little."""

    def gain(name: str) -> float:
        return epochs_per_second(MODELS[name], 8, 8) / epochs_per_second(MODELS[name], 8, 4)

    assert gain("vgg-16") > 1.4
    assert gain("inception-v3") < 1.3


def test_asynchronous_workers_do_not_wait() -> None:
    model = replace(MODELS["resnet-50"], straggle=0.2)
    assert epochs_per_second(replace(model, synchronous=False), 8, 8) > epochs_per_second(model, 8, 8)


def test_a_fixed_global_batch_scales_worse() -> None:
    model = MODELS["resnet-50"]
    split = replace(model, fixed_batch=True)
    assert epochs_per_second(model, 1, 1) == epochs_per_second(split, 1, 1)
    assert epochs_per_second(model, 16, 16) > epochs_per_second(split, 16, 16)


def test_a_larger_batch_means_fewer_and_longer_steps() -> None:
    model = MODELS["vgg-16"]
    assert epochs_per_second(model.with_batch(256), 8, 4) > epochs_per_second(model, 8, 4)
    assert model.with_batch(None) == model


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_positive_reproducible_and_not_monotone(family: str) -> None:
    """Measured speeds fall here and there where a pod is added; so do these."""
    first, again = (FAMILIES[family](np.random.default_rng(5), LARGEST) for _ in range(2))
    scales = [Scale(w, s) for w in range(1, 17) for s in range(1, 17)]
    assert all(first(scale) == again(scale) > 0 for scale in scales)
    assert first(Scale(0, 4)) == 0
    assert any(first(Scale(w + 1, s)) < first(Scale(w, s)) for w in range(1, 16) for s in range(1, 17))


def test_one_family_is_kept_back() -> None:
    assert set(FAMILIES) - set(TRAINED_ON) == {"staircase"}


def test_roughness_is_of_the_size_that_was_asked_for() -> None:
    model = replace(MODELS["resnet-50"], roughness=0.1)
    speed = true_speed(model, LARGEST, np.random.default_rng(0))
    off = [
        np.log(speed(Scale(w, s)) / epochs_per_second(model, w, s))
        for w in range(1, 17)
        for s in range(1, 17)
    ]
    assert np.std(off) == pytest.approx(0.1, rel=0.15)
    assert speed.best(Scale(1, 1), LARGEST) == max(
        speed(Scale(w, s)) for w in range(1, 17) for s in range(1, 17)
    )
