"""Reinforcement learning in simulation: an actor-critic with clipped steps (PPO).

Schulman et al., "Proximal Policy Optimization Algorithms" (2017), with generalised advantages (Schulman et al.,
2016) and one actor shared by all jobs (Yu et al., "The Surprising Effectiveness of PPO in Cooperative Multi-Agent
Games", 2022): every job's outputs are drawn from a normal around what the network says, and judged by the reward
of all, minus the part of the episode's jobs that are in the cluster. The value head says what is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dl2.learning.actor import Parameters, forward, weights_of
from dl2.learning.curriculum import training_case
from dl2.learning.learner import Learner, Plan
from dl2.learning.simulator import Simulation
from dl2.scaling.agent import network
from dl2.scaling.agent.policy import Memory, act
from dl2.scaling.lattice import Floats


@dataclass(frozen=True, slots=True)
class RLPlan(Plan):
    """`slots`: decisions after which an episode is cut; the value head stands for the rest."""

    episodes: int = 4  # an iteration
    slots: int = 80
    deviation: float = 0.3  # of an output
    epochs: int = 3  # passes over an iteration's decisions
    clip: float = 0.2
    discount: float = 0.99
    trace: float = 0.95
    value_head: bool = True  # false: rewards are compared with their mean alone


class Moment(NamedTuple):
    """One decision: what was seen, what the network said (J, OUTPUTS), what was drawn, and what came of it."""

    jobs: Floats
    cluster: Floats
    said: Floats
    drawn: Floats
    reward: float


def improve(learner: Learner) -> float:
    """One iteration. Returns the mean reward of a decision."""
    plan = learner.plan
    assert isinstance(plan, RLPlan)
    weights, moments, advantages, targets = weights_of(learner.params), [], [], []
    for episode in range(plan.episodes):
        played, rest = _play(weights, plan, learner.iteration, episode)
        values = [_value(learner.params, moment) if plan.value_head else 0.0 for moment in played]
        last = _value(learner.params, rest) if rest is not None and plan.value_head else 0.0
        gained = advantage([moment.reward for moment in played], [*values, last], plan.discount, plan.trace)
        moments += played
        advantages += gained
        targets += [a + value for a, value in zip(gained, values, strict=True)]
    gains = np.array(advantages)
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    rng = np.random.default_rng([plan.seed, learner.iteration, 0x0DE6])
    for _ in range(plan.epochs):
        for batch in np.array_split(rng.permutation(len(moments)), max(1, len(moments) // 32)):
            losses = [_loss(learner.params, moments[i], float(gains[i]), targets[i], plan) for i in batch]
            learner.descend(torch.stack(losses).mean())
    return float(np.mean([moment.reward for moment in moments]))


def advantage(
    rewards: Sequence[float], values: Sequence[float], discount: float, trace: float
) -> list[float]:
    """Generalised advantages; `values` has one more, of the state after the last reward."""
    found, ahead = [], 0.0
    for n in reversed(range(len(rewards))):
        ahead = rewards[n] + discount * values[n + 1] - values[n] + discount * trace * ahead
        found.append(ahead)
    return found[::-1]


def _play(
    weights: network.Weights, plan: RLPlan, iteration: int, episode: int
) -> tuple[list[Moment], Moment | None]:
    """An episode's decisions, and the state in which it was cut (None: it ended)."""
    number = iteration * plan.episodes + episode
    case = training_case((plan.seed * 100_000 + number) % 900_000)
    rng = np.random.default_rng([plan.seed, number, 0xAC7])
    simulation, memory = Simulation(case.workload, case.settings, case.seed), Memory()
    moments: list[Moment] = []
    while not simulation.over:
        sight = memory.look(simulation.observe())
        said = network.forward(weights, sight.features, sight.cluster)
        drawn = said + plan.deviation * rng.standard_normal(said.shape)
        if len(said) and len(moments) == plan.slots:
            return moments, Moment(sight.features, sight.cluster, said, said, 0.0)
        simulation.step(act(sight, drawn), sight.observation)
        reward = -len(sight.observation.jobs) / len(case.workload.jobs)
        if len(said):
            moments.append(Moment(sight.features, sight.cluster, said, drawn, reward))
    return moments, None


def _value(params: Parameters, moment: Moment) -> float:
    with torch.no_grad():
        return float(forward(params, moment.jobs, moment.cluster)[1])


def _loss(params: Parameters, moment: Moment, gain: float, target: float, plan: RLPlan) -> torch.Tensor:
    """Clipped policy loss, each job by itself, and the squared error of the value head."""
    outputs, value = forward(params, moment.jobs, moment.cluster)
    drawn, said = torch.from_numpy(moment.drawn), torch.from_numpy(moment.said)
    off = ((drawn - said) ** 2 - (drawn - outputs) ** 2).sum(dim=1) / (2.0 * plan.deviation**2)
    ratio = torch.exp(off.clamp(max=math.log(10.0)))
    kept = torch.minimum(ratio * gain, ratio.clamp(1.0 - plan.clip, 1.0 + plan.clip) * gain)
    judged = (value - target) ** 2 if plan.value_head else torch.zeros((), dtype=torch.float64)
    return -kept.mean() + 0.5 * judged
