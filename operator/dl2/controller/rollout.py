"""The staged rollout of a challenger: which stage is in force, who decides for which job, and what rolls it back. Pure.

Observe: the champion decides, and everything is logged. Shadow: the challenger is asked too, on paper. Canary: it
decides for some jobs. Active: it decides for all, and the champion on paper. The stage in force is that of the spec,
until something rolls the challenger back to Shadow or, with `promotion: Automatic`, evidence moves it on; a change of
the spec starts anew.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dl2.api.scalingpolicy import Canary, Guardrails, ScalingPolicySpec
from dl2.cluster.store import Entry

STAGES = ("Observe", "Shadow", "Canary", "Active")
LEAST_ROUNDS = 10  # with both answers, before a predicted gain counts
LEAST_JOBS = 5  # finished ones on either side, before completion times are compared
_TRIALS = 100


class Arm(StrEnum):
    """Whose answer a job is given."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"


class Trigger(StrEnum):
    """What rolls a challenger back."""

    BAD_ANSWER = "BadAnswer"
    FAILED = "PolicyFailed"
    TOO_SLOW = "DecisionTooSlow"
    SCALING_FAILURES = "ScalingFailures"
    JCT_REGRESSION = "JctRegression"


@dataclass(frozen=True, slots=True)
class Times:
    """Completion times (seconds) of finished jobs, and how many times longer each took than it would have alone."""

    completion: Sequence[float] = ()
    slowdown: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a challenger. Completion times and failures of its time in force; `rounds` and `gain` (mean,
    0.1: remaining times 10 % shorter) of those since the last move in which both have answered; `fault`: why its answer
    of this round cannot be used."""

    fault: tuple[Trigger, str] | None = None
    failures: int = 0
    champion: Times = Times()
    challenger: Times = Times()
    rounds: int = 0
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One step of the rollout, as `status.history` tells it."""

    time: str
    before: str
    after: str
    reason: str  # a Trigger, Promoted or SpecChanged
    message: str
    generation: int

    def record(self) -> dict[str, Any]:
        return {
            "time": self.time, "from": self.before, "to": self.after, "reason": self.reason,
            "message": self.message[:1000], "observedGeneration": self.generation,
        }  # fmt: skip


def in_charge(policies: Sequence[Entry]) -> Entry | None:
    """One ScalingPolicy decides: the oldest, of equally old ones the first by name."""
    usable = [entry for entry in policies if entry.value is not None and not entry.deleting]
    return min(usable, key=lambda entry: (entry.created, entry.name), default=None)


def stage_in_force(entry: Entry, pending: Sequence[Move] = ()) -> str:
    """`pending`: moves that the status does not tell of yet."""
    moves = [*(entry.status.get("history") or ()), *(move.record() for move in pending)]
    since = [move for move in moves if move.get("observedGeneration") == entry.generation]
    return str(since[-1]["to"]) if since else str(entry.value.spec.stage)


def decides(stage: str) -> bool:
    """Has the challenger power over any job?"""
    return stage in ("Canary", "Active")


def asked(stage: str, challenger: str | None) -> tuple[Arm, ...]:
    """Who is asked in a stage."""
    return (Arm.CHAMPION,) if stage == "Observe" or challenger is None else (Arm.CHAMPION, Arm.CHALLENGER)


def policy_of(spec: ScalingPolicySpec, arm: Arm) -> str:
    return spec.champion if arm is Arm.CHAMPION else str(spec.challenger)


def arm_of(uid: str, queue: str, stage: str, canary: Canary) -> Arm:
    """Who decides for a job: drawn once for each job, by its uid, so that a restart changes nothing."""
    if stage == "Active":
        return Arm.CHALLENGER
    if stage != "Canary":
        return Arm.CHAMPION
    if canary.queues:
        return Arm.CHALLENGER if queue in canary.queues else Arm.CHAMPION
    draw = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:4], "big") % _TRIALS
    return Arm.CHALLENGER if draw < canary.percent else Arm.CHAMPION


def bad_answer(answer: Any) -> str:
    """What is wrong with an answer, naming the first job by id; empty: every number is whole, finite and not below 0.

    Shapes that are merely too large are cut, as those of every policy.
    """
    if not isinstance(answer, Mapping):
        return f"it answers with {type(answer).__name__} instead of a mapping"
    for job in sorted(answer, key=str):
        try:
            workers, servers = answer[job]
            whole = all(math.isfinite(n) and n == int(n) and n >= 0 for n in (workers, servers))
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            return f"{job}: {answer[job]!r:.80} is no pair of whole numbers of 0 or more"
    return ""


