"""The store: three channels tell of the same objects in any order, and the picture is right after each."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from dl2.api import names
from dl2.cluster.resources import NODE_TOPOLOGIES, NODES, POD_GROUPS, PODS, SCALING_POLICIES, TENANT_QUEUES
from dl2.cluster.store import Store
from dl2.scheduling.snapshot import Key
from tests.unit.controller.objects import raw


def group(version: int, uid: str = "u", count: int = 1) -> dict[str, Any]:
    members = [{"name": "worker", "count": count, "requests": {"cpu": "1"}}]
    return raw("PodGroup", "g", {"members": members}, uid=uid, resourceVersion=str(version))


def pod(
    version: int, name: str = "p", of: str | None = "g", node: str | None = None, phase: str = "Pending"
) -> Any:
    labels = {names.LABEL_POD_GROUP: of, names.LABEL_MEMBER: "worker"} if of else {}
    spec = {"containers": [], **({"nodeName": node} if node else {})}
    return raw("Pod", name, spec, {"phase": phase}, resourceVersion=str(version), labels=labels)


def node(version: int, ready: bool = True, heartbeat: str = "t0") -> Any:
    condition = {"type": "Ready", "status": str(ready), "lastHeartbeatTime": heartbeat}
    return raw(
        "Node",
        "n",
        {},
        {"allocatable": {"cpu": "4"}, "conditions": [condition]},
        resourceVersion=str(version),
    )


def seen(store: Store) -> int | None:
    entry = store.get(POD_GROUPS, "team-a", "g")
    return entry.version if entry else None


@pytest.mark.parametrize("order", list(permutations([1, 2, 3])))
def test_the_newest_version_wins_in_whatever_order_they_come(order: tuple[int, ...]) -> None:
    store = Store()
    for version in order:
        store.upsert(POD_GROUPS, group(version))
    assert seen(store) == 3


def test_a_deleted_object_does_not_come_back_with_a_late_event() -> None:
    store = Store()
    store.upsert(POD_GROUPS, group(1))
    store.remove(POD_GROUPS, "u")
    store.hear(POD_GROUPS, "MODIFIED", group(2))
    assert seen(store) is None


NAMESAKES = {
    "the new one is told of before the end of the old one": [
        ("ADDED", 1, "old"),
        ("ADDED", 9, "new"),
        ("MODIFIED", 5, "old"),
        ("DELETED", 6, "old"),
    ],
    "the end of the old one is never told": [("ADDED", 1, "old"), ("ADDED", 9, "new")],
    "the old one is told of only after the new one": [("ADDED", 9, "new"), ("MODIFIED", 5, "old")],
    "all in order": [("ADDED", 1, "old"), ("DELETED", 6, "old"), ("ADDED", 9, "new")],
}


@pytest.mark.parametrize("events", NAMESAKES.values(), ids=NAMESAKES.keys())
def test_a_name_belongs_to_the_younger_of_two(events: list[tuple[str, int, str]]) -> None:
    store = Store()
    for kind, version, uid in events:
        store.hear(POD_GROUPS, kind, group(version, uid))
    assert [entry.uid for entry in store.all(POD_GROUPS)] == ["new"]
    found = store.get(POD_GROUPS, "team-a", "g")
    assert found is not None
    assert found.uid == "new"


def test_a_list_forgets_what_is_gone_but_not_what_is_newer_than_itself() -> None:
    store = Store()
    store.upsert(PODS, pod(5, "gone"))
    store.upsert(PODS, pod(20, "made-since"))
    assert store.keep_only(PODS, set(), version=10) == 1
    assert [entry.name for entry in store.all(PODS)] == ["made-since"]
    assert [p.name for p in store.pods_of(Key("team-a", "g"))] == ["made-since"]


def test_what_a_list_did_not_show_comes_back_only_by_something_newer() -> None:
    store = Store()
    store.upsert(NODES, node(5))
    assert store.keep_only(NODES, set(), version=10) == 1
    store.hear(NODES, "MODIFIED", node(9))  # from before the LIST, but late
    assert not [*store.all(NODES)]
    store.hear(NODES, "MODIFIED", node(11))  # so it is there
    assert [entry.version for entry in store.all(NODES)] == [11]
    store.hear(NODES, "DELETED", node(12))
    store.hear(NODES, "MODIFIED", node(13))
    assert not [*store.all(NODES)]  # what was told to be deleted never comes back


def test_an_object_that_cannot_be_read_says_why_and_stops_nobody() -> None:
    store = Store()
    store.upsert(POD_GROUPS, raw("PodGroup", "bad", {"members": [{"name": "w", "count": -1}]}))
    store.upsert(POD_GROUPS, group(3))
    bad = store.get(POD_GROUPS, "team-a", "bad")
    assert bad is not None
    assert bad.value is None
    assert "spec.members[0].count" in bad.error
    assert seen(store) == 3


def after(store: Store, *steps: Any) -> tuple[set[Key], set[str], set[str], bool]:
    """What the last of `steps` marks as changed."""
    for step in steps[:-1]:
        step()
    store.dirty, store.dirty_nodes, store.dirty_kinds = set(), set(), set()
    store.changed.clear()
    steps[-1]()
    return store.dirty, store.dirty_nodes, store.dirty_kinds, store.changed.is_set()


KEY = Key("team-a", "g")
FREE, BOUND = pod(1, of=None), pod(2, of=None, node="n")
STARTED, ENDED = (pod(3, of=None, node="n", phase=phase) for phase in ("Running", "Succeeded"))
NOTHING: Any = (set(), set(), set(), False)
THE_NODE: Any = (set(), {"n"}, set(), True)
MARKS: dict[str, Any] = {
    "a pod of a group": ([(PODS, pod(1)), (PODS, pod(2, node="n"))], ({KEY}, set(), set(), True)),
    "a pod of nobody waits": ([(PODS, FREE)], NOTHING),
    "a pod of nobody is bound": ([(PODS, FREE), (PODS, BOUND)], THE_NODE),
    "a pod of nobody turns ready": ([(PODS, BOUND), (PODS, STARTED)], NOTHING),
    "a pod of nobody ends": ([(PODS, BOUND), (PODS, ENDED)], THE_NODE),
    "a node's heartbeat": ([(NODES, node(1)), (NODES, node(2, heartbeat="t1"))], NOTHING),
    "a node is lost": ([(NODES, node(1)), (NODES, node(2, ready=False))], THE_NODE),
    "a queue": ([(TENANT_QUEUES, raw("TenantQueue", "q"))], (set(), set(), {"TenantQueue"}, True)),
}


@pytest.mark.parametrize(("told", "marked"), MARKS.values(), ids=MARKS.keys())
def test_a_change_marks_what_it_concerns_and_nothing_else(told: list[Any], marked: Any) -> None:
    store = Store()
    steps = [lambda r=resource, o=found: store.upsert(r, o) for resource, found in told]
    assert after(store, *steps) == marked


def test_room_on_a_node_is_what_pods_of_nobody_leave() -> None:
    store = Store()
    store.upsert(PODS, pod(1, "theirs", of=None, node="n"))
    store.upsert(PODS, pod(2, "ours", node="n"))
    assert [p.name for p in store.others_on("n")] == ["theirs"]
    store.upsert(PODS, pod(3, "theirs", of=None, node="n", phase="Succeeded"))
    assert list(store.others_on("n")) == []


def test_free_zones_concern_their_node_and_the_same_zones_again_nobody() -> None:
    def topology(version: int, free: str) -> Any:
        zones = [{"name": "node-0", "type": "Node", "resources": [{"name": "cpu", "available": free}]}]
        meta = raw("NodeResourceTopology", "n", uid="u", namespace="", resourceVersion=str(version))
        return {**meta, "zones": zones}

    store = Store()
    store.upsert(NODE_TOPOLOGIES, topology(1, "4"))
    assert store.dirty_nodes == {"n"}
    store.dirty_nodes.clear()
    store.upsert(NODE_TOPOLOGIES, topology(2, "4"))
    assert store.dirty_nodes == set()
    store.upsert(NODE_TOPOLOGIES, topology(3, "2"))
    assert store.dirty_nodes == {"n"}
    (entry,) = store.all(NODE_TOPOLOGIES)
    assert entry.value.zones == ({"cpu": 2000},)


def test_a_change_of_the_status_alone_does_not_parse_the_object_again() -> None:
    store = Store()
    store.upsert(POD_GROUPS, group(1))
    (before,) = store.all(POD_GROUPS)
    store.upsert(POD_GROUPS, {**group(2), "status": {"state": "Admitted"}})
    (after,) = store.all(POD_GROUPS)
    assert after.value is before.value
    assert (after.status["state"], after.version) == ("Admitted", 2)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 2},
        {"labels": {"a": "b"}},
        {"annotations": {"a": "b"}},
        {"deletionTimestamp": "2026-11-23T09:00:00Z"},
    ],
)
def test_whatever_else_changes_is_read(change: dict[str, Any]) -> None:
    store = Store()
    store.upsert(POD_GROUPS, group(1))
    changed = group(2, count=3)
    changed["metadata"] |= change
    store.upsert(POD_GROUPS, changed)
    (after,) = store.all(POD_GROUPS)
    assert after.value.spec.members[0].count == 3


def test_equal_specs_are_one_and_different_ones_are_not() -> None:
    store = Store()
    for name, count in (("a", 1), ("b", 1), ("c", 2)):
        manifest = group(1, uid=name, count=count)
        manifest["metadata"]["name"] = name
        store.upsert(POD_GROUPS, manifest)
    a, b, c = (entry.value.spec for entry in store.all(POD_GROUPS))
    assert a is b
    assert (a.members[0].count, c.members[0].count) == (1, 2)


def test_objects_of_two_kinds_that_ask_for_the_same_do_not_share_it() -> None:
    store = Store()
    store.upsert(TENANT_QUEUES, raw("TenantQueue", "q", {}, uid="q"))
    store.upsert(SCALING_POLICIES, raw("ScalingPolicy", "p", {}, uid="p"))
    (queue,), (policy,) = store.all(TENANT_QUEUES), store.all(SCALING_POLICIES)
    assert (queue.value.spec.weight, policy.value.spec.stage) == (1, "Observe")
