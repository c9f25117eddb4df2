"""Real nodes: kubelets on containerd, each in a network of its own, with kube-proxy and a DNS for the cluster.

A node is a kubelet, a containerd and a kube-proxy in one network namespace (network.py), under one control group
(cgroups.py). They know the API server by the gateway address, and are known to it by that of their namespace.
"""

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dl2.embedded import cgroups, containers, imagebuild, images, tunables
from dl2.embedded.containers import Runtime
from dl2.embedded.errors import ClusterError
from dl2.embedded.network import Fabric, NodeNetwork, enter, join_nodes, make_fabric
from dl2.embedded.processes import ProcessSpec
from dl2.embedded.state import state_root
from dl2.embedded.system import bind
from dl2.embedded.waiting import Progress, wait_until

if TYPE_CHECKING:
    from dl2.embedded.cluster import EmbeddedCluster

BINARIES = ("kubelet", "kube-proxy", "coredns")
DOMAIN = "cluster.local"
RACK = "topology.kubernetes.io/rack"
DNS_READY_PORT = 8181
GATE = "real nodes cannot run here"

# Command -> the Debian package that has it.
COMMANDS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
CNI_PACKAGE = "containernetworking-plugins"

# What a node does first and a sandbox may forbid, tried in namespaces that end with the trial.
TRIALS = {
    "mounting an overlay file system": "mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m",
    "making a bridge": "ip link add dl2 type bridge",
    "making a veth pair": "ip link add dl2 type veth peer name dl2peer",
    "making nftables rules": "nft add table ip dl2",
}

DNS_ACCESS = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["endpoints", "services", "pods", "namespaces"],
                "verbs": ["list", "watch"],
            },
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
    },
]


# -- before anything is made ---------------------------------------------------------------------------------------


def preflight() -> None:
    """Raises ClusterError, which says in one sentence why and how to mend it, where real nodes cannot run."""
    if os.geteuid() != 0:
        raise ClusterError(
            f"{GATE}: starting containers needs root", "run it with sudo, or without --real-node"
        )
    packages = {package for command, package in COMMANDS.items() if shutil.which(command) is None}
    if containers.cni_folder() is None:
        packages.add(CNI_PACKAGE)
    if packages:
        raise ClusterError(
            f"{GATE}: programs are missing",
            f"apt-get install --no-install-recommends {' '.join(sorted(packages))}",
        )
    complaints = {what: _try(script) for what, script in TRIALS.items()}
    complaints["making a control group"] = _try_control_group()
    for what, complaint in complaints.items():
        if complaint:
            raise ClusterError(
                f"{GATE}: {what} is refused ({complaint})",
                "use a machine, a VM or a privileged container, with the state folder (DL2_STATE) on a plain disk",
            )


