"""Budgets of the simulated queues, from the decision core's tree and fair shares."""

from __future__ import annotations

from collections.abc import Sequence

from dl2.scaling.interface import JobView, NodeView
from dl2.scheduling.shares import Ask, fair_shares
from dl2.scheduling.snapshot import Queue
from dl2.scheduling.tree import Tree, TreeNode


class Quotas:
    """A queue tree over the capacity of the nodes that are up."""

    def __init__(self, queues: Sequence[Queue], nodes: Sequence[NodeView]) -> None:
        resources = sorted({name for node in nodes for name in node.capacity})
        capacity = {name: sum(node.free.get(name, 0) for node in nodes) for name in resources}
        self._tree = Tree(queues, resources, capacity)

    def budgets(self, jobs: Sequence[JobView]) -> dict[str, dict[str, int]]:
        """Per queue what its jobs may hold: its fair share, given what all jobs could use at their maximum."""
        tree = self._tree
        demand = [[0] * len(tree.resources) for _ in tree.nodes]
        for job in jobs:
            leaf = tree.leaves.get(job.queue)
            if leaf is not None:
                for r, name in enumerate(tree.resources):
                    most = job.worker_requests.get(name, 0) * job.maximum.workers
                    most += job.server_requests.get(name, 0) * job.maximum.servers
                    for node in leaf.path:
                        demand[node.index][r] += most
        shares = [[0] * len(tree.resources) for _ in tree.nodes]
        shares[tree.root.index] = [top or 0 for top in tree.root.max]
        for node in tree.nodes:  # parents stand before their children
            _share_out(node, demand, shares)
        return {
            name: dict(zip(tree.resources, shares[leaf.index], strict=True))
            for name, leaf in tree.leaves.items()
        }


def _share_out(node: TreeNode, demand: Sequence[Sequence[int]], shares: list[list[int]]) -> None:
    """Share what `node` may have among its children, per resource."""
    if not node.children:
        return
    for r, total in enumerate(shares[node.index]):
        asks = []
        for child in node.children:
            top = child.max[r]
            request = demand[child.index][r] if top is None else min(top, demand[child.index][r])
            asks.append(Ask(min(child.min[r], request), request, child.weight))
        for child, share in zip(node.children, fair_shares(total, asks), strict=True):
            shares[child.index][r] = share
