"""Who may lose to whom: the rules of priority, guarantee and fair share, tested on the usage of the moment.

The asker's and the victim's queue are compared where their branches of the tree meet, as Kueue's fair
sharing does: the two children of the lowest common ancestor stand for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from enum import Enum

from dl2.scheduling.items import Item
from dl2.scheduling.snapshot import Preemption
from dl2.scheduling.state import State
from dl2.scheduling.tree import Share, TreeNode, Vector
from dl2.scheduling.work import Work


class Right(Enum):
    """Why a queue's groups may be taken from."""

    PRIORITY = "of higher priority in the same queue"
    GUARANTEE = "within the guarantee of its queue"
    FAIR = "whose queue has less than its fair share"


class Rights:
    """What one asker may take. `vector` is what it needs more, `contested` the resources it is about, `stays` the
    usage by tree node without what this pass has given, `counted` the one that rights to what ran before come from."""

    def __init__(self, work: Work, asker: Item, vector: Vector, *, growing: bool) -> None:
        state = work.state
        self.tree, self.future = state.tree, state.future
        self.used, self.stays = state.future.used, work.stays.used
        self.counted = self.used if work.done else self.stays
        self.asker, self.vector, self.growing = asker, vector, growing
        self.nothing = (0,) * len(vector)
        self.contested = self._contested(state)
        self.path = set(asker.leaf.path)
        self._shares: dict[int, Share] = {}
        queue = asker.leaf.queue
        self.within = queue.within_queue if queue is not None else Preemption.NEVER
        self.reclaim = queue.reclaim if queue is not None else Preemption.NEVER

    def _contested(self, state: State) -> tuple[int, ...]:
        """Resources of which a limit is short; where none is (it is about nodes), all it asks for."""
        short = state.future.lacking(self.asker.leaf, self.vector)
        return tuple(short or [r for r, amount in enumerate(self.vector) if amount > 0])

    def any_of(self, leaf: TreeNode) -> bool:
        """May every group of a leaf lose, whatever its priority?"""
        return leaf is not self.asker.leaf and self.reclaim is Preemption.ANY

    def may_lose(self, victim: Item) -> bool:
        """By priority, whatever the shares say."""
        policy = self.within if victim.leaf is self.asker.leaf else self.reclaim
        return _permits(policy, self.asker, victim)

    def against(self, leaf: TreeNode, *, fresh: bool = False) -> Right | None:
        """The right to take from a leaf as things stand, or None. `fresh`: what this pass has given itself.

        For what ran before, only what ran before counts: what this pass has given is no reason to lose the rest.
        """
        if leaf is self.asker.leaf:
            return None if self.growing or self.within is Preemption.NEVER else Right.PRIORITY
        if self.reclaim is Preemption.NEVER:
            return None
        fork = self.tree.fork(self.asker.leaf, leaf)
        if not self._borrow(fork.steps, self.used if fresh else self.counted):
            return None
        if self._within(fork.mine):
            return Right.GUARANTEE
        return Right.FAIR if self.share(fork.mine) <= self.share(fork.theirs) else None

    def _borrow(self, steps: Sequence[TreeNode], used: list[list[int]]) -> list[int]:
        """Of which contested resources do all on a leaf's way up to the fork hold more than their min?"""
        borrowed = []
        for r in self.contested:
            for node in steps:
                if used[node.index][r] <= node.min[r]:
                    break
            else:
                borrowed.append(r)
        return borrowed

    def at_stake(self, leaf: TreeNode, *, fresh: bool = False) -> Sequence[int]:
        """The resources for which a leaf's pods may be taken: what it holds within its guarantees stays its own."""
        if leaf is self.asker.leaf:
            return self.contested
        return self._borrow(self.tree.fork(self.asker.leaf, leaf).steps, self.used if fresh else self.counted)

    def borrowed(self, leaf: TreeNode) -> bool:
        """Did a leaf hold more than its guarantees even without what this pass has given?"""
        own = self.asker.leaf
        return leaf is own or bool(self._borrow(self.tree.fork(own, leaf).steps, self.stays))

    def _within(self, mine: TreeNode) -> bool:
        """Does a node on the asker's way up stay within its min, in all that the newcomer brings?"""
        return self.tree.within_min(mine, self.used[mine.index], self.vector)

    def losers(self, among: Collection[int]) -> Iterator[TreeNode]:
        """The leaves that `against` gives a right to; `among`: indices of those that ran something before.

        Walks down from every fork on the asker's way up and leaves a branch at the first reason against it.
        """
        leaf = self.asker.leaf
        if leaf.index in among and self.against(leaf) is not None:
            yield leaf
        if self.reclaim is Preemption.NEVER or not among:
            return
        for mine in leaf.path[:-1]:
            assert mine.parent is not None
            asks, standing, within = self.share(mine), self.future.standing(mine.parent), self._within(mine)
            if asks > standing.highest and not within:
                continue
            for theirs, holds in standing.shares:
                if (asks > holds and not within) or theirs is mine:
                    continue
                over = [r for r in self.contested if self.counted[theirs.index][r] > theirs.min[r]]
                if over:
                    yield from self._below(theirs, over, among)

    def reaches(self, branches: Collection[TreeNode]) -> bool:
        """Has the asker a right to any of these branches, as far as the shares at its fork tell?"""
        return self.reclaim is not Preemption.NEVER and any(
            self._within(mine) or self.share(mine) <= self.share(theirs)
            for mine in self.asker.leaf.path[:-1]
            if mine.parent is not None
            for theirs in mine.parent.children
            if theirs is not mine and theirs in branches
        )

    def _below(self, top: TreeNode, over: list[int], among: Collection[int]) -> Iterator[TreeNode]:
        """Leaves under `top` on whose way down everybody holds more than its min of one contested resource."""
        stack = [(top, over)]
        while stack:
            node, above = stack.pop()
            if not node.children and node.index in among:
                yield node
            for child in node.children:
                rest = [r for r in above if self.counted[child.index][r] > child.min[r]]
                if rest:
                    stack.append((child, rest))

    def fair_after(self, leaf: TreeNode, victim: Vector) -> bool:
        """Would the asker's branch with the newcomer hold no more than the victim's without the victim?"""
        fork = self.tree.fork(self.asker.leaf, leaf)
        without = [-amount for amount in victim]
        theirs = self.tree.weighted_share(fork.theirs, self.used[fork.theirs.index], without)
        return self.share(fork.mine) <= theirs

    def fair_before(self, leaf: TreeNode) -> bool:
        """Does the asker's branch with the newcomer hold less than the victim's does now?"""
        fork = self.tree.fork(self.asker.leaf, leaf)
        return self.share(fork.mine) < self.share(fork.theirs)

    def held(self, node: TreeNode, r: int) -> int:
        """What a node on the asker's way up holds with the newcomer."""
        return self.used[node.index][r] + self.vector[r]

    def share(self, node: TreeNode) -> Share:
        """Weighted share with the newcomer in its place; known until `moved`."""
        share = self._shares.get(node.index)
        if share is None:
            more: Sequence[int] = self.vector if node in self.path else self.nothing
            share = self._shares[node.index] = self.tree.weighted_share(node, self.used[node.index], more)
        return share

    def moved(self, leaf: TreeNode) -> None:
        """The usage on the path of `leaf` has changed."""
        for node in leaf.path:
            self._shares.pop(node.index, None)


def may_take(asker: Item, victim: Item) -> bool:
    """Does the asker's queue let it take from a group of its own or of another queue, as far as priorities go?"""
    queue = asker.leaf.queue
    if queue is None:
        return False
    policy = queue.within_queue if victim.leaf is asker.leaf else queue.reclaim
    return _permits(policy, asker, victim)


def _permits(policy: Preemption, asker: Item, victim: Item) -> bool:
    if policy is Preemption.LOWER_PRIORITY:
        return victim.group.priority < asker.group.priority
    return policy is Preemption.ANY
