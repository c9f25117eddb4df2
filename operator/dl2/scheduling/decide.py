"""One pass: from a snapshot to a plan. Pure and deterministic; see the contract in the scheduling rules.

Order of a pass: what must go (suspended, drained, never ready, shrunk by its owner); then the minimum of
every group that can start, in the order of `contest`; then growth towards `count`; then the answers.
"""

from __future__ import annotations

from collections.abc import Iterable

from dl2.scheduling.admission import Admission
from dl2.scheduling.answers import Answers
from dl2.scheduling.cache import Cache
from dl2.scheduling.estimates import Estimates
from dl2.scheduling.explain import Answer
from dl2.scheduling.figures import queue_states
from dl2.scheduling.growth import grow
from dl2.scheduling.items import Item, missing
from dl2.scheduling.plan import Plan, QueueState, Reason
from dl2.scheduling.reserve import Reservations
from dl2.scheduling.room import Room
from dl2.scheduling.settings import Settings
from dl2.scheduling.snapshot import Key, Snapshot, Stop
from dl2.scheduling.state import State
from dl2.scheduling.tree import Vector
from dl2.scheduling.work import Run, Work

_ATTEMPTS = 4  # at a pass after which nobody would evict


def decide(snapshot: Snapshot, settings: Settings | None = None, *, cache: Cache | None = None) -> Plan:
    """The plan for one pass. Never raises for bad objects: they wait as `Misconfigured` and say why.

    `cache`: the same one in successive calls makes a pass cost what has changed, not what there is.
    """
    settings = settings or Settings()
    state = State(snapshot, settings) if cache is None else cache.state(snapshot, settings)
    return plan_of(state, snapshot.now, {}, _ATTEMPTS)


def plan_of(state: State, now: float, wary: dict[Key, Item], attempts: int) -> Plan:
    """The plan of a pass after which nobody would evict for what it lets others grow; of the last attempt, as it is.

    `wary`: who would have, after earlier attempts.
    """
    attempt = Pass(state, now, tuple(wary.values()))
    tempted = {item.key: item for item in attempt.run() if item.key not in wary}
    if not tempted or attempts == 1:
        return attempt.plan()
    attempt.leave()
    return plan_of(state, now, wary | tempted, attempts - 1)


