"""The gang handed to kube-scheduler through scheduling.k8s.io, on a cluster that has the feature on, and one without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dl2.embedded.cluster import EmbeddedCluster
from tests.integration.operator_harness import Api, Operator, eventually, gated, job, queue, running

pytestmark = pytest.mark.integration
SPACE = "native"


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    gates, served = {"GenericWorkload": True}, {"scheduling.k8s.io/v1beta1": True}
    with EmbeddedCluster(
        f"native-{os.getpid()}", kwok_nodes=2, cpus=8, feature_gates=gates, runtime_config=served, owned=True
    ) as cluster:
        cluster.kubectl("create", "namespace", SPACE)
        cluster.wait_service_account(SPACE)
        yield cluster


@pytest.fixture(scope="module")
def api(cluster: EmbeddedCluster) -> Iterator[Api]:
    connections = Api.connections(cluster)
    api = Api(connections, cluster.server, SPACE)
    api.apply(queue(SPACE))
    yield api
    connections.clear()


@pytest.fixture
def operator(cluster: EmbeddedCluster, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(cluster, tmp_path / "log", "--native-gang")
    operator.start()
    yield operator
    operator.stop()


def apart(name: str, workers: int) -> dict[str, object]:
    """A job no two of whose workers share a node: kube-scheduler's business, which admission does not model."""
    made = job(name, workers=workers)
    rule = {"labelSelector": {"matchLabels": {"apart": name}}, "topologyKey": "kubernetes.io/hostname"}
    template = made["spec"]["workers"]["template"]
    template["metadata"] = {"labels": {"apart": name}}
    template["spec"]["affinity"] = {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [rule]}
    }
    return made


def bound(api: Api, name: str) -> int:
    return sum(1 for pod in api.pods(name).values() if pod["spec"].get("nodeName"))


def test_kube_scheduler_binds_the_whole_gang_or_nothing_of_it(
    cluster: EmbeddedCluster, api: Api, operator: Operator
) -> None:
    api.apply(apart("three", 3))  # on two nodes
    eventually(
        lambda: len(api.pods("three")) == 5 and not any(map(gated, api.pods("three").values())), "the release"
    )
    eventually(
        lambda: "; three-" in api.condition("PodGroup", "three", "PodsReady").get("message", ""),
        "kube-scheduler's reason being shown",
    )
    operator.wait_quiet()
    assert bound(api, "three") == 0
    added = cluster.add_nodes(1, prefix="third", cpus=8)
    api.wait_state("Running", "three")
    operator.wait_quiet()
    assert sum(map(running, api.pods("three").values())) == 5
    api.delete("DLJob", "three")
    api.wait_gone("DLJob", "three")
    cluster.remove_nodes(added)


def test_a_lost_pod_of_an_elastic_job_rejoins_its_gang(api: Api, operator: Operator) -> None:
    api.apply(job("e", workers=2, servers=1, runtime="elastic"))
    api.wait_state("Running", "e")
    before = api.uids("e")
    api.delete("Pod", "e-worker-1")
    lost = before.pop("e-worker-1")

    def whole() -> bool:
        pods = api.pods("e").values()
        return len(pods) == 4 and all(map(running, pods)) and lost not in api.uids("e").values()

    eventually(whole, "another worker in its place")
    operator.wait_quiet()
    assert before.items() <= api.uids("e").items()


def test_where_the_api_is_not_served_it_says_so_and_how_to_mend_it(
    embedded_cluster: EmbeddedCluster, tmp_path: Path
) -> None:
    operator = Operator(embedded_cluster, tmp_path / "log", "--native-gang")
    super(Operator, operator).start()
    assert operator.wait() == 1
    assert "--feature-gates=GenericWorkload=true" in operator.tail()
