"""Who may lose for others, by leaf: what ran before, and what this pass has started or grown itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import chain

from dl2.scheduling.items import Item, VictimKey
from dl2.scheduling.state import Losers
from dl2.scheduling.tree import TreeNode, Vector
from dl2.scheduling.work import Work


class Means(Enum):
    """What is taken, the least harm first."""

    WITHDRAW = "starts of this very pass"
    SHRINK = "pods above minCount"
    EVICT = "whole groups"


class Candidates:
    """`lowest`: the lowest priority of what may lose, by leaf."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._before = {
            index: min(item.group.priority for item in line.running.values())
            for index, line in work.state.lines.items()
            if line.running and index >= 0
        }
        self.lowest = self._before
        self._below: dict[int, set[int]] = {}
        self._grown: dict[int, list[Item]] = {}  # what has elastic pods only from this pass, by leaf
        self._late: dict[
            tuple[int, Means], tuple[list[Item], Losers]
        ] = {}  # orders with what this pass has started

    def count_done(self, *, done: bool) -> None:
        """Does what this pass has given count like what ran before, from now on?"""
        self.work.done = done
        self.work.version += 1
        self.lowest = dict(self._before)
        self._below.clear()
        self._grown.clear()
        if done:
            for item in chain.from_iterable(self.work.fresh.values()):
                index, priority = item.leaf.index, item.group.priority
                self.lowest[index] = min(priority, self.lowest.get(index, priority))
            for run in self.work.runs.values():
                if any(run.grown) and not _elastic(run.item, run.item.counts):
                    self._grown.setdefault(run.item.leaf.index, []).append(run.item)

    def below(self, priority: int) -> set[int]:
        """Leaves where anything has less than this priority."""
        if priority not in self._below:
            self._below[priority] = {i for i, lowest in self.lowest.items() if lowest < priority}
        return self._below[priority]

    def fresh(self) -> list[TreeNode]:
        """Leaves where this pass has started anything that can be withdrawn without harm."""
        return [] if self.work.done else [items[0].leaf for items in self.work.fresh.values() if items]

    def order(self, leaf: TreeNode, means: Means) -> Losers:
        """The groups of a leaf that can lose, the first to lose last; and less than any of them would lose."""
        if means is Means.WITHDRAW:
            return _sorted(self.work.fresh[leaf.index], means)
        line = self.work.state.lines[leaf.index]
        if means not in line.orders:
            running = [item for item in line.running.values() if not item.group.error]
            can = running if means is Means.EVICT else [i for i in running if _elastic(i, i.counts)]
            line.orders[means] = _sorted(can, means)
        order = line.orders[means]
        return self._with_late(leaf.index, means, order) if self.work.done else order

    def _with_late(self, index: int, means: Means, before: Losers) -> Losers:
        late = list(self.work.fresh.get(index, ()))
        if means is Means.SHRINK:
            late = [item for item in (*late, *self._grown.get(index, ())) if self.is_elastic(item)]
        if not late:
            return before
        known = self._late.get((index, means))
        if known is None or known[0] != late:
            known = self._late[index, means] = late, _sorted([*before[0], *late], means)
        return known[1]

    def is_elastic(self, item: Item) -> bool:
        """Has it pods above its minimum?"""
        run = self.work.runs.get(item.key) if self.work.done else None
        return _elastic(item, item.counts if run is None else run.counts)


def victim_key(item: Item, means: Means) -> VictimKey:
    """Lowest priority, least lost work, youngest; then the smallest."""
    shrinks = means is Means.SHRINK
    known = item.victim_keys[shrinks]
    if known is None:
        group = item.group
        cost = group.resize_pause if shrinks else group.progress_lost
        admitted = group.admitted_at or 0.0
        known = (group.priority, cost, -group.created, -admitted, sum(item.kept), group.key)
        item.victim_keys[shrinks] = known
    return known


def _sorted(items: Iterable[Item], means: Means) -> Losers:
    order = sorted(items, key=lambda item: victim_key(item, means), reverse=True)
    losses = [quota for item in order for quota in _losses(item, means)]
    return order, tuple(map(min, zip(*losses, strict=True)))


def _losses(item: Item, means: Means) -> list[Vector]:
    """What a leaf loses with one pod of each kind (shrinks), or at least loses with a group."""
    if means is Means.SHRINK:
        return [member.quota for member in item.shape.members]
    least = item.shape.least
    return [item.shape.quota(tuple(map(min, item.counts, least)) if item.admitted else least)]


def _elastic(item: Item, counts: Sequence[int]) -> bool:
    return any(has > least for has, least in zip(counts, item.shape.least, strict=True))
