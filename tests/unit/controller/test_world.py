"""What is read piece by piece is what is read from scratch."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dl2.api import names
from dl2.cluster.applier import Applier
from dl2.cluster.resources import NODES, POD_GROUPS, PODS
from dl2.cluster.store import Store
from dl2.controller.world import World
from dl2.scheduling.snapshot import Snapshot
from tests.unit.controller.life import node
from tests.unit.controller.objects import NOW, raw, template


class Piecemeal:
    """A store that hears of changes, and a world that reads only those."""

    def __init__(self) -> None:
        self.store = Store()
        self.world = self._world()
        for name in ("n1", "n2"):
            self.store.upsert(NODES, raw("Node", name, status=node()["status"], namespace=""))

    def _world(self) -> World:
        return World(self.store, Applier(None, self.store))  # type: ignore[arg-type]

    def group(self, name: str, attempt: int) -> None:
        members = [{"name": "worker", "count": 4, "requests": {"cpu": "1"}}]
        self.store.upsert(POD_GROUPS, raw("PodGroup", name, {"members": members}, uid=f"{name}-{attempt}"))

    def pod(self, group: str, attempt: int, index: int, on: str | None, going: bool = False) -> None:
        labels = {names.LABEL_POD_GROUP: group, names.LABEL_MEMBER: "worker", names.LABEL_INDEX: str(index)}
        meta: dict[str, Any] = {"uid": self.uid(group, attempt, index), "labels": labels}
        if going:
            meta["deletionTimestamp"] = "2026-11-23T09:00:00Z"
        spec = {**template()["spec"], **({"nodeName": on} if on else {})}
        self.store.upsert(PODS, raw("Pod", f"{group}-{attempt}-{index}", spec, {"phase": "Running"}, **meta))

    @staticmethod
    def uid(group: str, attempt: int, index: int) -> str:
        return f"pod-{group}-{attempt}-{index}"

    def read(self) -> Snapshot:
        store = self.store
        self.world.refresh(store.dirty, store.dirty_nodes, store.dirty_kinds)
        store.dirty, store.dirty_nodes, store.dirty_kinds = set(), set(), set()
        return self.world.snapshot(NOW)

    def from_scratch(self) -> Snapshot:
        world = self._world()
        world.refresh(set(), set(), set())
        return world.snapshot(NOW)


def load(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    return {each.name: dict(each.used_by_others) for each in snapshot.nodes}


def test_a_pod_whose_group_is_gone_frees_its_node_when_it_goes_too() -> None:
    """Also where a group of the same name has come meanwhile, as after `kubectl delete` and `kubectl apply`."""
    for again in (False, True):
        here = Piecemeal()
        here.group("g", 1)
        here.pod("g", 1, 0, "n1")
        here.pod("g", 1, 1, "n2")
        assert load(here.read()) == {"n1": {}, "n2": {}}
        here.store.remove(POD_GROUPS, "g-1")
        assert load(here.read())["n1"]["cpu"] == 1000
        if again:
            here.group("g", 2)
        here.store.remove(PODS, here.uid("g", 1, 0))
        assert not load(here.read())["n1"]
        here.store.remove(PODS, here.uid("g", 1, 1))
        assert load(here.read()) == {"n1": {}, "n2": {}}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_history_is_read_as_from_scratch(seed: int) -> None:
    rng, here, attempts = Random(seed), Piecemeal(), {"g": 1, "h": 1}
    for _ in range(30):
        group, index = rng.choice("gh"), rng.randrange(3)
        attempt = attempts[group] - (rng.random() < 0.3)
        match rng.randrange(6):
            case 0:
                here.group(group, attempts[group])
            case 1:
                here.store.remove(POD_GROUPS, f"{group}-{attempts[group]}")
                attempts[group] += 1
            case 2 | 3:
                here.pod(group, attempt, index, rng.choice([None, "n1", "n2"]), rng.random() < 0.3)
            case 4:
                here.store.remove(PODS, here.uid(group, attempt, index))
            case _:
                pieces, whole = here.read(), here.from_scratch()
                assert sorted(pieces.groups, key=lambda g: g.key) == sorted(whole.groups, key=lambda g: g.key)
                assert load(pieces) == load(whole)
