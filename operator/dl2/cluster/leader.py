"""Lease-based leader election: one replica decides, the others stand by. Losing the lease ends the process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import structlog
from kubernetes.aio import client as k8s
from kubernetes.aio.leaderelection import electionconfig
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from dl2.cluster.client import Credentials, error_of, load_configuration

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """Name, namespace and times in seconds (client-go's defaults)."""

    name: str = "dl2-operator"
    namespace: str = "dl2-system"
    duration: int = 15
    renew_deadline: int = 10
    retry_period: int = 2

    @classmethod
    def lasting(cls, seconds: int, namespace: str) -> Lease:
        """Renewed often enough, and given up early enough, for a lease of `seconds`."""
        return cls(
            namespace=namespace,
            duration=seconds,
            renew_deadline=seconds * 2 // 3,
            retry_period=max(1, seconds // 7),
        )


class _Lock(LeaseLock):  # type: ignore[misc,unused-ignore]
    """The library's lock, for which an API server that is away is a failed try and no crash."""

    request_seconds = 4.0  # a request that hangs must not outlive the lease

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        try:
            return await asyncio.wait_for(super().get(name, namespace), self.request_seconds)
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            return False, k8s.ApiException(status=0, reason=str(exc) or type(exc).__name__)

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        # the library's own create (37.0.2) passes pretty=True, which its own client refuses
        lease = k8s.V1Lease(metadata=k8s.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        return await self._try(self._post(namespace, lease))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        return await self._try(super().update(name, namespace, updated_record))

    async def _try(self, request: Awaitable[bool]) -> bool:
        try:
            return await asyncio.wait_for(request, self.request_seconds)
        except (TimeoutError, aiohttp.ClientError, OSError, k8s.ApiException) as exc:
            log.warning("lease not renewed yet", error=_told(exc))
            return False

    async def release(self) -> None:
        """Let the next one lead at once, as client-go does: nobody holds the lease any more."""
        held, _ = await self.get(self.name, self.namespace)
        lease = self.lease_reference
        if held and lease is not None and lease.spec.holder_identity == self.identity:
            lease.spec.holder_identity = None
            await self._try(self._replace(lease))

    async def _post(self, namespace: str, lease: Any) -> bool:
        await self.api_instance.create_namespaced_lease(namespace, lease)
        return True

    async def _replace(self, lease: Any) -> bool:
        await self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease)
        return True


def _told(exc: Exception) -> str:
    if isinstance(exc, k8s.ApiException):  # the library's own words are a dump of headers
        return str(error_of(exc.status, str(exc.body or exc.reason).encode()))
    return str(exc) or type(exc).__name__


async def lead(
    credentials: Credentials,
    lease: Lease,
    identity: str,
    work: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
) -> None:
    """Wait for the lease, then run `work` until it returns, which it does after `stop`.

    A lost lease or a crash of `work` ends the process at once: whoever holds the lease next must not meet our
    late writes.
    """
    leading, ended = asyncio.Event(), asyncio.Event()

    async def started() -> None:
        leading.set()
        log.info("leading", lease=f"{lease.namespace}/{lease.name}", identity=identity)
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException:
            log.exception("the leader's work has crashed; ending the process")
            os._exit(1)
        if not stop.is_set():
            log.error("the leader's work has ended by itself; ending the process")
            os._exit(1)
        ended.set()

    async def stopped() -> None:
        log.error("the lease is lost; ending the process", lease=lease.name)
        os._exit(1)

    async with k8s.ApiClient(await load_configuration(credentials)) as api:
        lock = _Lock(lease.name, lease.namespace, identity, api)
        lock.request_seconds = lease.renew_deadline / 2
        config = electionconfig.Config(
            lock, lease.duration, lease.renew_deadline, lease.retry_period, started, stopped
        )
        election = asyncio.create_task(LeaderElection(config).run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((election, stopping), return_when=asyncio.FIRST_COMPLETED)
        if election.done():
            election.result()
            raise RuntimeError("the leader election has ended by itself")
        if leading.is_set():
            await ended.wait()
        election.cancel()
        if leading.is_set():
            await lock.release()
