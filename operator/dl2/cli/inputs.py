"""Where the commands that decide offline get their objects: manifests in files, or a live cluster read once."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import yaml

from dl2.api.conditions import parse_time
from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.resources import (
    DL_JOBS,
    NAMESPACES,
    NODE_TOPOLOGIES,
    NODES,
    OPTIONAL,
    POD_GROUPS,
    PODS,
    PRIORITY_CLASSES,
    TENANT_QUEUES,
)
from dl2.controller.manifests import BadInput, Manifest, objects

_LISTED = (TENANT_QUEUES, POD_GROUPS, DL_JOBS, NODES, PODS, PRIORITY_CLASSES, NAMESPACES, NODE_TOPOLOGIES)

_SUFFIXES = (".json", ".yaml", ".yml")


class _Loader(yaml.CSafeLoader):
    """Plain data only, and times stay the text that manifests mean."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


def moment(text: str | None) -> float:
    try:
        return parse_time(text) if text else time.time()
    except ValueError as exc:
        raise BadInput(f"--now: {exc}") from None


def from_file(path: str) -> Iterator[Manifest]:
    """The objects of a file, of standard input ("-"), or of a folder's files in the order of their names, as kubectl
    reads them (subfolders are not). Raises BadInput.
    """
    if Path(path).is_dir():
        files = sorted(file for file in Path(path).iterdir() if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise BadInput(
                f"{path}: holds no {', '.join(_SUFFIXES)} file; name a file of YAML or JSON manifests"
            )
        for file in files:
            yield from from_file(str(file))
        return
    source = "standard input" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"{source}: cannot be read: {exc}; name a file of YAML or JSON manifests") from None
    try:
        for document in yaml.load_all(text, Loader=_Loader):
            yield from objects(source, document)
    except (yaml.YAMLError, RecursionError) as exc:
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise BadInput(f"{source}: no YAML or JSON: {reason}; mend the syntax there") from None


def from_cluster(credentials: Credentials) -> list[Manifest]:
    async def read() -> list[Manifest]:
        found: list[Manifest] = []
        async with KubeClient(credentials) as client:
            for resource in _LISTED:
                async for items, _ in client.list(resource, optional=resource in OPTIONAL):
                    for item in items:
                        raw = {"apiVersion": resource.api_version, "kind": resource.kind, **item}
                        raw["metadata"] = {k: v for k, v in item["metadata"].items() if k != "managedFields"}
                        found.append(Manifest("cluster", raw, let_in=True))
        return found

    try:
        return asyncio.run(read())
    except ApiError as exc:
        raise BadInput(f"the cluster cannot be read: {exc}; check the kube context") from None
    except Exception as exc:  # a kubeconfig can be wrong in many ways
        raise BadInput(f"no cluster: {exc}; check --kubeconfig, --context or KUBECONFIG") from None


def save(manifests: list[Manifest], path: str) -> None:
    body = {"apiVersion": "v1", "kind": "List", "items": [dict(m.raw) for m in manifests]}
    try:
        Path(path).write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2))
    except OSError as exc:
        raise BadInput(f"--snapshot-to: {path} cannot be written: {exc}") from None
