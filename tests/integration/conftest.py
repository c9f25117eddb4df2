"""What the tests of the running operator share: one operator process, some simulated nodes, a queue each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from dl2.embedded.cluster import EmbeddedCluster
from tests.integration.operator_harness import Api, Operator, Process, describe_nodes, queue, trainers


@pytest.fixture(scope="session")
def nodes(embedded_cluster: EmbeddedCluster) -> Iterator[list[str]]:
    """Four simulated nodes of 64 CPUs, for the whole session."""
    names = embedded_cluster.add_nodes(4, prefix="shared")
    yield names
    embedded_cluster.remove_nodes(names)


@pytest.fixture(scope="session")
def operator_process(
    embedded_cluster: EmbeddedCluster, nodes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    operator = Operator(embedded_cluster, tmp_path_factory.mktemp("operator") / "log")
    yield operator
    operator.stop()


@pytest.fixture
def operator(operator_process: Operator, request: pytest.FixtureRequest) -> Iterator[Operator]:
    """The operator, running; a test may kill it. Behind every test that passed, nothing moves any more."""
    if not operator_process.alive:
        operator_process.start()
    failed = request.session.testsfailed
    yield operator_process
    if request.session.testsfailed > failed:
        return
    if not operator_process.alive:
        operator_process.start()
    operator_process.wait_quiet()
    assert operator_process.metric("dl2_failed_passes_total") == 0, operator_process.tail()


@pytest.fixture(scope="session")
def connections(embedded_cluster: EmbeddedCluster) -> Iterator[urllib3.PoolManager]:
    pool = Api.connections(embedded_cluster)
    yield pool
    pool.clear()


@pytest.fixture
def api(embedded_cluster: EmbeddedCluster, connections: urllib3.PoolManager, namespace: str) -> Iterator[Api]:
    """The test's own namespace with a queue of 8 CPUs of its name, which is thus everybody's default there."""
    api = Api(connections, embedded_cluster.server, namespace)
    api.apply(queue(namespace))
    yield api
    for found in api.list("TenantQueue"):
        if found["metadata"]["name"].startswith(namespace):
            api.delete("TenantQueue", found["metadata"]["name"])


@pytest.fixture
def simulated_trainers(embedded_cluster: EmbeddedCluster, tmp_path: Path) -> Iterator[Process]:
    with trainers(embedded_cluster, tmp_path / "trainers") as process:
        yield process


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows the end of the operator's log, all that it complained of, what it knows, and the nodes."""
    report = yield
    fixtures = getattr(item, "funcargs", {})
    operator, cluster = fixtures.get("operator"), fixtures.get("embedded_cluster")
    if report.failed and isinstance(operator, Operator):
        report.sections.append(("operator log", operator.tail()))
        report.sections.append(("operator complaints", operator.complaints()))
        report.sections.append(("operator freshness", operator.freshness()))
    if report.failed and isinstance(cluster, EmbeddedCluster):
        report.sections.append(("nodes", describe_nodes(cluster)))
    return report
