"""A real node: pods run in containers, find each other and the API server, train with MXNet, and leave nothing."""

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dl2.api.core import parse_pod
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.waiting import wait_until

pytestmark = pytest.mark.e2e
IMAGE = "localhost/dl2/mxnet-trainer:dev"
PROC = Path("/proc")
TRAIN = ["python3", "/examples/digits/train.py"]


@pytest.fixture
def space(real_cluster: EmbeddedCluster) -> Iterator[str]:
    """A namespace for one test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    real_cluster.kubectl("create", "namespace", name)
    real_cluster.wait_service_account(name)
    yield name
    real_cluster.kubectl("delete", "namespace", name, "--wait=false")


def pod(name: str, command: list[str], env: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod of one container that runs `command` once."""
    variables: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in (env or {}).items()]
    address = {"fieldRef": {"fieldPath": "status.podIP"}}
    container = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": command,
        "env": [*variables, {"name": "DMLC_NODE_HOST", "valueFrom": address}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"pod": name, "job": "digits"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **spec,
        },
    }


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def apply(cluster: EmbeddedCluster, namespace: str, *objects: dict[str, Any]) -> None:
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=yaml.safe_dump_all(objects))


def wait_for(cluster: EmbeddedCluster, namespace: str, what: str, *condition: str) -> None:
    cluster.kubectl("wait", "-n", namespace, what, *condition, "--timeout=90s", timeout=100)


def run_in_pod(cluster: EmbeddedCluster, namespace: str, name: str, script: str) -> str:
    """What `script`, in Python, prints in the running pod `name`."""
    return cluster.kubectl("exec", "-n", namespace, name, "--", "python3", "-c", script).strip()


def test_the_node_is_ready_and_has_the_machines_processors_and_no_gpu(real_cluster: EmbeddedCluster) -> None:
    node = json.loads(real_cluster.kubectl("get", "node", "real-0", "-o", "json"))

    assert node["metadata"]["labels"]["dl2.dev/node-kind"] == "real"
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "real-0"
    assert {"dl2.dev/rack", "topology.kubernetes.io/zone"} <= node["metadata"]["labels"].keys()
    processors = subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout.strip()
    assert node["status"]["allocatable"]["cpu"] == processors
    assert "nvidia.com/gpu" not in node["status"]["allocatable"]
    ready = [each["status"] for each in node["status"]["conditions"] if each["type"] == "Ready"]
    assert ready == ["True"]


def test_a_pod_runs_to_its_end_and_its_words_can_be_read(real_cluster: EmbeddedCluster, space: str) -> None:
    apply(
        real_cluster,
        space,
        pod("hello", ["python3", "-c", "import mxnet; print('mxnet', mxnet.__version__)"]),
    )
    wait_for(real_cluster, space, "pod/hello", "--for=jsonpath={.status.phase}=Succeeded")

    assert real_cluster.kubectl("logs", "-n", space, "hello").strip().splitlines()[-1] == "mxnet 1.9.1"


def test_a_pod_that_fails_says_with_which_exit_code(real_cluster: EmbeddedCluster, space: str) -> None:
    apply(real_cluster, space, pod("fails", ["sh", "-c", "exit 7"]))
    wait_for(real_cluster, space, "pod/fails", "--for=jsonpath={.status.phase}=Failed")

    path = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"
    assert real_cluster.kubectl("get", "pod", "-n", space, "fails", "-o", path) == "7"


