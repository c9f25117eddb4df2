"""The load of Kueue's own scheduler benchmark, as groups without pods, and who plays their pods.

Creates every group at its time, watches for admissions, and writes the condition Finished when a group has been
admitted for its run time. An admission that is taken back ends the run: the next one starts from the beginning.
Nothing here is lost for good: writes are repeated until the API server has taken them, and when the watch ends or
stays silent all groups are listed again.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from load.systems import CLASSES, Class, Raw, System, holds, queues

SILENCE_SECONDS = 5.0  # of the watch, until all groups are listed again
IN_FLIGHT = 48  # requests of each kind


@dataclass(frozen=True)
class Server:
    """The API server, and the token of a service account to be let in with."""

    url: str
    ca: Path
    token: str

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass
class Report:
    """What the load has come to so far. Times in seconds, use in CPU-seconds."""

    groups: int = 0
    created: int = 0
    finished: int = 0
    wall: float = 0.0  # from the first creation to the last group finished
    held: float = 0.0  # CPUs admitted, over time
    cpus: int = 0  # admitted now
    told: float = 0.0  # CPUs that the queues' status calls used, over time
    worked: float = 0.0  # CPUs times run time of what has finished
    waits: dict[str, float] = field(
        default_factory=dict
    )  # by class: mean from creation to the admission that counted
    evictions: dict[str, int] = field(default_factory=dict)
    repeats: int = 0  # requests sent again
    lists: int = 0
    processor: float = 0.0  # CPU seconds of the load generator itself

    @property
    def complete(self) -> bool:
        return self.finished == self.groups


@dataclass(slots=True)
class _Group:
    kind: Class
    created: float
    token: str = ""  # which admission it is
    waited: float = 0.0
    finished: bool = False


@dataclass(slots=True)
class _Told:
    """What a queue's status says is used, and since when."""

    cpus: float
    at: float


def arrivals(scale: float) -> list[tuple[float, str, Class, int]]:
    """(second, queue, class, number) of every group, in the order of time."""
    return sorted(
        (
            (number * kind.every, queue, kind, number)
            for _, queue in queues()
            for kind in CLASSES
            for number in range(max(1, round(kind.count * scale)))
        ),
        key=lambda arrival: (arrival[0], arrival[3], arrival[1]),
    )


