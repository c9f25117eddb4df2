"""What is left of the cluster and of each queue's budget while a policy hands out shapes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence

from dl2.scaling.bounds import choices
from dl2.scaling.interface import JobView, Observation, Scale

_ANY_NUMBER = 1_000_000  # pods that ask for nothing


class Room:
    """Exact amounts left, against the sum of the nodes (the cutter packs node by node afterwards).

    A pod that fits on no node at all fits nowhere; beyond that fragmentation is left to the cutter.
    """

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        jobs = observation.jobs
        self.resources = sorted(
            {name for job in jobs for name in (*job.worker_requests, *job.server_requests)}
        )
        names = self.resources
        self._alike = Counter(
            tuple([max(0, node.free.get(name, 0)) for name in names]) for node in observation.nodes
        )
        self.capacity = [
            sum(free[r] * count for free, count in self._alike.items()) for r in range(len(names))
        ]
        self._most: dict[tuple[int, ...], int] = {}
        self._vectors: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.clear()

    def clear(self) -> None:
        """Take everything back."""
        self.cluster = list(self.capacity)
        self._budgets = {
            queue: [budget.get(name) for name in self.resources]
            for queue, budget in self._observation.budgets.items()
        }

    def vectors(self, job: JobView) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Requests of one worker and of one server over `resources`."""
        known = self._vectors.get(job.id)
        if known is None:
            known = self._vectors[job.id] = (
                tuple([max(0, job.worker_requests.get(name, 0)) for name in self.resources]),
                tuple([max(0, job.server_requests.get(name, 0)) for name in self.resources]),
            )
        return known

    def amounts(self, job: JobView, scale: Scale) -> list[int]:
        """What `scale` holds, or what a change by `scale` takes (negative numbers give back)."""
        worker, server = self.vectors(job)
        return [w * scale.workers + s * scale.servers for w, s in zip(worker, server, strict=True)]

    def fits(self, job: JobView, amounts: Sequence[int]) -> bool:
        for more, left in zip(amounts, self.cluster, strict=True):
            if more > 0 and more > left:
                return False
        budget = self._budgets.get(job.queue)
        return budget is None or not any(
            left is not None and more > left for more, left in zip(amounts, budget, strict=True) if more > 0
        )

    def take(self, job: JobView, amounts: Sequence[int]) -> None:
        for r, more in enumerate(amounts):
            self.cluster[r] -= more
        budget = self._budgets.get(job.queue)
        if budget is not None:
            self._budgets[job.queue] = [
                None if left is None else left - more for left, more in zip(budget, amounts, strict=True)
            ]

    def limits(self, job: JobView) -> list[int]:
        """What `job` could still be given, by resource."""
        budget = self._budgets.get(job.queue) or [None] * len(self.cluster)
        return [
            has if left is None else min(has, left) for has, left in zip(self.cluster, budget, strict=True)
        ]

    def ceiling(self, job: JobView) -> list[int]:
        """What `job` could hold if it were alone, by resource: no more than there is, nor than its queue's budget."""
        budget = self._observation.budgets.get(job.queue, {})
        return [
            max(0, min(has, budget.get(name, has)))
            for name, has in zip(self.resources, self.capacity, strict=True)
        ]

    def most(self, vector: tuple[int, ...]) -> int:
        """So many pods of such requests fit on empty nodes."""
        known = self._most.get(vector)
        if known is None:
            asks = [(r, amount) for r, amount in enumerate(vector) if amount]
            known = self._most[vector] = sum(
                min((free[r] // amount for r, amount in asks), default=_ANY_NUMBER) * count
                for free, count in self._alike.items()
            )
        return known

    def hosts(self, job: JobView) -> bool:
        """Could `job` run at its smallest if it were alone?"""
        limits = choices(job)
        if limits is None:
            return False
        least, (worker, server) = limits[0], self.vectors(job)
        if self.most(worker) < least.workers or self.most(server) < least.servers:
            return False
        return all(map(operator.le, self.amounts(job, least), self.ceiling(job)))

    def dominant(self, amounts: Sequence[int]) -> float:
        """Largest part of any resource of the cluster (DRF's dominant share); what there is none of counts in full."""
        return max(
            (more / (has or more) for more, has in zip(amounts, self.capacity, strict=True) if more > 0),
            default=0.0,
        )

    def prices(self) -> list[float]:
        """One unit's part of the capacity, by resource."""
        return [1.0 / has if has else 0.0 for has in self.capacity]
