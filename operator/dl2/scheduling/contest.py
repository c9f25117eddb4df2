"""Whose turn it is: the next group over all queues.

Within a queue: priority, then creation. Between queues: the branch whose weighted share after the admission
would be lowest goes first, decided anew at every fork of the tree; equals by priority, creation and name. Before all
of them, in its queue and between queues, comes for whom others were made to leave: nobody leaves for a group that
then does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import islice
from operator import attrgetter
from typing import Any

from dl2.scheduling.items import Item, Order
from dl2.scheduling.state import Line
from dl2.scheduling.tree import Ledger, Tree, TreeNode, Vector


class Cursor:
    """Walks the waiting groups of one leaf in order and leaves out shapes that have failed."""

    def __init__(self, line: Line, ready: Callable[[Item], bool]) -> None:
        """`ready`: may have a turn at all."""
        self.line, self._ready = line, ready
        self._heads: list[tuple[Order, int, int]] = []  # (order, shape, position)
        for shape, waiting in line.waiting.items():
            self._push(shape, 0, waiting)
        self.first = min(self._firsts(), key=attrgetter("order"), default=None)  # the head of the queue

    def _push(self, shape: int, position: int, waiting: list[tuple[Order, Item]]) -> None:
        while position < len(waiting) and not self._ready(waiting[position][1]):
            position += 1
        if position < len(waiting):
            heappush(self._heads, (waiting[position][0], shape, position))

    def _firsts(self) -> Iterator[Item]:
        """Of each shape the first that is no promised one: those are before the queue's head."""
        for waiting in self.line.waiting.values():
            yield from islice((i for _, i in waiting if self._ready(i) and not i.group.promised), 1)

    def _item(self, entry: tuple[Order, int, int]) -> Item:
        return self.line.waiting[entry[1]][entry[2]][1]

    def head(self) -> Item | None:
        return self._item(self._heads[0]) if self._heads else None

    def done(self) -> None:
        """The head has got its room; go on to the next."""
        _, shape, position = heappop(self._heads)
        self._push(shape, position + 1, self.line.waiting[shape])

    def failed(self) -> None:
        """The head does not fit; neither does anything of its shape behind it."""
        heappop(self._heads)
        if self.line.leaf.strict:
            self.stop()

    def keep(self, possible: Callable[[Item], bool]) -> None:
        """Leave out shapes whose next group is not possible; asked smallest first, within a priority.

        A group is possible that could start as things stand; others must not stand before those that can.
        """
        if self.line.leaf.strict:
            head = self.head()
            if head is not None and not possible(head):
                self.stop()
            return
        in_turn = sorted(self._heads, key=lambda entry: (entry[0][:2], _size(self._item(entry)), entry))
        self._heads = [entry for entry in in_turn if possible(self._item(entry))]
        heapify(self._heads)

    def stop(self) -> None:
        self._heads.clear()


def _size(item: Item) -> int:
    return sum(item.shape.quota(item.shape.least))


class Contest:
    """A tournament along the tree: every fork remembers its children's candidates, best first."""

    def __init__(
        self, tree: Tree, ledger: Ledger, ask: Callable[[Item], Vector], stand: Callable[..., Any]
    ) -> None:
        """`stand`: from a branch, what it holds and what it asks for to what compares branches; the least is first."""
        self._ledger, self._ask, self._stand = ledger, ask, stand
        self._heads: dict[int, Callable[[], Item | None]] = {}
        self._best: list[Item | None] = [None] * len(tree.nodes)
        self._forks: list[list[tuple[bool, Any, Order, int, int]]] = [[] for _ in tree.nodes]
        self._version = [0] * len(tree.nodes)

    def enter(self, leaf: TreeNode, head: Callable[[], Item | None]) -> None:
        """`head` gives the leaf's candidate at any time, or None when it has no more."""
        self._heads[leaf.index] = head
        self.update(leaf)

    def update(self, leaf: TreeNode) -> None:
        """The leaf's candidate, or the usage on its path, has changed."""
        head = self._heads.get(leaf.index)
        self._best[leaf.index] = head() if head is not None else None
        for node in leaf.path[:-1]:
            self._enter_fork(node)

    def update_all(self, leaves: Iterable[TreeNode]) -> None:
        for leaf in leaves:
            self.update(leaf)

    def _enter_fork(self, node: TreeNode) -> None:
        assert node.parent is not None
        self._version[node.index] += 1
        item, fork = self._best[node.index], self._forks[node.parent.index]
        if item is not None:
            stand = self._stand(node, self._ledger.used[node.index], self._ask(item))
            entry = (item.order[0], stand, item.order, node.index, self._version[node.index])
            heappush(fork, entry)
        while fork and fork[0][4] != self._version[fork[0][3]]:
            heappop(fork)
        self._best[node.parent.index] = self._best[fork[0][3]] if fork else None

    def next(self) -> Item | None:
        return self._best[0]
