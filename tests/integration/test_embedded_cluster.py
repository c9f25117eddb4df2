"""The embedded cluster: what it runs, what becomes of pods on simulated nodes, and what it survives."""

import json
import signal
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dl2 import resources
from dl2.embedded import procfs
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.pki import KeyPair, Pki
from dl2.embedded.state import ProcessIdentity
from dl2.embedded.waiting import wait_until

pytestmark = pytest.mark.integration

Nodes = Callable[..., list[str]]
COMPONENTS = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"]


def pod(name: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "localhost/any:tag"} | spec.pop("container", {})
    metadata = {"name": name} | spec.pop("metadata", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container]} | spec,
    }


def gpus(count: int) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": str(count)}}}


class Namespace:
    """One test's view of a cluster."""

    def __init__(self, cluster: EmbeddedCluster, name: str) -> None:
        self.cluster, self.name = cluster, name

    def kubectl(self, *arguments: str, document: Any = None) -> str:
        text = None if document is None else json.dumps(document)
        return self.cluster.kubectl("--namespace", self.name, *arguments, input=text)

    def create(self, document: Any) -> None:
        self.kubectl("create", "-f", "-", document=document)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        text = self.kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text else None

    def wait(self, what: str, condition: str, timeout: int = 60) -> None:
        self.kubectl("wait", what, f"--for={condition}", f"--timeout={timeout}s")

    def phase(self, name: str) -> str | None:
        found = self.get("pod", name)
        return found["status"].get("phase") if found else None


@pytest.fixture
def place(embedded_cluster: EmbeddedCluster, namespace: str) -> Namespace:
    return Namespace(embedded_cluster, namespace)


# -- what it runs ----------------------------------------------------------------------------------


def test_every_component_is_up_with_a_log(embedded_cluster: EmbeddedCluster) -> None:
    status = {line.name: line for line in embedded_cluster.status()}
    assert list(status) == ["supervisor", *COMPONENTS]
    assert [name for name, line in status.items() if not line.up] == []
    assert all(line.log.exists() for line in status.values())


def test_our_resources_are_established(embedded_cluster: EmbeddedCluster) -> None:
    files = sorted(resources.directory("crds").glob("*.yaml"))
    ours = [
        document["metadata"]["name"] for file in files for document in yaml.safe_load_all(file.read_text())
    ]
    for name in ours:
        embedded_cluster.kubectl("wait", "crd", name, "--for=condition=Established", "--timeout=5s")
    assert len(ours) >= 4


def answer(url: str, authority: Path, client: KeyPair | None = None) -> int:
    """The HTTP status that `url` answers to `client`; raises OSError where TLS refuses."""
    context = ssl.create_default_context(cafile=str(authority))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_users_may_what_rbac_gives_them(embedded_cluster: EmbeddedCluster) -> None:
    pods = f"{embedded_cluster.server}/api/v1/pods"
    authority = embedded_cluster.pki.ca
    nobody = embedded_cluster.pki.client("nobody", "nobody")
    assert answer(pods, authority, embedded_cluster.admin) == 200
    assert answer(pods, authority, nobody) == 403
    assert answer(pods, authority) == 403


def test_the_store_takes_no_client_of_the_api(embedded_cluster: EmbeddedCluster) -> None:
    """An administrator of Kubernetes is none of etcd, whose authority is another."""
    health = f"https://127.0.0.1:{embedded_cluster.port('etcd')}/health"
    store = Pki(embedded_cluster.pki.directory / "etcd")
    assert answer(health, store.ca, store.client("kube-apiserver", "kube-apiserver")) == 200
    for client in (embedded_cluster.admin, None):
        with pytest.raises(OSError, match=r"alert|reset|EOF"):
            answer(health, store.ca, client)


def test_nodes_are_plain_nodes_in_racks(embedded_cluster: EmbeddedCluster, simulated_nodes: Nodes) -> None:
    names = simulated_nodes(9, gpus=4, cpus=32, memory="128Gi")
    nodes = [json.loads(embedded_cluster.kubectl("get", "node", name, "-o", "json")) for name in names]
    assert [node["metadata"]["labels"]["dl2.dev/rack"] for node in nodes] == ["rack-0"] * 8 + ["rack-1"]
    for node in nodes:
        assert "taints" not in node["spec"]
        assert (
            node["status"]["allocatable"].items()
            >= {"nvidia.com/gpu": "4", "cpu": "32", "memory": "128Gi"}.items()
        )


# -- pods on simulated nodes -----------------------------------------------------------------------


def test_a_pod_is_scheduled_runs_and_stays(place: Namespace, simulated_nodes: Nodes) -> None:
    (node,) = simulated_nodes(1)
    place.create(pod("trainer", container=gpus(8), nodeSelector={"kubernetes.io/hostname": node}))
    place.wait("pod/trainer", "condition=Ready")
    trainer = place.get("pod", "trainer")
    assert trainer is not None
    assert trainer["spec"]["nodeName"] == node
    assert trainer["status"]["phase"] == "Running"
    assert trainer["status"]["podIP"].startswith("198.18.")
    assert trainer["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]


def test_what_does_not_fit_waits(place: Namespace, simulated_nodes: Nodes) -> None:
    (node,) = simulated_nodes(1, gpus=4)
    place.create(pod("big", container=gpus(8), nodeSelector={"kubernetes.io/hostname": node}))
    place.wait("pod/big", "condition=PodScheduled=False")
    assert place.phase("big") == "Pending"


def test_whoever_plays_the_trainer_ends_it(place: Namespace, simulated_nodes: Nodes) -> None:
    simulated_nodes(1)
    for name in ("trainer", "bystander"):
        place.create(pod(name, metadata={"labels": {"dl2.dev/pod-group": "job"}}, restartPolicy="Never"))
        place.wait(f"pod/{name}", "condition=Ready")
    succeeded = json.dumps({"status": {"phase": "Succeeded"}})
    place.kubectl("patch", "pod", "trainer", "--subresource=status", "--type=merge", f"--patch={succeeded}")
    # Another pod's start after the patch: kwok has had its chance to undo it.
    place.create(pod("later"))
    place.wait("pod/later", "condition=Ready")
    assert place.phase("trainer") == "Succeeded"
    assert place.phase("bystander") == "Running"


def batch_job(name: str, labels: dict[str, str]) -> dict[str, Any]:
    template = pod("unused", restartPolicy="Never")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": {"metadata": {"labels": labels}, "spec": template["spec"]}},
    }


