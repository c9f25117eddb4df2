"""What a pass tells about every group. Decisions that change something are made at once, the many that only
wait or are kept when somebody asks: a queue of ten thousand costs nothing in a pass that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from dl2.scheduling.estimates import Estimates
from dl2.scheduling.explain import Answer, Blocked, asking, evicted
from dl2.scheduling.items import Item, Order
from dl2.scheduling.plan import Action, Decision, MemberPlan, Reason
from dl2.scheduling.settings import Settings
from dl2.scheduling.snapshot import Domain, Key
from dl2.scheduling.state import State
from dl2.scheduling.topology import HOSTNAME
from dl2.scheduling.work import Run

_PROMISED = "its room is being freed; it starts when the pods that leave are gone"


class Answers(Sequence[Decision]):
    """All decisions of one pass, ordered by key. Holds copies: the state may go on meanwhile."""

    def __init__(
        self,
        state: State,
        runs: Mapping[Key, Run],
        why: Mapping[tuple[int, int], Blocked],
        estimates: Estimates,
        now: float,
        settings: Settings,
    ) -> None:
        self._fleet, self._runs, self._why, self._now = state.fleet, runs, why, now
        self._resources = state.tree.resources
        self._lines = [[w[:] for w in line.waiting.values()] for line in state.lines.values() if line.waiting]
        self._items = list(state.items.values())
        self._estimates = estimates
        self._backoffs = {
            Reason.PODS_READY_TIMEOUT: settings.backoff,
            Reason.PREEMPTED: settings.backoff_when_preempted,
            Reason.RECLAIMED: settings.backoff_when_preempted,
        }
        self._made: tuple[Decision, ...] | None = None

    # ---- the sequence ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, at: int) -> Decision: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Decision]: ...
    def __getitem__(self, at: int | slice) -> Decision | Sequence[Decision]:
        return self._all()[at]

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return self._all() == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> tuple[Decision, ...]:
        if self._made is None:
            made = list(self._unmoved())
            for line in self._lines:
                made += self._waiting(sorted(entry for waiting in line for entry in waiting))
            made.sort(key=lambda decision: decision.key)
            self._made = tuple(made)
        return self._made

    # ---- what changes ------------------------------------------------------------------------------------

    def actions(self) -> tuple[Decision, ...]:
        found = [self._action(run) for run in self._runs.values()]
        return tuple(sorted((one for one in found if one is not None), key=lambda decision: decision.key))

    def _action(self, run: Run) -> Decision | None:
        item = run.item
        if run.evicted is not None:
            backoff = self._backoffs.get(run.evicted[0])
            requeue_at = self._now + backoff.seconds(item.group.evictions + 1) if backoff else None
            return Decision(item.key, Action.EVICT, *run.evicted, requeue_at=requeue_at)
        if run.started:
            return Decision(item.key, Action.ADMIT, members=self._members(run))
        if item.admitted and tuple(run.now) != item.counts:
            reason, message = run.shrunk or (Reason.NONE, "")
            return Decision(item.key, Action.RESIZE, reason, message, members=self._members(run))
        return None

    # ---- what does not -----------------------------------------------------------------------------------

    def _unmoved(self) -> Iterator[Decision]:
        """Groups that run or may not start."""
        for item in self._items:
            if item.admitted:
                run = self._runs.get(item.key)
                action = self._action(run) if run is not None else None
                yield action or Decision(item.key, Action.KEEP, members=self._members(run or Run.of(item)))
            elif item.blocked is not None and not item.group.finished:
                yield Decision(item.key, Action.WAIT, *item.blocked)

    def _waiting(self, everyone: Sequence[tuple[Order, Item]]) -> Iterator[Decision]:
        started = [n for n, (_, item) in enumerate(everyone) if self._starts(item)]
        last = started[-1] if started else -1
        position = 0
        ahead = self._estimates.ahead()
        told: dict[tuple[int, int], Answer] = {}
        for n, (_, item) in enumerate(everyone):
            if self._starts(item):
                action = self._action(self._runs[item.key])
                assert action is not None
                yield action
                continue
            position += 1
            reason, message = self._reason(item, told)
            start, certain = self._estimates.start(item, ahead)
            yield Decision(
                item.key, Action.WAIT, reason, message, position,
                estimated_start=start, estimate_certain=certain,
                passed_over=n < last and reason is not Reason.BACKING_OFF,
            )  # fmt: skip

    def _starts(self, item: Item) -> bool:
        run = self._runs.get(item.key)
        return run is not None and run.started

    def _reason(self, item: Item, told: dict[tuple[int, int], Answer]) -> Answer:
        """`told`: sentences made already, by leaf and shape."""
        group = item.group
        if group.requeue_at > self._now:
            seconds = round(group.requeue_at - self._now)
            return Reason.BACKING_OFF, f"{evicted(group.evictions)}; tries again in {seconds} s"
        if item.key in self._runs:
            return Reason.WAITING_FOR_PREEMPTION, f"{asking(self._resources, item.needs)}; {_PROMISED}"
        kind = item.leaf.index, item.shape.number
        if kind not in told and kind in self._why:
            told[kind] = self._why[kind].answer()
        if kind in told:
            return told[kind]
        if item.leaf.strict:
            return Reason.WAITING_FOR_QUOTA, f'behind the head of queue "{group.queue}" (StrictFIFO)'
        wanted = asking(self._resources, item.needs)
        return Reason.WAITING_FOR_QUOTA, f"{wanted}; gave way to a queue with a better right to the room"

    # ---- members -----------------------------------------------------------------------------------------

    def _members(self, run: Run) -> dict[str, MemberPlan]:
        domain = self._domain(run)
        return {
            member.name: MemberPlan(run.now[n], self._nodes(run, n), domain)
            for n, member in enumerate(run.item.shape.members)
        }

    def _nodes(self, run: Run, n: int) -> dict[str, int]:
        if self._fleet is None:
            return {}
        spread = dict(run.spreads[n])
        promised = run.counts[n] - run.now[n]  # the last ones; they are not given yet
        for i in run.loose[n][len(run.loose[n]) - promised :]:
            spread[i] -= 1
        return {self._fleet.nodes[i].name: pods for i, pods in sorted(spread.items()) if pods}

    def _domain(self, run: Run) -> Domain | None:
        """What the pods are pinned to: the required domain, or the tightest one they share where preferred."""
        shape, fleet = run.item.shape, self._fleet
        nodes = {i for spread in run.spreads for i in spread}
        if fleet is None or not nodes or not (shape.required or shape.preferred):
            return None
        if len(nodes) == 1 and HOSTNAME in (shape.required, shape.preferred):
            node = fleet.nodes[next(iter(nodes))]
            return Domain(HOSTNAME, node.labels.get(HOSTNAME, node.name))
        scope = fleet.scope(shape.required)
        for depth in [0] if shape.required else reversed(range(len(scope.levels))):
            numbers = {scope.levels[depth].of_node[i] for i in nodes}
            if len(numbers) == 1:
                return scope.domain(depth, numbers.pop())
        return None
