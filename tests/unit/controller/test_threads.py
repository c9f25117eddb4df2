"""Work beside the event loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from dl2.controller.threads import LoopTime


async def _busy_then_waiting(busy: float, waiting: float) -> str:
    for _ in range(3):
        until = time.perf_counter() + busy
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(waiting)
    return "done"


async def test_only_the_loops_own_time_counts() -> None:
    timed = LoopTime(_busy_then_waiting(0.02, 0.2))
    assert await timed == "done"
    assert 0.06 <= timed.seconds < 0.6  # 0.6 s of waiting are not in it
    assert 0.02 <= timed.longest <= timed.seconds
    assert 0.0 < timed.longest_busy <= timed.longest


async def test_waiting_for_others_is_no_work() -> None:
    async def block() -> None:
        time.sleep(0.1)  # noqa: ASYNC251 - on purpose

    timed = LoopTime(block())
    await timed
    assert timed.longest >= 0.1
    assert timed.longest_busy < 0.05


async def test_errors_and_cancellation_pass_through() -> None:
    async def fails() -> None:
        try:
            await asyncio.wait_for(asyncio.sleep(10), 0.01)
        except TimeoutError:
            raise LookupError("as it should") from None

    with pytest.raises(LookupError, match="as it should"):
        await LoopTime(fails())

    async def wait() -> None:
        await LoopTime(asyncio.sleep(10))

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
