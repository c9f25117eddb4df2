"""The scaling loop: observe → ask the policies → guardrails → PodGroup counts, at the interval of the ScalingPolicy.

Nothing heavy happens in the event loop: policies are asked and judged in threads, each answer within a time limit. A
target becomes the PodGroup's counts and goes through the same `decide` as everything else; it is followed until the
members have joined, and taken back when they do not. What that says of a challenger is `trial`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from dl2.api import DLJob, conditions, dljob
from dl2.api.conditions import parse_time
from dl2.api.names import JobCondition
from dl2.api.scalingpolicy import ScalingPolicySpec
from dl2.cluster.resources import DL_JOBS, POD_GROUPS, SCALING_POLICIES
from dl2.cluster.store import Entry, Store
from dl2.controller import rollout, rounds
from dl2.controller.decisionlog import DecisionLog, LogError, OutcomeRow, VerdictRow
from dl2.controller.loop import Controller
from dl2.controller.progress import Progress
from dl2.controller.rollout import Arm
from dl2.controller.rounds import Answer, Question
from dl2.controller.shapes import Target, admitted_shape, is_sizable, scaled_by, shape_of
from dl2.controller.threads import LoopTime, in_thread
from dl2.controller.trial import Trial
from dl2.scaling.beliefs import Measured
from dl2.scaling.guardrails import Limits, Restraint
from dl2.scaling.interface import STOPPED, Observation, Policy, Scale, SpeedSample
from dl2.scaling.registry import load_policy
from dl2.scheduling.snapshot import Group, Key
from dl2.web.metrics import Metrics

log = structlog.get_logger(__name__)
T = TypeVar("T")
OWNED = ("observedGeneration", "stage", "decisions", "agreement", "predictedGain", "observed", "lastRollback",
         "conditions")  # fmt: skip
TICK = 1.0  # seconds
DECISION_LIMIT = 30.0  # seconds, and never more than half the interval
RESIZE_LIMIT = 120.0  # seconds until all members of a new shape must have joined
MOST_SAMPLES = 64  # of one job
_AT_ONCE = 25  # jobs looked at before others get the event loop


@dataclass(slots=True)
class Change:
    """A resize under way."""

    before: Scale
    target: Scale
    since: float
    arm: Arm
    policy: str
    round: int | None


class Seat:
    """The policy of one arm, loaded when its name changes; it remembers what it has learned from round to round."""

    def __init__(self) -> None:
        self._name: str | None = None
        self.policy: Policy | None = None
        self.error = ""
        self.thinking = False  # a thread is still at it: it is not asked again before that one has ended

    def take(self, name: str) -> None:
        if name == self._name and self.policy is not None:
            return
        self._name, self.policy, self.error = name, None, ""
        try:
            self.policy = load_policy(name)
        except Exception as exc:  # a broken plug-in or checkpoint must not stop the loop
            why = str(exc).removeprefix(f"{name}: ")  # whoever tells it says the name
            self.error = f"cannot be loaded: {why}"[:500]


class Scaler:
    """`run` ends only by cancellation."""

    def __init__(
        self, store: Store, controller: Controller, metrics: Metrics, decisions: DecisionLog
    ) -> None:
        self._store, self._controller, self._metrics, self._log = store, controller, metrics, decisions
        self._seats = {arm: Seat() for arm in Arm}
        self._source = Measured()
        self._samples: dict[str, list[SpeedSample]] = {}
        self._changes: dict[str, Change] = {}
        self._resized_at: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._running: dict[str, Key] = {}  # jobs that a round has seen, until their end was noted
        self._trial = Trial(controller, metrics, decisions)
        self._next_round = 0.0  # monotonic

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                policies = list(self._store.all(SCALING_POLICIES))
                entry = rollout.in_charge(policies)
                if entry is not None:
                    self._trial.tell_others(entry, policies, time.time())
                    await self._tick(entry)
            except Exception:  # whatever one job did to a round, the next one comes
                log.exception("scaling round failed; trying again")
                self._next_round = time.monotonic() + 10 * TICK

    async def _tick(self, entry: Entry) -> None:
        stage = self._trial.stage(entry)
        await self._note_ends(entry, stage)
        await self._follow()
        if time.monotonic() >= self._next_round:
            self._next_round = time.monotonic() + entry.value.spec.interval_seconds
            timed = LoopTime(self._round(entry, stage))
            await timed
            self._metrics.scaling_loop.observe(timed.seconds)
            self._metrics.scaling_blocks.observe(timed.longest)
            self._metrics.scaling_busy_blocks.observe(timed.longest_busy)

    # -- one round ------------------------------------------------------------------------------------------------
    async def _round(self, entry: Entry, stage: str) -> None:
        spec: ScalingPolicySpec = entry.value.spec
        started, now = time.perf_counter(), time.time()
        arms = rollout.asked(stage, spec.challenger)
        question = await self._question(spec, stage, now)
        observation = await in_thread(lambda: rounds.observation_of(question))
        answers = {arm: await self._ask(arm, spec, observation) for arm in arms}
        judged = await in_thread(lambda: rounds.judge(question, observation, answers, self._source))
        number = await in_thread(
            lambda: self._write(entry, stage, now, question, observation, answers, judged)
        )
        async for key in _in_turns(question.jobs):
            self._apply(key, question, judged, answers, number)
        self._metrics.scaling_rounds.observe(time.perf_counter() - started)
        log.info("scaling round", scaling_policy=entry.name, stage=stage, jobs=len(observation.jobs), round=number,
                 agreement=judged.agreement, predicted_gain=judged.predicted_gain,
                 seconds={a.policy: round(a.seconds, 4) for a in answers.values()})  # fmt: skip
        await self._trial.conclude(entry, stage, answers, now)

    async def _question(self, spec: ScalingPolicySpec, stage: str, now: float) -> Question:
        jobs, samples, restraints, arms = {}, {}, {}, {}
        async for job in _in_turns(list(self._store.all(DL_JOBS))):
            group = self._controller.group(job.key)
            if group is None or not isinstance(job.value, DLJob) or job.deleting or not is_sizable(job.value):
                continue
            progress = self._controller.collector.latest(job.uid)
            jobs[job.key] = _with_progress(job.value, progress)
            samples[job.key] = self._sampled(job, group, progress)
            arms[str(job.key)] = rollout.arm_of(job.uid, group.queue, stage, spec.canary)
            if group.admitted:
                if job.uid not in self._running:
                    self._adopt(job, group, arms[str(job.key)])
                self._running[job.uid] = job.key
            restraints[str(job.key)] = self._restraint(job, group)
        limits = Limits(spec.guardrails.max_scale_step, spec.guardrails.min_gain_percent / 100)
        return Question(
            self._controller.snapshot(now), jobs, samples, restraints, arms, limits, spec.interval_seconds
        )

    def _adopt(self, job: Entry, group: Group, arm: Arm) -> None:
        """Go on following a resize that was under way when the operator ended: its PodGroup still asks for it."""
        has, asked = admitted_shape(group), shape_of(group.members)
        joining = conditions.is_true(job.status.get("conditions") or (), JobCondition.SCALING)
        known = self._store.get(POD_GROUPS, *job.key)
        policy = scaled_by(known.value) if known is not None else ""
        if policy and (has != asked or joining):
            before = has if has != asked else _ready(job)
            self._changes[job.uid] = Change(before, asked, time.time(), arm, policy, None)

    def _sampled(self, job: Entry, group: Group, progress: Progress | None) -> tuple[SpeedSample, ...]:
        """What was measured of a job; its newest report counts if it trains, whole, in the shape that it has."""
        taken, steps = self._samples.setdefault(job.uid, []), job.value.spec.training.steps_per_epoch
        settled = max(self._resized_at.get(job.uid, 0.0), taken[-1].at if taken else 0.0)
        fresh = progress is not None and progress.updated_at > settled and progress.steps_per_second > 0
        if progress is not None and fresh and steps and not self._busy(job, group):
            speed = progress.steps_per_second / steps
            taken.append(SpeedSample(admitted_shape(group), speed, progress.updated_at))
            del taken[:-MOST_SAMPLES]
        return tuple(taken)

    def _restraint(self, job: Entry, group: Group) -> Restraint:
        return Restraint(
            busy=self._busy(job, group),
            resized_at=self._resized_at.get(job.uid),
            cooldown=job.value.spec.scaling.cooldown_seconds,
            pause=self._pauses.get(job.uid, 0.0),
        )

    def _busy(self, job: Entry, group: Group) -> str:
        told = job.status.get("conditions") or ()
        if job.uid in self._changes:
            return "a resize is under way"
        if not conditions.is_true(told, JobCondition.RUNNING):
            return "it does not train at the moment"
        if conditions.is_true(told, JobCondition.SCALING) or any(p.terminating for p in group.pods):
            return "members are joining or leaving"
        return ""

    async def _ask(self, arm: Arm, spec: ScalingPolicySpec, observation: Observation) -> Answer:
        name = rollout.policy_of(spec, arm)
        seat, limit = self._seats[arm], min(DECISION_LIMIT, spec.interval_seconds / 2)
        if seat.thinking:
            return Answer(name, error="it is still at an earlier decision")
        await in_thread(lambda: seat.take(name))  # reading a checkpoint takes a while
        policy = seat.policy
        if policy is None:
            return Answer(name, error=seat.error, broken=True)

        def think() -> Answer:
            try:
                return rounds.ask(policy, observation)
            finally:
                seat.thinking = False

        seat.thinking = True
        try:
            return await asyncio.wait_for(in_thread(think), limit)
        except TimeoutError:
            return Answer(name, seconds=limit, error=f"no decision within {limit:g} s")

    def _write(
        self, entry: Entry, stage: str, now: float, question: Question, observation: Observation,
        answers: dict[Arm, Answer], judged: rounds.Round,
    ) -> int:  # fmt: skip
        rows = [
            VerdictRow(
                job.id, self._uid(job.id), question.arms[job.id].value, _text(job.current),
                _answered(answers.get(Arm.CHAMPION), job.id), _answered(answers.get(Arm.CHALLENGER), job.id),
                _text(verdict.asked), _text(verdict.given), verdict.ruling.value, verdict.message,
                *judged.speeds.get(job.id, (None, None)),
            )
            for job in observation.jobs
            for verdict in (judged.verdicts[job.id],)
        ]  # fmt: skip
        told = {arm.value: {"policy": a.policy, "answer": a.raw, "seconds": a.seconds, "error": a.error}
                for arm, a in answers.items()}  # fmt: skip
        figures = (judged.agreement, judged.predicted_gain)
        return self._log.add_round(now, entry.name, stage, figures, observation, told, rows)

    def _uid(self, job: str) -> str:
        found = self._store.get(DL_JOBS, *job.split("/", 1))
        return found.uid if found else ""

    def _apply(
        self, key: Key, question: Question, judged: rounds.Round, answers: dict[Arm, Answer], number: int
    ) -> None:
        """Make one verdict so: a running job's change is followed, a waiting one just waits in another shape."""
        entry, group = self._store.get(DL_JOBS, *key), self._controller.group(key)
        verdict = judged.verdicts.get(str(key))
        if entry is None or group is None or verdict is None or entry.uid in self._changes:
            return
        self._metrics.scaling_verdicts.labels(verdict.ruling.value).inc()
        arm = question.arms[str(key)]
        answer = answers.get(arm)
        current = admitted_shape(group)
        if (
            answer is None
            or answer.error
            or verdict.given == STOPPED
            or verdict.given == shape_of(group.members)
        ):
            return
        if current != STOPPED:
            self._changes[entry.uid] = Change(current, verdict.given, time.time(), arm, answer.policy, number)
        self._controller.retarget(key, entry.uid, Target(verdict.given, answer.policy))

    # -- what comes of it -------------------------------------------------------------------------------------------
    async def _follow(self) -> None:
        for uid, change in list(self._changes.items()):
            key = self._running.get(uid)
            entry = self._store.get(DL_JOBS, *key) if key else None
            group = self._controller.group(key) if key else None
            if key is None or entry is None or entry.uid != uid or group is None or group.admitted is None:
                del self._changes[uid]  # gone, finished or evicted: there is nothing to confirm
                continue
            kind, message = self._judged(change, entry, group)
            if not kind:
                continue
            del self._changes[uid]
            self._resized_at[uid] = time.time()
            self._metrics.scaling_resizes.labels(kind).inc()
            pause = self._pause(uid, change) if kind == "Resized" else None
            if pause is not None:
                self._pauses[uid] = pause
            if kind != "Resized":
                back = change.before if kind == "ResizeFailed" else admitted_shape(group)
                self._controller.retarget(key, uid, Target(back, change.policy))
                log.warning("resize taken back", job=str(key), reason=kind, message=message)
            row = OutcomeRow(time.time(), change.round, str(key), uid, change.arm.value, change.policy, kind, pause, None,
                             message)  # fmt: skip
            await in_thread(lambda row=row: self._log.add_outcome(row))  # type: ignore[misc]

    def _judged(self, change: Change, entry: Entry, group: Group) -> tuple[str, str]:
        """(kind, message) of a change that has come to its end; ("", "") of one that is under way."""
        ready = _ready(entry)
        shapes = f"{_text(change.before)} to {_text(change.target)}"
        admitted, told = admitted_shape(group), entry.status.get("conditions") or ()
        if admitted == ready == change.target and not conditions.is_true(told, JobCondition.SCALING):
            return "Resized", f"from {shapes}"
        waited = time.time() - change.since
        if waited < RESIZE_LIMIT:
            return "", ""
        if admitted != change.target:
            return "NoRoom", f"from {shapes}: only {_text(admitted)} were admitted within {waited:.0f} s"
        return "ResizeFailed", f"from {shapes}: only {_text(ready)} have joined after {waited:.0f} s"

    def _pause(self, uid: str, change: Change) -> float | None:
        """Seconds that training stood still, as the coordinator measured it; None: it did not tell."""
        progress = self._controller.collector.latest(uid)
        told = progress.resize if progress else None
        if told is None or told.after != tuple(change.target) or told.time < change.since - 5.0:
            return None
        return told.pause_milliseconds / 1000

    async def _note_ends(self, policy: Entry, stage: str) -> None:
        """Completion times, by whose jobs they were."""
        spec: ScalingPolicySpec = policy.value.spec
        for uid, key in list(self._running.items()):
            entry = self._store.get(DL_JOBS, *key)
            if entry is not None and entry.uid == uid and not entry.status.get("completionTime"):
                continue
            del self._running[uid]
            samples = self._samples.pop(uid, [])
            for known in (self._resized_at, self._pauses):
                known.pop(uid, None)
            told = (entry.status.get("conditions") or ()) if entry is not None and entry.uid == uid else ()
            if entry is None or not conditions.is_true(told, JobCondition.SUCCEEDED):
                continue
            seconds = max(0.0, parse_time(entry.status["completionTime"]) - parse_time(entry.created))
            arm = rollout.arm_of(uid, entry.value.queue, stage, spec.canary)
            name, slowdown = rollout.policy_of(spec, arm), _slowdown(entry.value, seconds, samples)
            row = OutcomeRow(
                time.time(), None, str(key), uid, arm.value, name, "Finished", seconds, slowdown, ""
            )
            await in_thread(lambda row=row: self._log.add_outcome(row))  # type: ignore[misc]


