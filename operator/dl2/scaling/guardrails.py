"""What of a scaling policy's answer is done: one verdict for each job. Pure.

A policy may be new, wrong or eager. Whatever it asks for, a running job keeps at least its minimum, changes by no more
than the largest step, not again before its cooldown is over, only where the gain that can be hoped for is worth the pause
that resizing costs it, and grows only inside what its queue may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from dl2.scaling.beliefs import Belief
from dl2.scaling.bounds import bounds, in_order, remaining, use
from dl2.scaling.interface import STOPPED, JobView, Observation, Scale


class Ruling(StrEnum):
    """Why a job is given what it is given."""

    AS_ASKED = "AsAsked"
    BUSY = "Busy"
    COOLDOWN = "Cooldown"
    NEAR_END = "NearEnd"
    SMALL_GAIN = "SmallGain"
    NOT_WORTH_PAUSE = "NotWorthPause"
    BEYOND_SHARE = "BeyondShare"
    NO_ROOM = "NoRoom"
    LARGEST_STEP = "LargestStep"
    MINIMUM = "Minimum"


class Verdict(NamedTuple):
    """`given` is what the job shall have from now on; `message` is for people, empty where it was done as asked."""

    asked: Scale
    given: Scale
    ruling: Ruling
    message: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of all jobs: the largest step of workers or servers, and the least gain in speed (0.03: 3 %)."""

    step: int = 4
    gain: float = 0.03


@dataclass(frozen=True, slots=True)
class Restraint:
    """Of one job. Times in seconds."""

    busy: str = ""  # why it cannot be resized at the moment
    resized_at: float | None = None
    cooldown: float = 60.0
    pause: float = 0.0  # that its last resize cost


_FREE = Restraint()
# Deviations that growth may lie above what is expected of it: many only where nobody has measured.
_HOPE = 1.0


def guard(
    observation: Observation,
    asked: Mapping[str, Scale],
    beliefs: Mapping[str, Belief],
    restraints: Mapping[str, Restraint],
    limits: Limits,
) -> dict[str, Verdict]:
    """A verdict for every job of `observation`, by its id. `asked` is an answer that went through `cutter.cut`."""
    verdicts = {}
    for job in in_order(observation.jobs):
        wish, restraint = asked.get(job.id, STOPPED), restraints.get(job.id, _FREE)
        if job.current == STOPPED:
            verdicts[job.id] = _at_start(job, wish)
        else:
            verdicts[job.id] = _running(job, wish, beliefs.get(job.id), restraint, limits, observation)
    return _inside_shares(observation, verdicts)


def _at_start(job: JobView, wish: Scale) -> Verdict:
    """Nothing is lost by another shape of what waits."""
    least = _at_least_minimum(job, wish)
    return Verdict(wish, least, Ruling.AS_ASKED if least == wish else Ruling.MINIMUM)


def _at_least_minimum(job: JobView, wish: Scale) -> Scale:
    least = bounds(job)
    if least is None:
        return job.current
    return Scale(max(wish.workers, least[0].workers), max(wish.servers, least[0].servers))


def _running(
    job: JobView,
    wish: Scale,
    belief: Belief | None,
    restraint: Restraint,
    limits: Limits,
    observation: Observation,
) -> Verdict:
    target = _at_least_minimum(job, wish)
    ruling = Ruling.AS_ASKED if target == wish else Ruling.MINIMUM
    if target == job.current:
        return Verdict(wish, target, ruling)
    held = _reason_to_wait(job, belief, restraint, observation)
    if held is not None:
        return Verdict(wish, job.current, *held)
    step = Scale(*(_toward(now, then, limits.step) for now, then in zip(job.current, target, strict=True)))
    if step != target:
        ruling = Ruling.LARGEST_STEP
    poor = _reason_against(job, step, belief, restraint, limits)
    if poor is not None:
        return Verdict(wish, job.current, *poor)
    return Verdict(wish, step, ruling, f"at most {limits.step} at a time" if step != target else "")


def _toward(now: int, then: int, step: int) -> int:
    return now + max(-step, min(step, then - now))


