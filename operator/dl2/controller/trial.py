"""The trial of a challenger: after every round its evidence is weighed, and the status of the ScalingPolicy says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from dl2.api import conditions
from dl2.api.conditions import format_time, parse_time
from dl2.api.names import PolicyCondition
from dl2.api.scalingpolicy import ScalingPolicySpec
from dl2.cluster.resources import SCALING_POLICIES
from dl2.cluster.store import Entry
from dl2.controller import rollout
from dl2.controller.decisionlog import DecisionLog, OutcomeRow
from dl2.controller.loop import Controller
from dl2.controller.outcome import Outcome, put_status
from dl2.controller.rollout import Arm, Evidence, Move, Trigger
from dl2.controller.rounds import Answer
from dl2.controller.threads import in_thread
from dl2.web.metrics import Metrics

log = structlog.get_logger(__name__)
OWNED = ("observedGeneration", "stage", "decisions", "agreement", "predictedGain", "observed", "lastRollback",
         "history", "conditions")  # fmt: skip
MOST_MOVES = 20  # that the status tells of
_MOST_JOBS = 200  # whose completion times are compared
_PROMOTED = "Promoted"


class Trial:
    def __init__(self, controller: Controller, metrics: Metrics, decisions: DecisionLog) -> None:
        self._controller, self._metrics, self._log = controller, metrics, decisions
        self._pending: dict[
            str, list[Move]
        ] = {}  # by uid of the ScalingPolicy, until its status tells of them

    def stage(self, entry: Entry) -> str:
        """The stage in force."""
        return rollout.stage_in_force(entry, self._unwritten(entry))

    def _unwritten(self, entry: Entry) -> list[Move]:
        written = entry.status.get("history") or ()
        left = [move for move in self._pending.get(entry.uid, ()) if move.record() not in written]
        self._pending = {entry.uid: left} if left else {}
        return left

    def tell_others(self, entry: Entry, policies: Sequence[Entry], now: float) -> None:
        """Every other ScalingPolicy says that it decides nothing, and who does."""
        message = f'ScalingPolicy "{entry.name}" is older and decides; delete it, or change that one'
        for other in policies:
            if other.value is None or other.uid == entry.uid or other.deleting:
                continue
            status = {key: other.status.get(key) for key in OWNED}
            status["conditions"] = conditions.set_condition(
                other.status.get("conditions") or (), PolicyCondition.READY, False, "NotInCharge", message,
                other.generation, now,
            )  # fmt: skip
            self._put(other, status)

    async def conclude(self, entry: Entry, stage: str, answers: Mapping[Arm, Answer], now: float) -> None:
        """Move the challenger back or on where it has to be, and write the status."""
        spec: ScalingPolicySpec = entry.value.spec
        evidence, figures = await in_thread(lambda: self._evidence(entry, answers, now))
        trigger = rollout.rolls_back(stage, evidence, spec.guardrails)
        status: dict[str, Any] = {key: entry.status.get(key) for key in OWNED} | figures
        status["observedGeneration"] = entry.generation
        for move in self._moves(entry, stage, evidence, trigger, now):
            self._pending.setdefault(entry.uid, []).append(move)
            log.info("stage of the rollout", scaling_policy=entry.name, challenger=spec.challenger,
                     before=move.before, after=move.after, reason=move.reason, message=move.message)  # fmt: skip
        if trigger is not None:
            await self._note_rollback(entry, trigger, now)
        unwritten = self._unwritten(entry)
        rollbacks = [move for move in unwritten if move.reason in tuple(Trigger)]
        if rollbacks:
            last = rollbacks[-1]
            status["lastRollback"] = {"time": last.time, "reason": f"{last.reason}: {last.message}"[:1000]}
        history = [*(entry.status.get("history") or ()), *(move.record() for move in unwritten)]
        status["history"] = history[-MOST_MOVES:] or None
        status["stage"] = self.stage(entry)
        status["conditions"] = _conditions(entry, answers, rollbacks, now)
        self._put(entry, status)

    def _evidence(
        self, entry: Entry, answers: Mapping[Arm, Answer], now: float
    ) -> tuple[Evidence, dict[str, Any]]:
        """What the log knows of the challenger since the last move, and the figures of the status, over the window.

        Reads a file: not for the event loop.
        """
        spec: ScalingPolicySpec = entry.value.spec
        created, challenger = parse_time(entry.created), spec.challenger or ""
        # What a namesake has shown is past.
        window = max(created, now - 60.0 * spec.guardrails.window_minutes)
        history = entry.status.get("history") or ()
        moved = max(window, parse_time(history[-1]["time"]) if history else 0.0)
        agreement, gain, _ = self._log.compared(entry.name, window)
        _, gain_since, rounds = self._log.compared(entry.name, moved)
        old = self._log.times(spec.champion, 0.0, _MOST_JOBS)
        shown, since = (self._log.times(challenger, at, _MOST_JOBS) for at in (window, moved))
        failures = self._log.failures(Arm.CHALLENGER, challenger, moved)
        evidence = Evidence(_fault(answers.get(Arm.CHALLENGER)), failures, old, since, rounds, gain_since)
        return evidence, {
            "decisions": self._log.count_rounds(entry.name, created),
            "agreement": _rounded(agreement),
            "predictedGain": _rounded(gain),
            "observed": {"champion": rollout.observed(old), "challenger": rollout.observed(shown)},
        }

    def _moves(
        self, entry: Entry, stage: str, evidence: Evidence, trigger: tuple[Trigger, str] | None, now: float
    ) -> list[Move]:
        """What is to be told: that somebody has changed the stage, and where it goes from there."""
        moves: list[Move] = []

        def move(before: str, after: str, reason: str, message: str) -> None:
            moves.append(Move(format_time(now), before, after, reason, message, entry.generation))

        shown = entry.status.get("stage")
        anew = entry.status.get("observedGeneration") not in (None, entry.generation)
        if shown and shown != stage and anew and not self._pending.get(entry.uid):
            move(shown, stage, "SpecChanged", "spec.stage was changed")
        if trigger is not None:
            move(stage, "Shadow", trigger[0].value, trigger[1])
            return moves
        failed = any(
            m["reason"] in tuple(Trigger) and m.get("observedGeneration") == entry.generation
            for m in entry.status.get("history") or ()
        )
        why = "" if failed else rollout.promotes(stage, evidence, entry.value.spec)
        if why:
            move(stage, rollout.STAGES[rollout.STAGES.index(stage) + 1], _PROMOTED, why)
        return moves

    async def _note_rollback(self, entry: Entry, trigger: tuple[Trigger, str], now: float) -> None:
        challenger = entry.value.spec.challenger or ""
        self._metrics.scaling_rollbacks.labels(trigger[0].value).inc()
        row = OutcomeRow(
            now, None, "", "", Arm.CHALLENGER.value, challenger, "RolledBack", None, None, trigger[1]
        )
        await in_thread(lambda: self._log.add_outcome(row))
        log.warning("challenger rolled back", scaling_policy=entry.name, challenger=challenger,
                    reason=trigger[0].value, message=trigger[1])  # fmt: skip

    def _put(self, entry: Entry, status: Mapping[str, Any]) -> None:
        outcome = Outcome()
        put_status(outcome, SCALING_POLICIES, entry, status, OWNED)
        self._controller.carry_out(entry.key, outcome, tell=True)


def _fault(answer: Answer | None) -> tuple[Trigger, str] | None:
    if answer is None or not answer.error:
        return None
    kind = Trigger.TOO_SLOW
    if answer.broken:
        kind = Trigger.BAD_ANSWER if answer.seconds else Trigger.FAILED
    return kind, f"{answer.policy}: {answer.error}"


def _conditions(
    entry: Entry, answers: Mapping[Arm, Answer], rollbacks: Sequence[Move], now: float
) -> list[dict[str, Any]]:
    errors = [f"{a.policy}: {a.error}" for a in answers.values() if a.error]
    items = conditions.set_condition(
        entry.status.get("conditions") or (), PolicyCondition.READY, not errors,
        "PolicyFailed" if errors else "Deciding", "; ".join(errors) or "its policies answer", entry.generation, now,
    )  # fmt: skip
    if rollbacks:
        last = rollbacks[-1]
        return conditions.set_condition(
            items, PolicyCondition.ROLLED_BACK, True, last.reason, last.message, entry.generation, now
        )
    before = conditions.get(items, PolicyCondition.ROLLED_BACK)
    if before and before["status"] == "True" and before.get("observedGeneration") != entry.generation:
        return conditions.set_condition(
            items, PolicyCondition.ROLLED_BACK, False, "SpecChanged", "somebody has changed the spec since",
            entry.generation, now,
        )  # fmt: skip
    return items


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
