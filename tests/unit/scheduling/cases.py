"""Named scenarios as data: what there is, what the first pass tells, what runs in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from dl2.scheduling.snapshot import Group, Node, Queue
from tests.unit.scheduling.dsl import World, run, told


@dataclass
class Case:
    """`first`: some decisions of the first pass in words (see `told`). `end`: what runs once all stands still:
    "3" pods (by member "3+1"), "-" for a group that does not run. Groups that are not named may do as they like.
    Whoever is evicted is evicted in the first pass.
    """

    name: str
    queues: Sequence[Queue]
    groups: Sequence[Group]
    nodes: Sequence[Node] | None = None  # None: quota only
    first: Mapping[str, str] = field(default_factory=dict)
    end: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)  # part of a message
    more: Mapping[str, Any] = field(default_factory=dict)  # for World

    def world(self) -> World:
        return World(
            self.queues, self.nodes or (), self.groups, quota_only=self.nodes is None, **dict(self.more)
        )

    def check(self) -> None:
        world = self.world()
        plan = world.plan()
        words = told(plan)
        assert {name: words.get(name, "Keep") for name in self.first} == dict(self.first)
        messages = {str(decision.key): decision.message for decision in plan.decisions}
        for name, part in self.says.items():
            assert part in messages[name]
        for later in world.passes()[1:]:
            assert not [words for words in told(later).values() if words.startswith("Evict")], (
                "one pass decides it"
            )
        running = world.settled()
        assert {name: running.get(name, "-") for name in self.end} == dict(self.end)


def cases(*found: Case) -> pytest.MarkDecorator:
    names = [case.name for case in found]
    assert len(set(names)) == len(names), "two scenarios of one name"
    return pytest.mark.parametrize("case", found, ids=[name.replace(" ", "-") for name in names])


def ones(queue: str, count: int, **more: Any) -> list[Group]:
    """`count` running one-GPU groups "queue/0".., the first the oldest."""
    return [run(f"{queue}/{i}", 1, age=1000 - i, **more) for i in range(count)]
