"""One scaling round: what the policies answer, and what of it is done. No I/O; meant to run beside the event loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dl2.api import DLJob
from dl2.controller import sizing
from dl2.controller.rollout import Arm, bad_answer
from dl2.scaling.beliefs import Belief, Measured
from dl2.scaling.bounds import remaining
from dl2.scaling.cutter import cut
from dl2.scaling.guardrails import Limits, Restraint, Verdict, grows, guard, within
from dl2.scaling.interface import STOPPED, JobView, Observation, Policy, Scale, SpeedSample
from dl2.scheduling.snapshot import Key, Snapshot


@dataclass(frozen=True, slots=True)
class Question:
    """All that a round looks at. `jobs` are those that a policy may size; `arms` says whose answer each is given."""

    snapshot: Snapshot
    jobs: Mapping[Key, DLJob]
    samples: Mapping[Key, tuple[SpeedSample, ...]]
    restraints: Mapping[str, Restraint]
    arms: Mapping[str, Arm]
    limits: Limits
    interval: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What one policy said, cut to what is possible. `error`: why it cannot be used, then nothing else is told."""

    policy: str
    scales: Mapping[str, Scale] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    broken: bool = False  # it raised, or answered with nonsense: the reason is a defect, not a slow machine


@dataclass(frozen=True, slots=True)
class Round:
    """The outcome. `speeds`: believed epochs a second of each running job at (what it has, what it is given)."""

    verdicts: Mapping[str, Verdict]
    speeds: Mapping[str, tuple[float, float]]
    agreement: float | None  # part of the jobs for which both policies want the same
    predicted_gain: float | None  # of the challenger in remaining time over all jobs, 0.1: 10 % shorter


def observation_of(question: Question) -> Observation:
    seen = sizing.observe(question.snapshot, question.jobs, question.interval)
    samples = {str(key): taken for key, taken in question.samples.items()}
    jobs = (replace(job, samples=samples.get(job.id, job.samples)) for job in seen.jobs)
    return replace(seen, jobs=tuple(jobs))


def ask(policy: Policy, observation: Observation) -> Answer:
    """A policy's answer; one that raises or answers with nonsense costs its own answer, nothing else."""
    started = time.perf_counter()
    try:
        raw = policy.allocate(observation)
    except Exception as exc:  # somebody else's code
        return Answer(policy.name, error=f"{type(exc).__name__}: {exc}"[:500], broken=True)
    seconds = time.perf_counter() - started
    wrong = bad_answer(raw)
    if wrong:
        return Answer(policy.name, seconds=seconds, error=wrong, broken=True)
    return Answer(policy.name, cut(observation, raw).scales, dict(raw), seconds)


def judge(
    question: Question, observation: Observation, answers: Mapping[Arm, Answer], source: Measured
) -> Round:
    """Every job is given its own arm's answer, cut again with the others', and what the guardrails leave of it.

    A job whose arm has no usable answer keeps what it has.
    """
    beliefs = source.beliefs(observation)
    wishes = {}
    for job in observation.jobs:
        answer = answers.get(question.arms.get(job.id, Arm.CHAMPION))
        usable = answer is not None and not answer.error
        wishes[job.id] = answer.scales.get(job.id, STOPPED) if answer and usable else job.current
    asked = cut(observation, wishes).scales
    guarded = guard(observation, asked, beliefs, question.restraints, question.limits)
    verdicts = _granted(question, observation, beliefs, guarded)
    speeds = {
        job.id: (beliefs[job.id].at(job.current), beliefs[job.id].at(verdicts[job.id].given))
        for job in observation.jobs
        if job.id in beliefs and job.current != STOPPED
    }
    return Round(verdicts, speeds, *_compared(observation, answers, beliefs))


def _granted(
    question: Question,
    observation: Observation,
    beliefs: Mapping[str, Belief],
    verdicts: Mapping[str, Verdict],
) -> Mapping[str, Verdict]:
    """`verdicts` without growth that admission would not grant: free room and shares count what others hold by right."""
    running = (job for job in observation.jobs if job.current != STOPPED)
    growing = [job for job in running if grows(job, verdicts[job.id].given)]
    if not growing:
        return verdicts
    wanted = {key: verdicts[str(key)].given for key in question.jobs if str(key) in verdicts}
    granted = {str(key): scale for key, scale in sizing.granted(question.snapshot, wanted).items()}
    cuts = {
        job.id: within(
            job,
            verdicts[job.id],
            granted[job.id],
            beliefs.get(job.id),
            question.restraints.get(job.id, Restraint()),
            question.limits,
        )
        for job in growing
        if job.id in granted
    }
    return {**verdicts, **cuts}


def _compared(
    observation: Observation, answers: Mapping[Arm, Answer], beliefs: Mapping[str, Belief]
) -> tuple[float | None, float | None]:
    """(agreement, predicted gain); None where only one was asked, or one has failed, or there is nothing to compare."""
    old, new = answers.get(Arm.CHAMPION), answers.get(Arm.CHALLENGER)
    jobs = [job for job in observation.jobs if job.id in beliefs]
    if old is None or new is None or old.error or new.error or not jobs:
        return None, None
    same = sum(old.scales.get(job.id, STOPPED) == new.scales.get(job.id, STOPPED) for job in jobs)
    before, after = (sum(_time(job, beliefs[job.id], a.scales) for job in jobs) for a in (old, new))
    return same / len(jobs), 1.0 - after / before if before > 0 else None


def _time(job: JobView, belief: Belief, scales: Mapping[str, Scale]) -> float:
    """Believed seconds to the end at the wanted shape, or at the minimum, which the operator leaves to every job."""
    scale = scales.get(job.id, STOPPED)
    speed = belief.at(Scale(max(1, job.minimum.workers), job.minimum.servers) if scale == STOPPED else scale)
    return remaining(job) / max(speed, 1e-12)
