"""Several kinds of pods on nodes where filling up with one kind after the other fails: one way that fits, within a
budget of steps. On a few nodes by exhaustive search, on many by dynamic programming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

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
        for pods in range(_most(row, shape, nodes[at], count), -1, -1):
            _add(row, shape, -pods)
            if put(kind, at + 1, count - pods):
                if pods:
                    spreads[kind][nodes[at]] = pods
                return True
            _add(row, shape, pods)
        return False

    return spreads if put(0, 0, wants[0][1]) else None


def _most(row: Sequence[int], shape: PodShape, node: int, limit: int) -> int:
    """How many pods of a kind `node` holds with `row` free, `limit` at most."""
    if not shape.may_run[node]:
        return 0
    return max(0, min([row[r] // amount for r, amount in shape.takes] + [limit]))


def _add(row: list[int], shape: PodShape, pods: int) -> None:
    for r, amount in shape.takes:
        row[r] += amount * pods


def balance(free: Sequence[Vector], wants: Sequence[Want], nodes: Sequence[int]) -> list[Spread] | None:
    """As `solve`, exact, node by node: for each number of pods of all kinds but the most numerous, the most of that.

    None also where that is more work than the budget allows.
    """
    many = max(range(len(wants)), key=lambda kind: wants[kind][1])
    order = [kind for kind in range(len(wants)) if kind != many] + [many]
    few, most = tuple(wants[kind][1] for kind in order[:-1]), wants[many][1]
    if prod(count + 1 for count in few) * len(nodes) > _STEPS:
        return None
    shapes, budget = [wants[kind][0] for kind in order], _STEPS * 5
    best: dict[tuple[int, ...], int] = {(0,) * len(few): 0}
    ways: list[dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]]] = []
    for row, node in zip(free, nodes, strict=True):
        found, way = dict(best), {}
        for pods in _on_one(list(row), shapes, node, (*few, most)):
            budget -= len(best)
            if budget < 0:
                return None
            for placed, last in best.items():
                to = tuple(map(sum, zip(placed, pods[:-1], strict=True)))
                total = min(most, last + pods[-1])
                if all(map(int.__le__, to, few)) and total > found.get(to, -1):
                    found[to], way[to] = total, (placed, pods)
        best = found
        ways.append(way)
        if best.get(few) == most:
            break
    return _walked_back(ways, order, few, most, nodes) if best.get(few) == most else None


def _on_one(
    row: list[int], shapes: Sequence[PodShape], node: int, limits: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """What one node holds: any number of pods of each kind but the last, as many as fit of that."""
    shape, most = shapes[0], _most(row, shapes[0], node, limits[0])
    if len(shapes) == 1:
        yield (most,)
        return
    for pods in range(most + 1):
        rest = row[:]
        _add(rest, shape, -pods)
        for others in _on_one(rest, shapes[1:], node, limits[1:]):
            yield (pods, *others)


def _walked_back(
    ways: Sequence[dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]]],
    order: Sequence[int],
    few: tuple[int, ...],
    most: int,
    nodes: Sequence[int],
) -> list[Spread]:
    """The spreads by which all were placed; what the last kind has too many of is left out."""
    spreads: list[Spread] = [{} for _ in order]
    at, left = few, most
    for node, way in zip(reversed(nodes[: len(ways)]), reversed(ways), strict=True):
        if at not in way:
            continue
        at, pods = way[at]
        counts = (*pods[:-1], min(left, pods[-1]))
        left -= counts[-1]
        for kind, count in zip(order, counts, strict=True):
            if count:
                spreads[kind][node] = count
    return spreads
