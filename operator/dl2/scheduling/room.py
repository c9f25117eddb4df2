"""Making room for a group that does not fit: what this pass has started itself goes first, then elastic pods,
then whole groups; never more than is needed, and nothing where it would not help."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from dl2.scheduling.candidates import Candidates, Means
from dl2.scheduling.hunt import Hunt, Taken
from dl2.scheduling.items import Counts, Item
from dl2.scheduling.plan import Reason
from dl2.scheduling.reserve import Reservations
from dl2.scheduling.rights import Right, Rights, may_take
from dl2.scheduling.snapshot import Key, Preemption
from dl2.scheduling.state import Line
from dl2.scheduling.tree import TreeNode, Vector
from dl2.scheduling.work import Run, Spreads, Work

_GROWTH = ((Means.SHRINK,),)
# All means in turn; if that is not enough, the shrinks may have spoilt the shares: then without them. An elastic group
# of another queue is spared then: judged with the pods that it could have lost first, it would come back for its minimum.
_START = ((Means.WITHDRAW, Means.SHRINK, Means.EVICT), (Means.WITHDRAW, Means.EVICT))


class Room:
    """Makes room for askers during one pass. `wary`: who waits and shall get no right to evict by growth."""

    def __init__(self, work: Work, reservations: Reservations, wary: tuple[Item, ...] = ()) -> None:
        self.work, self.reservations, self.wary = work, reservations, wary
        # Since somebody looked: leaves that lost something to others, and leaves of those who left it to a better right.
        self.lost: set[TreeNode] = set()
        self.deferred: set[TreeNode] = set()
        self.candidates = Candidates(work)
        self._hopeful: dict[tuple[Key, Counts, bool], int] = {}  # who would find room, at which version
        # (leaf, asked for, priority, whom growth may take from) -> the version at which all that was too little
        self._hopeless: dict[tuple[int, Vector, int, int | None], int] = {}

    @contextmanager
    def as_done(self) -> Iterator[None]:
        """Rights as the next pass will see them: what this one has given counts like what ran before."""
        self.candidates.count_done(done=True)
        try:
            yield
        finally:
            self.candidates.count_done(done=False)

    def make(
        self, item: Item, counts: Counts, spreads: Sequence[dict[int, int]], *, growing: bool = False
    ) -> Spreads | None:
        """Where the asker goes once its victims are gone (taken in the future picture), or None.

        Growth takes elastic pods only. Nothing changes where it is of no use.
        """
        version = self.work.version
        hunt = self._search(item, counts, spreads, growing=growing)
        if hunt is None:
            return None
        # Only now that those with a better right have had their turn: `would` is asked before.
        if hunt.takes_by_share() and self._would_fall(hunt):
            self.deferred.add(item.leaf)
            hunt.give_back()
            self.work.version = version
            return None
        if growing and (self._grows_again(hunt) or self._tempts(hunt)):
            hunt.give_back()
            return None
        self._tell(hunt)
        leaves = {taken.run.item.leaf for taken in hunt.taken}
        self.lost |= leaves
        self.work.moved |= leaves
        return hunt.placed

    def could(self, item: Item, vector: Vector, *, growing: bool = False, everything: bool = False) -> bool:
        """Is there anybody that a group asking for `vector` has a right to take from? Not yet: enough.

        `everything`: no matter which resource it is about.
        """
        return bool(self._losers(self._rights(item, vector, growing=growing, everything=everything)))

    def would(
        self, item: Item, counts: Counts, spreads: Sequence[dict[int, int]], *, growing: bool = False
    ) -> bool:
        """Would `make` find room? Changes nothing."""
        known, version = (item.key, counts, growing), self.work.version
        if self._hopeful.get(known) == version:
            return True
        hunt = self._search(item, counts, spreads, growing=growing)
        if hunt is None:
            return False
        hunt.give_back()
        self.work.version = version
        self._hopeful[known] = version
        return True

    def would_evict(self, item: Item) -> bool:
        """Would it evict somebody as things stand? Changes nothing."""
        if self.work.fits(item, item.asks):
            return False
        version = self.work.version
        hunt = self._search(item, item.asks, item.spreads, growing=False)
        if hunt is None:
            return False
        evicts = any(taken.means is not Means.SHRINK for taken in hunt.taken)
        hunt.give_back()
        self.work.version = version
        return evicts

    def would_tempt(self, run: Run, counts: Counts) -> bool:
        """Would so many more pods of a group give anybody of the wary a right to evict?"""
        near = self._near(run, counts)
        if not near:
            return False
        with self.work.tried(run, counts), self.as_done():
            tempted = [item for item in near if self.would_evict(item)]
        if not tempted:
            return False
        with self.as_done():
            return not all(map(self.would_evict, tempted))

    def _tempts(self, hunt: Hunt) -> bool:
        """The same of growth into the room of others, once they have lost it."""
        run = self.work.run(hunt.rights.asker)
        near = self._near(run, hunt.counts)
        if not near:
            return False
        hunt.lift()
        with self.work.tried(run, hunt.counts), self.as_done():
            tempted = any(map(self.would_evict, near))
        return not hunt.fits(force=True) or tempted

    def _grows_again(self, hunt: Hunt) -> bool:
        """Would anybody who loses for it be the first to grow into that room, in the next pass?

        So it is where somebody before the asker in its queue would find room there, and comes after the loser.
        """
        ahead = list(self._ahead(hunt.rights.asker))
        if not ahead:
            return False
        hunt.lift()
        able = [(item, item.shape.quota(counts)) for item, counts in ahead if self.work.fits(item, counts)]
        again = any(self._precedes(taken, *step) for step in able for taken in hunt.taken)
        return not hunt.fits(force=True) or again

    def _ahead(self, asker: Item) -> Iterator[tuple[Item, Counts]]:
        """Who would grow before the asker in its queue, were there room, and by which pods."""
        index = asker.leaf.index
        for item in (*self.work.state.lines[index].hungry.values(), *self.work.fresh.get(index, ())):
            run = self.work.runs.get(item.key)
            if item.order[1:] < asker.order[1:] and (run is None or not (run.evicted or run.shrunk)):
                has = item.counts if run is None else run.counts
                yield from ((item, step) for step in item.steps(has))

    def _precedes(self, taken: Taken, item: Item, vector: Vector) -> bool:
        """Does the loser of a pod grow by it before `item` grows by `vector`? As the contest of growth has it."""
        tree, used = self.work.state.tree, self.work.state.future.used
        loser, pod = taken.run.item, taken.run.item.shape.members[taken.cuts[0].n].quota
        fork = tree.fork(item.leaf, loser.leaf)
        theirs = tree.claim(fork.theirs, used[fork.theirs.index], pod)
        return (theirs, loser.order) < (tree.claim(fork.mine, used[fork.mine.index], vector), item.order)

    def _near(self, run: Run, counts: Counts) -> list[Item]:
        """The wary who would have a right to the branch of a group with so many more pods. Cheap: asked for every pod."""
        if not self.wary:
            return []
        leaf, vector = run.item.leaf, run.item.shape.quota(counts)
        branches = set(leaf.path[:-1])
        self.work.charge(leaf, vector, now=False)
        waiting = [item for item in self.wary if item.key not in self.work.runs]
        near = [item for item in waiting if self.may_gain(item, item.needs, branches)]
        self.work.charge(leaf, vector, -1, now=False)
        return near

    def may_take_fresh(self, item: Item, vector: Vector, *, everything: bool = False) -> bool:
        """Has this pass started anything since that a group asking for `vector` has a better right to?

        `everything`: no matter which resource it is about.
        """
        rights = self._rights(item, vector, growing=False, everything=everything)
        return bool(self._fresh(rights))

    def may_gain(self, item: Item, vector: Vector, branches: Collection[TreeNode]) -> bool:
        """Has a group asking for `vector` a right to any of these branches, as far as the shares at its fork tell?"""
        return self._rights(item, vector, growing=False).reaches(branches)

    def _rights(self, item: Item, vector: Vector, *, growing: bool, everything: bool = False) -> Rights:
        rights = Rights(self.work, item, vector, growing=growing)
        if everything:
            rights.contested = tuple(range(len(vector)))
        return rights

    def _search(
        self, item: Item, counts: Counts, spreads: Sequence[dict[int, int]], *, growing: bool
    ) -> Hunt | None:
        outlasts = self.reservations.before(item) if growing else None
        known = (item.leaf.index, item.shape.quota(counts), item.group.priority, outlasts)
        version = self.work.version
        if self._hopeless.get(known) == version:
            return None
        rights = self._rights(item, item.shape.quota(counts), growing=growing)
        fresh = [] if growing else self._fresh(rights)
        others = self._losers(rights)
        quota_only = True
        for ways in (_GROWTH if growing else _START) if fresh or others else ():
            hunt = Hunt(self.work, rights, counts, spreads)
            rigid = Means.SHRINK not in ways
            found = any(
                self._hunt(hunt, means, fresh if means is Means.WITHDRAW else others, rigid=rigid)
                for means in ways
            )
            if found and hunt.lasts():
                return hunt
            shrunk = any(taken.means is Means.SHRINK for taken in hunt.taken)
            quota_only = quota_only and hunt.short_of_quota()
            hunt.give_back()
            if not shrunk:
                break
        self.work.version = version  # all is as it was
        if quota_only:
            self._hopeless[known] = version
        return None

    def _would_fall(self, hunt: Hunt) -> bool:
        """Would what others lose for it go to somebody else in the end?

        Somebody waits who has no right to what the victims hold, but would have one to what the asker then holds: its
        queue has a lower share than the asker's will have, or its priority is higher in the asker's queue.
        """
        hunt.lift()
        lines = self.work.state.lines.values()
        falls = any(self._would_take(line, hunt.rights) for line in lines if line.leaf.queue is not None)
        return not hunt.fits(force=True) or falls

    def _would_take(self, line: Line, rights: Rights) -> bool:
        """Would anybody who waits in a line take the asker's room by fairness or priority?"""
        asker, runs = rights.asker, self.work.runs
        firsts = (
            next((i for _, i in waiting if i.key not in runs), None) for waiting in line.waiting.values()
        )
        rivals = [i for i in firsts if i is not None and i is not asker and may_take(i, asker)]
        if line.leaf is not asker.leaf and rivals:
            tree, used = self.work.state.tree, self.work.state.future.used
            fork = tree.fork(line.leaf, asker.leaf)
            holds = tree.weighted_share(fork.theirs, used[fork.theirs.index], rights.vector)
            mine = used[fork.mine.index]
            rivals = [i for i in rivals if tree.weighted_share(fork.mine, mine, i.needs) < holds]
        return any(self.work.fits(rival, rival.asks) for rival in rivals)

    def _fresh(self, rights: Rights) -> list[TreeNode]:
        """Leaves where this pass has started anything that the asker has a right to: few."""
        return [leaf for leaf in self.candidates.fresh() if rights.against(leaf, fresh=True) is not None]

    def _losers(self, rights: Rights) -> list[TreeNode]:
        """Leaves that run something the asker has a right to, as far as shares and priorities tell."""
        asker, candidates = rights.asker, self.candidates
        lower = candidates.below(asker.group.priority)
        among = candidates.lowest if rights.reclaim is Preemption.ANY else lower
        return [leaf for leaf in rights.losers(among) if leaf is not asker.leaf or leaf.index in lower]

    def _hunt(self, hunt: Hunt, means: Means, leaves: Sequence[TreeNode], *, rigid: bool) -> bool:
        """`rigid`: whole groups of other queues only where they are not elastic."""
        victims: dict[int, list[Item]] = {}
        least: dict[int, Vector] = {}
        for leaf in leaves:
            order, smallest = self.candidates.order(leaf, means)
            losers = order if hunt.rights.any_of(leaf) else [i for i in order if hunt.rights.may_lose(i)]
            if rigid and means is Means.EVICT and leaf is not hunt.rights.asker.leaf:
                losers = [item for item in losers if not self.candidates.is_elastic(item)]
            if hunt.rights.growing and self.reservations.made:
                losers = [item for item in losers if self._may_inherit(hunt.rights.asker, item)]
            if losers:
                victims[leaf.index], least[leaf.index] = losers, smallest
        open_leaves = [leaf for leaf in leaves if leaf.index in victims]
        return bool(victims) and hunt.search(means, victims, least, open_leaves)

    def _may_inherit(self, asker: Item, victim: Item) -> bool:
        """May a group grow into what another holds? Not where a head waits for the other only to end."""
        return self.reservations.before(asker) <= self.reservations.before(victim)

    def _tell(self, hunt: Hunt) -> None:
        asker = hunt.rights.asker
        for taken in hunt.taken:
            reason = Reason.RECLAIMED if taken.right is Right.GUARANTEE else Reason.PREEMPTED
            text = f"makes room for {asker.key} ({asker.group.queue}), {taken.right.value}"
            if taken.means is Means.WITHDRAW or (taken.means is Means.EVICT and not taken.run.item.admitted):
                self.work.withdraw(taken.run)
            elif taken.means is Means.EVICT:
                taken.run.evicted = (reason, text)
            else:
                taken.run.shrunk = (reason, text)
