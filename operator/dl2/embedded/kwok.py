"""Simulated nodes: kwok plays their kubelets. Which nodes there are, and what becomes of the pods on them.

A pod bound to such a node is Running and Ready at once and stays so: nothing trains in it, so whoever plays
the trainer patches its status to Succeeded or Failed. Only pods of batch Jobs end by themselves, as kwok's
own stages have it, unless they carry the label `dl2.dev/pod-group`. A deleted pod vanishes at once.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from dl2.embedded.processes import ProcessSpec
from dl2.embedded.waiting import wait_until

if TYPE_CHECKING:
    from dl2.embedded.cluster import EmbeddedCluster

NODES_IN_RACK, RACKS_IN_BLOCK, BLOCKS_IN_ZONE = 8, 4, 4
REGION = "dl2-region"
PODS_PER_NODE = 256
# Addresses reserved for benchmarks (RFC 2544): of no machine, so a simulated pod is never mistaken for
# another.
POD_CIDR = "198.18.0.0/15"
HEARTBEATS_PER_SECOND = 10  # of all simulated nodes together: 2 cores have better things to do
SHORTEST_HEARTBEAT = 20  # seconds
MANAGED = "kwok.x-k8s.io/node"
NOT_READY = "node.kubernetes.io/not-ready"
LOOPBACK = "127.0.0.1"


def heartbeat_interval(nodes: int) -> int:
    """Seconds between two heartbeats of one simulated node: longer for more nodes."""
    return max(SHORTEST_HEARTBEAT, math.ceil(nodes / HEARTBEATS_PER_SECOND))


def grace_period(nodes: int, shortest: int) -> int:
    """Seconds of silence after which a node counts as lost: two missed heartbeats, and never below
    `shortest`.
    """
    return max(shortest, 3 * heartbeat_interval(nodes)) if nodes else shortest


@dataclass(frozen=True)
class Shape:
    """What each simulated node has; quantities as Kubernetes writes them."""

    gpus: int = 8
    cpus: int = 64
    memory: str = "512Gi"

    def resources(self) -> dict[str, str]:
        found = {
            "cpu": str(self.cpus),
            "memory": self.memory,
            "ephemeral-storage": "1Ti",
            "pods": str(PODS_PER_NODE),
        }
        return found | ({"nvidia.com/gpu": str(self.gpus)} if self.gpus else {})


def labels(name: str, index: int) -> dict[str, str]:
    """The labels of the node number `index`: 8 nodes a rack, 4 racks a block, 4 blocks a zone, one region."""
    rack = index // NODES_IN_RACK
    block = rack // RACKS_IN_BLOCK
    zone = block // BLOCKS_IN_ZONE
    return {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/region": REGION,
        "topology.kubernetes.io/zone": f"zone-{zone}",
        "topology.kubernetes.io/rack": f"rack-{rack}",
        "dl2.dev/block": f"block-{block}",
        "dl2.dev/rack": f"rack-{rack}",
        "dl2.dev/node-kind": "kwok",
        "type": "kwok",
    }


def node(
    name: str, index: int, shape: Shape, extra_labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The Node object of one simulated node; `index` places it in the topology."""
    resources = shape.resources()
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels(name, index) | dict(extra_labels or {}),
            "annotations": {MANAGED: "fake"},
        },
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": LOOPBACK}, {"type": "Hostname", "address": name}],
        },
    }


def process(cluster: "EmbeddedCluster") -> ProcessSpec:
    """kwok for the nodes annotated as fake, and no others."""
    kubeconfig = cluster.write_kubeconfig("kwok", "kwok", ("system:masters",))
    serving = cluster.pki.server("kwok", "kwok", ("localhost", LOOPBACK))
    port = cluster.port("kwok")
    interval = heartbeat_interval(cluster.options.kwok_nodes)
    config = (
        cluster.directory / "config" / f"kwok-{interval}s.yaml"
    )  # another interval is another command line
    config.parent.mkdir(exist_ok=True)
    documents = [
        {
            "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
            "kind": "KwokConfiguration",
            "options": {
                "manageAllNodes": False,
                "manageNodesWithAnnotationSelector": f"{MANAGED}=fake",
                # Without leases: a kwok that was restarted would wait for its predecessor's to run out.
                "nodeLeaseDurationSeconds": 0,
                "cidr": POD_CIDR,
                "nodeIP": LOOPBACK,
                "nodePort": port,
                "serverAddress": f"{LOOPBACK}:{port}",
                "tlsCertFile": str(serving.certificate),
                "tlsPrivateKeyFile": str(serving.key),
                "podPlayStageParallelism": 8,
                "nodePlayStageParallelism": 4,
                "enableProfilingHandler": False,
            },
        },
        *stages(interval),
    ]
    config.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return ProcessSpec(
        name="kwok",
        # Its every patch of an object is a line at level INFO.
        argv=(
            str(cluster.binaries.path("kwok")),
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            "--v=WARN",
        ),
        stop_timeout=3.0,
    )


