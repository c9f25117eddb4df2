"""The queue tree: who is whose child, what is guaranteed and limited where, and what is used.

A queue that has children and groups of its own gets a hidden leaf for them, so that groups sit on leaves
only: the leaf is guaranteed what the queue's `min` leaves over its children's, weighs 1 and has no `max`.
The root (`CLUSTER`) stands for the whole cluster; its limit is the capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import lcm
from typing import NamedTuple

from dl2.scheduling.quantities import format_quantity
from dl2.scheduling.snapshot import Limits, Quantities, Queue, Stop, Strategy

CLUSTER = "cluster"
Vector = tuple[int, ...]  # one amount per resource of the tree, in `Tree.resources` order
Share = tuple[int, int]  # weighted share, comparable: (1, ...) = above min with weight 0, more than any other
_NO_LIMITS = Limits()


@dataclass(slots=True, eq=False)
class TreeNode:
    """A queue, the hidden leaf of one, or the root. Vectors run over `Tree.resources`."""

    name: str
    index: int
    queue: Queue | None = None
    parent: TreeNode | None = None
    children: list[TreeNode] = field(default_factory=list)
    path: tuple[TreeNode, ...] = ()  # itself, its parent, ... the root
    weight: int = 1
    hidden: bool = False
    stop: Stop = Stop.NONE  # the strictest of its own and its ancestors'
    min: Vector = ()
    max: tuple[int | None, ...] = ()
    unlent: Vector = ()  # what of an unused min nobody else may use
    limited: tuple[tuple[int, int], ...] = ()  # (resource, max) where there is one
    lends_all: bool = True
    factors: tuple[tuple[int, int], ...] = ()  # (resource, factor): excess * factor is comparable everywhere

    @property
    def strict(self) -> bool:
        return self.queue is not None and self.queue.strategy is Strategy.STRICT_FIFO

    @property
    def age(self) -> tuple[float, str, bool]:
        """Older first; names decide between equals."""
        return (self.queue.created if self.queue else 0.0, self.name, self.hidden)


@dataclass(frozen=True, slots=True)
class Fork:
    """Where two leaves part: the children of their lowest common ancestor, and the other's way up to its one."""

    mine: TreeNode
    theirs: TreeNode
    steps: tuple[TreeNode, ...]


