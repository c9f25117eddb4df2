"""Sentences for people: what a waiting group needs, what is free, who has the rest.

The numbers are taken when a group fails, the sentence is made when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dl2.scheduling.items import Item
from dl2.scheduling.plan import Reason
from dl2.scheduling.quantities import format_quantity
from dl2.scheduling.snapshot import Key, Quantities
from dl2.scheduling.state import State
from dl2.scheduling.tree import TreeNode, Vector

_NAMED = 3  # at most so many borrowers by name
Answer = tuple[Reason, str]


class Blocked(Protocol):
    def answer(self) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Short:
    """`needs` of `resource` do not fit under `where`."""

    resource: str
    needs: int
    free: int
    where: str
    borrowers: Sequence[tuple[int, str]]

    def answer(self) -> Answer:
        needs, free = format_quantity(self.needs, self.resource), format_quantity(self.free, self.resource)
        text = f"needs {needs} {self.resource}; {free} free under {self.where}"
        if self.borrowers:
            total = format_quantity(sum(amount for amount, _ in self.borrowers), self.resource)
            names = ", ".join(name for _, name in self.borrowers[:_NAMED])
            others = " and others" if len(self.borrowers) > _NAMED else ""
            text += f", {total} more borrowed by {names}{others}"
        return Reason.WAITING_FOR_QUOTA, text


@dataclass(frozen=True, slots=True)
class Never:
    """`needs` of `resource` are more than `most`, the whole of a queue or of the cluster."""

    resource: str
    needs: int
    most: int
    queue: str | None
    by_nodes: bool

    def answer(self) -> Answer:
        needs = f"needs {format_quantity(self.needs, self.resource)} {self.resource}"
        most = format_quantity(self.most, self.resource)
        if self.queue is not None:
            return Reason.EXCEEDS_MAX, f"{needs}; the max of queue {self.queue} is {most}"
        if self.by_nodes:
            return Reason.NO_FITTING_NODES, f"{needs}; all ready, schedulable nodes together have {most}"
        return Reason.EXCEEDS_MAX, f"{needs}; the top-level queues together allow {most}"


@dataclass(frozen=True, slots=True)
class NoNodes:
    """The quota is there, but no set of nodes. `members`: (name, pods, requests of one, how many fit now).

    `barred`: what keeps them off how many of the `nodes`, room apart; of the member that fits least.
    """

    members: Sequence[tuple[str, int, Quantities, int]]
    label: str | None  # the required topology, where it is only that
    barred: Mapping[str, int]
    nodes: int

    def answer(self) -> Answer:
        wanted = " and ".join(
            f"{count} {name} pod{'s' if count > 1 else ''} with {_listed(requests)}"
            for name, count, requests, _ in self.members
        )
        if self.label is not None:
            return Reason.TOPOLOGY_UNSATISFIED, f"no single {self.label} has room for {wanted}"
        fitting = ", ".join(f"{fits} of {count} {name} fit now" for name, count, _, fits in self.members)
        if all(fits >= count for _, count, _, fits in self.members):
            fitting += ", each by themselves"
        text = f"no nodes have room for {wanted}; {fitting}"
        if self.barred:
            text += f"; of {self.nodes} node{'s' if self.nodes > 1 else ''} " + ", ".join(
                f"{count} {'is' if count == 1 else 'are'} {why}" for why, count in sorted(self.barred.items())
            )
        return Reason.NO_FITTING_NODES, text


@dataclass(frozen=True, slots=True)
class Held:
    """There is room, but it is kept for a head that has waited too long."""

    needs: str
    head: Key
    start: float | None
    now: float

    def answer(self) -> Answer:
        when = (
            "" if self.start is None else f", which is expected to start in {round(self.start - self.now)} s"
        )
        return Reason.RESERVED, f"{self.needs}; what is free is kept for {self.head}{when}"


def evicted(times: int) -> str:
    """How a group that backs off is told so."""
    return f"evicted {times} time{'s' if times != 1 else ''}"


def asking(resources: Sequence[str], vector: Vector) -> str:
    """What a group asks for, as the messages begin."""
    return f"needs {_listed(dict(zip(resources, vector, strict=True)))}"


def of_quota(state: State, item: Item, vector: Vector, short: tuple[TreeNode, int]) -> Blocked:
    """Why `vector` more does not fit the limit of a queue or of the cluster."""
    node, r = short
    resource, top = state.tree.resources[r], node.max[r]
    assert top is not None
    if vector[r] > top:
        queue = node.name if node.queue is not None else None
        return Never(resource, vector[r], top, queue, state.fleet is not None)
    free = state.future.free(item.leaf, node, r)
    return Short(resource, vector[r], free, node.name, _borrowers(state, item.leaf, node, r))


def _borrowers(state: State, leaf: TreeNode, top: TreeNode, r: int) -> list[tuple[int, str]]:
    """Who beside the asker's branches, up to `top`, uses more than its min: (amount, name), most first."""
    forks = leaf.path[1 : leaf.path.index(top) + 1]
    found = [
        (-over, child.name)
        for mine, fork in zip(leaf.path, forks, strict=False)
        for over, child in state.future.borrowers(fork, r)
        if child is not mine
    ]
    return [(-over, name) for over, name in sorted(found)]


def of_nodes(state: State, item: Item, counts: Sequence[int]) -> Blocked:
    """Why no set of nodes holds `counts` more pods though the quota is there."""
    placer = state.placer
    assert placer is not None
    members, wants = [], []
    barred: Mapping[str, int] = {}
    fewest = None
    for member, count in zip(item.shape.members, counts, strict=True):
        if count and member.pod is not None:
            slots = sum(placer.index(member.pod, None, now=True).sums[0])
            members.append((member.name, count, member.requests, min(slots, count)))
            wants.append((member.pod, count))
            if fewest is None or slots < fewest:
                fewest, barred = slots, member.pod.barred
    label = item.shape.required
    apart = placer.place(wants, None, now=False) if label is not None else None
    if apart is not None:
        placer.undo(wants, apart, now=False)
    return NoNodes(members, label if apart is not None else None, barred, len(placer.fleet.nodes))


def _listed(requests: Quantities) -> str:
    listed = (
        f"{format_quantity(amount, name)} {name}" for name, amount in sorted(requests.items()) if amount
    )
    return ", ".join(listed) or "no requests"
