"""More pods for elastic groups, once every group that can start has its minimum.

One pod at a time, in the order of admissions, but what stays within a queue's guarantees first: nobody could take it
back in the same pass, but would in the next one. So what is left over is shared as fairly as it was asked for. Within
a group the member furthest from its `count` (in proportion) comes first.
"""

from __future__ import annotations

from fractions import Fraction

from dl2.scheduling.contest import Contest
from dl2.scheduling.items import Counts, Item
from dl2.scheduling.reserve import Reservations
from dl2.scheduling.room import Room
from dl2.scheduling.tree import Vector
from dl2.scheduling.work import Run, Work


class Growing:
    """One group on its way to its `count`; members that found no room once are left out."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stuck: set[int] = set()

    def is_stuck(self, counts: Counts) -> None:
        """There is no room for these pods."""
        self.stuck |= {n for n, count in enumerate(counts) if count}

    def step(self) -> Counts | None:
        """The next pods to ask for, or None when it has all or no member finds room."""
        run, shape = self.run, self.run.item.shape
        if run.shrunk is not None:
            return None
        wishes = [n for n, full in enumerate(shape.full) if run.counts[n] < full and n not in self.stuck]
        if not wishes:
            return None
        if not run.item.group.elastic:
            return run.item.steps(run.counts)[0]
        first = min(wishes, key=lambda n: (_progress(run.counts[n], shape.least[n], shape.full[n]), n))
        return tuple(int(n == first) for n in range(len(shape.full)))


def _progress(has: int, least: int, full: int) -> Fraction:
    return Fraction(has - least, max(1, full - least))


def grow(work: Work, candidates: dict[int, list[Run]], room: Room, reservations: Reservations) -> None:
    """`candidates`: by leaf index, in order, every group with fewer pods than it asks for."""
    lines = {index: [Growing(run) for run in reversed(runs)] for index, runs in candidates.items()}
    tree = work.state.tree
    contest = Contest(tree, work.state.future, lambda item: _wish(lines, item), tree.claim)
    for line in lines.values():
        contest.enter(line[0].run.item.leaf, lambda line=line: _head(work, room, reservations, line))  # type: ignore[misc]
    if contest.next() is not None and reservations.pending:
        reservations.settle()
        contest.update_all([line[0].run.item.leaf for line in lines.values() if line])
    while (item := contest.next()) is not None:
        growing = lines[item.leaf.index][-1]
        counts = growing.step()
        assert counts is not None
        run = growing.run
        with reservations.open(reservations.after(item)):
            grown = not room.would_tempt(run, counts) and (
                work.grow(run, counts) or work.move(run, counts) or _take(work, room, run, counts)
            )
        if not grown:
            growing.is_stuck(counts)
        contest.update_all({item.leaf, *work.moved})
        work.moved.clear()
    for run in (run for _, runs in sorted(candidates.items()) for run in runs):
        if tuple(run.counts) != run.item.shape.least:
            work.move(run, [0] * len(run.counts))  # as a whole it may sit tighter than pod by pod


def _take(work: Work, room: Room, run: Run, counts: Counts) -> bool:
    placed = room.make(run.item, counts, run.spreads, growing=True)
    if placed is not None:
        work.give(run, counts, placed, now=False)
    return placed is not None


def _head(work: Work, room: Room, reservations: Reservations, line: list[Growing]) -> Item | None:
    """The first of a queue with a step that there is quota for; the others must not stand before it."""
    while line:
        growing = line[-1]
        item, counts = growing.run.item, growing.step()
        if counts is None:
            line.pop()
            continue
        vector = item.shape.quota(counts)
        if (
            work.state.future.shortage(item.leaf, vector) is None
            or reservations.keeps_from_others(item, vector)
            or room.would(item, counts, growing.run.spreads, growing=True)
        ):
            return item
        growing.is_stuck(counts)
    return None


def _wish(lines: dict[int, list[Growing]], item: Item) -> Vector:
    line = lines[item.leaf.index]
    counts = line[-1].step() if line else None
    return item.shape.nothing if counts is None else item.shape.quota(counts)
