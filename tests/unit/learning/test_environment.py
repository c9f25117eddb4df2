"""The gymnasium environment keeps gymnasium's contract, and tells the same story as the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dl2.learning.curriculum import training_case
from dl2.learning.simulator import Simulation
from dl2.learning.suites import Case
from dl2.scaling import load_policy

checker = pytest.importorskip("gymnasium.utils.env_checker")
environment = pytest.importorskip("dl2.learning.environment")


def few(n: int) -> Case:
    case = training_case(n)
    return replace(case, workload=replace(case.workload, jobs=case.workload.jobs[:4]))


def test_keeps_gymnasiums_contract() -> None:
    checker.check_env(environment.ScalingEnv(window=8, cases=few), skip_render_check=True)


@pytest.mark.parametrize("window", [2, 16])
def test_saying_nothing_is_the_envelope_policy(window: int) -> None:
    """Without a cost of resizes the untrained agent and envelope are one; so are the completion times."""
    case = replace(few(5), settings=replace(few(5).settings, resize=0.0, start_up=0.0))
    env = environment.ScalingEnv(window=window, cases=lambda n: case)
    env.reset(options={"case": 5})
    total, over = 0.0, False
    while not over:
        _, reward, over, _, _ = env.step(np.zeros(env.action_space.shape, np.float32))
        total += reward
    simulation, policy = Simulation(case.workload, case.settings, case.seed), load_policy("envelope")
    hours = 0.0
    while not simulation.over:
        seen, before = simulation.observe(), simulation.now
        simulation.step(policy.allocate(seen), seen)
        hours += len(seen.jobs) * (simulation.now - before) / 3600
    assert -total == pytest.approx(hours, rel=0.03)


def test_a_finished_episode_wants_a_reset() -> None:
    with pytest.raises(RuntimeError, match="reset"):
        environment.ScalingEnv(cases=few).step(np.zeros((64, 5), np.float32))
