"""Keeping the watches running: when they end or fall behind, they start again, and say why meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dl2.cluster.client import Credentials
from dl2.cluster.store import Store
from dl2.handlers import watch as module
from dl2.handlers.watch import Watches


class FakeThread:
    """Plays Kopf's thread."""

    started: list[FakeThread]

    def __init__(self, store: Store, _: Credentials) -> None:
        self.store, self.alive, self.listed, self.error = store, False, False, ""

    def start(self) -> None:
        self.alive = True
        self.started.append(self)

    def is_alive(self) -> bool:
        return self.alive

    def stop(self) -> None:
        self.alive = False


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[FakeThread]:
    FakeThread.started = []
    real = asyncio.sleep
    monkeypatch.setattr(module, "_KopfThread", FakeThread)
    monkeypatch.setattr(module.asyncio, "sleep", lambda _seconds: real(0))
    return FakeThread.started


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - sleep is what the test has replaced
            await asyncio.sleep(0)


async def test_watches_that_end_start_again_and_say_why(threads: list[FakeThread]) -> None:
    watches = Watches(Store(), Credentials())
    task = asyncio.create_task(watches.run())
    await until(lambda: threads)
    threads[0].error, threads[0].alive = "Ran out of valid credentials", False
    await until(lambda: len(threads) == 2)
    assert watches.failure == "the watches have ended: Ran out of valid credentials"
    assert watches.restarts == 1
    threads[1].listed = True
    await until(lambda: not watches.failure)
    task.cancel()


async def test_kopf_a_frozen_watch_is_started_again(
    threads: list[FakeThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    watches = Watches(store, Credentials())
    task = asyncio.create_task(watches.run())
    await until(lambda: threads)
    threads[0].listed = True
    monkeypatch.setattr(module, "BEHIND_SECONDS", -1.0)
    store.freshness.seen("Pod", 7)  # and the watch never tells of it
    await until(lambda: len(threads) == 2)
    assert not threads[0].alive
    assert "owing a change" in watches.failure
    task.cancel()


def test_kopf_writes_nothing_and_notices_silence() -> None:
    chosen = module.settings()
    assert chosen.posting.enabled is False
    assert chosen.peering.standalone is True
    assert chosen.scanning.disabled is True
    assert chosen.watching.inactivity_timeout
    assert chosen.watching.server_timeout < chosen.watching.client_timeout