def rolls_back(stage: str, evidence: Evidence, guardrails: Guardrails) -> tuple[Trigger, str] | None:
    """Why the challenger must not decide any longer. On paper it may be as wrong as it likes."""
    if not decides(stage):
        return None
    if evidence.fault:
        return evidence.fault
    failed = too_many_failures(evidence.failures, guardrails)
    if failed:
        return Trigger.SCALING_FAILURES, failed
    worse = regression(evidence.champion, evidence.challenger, guardrails)
    return (Trigger.JCT_REGRESSION, worse) if worse else None


def promotes(stage: str, evidence: Evidence, spec: ScalingPolicySpec) -> str:
    """Why the challenger may go one stage on by itself; empty: the evidence does not suffice.

    To Canary: it promises `minGainPercent` over LEAST_ROUNDS rounds. To Active: the 95 % interval of the difference of
    completion times lies below 0. Nobody becomes champion by itself.
    """
    if spec.promotion != "Automatic" or spec.challenger is None or evidence.fault:
        return ""
    if stage == "Observe":
        return f"{spec.challenger} is named as challenger; on paper it can do no harm"
    least = spec.guardrails.min_gain_percent / 100
    if stage == "Shadow" and evidence.rounds >= LEAST_ROUNDS and (evidence.gain or 0.0) >= max(least, 1e-9):
        return f"predicted gain {evidence.gain:.1%} over {evidence.rounds} rounds (asked for {least:.0%})"
    return improvement(evidence.champion, evidence.challenger) if stage == "Canary" else ""


def improvement(champion: Times, challenger: Times) -> str:
    """Whether jobs surely take less long: the 95 % interval of the difference lies below 0."""
    old, new = champion.completion, challenger.completion
    if min(len(old), len(new)) < LEAST_JOBS:
        return ""
    difference, margin = _difference(old, new)
    if difference + margin >= 0:
        return ""
    return f"jobs take {mean(new):.0f} s against {mean(old):.0f} s, {len(new)} and {len(old)} jobs"


def too_many_failures(failures: int, guardrails: Guardrails) -> str:
    if failures < guardrails.max_scaling_failures:
        return ""
    return f"{failures} resizes failed within {guardrails.window_minutes} min (limit {guardrails.max_scaling_failures})"


def regression(champion: Times, challenger: Times, guardrails: Guardrails) -> str:
    """Whether jobs surely take longer than the limit allows: the 95 % interval of the difference lies beyond it."""
    old, new = champion.completion, challenger.completion
    if min(len(old), len(new)) < LEAST_JOBS:
        return ""
    difference, margin = _difference(old, new)
    least = (difference - margin) / mean(old) if mean(old) > 0 else 0.0
    if least <= guardrails.max_jct_regression_percent / 100:
        return ""
    return (
        f"jobs take {difference / mean(old):+.0%} (surely {least:+.0%}) longer than under the champion: "
        f"{mean(new):.0f} s against {mean(old):.0f} s, {len(new)} and {len(old)} jobs "
        f"(limit {guardrails.max_jct_regression_percent} %)"
    )


def observed(times: Times) -> dict[str, Any]:
    """The figures of one arm as the status shows them, the mean with its 95 % interval."""
    told: dict[str, Any] = {"jobs": len(times.completion)}
    if times.completion:
        centre = mean(times.completion)
        told["meanJctSeconds"] = round(centre, 1)
        if len(times.completion) > 1:
            margin = 1.96 * math.sqrt(_error(times.completion))
            told["lowJctSeconds"] = round(max(0.0, centre - margin), 1)
            told["highJctSeconds"] = round(centre + margin, 1)
    if times.slowdown:
        told["slowdown"] = round(mean(times.slowdown), 2)
    return told


def _difference(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """Of the means, and half of its 95 % interval (Welch, normal)."""
    return mean(new) - mean(old), 1.96 * math.sqrt(_error(new) + _error(old))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Variance of the mean."""
    centre = mean(values)
    return sum((v - centre) ** 2 for v in values) / max(1, len(values) - 1) / len(values)