def _try(script: str) -> str:
    """Why `script` fails in a mount and network namespace of its own; '' where it does not."""
    root = state_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="preflight-") as folder:
        try:
            result = subprocess.run(
                ["unshare", "--mount", "--net", "sh", "-e", "-c", script],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return "" if result.returncode == 0 else (result.stderr.strip() or f"exit status {result.returncode}")


def _try_control_group() -> str:
    """Why no control group can be made, as in a container without privileges; '' where one can."""
    name = f"dl2-preflight-{os.getpid()}"
    try:
        cgroups.make(name)
    except OSError as error:
        return str(error)
    finally:
        cgroups.remove(name)
    return ""


def build_images(progress: Progress) -> list[Path]:
    """The archives of all images that real nodes get, built where they are missing."""
    return imagebuild.ensure(_image_names(), progress)


def prepare(cluster: "EmbeddedCluster") -> None:
    """Builds the missing images, and makes what the API server needs: the gateway address that pods reach it at."""
    _write(_chosen_images(cluster), [str(path) for path in build_images(cluster.progress)])
    fabric = Fabric.of(cluster)
    cluster.teardown.register(
        "fabric",
        "dl2.embedded.network:remove_fabric",
        arguments={"namespaces": str(fabric.directory), "link": fabric.link},
    )
    make_fabric(fabric)
    cluster.teardown.register("tunables", "dl2.embedded.tunables:release")
    tunables.hold(cluster.directory)


# -- the nodes -----------------------------------------------------------------------------------------------------


def start(cluster: "EmbeddedCluster", count: int) -> None:
    """Brings up real-0 ... real-(count-1) with their images; returns when all are Ready and DNS answers."""
    archives = [Path(path) for path in json.loads(_chosen_images(cluster).read_text())]
    fabric = Fabric.of(cluster)
    cluster.progress.step(f"Starting {count} real node{'s' if count > 1 else ''}")
    join_nodes(fabric, count)
    _start_dns(cluster, fabric)
    for index in range(count):
        _start_node(cluster, fabric, index, archives)
    for index in range(count):
        _wait_ready(cluster, _name(index))
        # A kubelet may not give itself this label of a reserved domain.
        cluster.kubectl(
            "label", "--overwrite", "node", _name(index), f"{RACK}={node_labels(index)['dl2.dev/rack']}"
        )
    _wait_dns(cluster, fabric)


def _start_node(cluster: "EmbeddedCluster", fabric: Fabric, index: int, archives: list[Path]) -> None:
    node, network = _name(index), fabric.node(index)
    runtime = Runtime(node, cluster.directory / "nodes" / node, cluster.runtime_directory / node)
    for folder in (runtime.directory, runtime.volatile):
        folder.mkdir(parents=True, exist_ok=True)
    group = f"{cluster.runtime_directory.name}-{node}"
    cluster.teardown.register(
        f"{node}-traces",
        "dl2.embedded.containers:remove_traces",
        arguments={"node_directory": str(runtime.directory), "volatile": str(runtime.volatile)},
    )
    # Registered later, so run earlier: what is still mounted by a process that lives cannot be cleared.
    cluster.teardown.register(
        f"{node}-processes", "dl2.embedded.realnode:end_pods", arguments={"group": group}
    )
    cgroups.make(group)
    bind(runtime.directory / "kubelet", runtime.kubelet_root)
    _ensure(
        cluster, network, f"containerd-{node}", "containerd", config=containers.configure(runtime, network)
    )
    _wait_containerd(cluster, runtime)
    containers.import_image(runtime, archives[0])  # of the sandbox, which every pod needs
    kubelet = cluster.binaries.path("kubelet")
    _ensure(
        cluster, network, f"kubelet-{node}", kubelet, **_kubelet_flags(cluster, runtime, fabric, index, group)
    )
    proxy = _write(runtime.directory / "kube-proxy.json", _proxy_configuration(cluster, fabric, node))
    _ensure(cluster, network, f"kube-proxy-{node}", cluster.binaries.path("kube-proxy"), config=proxy)
    for archive in archives[1:]:
        containers.import_image(runtime, archive)


def end_pods(directory: Path, group: str) -> None:
    """Ends every process of every pod of a node. A teardown hook."""
    cgroups.remove(group)


def _kubelet_flags(
    cluster: "EmbeddedCluster", runtime: Runtime, fabric: Fabric, index: int, group: str
) -> dict[str, str | Path]:
    node, network = runtime.node, fabric.node(index)
    serving = cluster.pki.server(
        f"kubelet-{node}", f"system:node:{node}", (node, network.address), ("system:nodes",)
    )
    resolver = runtime.directory / "resolv.conf"
    resolver.write_text(f"nameserver {fabric.dns}\n")
    configuration = kubelet_configuration(runtime, fabric, group, cluster.pki.ca) | {
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "resolvConf": str(resolver),
    }
    return {
        "config": _write(runtime.directory / "kubelet.json", configuration),
        "kubeconfig": cluster.write_kubeconfig(
            f"kubelet-{node}-client",
            f"system:node:{node}",
            ("system:nodes",),
            server=_server(cluster, fabric),
        ),
        "hostname-override": node,
        "node-ip": network.address,
        "node-labels": ",".join(f"{key}={value}" for key, value in node_labels(index).items()),
        "root-dir": runtime.kubelet_root,
        "cert-dir": runtime.kubelet_root / "pki",
    }


def node_labels(index: int) -> dict[str, str]:
    """The labels of real node `index`: a rack each, in a block and a zone that no simulated node is in."""
    return {
        "dl2.dev/node-kind": "real",
        "dl2.dev/rack": f"rack-real-{index}",
        "dl2.dev/block": "block-real",
        "topology.kubernetes.io/zone": "zone-real",
        "topology.kubernetes.io/region": "region-0",
    }


def kubelet_configuration(runtime: Runtime, fabric: Fabric, group: str, ca: Path) -> dict[str, Any]:
    """A KubeletConfiguration that keeps to the node's own folders and evicts nothing for the machine's sake."""
    version_1 = not cgroups.unified()
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": runtime.endpoint,
        "clusterDNS": [fabric.dns],
        "clusterDomain": DOMAIN,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{group}",
        "failCgroupV1": not version_1,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        # The machine's disk is shared with everything else on it: its fullness says nothing about our pods.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%",
                         "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
        # Images are imported, not pulled: collected ones would never come back.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "podLogsDir": str(runtime.directory / "logs"),
        "volumePluginDir": str(runtime.directory / "volume-plugins"),
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
    }  # fmt: skip


