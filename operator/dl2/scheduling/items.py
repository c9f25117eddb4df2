"""A group as the pass sees it: its shape, what it holds now, what it keeps, and why it may not start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dl2.scheduling.fleet import PodShape
from dl2.scheduling.plan import Reason
from dl2.scheduling.snapshot import Group, Key, Pod, Quantities
from dl2.scheduling.tree import TreeNode, Vector

Counts = tuple[int, ...]  # pods by member, in the order of `GroupShape.members`
# Within a queue: for whom others were made to leave (False comes first), then priority, then creation, then name.
Order = tuple[bool, int, float, Key]
VictimKey = tuple[int, float, float, float, int, Key]  # see `candidates.victim_key`


@dataclass(frozen=True, slots=True, eq=False)
class MemberShape:
    name: str
    count: int
    least: int  # minCount
    quota: Vector  # one pod, over Tree.resources
    pod: PodShape | None  # one pod on a node; None where no nodes are looked at
    requests: Quantities


@dataclass(frozen=True, slots=True, eq=False)
class GroupShape:
    """Groups of equal shape fare alike: what does not fit once in a pass does not fit again."""

    number: int
    members: tuple[MemberShape, ...]
    required: str | None  # topology label that all pods must share
    preferred: str | None
    least: Counts
    full: Counts
    nothing: Vector  # zeros over Tree.resources
    _quotas: dict[Counts, Vector] = field(default_factory=dict, repr=False)

    def quota(self, counts: Iterable[int]) -> Vector:
        """What `counts` pods are charged."""
        counts = tuple(counts)
        known = self._quotas.get(counts)
        if known is None:
            known = self._quotas[counts] = self._sum(counts)
        return known

    def wants(self, counts: Iterable[int]) -> list[tuple[PodShape, int]]:
        """What `counts` pods ask of nodes; members for whom no nodes are looked at are left out."""
        return [(m.pod, n) for m, n in zip(self.members, counts, strict=True) if m.pod is not None]

    def _sum(self, counts: Counts) -> Vector:
        total = list(self.nothing)
        for member, count in zip(self.members, counts, strict=True):
            if count:
                for r, amount in enumerate(member.quota):
                    total[r] += amount * count
        return tuple(total)


@dataclass(slots=True, eq=False)
class Item:
    """A group with what is derived from it. Node amounts are (node, vector over Fleet.resources)."""

    group: Group
    shape: GroupShape
    leaf: TreeNode
    order: Order
    admitted: bool = False
    counts: Counts = ()  # admitted pods
    asks: Counts = ()  # while it waits: pods that it needs at least on top of what it holds
    needs: Vector = ()  # their quota
    charged: Vector = ()  # now, with what is leaving
    kept: Vector = ()  # once everything that leaves is gone
    spreads: tuple[dict[int, int], ...] = ()  # kept pods by member and node
    kept_on: list[tuple[int, Vector]] = field(default_factory=list)
    leaving_on: list[tuple[int, Vector]] = field(default_factory=list)
    unplaced: Counts = ()  # admitted pods of which nobody knows where they go
    blocked: tuple[Reason, str] | None = None  # may not start, whatever is free
    hungry: bool = False  # runs with fewer pods than it asks for
    restless: bool = False  # runs, and has to be looked at in every pass
    leaving: int = 0  # pods of its own that are still on their way out
    victim_keys: list[VictimKey | None] = field(
        default_factory=lambda: [None, None]
    )  # for evictions, for shrinks

    @property
    def key(self) -> Key:
        return self.group.key

    @property
    def still_asks(self) -> Vector:
        """Quota that it asks for in full on top of what it holds."""
        return self.shape.quota(
            max(0, full - has) for full, has in zip(self.shape.full, self.counts, strict=True)
        )

    def steps(self, has: Sequence[int]) -> list[Counts]:
        """By which pods it may grow: one of any member that lacks some; all at once if it is not elastic."""
        lacks = [max(0, full - n) for full, n in zip(self.shape.full, has, strict=True)]
        if not self.group.elastic:
            return [tuple(lacks)] if any(lacks) else []
        members = range(len(lacks))
        return [tuple([int(m == n) for m in members]) for n in members if lacks[n]]


def is_held(pod: Pod) -> bool:
    """Does this pod hold quota and, once bound, room?"""
    return not pod.finished and not pod.gated


def leaving_first(pods: Iterable[Pod]) -> list[Pod]:
    """Pods of one member in the order in which a shrink takes them: unbound before bound, the newest first.

    The operator deletes in this order too, so that decisions and deeds agree on what becomes free.
    """
    return sorted(pods, key=lambda pod: (pod.node is not None, -pod.created, _backwards(pod.name)))


def _backwards(name: str) -> tuple[int, tuple[int, ...]]:
    """Sorts worker-10 before worker-9 before worker-1."""
    return -len(name), tuple(-ord(letter) for letter in name)


def split_pods(group: Group, member: str, keep: int) -> tuple[list[Pod], list[Pod]]:
    """The member's holding pods that stay when `keep` are admitted, and those that leave (or are leaving)."""
    held = [pod for pod in group.pods if pod.member == member and is_held(pod)]
    alive = leaving_first(pod for pod in held if not pod.terminating)
    surplus = max(0, len(alive) - keep)
    return alive[surplus:], alive[:surplus] + [pod for pod in held if pod.terminating]


def admitted_counts(group: Group, shape: GroupShape) -> Counts:
    given: Mapping[str, object] = group.admitted or {}
    return tuple(
        group.admitted[member.name].count if group.admitted and member.name in given else 0
        for member in shape.members
    )


def missing(group: Group, shape: GroupShape, counts: Counts) -> dict[str, int]:
    """Admitted pods that are neither ready nor finished, by member (none: left out). A finished pod was ready."""
    ready: dict[str, int] = {}
    for pod in group.pods:
        if pod.ready or pod.finished:
            ready[pod.member] = ready.get(pod.member, 0) + 1
    late = {m.name: n - ready.get(m.name, 0) for m, n in zip(shape.members, counts, strict=True)}
    return {name: n for name, n in late.items() if n > 0}