def create(cluster: "EmbeddedCluster", nodes: Sequence[Mapping[str, Any]]) -> None:
    """Creates the Node objects `nodes`, leaving those that exist, and waits until all are Ready."""
    from kubernetes import client

    names = [node["metadata"]["name"] for node in nodes]
    with cluster.api() as api, ThreadPoolExecutor(8) as pool:
        core = client.CoreV1Api(api)
        present = dict(_nodes(core))
        missing = [node for node in nodes if node["metadata"]["name"] not in present]
        _ = [*pool.map(lambda body: core.create_node(body, _preload_content=False), missing)]

        def ready() -> bool | str:
            cluster.processes.expect_up("kwok")
            states = dict(_nodes(core))
            unready = [name for name in names if not states.get(name)]
            return f"{len(unready)} are not Ready, such as {unready[0]}" if unready else True

        # Asking takes the API server's time: seldom for thousands.
        interval = 0.1 + len(names) / 1000
        wait_until(ready, f"{len(names)} simulated nodes becoming Ready", 60 + len(names) / 10, interval)


def delete(cluster: "EmbeddedCluster", names: Iterable[str]) -> None:
    """Deletes the nodes `names`; the controller manager then deletes the pods that were on them."""
    from kubernetes import client

    with cluster.api() as api:
        core = client.CoreV1Api(api)
        for name in names:
            try:
                core.delete_node(name, _preload_content=False)
            except client.ApiException as error:
                if error.status != 404:
                    raise


def ensure_nodes(cluster: "EmbeddedCluster") -> None:
    """Makes the nodes kwok-0, kwok-1, ... as many as the cluster's options say, creating and deleting."""
    from kubernetes import client

    options = cluster.options
    shape = Shape(options.gpus, options.cpus, options.memory)
    create(cluster, [node(f"kwok-{index}", index, shape) for index in range(options.kwok_nodes)])
    with cluster.api() as api:
        numbered = {name for name, _ in _nodes(client.CoreV1Api(api)) if re.fullmatch(r"kwok-\d+", name)}
    delete(cluster, numbered - {f"kwok-{index}" for index in range(options.kwok_nodes)})


def _nodes(core: Any) -> Iterator[tuple[str, bool]]:
    """Every simulated node by name, and whether pods can be scheduled onto it."""
    # Of thousands of nodes the library's models would cost seconds: two fields of each are wanted.
    answer = core.list_node(label_selector="type=kwok", resource_version="0", _preload_content=False)
    for item in orjson.loads(answer.data)["items"]:
        conditions: Iterable[Mapping[str, str]] = item["status"].get("conditions", ())
        ready = any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)
        # The controller manager takes this taint off a moment after the node is Ready.
        tainted = any(taint["key"] == NOT_READY for taint in item["spec"].get("taints", ()))
        yield item["metadata"]["name"], ready and not tainted


def stages(heartbeat: int) -> list[dict[str, Any]]:
    """What kwok does to nodes and pods, as its Stage documents. `heartbeat` in seconds."""
    return [
        _stage("node-initialize", "Node", [(READY_STATUS, "NotIn", ["True"])], status=NODE_READY),
        _stage(
            "node-heartbeat",
            "Node",
            [(".status.phase", "In", ["Running"]), (READY_STATUS, "In", ["True"])],
            status=NODE_CONDITIONS,
            delay={
                "durationMilliseconds": heartbeat * 1000,
                "jitterDurationMilliseconds": heartbeat * 1250,
            },
            again=True,
        ),
        _stage(
            "pod-ready",
            "Pod",
            [
                (".metadata.deletionTimestamp", "DoesNotExist", []),
                (".status.phase", "In", ["Pending"]),
                (READY_STATUS, "NotIn", ["True"]),
            ],
            status=POD_RUNNING,
        ),
        # The node controller takes a pod's readiness away when its node is silent; a kubelet would give it back.
        _stage(
            "pod-ready-again",
            "Pod",
            [
                (".metadata.deletionTimestamp", "DoesNotExist", []),
                (".status.phase", "In", ["Running"]),
                (READY_STATUS, "In", ["False"]),
                (CONTAINERS_READY_STATUS, "In", ["True"]),
            ],
            status=POD_READY_AGAIN,
        ),
        _stage(
            "pod-complete",
            "Pod",
            [
                (".metadata.deletionTimestamp", "DoesNotExist", []),
                (".status.phase", "In", ["Running"]),
                (".metadata.ownerReferences.[].kind", "In", ["Job"]),
                ('.metadata.labels["dl2.dev/pod-group"]', "DoesNotExist", []),
            ],
            status=POD_SUCCEEDED,
        ),
        _stage("pod-delete", "Pod", [(".metadata.deletionTimestamp", "Exists", [])], delete=True),
    ]


