"""Puts pods on nodes, the same way for every policy: who wins must not be decided by the placer.

Pods that ask for few kinds of resources (CPU-only servers) go first and to where they strand least of what the
others need; pods that ask for more (GPU workers) go last, tightest node first. So nodes fill evenly: four
CPU-only pods on an eight-CPU node would leave its GPUs without a CPU to drive them.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dl2.scaling.interface import NodeView

_UNBOUNDED = 1 << 30  # pods that ask for nothing


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` equal pods, of which the first `least` come before anybody's further ones."""

    requests: Mapping[str, int]
    count: int
    least: int


class Packer:
    """Nodes with what is free on them, as vectors over the resources that anybody asks for."""

    def __init__(self, nodes: Sequence[NodeView], resources: Sequence[str]) -> None:
        ordered = sorted(nodes, key=lambda node: node.name)
        self.names = [node.name for node in ordered]
        self.resources = tuple(resources)
        self.free = [[max(0, node.free.get(name, 0)) for name in self.resources] for node in ordered]

    def pack(self, demands: Sequence[Demand]) -> list[list[int]]:
        """For each demand the nodes (by number, one entry a pod) of as many of its pods as fit."""
        kinds: dict[tuple[int, ...], list[int]] = {}
        for i, demand in enumerate(demands):
            if demand.count > 0:
                kinds.setdefault(self._vector(demand.requests), []).append(i)
        order = sorted(kinds, key=lambda vector: (sum(amount > 0 for amount in vector), _negated(vector)))
        placed: list[list[int]] = [[] for _ in demands]
        for at, vector in enumerate(order):
            members = kinds[vector]
            wanted = sum(demands[i].count for i in members)
            richer = self._richer(order[at + 1 :], vector, kinds, demands)
            where = self._tightest(vector, wanted) if richer is None else self._even(vector, wanted, richer)
            begin = 0
            for i, share in zip(members, _shared(len(where), [demands[i] for i in members]), strict=True):
                placed[i] = where[begin : begin + share]
                begin += share
        return placed

    def _vector(self, requests: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(max(0, requests.get(name, 0)) for name in self.resources)

    def _slots(self, node: int, vector: Sequence[int]) -> int:
        free = self.free[node]
        return min((free[r] // amount for r, amount in enumerate(vector) if amount), default=_UNBOUNDED)

    def _take(self, node: int, vector: Sequence[int], pods: int = 1) -> None:
        free = self.free[node]
        for r, amount in enumerate(vector):
            free[r] -= amount * pods

    def _tightest(self, vector: tuple[int, ...], wanted: int) -> list[int]:
        """The fullest node that still takes one, to the brim, then the next."""
        slots = sorted((pods, node) for node in range(len(self.free)) if (pods := self._slots(node, vector)))
        where: list[int] = []
        for pods, node in slots:
            taken = min(pods, wanted - len(where))
            if taken <= 0:
                break
            self._take(node, vector, taken)
            where += [node] * taken
        return where

    def _even(self, vector: tuple[int, ...], wanted: int, richer: Sequence[float]) -> list[int]:
        """Pod by pod to the node with most left over beside what the `richer` pods can use there."""
        heap = [(-self._spare(node, vector, richer), node) for node in range(len(self.free))]
        heapq.heapify(heap)
        where: list[int] = []
        while heap and len(where) < wanted:
            node = heap[0][1]
            if not self._slots(node, vector):
                heapq.heappop(heap)
                continue
            self._take(node, vector)
            where.append(node)
            heapq.heapreplace(heap, (-self._spare(node, vector, richer), node))
        return where

    def _spare(self, node: int, vector: Sequence[int], richer: Sequence[float]) -> float:
        """Pods of `vector` that fit beside as many of `richer` as the node could hold alone."""
        free = self.free[node]
        hosted = min(free[r] / amount for r, amount in enumerate(richer) if amount > 0)
        return min(
            ((free[r] - hosted * richer[r]) / amount for r, amount in enumerate(vector) if amount),
            default=0.0,
        )

    def _richer(
        self,
        later: Sequence[tuple[int, ...]],
        vector: tuple[int, ...],
        kinds: Mapping[tuple[int, ...], Sequence[int]],
        demands: Sequence[Demand],
    ) -> list[float] | None:
        """The mean pod of the later kinds that ask for something `vector` does not; None: there are none."""
        mean, pods = [0.0] * len(vector), 0
        for kind in later:
            if any(theirs and not mine for theirs, mine in zip(kind, vector, strict=True)):
                count = sum(demands[i].count for i in kinds[kind])
                mean = [total + amount * count for total, amount in zip(mean, kind, strict=True)]
                pods += count
        return [total / pods for total in mean] if pods else None


def _negated(vector: Sequence[int]) -> tuple[int, ...]:
    """Sorts larger pods before smaller ones."""
    return tuple(-amount for amount in vector)


def _shared(pods: int, demands: Sequence[Demand]) -> list[int]:
    """How many of `pods` each demand gets: the least of each in order, then the rest round by round."""
    if pods >= sum(demand.count for demand in demands):
        return [demand.count for demand in demands]
    shares = [0] * len(demands)
    for i, demand in enumerate(demands):
        least = min(demand.least, demand.count)
        if least <= pods:
            shares[i] = least
            pods -= least
    open_ = [i for i, demand in enumerate(demands) if shares[i] < demand.count and shares[i] >= demand.least]
    while pods and open_:
        for i in open_[:pods]:
            shares[i] += 1
        pods -= len(open_[:pods])
        open_ = [i for i in open_ if shares[i] < demands[i].count]
    return shares
