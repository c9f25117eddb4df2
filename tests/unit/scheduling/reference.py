"""A slow and obvious second opinion: plain sums over everything at every step, and exhaustive search.

Knows quota trees (max, lending, capacity), the order of admissions, growth, single-resource reclaim and
placement of small gangs. No index, no ledger, no pruning; only for small cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product

from dl2.scheduling.fits import barrier
from dl2.scheduling.snapshot import CapacityMode, Group, Node, Queue, Snapshot, Strategy
from tests.unit.scheduling.laws import effective_min, own_min

Share = tuple[bool, Fraction]
OWN = "/own"  # the hidden child for the groups of a queue that has children


@dataclass
class Reference:
    """One pass of admissions and growth in mode Quota, nobody making room."""

    snapshot: Snapshot
    given: dict[str, list[int]] = field(default_factory=dict)  # group -> pods by member

    def __post_init__(self) -> None:
        assert self.snapshot.capacity is CapacityMode.QUOTA
        self.queues = {queue.name: queue for queue in self.snapshot.queues}
        self.groups = {str(group.key): group for group in self.snapshot.groups}
        named = {name for queue in self.snapshot.queues for name in queue.limits}
        requested = {name for group in self.snapshot.groups for m in group.members for name in m.requests}
        self.resources = sorted(named or requested)
        self.total = {r: self._total(r) for r in self.resources}
        for name, group in self.groups.items():
            if group.admitted is not None:
                self.given[name] = [group.admitted[m.name].count for m in group.members]

    def _total(self, r: str) -> int | None:
        top = [queue for queue in self.snapshot.queues if queue.parent is None]
        naming = [
            queue for queue in top if any(r in self.queues[name].limits for name in self.below(queue.name))
        ]
        if not naming:
            return None
        tops = [queue.limits[r].max if r in queue.limits else None for queue in naming]
        return sum(
            effective_min(self.snapshot, queue.name, r) if most is None else most
            for queue, most in zip(naming, tops, strict=True)
        )

    def below(self, name: str) -> list[str]:
        return [name, *(n for child in self.children(name) for n in self.below(child))]

    def children(self, name: str | None) -> list[str]:
        return sorted(queue.name for queue in self.snapshot.queues if queue.parent == name)

    def path(self, name: str) -> list[str]:
        """The queue and its ancestors."""
        parent = self.queues[name].parent
        return [name, *(self.path(parent) if parent is not None else [])]

    # ---- sums --------------------------------------------------------------------------------------------

    def held(self, group: Group, counts: Sequence[int], r: str) -> int:
        return sum(m.requests.get(r, 0) * n for m, n in zip(group.members, counts, strict=True))

    def own_use(self, queue: str, r: str) -> int:
        mine = ((self.groups[name], counts) for name, counts in self.given.items())
        return sum(self.held(group, counts, r) for group, counts in mine if group.queue == queue)

    def use(self, queue: str, r: str) -> int:
        return sum(self.own_use(name, r) for name in self.below(queue))

    def claim(self, queue: str, r: str) -> int:
        """What a queue takes away from its parent: its use, and what it does not lend of its min."""
        limit = self.queues[queue].limits.get(r)
        kept = 0
        if limit is not None and limit.lend is not None:
            kept = max(0, effective_min(self.snapshot, queue, r) - limit.lend)
        return max(self.inside(queue, r), kept)

    def inside(self, queue: str | None, r: str) -> int:
        own = 0 if queue is None else self.own_use(queue, r)
        return own + sum(self.claim(child, r) for child in self.children(queue))

    def fits(self, name: str, counts: Sequence[int]) -> bool:
        """Would `counts` pods (in all) of a group keep every limit that they press on?"""
        group = self.groups[name]
        before = {
            (q, r): (self.inside(q, r), self._real(q, r)) for q in self._levels(group) for r in self.resources
        }
        old = self.given.get(name)
        self.given[name] = list(counts)
        asked = {
            r for r in self.resources
            if self.held(group, counts, r) > self.held(group, old or [0] * len(counts), r)
        }  # fmt: skip
        good = all(
            top is None
            or (
                self._real(q, r) <= top and (self.inside(q, r) <= top or self.inside(q, r) == before[q, r][0])
            )
            for q in self._levels(group)
            for r in asked
            for top in [self._top(q, r)]
        )
        if old is None:
            del self.given[name]
        else:
            self.given[name] = old
        return good

    def _real(self, queue: str | None, r: str) -> int:
        names = list(self.queues) if queue is None else self.below(queue)
        return sum(self.own_use(name, r) for name in names)

    def _levels(self, group: Group) -> list[str | None]:
        return [*self.path(group.queue), None]

    def _top(self, queue: str | None, r: str) -> int | None:
        if queue is None:
            return self.total[r]
        limit = self.queues[queue].limits.get(r)
        return None if limit is None else limit.max

    # ---- order -------------------------------------------------------------------------------------------

    def share(self, branch: str, own: bool, more: Mapping[str, int]) -> Share:
        """Weighted share of a branch (a queue, or the groups of its own) with `more`."""
        weight = 1 if own else self.queues[branch].weight
        highest = Fraction(0)
        for r in self.resources:
            total = self.total[r]
            if total:
                used = self.own_use(branch, r) if own else self.use(branch, r)
                least = own_min(self.snapshot, branch, r) if own else effective_min(self.snapshot, branch, r)
                highest = max(highest, Fraction(used + more[r] - least, total * (weight or 1)))
        return (weight == 0 and highest > 0, highest)

    def chain(self, group: Group, more: Mapping[str, int]) -> list[Share]:
        """Shares from the top of the tree down to the leaf, with `more`."""
        chain = [self.share(name, False, more) for name in reversed(self.path(group.queue))]
        if self.children(group.queue):
            chain.append(self.share(group.queue, True, more))
        return chain

    def order(self, name: str) -> tuple[int, float, object]:
        group = self.groups[name]
        return (-group.priority, group.created, group.key)

    def winner(self, candidates: Mapping[str, Mapping[str, int]]) -> str:
        """Of one candidate per queue (with what each asks), whose turn it is: a tournament from the leaves up."""
        return self._best(None, candidates)[0]  # type: ignore[return-value]

    def _best(
        self, queue: str | None, candidates: Mapping[str, Mapping[str, int]]
    ) -> tuple[str | None, Share]:
        entries: list[tuple[Share, object, str]] = []
        own = next((n for n in candidates if self.groups[n].queue == queue), None)
        if own is not None and queue is not None:
            if not self.children(queue):
                return own, self.share(queue, False, candidates[own])
            entries.append((self.share(queue, True, candidates[own]), self.order(own), own))
        for child in self.children(queue):
            name, share = self._best(child, candidates)
            if name is not None:
                entries.append((share, self.order(name), name))
        if not entries:
            return None, (False, Fraction(0))
        chosen = min(entries)[2]
        return chosen, self.share(queue, False, candidates[chosen]) if queue is not None else (
            False,
            Fraction(0),
        )

    # ---- a pass ------------------------------------------------------------------------------------------

    def admit(self) -> dict[str, list[int]]:
        """Pods by member of every group after the pass."""
        waiting = {n for n, group in self.groups.items() if group.admitted is None}
        starts = {n: [self._least(n, m) for m in range(len(self.groups[n].members))] for n in waiting}
        # What cannot start as things stand does not stand before what can; in a strict queue it does.
        blocked = {n for n in waiting if not self.fits(n, starts[n])}
        while True:
            heads = self._heads(waiting, blocked)
            if not heads:
                break
            candidates = {
                n: {r: self.held(self.groups[n], starts[n], r) for r in self.resources} for n in heads
            }
            chosen = self.winner(candidates)
            if self.fits(chosen, starts[chosen]):
                self.given[chosen] = starts[chosen]
                waiting.discard(chosen)
            else:
                blocked.add(chosen)
        self._grow()
        return self.given

    def _least(self, name: str, m: int) -> int:
        group = self.groups[name]
        member = group.members[m]
        return member.min_count if group.elastic else member.count

    def _heads(self, waiting: set[str], blocked: set[str]) -> list[str]:
        heads = []
        for queue in self.queues.values():
            line = sorted((n for n in waiting if self.groups[n].queue == queue.name), key=self.order)
            if queue.strategy is Strategy.STRICT_FIFO:
                line = line[:1]
            heads += [n for n in line if n not in blocked][:1]
        return heads

    def _grow(self) -> None:
        stuck: set[tuple[str, int]] = set()
        while True:
            steps: dict[str, list[int]] = {}
            for queue in self.queues:
                mine = sorted((n for n in self.given if self.groups[n].queue == queue), key=self.order)
                step = next(((n, s) for n in mine if (s := self._step(n, stuck)) is not None), None)
                if step is not None:
                    steps[step[0]] = step[1]
            if not steps:
                return
            candidates = {
                n: {r: self.held(self.groups[n], step, r) for r in self.resources}
                for n, step in steps.items()
            }
            chosen = self.winner(candidates)
            wished = [has + more for has, more in zip(self.given[chosen], steps[chosen], strict=True)]
            if self.fits(chosen, wished):
                self.given[chosen] = wished
            else:
                stuck |= {(chosen, m) for m, more in enumerate(steps[chosen]) if more}

    def _step(self, name: str, stuck: set[tuple[str, int]]) -> list[int] | None:
        group, has = self.groups[name], self.given[name]
        wishes = [
            m for m, member in enumerate(group.members) if has[m] < member.count and (name, m) not in stuck
        ]
        if not wishes:
            return None
        if not group.elastic:
            return [max(0, member.count - n) for member, n in zip(group.members, has, strict=True)]

        def progress(m: int) -> tuple[Fraction, int]:
            member = group.members[m]
            return Fraction(has[m] - member.min_count, max(1, member.count - member.min_count)), m

        first = min(wishes, key=progress)
        return [int(m == first) for m in range(len(group.members))]


def placements(nodes: Sequence[Node], group: Group) -> Iterator[None]:
    """Yields once if the minimum of a group can be placed on the (otherwise empty) nodes: tries everything."""
    label = group.topology.label if group.topology and group.topology.required else None
    domains = {None} if label is None else {node.labels[label] for node in nodes if label in node.labels}
    for domain in domains:
        inside = [node for node in nodes if label is None or node.labels.get(label) == domain]
        if _search(inside, group):
            yield None
            return


def _search(nodes: Sequence[Node], group: Group) -> bool:
    free = [dict(node.allocatable) for node in nodes]

    def place(m: int) -> bool:
        if m == len(group.members):
            return True
        member = group.members[m]
        ranges = [range(1) if barrier(member, node) else range(member.min_count + 1) for node in nodes]
        for spread in product(*ranges):
            if sum(spread) == member.min_count and _take(free, member.requests, spread, 1):
                if place(m + 1):
                    return True
                _take(free, member.requests, spread, -1)
        return False

    return place(0)


def _take(free: list[dict[str, int]], requests: Mapping[str, int], spread: Sequence[int], sign: int) -> bool:
    asked = {**requests, "pods": 1}
    fits = sign < 0 or all(
        here.get(name, 0) >= amount * pods
        for here, pods in zip(free, spread, strict=True)
        for name, amount in asked.items()
    )
    if fits:
        for here, pods in zip(free, spread, strict=True):
            for name, amount in asked.items():
                here[name] = here.get(name, 0) - amount * pods * sign
    return fits


def slow_shares(total: int, found: Sequence[tuple[int, int, int]]) -> list[int]:
    """(guarantee, request, weight) of children, oldest first: the rule as it is written, round by round."""
    guaranteed = sum(g for g, _, _ in found)
    if guaranteed > total:
        exact = [Fraction(g * total, guaranteed) for g, _, _ in found]
    else:
        exact = [Fraction(g) for g, _, _ in found]
        rest = Fraction(total - guaranteed)
        while rest > 0:
            below = [i for i, (_, request, weight) in enumerate(found) if weight and exact[i] < request]
            if not below:
                break
            weights = sum(found[i][2] for i in below)
            gifts = {i: min(rest * found[i][2] / weights, found[i][1] - exact[i]) for i in below}
            for i, gift in gifts.items():
                exact[i] += gift
            rest -= sum(gifts.values())
    shares = [int(x) for x in exact]
    missing = int(sum(exact)) - sum(shares)
    for i in sorted(range(len(found)), key=lambda i: (-(exact[i] - shares[i]), i))[:missing]:
        shares[i] += 1
    return shares


__all__ = ["OWN", "Queue", "Reference", "placements", "slow_shares"]