class Load:
    """One run. `run` returns when all groups have finished or `timeout` seconds are over."""

    def __init__(self, system: System, server: Server, scale: float, timeout: float) -> None:
        self._system, self._server, self._timeout = system, server, timeout
        self._arrivals = arrivals(scale)
        self._groups: dict[tuple[str, str], _Group] = {}
        self._told = {queue: _Told(0.0, 0.0) for _, queue in queues()}
        self._creating, self._finishing = asyncio.Semaphore(IN_FLIGHT), asyncio.Semaphore(IN_FLIGHT)
        self._done = asyncio.Event()
        self._began = self._counted = 0.0
        self._report = Report(groups=len(self._arrivals))

    async def run(self, tell: Callable[[Report], None], every: float) -> Report:
        """`tell` is called with what there is so far every `every` seconds."""
        connector = aiohttp.TCPConnector(limit=0, ssl=self._server.tls())
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(
            self._server.url, connector=connector, timeout=timeout, headers=self._server.headers()
        ) as session:
            self._session = session
            self._began = self._counted = time.monotonic()
            async with asyncio.TaskGroup() as self._tasks:
                helpers = [
                    self._tasks.create_task(self._watch(self._path(), self._saw)),
                    self._tasks.create_task(self._watch(self._queues_path(), self._saw_queue)),
                    self._tasks.create_task(self._create_all()),
                    self._tasks.create_task(self._tell(tell, every)),
                ]
                try:
                    async with asyncio.timeout(self._timeout):
                        await self._done.wait()
                except TimeoutError:
                    pass
                for task in [*helpers, *asyncio.all_tasks() - {asyncio.current_task()}]:
                    task.cancel()
        return self.report()

    def report(self) -> Report:
        report = self._report
        for kind in CLASSES:
            waits = [g.waited for g in self._groups.values() if g.kind == kind and g.finished]
            report.waits[kind.name] = sum(waits) / len(waits) if waits else 0.0
        report.processor = time.process_time()
        if not report.complete:
            report.wall = time.monotonic() - self._began
        return report

    async def _tell(self, tell: Callable[[Report], None], every: float) -> None:
        while True:
            await asyncio.sleep(every)
            tell(self.report())

    # -- creating -------------------------------------------------------------------------------------------
    async def _create_all(self) -> None:
        for second, queue, kind, number in self._arrivals:
            delay = self._began + second - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            await self._creating.acquire()
            task = self._tasks.create_task(self._create(queue, kind, f"{kind.name}-{number}"))
            task.add_done_callback(lambda _: self._creating.release())

    async def _create(self, queue: str, kind: Class, name: str) -> None:
        body = self._system.group(queue, kind, name)
        self._groups[queue, name] = _Group(kind, time.monotonic())
        await self._send("POST", self._path(queue), body, "application/json", {409})
        self._report.created += 1

    # -- running and finishing ------------------------------------------------------------------------------
    def _saw(self, raw: dict[str, Any]) -> None:
        """Take in what the API server says of a group."""
        meta = raw["metadata"]
        key = meta["namespace"], meta["name"]
        group = self._groups.get(key)
        if group is None or group.finished:
            return
        owed = self._system.give_back(raw)
        if owed is not None:
            self._tasks.create_task(self._give_back(key, owed))
        token = self._system.admission(raw)
        if token == group.token:
            return
        now = time.monotonic()
        if group.token:
            self._charge(now, -group.kind.cpus)
            self._report.evictions[group.kind.name] = self._report.evictions.get(group.kind.name, 0) + 1
        group.token = token
        if token:
            self._charge(now, group.kind.cpus)
            group.waited = now - group.created
            self._tasks.create_task(self._finish(key, group, token))

    async def _finish(self, key: tuple[str, str], group: _Group, token: str) -> None:
        await asyncio.sleep(group.kind.runtime)
        if group.token != token:
            return
        patch = self._system.finish(key[0], token)
        path = self._path(*key)
        async with self._finishing:
            answer = await self._send("PATCH", f"{path}/status", patch, "application/json-patch+json", {422})
            if answer is None:
                answer = await self._send("GET", path) or {}
        if holds(answer, "Finished"):
            self._ended(group)
        else:
            self._saw(answer)

    async def _give_back(self, key: tuple[str, str], patch: Raw) -> None:
        # Refused when somebody else has written meanwhile: that is heard of, and answered again.
        await self._send(
            "PATCH", f"{self._path(*key)}/status", patch, "application/merge-patch+json", {404, 409}
        )

    def _ended(self, group: _Group) -> None:
        if group.finished:
            return
        group.finished = True
        self._charge(time.monotonic(), -group.kind.cpus if group.token else 0)
        self._report.finished += 1
        self._report.worked += group.kind.cpus * group.kind.runtime
        if self._report.complete:
            self._report.wall = time.monotonic() - self._began
            self._done.set()

    def _charge(self, now: float, cpus: int) -> None:
        self._report.held += self._report.cpus * (now - self._counted)
        self._report.cpus += cpus
        self._counted = now

    def _saw_queue(self, raw: dict[str, Any]) -> None:
        """Take in what a queue's status says, until all groups have finished."""
        told, now = self._told.get(raw["metadata"]["name"]), time.monotonic()
        if told is not None and not self._report.complete:
            self._report.told += told.cpus * (now - told.at)
            told.cpus, told.at = self._system.used(raw), now

    # -- the API server -------------------------------------------------------------------------------------
    def _queues_path(self) -> str:
        return f"{self._system.api}/{self._system.queues}"

    def _path(self, namespace: str = "", name: str = "") -> str:
        system = self._system
        if not namespace:
            return f"{system.api}/{system.plural}"
        return f"{system.api}/namespaces/{namespace}/{system.plural}" + (f"/{name}" if name else "")

    async def _watch(self, path: str, saw: Callable[[dict[str, Any]], None]) -> None:
        while True:
            version = await self._list(path, saw)
            try:
                async for event in self._events(path, version):
                    if event["type"] == "ERROR":
                        break
                    saw(event["object"])
            except (TimeoutError, aiohttp.ClientError, OSError):
                pass  # silent or cut off: whatever it was, the list tells

    async def _events(self, path: str, version: str) -> AsyncIterator[dict[str, Any]]:
        query = {"watch": "true", "resourceVersion": version}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        async with self._session.get(path, params=query, timeout=timeout) as response:
            response.raise_for_status()
            rest = b""
            async for block in response.content.iter_any():
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    yield orjson.loads(line)

    async def _list(self, path: str, saw: Callable[[dict[str, Any]], None]) -> str:
        """Take in all objects of a kind. Returns the version to watch from."""
        self._report.lists += 1
        token, version = "", ""
        while True:
            page = await self._send("GET", f"{path}?limit=500&continue={token}", refused={410})
            if page is None:  # the pages are too old by now
                token = ""
                continue
            for raw in page.get("items") or ():
                saw(raw)
            version = page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue") or ""
            if not token:
                return str(version)

    async def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        refused: set[int] | None = None,
    ) -> dict[str, Any] | None:
        """One request, repeated until it is answered; None when it is `refused`. Raises on any other refusal."""
        headers, data = {"Content-Type": content_type}, orjson.dumps(body) if body is not None else None
        delay = 0.05
        while True:
            try:
                async with self._session.request(method, path, data=data, headers=headers) as response:
                    text = await response.read()
                if response.status < 300:
                    return dict(orjson.loads(text))
                if response.status in (refused or ()):
                    return None
                if response.status < 500 and response.status not in (409, 429):
                    raise RuntimeError(
                        f"{method} {path}: {response.status} {text[:300].decode(errors='replace')}"
                    )
            except (TimeoutError, aiohttp.ClientError, OSError):
                pass
            self._report.repeats += 1
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)
