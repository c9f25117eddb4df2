"""A thin typed client over `kubernetes.aio`: dicts in, dicts out, errors that say what and why.

The generated pydantic models cost 25 times what plain JSON costs, so requests go through the library's REST layer
(TLS, credentials, connection pool) with bodies as dicts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
import orjson
import structlog
from kubernetes.aio import client as k8s
from kubernetes.aio import config as k8s_config

from dl2.cluster.resources import Resource

log = structlog.get_logger(__name__)
FIELD_MANAGER = "dl2"
LOGIN_SECONDS = 5.0  # between two readings of the credentials
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_ANY_VERSION = 1 << 63  # of the LIST of a kind that is not served: whatever was known of it is older


class ApiError(Exception):
    """The API server (or the way to it) said no. `status` 0: no answer, so the write may or may not have landed."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else f"no answer: {message}")
        self.status, self.reason, self.message = status, reason, message

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def conflict(self) -> bool:
        return self.status == 409

    @property
    def unknown_outcome(self) -> bool:
        return self.status == 0 or self.status in (500, 502, 503, 504)

    @property
    def rejected(self) -> bool:
        """The object itself is at fault; sending it again will not help."""
        return self.status in (400, 403, 413, 422)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where to find the cluster: a kubeconfig (None: $KUBECONFIG or ~/.kube/config), or the pod's own account."""

    kubeconfig: str | None = None
    context: str | None = None

    @property
    def in_cluster(self) -> bool:
        default = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
        return not self.kubeconfig and not os.path.exists(default) and "KUBERNETES_SERVICE_HOST" in os.environ


async def load_configuration(credentials: Credentials) -> k8s.Configuration:
    """Read the credentials anew. Raises ApiError 401 when they cannot be read."""
    try:
        return await _load(credentials)
    except (OSError, k8s_config.ConfigException, ValueError) as exc:
        raise ApiError(401, "Credentials", f"cannot be read: {exc}") from exc


async def _load(credentials: Credentials) -> k8s.Configuration:
    configuration = k8s.Configuration()
    if credentials.in_cluster:
        k8s_config.load_incluster_config(client_configuration=configuration)
    else:
        await k8s_config.load_kube_config(
            config_file=credentials.kubeconfig,
            context=credentials.context,
            client_configuration=configuration,
        )
    configuration.connection_pool_maxsize = 64
    configuration.retries = None  # the loop is level-triggered: it decides what to send again
    configuration.proxy = configuration.proxy or _proxy_for(configuration.host)
    configuration.client_session_kwargs = {"trust_env": False}  # would look for a proxy with every request
    return configuration


def _proxy_for(url: str) -> str | None:
    """What the environment (HTTPS_PROXY, NO_PROXY) says about the way to the API server."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return None
    return getproxies_environment().get(parts.scheme)


class KubeClient:
    """Reads and writes objects as dicts. Use as an async context manager."""

    def __init__(self, credentials: Credentials | None = None, request_timeout: float = 30.0) -> None:
        self._credentials = credentials or Credentials()
        self._timeout = aiohttp.ClientTimeout(total=request_timeout)
        self._api: k8s.ApiClient | None = None
        self._login = asyncio.Lock()
        self._logged_in_at = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> KubeClient:
        self._api = k8s.ApiClient(await load_configuration(self._credentials))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._api is not None:
            await self._api.close()

    async def _login_again(self, stale: k8s.ApiClient) -> bool:
        """Credentials rotate (token files, client certificates): read them again, once for all that noticed.

        False: they were read a moment ago, and reading them again will not help.
        """
        async with self._login:
            if self._api is not stale:
                return True
            if time.monotonic() - self._logged_in_at < LOGIN_SECONDS:
                return False
            self._logged_in_at = time.monotonic()
            self._api = k8s.ApiClient(await load_configuration(self._credentials))
        closing = asyncio.create_task(self._close_later(stale))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return True

    async def _close_later(self, api: k8s.ApiClient) -> None:
        """Others may still wait for their answers on its connections."""
        try:
            await asyncio.sleep(self._timeout.total or 0)
        finally:
            await api.close()

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """One request. Raises ApiError; a 401 is tried once more with credentials read anew."""
        for attempt in (1, 2):
            api = self._api
            if api is None:
                raise RuntimeError("KubeClient is used outside of its context")
            try:
                return await self._send(api, method, path, query, body, content_type)
            except ApiError as exc:
                if exc.status != 401 or attempt == 2 or not await self._login_again(api):
                    raise
        raise AssertionError("unreachable")

    async def _send(
        self,
        api: k8s.ApiClient,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
    ) -> dict[str, Any]:
        url = api.configuration.host + path + ("?" + urlencode(query) if query else "")
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            for auth in (await api.configuration.auth_settings()).values():
                headers[auth["key"]] = auth["value"]
            response = await api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=self._timeout
            )
            data = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise ApiError(0, type(exc).__name__, str(exc) or type(exc).__name__) from exc
        if 200 <= response.status < 300:
            return orjson.loads(data) if data else {}
        raise error_of(response.status, data)

    async def list(
        self,
        resource: Resource,
        chunk: int = 100,
        namespace: str | None = None,
        selector: str = "",
        optional: bool = False,
    ) -> AsyncIterator[tuple[list[dict[str, Any]], int]]:
        """All objects of a kind, page by page, with the resource version of the LIST.

        A page takes several times its size while it is read, and LISTs of a large cluster are what memory peaks at.

        `optional`: a kind that is not served here has no objects, which is no error.
        """
        token = ""
        while True:
            query = {"limit": str(chunk)} | ({"continue": token} if token else {})
            if selector:
                query["labelSelector"] = selector
            try:
                page = await self.request("GET", resource.path(namespace), query)
            except ApiError as exc:
                if not (optional and exc.not_found):
                    raise
                yield [], _ANY_VERSION
                return
            version = int(page["metadata"].get("resourceVersion") or 0)
            yield page.get("items") or [], version
            token = page["metadata"].get("continue") or ""
            if not token:
                return

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        return await self.request("GET", resource.path(namespace, name))

    async def create(self, resource: Resource, body: Mapping[str, Any]) -> dict[str, Any]:
        path = resource.path(body["metadata"].get("namespace"))
        # Strict: a misspelt field of a pod template is told, not dropped.
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self.request("POST", path, query, body)

    async def apply(
        self, resource: Resource, body: Mapping[str, Any], subresource: str = "", manager: str = FIELD_MANAGER
    ) -> dict[str, Any]:
        """Server-side apply: our fields become exactly `body`, other managers' fields stay."""
        path = resource.path(body["metadata"].get("namespace"), body["metadata"]["name"], subresource)
        return await self.request("PATCH", path, {"fieldManager": manager, "force": "true"}, body, _APPLY)

    async def merge_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        subresource: str = "",
    ) -> dict[str, Any]:
        path = resource.path(namespace, name, subresource)
        return await self.request("PATCH", path, {"fieldManager": FIELD_MANAGER}, patch, _MERGE)

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, uid: str, grace_seconds: int | None = None
    ) -> dict[str, Any]:
        """Delete exactly the object with this uid, never a namesake that took its place."""
        options: dict[str, Any] = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return await self.request("DELETE", resource.path(namespace, name), body=options)


def error_of(status: int, data: bytes) -> ApiError:
    """What the API server has answered, as an error."""
    try:
        body = orjson.loads(data)
        return ApiError(status, str(body.get("reason") or ""), str(body.get("message") or ""))
    except (orjson.JSONDecodeError, AttributeError):
        return ApiError(status, "", data[:300].decode(errors="replace"))
