"""Kopf's part: one `on.event` handler per kind that feeds the store. Nothing is decided here.

`on.event` needs no finalizers, no annotations and no write to the objects; create/update handlers would.
Kopf runs in a thread of its own: when it ends, it cancels every task of its event loop, and it takes the signals of
the main thread. So it can be started again whenever it has ended or has fallen behind, and nothing else notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import kopf
import structlog
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory

from dl2.cluster.client import Credentials, load_configuration
from dl2.cluster.resources import WATCHED, Resource
from dl2.cluster.store import Store

log = structlog.get_logger(__name__)
# It warns that it does not get the signals of the main thread, which is why it has a thread of its own.
logging.getLogger("kopf._core.reactor.running").addFilter(lambda r: "OS signals" not in r.getMessage())
BEHIND_SECONDS = 30.0  # a watch that owes a change for so long is started again
STEADY_SECONDS = 300.0  # watches that ran for so long earn a quick restart again
AT_ONCE = 200  # events taken in before others of the main loop have their turn


class Watches:
    """Keeps the watches running. `failure` says why they are not, and is empty when all is well."""

    def __init__(self, store: Store, credentials: Credentials) -> None:
        self._store, self._credentials = store, credentials
        self.failure = ""
        self.restarts = 0

    async def run(self) -> None:
        """Forever: watch; when that ends or falls behind, start again with capped back-off."""
        delay = 1.0
        while True:
            started = time.monotonic()
            thread = _KopfThread(self._store, self._credentials)
            try:
                self.failure = await self._until_ill(thread)
            finally:
                thread.stop()
            if time.monotonic() - started > STEADY_SECONDS:
                delay = 1.0
            log.warning("watching again", reason=self.failure, retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 60.0)
            self.restarts += 1

    async def _until_ill(self, thread: _KopfThread) -> str:
        """Why the watches have to be started again."""
        freshness = self._store.freshness
        freshness.forgive()
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.5)
            behind = {r.kind: freshness.behind(r.kind) for r in WATCHED}
            worst = max(behind, key=lambda kind: behind[kind])
            if behind[worst] > BEHIND_SECONDS:
                return f"the watch of {worst} has been owing a change for {behind[worst]:.0f} s"
            if thread.listed:
                self.failure = ""
        return f"the watches have ended: {thread.error or 'without a reason'}"


class _KopfThread(threading.Thread):
    def __init__(self, store: Store, credentials: Credentials) -> None:
        super().__init__(name="kopf", daemon=True)
        self._main = asyncio.get_running_loop()
        self._store, self._credentials = store, credentials
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopped = False
        self._told: deque[tuple[Resource, str | None, Any]] = deque()
        self._called = False
        self.listed = False  # it has told of something
        self.error = ""

    def run(self) -> None:
        try:
            asyncio.run(self._watch())
        except Exception as exc:
            self.error = str(exc) or type(exc).__name__

    async def _watch(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await kopf.operator(
            registry=self._registry(),
            settings=settings(),
            memories=_NoMemories(),
            clusterwide=True,
            standalone=True,
            stop_flag=self._stop,
        )

    def stop(self) -> None:
        """From the main loop: end soon; what is still told is not listened to."""
        self._stopped = True
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed already
                self._loop.call_soon_threadsafe(self._stop.set)

    def _registry(self) -> kopf.OperatorRegistry:
        handlers = kopf.OperatorRegistry()
        for resource in WATCHED:
            kopf.on.event(
                resource.group,
                resource.version,
                resource.plural,
                id=f"store-{resource.plural}",
                registry=handlers,
            )(self._feeder(resource))
        kopf.on.login(registry=handlers)(_login(self._credentials))
        return handlers

    def _feeder(self, resource: Resource) -> Callable[..., Any]:
        async def feed(event: kopf.RawEvent, **_: Any) -> None:
            self._told.append((resource, event["type"], event["object"]))
            if not self._called:
                self._called = True
                with contextlib.suppress(RuntimeError):  # the main loop is closed: the process is ending
                    self._main.call_soon_threadsafe(self._tell)

        return feed

    def _tell(self) -> None:
        """In the main thread: take in what has been told, a little at a time."""
        self._called = False  # first: what comes from now on calls again
        for _ in range(min(len(self._told), AT_ONCE)):
            resource, kind_of_event, raw = self._told.popleft()
            if not self._stopped:
                self.listed = True
                self._store.hear(resource, kind_of_event, raw)
        if self._told and not self._called:
            self._called = True
            self._main.call_soon(self._tell)


def _login(credentials: Credentials) -> Callable[..., Any]:
    async def login(**_: Any) -> kopf.ConnectionInfo:
        """The same credentials as for writing, read anew each time Kopf asks."""
        chosen = await load_configuration(credentials)
        key = await chosen.get_api_key_with_prefix("BearerToken")
        scheme, _space, token = (key or "").rpartition(" ")
        return kopf.ConnectionInfo(
            server=chosen.host,
            ca_path=chosen.ssl_ca_cert,
            insecure=not chosen.verify_ssl,
            username=chosen.username or None,
            password=chosen.password or None,
            scheme=scheme or None,
            token=token or None,
            certificate_path=chosen.cert_file,
            private_key_path=chosen.key_file,
            proxy_url=chosen.proxy,
        )

    return login


class _NoDiffs(kopf.DiffBaseStorage):  # type: ignore[misc,unused-ignore]
    """Kopf compares every object with what it was; `on.event` never looks at that, and copying costs the most."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):  # type: ignore[misc,unused-ignore]
    """Of handlers that are tried again, which `on.event` never is."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class _NoMemories(ResourceMemories):  # type: ignore[misc,unused-ignore]
    """Kopf remembers each object for its daemons and retries, of which there are none: a KiB for every pod."""

    async def recall(self, raw_body: kopf.RawBody, **options: Any) -> ResourceMemory:
        return await super().recall(raw_body, **{**options, "ephemeral": True})


def settings() -> kopf.OperatorSettings:
    """Watches that end, are renewed, and never freeze in silence; no writes of Kopf's own."""
    chosen = kopf.OperatorSettings()
    chosen.watching.server_timeout = 600
    chosen.watching.client_timeout = 660
    chosen.watching.inactivity_timeout = 120
    chosen.watching.chunk_size = 500
    chosen.networking.request_timeout = 30
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.posting.enabled = False
    chosen.queueing.idle_timeout = 0.1  # a worker per object: thousands of them, if they linger
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.persistence.progress_storage = _NoProgress()
    return chosen
