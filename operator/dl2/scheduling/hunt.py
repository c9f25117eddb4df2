"""One search for victims, and what it takes back when it finds too few or took too many.

Modelled on Kueue's fair sharing: victims are taken one by one from the queue furthest above its share (a
tournament down the tree), first those that leave the asker no better off than the victim's queue, then, if
that frees too little, at most one per queue that holds more than the asker before it loses. Whatever turns
out not to be needed is given back, the last victim first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from dl2.scheduling.candidates import Means, victim_key
from dl2.scheduling.items import Counts, Item, VictimKey
from dl2.scheduling.plan import Reason
from dl2.scheduling.rights import Right, Rights, may_take
from dl2.scheduling.tree import TreeNode, Vector
from dl2.scheduling.work import Cut, Run, Spreads, Work

_EVERY_STEP = 8  # so many victims are followed by a look for room each; later ones in ever larger steps


@dataclass(slots=True, eq=False)
class Taken:
    run: Run
    cuts: list[Cut]
    right: Right
    means: Means


@dataclass(slots=True, eq=False)
class Hunt:
    """For an asker that does not fit as things stand. Holds the changes made so far; `give_back` undoes them all."""

    work: Work
    rights: Rights
    counts: Counts
    spreads: Sequence[dict[int, int]]  # where the asker is already
    means: Means = Means.SHRINK
    victims: dict[int, list[Item]] = field(default_factory=dict)  # by leaf index, the first to lose last
    least: dict[int, Vector] = field(default_factory=dict)  # by leaf index, no victim's loss is smaller
    taken: list[Taken] = field(default_factory=list)
    placed: Spreads | None = None  # where the asker fits, taken in the future picture
    _denied: dict[int, list[Item]] = field(default_factory=dict)  # by leaf index, in the first round
    _owned: set[int] = field(default_factory=set)  # whose victims are a list of its own
    _short: bool | None = None  # of quota; None: not known

    def search(
        self,
        means: Means,
        victims: dict[int, list[Item]],
        least: dict[int, Vector],
        leaves: Sequence[TreeNode],
    ) -> bool:
        """Take from `victims` (by leaf) until the asker fits; what is taken stays taken."""
        if leaves == [self.rights.asker.leaf] and self._is_too_little(victims[leaves[0].index]):
            return False
        self.means, self.victims, self.least = means, victims, least
        self._denied.clear()
        self._owned.clear()
        return self._final_share(list(leaves)) or self._initial_share(leaves) or self.fits(force=True)

    def _is_too_little(self, own: Iterable[Item]) -> bool:
        """Would quota still be short if all these were gone? Most often so where a priority is all the right there is."""
        future = self.work.state.future
        short = future.shortage(self.rights.asker.leaf, self.rights.vector)
        if short is None or not future.plain:
            return False
        node, r = short
        lost = sum(item.shape.quota(self._counts(item))[r] for item in own)
        return lost < self.rights.held(node, r) - (node.max[r] or 0)

    # ---- the two rounds ----------------------------------------------------------------------------------

    def _final_share(self, leaves: list[TreeNode]) -> bool:
        while (found := self._furthest(leaves, self._may_lose_least)) is not None:
            leaf, right = found
            took = self._take_first(leaf, right)
            if not self.victims[leaf.index]:
                leaves.remove(leaf)
            if took and self.fits():
                return True
        return False

    def _may_lose_least(self, leaf: TreeNode) -> bool:
        return self.rights.fair_after(leaf, self.least[leaf.index])

    def _take_first(self, leaf: TreeNode, right: Right) -> bool:
        """The next victim of a leaf that the share test lets go; those it does not are kept for the second round."""
        line = self._own(leaf.index)
        denied: set[Vector] = set()
        while line:
            item = line[-1]
            if not self._useful(item):
                line.pop()
                continue
            if right is Right.FAIR:
                loss = self._loss(item)
                if loss in denied or not self.rights.fair_after(leaf, loss):
                    denied.add(loss)
                    self._denied.setdefault(leaf.index, []).append(line.pop())
                    continue
            self._take(item, right)
            return True
        return False

    def _own(self, index: int) -> list[Item]:
        """The victims of a leaf, to strike from: most leaves are never asked for any."""
        if index not in self._owned:
            self._owned.add(index)
            self.victims[index] = self.victims[index][:]
        return self.victims[index]

    def _initial_share(self, leaves: Iterable[TreeNode]) -> bool:
        """At most one more per queue, where the queue holds more than the asker before it loses; as many as it takes
        where the asker, now that its own have lost, stays within its guarantee.
        """
        for index, denied in self._denied.items():
            self.victims[index] += reversed(denied)
        leaves = [leaf for leaf in leaves if self.victims[leaf.index]]
        while (found := self._furthest(leaves, self.rights.fair_before)) is not None:
            leaf, right = found
            line = self._own(leaf.index)
            while line and not self._useful(line[-1]):
                line.pop()
            took = bool(line)
            if took:
                self._take(line[-1], right)
            if not line or right is not Right.GUARANTEE:
                leaves.remove(leaf)
            if took and self.fits():
                return True
        return False

    def _furthest(
        self, leaves: Sequence[TreeNode], fair: Callable[[TreeNode], bool]
    ) -> tuple[TreeNode, Right] | None:
        """The leaf to take from next: of those that may lose, the one with the highest weighted share at every fork
        below the tightest limit. `fair`: the share test of the round.
        """
        short = self.work.state.future.shortage(self.rights.asker.leaf, self.rights.vector)
        top = short[0] if short is not None else self.work.state.tree.root
        depth, fresh = len(top.path), self.means is Means.WITHDRAW
        rights: dict[TreeNode, Right] = {}
        for leaf in leaves:
            if len(leaf.path) >= depth and leaf.path[-depth] is top:
                right = self.rights.against(leaf, fresh=fresh)
                if right is not None and (right is not Right.FAIR or fair(leaf)):
                    rights[leaf] = right
        if not rights:
            return None
        leaf = self._descend(top, list(rights))
        return leaf, rights[leaf]

    def _descend(self, top: TreeNode, leaves: list[TreeNode]) -> TreeNode:
        """At every fork to the branch with the highest weighted share; of equals to the next one to lose."""
        while len(leaves) > 1:
            branches: dict[TreeNode, list[TreeNode]] = {}
            for leaf in leaves:
                branches.setdefault(leaf.path[-len(top.path) - 1], []).append(leaf)
            highest = max(map(self.rights.share, branches))
            tied = [branch for branch in branches if self.rights.share(branch) == highest]
            top = (
                tied[0]
                if len(tied) == 1
                else min(tied, key=lambda branch: min(map(self._first, branches[branch])))
            )
            leaves = branches[top]
        return leaves[0]

    def _first(self, leaf: TreeNode) -> VictimKey:
        return victim_key(self.victims[leaf.index][-1], self.means)

    # ---- taking and giving back --------------------------------------------------------------------------

    def _useful(self, item: Item) -> bool:
        """Can it lose anything of use? Where it is all about nodes, only on nodes that the asker could use."""
        run = self.work.runs.get(item.key)
        if run is not None and (run.evicted or run.promised):
            return False
        if self._is_owed(item) or (self.means is Means.SHRINK and self._member(item) is None):
            return False
        if self.work.done and item.admitted and not self.rights.borrowed(item.leaf):
            return False  # what this pass has given is no reason to lose the rest
        if self.work.state.fleet is None or self.short_of_quota():
            return True
        spreads = item.spreads if run is None else run.spreads
        members = zip(self.rights.asker.shape.members, self.counts, strict=True)
        shapes = [member.pod for member, count in members if count and member.pod is not None]
        return any(shape.may_run[i] for spread in spreads for i in spread for shape in shapes)

    def short_of_quota(self) -> bool:
        if self._short is None:
            future = self.work.state.future
            self._short = future.shortage(self.rights.asker.leaf, self.rights.vector) is not None
        return self._short

    def _is_owed(self, item: Item) -> bool:
        """Is all that it holds of the contested resources within the guarantees of its queue?"""
        holds = item.shape.quota(self._counts(item))
        contested = {r for r in self.rights.contested if holds[r]}
        return bool(contested) and contested.isdisjoint(self._at_stake(item.leaf))

    def _at_stake(self, leaf: TreeNode) -> Sequence[int]:
        return self.rights.at_stake(leaf, fresh=self.means is Means.WITHDRAW)

    def _member(self, item: Item) -> int | None:
        """The member to shrink: the one furthest above its minimum that holds what is asked for.

        A start could evict the group as well, so any such pod spares it; growth takes only what is at stake.
        """
        run, counts, rights = self.work.runs.get(item.key), self._counts(item), self.rights
        of_use = self._at_stake(item.leaf) if rights.growing else rights.contested
        best, most = None, Fraction(0)
        for n, member in enumerate(item.shape.members):
            grown = run.grown[n] if run is not None and not self.work.done else 0
            spare = counts[n] - member.least - grown
            helps = any(member.quota[r] for r in of_use) or not rights.contested
            part = Fraction(spare, max(1, member.count - member.least))
            if helps and part > most:
                best, most = n, part
        return best

    def _loss(self, item: Item) -> Vector:
        """What the queue would hold less."""
        if self.means is Means.SHRINK:
            member = self._member(item)
            assert member is not None
            return item.shape.members[member].quota
        return item.shape.quota(self._counts(item))

    def _counts(self, item: Item) -> Sequence[int]:
        """What it holds, after all that this pass has done."""
        run = self.work.runs.get(item.key)
        return item.counts if run is None else run.counts

    def _take(self, item: Item, right: Right) -> None:
        run = self.work.run(item)
        if self.means is Means.SHRINK:
            member = self._member(item)
            assert member is not None
            cuts = [self.work.cut(run, member)]
        else:
            self.victims[item.leaf.index].remove(item)
            cuts = [self.work.cut(run, n, count) for n, count in enumerate(tuple(run.counts)) if count]
            run.evicted = (Reason.PREEMPTED, "")
        self._moved(item.leaf)
        self.taken.append(Taken(run, cuts, right, self.means))

    def _return(self, taken: Taken) -> None:
        if taken.means is not Means.SHRINK:
            taken.run.evicted = None
        for cut in reversed(taken.cuts):
            self.work.restore(cut)
        self._moved(taken.run.item.leaf)

    def _moved(self, leaf: TreeNode) -> None:
        self._short = None
        self.rights.moved(leaf)

    def give_back(self) -> None:
        self.lift()
        for taken in reversed(self.taken):
            self._return(taken)
        self.taken.clear()

    def spare_the_needless(self) -> None:
        """Give back, the greatest harm and the last victim first, what is not needed."""
        needed: set[Run] = set()  # pods go newest first: where a later one is needed, the earlier ones are
        if 0 < len(self.taken) <= _EVERY_STEP:  # there was a look for room before the last one, and none
            needed.add(self.taken[-1].run)
        order = list(Means)
        late_first = self.taken[::-1]
        for taken in sorted(late_first, key=lambda taken: -order.index(taken.means)):
            if taken.run in needed:
                continue
            self.lift()
            self._return(taken)
            if self.fits(force=True):
                self.taken.remove(taken)
                continue
            needed.add(taken.run)
            taken.cuts = [self.work.cut(cut.run, cut.n, cut.count) for cut in taken.cuts]
            self._moved(taken.run.item.leaf)
            if taken.means is not Means.SHRINK:
                taken.run.evicted = (Reason.PREEMPTED, "")
            if not self.fits(force=True):
                raise AssertionError(f"{self.rights.asker.key} no longer fits where it did")

    # ---- does it last --------------------------------------------------------------------------------------

    def lasts(self) -> bool:
        """Gives back what is not needed. May none of those evicted by fairness take the room back at once?

        One by one each share test held; but what two groups of a queue lose together (of several resources, or the
        smaller one first) may leave it so low that one of them alone could come back for what the asker got.
        """
        self.spare_the_needless()
        return not any(map(self._could_come_back, self.taken))

    def takes_by_share(self) -> bool:
        """Does anybody of the asker's own queue lose, or a whole group of another to fairness?"""
        own = self.rights.asker.leaf
        return any(
            taken.run.item.leaf is own or (taken.right is Right.FAIR and taken.means is Means.EVICT)
            for taken in self.taken
        )

    def _could_come_back(self, taken: Taken) -> bool:
        """The victim itself, or somebody of its queue whom it would replace there by its priority."""
        victim = taken.run.item
        if taken.right is not Right.FAIR or taken.means is Means.SHRINK:
            return False
        counts = [0] * len(victim.shape.members)
        for cut in taken.cuts:
            counts[cut.n] += cut.count
        loss = victim.shape.quota(counts)
        if self._could_take_back(victim, loss, loss):
            return True
        return any(
            self._could_take_back(other, _sum(loss, [-r for r in held], least), least)
            for other, held, least in self._replaced_by(victim, loss)
        )

    def _replaced_by(self, victim: Item, loss: Vector) -> Iterator[tuple[Item, Vector, Vector]]:
        """Who stays in the victim's queue, of lower priority, with what each holds and needs at least; nobody where
        their elastic pods are all that it takes."""
        running = self.work.state.lines[victim.leaf.index].running.values()
        gone = {taken.run.item.key for taken in self.taken if taken.means is not Means.SHRINK}
        lower, spare = [], self.rights.nothing
        for other in running:
            if other.key not in gone and may_take(victim, other):
                counts = self._counts(other)
                held = other.shape.quota(counts)
                least = other.shape.quota(tuple(map(min, counts, other.shape.least)))
                lower.append((other, held, least))
                spare = _sum(spare, held, [-r for r in least])
        if any(more > has for more, has in zip(loss, spare, strict=True)):
            yield from lower

    def _could_take_back(self, victim: Item, more: Vector, asked: Vector) -> bool:
        """Were its queue to hold so much `more`, could `victim` get what it asks for from the asker?"""
        rights = self.rights
        if not may_take(victim, rights.asker):
            return False
        fork = rights.tree.fork(rights.asker.leaf, victim.leaf)
        contested = [r for r, amount in enumerate(asked) if amount]
        way_up = rights.asker.leaf.path[: rights.asker.leaf.path.index(fork.mine) + 1]
        if not any(all(rights.held(node, r) > node.min[r] for node in way_up) for r in contested):
            return False  # the asker is within its min, and may lose nothing
        asks = rights.tree.weighted_share(fork.theirs, rights.used[fork.theirs.index], more)
        before = rights.tree.weighted_share(fork.mine, rights.used[fork.mine.index], rights.nothing)
        return asks <= before or asks < rights.share(fork.mine)

    # ---- does it fit -------------------------------------------------------------------------------------

    def fits(self, *, force: bool = False) -> bool:
        if self.placed is not None:
            return True
        if self.short_of_quota():
            return False
        n = len(self.taken)
        if not force and n > _EVERY_STEP and n & (n - 1):
            return False
        self.placed = self.work.place(self.rights.asker, self.counts, self.spreads, now=False)
        return self.placed is not None

    def lift(self) -> None:
        """Give back the asker's own place."""
        if self.placed is not None:
            self.work.unplace(self.rights.asker, self.placed, now=False)
            self.placed = None


def _sum(*vectors: Sequence[int]) -> Vector:
    return tuple(map(sum, zip(*vectors, strict=True)))
