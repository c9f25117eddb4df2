"""Writes, with bounded concurrency, one at a time per object, and an honest memory of what is still open.

A write is *assumed* until its answer is in the store. Where no answer came (time-out, 5xx) the object is read
until the truth is known; only then may it be decided upon again. A write that fails is tried again, with capped
exponential back-off, for as long as it is wanted; what the API server rejects becomes a condition meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import structlog

from dl2.cluster.client import ApiError, KubeClient
from dl2.cluster.resources import WATCHED, Resource
from dl2.cluster.store import Store
from dl2.scheduling.snapshot import Key

log = structlog.get_logger(__name__)
FIRST_DELAY, CONFLICT_DELAY, LONGEST_DELAY = 1.0, 0.1, 60.0  # seconds until a failed write is tried again
_WATCHED = {resource.kind for resource in WATCHED}
BELIEVED_SECONDS = 30.0  # what was applied to a kind that nobody watches is taken to be so still


class Verb(StrEnum):
    CREATE = "create"
    APPLY = "apply"
    APPLY_STATUS = "apply_status"
    PATCH = "patch"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Write:
    """One intended change. `owner` is the group or job it serves: looked at again when the write has ended."""

    verb: Verb
    resource: Resource
    namespace: str
    name: str
    owner: Key
    body: Mapping[str, Any] | None = None
    uid: str = ""
    grace_seconds: int | None = None

    @property
    def slot(self) -> Slot:
        part = "status" if self.verb is Verb.APPLY_STATUS else ""
        return Slot(self.resource.kind, self.namespace, self.name, part)


class Slot(NamedTuple):
    kind: str
    namespace: str
    name: str
    part: str


@dataclass(slots=True)
class Failure:
    """The last failure of a slot, and when it may be tried again (monotonic; None: now, if still wanted)."""

    error: ApiError
    verb: Verb
    attempts: int
    retry_at: float | None

    @property
    def refused(self) -> bool:
        """The API server does not want this object, or something else has its name."""
        return self.error.rejected or (self.verb is Verb.CREATE and self.error.conflict)


class Applier:
    def __init__(self, client: KubeClient, store: Store, concurrency: int = 32, backlog: int = 256) -> None:
        self._client, self._store = client, store
        self._limit = asyncio.Semaphore(concurrency)
        self._backlog = backlog
        self._open: dict[Slot, Write] = {}
        self.has_room = asyncio.Event()  # less than half full
        self.has_room.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._creating: dict[Key, set[Slot]] = {}
        self._failures: dict[Key, dict[Slot, Failure]] = {}
        self._applied: dict[Key, dict[Slot, tuple[Any, float]]] = {}  # of unwatched kinds: the body, and when
        self.on_result: Callable[[Write, ApiError | None], None] = lambda _write, _error: None

    def submit(self, write: Write) -> bool:
        """Start a write, unless one of the same object is open, it is backing off, or too many are open."""
        slot = write.slot
        failure = self._failures.get(write.owner, {}).get(slot)
        if slot in self._open or (failure and failure.retry_at is not None) or self._is_so(write):
            return False
        if self.full:
            return False
        self._open[slot] = write
        if self.half_full:
            self.has_room.clear()
        if write.verb is Verb.CREATE:
            self._creating.setdefault(write.owner, set()).add(slot)
        task = asyncio.create_task(self._run(write))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def assumed_status(self, resource: Resource, key: Key) -> Mapping[str, Any] | None:
        """The status that is on its way to the API server, if any."""
        write = self._open.get(Slot(resource.kind, key.namespace, key.name, "status"))
        return write.body["status"] if write and write.body else None

    def creating(self, resource: Resource, owner: Key) -> frozenset[str]:
        """Names of the objects that are being created for this group or job."""
        return frozenset(slot.name for slot in self._creating.get(owner, ()) if slot.kind == resource.kind)

    @property
    def open_writes(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        """No room for another write: what is decided now would be old before it is sent."""
        return len(self._open) >= self._backlog

    @property
    def half_full(self) -> bool:
        return len(self._open) >= self._backlog // 2

    # -- failures -----------------------------------------------------------------------------------------------
    def next_retry(self) -> float | None:
        """Monotonic time of the earliest retry; None when nothing waits for one."""
        times = (f.retry_at for slots in self._failures.values() for f in slots.values())
        return min((at for at in times if at is not None), default=None)

    def due(self) -> set[Key]:
        """Whose failed writes may be tried again in the pass that begins now. End that pass with `settle_due`."""
        now, owners = time.monotonic(), set()
        for owner, slots in self._failures.items():
            for failure in slots.values():
                if failure.retry_at is not None and failure.retry_at <= now:
                    failure.retry_at = None
                    owners.add(owner)
        return owners

    def settle_due(self) -> set[Key]:
        """Forget the failures that were due but are not being tried again: nobody wants them any more.

        Returns their owners: whatever was said about such a failure is no longer true.
        """
        told: set[Key] = set()
        for owner, slots in list(self._failures.items()):
            kept = {s: f for s, f in slots.items() if f.retry_at is not None or s in self._open}
            if len(kept) < len(slots):
                told.add(owner)
                self._failures[owner] = kept
            if not kept:
                del self._failures[owner]
        return told

    def rejection_of(self, owner: Key) -> str:
        """What the API server refuses to write for this group or job, in its own words; empty when nothing."""
        for slot, failure in self._failures.get(owner, {}).items():
            if failure.refused:
                return f"{slot.kind} {slot.name}: {failure.error.message}"
        return ""

    def forget(self, owner: Key) -> None:
        """The group and job are gone: their failures too."""
        self._failures.pop(owner, None)
        self._applied.pop(owner, None)

    async def drain(self, timeout: float) -> None:
        """Wait for the open writes, at shutdown."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    # -- one write ----------------------------------------------------------------------------------------------
    async def _run(self, write: Write) -> None:
        slot = write.slot
        error: ApiError | None = None
        try:
            async with self._limit:
                try:
                    await self._send(write)
                except ApiError as exc:
                    error = exc
                    await self._find_out(write, exc)
        except Exception:  # a defect here must not take the loop down; the write counts as failed
            log.exception("write failed unexpectedly", job=str(write.owner), kind=slot.kind, name=slot.name)
            error = ApiError(0, "Internal", "unexpected error; see the log")
        finally:
            self._note(write, error)
            self._close(write)
            self.on_result(write, error)
            self._store.touch(write.owner)

    def _close(self, write: Write) -> None:
        del self._open[write.slot]
        if not self.half_full:
            self.has_room.set()
        creating = self._creating.get(write.owner)
        if creating is not None:
            creating.discard(write.slot)
            if not creating:
                del self._creating[write.owner]

    async def _send(self, write: Write) -> None:
        c, r, body = self._client, write.resource, write.body or {}
        match write.verb:
            case Verb.CREATE:
                answer = await c.create(r, body)
            case Verb.APPLY:
                answer = await c.apply(r, body)
            case Verb.APPLY_STATUS:
                answer = await c.apply(r, body, "status")
            case Verb.PATCH:
                answer = await c.merge_patch(r, write.namespace, write.name, body)
            case Verb.DELETE:
                answer = await c.delete(r, write.namespace, write.name, write.uid, write.grace_seconds)
        self._learn(write, answer)

    def _is_so(self, write: Write) -> bool:
        body, at = self._applied.get(write.owner, {}).get(write.slot, (None, 0.0))
        return body is not None and body == write.body and time.monotonic() - at < BELIEVED_SECONDS

    def _learn(self, write: Write, answer: Mapping[str, Any]) -> None:
        """The answer of a write is the newest truth about its object."""
        if write.resource.kind not in _WATCHED:
            if write.verb is Verb.APPLY:
                self._applied.setdefault(write.owner, {})[write.slot] = write.body, time.monotonic()
            return
        if answer.get("kind") == write.resource.kind:
            self._store.upsert(write.resource, answer)
        elif write.verb is Verb.DELETE:
            self._store.remove(write.resource, write.uid)

    async def _find_out(self, write: Write, error: ApiError) -> None:
        """After a failure that leaves it open, or shows that we were out of date: read what is really there."""
        if write.resource.kind not in _WATCHED or error.rejected or error.status in (401, 429):
            return
        delay = 0.2
        while True:
            known = self._store.get(write.resource, write.namespace, write.name)
            try:
                self._store.upsert(
                    write.resource, await self._client.get(write.resource, write.namespace, write.name)
                )
                return
            except ApiError as exc:
                if exc.not_found:
                    if known is not None:  # what came after the question is not part of the answer
                        self._store.remove(write.resource, known.uid)
                    return
                if not (exc.unknown_outcome or exc.status == 429):
                    return
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    def _note(self, write: Write, error: ApiError | None) -> None:
        slots = self._failures.setdefault(write.owner, {})
        before = slots.pop(write.slot, None)
        if error is not None and not self._benign(write, error):
            attempts = before.attempts + 1 if before else 0
            first = CONFLICT_DELAY if error.conflict and write.verb is not Verb.CREATE else FIRST_DELAY
            delay = min(first * 2.0 ** min(attempts, 16), LONGEST_DELAY)
            slots[write.slot] = Failure(error, write.verb, attempts, time.monotonic() + delay)
            self._log(write, error, delay)
        if not slots:
            del self._failures[write.owner]

    @staticmethod
    def _log(write: Write, error: ApiError, delay: float) -> None:
        say = log.info if error.conflict else log.warning  # somebody was faster: that is no fault
        say(
            "write failed",
            job=str(write.owner),
            verb=write.verb.value,
            kind=write.resource.kind,
            name=write.name,
            error=str(error),
            retry_seconds=round(delay, 1),
        )

    def _benign(self, write: Write, error: ApiError) -> bool:
        """What was wanted is so already, or its object is gone: the store knows by now."""
        there = self._store.get(write.resource, write.namespace, write.name)
        if write.verb is Verb.CREATE and write.resource.kind not in _WATCHED:
            return error.conflict  # nobody can look whose it is
        if write.verb is Verb.CREATE:
            return error.conflict and there is not None and there.owner == _owner_uid(write)
        if write.verb is Verb.APPLY or not (error.not_found or error.conflict):
            return False
        return there is None or there.uid != write.uid


def _owner_uid(write: Write) -> str:
    owners = (write.body or {}).get("metadata", {}).get("ownerReferences") or ()
    return str(owners[0]["uid"]) if owners else ""
