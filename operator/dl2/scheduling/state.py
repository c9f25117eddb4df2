"""The cluster as one pass finds it: tree, ledgers, nodes, and every group with what it holds."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from dl2.scheduling.fits import matches
from dl2.scheduling.fleet import PODS, Fleet, capacity_of
from dl2.scheduling.items import (
    Counts,
    GroupShape,
    Item,
    MemberShape,
    Order,
    admitted_counts,
    is_held,
    split_pods,
)
from dl2.scheduling.placement import Placer
from dl2.scheduling.plan import Reason
from dl2.scheduling.settings import Settings
from dl2.scheduling.snapshot import CapacityMode, Group, Key, Member, Pod, Quantities, Queue, Snapshot, Stop
from dl2.scheduling.tree import Ledger, Tree, TreeNode, Vector

_NO_PODS: tuple[Pod, ...] = ()
Losers = tuple[list[Item], Vector]  # the first to lose last, and what none of them would lose less than


@dataclass(slots=True, eq=False)
class Line:
    """The groups of one leaf: those that wait, by shape and in order, and those that run."""

    leaf: TreeNode
    demand: list[int]  # what the waiting ones still ask for
    waiting: dict[int, list[tuple[Order, Item]]] = field(default_factory=dict)
    running: dict[Key, Item] = field(default_factory=dict)
    hungry: dict[Key, Item] = field(default_factory=dict)  # running with fewer pods than they ask for
    orders: dict[Enum, Losers] = field(default_factory=dict)  # of the running ones, kept for `Room`

    def run(self, item: Item) -> None:
        self.running[item.key] = item
        if item.hungry:
            self.hungry[item.key] = item
        self.orders.clear()

    def end(self, key: Key) -> None:
        del self.running[key]
        self.hungry.pop(key, None)
        self.orders.clear()


def _levels(usual: Sequence[str], groups: Iterable[Group]) -> tuple[str, ...]:
    """The levels of topology, and what else some group prefers just above single nodes."""
    preferred = {group.topology.label for group in groups if group.topology and not group.topology.required}
    return (*usual[:-1], *sorted(preferred.difference(usual)), *usual[-1:])


class State:
    """Built from a snapshot; `add` and `remove` keep it current when single groups change."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        self.settings = settings
        self.queues = {queue.name: queue for queue in snapshot.queues}
        self.namespaces = snapshot.namespaces
        by_nodes = snapshot.capacity is CapacityMode.NODES
        nodes = list({node.name: node for node in snapshot.nodes}.values())
        self.named = {name for queue in snapshot.queues for name in queue.limits}
        self.requested = requested = {
            name for group in snapshot.groups for member in group.members for name in member.requests
        }
        self.tree = Tree(
            snapshot.queues,
            # Where no queue names a resource, all that are asked for count: fairness needs a measure.
            sorted(self.named or requested),
            capacity_of(nodes) if by_nodes else None,
        )
        self.now, self.future = Ledger(self.tree), Ledger(self.tree)
        levels = _levels(settings.levels, snapshot.groups)
        self.fleet = Fleet(nodes, sorted({*requested, PODS}), levels) if by_nodes else None
        self.placer = Placer(self.fleet) if self.fleet else None
        self.strays = TreeNode("", -1, path=(self.tree.root,))  # groups that run without a sound queue
        self.items: dict[Key, Item] = {}
        self.lines: dict[int, Line] = {}
        self.restless: dict[Key, Item] = {}  # admitted, and perhaps to be stopped, cut or placed
        self.delayed: dict[Key, Item] = {}  # waiting, and backing off at first
        self.counts: dict[str, list[int]] = {}
        self._shapes: dict[object, GroupShape] = {}
        self._members: dict[object, MemberShape] = {}
        self._allowed: dict[tuple[str, str], bool] = {}
        for group in {group.key: group for group in snapshot.groups}.values():
            self.add(group)

    # ---- groups in and out -------------------------------------------------------------------------------

    def add(self, group: Group) -> None:
        item = self._item(group)
        self.items[group.key] = item
        self._charge(item, 1)
        line = self.line(item.leaf)
        if item.admitted:
            line.run(item)
        elif item.blocked is None:
            insort(line.waiting.setdefault(item.shape.number, []), (item.order, item))
            _add(line.demand, item.still_asks, 1)
        self._count(item, 1)
        if item.restless:
            self.restless[item.key] = item
        if item.group.requeue_at > 0 and item.blocked is None and not item.admitted:
            self.delayed[item.key] = item

    def remove(self, key: Key) -> None:
        item = self.items.pop(key)
        self._charge(item, -1)
        line = self.line(item.leaf)
        if item.admitted:
            line.end(key)
        elif item.blocked is None:
            waiting = line.waiting[item.shape.number]
            del waiting[bisect_left(waiting, (item.order,))]
            if not waiting:
                del line.waiting[item.shape.number]
            _add(line.demand, item.still_asks, -1)
        self._count(item, -1)
        self.restless.pop(key, None)
        self.delayed.pop(key, None)

    def _count(self, item: Item, sign: int) -> None:
        """(waiting, running) groups of every queue by name, blocked ones among the waiting."""
        if not item.group.finished:
            counts = self.counts.setdefault(item.group.queue, [0, 0])
            counts[item.admitted] += sign

    def knows(self, group: Group) -> bool:
        """Are all resources that it asks for columns of the node vectors, and is the label that it prefers a level?"""
        if self.fleet is None:
            return True
        known = set(self.fleet.resources)
        return all(known.issuperset(member.requests) for member in group.members) and (
            group.topology is None or group.topology.required or group.topology.label in self.fleet.levels
        )

    def tidy(self) -> None:
        """Between passes: forget what would only grow."""
        if self.placer is not None:
            self.placer.tidy()
        if len(self._shapes) > 10_000 + 10 * len(self.items):
            self._shapes = {}

    def line(self, leaf: TreeNode) -> Line:
        if leaf.index not in self.lines:
            self.lines[leaf.index] = Line(leaf, [0] * len(self.tree.resources))
        return self.lines[leaf.index]

    def _charge(self, item: Item, sign: int) -> None:
        if any(item.charged):
            self.now.add(item.leaf, item.charged, sign)
        if any(item.kept):
            self.future.add(item.leaf, item.kept, sign)
        if self.fleet is not None:
            for i, vector in item.kept_on:
                self.fleet.charge(i, vector, sign)
            for i, vector in item.leaving_on:
                self.fleet.charge(i, vector, sign, future=False)

    # ---- what a group is ---------------------------------------------------------------------------------

    def _item(self, group: Group) -> Item:
        shape = self.shape_of(group)
        leaf = self.tree.leaves.get(group.queue, self.strays)
        item = Item(group, shape, leaf, (not group.promised, -group.priority, group.created, group.key))
        item.admitted = group.admitted is not None and not group.finished
        item.counts = admitted_counts(group, shape) if item.admitted else (0,) * len(shape.members)
        if group.pods or item.admitted:
            self._settle_pods(item)
        else:
            item.charged = item.kept = shape.quota(item.counts)
            item.spreads = tuple({} for _ in shape.members)
            item.unplaced = item.counts
        if item.admitted:
            item.hungry = _fewer(item.counts, shape.full) and not group.error
            item.restless = self._is_restless(item)
        else:
            item.blocked = self._blocked(item)
            item.asks = tuple(max(0, n - has) for n, has in zip(shape.least, item.counts, strict=True))
            item.needs = shape.quota(item.asks)
        return item

    def _is_restless(self, item: Item) -> bool:
        group = item.group
        unready = group.ready_at is None and bool(group.pods or group.pods_expected)
        return (
            unready or group.suspend or item.leaf.stop is Stop.DRAIN or any(item.unplaced)
            or _fewer(item.shape.full, item.counts)
        )  # fmt: skip

    def _settle_pods(self, item: Item) -> None:
        """Where the pods are, which of them leave, and what that charges now and then."""
        charged, kept, spreads, unplaced = [], [], [], []
        for n, member in enumerate(item.shape.members):
            stay, leave = self._split(item, n, member)
            here = len(stay) if not item.admitted else item.counts[n]
            spread, loose = self._kept_on(item, member, stay, here)
            for pod in leave:
                self._bound(item.leaving_on, pod, member)
            item.leaving += sum(pod.terminating for pod in leave)
            charged.append(max(here, len(stay) + len(leave)))
            kept.append(here)
            spreads.append(spread)
            unplaced.append(loose)
        item.charged, item.kept = item.shape.quota(charged), item.shape.quota(kept)
        item.counts, item.spreads, item.unplaced = tuple(kept), tuple(spreads), tuple(unplaced)

    def _split(self, item: Item, n: int, member: MemberShape) -> tuple[Sequence[Pod], Sequence[Pod]]:
        group = item.group
        if not group.pods:
            return _NO_PODS, _NO_PODS
        held = sum(pod.member == member.name and is_held(pod) for pod in group.pods)
        keep = 0 if group.finished else item.counts[n] if item.admitted else held
        return split_pods(group, member.name, keep)

    def _kept_on(
        self, item: Item, member: MemberShape, stay: Sequence[Pod], here: int
    ) -> tuple[dict[int, int], int]:
        """Nodes of the pods that stay, then of the assumed ones; and how many are nowhere yet."""
        spread: dict[int, int] = {}
        if self.fleet is None or member.pod is None:
            return spread, 0
        bound = 0
        for pod in stay:
            i = self._bound(item.kept_on, pod, member)
            bound += pod.node is not None
            if i is not None:
                spread[i] = spread.get(i, 0) + 1
        done = sum(pod.succeeded and pod.member == member.name for pod in item.group.pods)
        loose = max(0, here - bound - done)
        for name, count in sorted(item.group.assumed.get(member.name, {}).items()):
            i = self.fleet.number.get(name)
            taken = min(count, loose) if i is not None else 0
            if i is not None and taken > 0:
                loose -= taken
                spread[i] = spread.get(i, 0) + taken
                item.kept_on.append((i, tuple(amount * taken for amount in member.pod.vector)))
        return spread, loose if item.admitted else 0

    def _bound(self, amounts: list[tuple[int, Vector]], pod: Pod, member: MemberShape) -> int | None:
        """Note what a bound pod takes of its node; the node's number, or None."""
        if self.fleet is None or member.pod is None or pod.node is None:
            return None
        i = self.fleet.number.get(pod.node)
        if i is not None:
            same = not pod.requests or pod.requests == member.requests
            amounts.append((i, member.pod.vector if same else self.fleet.vector(pod.requests)))
        return i

    def pinned_to(self, item: Item) -> list[int]:
        """The nodes of the domains that an admitted group's pods are pinned to; empty where they are not."""
        domains = {given.domain for given in (item.group.admitted or {}).values() if given.domain is not None}
        nodes = self.fleet.nodes if self.fleet is not None else []
        return [
            i for i, node in enumerate(nodes) if any(node.labels.get(d.label) == d.value for d in domains)
        ]

    def exits(self, item: Item, n: int) -> list[tuple[int | None, Vector]]:
        """Nodes and amounts of a member's kept pods, the one that leaves last first."""
        member, fleet = item.shape.members[n], self.fleet
        assert fleet is not None
        assert member.pod is not None
        stay, _ = self._split(item, n, member)
        bound = [pod for pod in reversed(stay) if pod.node is not None]
        amounts: list[tuple[int, Vector]] = []
        nodes = [(self._bound(amounts, pod, member), pod) for pod in bound]
        sizes = iter(amounts)
        exits: list[tuple[int | None, Vector]] = [
            (i, next(sizes)[1] if i is not None else member.pod.vector) for i, _ in nodes
        ]
        assumed = dict(item.spreads[n])
        for i, _ in exits:
            if i is not None:
                assumed[i] -= 1
        for i, count in sorted(assumed.items()):
            exits += [(i, member.pod.vector)] * count
        return exits

    def _blocked(self, item: Item) -> tuple[Reason, str] | None:
        group, queue = item.group, self.queues.get(item.group.queue)
        if group.finished:
            return Reason.NONE, ""
        if group.error or not group.members:
            return Reason.MISCONFIGURED, group.error or "spec.members is empty; name at least one member"
        if group.suspend:
            return Reason.SUSPENDED, "spec.suspend is true; set it to false to queue again"
        if queue is None:
            return Reason.QUEUE_NOT_FOUND, f'there is no queue "{group.queue}"; create it or name another'
        if queue.name in self.tree.broken:
            return Reason.MISCONFIGURED, f'queue "{queue.name}": {self.tree.broken[queue.name]}'
        if not self._may_submit(group.key.namespace, queue):
            mend = "its spec.namespaceSelector must select the namespace"
            return (
                Reason.NAMESPACE_NOT_ALLOWED,
                f'namespace "{group.key.namespace}" may not use queue "{queue.name}"; {mend}',
            )
        if item.leaf.stop is not Stop.NONE:
            by = next(n.name for n in item.leaf.path if n.queue and n.queue.stop is not Stop.NONE)
            return Reason.QUEUE_STOPPED, f'queue "{by}" has stop: {item.leaf.stop}'
        if item.leaving:
            return Reason.BACKING_OFF, f"pods of its own that are still on their way out: {item.leaving}"
        return None

    def _may_submit(self, namespace: str, queue: Queue) -> bool:
        if queue.namespace_selector is None:
            return namespace == queue.name
        known = (namespace, queue.name)
        if known not in self._allowed:
            labels = {"kubernetes.io/metadata.name": namespace, **self.namespaces.get(namespace, {})}
            self._allowed[known] = matches(queue.namespace_selector, labels)
        return self._allowed[known]

    # ---- shapes ------------------------------------------------------------------------------------------

    def shape_of(self, group: Group) -> GroupShape:
        guaranteed = {pod.member for pod in group.pods if pod.guaranteed} if group.pods else set()
        members = tuple(self._member(m, group.elastic, m.name in guaranteed) for m in group.members)
        required = group.topology.label if group.topology and group.topology.required else None
        preferred = group.topology.label if group.topology and not group.topology.required else None
        # A group with pods of its own fares like no other.
        alone = group.key if group.pods and group.admitted is None else None
        key = (tuple(map(id, members)), required, preferred, alone)
        shape = self._shapes.get(key)
        if shape is None:
            least, full = tuple(m.least for m in members), tuple(m.count for m in members)
            nothing = (0,) * len(self.tree.resources)
            shape = GroupShape(len(self._shapes), members, required, preferred, least, full, nothing)
            self._shapes[key] = shape
        return shape

    def _member(self, member: Member, elastic: bool, guaranteed: bool) -> MemberShape:
        least = min(member.min_count, member.count) if elastic else member.count
        key = (
            member.name, member.count, least, tuple(sorted(member.requests.items())),
            tuple(sorted(member.node_selector.items())), member.affinity, member.tolerations, guaranteed,
        )  # fmt: skip
        known = self._members.get(key)
        if known is None:
            pod = self.fleet.shape_of(member, aligned=guaranteed) if self.fleet else None
            known = MemberShape(
                member.name, member.count, least, self._quota(member.requests), pod, member.requests
            )
            self._members[key] = known
        return known

    def _quota(self, requests: Quantities) -> Vector:
        return tuple(1 if name == PODS else requests.get(name, 0) for name in self.tree.resources)


def _add(total: list[int], vector: Vector, sign: int) -> None:
    for r, amount in enumerate(vector):
        total[r] += amount * sign


def _fewer(counts: Counts, than: Counts) -> bool:
    return any(left < right for left, right in zip(counts, than, strict=True))