def _status_of(condition: str) -> str:
    return f'.status.conditions.[] | select( .type == "{condition}" ) | .status'


READY_STATUS = _status_of("Ready")
CONTAINERS_READY_STATUS = _status_of("ContainersReady")


def _stage(
    name: str,
    kind: str,
    selector: list[tuple[str, str, list[str]]],
    *,
    status: str = "",
    delete: bool = False,
    delay: dict[str, int] | None = None,
    again: bool = False,
) -> dict[str, Any]:
    expressions = [
        {"key": key, "operator": operator, **({"values": values} if values else {})}
        for key, operator, values in selector
    ]
    spec: dict[str, Any] = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": expressions},
        "next": {"delete": True} if delete else {"statusTemplate": status},
    }
    if delay:
        spec["delay"] = delay
    if again:
        spec["immediateNextStage"] = True
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}


# Go templates that kwok renders into merge patches of the status, with the object as `.`.
NODE_CONDITIONS = """\
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- type: {{ .type | Quote }}
  status: {{ .status | Quote }}
  reason: {{ .reason | Quote }}
  message: {{ .message | Quote }}
  lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ or $.metadata.creationTimestamp $now | Quote }}
{{ end }}
"""

NODE_READY = (
    NODE_CONDITIONS
    + """\
phase: Running
daemonEndpoints:
  kubeletEndpoint:
    Port: {{ NodePort }}
nodeInfo:
  architecture: amd64
  operatingSystem: linux
  osImage: simulated
  bootID: ""
  machineID: ""
  systemUUID: ""
  kernelVersion: {{ printf "kwok-%s" Version | Quote }}
  containerRuntimeVersion: {{ printf "kwok-%s" Version | Quote }}
  kubeletVersion: {{ printf "kwok-%s" Version | Quote }}
  kubeProxyVersion: {{ printf "kwok-%s" Version | Quote }}
"""
)

POD_RUNNING = """\
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
{{ range $type := list "PodReadyToStartContainers" "Initialized" "ContainersReady" "Ready" }}
- type: {{ $type }}
  status: "True"
  lastTransitionTime: {{ $now | Quote }}
{{ end }}
{{ range .spec.readinessGates }}
- type: {{ .conditionType | Quote }}
  status: "True"
  lastTransitionTime: {{ $now | Quote }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  started: true
  restartCount: 0
  state:
    running:
      startedAt: {{ $now | Quote }}
{{ end }}
initContainerStatuses:
{{ range .spec.initContainers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  {{ if eq .restartPolicy "Always" }}
  started: true
  state:
    running:
      startedAt: {{ $now | Quote }}
  {{ else }}
  state:
    terminated:
      exitCode: 0
      reason: Completed
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
  {{ end }}
{{ end }}
{{ with NodeIPsWith .spec.nodeName }}
hostIP: {{ index . 0 | Quote }}
hostIPs:
{{ range . }}
- ip: {{ . | Quote }}
{{ end }}
{{ end }}
{{ $hostNetwork := or .spec.hostNetwork false }}
{{ with PodIPsWith .spec.nodeName $hostNetwork .metadata.uid .metadata.name .metadata.namespace }}
podIP: {{ index . 0 | Quote }}
podIPs:
{{ range . }}
- ip: {{ . | Quote }}
{{ end }}
{{ end }}
"""

POD_READY_AGAIN = """\
conditions:
- type: Ready
  status: "True"
  lastTransitionTime: {{ Now | Quote }}
"""

POD_SUCCEEDED = """\
{{ $now := Now }}
phase: Succeeded
conditions:
- type: Ready
  status: "False"
  reason: PodCompleted
  lastTransitionTime: {{ $now | Quote }}
- type: ContainersReady
  status: "False"
  reason: PodCompleted
  lastTransitionTime: {{ $now | Quote }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      exitCode: 0
      reason: Completed
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
{{ end }}
"""