async def _in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """`items`; others get the event loop after every few of them."""
    for number, item in enumerate(items):
        if number % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
        yield item


def decision_log(path: Path | None) -> DecisionLog:
    """What cannot be written down is still decided: without a usable file the log is kept in memory."""
    try:
        return DecisionLog(path)
    except LogError as exc:
        log.error("decisions are not written down", error=str(exc))
        return DecisionLog(None)


def _with_progress(job: DLJob, progress: Progress | None) -> DLJob:
    if progress is None:
        return job
    told = dljob.Progress(epoch=progress.epoch, step=progress.step)
    return job.model_copy(update={"status": dljob.DLJobStatus(progress=told)})


def _ready(job: Entry) -> Scale:
    return Scale(*(int((job.status.get(role) or {}).get("ready") or 0) for role in ("workers", "servers")))


def _text(scale: Scale) -> str:
    return f"{scale.workers}x{scale.servers}"


def _answered(answer: Answer | None, job: str) -> str | None:
    return None if answer is None or answer.error else _text(answer.scales.get(job, STOPPED))


def _slowdown(job: DLJob, seconds: float, samples: list[SpeedSample]) -> float | None:
    """Completion time over the time that all its epochs take at the best speed that was measured of it."""
    best, epochs = max((s.epochs_per_second for s in samples), default=0.0), job.spec.training.epochs
    return seconds * best / epochs if best and epochs else None
