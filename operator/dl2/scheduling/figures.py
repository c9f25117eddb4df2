"""What every queue uses, may count on, borrows and lends: the numbers of its status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dl2.scheduling.plan import QueueState, Usage
from dl2.scheduling.quantities import format_quantity
from dl2.scheduling.shares import Ask, fair_shares, split
from dl2.scheduling.snapshot import Limits
from dl2.scheduling.tree import Tree, TreeNode


def queue_states(
    tree: Tree,
    used: Sequence[Sequence[int]],
    pending: Mapping[int, Sequence[int]],
    counts: Mapping[str, Sequence[int]],
    stray: Mapping[str, Sequence[int]],
) -> dict[str, QueueState]:
    """Status by queue name. `used` by node index; `pending` demand by leaf index; `counts`: (pending, admitted).

    `stray`: what is used by groups of queues that are not active.
    """
    requests = _requests(tree, used, pending)
    shares = [[0] * len(tree.resources) for _ in tree.nodes]
    lent = [[0] * len(tree.resources) for _ in tree.nodes]
    scaled: dict[str, str] = {}
    for r in range(len(tree.resources)):
        _share_out(tree, r, requests, shares, scaled)
        _lend_out(tree, r, used, lent)
    states = {
        name: QueueState(
            usage={
                resource: Usage(
                    used[node.index][r],
                    shares[node.index][r],
                    max(0, used[node.index][r] - node.min[r]),
                    lent[node.index][r],
                )
                for r, resource in enumerate(tree.resources)
                if _concerns(node, resource) or used[node.index][r] or requests[node.index][r]
            },
            pending=counts.get(name, (0, 0))[0],
            admitted=counts.get(name, (0, 0))[1],
            overcommitted=scaled.get(name, ""),
        )
        for name, node in tree.by_name.items()
    }
    for name, error in tree.broken.items():
        pair = counts.get(name, (0, 0))
        usage = {
            resource: Usage(amount, 0, amount, 0)  # it has no share, so all of it is borrowed
            for resource, amount in zip(tree.resources, stray.get(name, ()), strict=False)
            if amount
        }
        states[name] = QueueState(usage=usage, pending=pair[0], admitted=pair[1], error=error)
    return dict(sorted(states.items()))


def _concerns(node: TreeNode, resource: str) -> bool:
    """Named by the queue or one above it, or guaranteed through its children."""
    return any(step.queue is not None and resource in step.queue.limits for step in node.path) or any(
        child.queue is not None and resource in child.queue.limits for child in node.children
    )


def _requests(
    tree: Tree, used: Sequence[Sequence[int]], pending: Mapping[int, Sequence[int]]
) -> list[list[int]]:
    """min(max, admitted + pending) of every node, from the leaves up."""
    requests = [[0] * len(tree.resources) for _ in tree.nodes]
    for node in sorted(tree.nodes, key=lambda node: -len(node.path)):
        row = requests[node.index]
        if not node.children:
            more = pending.get(node.index)
            row[:] = used[node.index] if more is None else map(sum, zip(used[node.index], more, strict=True))
        for r, top in node.limited:
            if node.parent is not None:
                row[r] = min(row[r], top)
        if node.parent is not None:
            above = requests[node.parent.index]
            for r, amount in enumerate(row):
                above[r] += max(amount, _kept(node, r, tree.resources[r]))
    return requests


def _kept(node: TreeNode, r: int, resource: str) -> int:
    """A guarantee that is not lent as a whole counts though nobody asks for it, also at the parent."""
    limit = node.queue.limits.get(resource, Limits()) if node.queue is not None else Limits()
    return 0 if limit.lend is None or limit.lend >= node.min[r] else node.min[r]


def _share_out(
    tree: Tree, r: int, requests: list[list[int]], shares: list[list[int]], scaled: dict[str, str]
) -> None:
    top = tree.root.max[r]
    shares[0][r] = requests[0][r] if top is None else top
    for node in sorted(tree.nodes, key=lambda node: len(node.path)):
        children = sorted(node.children, key=lambda child: child.age)
        if not children:
            continue
        asks = [_ask(child, r, requests[child.index][r], tree.resources[r]) for child in children]
        for child, share in zip(children, fair_shares(shares[node.index][r], asks), strict=True):
            shares[child.index][r] = share
        _note_overcommit(tree, node, r, scaled)


def _ask(child: TreeNode, r: int, request: int, resource: str) -> Ask:
    return Ask(max(min(child.min[r], request), _kept(child, r, resource)), request, child.weight)


def _note_overcommit(tree: Tree, node: TreeNode, r: int, scaled: dict[str, str]) -> None:
    """A guarantee given to the children that the node itself does not have."""
    total = node.max[r] if node.parent is None else node.min[r]
    below = sum(child.min[r] for child in node.children)
    if total is None or below <= total:
        return
    resource = tree.resources[r]
    amounts = f"{format_quantity(below, resource)} {resource}", format_quantity(total, resource)
    if node.parent is not None:
        scaled.setdefault(
            node.name, f"its children are guaranteed {amounts[0]} together, but its own min is {amounts[1]}"
        )
        return
    for child in node.children:
        if child.min[r]:
            scaled.setdefault(
                child.name, f"the top-level queues are guaranteed {amounts[0]}; the cluster has {amounts[1]}"
            )


def _lend_out(tree: Tree, r: int, used: Sequence[Sequence[int]], lent: list[list[int]]) -> None:
    """Who lends how much: what of the idle guarantees is in use by others, split in proportion.

    At a level with room T, what is used plus the guarantees that idle can exceed T only by what is lent.
    """
    for node in sorted(tree.nodes, key=lambda node: len(node.path)):
        if not node.children:
            continue
        own = max(node.min[r], used[node.index][r]) - lent[node.index][r]
        total = own if node.parent is not None else node.max[r]
        children = sorted(node.children, key=lambda child: child.age)
        spare = [max(0, child.min[r] - used[child.index][r]) for child in children]
        unlent = [max(0, child.unlent[r] - used[child.index][r]) for child in children]
        idle = [max(0, has - keeps) for has, keeps in zip(spare, unlent, strict=True)]
        kept = sum(spare) - sum(idle)
        if total is None or not any(idle):
            continue
        in_use = sum(used[child.index][r] for child in children)
        amount = min(max(0, in_use + kept + sum(idle) - total), sum(idle))
        borrowed = sum(max(0, used[child.index][r] - child.min[r]) for child in children)
        if node.parent is None:
            amount = min(amount, borrowed)
        for child, part in zip(children, split(amount, idle), strict=True):
            lent[child.index][r] = part
