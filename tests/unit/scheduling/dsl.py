"""A tiny language for scheduling scenarios: queues, nodes and groups in, decisions out.

    world = World(queues=[q("a", min=4, max=8)], nodes=[node("n1", gpu=8)], groups=[g("a/one", gpu=2)])
    assert world.settled() == {"a/one": "1"}

Numbers are GPUs unless said otherwise. A running group is `run(...)`; its pods sit on the nodes of `on`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dl2.scheduling.apply import settle
from dl2.scheduling.decide import decide
from dl2.scheduling.plan import Action, Decision, Plan
from dl2.scheduling.settings import Settings
from dl2.scheduling.snapshot import (
    Admitted,
    CapacityMode,
    Expression,
    Group,
    Key,
    Limits,
    Member,
    Node,
    Pod,
    Preemption,
    Queue,
    Snapshot,
    Stop,
    Strategy,
    Topology,
)

GPU = "nvidia.com/gpu"
RACK, BLOCK, ZONE, HOST = (
    "dl2.dev/rack",
    "dl2.dev/block",
    "topology.kubernetes.io/zone",
    "kubernetes.io/hostname",
)
NOW = 1_000_000.0


def q(
    name: str,
    parent: str | None = None,
    *,
    min: int | None = None,
    max: int | None = None,
    lend: int | None = None,
    weight: int = 1,
    within: str = "LowerPriority",
    reclaim: str = "Any",
    strategy: str = "BestEffortFIFO",
    stop: str = "None",
    limits: Mapping[str, Limits] | None = None,
    resource: str = GPU,
    **more: Any,
) -> Queue:
    """A queue that anybody may use. `min`, `max`, `lend` are of `resource`; `limits` names others."""
    named = dict(limits or {})
    if min is not None or max is not None or lend is not None:
        named[resource] = Limits(min or 0, max, lend)
    declared = frozenset(
        name for name, limit in named.items() if limit.min or name != resource or min is not None
    )
    more.setdefault("namespace_selector", ())
    return Queue(
        name, parent, weight, named, declared, strategy=Strategy(strategy), within_queue=Preemption(within),
        reclaim=Preemption(reclaim), stop=Stop(stop), **more,
    )  # fmt: skip


def node(name: str, gpu: int = 8, *, cpu: int = 1000, pods: int = 110, labels: Mapping[str, str] | None = None,
         rack: str | None = None, block: str | None = None, zone: str | None = None, **more: Any) -> Node:  # fmt: skip
    domains = {HOST: name, RACK: rack, BLOCK: block, ZONE: zone}
    found = {key: value for key, value in domains.items() if value is not None}
    allocatable = {"cpu": cpu * 1000, "pods": pods, **({GPU: gpu} if gpu else {})}
    return Node(name, allocatable, {**found, **(labels or {})}, **more)


def nodes(count: int, gpu: int = 8, **more: Any) -> list[Node]:
    return [node(f"n{i}", gpu, **more) for i in range(1, count + 1)]


def m(
    name: str = "worker", count: int = 1, least: int | None = None, gpu: int = 1, *, cpu: int = 0, **more: Any
) -> Member:
    """A member of `count` pods, `gpu` GPUs each. Without `least` it is rigid."""
    requests = {key: amount for key, amount in ((GPU, gpu), ("cpu", cpu * 1000)) if amount}
    return Member(name, count, count if least is None else least, more.pop("requests", requests), **more)


def g(
    name: str,
    count: int = 1,
    least: int | None = None,
    gpu: int = 1,
    *,
    prio: int = 0,
    age: float = 0,
    queue: str | None = None,
    members: Sequence[Member] = (),
    required: str | None = None,
    preferred: str | None = None,
    **more: Any,
) -> Group:
    """A waiting group "queue/name", created `age` seconds ago: `count` pods of `gpu` GPUs (at least `least`)."""
    space, _, short = name.partition("/")
    topology = Topology(required, True) if required else Topology(preferred, False) if preferred else None
    member_keys = {"cpu", "node_selector", "affinity", "tolerations", "requests"}
    member = {key: more.pop(key) for key in list(more) if key in member_keys}
    return Group(
        Key(space, short), queue or space, tuple(members) or (m("worker", count, least, gpu, **member),),
        uid=name, priority=prio, created=NOW - age, topology=topology, **more,
    )  # fmt: skip


def run(name: str, *args: Any, on: Mapping[str, int] | None = None, has: Mapping[str, int] | int | None = None,
        lost: float = 0, ends: float | None = None, pods: bool = True, **kwargs: Any) -> Group:  # fmt: skip
    """A running group. `on`: node -> pods of its first member (bound); `has`: admitted pods by member.

    `lost`: seconds of work an eviction throws away; `ends`: seconds from now to its expected end.
    """
    group = g(name, *args, **kwargs)
    first = group.members[0].name
    given = has if isinstance(has, Mapping) else {first: has} if has is not None else {}
    spots = [place for place, count in (on or {}).items() for _ in range(count)]
    counts = {member.name: given.get(member.name, member.count) for member in group.members}
    if on and has is None:
        counts[first] = len(spots)
    bound = tuple(
        Pod(f"{group.key.name}-{first}-{i}", first, requests=group.members[0].requests, node=place, ready=True,
            created=group.created + i)
        for i, place in enumerate(spots)
    )  # fmt: skip
    return replace(
        group, admitted={name: Admitted(count) for name, count in counts.items()},
        admitted_at=group.created, ready_at=group.created, progress_lost=lost,
        expected_end=None if ends is None else NOW + ends, pods=bound if pods else (),
    )  # fmt: skip


def expr(key: str, operator: str, *values: str) -> Expression:
    return Expression(key, operator, values)


@dataclass
class World:
    queues: Sequence[Queue] = ()
    nodes: Sequence[Node] = ()
    groups: Sequence[Group] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    quota_only: bool = False
    settings: Settings = field(default_factory=Settings)
    now: float = NOW

    @property
    def snapshot(self) -> Snapshot:
        mode = CapacityMode.QUOTA if self.quota_only else CapacityMode.NODES
        return Snapshot(
            self.now, tuple(self.queues), tuple(self.groups), tuple(self.nodes), self.namespaces, mode
        )

    def plan(self) -> Plan:
        return decide(self.snapshot, self.settings)

    def decisions(self) -> dict[str, Decision]:
        return {str(decision.key): decision for decision in self.plan().decisions}

    def one(self, name: str) -> Decision:
        return self.decisions()[name]

    def one_of(self, group: Group) -> Decision:
        return self.one(str(group.key))

    def passes(self, limit: int = 20) -> list[Plan]:
        """Plans until one changes nothing; the world is left as they make it. Then five more may move nothing."""
        plans = []
        while len(plans) < limit:
            plan = self.plan()
            if not moves(plan):
                break
            plans.append(plan)
            self.groups = settle(self.snapshot, plan).groups
        else:
            raise AssertionError(f"still moving after {limit} passes: {moves(plans[-1])}")
        for _ in range(5):
            again = self.plan()
            assert not moves(again), f"moves after it stood still: {moves(again)}"
            self.groups = settle(self.snapshot, again).groups
        return plans

    def settled(self) -> dict[str, str]:
        """What runs in the end, "2" or "2+1" pods by member; also after all back-offs are over."""
        self.passes()
        first = self.running()
        self.later(10_000)
        self.passes()
        return first

    def later(self, seconds: float) -> World:
        self.now += seconds
        return self

    def running(self) -> dict[str, str]:
        return {
            str(group.key): "+".join(str(given.count) for given in group.admitted.values())
            for group in self.groups
            if group.admitted is not None
        }


def moves(plan: Plan) -> dict[str, str]:
    """What a plan changes, in words; waiting and keeping are no change."""
    return {name: words for name, words in told(plan).items() if not words.startswith("Wait")}


def told(plan: Plan) -> dict[str, str]:
    """A plan in words: "Admit 2", "Evict Reclaimed", "Wait WaitingForQuota"; groups that are kept are left out."""
    words = {}
    for decision in plan.decisions:
        counts = "+".join(str(member.count) for member in decision.members.values())
        if decision.action is not Action.KEEP:
            words[str(decision.key)] = f"{decision.action.value} {decision.reason.value or counts}"
    return words
