"""Fixtures that give tests a real Kubernetes: `embedded_cluster`, `real_cluster`, `namespace`.

Where a cluster cannot be had, the tests that ask for it fail and say why: a skip would pass for a success.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dl2.embedded.cluster import EmbeddedCluster


@pytest.fixture(scope="session")
def embedded_cluster() -> Iterator["EmbeddedCluster"]:
    """A control plane with our CRDs, scheduler, controller manager and kwok, and no nodes; shared by the
    session.

    Simulated nodes come from `simulated_nodes`, so that each test has those it needs.
    """
    with _running("tests") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def real_cluster() -> Iterator["EmbeddedCluster"]:
    """A control plane and one real node, `real-0`, on which pods run containers."""
    with _running("real", real_nodes=1) as cluster:
        yield cluster


@pytest.fixture
def namespace(embedded_cluster: "EmbeddedCluster") -> Iterator[str]:
    """A namespace of its own for one test, in which pods can be created; deleted behind the test."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    embedded_cluster.kubectl("create", "namespace", name)
    embedded_cluster.wait_service_account(name)
    yield name
    embedded_cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def simulated_nodes(embedded_cluster: "EmbeddedCluster") -> Iterator[Callable[..., list[str]]]:
    """`simulated_nodes(4, gpus=8)` adds Ready nodes, as `EmbeddedCluster.add_nodes`; they go behind the
    test.
    """
    added: list[str] = []

    def add(count: int, **shape: Any) -> list[str]:
        prefix = shape.pop("prefix", f"node-{uuid.uuid4().hex[:6]}")
        names = embedded_cluster.add_nodes(count, prefix=prefix, **shape)
        added.extend(names)
        return names

    yield add
    embedded_cluster.remove_nodes(added)


@contextmanager
def _running(kind: str, real_nodes: int = 0) -> Iterator["EmbeddedCluster"]:
    """A cluster of this process alone; it goes down at the end, also when the process is killed."""
    from dl2.embedded.cluster import EmbeddedCluster
    from dl2.embedded.errors import ClusterError

    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    cluster = EmbeddedCluster(f"{kind}-{worker}-{os.getpid()}", real_nodes=real_nodes, owned=True)
    try:
        cluster.up()
    except ClusterError as error:
        pytest.fail(f"the embedded cluster of these tests cannot run: {error}", pytrace=False)
    try:
        yield cluster
    finally:
        cluster.down()
