"""When a waiting group may start: when enough of what runs has ended, by the ends that are expected.

Counts quota only, along the group's path in the tree, and takes the groups before it in its queue into
account; nodes and other queues are left out. So it is an estimate, and `certain` only says whether every
running group that it counts on has told its end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from dl2.scheduling.items import Item
from dl2.scheduling.snapshot import Key
from dl2.scheduling.state import State
from dl2.scheduling.work import Run

_Frees = tuple[list[int], list[float], bool]  # cumulated amounts, their times, all ends known


class Estimates:
    """Expected releases of the running groups, as the plan leaves them. Empty where nobody tells an end."""

    def __init__(self, state: State, runs: Mapping[Key, Run], now: float) -> None:
        self._now, self._tree = now, state.tree
        self._ending = [
            (max(item.group.expected_end, now) if item.group.expected_end is not None else None, item)
            for line in state.lines.values()
            for item in line.running.values()
            if not ((run := runs.get(item.key)) and run.evicted)
        ]
        self._any = any(end is not None for end, _ in self._ending)
        self._used = [row[:] for row in state.future.used] if self._any else []
        self._frees: dict[tuple[int, int], _Frees] = {}

    def ahead(self) -> list[int]:
        """What the groups before the next one in a queue ask for; `start` adds to it."""
        return [0] * len(self._tree.resources)

    def start(self, item: Item, ahead: list[int]) -> tuple[float | None, bool]:
        """(time or None, certain) of a waiting group; call it in the order of the queue."""
        if not self._any or item.leaf.index < 0:
            return None, False
        for r, amount in enumerate(item.shape.quota(item.shape.least)):
            ahead[r] += amount
        latest, certain = self._now, True
        for node in item.leaf.path:
            for r, top in node.limited:
                short = self._used[node.index][r] + ahead[r] - top
                if short > 0:
                    amounts, times, known = self._releases(node.index, r)
                    at = bisect_left(amounts, short)
                    if at == len(amounts):
                        return None, False
                    latest, certain = max(latest, times[at]), certain and known
        return latest, certain

    def _releases(self, node: int, r: int) -> _Frees:
        """When how much of resource `r` has become free under a node of the tree."""
        key = (node, r)
        if key not in self._frees:
            below = [
                (end, item) for end, item in self._ending if any(n.index == node for n in item.leaf.path)
            ]
            known = sorted((end, item.kept[r]) for end, item in below if end is not None and item.kept[r])
            amounts, total = [], 0
            for _, amount in known:
                total += amount
                amounts.append(total)
            certain = all(end is not None for end, item in below if item.kept[r])
            self._frees[key] = (amounts, [end for end, _ in known], certain)
        return self._frees[key]