def test_a_pod_that_grows_in_place_is_counted_as_kubelet_says(
    real_cluster: EmbeddedCluster, space: str
) -> None:
    """At once where there is room; what kubelet has put off until there is room is taken already."""
    wanted = {"requests": {"cpu": "100m", "memory": "32Mi"}}
    for name in ("grows", "other"):
        sleeper = pod(name, ["sleep", "infinity"])
        sleeper["spec"]["containers"][0]["resources"] = wanted
        apply(real_cluster, space, sleeper)
    for name in ("grows", "other"):
        wait_for(real_cluster, space, f"pod/{name}", "--for=condition=Ready")

    def resize(cpu: str) -> None:
        containers = [{"name": "main", "resources": {"requests": {"cpu": cpu}}}]
        patch = json.dumps({"spec": {"containers": containers}})
        real_cluster.kubectl("patch", "-n", space, "pod", "grows", "--subresource=resize", "--patch", patch)

    def counted() -> int:
        found = json.loads(real_cluster.kubectl("get", "pod", "-n", space, "grows", "-o", "json"))
        return parse_pod(found).requests["cpu"]

    allocated = "--for=jsonpath={.status.containerStatuses[0].allocatedResources.cpu}"
    wait_for(real_cluster, space, "pod/grows", f"{allocated}=100m")
    assert counted() == 100
    resize("150m")
    wait_for(real_cluster, space, "pod/grows", f"{allocated}=150m")
    assert counted() == 150
    everything = len(os.sched_getaffinity(0))
    resize(str(everything))
    wait_for(real_cluster, space, "pod/grows", "--for=condition=PodResizePending")
    assert counted() == everything * 1000
    resize("100m")
    wait_for(real_cluster, space, "pod/grows", f"{allocated}=100m")
    assert counted() == 100


def test_pods_find_each_other_and_the_api_server(real_cluster: EmbeddedCluster, space: str) -> None:
    apply(
        real_cluster,
        space,
        service("peers", clusterIP="None", publishNotReadyAddresses=True, selector={"job": "digits"}),
        service("web", selector={"pod": "server"}, ports=[{"port": 80, "targetPort": 8000}]),
        pod("server", ["python3", "-m", "http.server", "8000"], hostname="server", subdomain="peers"),
        pod("client", ["sleep", "infinity"], hostname="client", subdomain="peers"),
    )
    for name in ("server", "client"):
        wait_for(real_cluster, space, f"pod/{name}", "--for=condition=Ready")
    address = real_cluster.kubectl("get", "pod", "-n", space, "server", "-o", "jsonpath={.status.podIP}")

    # A headless Service names its pods; a pod of the same node answers through an ordinary one.
    resolve = "import socket; print(socket.gethostbyname('server.peers'))"
    wait_until(lambda: _tried(real_cluster, space, resolve) == address, "the name server.peers", 30)
    fetch = "import urllib.request; print(urllib.request.urlopen('http://web', timeout=5).status)"
    wait_until(lambda: _tried(real_cluster, space, fetch) == "200", "an answer of the Service web", 30)
    # The service account that every pod gets identifies it to the API server.
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    who = f"""
import json, ssl, urllib.request
request = urllib.request.Request(
    "https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews", b"{{}}",
    {{"Authorization": "Bearer " + open("{folder}/token").read(), "Content-Type": "application/json"}})
context = ssl.create_default_context(cafile="{folder}/ca.crt")
answer = urllib.request.urlopen(request, context=context, timeout=10)
print(json.load(answer)["status"]["userInfo"]["username"])
"""
    assert run_in_pod(real_cluster, space, "client", who) == f"system:serviceaccount:{space}:default"


def _tried(cluster: EmbeddedCluster, namespace: str, script: str) -> str:
    """What `script` prints in the pod `client`, or the last line of its complaint."""
    wrapped = f"import traceback\ntry:\n    {script}\nexcept OSError as error:\n    print(error)"
    return run_in_pod(cluster, namespace, "client", wrapped)