def _proxy_configuration(cluster: "EmbeddedCluster", fabric: Fabric, node: str) -> dict[str, Any]:
    kubeconfig = cluster.write_kubeconfig("kube-proxy", "system:kube-proxy", server=_server(cluster, fabric))
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": fabric.pod_cidr,
        "conntrack": {"maxPerCore": 0, "min": 0},  # a limit of the machine's, not of the node's namespace
        "oomScoreAdj": 0,
    }


# -- DNS -----------------------------------------------------------------------------------------------------------


def _start_dns(cluster: "EmbeddedCluster", fabric: Fabric) -> None:
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(DNS_ACCESS))
    kubeconfig = cluster.write_kubeconfig("coredns", "system:coredns", server=_server(cluster, fabric))
    corefile = cluster.directory / "config" / "Corefile"
    corefile.parent.mkdir(exist_ok=True)
    corefile.write_text(corefile_text(fabric, kubeconfig))
    argv = enter(fabric.namespace, cluster.binaries.path("coredns"), "-conf", corefile)
    cluster.processes.ensure(ProcessSpec(name="coredns", argv=argv, stop_timeout=2.0))


def corefile_text(fabric: Fabric, kubeconfig: Path) -> str:
    """CoreDNS for the cluster's own names. Answers are not cached, so a pod finds a new peer at once; there is no
    way outside, so every other name does not exist."""
    return f"""{DOMAIN} in-addr.arpa ip6.arpa {{
    bind {fabric.dns}
    errors
    ready {fabric.dns}:{DNS_READY_PORT}
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
}}
. {{
    bind {fabric.dns}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


# -- waiting -------------------------------------------------------------------------------------------------------


def _wait_containerd(cluster: "EmbeddedCluster", runtime: Runtime) -> None:
    process = f"containerd-{runtime.node}"

    def answers() -> bool | str:
        cluster.processes.expect_up(process)
        try:
            runtime.ctr("version", timeout=10)
        except ClusterError as error:
            return error.what
        return True

    wait_until(answers, f"{process} answering", 30, 0.1, f"read {cluster.processes.log_path(process)}")


def _wait_ready(cluster: "EmbeddedCluster", node: str) -> None:
    process = f"kubelet-{node}"

    def ready() -> bool | str:
        cluster.processes.expect_up(process)
        found = json.loads(cluster.kubectl("get", "node", node, "--ignore-not-found", "-o", "json") or "{}")
        conditions = {each["type"]: each for each in found.get("status", {}).get("conditions", ())}
        if "Ready" not in conditions:
            return "it has not registered"
        return conditions["Ready"]["status"] == "True" or str(conditions["Ready"]["message"])

    wait_until(ready, f"node {node} becoming Ready", 90, 0.25, f"read {cluster.processes.log_path(process)}")


def _wait_dns(cluster: "EmbeddedCluster", fabric: Fabric) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready() -> bool | str:
        cluster.processes.expect_up("coredns")
        try:
            with opener.open(f"http://{fabric.dns}:{DNS_READY_PORT}/ready", timeout=5):
                return True
        except OSError as error:
            return str(error)

    wait_until(ready, "CoreDNS becoming ready", 30, 0.1, f"read {cluster.processes.log_path('coredns')}")


# -- small things --------------------------------------------------------------------------------------------------


def _image_names() -> list[str]:
    """All images that can be built here: without a checkout of the repository there is none of the operator."""
    return [name for name in images.IMAGES if images.buildable(name)]


def _chosen_images(cluster: "EmbeddedCluster") -> Path:
    """Where it is kept which archives `prepare` found or built: their sources may change while a cluster comes up."""
    return cluster.directory / "config" / "images.json"


def _name(index: int) -> str:
    return f"real-{index}"


def _server(cluster: "EmbeddedCluster", fabric: Fabric) -> str:
    return f"https://{fabric.gateway}:{cluster.api_port}"


def _ensure(
    cluster: "EmbeddedCluster", network: NodeNetwork, name: str, program: str | Path, **flags: str | Path
) -> None:
    arguments = (f"--{flag}={value}" for flag, value in flags.items())
    argv = enter(network.namespace, program, *arguments)
    cluster.processes.ensure(ProcessSpec(name=name, argv=argv, stop_timeout=5.0))


def _write(path: Path, configuration: dict[str, Any] | list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(configuration, indent=2))
    return path
