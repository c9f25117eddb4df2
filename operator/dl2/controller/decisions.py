"""What has been decided about every group: what changes is read from every plan, why the others wait now and then."""

from __future__ import annotations

import time

import structlog

from dl2.controller.world import World
from dl2.scheduling.decide import Cache, decide
from dl2.scheduling.plan import Action, Decision, MemberPlan, Plan
from dl2.scheduling.snapshot import Group, Key
from dl2.web.metrics import Metrics

log = structlog.get_logger(__name__)
_ESTIMATES_EVERY = 5.0  # seconds between two passes that only move estimates
_READING_SHARE = 0.05  # of the time may go into reading why groups wait


class Decisions:
    """Calls `decide` when anything speaks for it, and keeps its answers."""

    def __init__(self, world: World, metrics: Metrics, waits_every: float) -> None:
        self._world, self._metrics, self._waits_every = world, metrics, waits_every
        self._cache = Cache()
        self._decided_at = self._read_again_at = 0.0
        self._unread = False  # the reasons to wait are from an earlier plan
        self._actions: dict[Key, Decision] = {}  # of the present plan
        self._waits: dict[Key, Decision] = {}
        self.plan = Plan()

    def of(self, key: Key) -> Decision | None:
        """What to do about a group now; None: nothing is known yet, or it takes no part."""
        action = self._actions.get(key)
        if action is not None:
            return action
        group = self._world.group(key)
        if group is None or group.finished:
            return None
        return _keep(group) if group.admitted is not None else self._waits.get(key)

    def acts_on(self, key: Key) -> bool:
        """Whether the present plan admits, resizes or evicts this group."""
        return key in self._actions

    def renew(self, now: float) -> set[Key]:
        """Decide anew where needed. Returns the groups that are decided differently than before."""
        world = self._world
        due = self.plan.wake_at is not None and self.plan.wake_at <= now
        stale = world.small_news and now - self._decided_at >= _ESTIMATES_EVERY
        changed: set[Key] = set()
        if world.news or due or stale:
            started = time.perf_counter()
            self.plan, self._decided_at = decide(world.snapshot(now), cache=self._cache), now
            self._metrics.decide.observe(time.perf_counter() - started)
            world.news = world.small_news = False
            changed, self._unread = self._note_actions(), True
        return changed

    def retold(self, now: float) -> set[Key]:
        """Read, now and then, why groups wait and where in their queue: returns those of which it has changed."""
        if not self._unread or now < self._read_again_at:
            return set()
        started = time.perf_counter()
        waits = {d.key: d for d in self.plan.decisions if d.action is Action.WAIT}
        changed = {key for key, decision in waits.items() if self._waits.get(key) != decision}
        for key in changed:
            before = self._waits.get(key)
            if before is None or before.reason != waits[key].reason:
                self._log(waits[key])
        self._waits, self._unread = waits, False
        cost = time.perf_counter() - started
        self._read_again_at = now + max(self._waits_every, cost / _READING_SHARE)
        return changed

    def wake_at(self) -> float | None:
        """When time alone makes it worth to look again (seconds since the epoch)."""
        times = [self.plan.wake_at]
        if self._unread:
            times.append(self._read_again_at)
        if self._world.small_news:
            times.append(self._decided_at + _ESTIMATES_EVERY)
        return min((at for at in times if at is not None), default=None)

    def _note_actions(self) -> set[Key]:
        new = {decision.key: decision for decision in self.plan.actions}
        fresh = {key for key, decision in new.items() if self._actions.get(key) != decision}
        for key in fresh:
            self._world.assume(key, new[key])
            self._waits.pop(key, None)
            self._log(new[key])
        over = self._actions.keys() - new.keys()
        self._actions = new
        return fresh | over

    def _log(self, decision: Decision) -> None:
        group = self._world.group(decision.key)
        log.info(
            "decided",
            job=str(decision.key),
            queue=group.queue if group else "",
            action=decision.action.value,
            reason=decision.reason.value,
            message=decision.message,
            members={name: member.count for name, member in decision.members.items()},
        )
        self._metrics.decisions.labels(decision.action.value, decision.reason.value).inc()


def _keep(group: Group) -> Decision:
    """An admitted group about which nothing is to be done stays as it was admitted."""
    given = group.admitted or {}
    members = {name: MemberPlan(member.count, domain=member.domain) for name, member in given.items()}
    return Decision(group.key, Action.KEEP, members=members)
