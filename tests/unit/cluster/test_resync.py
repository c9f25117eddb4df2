"""LIST: patient before the first decision, and afterwards the net under the watches."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.cluster import resync as module
from dl2.cluster.client import ApiError
from dl2.cluster.resources import NAMESPACES, PODS
from dl2.cluster.resync import SETTLE_SECONDS, Resync
from dl2.cluster.store import Store
from tests.unit.cluster.fake_api import FakeApi, FakeClient


def pod(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "a"},
        "spec": {"containers": []},
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that goes on only by sleeping."""
    now = [1000.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return now


class Moody(FakeClient):
    """Its first LISTs fail."""

    def __init__(self, api: FakeApi, failures: int) -> None:
        super().__init__(api)
        self.failures, self.lists = failures, 0

    async def list(self, resource: Any, **more: Any) -> Any:
        self.lists += 1
        if self.failures > 0:
            self.failures -= 1
            raise ApiError(503, "Unavailable", "starting")
        async for page in super().list(resource, **more):
            yield page


async def test_it_waits_for_every_kind_with_capped_back_off(clock: list[float]) -> None:
    client = Moody(FakeApi(), failures=12)
    resync = Resync(client, Store(), [PODS, NAMESPACES])  # type: ignore[arg-type]
    await resync.prime()
    assert (resync.primed, resync.failure) == (True, "")
    assert client.lists == 14
    assert clock[0] - 1000 < 12 * 31


async def test_what_a_watch_missed_is_found(clock: list[float]) -> None:
    api, store = FakeApi(), Store()
    resync = Resync(FakeClient(api), store, [PODS])  # type: ignore[arg-type]
    api.put(pod("stays"))
    api.put(pod("goes"))
    await resync.prime()
    api.remove(("Pod", "a", "goes"))
    api.put(pod("comes"))
    assert await resync.list_once(PODS) == 1
    assert sorted(entry.name for entry in store.all(PODS)) == ["comes", "stays"]


def test_it_is_due_after_the_interval_and_soon_after_the_watch_has_listed_by_itself(
    clock: list[float],
) -> None:
    store = Store()
    resync = Resync(FakeClient(FakeApi()), store, [PODS])  # type: ignore[arg-type]
    resync._listed_at["Pod"] = clock[0]
    assert not resync._due("Pod", 120)
    clock[0] += 1
    store.freshness.heard("Pod", 1, relisted=True)
    assert not resync._due("Pod", 120)  # it may not have come to its end
    clock[0] += SETTLE_SECONDS
    assert resync._due("Pod", 120)
    resync._listed_at["Pod"] = clock[0]
    assert not resync._due("Pod", 120)
    clock[0] += 120
    assert resync._due("Pod", 120)


async def test_a_kind_that_cannot_be_listed_says_so_and_is_not_asked_all_the_time(clock: list[float]) -> None:
    client = Moody(FakeApi(), failures=0)
    resync = Resync(client, Store(), [PODS, NAMESPACES])  # type: ignore[arg-type]
    await resync.prime()
    client.failures = 1
    assert not await resync._try(PODS)
    assert "cannot list pods: 503" in resync.failure
    clock[0] += 200
    resync._not_before["Pod"] = clock[0] + 1
    assert not resync._due("Pod", 120)
    assert resync._due("Namespace", 120)
    assert resync.age() >= 200


async def test_it_tells_for_how_long_it_has_been_failing(clock: list[float]) -> None:
    client = Moody(FakeApi(), failures=0)
    resync = Resync(client, Store(), [PODS, NAMESPACES])  # type: ignore[arg-type]
    await resync.prime()
    assert resync.failing() == 0
    client.failures = 2
    assert not await resync._try(PODS)
    clock[0] += 20
    assert not await resync._try(NAMESPACES)
    clock[0] += 5
    assert resync.failing() == 25
    assert await resync._try(PODS)
    assert resync.failing() == 25
    assert await resync._try(NAMESPACES)
    assert resync.failing() == 0
