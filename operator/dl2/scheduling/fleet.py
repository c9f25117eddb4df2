"""The nodes and what is free on them, in two pictures.

`now` is what a pod could use at once; `future` what will be free when everything that leaves is gone and
everything that was promised has come. New pods must fit both, so `now` never shows more than `future`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dl2.scheduling.fits import barrier, usable
from dl2.scheduling.snapshot import Member, Node, Quantities, Term, Toleration
from dl2.scheduling.topology import Scope, scope_of
from dl2.scheduling.tree import Vector

PODS = "pods"
_ANY = 1 << 30  # pod slots of a node that does not say how many it has
_Constraints = tuple[tuple[tuple[str, str], ...], tuple[Term, ...], tuple[Toleration, ...]]
_Reach = tuple[Sequence[bool], Mapping[str, int]]  # see `PodShape`


@dataclass(slots=True, eq=False)
class PodShape:
    """Pods that are alike to placement: what one takes of a node, and the nodes it may run on."""

    number: int
    vector: Vector  # over Fleet.resources, its pod slot included
    takes: tuple[tuple[int, int], ...]  # (resource, amount > 0)
    may_run: Sequence[bool]  # by node
    barred: Mapping[str, int]  # what keeps such pods off how many nodes, room apart
    aligned: Sequence[bool] | None = (
        None  # by node: has a NUMA zone with room for one; None: it does not care
    )


@dataclass(slots=True, eq=False)
class Picture:
    """Free amounts by node, and a log of the nodes that changed, for those who keep an index."""

    free: list[Vector]
    log: list[int] = field(default_factory=list)

    def put(self, i: int, free: Vector) -> None:
        if self.free[i] != free:
            self.free[i] = free
            self.log.append(i)


class Fleet:
    """Nodes in the order of their names. Amounts are vectors over `resources`; `levels` of topology, outermost first."""

    def __init__(self, nodes: Sequence[Node], resources: Sequence[str], levels: Sequence[str]) -> None:
        self.nodes = sorted(nodes, key=lambda node: node.name)
        self.number = {node.name: i for i, node in enumerate(self.nodes)}
        self.resources = tuple(resources)
        self.levels = levels
        self.usable = [usable(node) for node in self.nodes]
        self.empty = [self._free_of_groups(node) for node in self.nodes]  # no group on it at all
        self.broken = [self._is_broken(i) for i in range(len(self.nodes))]
        self.totals = [
            max(1, sum(node.allocatable.get(name, 0) for node in self.nodes)) for name in self.resources
        ]
        self.real = list(self.empty)
        self.now = Picture(list(self.empty))
        self.future = Picture(list(self.empty))
        self.shapes: dict[tuple[Vector, object], PodShape] = {}
        self._touched: dict[int, tuple[Vector, Vector]] | None = None
        self._nodes_of: dict[_Constraints, _Reach] = {}
        self._scopes: dict[str | None, Scope] = {}
        self._holds: dict[int, bool] = {}

    def _free_of_groups(self, node: Node) -> Vector:
        others = tuple(node.used_by_others.get(name, 0) for name in self.resources)
        return _minus(self._whole(node), others, 1)

    def _is_broken(self, i: int) -> bool:
        """Do other people's pods hold any accelerator of a node? (A node that only daemons run on is still whole.)"""
        used = self.nodes[i].used_by_others
        return any(used.get(name, 0) for name in self.resources if "/" in name)

    def vector(self, requests: Quantities, pods: int = 1) -> Vector:
        """What a pod with `requests` takes of a node."""
        return tuple(pods if name == PODS else requests.get(name, 0) for name in self.resources)

    def charge(
        self, i: int, vector: Vector, sign: int = 1, *, real: bool = True, future: bool = True
    ) -> None:
        """Take (sign 1) or give back (-1) `vector` on node `i`: in what is there, in what will be, or both."""
        if self._touched is not None and i not in self._touched:
            self._touched[i] = (self.real[i], self.future.free[i])
        there, then = self.real[i], self.future.free[i]
        if real:
            self.real[i] = _minus(there, vector, sign)
        if future:
            self.future.put(i, self.real[i] if real and there is then else _minus(then, vector, sign))
        self._show(i)

    def _show(self, i: int) -> None:
        there, then = self.real[i], self.future.free[i]
        self.now.put(i, then if there == then else tuple(map(min, there, then)))

    def reload(self, node: Node) -> None:
        """What other people's pods use on a node has changed."""
        i = self.number[node.name]
        bare = self._free_of_groups(node)
        less = _minus(self.empty[i], bare, 1)
        self.nodes[i], self.empty[i] = node, bare
        self.broken[i] = self._is_broken(i)
        self.charge(i, less)

    def shadow(self) -> Fleet:
        """A copy to play through what will be: its `real` is this one's `future`. Shapes and scopes are shared."""
        twin = Fleet((), self.resources, self.levels)
        twin.nodes, twin.number, twin.usable = self.nodes, self.number, self.usable
        twin.empty, twin.broken, twin.totals = self.empty, self.broken, self.totals
        twin.shapes, twin._nodes_of, twin._scopes, twin._holds = (
            self.shapes, self._nodes_of, self._scopes, self._holds,
        )  # fmt: skip
        twin.real = list(self.future.free)
        twin.now, twin.future = Picture(list(twin.real)), Picture(list(twin.real))
        return twin

    def begin(self) -> None:
        """Remember every node from here on as it is before its first change, for `rollback`."""
        self._touched = {}

    def rollback(self) -> None:
        for i, (real, future) in (self._touched or {}).items():
            self.real[i] = real
            self.future.put(i, future)
            self._show(i)
        self._touched = None

    def shape_of(self, member: Member, *, aligned: bool = False) -> PodShape:
        """`aligned`: its pods are Guaranteed, and better off within one NUMA zone."""
        constraints = (tuple(sorted(member.node_selector.items())), member.affinity, member.tolerations)
        aligned = aligned and any(node.zones for node in self.nodes)
        shape = self._shape(
            self.vector(member.requests), (constraints, aligned), lambda: self._nodes_for(constraints, member)
        )
        if aligned and shape.aligned is None:
            shape.aligned = [_fits_a_zone(member.requests, node) for node in self.nodes]
        return shape

    def together(self, parts: Sequence[tuple[PodShape, int]]) -> PodShape:
        """The shape of a whole group on one node."""
        total = tuple(
            sum(shape.vector[r] * count for shape, count in parts) for r in range(len(self.resources))
        )
        numbers = tuple(sorted({shape.number for shape, _ in parts}))
        alike = [shape.may_run for shape, _ in parts]
        return self._shape(total, numbers, lambda: ([all(may) for may in zip(*alike, strict=True)], {}))

    def _shape(self, vector: Vector, key: object, reach: Callable[[], _Reach]) -> PodShape:
        shape = self.shapes.get((vector, key))
        if shape is None:
            takes = tuple((r, amount) for r, amount in enumerate(vector) if amount > 0)
            shape = PodShape(len(self.shapes), vector, takes, *reach())
            self.shapes[vector, key] = shape
        return shape

    def _nodes_for(self, constraints: _Constraints, member: Member) -> _Reach:
        if constraints not in self._nodes_of:
            barriers = [barrier(member, node) for node in self.nodes]
            self._nodes_of[constraints] = [not each for each in barriers], Counter(filter(None, barriers))
        return self._nodes_of[constraints]

    def holds_one(self, shape: PodShape) -> bool:
        """Is there a node that could take such a pod if nothing else ran on it?"""
        if shape.number not in self._holds:
            most = (self._whole(node) for node, may in zip(self.nodes, shape.may_run, strict=True) if may)
            self._holds[shape.number] = any(all(has[r] >= n for r, n in shape.takes) for has in most)
        return self._holds[shape.number]

    def _whole(self, node: Node) -> Vector:
        return tuple(node.allocatable.get(name, _ANY if name == PODS else 0) for name in self.resources)

    def scope(self, required: str | None) -> Scope:
        if required not in self._scopes:
            self._scopes[required] = scope_of(self.nodes, self.levels, required)
        return self._scopes[required]


def _minus(left: Vector, right: Vector, sign: int) -> Vector:
    if sign > 0:
        return tuple([a - b for a, b in zip(left, right, strict=True)])
    return tuple([a + b for a, b in zip(left, right, strict=True)])


def _fits_a_zone(requests: Quantities, node: Node) -> bool:
    """Has one of its zones room for what the zones count of `requests`? Nodes that report none always do."""
    counted = {name for zone in node.zones for name in zone}
    return not node.zones or any(
        all(zone.get(name, 0) >= amount for name, amount in requests.items() if name in counted)
        for zone in node.zones
    )


def capacity_of(nodes: Sequence[Node]) -> Mapping[str, int]:
    """Allocatable of the ready, schedulable nodes."""
    total: dict[str, int] = {}
    for node in nodes:
        if usable(node):
            for name, amount in node.allocatable.items():
                total[name] = total.get(name, 0) + amount
    return total
