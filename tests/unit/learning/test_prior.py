"""The agent's prior: what it learned of speed functions in simulation holds for others of their kinds."""

from __future__ import annotations

import numpy as np
import pytest

from dl2.learning.prior import draw, learn
from dl2.scaling import SpeedSample
from dl2.scaling.agent.checkpoint import CheckpointError
from dl2.scaling.agent.prior import LEARNED, learned, read, save
from dl2.scaling.beliefs import Measured
from dl2.scaling.interface import Scale
from dl2.scaling.lattice import SERVERS, WORKERS
from dl2.scaling.surfaces import Prior, by_hand
from tests.unit.scaling.worlds import job, seen

UNSEEN = range(500_000, 500_060)  # draws that the shipped prior was not fitted to


def misses(prior: Prior, known: int) -> float:
    """Median error of log speeds where `known` of a drawn function's points were measured, over `UNSEEN`."""
    off: list[float] = []
    for n in UNSEEN:
        points, speeds = draw(n)
        chosen = np.random.default_rng(n).choice(len(points), known, replace=False)
        scales = [Scale(WORKERS[p // len(SERVERS)], SERVERS[p % len(SERVERS)]) for p in points]
        samples = tuple(
            SpeedSample(scales[i], float(np.exp(speeds[i])), 60.0 * at) for at, i in enumerate(chosen, 1)
        )
        view = job(
            "a", samples=samples, minimum=min(scales), maximum=Scale(16, max(s.servers for s in scales))
        )
        belief = Measured(prior=prior).beliefs(seen(view, now=9000.0))["a"]
        off += [abs(np.log(belief.at(scale)) - speed) for scale, speed in zip(scales, speeds, strict=True)]
    return float(np.median(off))


@pytest.mark.parametrize("known", [2, 3, 4])
def test_it_knows_more_than_what_was_put_down_by_hand(known: int) -> None:
    assert misses(learned(), known) < 0.9 * misses(by_hand(), known)


def test_the_command_gives_what_is_shipped() -> None:
    """Up to what another machine's sums may change: one point more or less that counts as a stall."""
    mean, covariance = learn()
    assert np.allclose(learned().mean, mean, atol=2e-3)
    assert np.allclose(learned().covariance, Prior.learned(mean, covariance).covariance, atol=2e-3)


def test_it_comes_back_as_it_was(tmp_path) -> None:
    mean, covariance = learn(seed=3, surfaces=20, rounds=2)
    save(tmp_path / "p.safetensors", mean, covariance)
    assert np.array_equal(read(tmp_path / "p.safetensors").mean, mean)
    assert LEARNED.stat().st_size < 10_000


def test_a_file_that_cannot_be_used_says_why(tmp_path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(LEARNED.read_bytes()[:-100])
    other = tmp_path / "other.safetensors"
    save(other, np.zeros(3), np.eye(3))
    for path, message in (
        (tmp_path / "none", "No such file"),
        (broken, "install"),
        (other, "no prior of this version"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read(path)
