"""One case under one policy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl2.learning.simulator import Simulation, Tally
from dl2.learning.suites import Case
from dl2.scaling.interface import Policy
from dl2.scaling.registry import load_policy

ORACLES = ("optimus-oracle", "envelope-oracle")
LOWER_BOUND = "alone"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one run. Times in seconds, `decision` in milliseconds (mean)."""

    policy: str
    case: str
    mean_jct: float
    p95_jct: float
    makespan: float
    utilisation: float  # of the resource that was used most, over the makespan
    fairness: float  # Jain's index of alone / JCT over jobs, 1: all slowed down alike
    resizes: int
    decision: float
    unfinished: int
    cuts: int
    alone: float  # mean JCT if every job had the cluster for itself: no policy can reach it
    tally: Tally


def split_options(name: str) -> tuple[str, dict[str, Any]]:
    """`envelope:optimism=0` is the policy and its options (more with +); values are numbers, true or false.

    Raises ValueError for a value that is neither.
    """
    base, _, tail = name.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, tail.split("+")):
        key, _, value = part.partition("=")
        try:
            options[key] = (
                {"true": True, "false": False}.get(value.lower()) if value.isalpha() else float(value)
            )
        except ValueError:
            options[key] = None
        if options[key] is None:
            raise ValueError(f'{name}: "{value}" is neither a number nor true nor false')
    return base, options


def policy_for(name: str, simulation: Simulation) -> Policy:
    """A fresh policy, by `name:option=value`; only the yardsticks are handed the true speeds."""
    base, options = split_options(name)
    if base in ORACLES:
        options["speeds"] = simulation.true_speed
    return load_policy(base, **options)


def run(name: str, case: Case) -> Outcome:
    """Simulate `case` to its end under the policy `name`."""
    simulation = Simulation(case.workload, case.settings, case.seed)
    policy = policy_for(name, simulation)
    thinking = 0.0
    while not simulation.over:
        observation = simulation.observe()
        if not simulation.asks:
            simulation.step(simulation.held(observation), observation)
            continue
        begin = time.perf_counter()
        answer = policy.allocate(observation)
        thinking += time.perf_counter() - begin
        simulation.step(simulation.granted(observation, answer), observation)
    return outcome(name, case, simulation, thinking)


def outcome(name: str, case: Case, simulation: Simulation, thinking: float) -> Outcome:
    """Figures of a finished simulation. Jobs that never finished count as long as the run was."""
    tally = simulation.tally
    times = np.array([job.jct for job in tally.finished])
    pace = np.array([job.alone / max(job.jct, 1e-9) for job in tally.finished])
    first = min((job.submitted_at for job in case.workload.jobs), default=0.0)
    makespan = max((job.finished_at for job in tally.finished), default=first) - first
    if tally.unfinished:
        times = np.append(times, np.full(tally.unfinished, simulation.now))
    return Outcome(
        policy=name,
        case=case.name,
        mean_jct=float(times.mean()) if len(times) else 0.0,
        p95_jct=float(np.percentile(times, 95)) if len(times) else 0.0,
        makespan=makespan,
        utilisation=max(tally.used.values(), default=0.0) / makespan if makespan else 0.0,
        fairness=float(pace.sum() ** 2 / (len(pace) * (pace**2).sum())) if len(pace) else 1.0,
        resizes=tally.resizes,
        decision=1000.0 * thinking / max(tally.decisions, 1),
        unfinished=tally.unfinished,
        cuts=sum(tally.cuts.values()),
        alone=float(np.mean([job.alone for job in tally.finished])) if tally.finished else 0.0,
        tally=tally,
    )
