"""The client against a web server that plays the API server's part: credentials that expire, answers that fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from dl2.cluster import client as module
from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.resources import NODE_TOPOLOGIES, NODES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler, kubeconfig: Path, token: str = "old") -> AsyncIterator[KubeClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    write_kubeconfig(kubeconfig, runner.addresses[0][1], token)
    try:
        async with KubeClient(Credentials(str(kubeconfig)), request_timeout=2) as client:
            yield client
    finally:
        await runner.cleanup()


def write_kubeconfig(path: Path, port: int, token: str) -> None:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {"token": token}}],
            }
        )
    )


async def test_kai_1817_expired_credentials_are_read_again_and_the_request_goes_through(
    tmp_path: Path,
) -> None:
    config, seen = tmp_path / "kubeconfig", []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        if request.headers["Authorization"] == "Bearer new":
            return web.json_response({"metadata": {"name": "n"}})
        write_kubeconfig(config, request.url.port or 0, "new")
        return web.json_response({"reason": "Unauthorized", "message": "expired"}, status=401)

    async with served(handler, config) as client:
        assert (await client.get(NODES, None, "n"))["metadata"]["name"] == "n"
    assert seen == ["Bearer old", "Bearer new"]


async def test_kai_1817_credentials_that_stay_bad_are_not_read_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = read = 0
    real = module.load_configuration

    async def load(credentials: Credentials) -> Any:
        nonlocal read
        read += 1
        return await real(credentials)

    async def handler(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response({"reason": "Unauthorized", "message": "no"}, status=401)

    monkeypatch.setattr(module, "load_configuration", load)
    async with served(handler, tmp_path / "kubeconfig") as client:
        for _ in range(5):
            with pytest.raises(ApiError) as error:
                await client.get(NODES, None, "n")
            assert error.value.status == 401
    assert (read, asked) == (2, 6)  # once at the start, once when it failed; then nothing new is expected


ANSWERS = {
    "refused for good": (422, '{"reason": "Invalid", "message": "spec.count: too small"}', "rejected"),
    "not there": (404, '{"reason": "NotFound", "message": "gone"}', "not_found"),
    "changed meanwhile": (409, '{"reason": "Conflict", "message": "modified"}', "conflict"),
    "nobody knows": (503, "<html>bad gateway</html>", "unknown_outcome"),
}


@pytest.mark.parametrize(("status", "body", "kind"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_failures_are_told_apart(tmp_path: Path, status: int, body: str, kind: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with served(handler, tmp_path / "kubeconfig") as client:
        with pytest.raises(ApiError) as error:
            await client.get(NODES, None, "n")
    kinds = {
        name: getattr(error.value, name) for name in ("rejected", "not_found", "conflict", "unknown_outcome")
    }
    assert kinds == {name: name == kind for name in kinds}


async def test_no_answer_at_all_is_an_unknown_outcome(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with served(handler, tmp_path / "kubeconfig") as client:
        with pytest.raises(ApiError) as error:
            await client.get(NODES, None, "n")
    assert (error.value.status, error.value.unknown_outcome) == (0, True)


async def test_a_list_is_read_page_by_page(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        page = int(request.query.get("continue") or 0)
        assert request.query["limit"] == "2"
        following = str(page + 1) if page < 2 else ""
        items = [{"metadata": {"name": f"n{2 * page + i}"}} for i in range(2)]
        return web.json_response(
            {"metadata": {"resourceVersion": "7", "continue": following}, "items": items}
        )

    async with served(handler, tmp_path / "kubeconfig") as client:
        pages = [page async for page in client.list(NODES, chunk=2)]
    assert [version for _, version in pages] == [7, 7, 7]
    assert [n["metadata"]["name"] for items, _ in pages for n in items] == [f"n{i}" for i in range(6)]


async def test_credentials_that_cannot_be_read_say_where(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="cannot be read"):
        async with KubeClient(Credentials(str(tmp_path / "no-such-file"))):
            pass


async def test_a_kind_that_is_not_served_has_no_objects_where_it_is_optional(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(
            {"reason": "NotFound", "message": "the server has no such resource"}, status=404
        )

    async with served(handler, tmp_path / "kubeconfig") as client:
        pages = [items async for items, _ in client.list(NODE_TOPOLOGIES, optional=True)]
        assert pages == [[]]
        with pytest.raises(ApiError, match="404"):
            [page async for page in client.list(NODES)]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"http_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128"}, None),  # the API server of this test speaks plain HTTP
        ({"http_proxy": "http://proxy:3128", "no_proxy": "127.0.0.1"}, None),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "*"}, None),
    ],
)
async def test_the_proxy_of_the_environment_is_used_unless_it_excludes_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    write_kubeconfig(tmp_path / "config", 6443, "token")
    assert (await module.load_configuration(Credentials(str(tmp_path / "config")))).proxy == expected