def _reason_to_wait(
    job: JobView, belief: Belief | None, restraint: Restraint, observation: Observation
) -> tuple[Ruling, str] | None:
    if restraint.busy:
        return Ruling.BUSY, restraint.busy
    if restraint.resized_at is not None:
        left = restraint.resized_at + restraint.cooldown - observation.now
        if left > 0:
            return Ruling.COOLDOWN, f"resized a short time ago: {left:.0f} s of its cooldown are left"
    speed = belief.at(job.current) if belief is not None and job.samples else 0.0
    if job.epochs_total and speed > 0:
        left = remaining(job) / speed
        if left < observation.interval:
            return Ruling.NEAR_END, f"it ends in about {left:.0f} s, before the next decision"
    return None


def _reason_against(
    job: JobView, step: Scale, belief: Belief | None, restraint: Restraint, limits: Limits
) -> tuple[Ruling, str] | None:
    """Growing must be worth it. Whoever shrinks does so for others.

    What nobody has measured gets the benefit of the doubt: else a mistaken belief would never be put right.
    """
    if not grows(job, step) or belief is None:
        return None
    before, after = belief.at(job.current), belief.at(step, deviations=_HOPE)
    gain = after / before - 1.0 if before > 0 else 1.0
    if gain < limits.gain:
        return Ruling.SMALL_GAIN, f"promises {gain:+.1%} of speed at best, less than {limits.gain:.0%}"
    if before > 0 and restraint.pause > 0:
        saved = remaining(job) * (1.0 / before - 1.0 / after)
        if saved <= restraint.pause:
            return (
                Ruling.NOT_WORTH_PAUSE,
                f"saves {saved:.1f} s at best and costs a pause of {restraint.pause:.1f} s",
            )
    return None


def grows(job: JobView, to: Scale) -> bool:
    return to.workers > job.current.workers or to.servers > job.current.servers


def within(
    job: JobView,
    verdict: Verdict,
    granted: Scale,
    belief: Belief | None,
    restraint: Restraint,
    limits: Limits,
) -> Verdict:
    """`verdict` on a running job where admission would grant it no more than `granted`.

    It grows as far as that, if that is worth it, or not at all. What it gives back it gives back.
    """
    kept = _kept(job, verdict)
    room = Scale(
        *(max(has, min(want, most)) for has, want, most in zip(kept, verdict.given, granted, strict=True))
    )
    if room == verdict.given:
        return verdict
    if room != kept and _reason_against(job, room, belief, restraint, limits) is not None:
        room = job.current
    message = f"as things are {granted.workers}x{granted.servers} would be admitted"
    return Verdict(verdict.asked, room, Ruling.NO_ROOM, message)


def _inside_shares(observation: Observation, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Growth that no longer fits beside what the others keep after all is not done, in the order of jobs."""
    left = {queue: dict(budget) for queue, budget in observation.budgets.items()}
    jobs = in_order(observation.jobs)
    for job in jobs:
        _charge(left.get(job.queue, {}), job, _kept(job, verdicts[job.id]), force=True)
    found = {}
    for job in jobs:
        verdict = verdicts[job.id]
        kept = _kept(job, verdict)
        more = Scale(verdict.given.workers - kept.workers, verdict.given.servers - kept.servers)
        fits = _charge(left.get(job.queue, {}), job, more)
        if not fits and job.current != STOPPED:
            verdict = Verdict(
                verdict.asked, job.current, Ruling.BEYOND_SHARE, "its queue has no more to give"
            )
        found[job.id] = verdict
    return found


def _kept(job: JobView, verdict: Verdict) -> Scale:
    """The part of what a job has that it keeps."""
    return Scale(*map(min, job.current, verdict.given))


def _charge(left: dict[str, int], job: JobView, scale: Scale, force: bool = False) -> bool:
    amounts = {name: amount for name, amount in use(job, scale).items() if name in left}
    if not force and any(amount > max(0, left[name]) for name, amount in amounts.items()):
        return False
    for name, amount in amounts.items():
        left[name] -= amount
    return True
