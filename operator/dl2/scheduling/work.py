"""The plan in the making: what every group is given, charged in both pictures as it is decided.

`now` may be used at once; `then` is the cluster once everything that leaves is gone and everything promised
has started. A group that fits only `then` is promised its room: nobody else gets it, and it starts as soon
as the room is really free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace

from dl2.scheduling.items import Counts, Item
from dl2.scheduling.plan import Reason
from dl2.scheduling.snapshot import Key
from dl2.scheduling.state import State
from dl2.scheduling.tree import Ledger, TreeNode, Vector

Spreads = list[dict[int, int]]  # by member: node -> pods


@dataclass(slots=True, eq=False)
class Run:
    """One group as the plan leaves it."""

    item: Item
    counts: list[int]  # pods by member, promised ones included
    now: list[int]  # pods by member that it has or gets at once
    spreads: Spreads  # of `counts`
    loose: list[
        list[int]
    ]  # by member: nodes of pods that are placed, but not there yet; the last leave first
    grown: list[int]  # by member: pods that this pass has added to a running group
    started: bool = False  # admitted by this plan
    promised: bool = False  # its start waits for room that is being freed
    evicted: tuple[Reason, str] | None = None
    shrunk: tuple[Reason, str] | None = None  # lost elastic pods to another group
    exits: list[list[tuple[int | None, Vector]]] | None = (
        None  # by member: its bound and assumed pods, see `State`
    )

    @classmethod
    def of(cls, item: Item) -> Run:
        """As the snapshot has it."""
        members = range(len(item.counts))
        spreads = [dict(spread) for spread in item.spreads]
        return cls(
            item, list(item.counts), list(item.counts), spreads, [[] for _ in members], [0 for _ in members]
        )

    def copy(self) -> Run:
        counts, now, spreads, loose, grown, exits = deepcopy(
            (self.counts, self.now, self.spreads, self.loose, self.grown, self.exits)
        )
        return replace(self, counts=counts, now=now, spreads=spreads, loose=loose, grown=grown, exits=exits)


@dataclass(slots=True, eq=False)
class Cut:
    """Pods taken from a run: (node, amounts, placed by this pass) of each, in the order in which they go."""

    run: Run
    n: int
    count: int
    had: int  # `Run.now` before
    pods: list[tuple[int | None, Vector, bool]] = field(default_factory=list)


@dataclass(slots=True)
class Work:
    """Changes to a `State` during one pass. `State` itself is restored by `rollback`."""

    state: State
    runs: dict[Key, Run] = field(default_factory=dict)
    stays: Ledger = field(init=False)  # what ran before and goes on, without what this pass gives
    fresh: dict[int, list[Item]] = field(default_factory=dict)  # started by this pass, by leaf index
    version: int = 0  # grows with every change of usage
    done: bool = False  # what this pass gives counts like what ran before: so the next one will see it
    moved: set[TreeNode] = field(default_factory=set)  # leaves that lost something since somebody looked
    gained: set[TreeNode] = field(
        default_factory=set
    )  # leaves that were given something since somebody looked
    _saved: list[list[list[int]]] = field(default_factory=list)

    def run(self, item: Item) -> Run:
        """The run of an admitted group, made at its first change."""
        run = self.runs.get(item.key)
        if run is None:
            run = self.runs[item.key] = Run.of(item)
        return run

    # ---- room in the tree --------------------------------------------------------------------------------

    def shortage_now(self, leaf: TreeNode, vector: Vector) -> tuple[TreeNode, int] | None:
        return self.state.now.shortage(leaf, vector) or self.state.future.shortage(leaf, vector)

    def charge(self, leaf: TreeNode, vector: Vector, sign: int = 1, *, now: bool = True) -> None:
        self.version += 1
        self.gained.add(leaf)
        self.state.future.add(leaf, vector, sign)
        if now:
            self.state.now.add(leaf, vector, sign)

    # ---- groups ------------------------------------------------------------------------------------------

    def place(
        self,
        item: Item,
        counts: Sequence[int],
        spreads: Sequence[dict[int, int]],
        *,
        now: bool,
        pinned: bool = False,
    ) -> Spreads | None:
        """Room on nodes for `counts` more pods, taken; None where there is none. No nodes: anywhere.

        `spreads`: where its pods are already. `pinned`: only where its admitted pods are pinned to.
        """
        placer = self.state.placer
        if placer is None:
            return [{} for _ in counts]
        home = _nodes_of(spreads)
        if pinned and not home:
            home = self.state.pinned_to(item)
        return placer.place(item.shape.wants(counts), item.shape.required, now=now, home=home)

    def unplace(self, item: Item, spreads: Spreads, *, now: bool) -> None:
        placer = self.state.placer
        if placer is not None:
            placer.undo(item.shape.wants(item.shape.full), spreads, now=now)

    def fits(self, item: Item, counts: Counts) -> bool:
        """Is there room for `counts` more pods of a waiting group, once what leaves is gone? Changes nothing."""
        if self.state.future.shortage(item.leaf, item.shape.quota(counts)) is not None:
            return False
        placer = self.state.placer
        return placer is None or placer.fits(
            item.shape.wants(counts), item.shape.required, now=False, home=_nodes_of(item.spreads)
        )

    def start(self, item: Item, counts: Counts, *, now: bool) -> bool:
        """Give a waiting group `counts` more pods, at once or as a promise; False and no change without room."""
        vector = item.shape.quota(counts)
        short = self.shortage_now(item.leaf, vector) if now else self.state.future.shortage(item.leaf, vector)
        if short is not None:
            return False
        placed = self.place(item, counts, item.spreads, now=now)
        if placed is None:
            return False
        self.give(self.run(item), counts, placed, now=now)
        return True

    def give(self, run: Run, counts: Counts, placed: Spreads, *, now: bool) -> None:
        """`counts` more pods for a group whose room on nodes is taken already: charge them."""
        item = run.item
        self.charge(item.leaf, item.shape.quota(counts), now=now)
        if not (item.admitted or run.started or run.promised):
            run.started, run.promised = now, not now
            if now:
                self.fresh.setdefault(item.leaf.index, []).append(item)
        self.extend(run, counts, placed, now=now)

    def extend(self, run: Run, counts: Sequence[int], placed: Spreads, *, now: bool) -> None:
        for n, count in enumerate(counts):
            run.counts[n] += count
            if now:
                run.now[n] += count
            if run.item.admitted:
                run.grown[n] += count
        self.settle(run, placed)

    def settle(self, run: Run, placed: Spreads) -> None:
        """Note where pods of the group have been placed."""
        for n, spread in enumerate(placed):
            for i, pods in spread.items():
                run.spreads[n][i] = run.spreads[n].get(i, 0) + pods
                run.loose[n] += [i] * pods

    def grow(self, run: Run, counts: Sequence[int]) -> bool:
        """`counts` pods more for a group, at once or promised; False and no change without room."""
        item = run.item
        vector = item.shape.quota(counts)
        for now in (False,) if run.promised else (True, False):
            ledger = self.shortage_now if now else self.state.future.shortage
            placed = (
                self.place(item, counts, run.spreads, now=now) if ledger(item.leaf, vector) is None else None
            )
            if placed is not None:
                self.charge(item.leaf, vector, now=now)
                self.extend(run, counts, placed, now=now)
                return True
        return False

    @contextmanager
    def tried(self, run: Run, counts: Counts) -> Iterator[None]:
        """As if a group had `counts` more pods, on nodes as far as there is room."""
        item, vector = run.item, run.item.shape.quota(counts)
        trial = self.runs[item.key] = run.copy()
        placed = self.place(item, counts, run.spreads, now=False)
        self.charge(item.leaf, vector, now=False)
        self.extend(trial, counts, placed or [], now=False)
        try:
            yield
        finally:
            self.charge(item.leaf, vector, -1, now=False)
            if placed is not None:
                self.unplace(item, placed, now=False)
            self.runs[item.key] = run

    def move(self, run: Run, more: Sequence[int]) -> bool:
        """Place a start of this pass anew, with `more` pods: it has nothing to lose yet. False: as before."""
        item, placer = run.item, self.state.placer
        if placer is None or not run.started or any(item.counts) or run.counts != run.now:
            return False
        vector = item.shape.quota(more)
        if self.shortage_now(item.leaf, vector) is not None:
            return False
        wants = item.shape.wants(run.counts)
        placer.undo(wants, run.spreads)
        total = [has + extra for has, extra in zip(run.counts, more, strict=True)]
        placed = self.place(item, total, (), now=True)
        if placed is None:
            placer.retake(wants, run.spreads)
            return False
        run.spreads = [{} for _ in placed]
        run.loose = [[] for _ in placed]
        self.charge(item.leaf, vector)
        self.extend(run, more, placed, now=True)
        return True

    def cut(self, run: Run, n: int, count: int = 1) -> Cut:
        """`count` pods of member `n` leave, as `leaving_first` says: still charged now, free then.

        Those that this pass itself has given are free at once.
        """
        member = run.item.shape.members[n]
        self._uncharge(run, tuple([amount * count for amount in member.quota]), 1)
        cut = Cut(run, n, count, run.now[n])
        run.counts[n] -= count
        run.now[n] = min(run.now[n], run.counts[n])
        if self.state.fleet is not None and member.pod is not None:
            for _ in range(count):
                cut.pods.append(self._last(run, n, member.pod.vector))
                self._move(run, n, cut.pods[-1], -1)
        return cut

    def restore(self, cut: Cut) -> None:
        """Undo a cut; the last one of a run first."""
        run, n = cut.run, cut.n
        quota = run.item.shape.members[n].quota
        self._uncharge(run, tuple([amount * cut.count for amount in quota]), -1)
        run.counts[n] += cut.count
        run.now[n] = cut.had
        for pod in reversed(cut.pods):
            i, vector, loose = pod
            if loose and i is not None:
                run.loose[n].append(i)
            elif run.exits is not None:
                run.exits[n].append((i, vector))
            self._move(run, n, pod, 1)

    def _uncharge(self, run: Run, vector: Vector, sign: int) -> None:
        leaf = run.item.leaf
        self.version += 1
        self.state.future.add(leaf, vector, -sign)
        if run.item.admitted:
            self.stays.add(leaf, vector, -sign)
        elif run.started:
            self.state.now.add(leaf, vector, -sign)

    def _last(self, run: Run, n: int, usual: Vector) -> tuple[int | None, Vector, bool]:
        """Node and amounts of the pod that leaves next: placed ones, then assumed ones, then the newest bound."""
        if run.loose[n]:
            return run.loose[n].pop(), usual, True
        if run.exits is None:
            run.exits = [self.state.exits(run.item, m) for m in range(len(run.counts))]
        return (*(run.exits[n].pop() if run.exits[n] else (None, usual)), False)

    def _move(self, run: Run, n: int, pod: tuple[int | None, Vector, bool], sign: int) -> None:
        i, vector, _ = pod
        if i is not None and self.state.fleet is not None:
            self.state.fleet.charge(i, vector, sign, real=run.started)
            run.spreads[n][i] = run.spreads[n].get(i, 0) + sign
            if not run.spreads[n][i]:
                del run.spreads[n][i]

    def evict(self, item: Item, reason: Reason, message: str) -> None:
        """All its pods leave."""
        run = self.run(item)
        for n, count in enumerate(tuple(run.counts)):
            self.cut(run, n, count)
        run.evicted = reason, message

    def withdraw(self, run: Run) -> None:
        """A start of this pass is taken back; its pods are cut already."""
        del self.runs[run.item.key]
        self.fresh[run.item.leaf.index].remove(run.item)

    # ---- and back ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.stays = Ledger(self.state.tree)
        self.stays.used = [row[:] for row in self.state.future.used]
        self.stays.plain = True  # never asked for room
        self._saved = [[row[:] for row in rows] for rows in self._rows()]
        if self.state.fleet is not None:
            self.state.fleet.begin()

    def rollback(self) -> None:
        """Leave the state as the snapshot describes it."""
        for rows, saved in zip(self._rows(), self._saved, strict=True):
            for row, old in zip(rows, saved, strict=True):
                row[:] = old
        self.state.now.moved()
        self.state.future.moved()
        if self.state.fleet is not None:
            self.state.fleet.rollback()

    def _rows(self) -> list[list[list[int]]]:
        now, future = self.state.now, self.state.future
        return [now.used, future.used] if now.plain else [now.used, future.used, now.held, future.held]


def _nodes_of(spreads: Iterable[Mapping[int, int]]) -> list[int]:
    return sorted({i for spread in spreads for i in spread})