class Pass:
    """`wary`: who waits and shall get no right to evict from what others grow."""

    def __init__(self, state: State, now: float, wary: tuple[Item, ...] = ()) -> None:
        self.state, self.now, self.settings = state, now, state.settings
        self.work = Work(state)
        self.reservations = Reservations(self.work, now)
        self.room = Room(self.work, self.reservations, wary)
        self.admission = Admission(self.work, self.room, self.reservations, now)
        self._growable: dict[tuple[int, Vector], bool] = {}  # by (leaf, quota of a pod)
        self.wakes: list[float] = []

    def run(self) -> list[Item]:
        """Decide all. Returns who would evict in the next pass, by a right that it has from what others grow in this."""
        self.work.begin()
        self._let_go()
        self._place_loose()
        self.admission.run()
        self._grow()
        return self.admission.tempted() if any(map(_has_grown, self.work.runs.values())) else []

    def plan(self) -> Plan:
        plan = self._answer()
        self.leave()
        return plan

    def leave(self) -> None:
        self.reservations.lift()
        self.work.rollback()

    def _restless(self) -> list[Item]:
        """Admitted groups that may have to go, or to be placed; the longest admitted first."""
        return sorted(
            self.state.restless.values(), key=lambda item: (item.group.admitted_at or 0.0, item.key)
        )

    # ---- what must go ------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        for item in self._restless():
            reason = self._reason_to_go(item)
            if reason is not None:
                self.work.evict(item, *reason)
                continue
            for n, full in enumerate(item.shape.full):
                if item.counts[n] > full:
                    self.work.cut(self.work.run(item), n, item.counts[n] - full)

    def _reason_to_go(self, item: Item) -> Answer | None:
        group = item.group
        if group.suspend:
            return Reason.SUSPENDED, "spec.suspend is true"
        if item.leaf.stop is Stop.DRAIN:
            by = next(n.name for n in item.leaf.path if n.queue and n.queue.stop is Stop.DRAIN)
            return Reason.QUEUE_STOPPED, f'queue "{by}" has stop: Drain'
        if group.error:
            return None
        if group.ready_at is not None or group.admitted_at is None:
            return None
        late = missing(group, item.shape, item.counts) if group.pods or group.pods_expected else {}
        if not late:
            return None
        deadline = group.admitted_at + group.ready_timeout
        if self.now < deadline:
            self.wakes.append(deadline)
            return None
        listed = ", ".join(f"{n} {member}" for member, n in late.items())
        return Reason.PODS_READY_TIMEOUT, f"{listed} not ready after {group.ready_timeout:g} s"

    def _place_loose(self) -> None:
        """Find room for admitted pods of which nobody knows where they go, before anything new gets it."""
        if self.state.placer is None:
            return
        for item in self._restless():
            if any(item.unplaced):
                run = self.work.run(item)
                wish = [min(n, has) for n, has in zip(item.unplaced, run.counts, strict=True)]
                if run.evicted is None and not self._place(run, wish):
                    for n, count in enumerate(wish):
                        one = [int(m == n) for m in range(len(wish))]
                        for _ in range(count):
                            self._place(run, one)

    def _place(self, run: Run, counts: list[int]) -> bool:
        placed = self.work.place(run.item, counts, run.spreads, now=True, pinned=True)
        if placed is not None:
            self.work.settle(run, placed)
        return placed is not None

    # ---- who grows ---------------------------------------------------------------------------------------

    def _grow(self) -> None:
        hungry: dict[int, list[Run]] = {}
        for index, line in self.state.lines.items():
            if index >= 0 and line.leaf.stop is Stop.NONE:
                items = [item for item in line.hungry.values() if self._may_grow(item)]
                hungry[index] = [self.work.run(item) for item in items]
        for run in self.work.runs.values():
            if not run.item.admitted and run.item.shape.least != run.item.shape.full:
                hungry[run.item.leaf.index].append(run)
        for runs in hungry.values():
            runs.sort(key=lambda run: run.item.order[1:])
        grow(self.work, {index: runs for index, runs in hungry.items() if runs}, self.room, self.reservations)

    def _may_grow(self, item: Item) -> bool:
        """Is there quota for any one pod that it lacks, or somebody to take it from? Most often not."""
        return any(
            has < member.count and self._could_grow(item, member.quota)
            for n, (has, member) in enumerate(zip(item.counts, item.shape.members, strict=True))
        )

    def _could_grow(self, item: Item, vector: Vector) -> bool:
        key = (item.leaf.index, vector)
        if key not in self._growable:
            with self.state.future.nothing_kept():  # some may grow into what is kept
                room = self.state.future.shortage(item.leaf, vector) is None
            self._growable[key] = room or self.room.could(item, vector, growing=True)
        return self._growable[key]

    # ---- answers -----------------------------------------------------------------------------------------

    def _answer(self) -> Plan:
        runs = self.work.runs
        estimates = Estimates(self.state, runs, self.now)
        answers = Answers(self.state, runs, self.admission.blocked, estimates, self.now, self.settings)
        self.wakes += [
            item.group.requeue_at for item in self.state.delayed.values() if item.group.requeue_at > self.now
        ]
        return Plan(answers, answers.actions(), self._figures(), min(self.wakes, default=None))

    def _figures(self) -> dict[str, QueueState]:
        """Usage as it is after the plan; pending demand: what waiting groups and hungry ones still ask for."""
        pending = {index: list(line.demand) for index, line in self.state.lines.items()}
        counts = {name: list(pair) for name, pair in self.state.counts.items()}
        for line in self.state.lines.values():
            for item in line.hungry.values():
                _add(pending[line.leaf.index], item.still_asks, 1)
        for run in self.work.runs.values():
            item = run.item
            if run.evicted is not None:
                counts[item.group.queue][1] -= 1
                counts[item.group.queue][0] += 1
            elif run.started:
                counts[item.group.queue][0] -= 1
                counts[item.group.queue][1] += 1
            if run.started or item.hungry:
                given = item.shape.quota(run.now)
                before = item.shape.quota(item.counts)
                _add(pending[item.leaf.index], tuple(a - b for a, b in zip(given, before, strict=True)), -1)
        stray: dict[str, list[int]] = {}
        for item in self._strays():
            _add(stray.setdefault(item.group.queue, [0] * len(item.charged)), item.charged, 1)
        return queue_states(self.state.tree, self.state.now.used, pending, counts, stray)

    def _strays(self) -> Iterable[Item]:
        line = self.state.lines.get(self.state.strays.index)
        return line.running.values() if line is not None else ()


def _has_grown(run: Run) -> bool:
    return any(run.grown) or (run.started and tuple(run.counts) != run.item.shape.least)


def _add(total: list[int], vector: Vector, sign: int) -> None:
    for r, amount in enumerate(vector):
        total[r] += amount * sign


__all__ = ["Cache", "decide"]
