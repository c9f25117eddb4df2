"""How far the running jobs are: every coordinator is asked over HTTP, bounded in time, size and number.

Coordinators are other people's programs: one that hangs, lies or vanishes costs its own job its figures, nothing else.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dl2.scheduling.snapshot import Key

log = structlog.get_logger(__name__)
MAX_BYTES = 64 * 1024
CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class Resize:
    """The last change of members that a coordinator tells of. Shapes are (workers, servers)."""

    time: float  # seconds since the epoch, by its clock
    before: tuple[int, int]
    after: tuple[int, int]
    pause_milliseconds: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """One report. Times in seconds since the epoch; `step` counts from the start of training."""

    epoch: int
    step: int
    steps_per_second: float
    updated_at: float
    metrics: dict[str, float] = field(default_factory=dict)
    resize: Resize | None = None
    received_at: float = field(default=0.0, compare=False)  # by our clock; the trainer's may be off


class _Report(BaseModel):
    model_config = ConfigDict(extra="ignore")
    epoch: int = Field(0, ge=0, le=10**12)
    step: int = Field(0, ge=0, le=10**15)
    steps_per_second: float = Field(0, ge=0, le=1e9, allow_inf_nan=False)
    updated_at: float = Field(0, ge=0, le=1e11, allow_inf_nan=False)
    metrics: dict[str, Any] = {}
    last_scaling: Any = None


class _Shape(BaseModel):
    model_config = ConfigDict(extra="ignore")
    workers: int = Field(ge=0, le=10_000)
    servers: int = Field(ge=0, le=10_000)

    def pair(self) -> tuple[int, int]:
        return self.workers, self.servers


class _Scaling(BaseModel):
    model_config = ConfigDict(extra="ignore")
    time: float = Field(ge=0, le=1e11, allow_inf_nan=False)
    before: _Shape = Field(alias="from")
    to: _Shape
    pause_ms: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    reason: str = ""


def _read_resize(told: Any) -> Resize | None:
    """None: no change of shape is told of, or nothing that can be understood."""
    try:
        scaling = _Scaling.model_validate(told)
    except ValidationError:
        return None
    before, after = scaling.before.pair(), scaling.to.pair()
    if not before[0] or before == after:
        return None
    return Resize(scaling.time, before, after, round(scaling.pause_ms), scaling.reason[:256])


def read_report(data: bytes) -> Progress:
    """Raises ValueError that says what is wrong with the report."""
    try:
        report = _Report.model_validate(orjson.loads(data))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except orjson.JSONDecodeError as exc:
        raise ValueError(f"no JSON: {exc}") from None
    metrics = {
        str(k)[:63]: float(v)
        for k, v in list(report.metrics.items())[:16]
        if isinstance(v, int | float) and math.isfinite(v)
    }
    return Progress(
        report.epoch,
        report.step,
        report.steps_per_second,
        report.updated_at,
        metrics,
        _read_resize(report.last_scaling),
        time.time(),
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Whom to ask for one job."""

    uid: str
    key: Key
    url: str


class ProgressCollector:
    """Asks every source each `interval` seconds. `on_progress(key)` tells that a job has news."""

    def __init__(
        self,
        sources: Callable[[], Iterable[Source]],
        on_progress: Callable[[Key], None],
        interval: float,
        timeout: float,
    ) -> None:
        self._sources, self._on_progress, self._interval = sources, on_progress, interval
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._latest: dict[str, Progress] = {}
        self._failing: set[str] = set()

    def latest(self, uid: str) -> Progress | None:
        return self._latest.get(uid)

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=CONCURRENCY, force_close=False)
        async with aiohttp.ClientSession(timeout=self._timeout, connector=connector) as session:
            while True:
                started = time.monotonic()
                await self._round(session)
                await asyncio.sleep(max(0.1, self._interval - (time.monotonic() - started)))

    async def _round(self, session: aiohttp.ClientSession) -> None:
        sources = {source.uid: source for source in self._sources()}
        for gone in self._latest.keys() - sources.keys():
            self._latest.pop(gone, None)
        self._failing &= sources.keys()
        limit = asyncio.Semaphore(CONCURRENCY)

        async def ask(source: Source) -> None:
            async with limit:
                await self._ask(session, source)

        await asyncio.gather(*(ask(source) for source in sources.values()))

    async def _ask(self, session: aiohttp.ClientSession, source: Source) -> None:
        try:
            async with session.get(source.url, allow_redirects=False) as response:
                if response.status != 200:
                    raise ValueError(f"HTTP {response.status}")
                data = await response.content.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            progress = read_report(data)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as exc:
            if source.uid not in self._failing:  # once per outage, not once per round
                self._failing.add(source.uid)
                log.info(
                    "no progress from the coordinator",
                    job=str(source.key),
                    error=str(exc) or type(exc).__name__,
                )
            return
        self._failing.discard(source.uid)
        if progress != self._latest.get(source.uid):
            self._latest[source.uid] = progress
            self._on_progress(source.key)
