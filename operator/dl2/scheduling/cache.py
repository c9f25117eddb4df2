"""What one pass leaves for the next: the state, brought up to date by what has changed since.

The plan is the same as from scratch; only the time differs. Objects are compared by identity first, so a
caller that hands in the same unchanged `Group` and `Node` objects again pays for the changed ones only.
"""

from __future__ import annotations

from collections.abc import Sequence

from dl2.scheduling.settings import Settings
from dl2.scheduling.snapshot import Group, Node, Snapshot
from dl2.scheduling.state import State


class Cache:
    """Give the same one to successive calls of `decide`. Not for concurrent passes."""

    def __init__(self) -> None:
        self._state: State | None = None
        self._seen: Snapshot | None = None
        self.settings: Settings | None = None

    def state(self, snapshot: Snapshot, settings: Settings) -> State:
        """The state of `snapshot`, made anew where more than groups and the load of nodes has changed."""
        state, seen = self._state, self._seen
        self._state = self._seen = None  # an exception half-way must not leave a half-made state behind
        if (
            state is not None
            and seen is not None
            and self.settings == settings
            and _follows(state, seen, snapshot)
        ):
            state.tidy()
        else:
            state = State(snapshot, settings)
        self._state, self._seen, self.settings = state, snapshot, settings
        return state


def _follows(state: State, seen: Snapshot, snapshot: Snapshot) -> bool:
    """Lead `state` of `seen` on to `snapshot`. False: that cannot be done, and it is of no use any more."""
    same = (
        snapshot.capacity is seen.capacity
        and _same(snapshot.queues, seen.queues)
        and (snapshot.namespaces is seen.namespaces or snapshot.namespaces == seen.namespaces)
        and (bool(state.named) or _requested(snapshot) == state.requested)
    )
    return (
        same
        and _follow_nodes(state, seen.nodes, snapshot.nodes)
        and _follow_groups(state, seen.groups, snapshot.groups)
    )


def _same(left: Sequence[object], right: Sequence[object]) -> bool:
    return left is right or (
        len(left) == len(right) and all(a is b or a == b for a, b in zip(left, right, strict=True))
    )


def _requested(snapshot: Snapshot) -> set[str]:
    return {name for group in snapshot.groups for member in group.members for name in member.requests}


def _follow_nodes(state: State, old: Sequence[Node], new: Sequence[Node]) -> bool:
    if old is new or state.fleet is None:
        return True
    if len(old) != len(new):
        return False
    changed = [(a, b) for a, b in zip(old, new, strict=True) if a is not b and a != b]
    if not all(_only_load(a, b) for a, b in changed):
        return False
    for _, node in changed:
        state.fleet.reload(node)
    return True


def _only_load(old: Node, new: Node) -> bool:
    """Is what other people's pods use the only thing that differs?"""
    return (
        (old.name, old.unschedulable, old.ready, old.taints, old.zones)
        == (new.name, new.unschedulable, new.ready, new.taints, new.zones)
        and old.labels == new.labels
        and old.allocatable == new.allocatable
    )


def _follow_groups(state: State, old: Sequence[Group], new: Sequence[Group]) -> bool:
    """Groups that nothing has happened to are the same objects: they are told apart without a look at them."""
    items = state.items
    was, stays = set(map(id, old)), set(map(id, new))
    come = [group for group in new if id(group) not in was]
    if not all(state.knows(group) for group in come):
        return False
    again = {group.key for group in come}
    for key in dict.fromkeys(group.key for group in old if id(group) not in stays):
        if key not in again:
            state.remove(key)
    for group in come:
        item = items.get(group.key)
        if item is None:
            state.add(group)
        elif item.group != group:
            state.remove(group.key)
            state.add(group)
    return len(items) == len(new)  # two of one name: from scratch, where the last one counts
