"""How many pods of one shape every node and every domain can still take, kept current by the picture's log.

A slot is room for one pod. Per domain the index keeps the number of slots and a histogram (slots -> nodes);
domains that were asked for also keep their nodes sorted by rank: broken ones before idle ones, and for pods
that want a whole NUMA zone those with one free before both.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from dl2.scheduling.fleet import Fleet, Picture, PodShape
from dl2.scheduling.topology import Scope

_Entry = tuple[int, int]  # (rank, node): the first of a sorted list is the one to break into first


class Index:
    """Slots of `shape` in one picture, over the domains of `scope`."""

    def __init__(self, fleet: Fleet, picture: Picture, shape: PodShape, scope: Scope) -> None:
        self.empty, self.broken = fleet.empty, fleet.broken
        self.picture, self.shape, self.scope = picture, shape, scope
        self._read = len(picture.log)
        self._known: dict[tuple[int, ...], int] = {}
        inside = scope.levels[0].of_node
        self.slots = [
            self._slots(free) if may and at >= 0 else 0
            for free, may, at in zip(picture.free, shape.may_run, inside, strict=True)
        ]
        self.sums: list[list[int]] = []
        self._histograms: list[list[dict[int, int]]] = []
        for level in scope.levels:
            sums, histograms = [0] * len(level.values), [dict[int, int]() for _ in level.values]
            for domain, slots in zip(level.of_node, self.slots, strict=True):
                if slots:
                    sums[domain] += slots
                    histogram = histograms[domain]
                    histogram[slots] = histogram.get(slots, 0) + 1
            self.sums.append(sums)
            self._histograms.append(histograms)
        self._sorted: dict[tuple[int, int], dict[int, list[_Entry]]] = {}
        self._needed: dict[tuple[int, int], dict[int, int]] = {}
        self._ranks = [self._rank(i) for i in range(len(self.slots))]

    def _rank(self, i: int) -> int:
        misplaced = 2 if self.shape.aligned is not None and not self.shape.aligned[i] else 0
        return misplaced + (not self.broken[i] and self.picture.free[i] == self.empty[i])

    def _slots(self, free: tuple[int, ...]) -> int:
        known = self._known.get(free)
        if known is None:
            takes = self.shape.takes
            known = max(0, min(free[r] // amount for r, amount in takes)) if takes else 1 << 30
            self._known[free] = known
        return known

    def refresh(self) -> None:
        """Take in what changed since the last look."""
        log = self.picture.log
        if self._read == len(log):
            return
        inside, may_run = self.scope.levels[0].of_node, self.shape.may_run
        for i in set(log[self._read :]):
            if may_run[i] and inside[i] >= 0:
                self._update(i, self._slots(self.picture.free[i]), self._rank(i))
        self._read = len(log)

    def rewind(self) -> None:
        """The log begins anew; this index is current."""
        self._read = 0
        self._known.clear()

    def _update(self, i: int, slots: int, rank: int) -> None:
        before, old = self.slots[i], self._ranks[i]
        if slots == before and rank == old:
            return
        self.slots[i], self._ranks[i] = slots, rank
        self._resort(-1, 0, i, before, old)
        for depth, level in enumerate(self.scope.levels):
            domain = level.of_node[i]
            self._resort(depth, domain, i, before, old)
            if slots == before:
                continue
            self.sums[depth][domain] += slots - before
            histogram = self._histograms[depth][domain]
            if before:
                histogram[before] -= 1
                if not histogram[before]:
                    del histogram[before]
            if slots:
                histogram[slots] = histogram.get(slots, 0) + 1
            self._needed.pop((depth, domain), None)

    def _resort(self, depth: int, domain: int, i: int, before: int, old: int) -> None:
        buckets = self._sorted.get((depth, domain))
        if buckets is None:
            return
        if before:
            bucket = buckets[before]
            del bucket[bisect_left(bucket, (old, i))]
            if not bucket:
                del buckets[before]
        if self.slots[i]:
            insort(buckets.setdefault(self.slots[i], []), (self._ranks[i], i))

    def _buckets(self, depth: int, domain: int) -> dict[int, list[_Entry]]:
        """Nodes with slots of a domain by their slots; depth -1: of the whole scope."""
        buckets = self._sorted.get((depth, domain))
        if buckets is None:
            buckets = {}
            members: Iterable[int] = (
                range(len(self.slots)) if depth < 0 else self.scope.levels[depth].members[domain]
            )
            for i in members:
                if self.slots[i]:
                    buckets.setdefault(self.slots[i], []).append((self._ranks[i], i))
            for bucket in buckets.values():
                bucket.sort()
            self._sorted[depth, domain] = buckets
        return buckets

    def nodes_needed(self, depth: int, domain: int, count: int) -> int:
        """Fewest nodes of the domain that hold `count` pods; the domain must have the slots."""
        known = self._needed.setdefault((depth, domain), {})
        if count not in known:
            nodes, left = 0, count
            for slots, number in sorted(self._histograms[depth][domain].items(), reverse=True):
                used = min(number, -(-left // slots))
                nodes, left = nodes + used, left - used * slots
                if left <= 0:
                    break
            known[count] = nodes
        return known[count]

    def one_node(self, count: int, depth: int = -1, domain: int = 0) -> int | None:
        """The node to put `count` pods on together: a broken one before an idle one, then the tightest."""
        return _tightest(self._buckets(depth, domain), count, ())

    def spread(self, depth: int, domain: int, count: int, first: Sequence[int]) -> dict[int, int] | None:
        """`count` pods over the fewest nodes of a domain, those of `first` before others; None: no room."""
        if self.sums[depth][domain] < count:
            return None
        picks: dict[int, int] = {}
        of_node = self.scope.levels[depth].of_node
        for i in first:
            if of_node[i] == domain and self.slots[i] and count:
                picks[i] = min(self.slots[i], count)
                count -= picks[i]
        if not count:
            return picks
        buckets = self._buckets(depth, domain)
        while count:
            node = _tightest(buckets, count, picks)
            if node is None:
                node = _widest(buckets, picks)
            if node is None:
                return None
            picks[node] = min(self.slots[node], count)
            count -= picks[node]
        return picks


def _tightest(buckets: dict[int, list[_Entry]], count: int, taken: Iterable[int]) -> int | None:
    """Among nodes with at least `count` slots: of the lowest rank the one with the fewest."""
    best: _Entry | None = None
    for slots in sorted(slots for slots in buckets if slots >= count):
        for entry in buckets[slots]:
            if entry[1] not in taken:
                if best is None or entry[0] < best[0]:
                    best = entry
                break
        if best is not None and best[0] == 0:
            break
    return None if best is None else best[1]


def _widest(buckets: dict[int, list[_Entry]], taken: Iterable[int]) -> int | None:
    for slots in sorted(buckets, reverse=True):
        for _, i in buckets[slots]:
            if i not in taken:
                return i
    return None
