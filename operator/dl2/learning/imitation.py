"""Imitation: the network learns which step along the hulls a teacher would take next.

A decision is a sequence of masked steps, each to the next whole shape on some job's hull (`dl2.scaling.envelope`).
The pupil's steps come from what it believes; the teacher (`envelope-oracle`, with true speeds, or whoever decided
in a decision log) says how large each job should be. A step is right while the job is not larger than that. The
logit of a step is the log of its slope, which the network bends by weight, length and concavity; the loss is the
cross-entropy of the right steps among all that could be taken (behaviour cloning; Pomerleau, 1991), in the states
that the pupil itself visits (DAgger; Ross et al., 2011). Optimism and inertia are not learned here: a teacher that
knows all explores nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import torch

from dl2.learning.actor import Parameters, forward, weights_of
from dl2.learning.curriculum import training_case
from dl2.learning.learner import Learner, Plan
from dl2.learning.logged import LessonError, observation_from
from dl2.learning.run import policy_for
from dl2.learning.simulator import Simulation
from dl2.scaling.agent import network
from dl2.scaling.agent.policy import Memory, Sight, act
from dl2.scaling.envelope import CONCAVITY, LENGTH, hulls, value_of
from dl2.scaling.interface import STOPPED, Observation, Scale
from dl2.scaling.lattice import Floats, Ints

Masks = npt.NDArray[np.bool_]

_SHARPNESS = 3.0  # a step twice as steep is so many doublings more likely
_EVERY = 4  # decisions of an episode: those in between say the same
_MOST_STEPS = 32  # of one decision


@dataclass(frozen=True, slots=True)
class ImitationPlan(Plan):
    """`teacher`: a policy's name; "log": what the champion answered in a decision log."""

    teacher: str = "envelope-oracle"
    episodes: int = 2  # an iteration


class Lesson(NamedTuple):
    """One decision: features, and steps along the hulls (S,) with the job that each is of.

    `served`, `before`: saturated pace at the step's shape and at the one before, `shortness`: log of 1 / best pace
    (J,), `cost`: log of what the step costs. `open_`, `right` (N, S): which steps could be taken, and were right.
    """

    jobs: Floats
    cluster: Floats
    of: Ints
    served: Floats
    before: Floats
    cost: Floats
    shortness: Floats
    open_: Masks
    right: Masks


def improve(learner: Learner) -> float:
    """One iteration on simulated episodes. Returns the mean loss before it."""
    plan = learner.plan
    assert isinstance(plan, ImitationPlan)
    lessons = [
        lesson
        for n in range(plan.episodes)
        for lesson in _episode(weights_of(learner.params), plan, learner.iteration * plan.episodes + n)
    ]
    return study(learner, lessons)


