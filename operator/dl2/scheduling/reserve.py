"""Reservations: a head that has been passed over for too long is no longer overtaken to its cost.

In a shadow of the cluster the running groups end one after another, in the order of their expected ends
(those that tell none last, the longest running first), until the head fits. Where it fits then is kept for
it: later groups get only what does not delay it (EASY backfill, without run times of waiting groups). One
shadow serves all heads of a pass, in their order, so a later head never starts before an earlier one.
A running group that ends before a head starts may grow into what is kept for it: it gives that back in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from operator import attrgetter
from typing import NamedTuple

from dl2.scheduling.explain import Blocked, Held, asking
from dl2.scheduling.items import Counts, Item
from dl2.scheduling.placement import Placer
from dl2.scheduling.snapshot import Key
from dl2.scheduling.tree import Ledger, TreeNode, Vector
from dl2.scheduling.work import Run, Work


@dataclass(slots=True, eq=False)
class Reservation:
    item: Item
    start: float | None  # when the last group that it waits for is expected to end; None: nobody knows
    on_nodes: dict[int, Vector] = field(default_factory=dict)  # what later groups may not use, by node
    in_tree: dict[tuple[int, int], int] = field(default_factory=dict)  # and by (tree node, resource)


class Reservations:
    """Those of one pass, in the order in which they were made."""

    def __init__(self, work: Work, now: float) -> None:
        self.work, self.now = work, now
        self.made: list[Reservation] = []
        self._asked: list[tuple[Item, Counts]] = []
        self._shadow: Shadow | None = None

    def due(self, item: Item) -> bool:
        since = item.group.passed_over_since
        return since is not None and since + self.work.state.settings.reserve_after_seconds <= self.now

    def ask(self, item: Item, counts: Counts) -> None:
        """Keep room for a head that does not fit, from now on; worked out when a later group has its turn."""
        self._asked.append((item, counts))

    @property
    def pending(self) -> bool:
        """Has anybody asked since the last `settle`?"""
        return bool(self._asked)

    def settle(self) -> None:
        """Somebody later has a turn: work out what is kept."""
        for item, counts in self._asked:
            self._make(item, counts)
        self._asked.clear()

    def _make(self, item: Item, counts: Counts) -> None:
        """Nothing where the head would not even fit an empty cluster."""
        if self._shadow is None:
            self._shadow = Shadow(self.work)
        shadow = self._shadow
        shadow.catch_up()
        found = shadow.let_end_until(item, counts)
        if found is None:
            return
        start, nodes, rooms = found
        made = Reservation(item, max(start, self.now) if start < inf else None)
        fleet, future = self.work.state.fleet, self.work.state.future
        if fleet is not None and shadow.fleet is not None:
            for i in nodes:
                made.on_nodes[i] = _beyond(fleet.future.free[i], shadow.fleet.real[i])
        for node, r, room in rooms:
            top = node.max[r]
            assert top is not None
            free = top - future.used[node.index][r] - future.kept.get((node.index, r), 0)
            if free > room:
                made.in_tree[node.index, r] = free - max(0, room)
        self.made.append(made)
        self._impose(made, 1)

    def _impose(self, made: Reservation, sign: int) -> None:
        for i, kept in made.on_nodes.items():
            if self.work.state.fleet is not None:
                self.work.state.fleet.charge(i, kept, sign, real=False)
        for (node, r), amount in made.in_tree.items():
            self.work.state.future.keep(node, r, amount * sign)
        self.work.version += 1

    def after(self, item: Item) -> list[Reservation]:
        """Those of heads that start only once a running group has ended: it may use what is kept for them."""
        return self.made[self.before(item) :]

    def before(self, item: Item) -> int:
        """How many heads start before a group ends."""
        ended = self._shadow.ended if self._shadow is not None else {}
        return ended.get(item.key, len(self.made))

    def keeps_from_others(self, item: Item, vector: Vector) -> bool:
        """Is there quota for a running group in what is kept for heads that start after it has ended?"""
        opened, future = self.after(item), self.work.state.future
        if not opened:
            return False
        with future.nothing_kept():
            if future.shortage(item.leaf, vector) is not None:
                return False
        with self.open(opened):
            return future.shortage(item.leaf, vector) is None

    @contextmanager
    def open(self, opened: list[Reservation]) -> Iterator[None]:
        """As if nothing were kept for some; what is taken of it meanwhile is kept no longer."""
        for made in opened:
            self._impose(made, -1)
        free = {i: self._free(i) for made in opened for i in made.on_nodes}
        used = {at: self._used(*at) for made in opened for at in made.in_tree}
        yield
        on_nodes = {i: _beyond(before, self._free(i)) for i, before in free.items()}
        in_tree = {at: max(0, self._used(*at) - before) for at, before in used.items()}
        for made in opened:
            for i, kept in made.on_nodes.items():
                made.on_nodes[i], on_nodes[i] = _beyond(kept, on_nodes[i]), _beyond(on_nodes[i], kept)
            for at, amount in made.in_tree.items():
                made.in_tree[at], in_tree[at] = max(0, amount - in_tree[at]), max(0, in_tree[at] - amount)
            self._impose(made, 1)

    def _free(self, i: int) -> Vector:
        fleet = self.work.state.fleet
        return () if fleet is None else fleet.future.free[i]

    def _used(self, node: int, r: int) -> int:
        return self.work.state.future.used[node][r]

    def why(self, item: Item, counts: Counts) -> Blocked | None:
        """If a group would fit but for the reservations: so it is told."""
        if not self.made or any(made.item is item for made in self.made):
            return None
        future, vector = self.work.state.future, item.shape.quota(counts)
        if future.shortage(item.leaf, vector) is not None:
            with future.nothing_kept():
                fits = future.shortage(item.leaf, vector) is None
        else:
            with self.open(self.made):
                fits = self.work.fits(item, counts)
        if not fits:
            return None
        made = self.made[0]
        return Held(asking(self.work.state.tree.resources, vector), made.item.key, made.start, self.now)

    def lift(self) -> None:
        """Before the state goes back to what the snapshot says."""
        for made in self.made:
            self._impose(made, -1)
        self.made.clear()


class Holding(NamedTuple):
    """What a group holds in the shadow."""

    item: Item
    vector: Vector
    on_nodes: list[tuple[int, Vector]]


class Shadow:
    """The cluster as it will be while groups end; the heads that were given a start are in it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ledger = Ledger(work.state.tree)
        self.ledger.add_all(work.state.future)
        self.fleet = None if work.state.fleet is None else work.state.fleet.shadow()
        self.placer = None if self.fleet is None else Placer(self.fleet)
        self._gone: set[Key] = {run.item.key for run in work.runs.values() if run.evicted}
        self._come: dict[Key, Holding] = {}  # what this pass has started or promised
        running = [item for line in work.state.lines.values() for item in line.running.values()]
        running.sort(key=lambda item: (_end(item), item.group.admitted_at or 0.0, item.key), reverse=True)
        self._running = running  # the next to end is the last
        self._late: list[Item] = []  # who has come: they end after all others
        for run in work.runs.values():
            if run.started or run.promised:
                self._enter(run)
        self._time = 0.0
        self._heads = 0  # that have been given a start
        self.ended: dict[Key, int] = {}  # who ends before how many of these have started

    def catch_up(self) -> None:
        """Take in what the pass has decided since."""
        runs = self.work.runs
        for come in [come for key, come in self._come.items() if key not in runs]:
            self._withdraw(come.item)
        for run in runs.values():
            key = run.item.key
            if run.evicted and key not in self._gone:
                self._end(run.item)
            elif (run.started or run.promised) and key not in self._come:
                self._charge(self._enter(run), 1)

    def _enter(self, run: Run) -> Holding:
        item = run.item
        come = self._come[item.key] = Holding(item, item.shape.quota(run.counts), _placed(run))
        self._late.append(item)
        self._late.sort(key=attrgetter("key"), reverse=True)
        return come

    def _withdraw(self, item: Item) -> None:
        if item.key not in self._gone:
            self._end(item)
            self._late.remove(item)
        self._gone.remove(item.key)
        self.ended.pop(item.key, None)
        del self._come[item.key]

    def let_end_until(
        self, item: Item, counts: Counts
    ) -> tuple[float, list[int], list[tuple[TreeNode, int, int]]] | None:
        """(time, nodes, room left beside it at every limit) when `counts` pods of a head fit and are placed; None, and
        all is as before, where they never do.
        """
        vector = item.shape.quota(counts)
        if any(vector[r] > top for node in item.leaf.path for r, top in node.limited):
            return None
        nodes = self._place(item, counts, vector)
        ended: list[Item] = []
        while nodes is None and (line := self._running or self._late):
            ending = line.pop()
            if ending.key not in self._gone:
                ended.append(ending)
                self._end(ending)
                nodes = self._place(item, counts, vector)
        if nodes is None:
            for ending in reversed(ended):
                self._end(ending, -1)
                (self._late if ending.key in self._come else self._running).append(ending)
            return None
        if ended:
            self._time = _end(ended[-1])
        self.ended.update(dict.fromkeys((item.key for item in ended), self._heads))
        self._heads += 1
        self.ledger.add(item.leaf, vector)
        rows = self.ledger.used
        rooms = [(n, r, top - rows[n.index][r]) for n in item.leaf.path for r, top in n.limited if vector[r]]
        return self._time, nodes, rooms

    def _place(self, item: Item, counts: Counts, vector: Vector) -> list[int] | None:
        if self.ledger.shortage(item.leaf, vector) is not None:
            return None
        if self.placer is None:
            return []
        home = sorted({i for spread in item.spreads for i in spread})
        spreads = self.placer.place(item.shape.wants(counts), item.shape.required, home=home)
        return None if spreads is None else sorted({i for spread in spreads for i in spread})

    def _end(self, item: Item, sign: int = 1) -> None:
        """A group ends, or (sign -1) is taken back to where it ran."""
        if sign > 0:
            self._gone.add(item.key)
        else:
            self._gone.remove(item.key)
        come = self._come.get(item.key)
        if come is None:
            run = self.work.runs.get(item.key)
            come = Holding(item, item.kept, [*item.kept_on, *(_placed(run) if run is not None else ())])
        self._charge(come, -sign)

    def _charge(self, come: Holding, sign: int) -> None:
        self.ledger.add(come.item.leaf, come.vector, sign)
        if self.fleet is not None:
            for i, vector in come.on_nodes:
                self.fleet.charge(i, vector, sign)


def _placed(run: Run) -> list[tuple[int, Vector]]:
    """Pods that the pass has placed itself."""
    return [
        (i, member.pod.vector)
        for member, loose in zip(run.item.shape.members, run.loose, strict=True)
        if member.pod is not None
        for i in loose
    ]


def _end(item: Item) -> float:
    return inf if item.group.expected_end is None else item.group.expected_end


def _beyond(left: Vector, right: Vector) -> Vector:
    """What `left` has more; neither counts below nothing."""
    return tuple([max(0, a - max(0, b)) for a, b in zip(left, right, strict=True)])
