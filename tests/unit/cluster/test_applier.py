"""Writes: one at a time per object, the truth found out after a failure, back-off, and failures that are forgotten."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from dl2.cluster import applier as module
from dl2.cluster.applier import Applier, Verb, Write
from dl2.cluster.client import ApiError
from dl2.cluster.resources import NATIVE_POD_GROUPS, POD_GROUPS, PODS, SECRETS
from dl2.cluster.store import Store
from dl2.scheduling.snapshot import Key
from tests.unit.cluster.fake_api import FakeApi, FakeClient, Fault

OWNER = Key("team-a", "g")
Setting = tuple[FakeApi, FakeClient, Store, Applier]


def pod(name: str = "p") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "team-a"},
        "spec": {"containers": []},
    }


def create(name: str = "p") -> Write:
    return Write(Verb.CREATE, PODS, "team-a", name, OWNER, pod(name))


def setting(*faults: Fault | None, backlog: int = 256) -> Setting:
    api = FakeApi()
    client = FakeClient(api, lambda n, _what: faults[n] if n < len(faults) else None)
    store = Store()
    return api, client, store, Applier(client, store, backlog=backlog)  # type: ignore[arg-type]


def due(applier: Applier) -> set[Key]:
    """As if the back-off were over."""
    for slots in applier._failures.values():
        for failure in slots.values():
            failure.retry_at = 0.0
    return applier.due()


async def test_the_answer_of_a_write_is_in_the_store_before_the_next_one_may_start() -> None:
    _, client, store, applier = setting()
    assert applier.submit(create())
    assert not applier.submit(create())
    assert applier.creating(PODS, OWNER) == {"p"}
    await applier.drain(1)
    assert store.get(PODS, "team-a", "p")
    assert applier.creating(PODS, OWNER) == frozenset()
    assert client.log == ["create Pod p"]
    assert OWNER in store.dirty  # looked at again


async def test_no_more_than_the_backlog_is_taken() -> None:
    *_, applier = setting(backlog=2)
    assert [applier.submit(create(f"p{n}")) for n in range(3)] == [True, True, False]
    await applier.drain(1)


LOST = {"it has taken effect": (True, 1), "it has not": (False, 0)}


@pytest.mark.parametrize(("happened", "pods"), LOST.values(), ids=LOST.keys())
async def test_after_a_lost_answer_the_truth_is_read(happened: bool, pods: int) -> None:
    _, _, store, applier = setting(Fault(happens=happened))
    applier.submit(create())
    await applier.drain(1)
    assert store.count(PODS) == pods


async def test_a_write_of_unknown_outcome_stays_open_until_the_api_server_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, client, store, applier = setting(Fault(happens=True))
    asked, real = 0, client.get

    async def get(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise ApiError(0, "Timeout", "no answer")
        return await real(*arguments)

    async def at_once(_: float) -> None:
        await asyncio.tasks.__sleep0()  # type: ignore[attr-defined]

    monkeypatch.setattr(client, "get", get)
    monkeypatch.setattr(module.asyncio, "sleep", at_once)
    applier.submit(create())
    await applier.drain(1)
    assert (asked, store.count(PODS)) == (3, 1)


async def test_a_refused_write_backs_off_twice_as_long_each_time_and_is_told() -> None:
    refusal = Fault(error=ApiError(403, "Forbidden", "exceeded quota"))
    *_, applier = setting(*[refusal] * 9)
    waits = []
    for _ in range(8):
        assert applier.submit(create())
        await applier.drain(1)
        assert not applier.submit(create())  # not before its time
        assert applier.rejection_of(OWNER) == "Pod p: exceeded quota"
        (failure,) = applier._failures[OWNER].values()
        assert failure.retry_at is not None
        waits.append(round(failure.retry_at - module.time.monotonic()))
        assert due(applier) == {OWNER}
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_failure_that_nobody_tries_again_is_forgotten() -> None:
    *_, applier = setting(Fault(error=ApiError(403, "Forbidden", "exceeded quota")))
    applier.submit(create())
    await applier.drain(1)
    due(applier)
    assert applier.settle_due() == {OWNER}  # its owner has to say so
    assert applier.rejection_of(OWNER) == ""
    assert applier.next_retry() is None


async def test_a_failure_ends_with_the_success_of_its_write() -> None:
    *_, applier = setting(Fault(error=ApiError(503, "Unavailable", "")))
    applier.submit(create())
    await applier.drain(1)
    due(applier)
    assert applier.submit(create())
    assert applier.settle_due() == set()
    await applier.drain(1)
    assert applier.next_retry() is None


async def test_a_deletion_meets_only_the_object_that_was_meant() -> None:
    api, _, store, applier = setting()
    there = api.put(pod())
    applier.submit(Write(Verb.DELETE, PODS, "team-a", "p", OWNER, uid="uid-of-a-namesake"))
    await applier.drain(1)
    assert api.of_kind("Pod")
    found = store.get(PODS, "team-a", "p")
    assert found is not None
    assert found.uid == there["metadata"]["uid"]
    assert applier.next_retry() is None  # what was wanted is so


@pytest.mark.parametrize(
    "outdated", [{"uid": "another"}, {"resourceVersion": "0"}], ids=lambda o: next(iter(o))
)
async def test_a_status_made_from_an_older_picture_is_not_written(outdated: dict[str, str]) -> None:
    api, _, store, applier = setting()
    group = {"apiVersion": "dl2.dev/v1alpha1", "kind": "PodGroup", "metadata": {"name": "g", "namespace": "team-a"},
             "spec": {"members": [{"name": "w", "count": 1}]}}  # fmt: skip
    there = api.put(group)
    body = {**group, "metadata": {**there["metadata"], **outdated}, "status": {"state": "Finished"}}
    applier.submit(
        Write(Verb.APPLY_STATUS, POD_GROUPS, "team-a", "g", OWNER, body, uid=body["metadata"]["uid"])
    )
    assert applier.assumed_status(POD_GROUPS, OWNER) == {"state": "Finished"}
    await applier.drain(1)
    assert applier.assumed_status(POD_GROUPS, OWNER) is None
    assert "status" not in api.of_kind("PodGroup")[0]
    assert store.get(POD_GROUPS, "team-a", "g")  # and the newer picture is known


async def test_a_defect_in_sending_fails_that_write_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, client, store, applier = setting()
    real = client.create

    async def create_or_break(resource: Any, body: Any) -> Any:
        if body["metadata"]["name"] == "bad":
            raise ZeroDivisionError
        return await real(resource, body)

    monkeypatch.setattr(client, "create", create_or_break)
    applier.submit(create("bad"))
    applier.submit(create("good"))
    await applier.drain(1)
    assert [entry.name for entry in store.all(PODS)] == ["good"]
    assert applier.open_writes == 0
    with contextlib.suppress(StopIteration):
        assert next(iter(applier._failures[OWNER])).name == "bad"


def native_gang(least: int) -> Write:
    body = {
        "apiVersion": NATIVE_POD_GROUPS.api_version,
        "kind": "PodGroup",
        "metadata": {"name": "g", "namespace": "team-a"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": least}}},
    }
    return Write(Verb.APPLY, NATIVE_POD_GROUPS, "team-a", "g", OWNER, body)


async def test_what_nobody_watches_is_not_applied_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    _, client, _, applier = setting()
    for least, sent in ((3, True), (3, False), (4, True), (4, False)):
        assert applier.submit(native_gang(least)) is sent
        await applier.drain(1)
    monkeypatch.setattr(module, "BELIEVED_SECONDS", 0.0)  # in the end it is looked after again
    assert applier.submit(native_gang(4))
    await applier.drain(1)
    assert len(client.log) == 3


async def test_a_secret_that_is_there_already_is_what_was_wanted() -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "team-a"}}
    write = Write(Verb.CREATE, SECRETS, "team-a", "s", OWNER, body)
    _, client, _, applier = setting()
    for _ in range(2):
        assert applier.submit(write)
        await applier.drain(1)
    assert (len(client.log), applier.rejection_of(OWNER), applier.next_retry()) == (2, "", None)
