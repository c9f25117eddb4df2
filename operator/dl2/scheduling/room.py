"""Making room for a group that does not fit: what this pass has started itself goes first, then elastic pods,
then whole groups; never more than is needed, and nothing where it would not help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dl2.scheduling.hunt import Hunt, Means, victim_key
from dl2.scheduling.items import Counts, Item
from dl2.scheduling.plan import Reason
from dl2.scheduling.rights import Right, Rights, may_take
from dl2.scheduling.snapshot import Key, Preemption
from dl2.scheduling.state import Line, Losers
from dl2.scheduling.tree import TreeNode, Vector
from dl2.scheduling.work import Spreads, Work

_GROWTH = ((Means.SHRINK,),)
# All means in turn; if that is not enough, the shrinks may have spoilt the shares: then without them. An elastic group
# of another queue is spared then: judged with the pods that it could have lost first, it would come back for its minimum.
_START = ((Means.WITHDRAW, Means.SHRINK, Means.EVICT), (Means.WITHDRAW, Means.EVICT))


class Room:
    """Makes room for askers during one pass."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._lowest = {  # priority of what runs, by leaf
            index: min(item.group.priority for item in line.running.values())
            for index, line in work.state.lines.items()
            if line.running and index >= 0
        }
        self._below: dict[int, set[int]] = {}  # leaves where anything runs of less than this priority
        self._hopeful: dict[tuple[Key, Counts, bool], int] = {}  # who would find room, at which version
        # (leaf, asked for, priority, growing) -> the version at which all that may be taken was too little
        self._hopeless: dict[tuple[int, Vector, int, bool], int] = {}

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
            hunt.give_back()
            self.work.version = version
            return None
        self._tell(hunt)
        self.work.moved |= {taken.run.item.leaf for taken in hunt.taken}
        return hunt.placed

    def could(self, item: Item, counts: Counts, *, growing: bool = False) -> bool:
        """Is there anybody it has a right to take from? Not yet: enough."""
        return bool(self._losers(self._rights(item, counts, growing=growing)))

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

    def may_take_fresh(self, item: Item, vector: Vector, *, everything: bool = False) -> bool:
        """Has this pass started anything since that a group asking for `vector` has a better right to?

        `everything`: no matter which resource it is about.
        """
        rights = Rights(self.work.state, self.work.stays.used, item, vector, growing=False)
        if everything:
            rights.contested = tuple(range(len(vector)))
        return any(rights.losers(self._fresh(), fresh=True))

    def _rights(self, item: Item, counts: Counts, *, growing: bool) -> Rights:
        return Rights(self.work.state, self.work.stays.used, item, item.shape.quota(counts), growing=growing)

    def _search(
        self, item: Item, counts: Counts, spreads: Sequence[dict[int, int]], *, growing: bool
    ) -> Hunt | None:
        known = (item.leaf.index, item.shape.quota(counts), item.group.priority, growing)
        version = self.work.version
        if self._hopeless.get(known) == version:
            return None
        rights = self._rights(item, counts, growing=growing)
        fresh = [] if growing else list(rights.losers(self._fresh(), fresh=True))
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

    def _losers(self, rights: Rights) -> list[TreeNode]:
        """Leaves that run something the asker has a right to, as far as shares and priorities tell."""
        asker = rights.asker
        lower = self._lower(asker.group.priority)
        among = self._lowest if rights.reclaim is Preemption.ANY else lower
        return [leaf for leaf in rights.losers(among) if leaf is not asker.leaf or leaf.index in lower]

    def _lower(self, priority: int) -> set[int]:
        if priority not in self._below:
            self._below[priority] = {i for i, lowest in self._lowest.items() if lowest < priority}
        return self._below[priority]

    def _fresh(self) -> set[int]:
        return {index for index, items in self.work.fresh.items() if items}

    def _hunt(self, hunt: Hunt, means: Means, leaves: Sequence[TreeNode], *, rigid: bool) -> bool:
        """`rigid`: whole groups of other queues only where they are not elastic."""
        victims: dict[int, list[Item]] = {}
        least: dict[int, Vector] = {}
        for leaf in leaves:
            order, smallest = self._order(leaf, means)
            losers = order[:] if hunt.rights.any_of(leaf) else [i for i in order if hunt.rights.may_lose(i)]
            if rigid and means is Means.EVICT and leaf is not hunt.rights.asker.leaf:
                losers = [item for item in losers if not _elastic(item)]
            if losers:
                victims[leaf.index], least[leaf.index] = losers, smallest
        open_leaves = [leaf for leaf in leaves if leaf.index in victims]
        return bool(victims) and hunt.search(means, victims, least, open_leaves)

    def _order(self, leaf: TreeNode, means: Means) -> Losers:
        """The groups of a leaf that can lose, the first to lose last; and less than any of them would lose."""
        if means is Means.WITHDRAW:
            return self._sorted(self.work.fresh[leaf.index], means)
        line = self.work.state.lines[leaf.index]
        if means not in line.orders:
            can = [
                i
                for i in line.running.values()
                if not i.group.error and (means is Means.EVICT or _elastic(i))
            ]
            line.orders[means] = self._sorted(can, means)
        return line.orders[means]

    def _sorted(self, items: Iterable[Item], means: Means) -> Losers:
        order = sorted(items, key=lambda item: victim_key(item, means), reverse=True)
        losses = [quota for item in order for quota in _losses(item, means)]
        return order, tuple(map(min, zip(*losses, strict=True)))

    def _tell(self, hunt: Hunt) -> None:
        asker = hunt.rights.asker
        for taken in hunt.taken:
            reason = Reason.RECLAIMED if taken.right is Right.GUARANTEE else Reason.PREEMPTED
            text = f"makes room for {asker.key} ({asker.group.queue}), {taken.right.value}"
            if taken.means is Means.WITHDRAW:
                self.work.withdraw(taken.run)
            elif taken.means is Means.EVICT:
                taken.run.evicted = (reason, text)
            else:
                taken.run.shrunk = (reason, text)


def _losses(item: Item, means: Means) -> list[Vector]:
    """What a leaf loses with one pod of each kind (shrinks), or at least loses with a group."""
    if means is Means.SHRINK:
        return [member.quota for member in item.shape.members]
    least = item.shape.least
    return [item.shape.quota(tuple(map(min, item.counts, least)) if item.admitted else least)]


def _elastic(item: Item) -> bool:
    return any(has > least for has, least in zip(item.counts, item.shape.least, strict=True))
