"""How good weights are: completion times on the validation seeds, by which every kind of training chooses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dl2.learning.simulator import Simulation
from dl2.learning.suites import Case, Split, suite_named
from dl2.scaling.agent.network import Weights
from dl2.scaling.agent.policy import Agent

VALIDATION_SUITES = ("contended", "room", "noise", "unlabelled", "slotted")


def log_jct(weights: Weights, case: Case) -> float:
    """Log of the mean completion time of `case` under the agent; jobs that never end count as long as the run."""
    simulation = Simulation(case.workload, case.settings, case.seed)
    agent = Agent(weights)
    while not simulation.over:
        observation = simulation.observe()
        simulation.step(agent.allocate(observation), observation)
    times = [job.jct for job in simulation.tally.finished]
    times += [simulation.now] * simulation.tally.unfinished
    return float(np.log(np.mean(times)))


def validation_cases(each: int) -> list[Case]:
    """So many validation seeds of each suite."""
    return [suite_named(name).case(n, Split.VALIDATION) for name in VALIDATION_SUITES for n in range(each)]


def validate(
    weights: Weights, cases: Sequence[Case], reference: Sequence[float] | None = None
) -> list[float]:
    """Log of the completion times of each case, less those of `reference`."""
    found = [log_jct(weights, case) for case in cases]
    return found if reference is None else [a - b for a, b in zip(found, reference, strict=True)]