def test_pods_of_a_foreign_job_end_and_those_in_a_group_run_on(
    place: Namespace, simulated_nodes: Nodes
) -> None:
    simulated_nodes(1)
    place.create(batch_job("grouped", {"dl2.dev/pod-group": "grouped"}))
    place.wait("job/grouped", "jsonpath={.status.ready}=1")
    place.create(batch_job("foreign", {}))
    place.wait("job/foreign", "condition=Complete")
    grouped = place.get("job", "grouped")
    assert grouped is not None
    assert grouped["status"].get("ready") == 1


def test_a_pod_is_ready_again_after_its_node_was_silent(place: Namespace, simulated_nodes: Nodes) -> None:
    """The node controller takes the condition away, as it does here; a kubelet gives it back, and so must kwok."""
    simulated_nodes(1)
    place.create(pod("trainer"))
    place.wait("pod/trainer", "condition=Ready")
    before = place.get("pod", "trainer")
    silent = json.dumps({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    place.kubectl("patch", "pod", "trainer", "--subresource=status", "--type=strategic", f"--patch={silent}")
    place.wait("pod/trainer", "condition=Ready")
    after = place.get("pod", "trainer")
    assert before is not None
    assert after is not None
    assert after["status"]["startTime"] == before["status"]["startTime"]
    assert {c["type"]: c["status"] for c in after["status"]["conditions"]} == {
        c["type"]: c["status"] for c in before["status"]["conditions"]
    }


def test_a_deleted_pod_vanishes(place: Namespace, simulated_nodes: Nodes) -> None:
    simulated_nodes(1)
    place.create(pod("trainer", terminationGracePeriodSeconds=600))
    place.wait("pod/trainer", "condition=Ready")
    place.kubectl("delete", "pod", "trainer", "--timeout=30s")
    assert place.get("pod", "trainer") is None


def test_the_second_profile_packs(place: Namespace, simulated_nodes: Nodes) -> None:
    names = simulated_nodes(4, gpus=8)
    for index in range(4):
        name = f"packed-{index}"
        place.create(
            pod(
                name,
                schedulerName="dl2-bin-packing",
                container=gpus(2),
                affinity={
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [
                                {
                                    "matchExpressions": [
                                        {"key": "kubernetes.io/hostname", "operator": "In", "values": names}
                                    ]
                                }
                            ]
                        }
                    }
                },
            )
        )
        place.wait(f"pod/{name}", "condition=PodScheduled")
    nodes = {
        found["spec"]["nodeName"] for index in range(4) if (found := place.get("pod", f"packed-{index}"))
    }
    assert len(nodes) == 1


def test_nodes_of_others_are_left_alone(place: Namespace, simulated_nodes: Nodes) -> None:
    """A node without kwok's annotation stays as its own kubelet leaves it, here: without any status."""
    foreign = f"foreign-{uuid.uuid4().hex[:6]}"
    place.create(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": foreign, "labels": {"type": "foreign"}}}
    )
    try:
        simulated_nodes(1)  # becomes Ready after the foreign one was seen
        node = place.get("node", foreign)
        assert node is not None
        ready = [c["status"] for c in node["status"].get("conditions", []) if c["type"] == "Ready"]
        assert "True" not in ready
    finally:
        place.kubectl("delete", "node", foreign)


# -- crashes of components -------------------------------------------------------------------------


def process(cluster: EmbeddedCluster, name: str) -> ProcessIdentity:
    seen = cluster.processes.observation(name)
    assert seen is not None
    assert seen.identity is not None
    return seen.identity


def kill(victim: ProcessIdentity) -> None:
    procfs.send(victim, signal.SIGKILL)
    wait_until(lambda: not procfs.alive(victim), f"the end of {victim.pid}", 10)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_killed_component_comes_back_and_pods_run_again(
    place: Namespace, simulated_nodes: Nodes, component: str
) -> None:
    cluster = place.cluster
    simulated_nodes(1)
    place.create(pod("before"))
    place.wait("pod/before", "condition=Ready")
    victim = process(cluster, component)
    kill(victim)

    def back() -> bool:
        seen = cluster.processes.observation(component)
        return seen is not None and seen.identity is not None and seen.identity != victim

    wait_until(back, f"the restart of {component}", 30)
    cluster.wait_ready(component)
    cluster.wait_ready("kube-apiserver")
    place.create(pod("after"))
    place.wait("pod/after", "condition=Ready", timeout=90)
    assert place.phase("before") == "Running"


def test_the_api_server_can_be_stopped_and_started(place: Namespace) -> None:
    cluster = place.cluster
    place.kubectl("create", "configmap", "kept")
    cluster.stop_component("kube-apiserver")
    (status,) = (line for line in cluster.status() if line.name == "kube-apiserver")
    assert (status.up, status.wanted) == (False, False)
    cluster.start_component("kube-apiserver")
    assert place.get("configmap", "kept") is not None
    cluster.restart_component("kube-apiserver")
    assert place.get("configmap", "kept") is not None