def test_mxnet_trains_in_pods_and_reports_how_far_it_is(real_cluster: EmbeddedCluster, space: str) -> None:
    """As the operator makes them: a scheduler, a server and two workers of a `static` job."""
    coordinator = "digits-coordinator-0.digits"
    common = {
        "DL2_JOB": "digits",
        "DL2_NAMESPACE": space,
        "DL2_COORDINATOR": f"{coordinator}:8470",
        "DL2_EPOCHS": "12",
        "DL2_STEP_SECONDS": "0.02",
        "DMLC_PS_ROOT_URI": coordinator,
        "DMLC_PS_ROOT_PORT": "9091",
        "DMLC_NUM_WORKER": "2",
        "DMLC_NUM_SERVER": "1",
        "DMLC_USE_KUBERNETES": "1",
    }
    roles = {"coordinator": ("scheduler", 1), "server": ("server", 1), "worker": ("worker", 2)}
    pods = [
        pod(
            name := f"digits-{role}-{index}",
            TRAIN,
            common | {"DL2_ROLE": role, "DMLC_ROLE": dmlc, "DL2_INDEX": str(index)},
            hostname=name,
            subdomain="digits",
        )
        for role, (dmlc, count) in roles.items()
        for index in range(count)
    ]
    headless = service("digits", clusterIP="None", publishNotReadyAddresses=True, selector={"job": "digits"})
    apply(real_cluster, space, headless, *pods)
    wait_for(real_cluster, space, "pod/digits-coordinator-0", "--for=condition=Ready")
    address = real_cluster.kubectl(
        "get", "pod", "-n", space, "digits-coordinator-0", "-o", "jsonpath={.status.podIP}"
    )

    seen: dict[str, Any] = {}

    def reported() -> bool | str:
        command = ["curl", "--silent", "--noproxy", "*", f"http://{address}:8470/v1/status"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        seen.update(json.loads(answer or "{}"))
        return bool(seen.get("step")) or f"the coordinator says {answer!r}"

    wait_until(reported, "a report of progress", 60)
    assert seen["metrics"].keys() == {"loss", "accuracy"}

    for each in pods:
        wait_for(
            real_cluster, space, f"pod/{each['metadata']['name']}", "--for=jsonpath={.status.phase}=Succeeded"
        )
    for index in range(2):
        last = real_cluster.kubectl("logs", "-n", space, f"digits-worker-{index}").strip().splitlines()[-1]
        name, _, accuracy = last.partition("=")
        assert name == "final accuracy"
        assert float(accuracy) > 0.9


def test_two_nodes_reach_each_others_pods_and_leave_nothing_behind_a_crash(tmp_path: Path) -> None:
    cluster = EmbeddedCluster(f"pair-{uuid.uuid4().hex[:6]}", real_nodes=2, owned=True, state_root=tmp_path)
    try:
        cluster.up()
        apply(
            cluster,
            "default",
            service("web", selector={"pod": "server"}, ports=[{"port": 80, "targetPort": 8000}]),
            pod("server", ["python3", "-m", "http.server", "8000"], nodeName="real-0"),
            pod("client", ["sleep", "infinity"], nodeName="real-1"),
        )
        for name in ("server", "client"):
            wait_for(cluster, "default", f"pod/{name}", "--for=condition=Ready")
        fetch = "import urllib.request; print(urllib.request.urlopen('http://web', timeout=5).status)"
        wait_until(lambda: _tried(cluster, "default", fetch) == "200", "an answer from the other node", 30)
        mine = traces(cluster.directory, cluster.runtime_directory, cluster.network.bridge)
        assert all(mine.values()), f"the test looks for what is not there even now: {mine}"
        kill_everything_that_could_clean_up(cluster)
    finally:
        cluster.down()

    assert traces(cluster.directory, cluster.runtime_directory, cluster.network.bridge) == {
        kind: [] for kind in mine
    }
    assert not cluster.directory.exists()
    assert not cluster.runtime_directory.exists()


def kill_everything_that_could_clean_up(cluster: EmbeddedCluster) -> None:
    supervisor = cluster.processes.supervisor()
    assert supervisor is not None
    runtimes = [
        each.pid for each in cluster.status() if each.pid and each.name.startswith(("containerd", "kubelet"))
    ]
    assert len(runtimes) == 4
    for pid in (supervisor.pid, *runtimes):
        os.kill(pid, signal.SIGKILL)


def traces(directory: Path, volatile: Path, link: str) -> dict[str, list[str]]:
    """What of a cluster can be seen on the machine, by kind."""
    own = (str(directory), str(volatile))
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    commands = [
        _read(path).replace(b"\0", b" ").decode(errors="replace") for path in PROC.glob("[0-9]*/cmdline")
    ]
    grouped = [path for path in PROC.glob("[0-9]*/cgroup") if volatile.name.encode() in _read(path)]
    return {
        "mounts": [point for point in mounts if point.startswith(own)],
        "processes": [command for command in commands if any(path in command for path in own)],
        "processes in its control groups": [str(path) for path in grouped],
        "control groups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{volatile.name}-real-*")],
        "interfaces": [path.name for path in Path("/sys/class/net").glob(link)],
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""