class Tree:
    """The sound part of the queues; `broken` says of each other queue why it is not active."""

    def __init__(
        self, queues: Iterable[Queue], resources: Sequence[str], capacity: Quantities | None
    ) -> None:
        """`capacity` None: no nodes are looked at, the top-level queues' limits are the capacity."""
        self.resources = tuple(resources)
        sound, self.broken = _sort_out(queues)
        self.root = TreeNode(CLUSTER, 0)
        self.root.path = (self.root,)
        self.nodes = [self.root]
        self.by_name: dict[str, TreeNode] = {}
        self._forks: dict[tuple[int, int], Fork] = {}
        for queue in sound:
            self._insert(queue)
        self.leaves = self._leaves()
        for node in reversed(self.nodes):
            self._bound(node)
        self._crown(capacity)
        for node in self.nodes:
            node.limited = tuple((r, top) for r, top in enumerate(node.max) if top is not None)
        self._weigh()

    def _insert(self, queue: Queue) -> None:
        parent = self.by_name[queue.parent] if queue.parent is not None else self.root
        node = self._attach(TreeNode(queue.name, len(self.nodes), queue, parent, weight=queue.weight))
        node.stop = max(parent.stop, queue.stop, key=list(Stop).index)
        self.by_name[queue.name] = node

    def _attach(self, node: TreeNode) -> TreeNode:
        assert node.parent is not None
        node.path = (node, *node.parent.path)
        node.parent.children.append(node)
        self.nodes.append(node)
        return node

    def _leaves(self) -> dict[str, TreeNode]:
        """Where the groups of each queue sit."""
        leaves = dict(self.by_name)
        for name, node in self.by_name.items():
            if node.children:
                leaf = TreeNode(name, len(self.nodes), node.queue, node, hidden=True, stop=node.stop)
                leaves[name] = self._attach(leaf)
        return leaves

    def _bound(self, node: TreeNode) -> None:
        """Limits of a node whose children have theirs."""
        limits: Mapping[str, Limits] = node.queue.limits if node.queue and not node.hidden else {}
        declared = node.queue.min_declared if node.queue and not node.hidden else frozenset()
        mins, tops, unlent = [], [], []
        for r, name in enumerate(self.resources):
            limit = limits.get(name, _NO_LIMITS)
            below = sum(child.min[r] for child in node.children)
            least = limit.min if name in declared or limit.min or not node.children else below
            mins.append(least)
            tops.append(limit.max)
            unlent.append(0 if limit.lend is None else max(0, least - limit.lend))
            hidden = next((child for child in node.children if child.hidden), None)
            if hidden is not None and least > below:
                hidden.min = (*hidden.min[:r], least - below, *hidden.min[r + 1 :])
        node.min, node.max, node.unlent = tuple(mins), tuple(tops), tuple(unlent)
        node.lends_all = not any(unlent)

    def _crown(self, capacity: Quantities | None) -> None:
        if capacity is not None:
            self.root.max = tuple(capacity.get(name, 0) for name in self.resources)
            return
        named = [set(node.queue.limits) if node.queue else set() for node in self.nodes]
        for node in reversed(self.nodes[1:]):
            assert node.parent is not None
            named[node.parent.index] |= named[node.index]
        tops: list[int | None] = []
        for r, name in enumerate(self.resources):
            known = [node for node in self.root.children if name in named[node.index]]
            tops.append(sum(_ceiling(node, r) for node in known) if known else None)
        self.root.max = tuple(tops)

    def _weigh(self) -> None:
        """Factors that make (usage - min) / T / weight one exact integer, comparable over the whole tree."""
        totals = [(r, total) for r, total in self.root.limited if total > 0]
        common = lcm(*(total for _, total in totals)) * lcm(*(node.weight or 1 for node in self.nodes))
        for node in self.nodes:
            node.factors = tuple((r, common // (total * (node.weight or 1))) for r, total in totals)

    def weighted_share(self, node: TreeNode, used: Sequence[int], more: Sequence[int]) -> Share:
        """Largest (used + more - min) / T / weight over the resources; weight 0: infinite once above min."""
        highest = 0
        for r, factor in node.factors:
            excess = used[r] + more[r] - node.min[r]
            if excess > 0 and excess * factor > highest:
                highest = excess * factor
        return (1, highest) if highest and node.weight == 0 else (0, highest)

    def within_min(self, node: TreeNode, used: Sequence[int], more: Sequence[int]) -> bool:
        """Does a node stay within its min in all that is asked for? What it holds of the rest does not matter."""
        return all(used[r] + amount <= node.min[r] for r, amount in enumerate(more) if amount > 0)

    def claim(self, node: TreeNode, used: Sequence[int], more: Sequence[int]) -> tuple[bool, Share]:
        """How a branch stands in the contest of growth, the least first: within its min, then by weighted share."""
        return not self.within_min(node, used, more), self.weighted_share(node, used, more)

    def fork(self, leaf: TreeNode, other: TreeNode) -> Fork:
        """Of two different leaves."""
        fork = self._forks.get((leaf.index, other.index))
        if fork is None:
            path = set(leaf.path)
            depth = next(n for n, node in enumerate(other.path) if node.parent in path)
            theirs = other.path[depth]
            mine = next(node for node in leaf.path if node.parent is theirs.parent)
            fork = self._forks[leaf.index, other.index] = Fork(mine, theirs, other.path[: depth + 1])
        return fork


class Standing(NamedTuple):
    highest: Share
    shares: list[tuple[TreeNode, Share]]


Borrower = tuple[int, TreeNode]  # how much more than its min, who


class Ledger:
    """What is charged along the tree in one picture of the cluster."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        # Both by fork, until the usage of one of its children changes.
        self._standings: dict[int, Standing] = {}
        self._borrowers: dict[int, dict[int, list[Borrower]]] = {}
        self.used = [[0] * len(tree.resources) for _ in tree.nodes]  # really used, by node index
        # With what its children keep for themselves (the unlent part of an unused min); limits hold for it.
        self.held = self.used if tree.root.lends_all and _all_lend(tree) else self._kept_back(tree)
        self.plain = self.held is self.used
        self.kept: dict[tuple[int, int], int] = {}  # (tree node, resource): kept free for somebody

    def _kept_back(self, tree: Tree) -> list[list[int]]:
        held = [[0] * len(tree.resources) for _ in tree.nodes]
        for node in sorted(tree.nodes, key=lambda node: -len(node.path)):
            if node.parent is not None:
                above = held[node.parent.index]
                for r, unlent in enumerate(node.unlent):
                    above[r] += max(held[node.index][r], unlent)
        return held

    def add_all(self, other: Ledger) -> None:
        """Take over what is charged in another ledger of the same tree."""
        for mine, theirs in zip(self.used, other.used, strict=True):
            mine[:] = theirs
        if not self.plain:
            for mine, theirs in zip(self.held, other.held, strict=True):
                mine[:] = theirs
        self.moved()

    def add(self, leaf: TreeNode, vector: Sequence[int], sign: int = 1) -> None:
        used = self.used
        for node in leaf.path[1:]:
            self._standings.pop(node.index, None)
            self._borrowers.pop(node.index, None)
        for r, amount in enumerate(vector):
            if amount:
                for node in leaf.path:
                    used[node.index][r] += amount * sign
                if not self.plain:
                    self._hold(leaf, r, amount * sign)

    def moved(self) -> None:
        """`used` has been written to from outside."""
        self._standings.clear()
        self._borrowers.clear()

    def borrowers(self, fork: TreeNode, r: int) -> list[Borrower]:
        """The children of a node that use more than their min, and how much more, the one with most first."""
        known = self._borrowers.setdefault(fork.index, {})
        if r not in known:
            used = self.used
            above = [(used[child.index][r] - child.min[r], child) for child in fork.children]
            known[r] = sorted(
                (pair for pair in above if pair[0] > 0), key=lambda pair: (-pair[0], pair[1].name)
            )
        return known[r]

    def standing(self, fork: TreeNode) -> Standing:
        """The weighted shares of a node's children as things stand."""
        standing = self._standings.get(fork.index)
        if standing is None:
            nothing = (0,) * len(self._tree.resources)
            shares = [
                (child, self._tree.weighted_share(child, self.used[child.index], nothing))
                for child in fork.children
            ]
            standing = self._standings[fork.index] = Standing(max(share for _, share in shares), shares)
        return standing

    def _hold(self, leaf: TreeNode, r: int, change: int) -> None:
        for node in leaf.path:
            row = self.held[node.index]
            before, row[r] = row[r], row[r] + change
            if node.unlent[r]:
                change = max(row[r], node.unlent[r]) - max(before, node.unlent[r])
            if not change:
                return

    def shortage(self, leaf: TreeNode, vector: Sequence[int]) -> tuple[TreeNode, int] | None:
        """The innermost (node, resource) whose limit `vector` more would break, or None."""
        if not self.plain:
            return self._shortage_where_some_is_kept(leaf, vector)
        used, kept = self.used, self.kept
        for node in leaf.path:
            row = used[node.index]
            for r, top in node.limited:
                amount = vector[r]
                if amount > 0:
                    amount += row[r]
                    if amount > top or (kept and amount + kept.get((node.index, r), 0) > top):
                        return node, r
        return None

    def lacking(self, leaf: TreeNode, vector: Sequence[int]) -> list[int]:
        """The resources of which `vector` more would break a limit."""
        if not self.plain:
            one = [
                (r, [amount if n == r else 0 for n in range(len(vector))]) for r, amount in enumerate(vector)
            ]
            return [r for r, alone in one if alone[r] > 0 and self.shortage(leaf, alone) is not None]
        short = {
            r
            for node in leaf.path
            for r, top in node.limited
            if vector[r] > 0
            and self.used[node.index][r] + vector[r] + self.kept.get((node.index, r), 0) > top
        }
        return sorted(short)

    @contextmanager
    def nothing_kept(self) -> Iterator[None]:
        """As if nothing were kept free for anybody."""
        kept, self.kept = self.kept, {}
        try:
            yield
        finally:
            self.kept = kept

    def keep(self, node: int, r: int, amount: int) -> None:
        """Keep `amount` more (less, if negative) of a limit free."""
        left = self.kept.pop((node, r), 0) + amount
        if left:
            self.kept[node, r] = left

    def _shortage_where_some_is_kept(
        self, leaf: TreeNode, vector: Sequence[int]
    ) -> tuple[TreeNode, int] | None:
        ups = [max(amount, 0) for amount in vector]
        for node in leaf.path:
            used, held = self.used[node.index], self.held[node.index]
            for r, limit in node.limited:
                top = limit - self.kept.get((node.index, r), 0)
                if vector[r] > 0 and (used[r] + vector[r] > top or (ups[r] and held[r] + ups[r] > top)):
                    return node, r
            for r, unlent in enumerate(node.unlent):
                if unlent and ups[r]:
                    ups[r] = max(held[r] + ups[r], unlent) - max(held[r], unlent)
        return None

    def free(self, leaf: TreeNode, node: TreeNode, r: int) -> int:
        """What a group of `leaf` could still get of a limited resource at `node` on its path, levels below apart."""
        top = node.max[r]
        assert top is not None
        low, high = 0, max(0, top - self.kept.get((node.index, r), 0) - self.used[node.index][r])
        if self.plain:
            return high
        while low < high:  # the part that a kept-back min covers makes it no plain difference
            middle = (low + high + 1) // 2
            if self._passes(leaf, node, r, middle):
                low = middle
            else:
                high = middle - 1
        return low

    def _passes(self, leaf: TreeNode, node: TreeNode, r: int, amount: int) -> bool:
        up = amount
        for step in leaf.path:
            if step is node:
                top = step.max[r]
                return top is None or not up or self.held[step.index][r] + up <= top
            held, unlent = self.held[step.index][r], step.unlent[r]
            up = max(held + up, unlent) - max(held, unlent)
        return True


def _all_lend(tree: Tree) -> bool:
    return all(node.lends_all for node in tree.nodes)


def _ceiling(node: TreeNode, r: int) -> int:
    top = node.max[r]
    return node.min[r] if top is None else top


def _sort_out(queues: Iterable[Queue]) -> tuple[list[Queue], dict[str, str]]:
    """Sound queues, parents before children and older first; and why each other one is not active."""
    by_name: dict[str, Queue] = {}
    for queue in sorted(queues, key=lambda queue: (queue.created, queue.name)):
        by_name.setdefault(queue.name, queue)
    broken: dict[str, str] = {}
    depth: dict[str, int] = {}
    for name in by_name:
        _follow(name, by_name, broken, depth)
    sound = [queue for name, queue in by_name.items() if name not in broken]
    return sorted(sound, key=lambda queue: (depth[queue.name], queue.created, queue.name)), broken


def _follow(name: str, by_name: Mapping[str, Queue], broken: dict[str, str], depth: dict[str, int]) -> None:
    """Walk up from a queue to one already judged, then judge the way back down."""
    trail: list[str] = []
    at: str | None = name
    while at is not None and at not in broken and at not in depth:
        if at in trail:
            circle = trail[trail.index(at) :]
            for member in circle:
                broken[member] = f"spec.parent: {' -> '.join([*circle, circle[0]])} is a cycle; break it"
            break
        trail.append(at)
        at = by_name[at].parent if at in by_name else None
    for step in reversed(trail):
        if step in by_name and step not in broken:
            _judge(by_name[step], by_name, broken, depth)


def _judge(queue: Queue, by_name: Mapping[str, Queue], broken: dict[str, str], depth: dict[str, int]) -> None:
    error = queue.error or _own_error(queue)
    parent = queue.parent
    if not error and parent is not None:
        if parent not in by_name:
            error = f'spec.parent: there is no queue "{parent}"; create it or name another'
        elif parent in broken:
            error = f'its parent "{parent}" is not active: {broken[parent]}'
    if error:
        broken[queue.name] = error
    else:
        depth[queue.name] = depth[parent] + 1 if parent is not None else 0


def _own_error(queue: Queue) -> str:
    if queue.weight < 0:
        return f"spec.weight: {queue.weight} is negative; give 0 or more"
    for name, limit in sorted(queue.limits.items()):
        if limit.max is not None and limit.min > limit.max:
            least, most = format_quantity(limit.min, name), format_quantity(limit.max, name)
            return f"spec.resources.{name}: min {least} is above max {most}; lower min or raise max"
    return ""