def study(learner: Learner, lessons: list[Lesson]) -> float:
    """One pass over the lessons, in an order drawn from the seed. Returns the mean loss on the way; nan without any."""
    if not lessons:
        return float("nan")
    rng = np.random.default_rng([learner.plan.seed, learner.iteration, 0x1E55])
    seen = []
    for batch in np.array_split(rng.permutation(len(lessons)), max(1, len(lessons) // 8)):
        loss = torch.stack([loss_of(learner.params, lessons[i]) for i in batch]).mean()
        learner.descend(loss)
        seen.append(float(loss.detach()))
    return float(np.mean(seen))


def loss_of(params: Parameters, lesson: Lesson) -> torch.Tensor:
    """Cross-entropy of right steps among those that could be taken."""
    bent = torch.tanh(forward(params, lesson.jobs, lesson.cluster)[0])
    of = torch.from_numpy(lesson.of)
    concavity = (CONCAVITY * torch.exp(0.7 * bent[:, 2])).clamp(max=1.0)[of]
    served, before = (torch.from_numpy(array) for array in (lesson.served, lesson.before))
    rise = served**concavity - torch.where(before > 0, before.clamp(min=1e-12) ** concavity, 0.0)
    weight = 2.0 * bent[:, 0] + (LENGTH + 0.5 * bent[:, 1]) * torch.from_numpy(lesson.shortness)
    steep = torch.log(rise.clamp(min=1e-9)) + weight[of] - torch.from_numpy(lesson.cost)
    logits = _SHARPNESS * steep.expand(len(lesson.open_), -1)
    closed = torch.full_like(logits, -torch.inf)
    free = torch.logsumexp(torch.where(torch.from_numpy(lesson.open_), logits, closed), dim=1)
    right = torch.logsumexp(torch.where(torch.from_numpy(lesson.right), logits, closed), dim=1)
    return (free - right).mean()


def lesson_from(sight: Sight, answer: Mapping[str, Scale]) -> Lesson | None:
    """What an answer teaches in the situation of `sight`; None where no step is both right and disputed."""
    table, interval = sight.table, sight.observation.interval
    if not table.jobs:
        return None
    served = value_of(table, table.speed, interval, length=0.0, concavity=1.0)
    prices = np.array(sight.room.prices())
    pods = np.array([sight.room.vectors(job) for job in table.jobs], dtype=float) @ prices + 1e-12
    cost = np.where(table.workers > 0, table.workers * pods[:, :1] + table.servers * pods[:, 1:], np.inf)
    shapes, _ = hulls(np.sqrt(served), cost)
    asked = [answer.get(job.id, STOPPED) for job in table.jobs]
    size = [w * mine[0] + s * mine[1] for (w, s), mine in zip(asked, pods, strict=True)]
    steps = [(i, at, shape) for i, line in enumerate(shapes) for at, shape in enumerate(line)]
    of, at, shape = (np.array(column, dtype=np.int64) for column in zip(*steps, strict=True))
    first = at == 0
    earlier = np.where(first, 0, np.roll(shape, 1))
    behind = np.where(first, 0.0, cost[of, earlier])
    right = cost[of, shape] <= np.array(size)[of] * (1.0 + 1e-6)
    open_, good = _walk(of, at, right)
    if not len(open_):
        return None
    return Lesson(
        sight.features, sight.cluster, of, served[of, shape], np.where(first, 0.0, served[of, earlier]),
        np.log(cost[of, shape] - behind), -np.log(np.maximum(_pace(sight), 1e-12)), open_, good,
    )  # fmt: skip


def _pace(sight: Sight) -> Floats:
    """(J,): part of the remaining work done in an interval at the fastest shape."""
    return np.asarray(sight.table.speed.max(axis=1) * sight.observation.interval / sight.table.left)


def _walk(of: Ints, at: Ints, right: Masks) -> tuple[Masks, Masks]:
    """The situations (N, S) on the way up: each right step in turn, all jobs one step further every round."""
    open_, good = [], []
    for level in range(int(at.max()) + 1):
        taken = np.zeros(int(of.max()) + 1, dtype=np.int64)  # steps each job has at this level
        np.maximum.at(taken, of[right], np.minimum(at[right] + 1, level))
        mask = at == taken[of]
        if (mask & right).any() and (mask & ~right).any():
            open_.append(mask)
            good.append(mask & right)
    chosen = slice(None, None, max(1, len(open_) // _MOST_STEPS))
    return np.array(open_[chosen]), np.array(good[chosen])


def _episode(weights: network.Weights, plan: ImitationPlan, number: int) -> Iterator[Lesson]:
    case = training_case((plan.seed * 100_000 + number) % 900_000)
    simulation, memory = Simulation(case.workload, case.settings, case.seed), Memory()
    teacher, decisions = policy_for(plan.teacher, simulation), 0
    while not simulation.over:
        sight = memory.look(simulation.observe())
        if decisions % _EVERY == 0:
            lesson = lesson_from(sight, teacher.allocate(sight.observation))
            if lesson is not None:
                yield lesson
        decisions += 1
        outputs = network.forward(weights, sight.features, sight.cluster)
        simulation.step(act(sight, outputs), sight.observation)


def lessons_from_log(path: Path) -> list[Lesson]:
    """What the champion's answers teach, from the JSON lines of `dl2 log export`. Raises LessonError."""
    try:
        records = [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
        rounds = [_round(record) for record in records if record["record"] == "round"]
    except OSError as exc:
        raise LessonError(f"{path}: {exc.strerror}") from None
    except (ValueError, KeyError, TypeError) as exc:
        raise LessonError(
            f"{path}: no export of a decision log ({exc!r}); make one with `dl2 log export`"
        ) from None
    memory, lessons = Memory(), []
    for observation, answer in rounds:
        lesson = lesson_from(memory.look(observation), answer)
        if lesson is not None:
            lessons.append(lesson)
    if not lessons:
        raise LessonError(f"{path}: holds no round in which the champion had to choose")
    return lessons


def _round(record: Mapping[str, Any]) -> tuple[Observation, dict[str, Scale]]:
    champion = record["answers"].get("champion") or {}
    answer = {name: Scale(*scale) for name, scale in (champion.get("answer") or {}).items()}
    return observation_from(record["observation"]), answer
