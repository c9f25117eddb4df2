"""The loop: one bad object, one bad pass or one full applier never stops the others."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.api import names
from dl2.cluster.applier import Applier
from dl2.cluster.resources import NAMESPACES, PODS
from dl2.cluster.resync import Resync
from dl2.cluster.store import Store
from dl2.controller import decisions, world
from dl2.controller.loop import Controller
from dl2.scheduling.plan import Action
from dl2.scheduling.snapshot import Key
from dl2.web.metrics import Metrics
from tests.unit.cluster.fake_api import FakeApi, FakeClient
from tests.unit.controller.life import HASTY, NAMESPACE, Life, cluster, queue, true


def group(name: str, cpu: str = "1", **more: Any) -> dict[str, Any]:
    members = [{"name": "worker", "count": 1, "requests": {"cpu": cpu}}]
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PodGroup",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"members": members, **more},
    }


def gated_pod(of: str) -> dict[str, Any]:
    labels = {names.LABEL_POD_GROUP: of, names.LABEL_MEMBER: "worker"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{of}-0", "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "schedulingGates": [{"name": names.GATE}],
            "containers": [{"name": "main", "resources": {"requests": {"cpu": "1"}}}],
        },
        "status": {"phase": "Pending"},
    }


def admitted(api: FakeApi, name: str) -> bool:
    return true(api.objects["PodGroup", NAMESPACE, name], "Admitted")


async def controller(api: FakeApi) -> tuple[Controller, Store]:
    client, store = FakeClient(api), Store()
    await Resync(client, store).prime()  # type: ignore[arg-type]
    return Controller(client, store, HASTY, Metrics()), store  # type: ignore[arg-type]


async def test_one_group_that_breaks_the_reader_gets_a_condition_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = world.intake.read_group

    def read(spec: Any, *arguments: Any, **more: Any) -> Any:
        if spec.metadata.name == "cursed":
            raise ZeroDivisionError("no such thing")
        return real(spec, *arguments, **more)

    monkeypatch.setattr(world.intake, "read_group", read)
    life = Life(cluster())
    life.api.put(group("cursed"))
    life.api.put(group("sound"))
    await life.until(lambda: admitted(life.api, "sound"))
    cursed = life.api.objects["PodGroup", NAMESPACE, "cursed"]["status"]
    assert (cursed["state"], cursed["reason"]) == ("Pending", "Misconfigured")


@pytest.mark.parametrize(
    ("after", "owner", "told"),
    [(29.0, None, False), (31.0, None, True), (31.0, "Job", True), (31.0, "DLJob", False)],
)
async def test_a_pod_of_a_group_that_nobody_has_made_is_told(
    after: float, owner: str | None, told: bool
) -> None:
    api = cluster()
    owners = (
        [{"apiVersion": "v1", "kind": owner, "name": "o", "uid": "u", "controller": True}] if owner else []
    )
    stray = gated_pod("misspelt")
    stray["metadata"]["ownerReferences"] = owners
    api.put(stray)
    control, store = await controller(api)
    key = Key(NAMESPACE, "misspelt")
    (pod,) = store.pods_of(key)
    control._tell_stray_pods(key, pod.created + after)
    events = [control.recorder._queue.get_nowait() for _ in range(control.recorder._queue.qsize())]
    assert [(e["reason"], e["type"], e["regarding"]["name"]) for e in events] == (
        [("PodGroupNotFound", "Warning", "misspelt-0")] if told else []
    )
    assert bool(control._wakes) is (after < 30.0)  # it is looked at again when the time has come


async def test_an_object_that_no_schema_would_have_let_in_gets_a_condition(subtests: Any) -> None:
    life = Life(cluster())
    life.api.put(group("sound"))
    life.api.put({**group("wrong"), "spec": {"members": [{"name": "w", "count": "many"}]}})
    await life.until(lambda: admitted(life.api, "sound"))
    (told,) = life.api.objects["PodGroup", NAMESPACE, "wrong"]["status"]["conditions"]
    assert (told["reason"], "spec.members[0].count" in told["message"]) == ("Misconfigured", True)


async def test_what_a_failed_pass_was_about_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    api = cluster()
    api.put(group("g"))
    operator, _ = await controller(api)
    real, failures = decisions.decide, iter([True])

    def decide(*arguments: Any, **more: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("a defect")
        return real(*arguments, **more)

    monkeypatch.setattr(decisions, "decide", decide)
    with pytest.raises(RuntimeError):
        operator.one_pass()
    operator.one_pass()
    await operator.applier.drain(1)
    assert admitted(api, "g")


async def test_what_could_not_be_read_is_read_by_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node marks itself by its changes only: its heartbeats are alike."""
    api = cluster()
    api.put(group("g"))
    operator, _ = await controller(api)
    real, failures = world.intake.read_node, iter([True])

    def read(*arguments: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("a defect")
        return real(*arguments)

    monkeypatch.setattr(world.intake, "read_node", read)
    with pytest.raises(RuntimeError):
        operator.one_pass()
    operator.one_pass()
    await operator.applier.drain(1)
    assert admitted(api, "g")


async def test_what_does_not_fit_into_the_applier_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(cluster())
    real = Applier.__init__
    monkeypatch.setattr(Applier, "__init__", lambda self, *a, **k: real(self, *a, **{**k, "backlog": 3}))
    for n in range(20):
        life.api.put(group(f"g{n}"))
    await life.until(lambda: all(admitted(life.api, f"g{n}") for n in range(20)))


def planned(operator: Controller, key: Key) -> Action:
    """In the newest plan; why groups wait is only now and then read from it."""
    (found,) = (decision.action for decision in operator._decisions.plan.decisions if decision.key == key)
    return found


async def test_an_admission_on_its_way_counts_already() -> None:
    """Two passes before the first answer: the second must not give the same room away again."""
    api = cluster()
    api.objects["TenantQueue", "", NAMESPACE]["spec"]["resources"]["cpu"]["max"] = "1"
    api.put(group("a"))
    operator, store = await controller(api)
    operator.one_pass()
    store.upsert(world.POD_GROUPS, api.put(group("b")))
    operator.one_pass()
    assert planned(operator, Key(NAMESPACE, "a")) is Action.KEEP
    assert planned(operator, Key(NAMESPACE, "b")) is Action.WAIT
    await operator.applier.drain(1)
    assert (admitted(api, "a"), admitted(api, "b")) == (True, False)


async def test_nothing_is_decided_anew_when_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    api = cluster()
    api.put(group("g"))
    operator, store = await controller(api)
    for _ in range(4):
        operator.one_pass()
        await operator.applier.drain(1)
    calls = []
    monkeypatch.setattr(decisions, "decide", lambda *a, **k: calls.append(a))
    store.touch(Key(NAMESPACE, "g"))
    operator.one_pass()
    assert calls == []


async def test_quiet_means_no_writes_and_no_wake_ups() -> None:
    api = cluster()
    api.put(group("g"))
    operator, _ = await controller(api)
    delay: float | None = 0.0
    for _ in range(8):
        delay = operator.one_pass()
        await operator.applier.drain(1)
    assert delay is None
    assert operator.applier.open_writes == 0


@pytest.mark.parametrize("pods", [False, True])
async def test_what_is_in_a_namespace_that_is_going_holds_its_pods_room_and_no_more(pods: bool) -> None:
    """The namespace controller takes its time, and nothing new can start in there meanwhile."""
    api = cluster()
    api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-b"}})
    api.put({**queue("1"), "spec": {**queue("1")["spec"], "namespaceSelector": {}}})
    api.put(group("g"))
    if pods:
        api.put(gated_pod("g"))
    operator, store = await controller(api)
    for _ in range(4):
        operator.one_pass()
        await operator.applier.drain(1)
    assert admitted(api, "g")
    if pods:
        bound = dict(api.objects["Pod", NAMESPACE, "g-0"])
        bound["spec"], bound["status"] = {**bound["spec"], "nodeName": "n"}, {"phase": "Running"}
        store.upsert(PODS, api.put(bound))
    other = group("other", queue=NAMESPACE)
    other["metadata"]["namespace"] = "team-b"
    store.upsert(world.POD_GROUPS, api.put(other))
    namespace = dict(api.objects["Namespace", "", NAMESPACE])
    namespace["metadata"] = {**namespace["metadata"], "deletionTimestamp": "2026-11-26T17:00:00Z"}
    store.upsert(NAMESPACES, api.put(namespace))
    operator.one_pass()
    there = Key("team-b", "other")
    assert planned(operator, there) is (Action.WAIT if pods else Action.ADMIT)
    if pods:
        store.remove(PODS, next(iter(store.all(PODS))).uid)
        operator.one_pass()
        assert planned(operator, there) is Action.ADMIT
