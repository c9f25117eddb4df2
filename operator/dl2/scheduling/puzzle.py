"""Several kinds of pods on a few nodes: an exhaustive search for one way that fits, within a budget of steps."""

from __future__ import annotations

from collections.abc import Sequence

from dl2.scheduling.fleet import PodShape
from dl2.scheduling.tree import Vector

Spread = dict[int, int]  # node -> pods
Want = tuple[PodShape, int]
_STEPS = 20_000


def solve(free: Sequence[Vector], wants: Sequence[Want], nodes: Sequence[int]) -> list[Spread] | None:
    """A spread for each of `wants` over `nodes` (their `free` amounts alongside), or None if none was found."""
    left = [list(row) for row in free]
    spreads: list[Spread] = [{} for _ in wants]
    budget = [_STEPS]

    def put(kind: int, at: int, count: int) -> bool:
        """Place the last `count` pods of a kind on the nodes from `at` on, then the kinds after it."""
        if not count:
            return kind + 1 == len(wants) or put(kind + 1, 0, wants[kind + 1][1])
        budget[0] -= 1
        if at == len(nodes) or budget[0] < 0:
            return False
        shape, row = wants[kind][0], left[at]
        most = (
            min((row[r] // amount for r, amount in shape.takes), default=count)
            if shape.may_run[nodes[at]]
            else 0
        )
        for pods in range(max(0, min(most, count)), -1, -1):
            _add(row, shape, -pods)
            if put(kind, at + 1, count - pods):
                if pods:
                    spreads[kind][nodes[at]] = pods
                return True
            _add(row, shape, pods)
        return False

    return spreads if put(0, 0, wants[0][1]) else None


def _add(row: list[int], shape: PodShape, pods: int) -> None:
    for r, amount in shape.takes:
        row[r] += amount * pods
