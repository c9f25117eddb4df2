"""Topology domains: nested levels of node labels, from regions down to single nodes.

A `Scope` numbers the domains of every level below a label that a group requires (or below the whole
cluster). Domains are numbered in the order of their values, so that "the first of equals" means the same
in every pass. Nodes that lack a level's label share one nameless domain there, preferred last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dl2.scheduling.snapshot import Domain, Node

HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True)
class Level:
    """One level: the domain number of every node (-1: outside the scope), and the domains' values and nodes."""

    label: str | None  # None: the whole cluster
    of_node: list[int]
    values: list[str | None]
    members: list[list[int]]


@dataclass(frozen=True, slots=True)
class Scope:
    """Levels from wide to tight; a node itself is the level below the last. All must lie in one domain of the first."""

    levels: tuple[Level, ...]

    def domain(self, depth: int, number: int) -> Domain | None:
        """The domain as a label that pods can be pinned to, or None for the whole cluster and nameless ones."""
        level = self.levels[depth]
        value = level.values[number]
        return None if level.label is None or value is None else Domain(level.label, value)


def scope_of(nodes: Sequence[Node], levels: Sequence[str], required: str | None) -> Scope:
    """Nested domains below `required` (None: below the whole cluster). Nodes without that label are outside."""
    inner = list(levels[levels.index(required) + 1 :] if required in levels else levels)
    paths: list[tuple[str | None, ...] | None]
    paths = [_start(node, required) for node in nodes]
    found = [_number(required, paths)]
    for label in inner:
        if label in (HOSTNAME, required):
            continue
        deeper = [
            None if path is None else (*path, node.labels.get(label))
            for node, path in zip(nodes, paths, strict=True)
        ]
        if all(path is None or path[-1] is None for path in deeper):
            continue
        paths = deeper
        found.append(_number(label, paths))
    return Scope(tuple(found))


def _start(node: Node, required: str | None) -> tuple[str | None, ...] | None:
    if required is None:
        return ()
    value = node.labels.get(required, node.name if required == HOSTNAME else None)
    return None if value is None else (value,)


def _number(label: str | None, paths: Sequence[tuple[str | None, ...] | None]) -> Level:
    order = sorted({path for path in paths if path is not None}, key=_by_value)
    number = {path: n for n, path in enumerate(order)}
    of_node = [-1 if path is None else number[path] for path in paths]
    members: list[list[int]] = [[] for _ in order]
    for i, n in enumerate(of_node):
        if n >= 0:
            members[n].append(i)
    return Level(label, of_node, [path[-1] if path else None for path in order], members)


def _by_value(path: tuple[str | None, ...]) -> tuple[tuple[bool, str], ...]:
    return tuple((value is None, value or "") for value in path)
