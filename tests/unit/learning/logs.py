"""Decision logs as an operator would have written them, of a small simulated cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dl2.controller.decisionlog import DecisionLog, OutcomeRow, packed, unpacked
from dl2.learning.logged import observation_from
from dl2.learning.run import policy_for
from dl2.learning.simulator import Clock, Settings, Simulation
from dl2.learning.workload import Recipe, draw
from dl2.scaling.interface import Observation

RECIPE = Recipe(jobs=12, nodes=4, families=("smooth",), labels=3, minutes=200.0)
WORKLOAD = draw(RECIPE, 7)


def seen(policy: str = "envelope") -> Iterator[Observation]:
    """What an operator would have written while `WORKLOAD` ran, through the log's own format."""
    simulation = Simulation(WORKLOAD, Settings(clock=Clock.OPERATOR, noise=0.01), 7)
    decider = policy_for(policy, simulation)
    while not simulation.over:
        observation = simulation.observe()
        yield observation_from(unpacked(packed(observation)))
        simulation.step(decider.allocate(observation), observation)


def written(path: Path) -> DecisionLog:
    """A decision log of the twelve jobs, all ended, still open for writing."""
    log = DecisionLog(path)
    for observation in seen():
        log.add_round(observation.now, "training", "Observe", (None, None), observation, {}, [])
    for n in range(12):
        row = OutcomeRow(n, None, f"ns/j{n}", f"u{n}", "champion", "drf", "Finished", 60.0, 1.0, "")
        log.add_outcome(row)
    return log
