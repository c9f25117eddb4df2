"""The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler; their certificates and
flags.

Everything speaks TLS on 127.0.0.1 and knows who is asking. Only with real nodes does the API server listen on
all addresses, so that pods reach it at the nodes' bridge.
"""

import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from dl2.embedded.pki import Pki
from dl2.embedded.processes import ProcessSpec
from dl2.embedded.waiting import wait_until

if TYPE_CHECKING:
    from dl2.embedded.cluster import EmbeddedCluster

LOOPBACK = "127.0.0.1"
MASTERS = "system:masters"
FRONT_PROXY = "front-proxy-client"
BIN_PACKING = "dl2-bin-packing"
# A GPU left idle costs more than a CPU left idle: fill nodes by GPUs first.
BIN_PACKING_WEIGHTS = {"cpu": 1, "memory": 1, "nvidia.com/gpu": 5}
# A test cluster has memory to spare and few cores, and Go's default spends much of them on collecting garbage.
FEWER_COLLECTIONS = {"GOGC": "400", "GOMEMLIMIT": "3GiB"}
GRACE = 50  # seconds without a heartbeat before a node counts as lost, where heartbeats are frequent

SERVICE_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
)


def etcd(cluster: "EmbeddedCluster") -> ProcessSpec:
    """etcd for one member, without fsync: a test cluster is not kept over a power cut."""
    pki = _etcd_pki(cluster)
    serving = pki.peer("etcd", "etcd", ("localhost", LOOPBACK))
    client_url, peer_url = _url(cluster.port("etcd")), _url(cluster.port("etcd-peer"))
    trust = {"trusted-ca-file": pki.ca, "cert-file": serving.certificate, "key-file": serving.key}
    return _process(
        cluster,
        "etcd",
        {
            "name": "default",
            "data-dir": cluster.directory / "etcd",
            "unsafe-no-fsync": "true",
            "listen-client-urls": client_url,
            "advertise-client-urls": client_url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": f"default={peer_url}",
            "client-cert-auth": "true",
            "peer-client-cert-auth": "true",
            "quota-backend-bytes": 8 * 2**30,
            "log-level": "warn",
            **trust,
            **{f"peer-{name}": value for name, value in trust.items()},
        },
    )


def apiserver(cluster: "EmbeddedCluster") -> ProcessSpec:
    """kube-apiserver with Node and RBAC authorization."""
    pki, etcd_pki, network = cluster.pki, _etcd_pki(cluster), cluster.network
    hosts = (*SERVICE_NAMES, LOOPBACK, network.service_ip, network.gateway)
    serving = pki.server("kube-apiserver", "kube-apiserver", hosts)
    to_etcd = etcd_pki.client("kube-apiserver", "kube-apiserver")
    to_kubelet = pki.client("kube-apiserver-kubelet", "kube-apiserver-kubelet-client", (MASTERS,))
    front = Pki(pki.directory / "front-proxy", "dl2-front-proxy-ca")
    to_extensions = front.client("front-proxy", FRONT_PROXY)
    private, public = pki.service_account_keys()
    if cluster.options.real_nodes:
        reach: dict[str, object] = {"bind-address": "0.0.0.0", "advertise-address": network.gateway}
    else:
        # No pod could reach the address, so none is published behind the Service `kubernetes`.
        reach = {"bind-address": LOOPBACK, "endpoint-reconciler-type": "none"}
    return _process(
        cluster,
        "kube-apiserver",
        {
            **reach,
            "secure-port": cluster.api_port,
            "etcd-servers": _url(cluster.port("etcd")),
            "etcd-cafile": etcd_pki.ca,
            "etcd-certfile": to_etcd.certificate,
            "etcd-keyfile": to_etcd.key,
            "tls-cert-file": serving.certificate,
            "tls-private-key-file": serving.key,
            "client-ca-file": pki.ca,
            "requestheader-client-ca-file": front.ca,
            "requestheader-allowed-names": FRONT_PROXY,
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "proxy-client-cert-file": to_extensions.certificate,
            "proxy-client-key-file": to_extensions.key,
            "kubelet-certificate-authority": pki.ca,
            "kubelet-client-certificate": to_kubelet.certificate,
            "kubelet-client-key": to_kubelet.key,
            "kubelet-preferred-address-types": "InternalIP",
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": public,
            "service-account-signing-key-file": private,
            "service-cluster-ip-range": network.service_cidr,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": "true",
            "profiling": "false",
            # Load tests of thousands of pods come from one address; flow control would queue them at the
            # defaults.
            "max-requests-inflight": 3000,
            "max-mutating-requests-inflight": 1000,
            **_switches("feature-gates", cluster.options.feature_gates),
            **_switches("runtime-config", cluster.options.runtime_config),
        },
        stop_timeout=2.0,  # it would wait for its watchers, who do not mean to go
    )


def controller_manager(cluster: "EmbeddedCluster", grace: int = GRACE) -> ProcessSpec:
    """kube-controller-manager with every default controller, each under a service account of its own."""
    kubeconfig = cluster.write_kubeconfig("kube-controller-manager", "system:kube-controller-manager")
    private, _ = cluster.pki.service_account_keys()
    return _process(
        cluster,
        "kube-controller-manager",
        {
            **_serving(cluster, "kube-controller-manager"),
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "service-account-private-key-file": private,
            "root-ca-file": cluster.pki.ca,
            "cluster-signing-cert-file": cluster.pki.ca,
            "cluster-signing-key-file": cluster.pki.ca_key,
            "use-service-account-credentials": "true",
            "leader-elect": "false",
            "node-monitor-grace-period": f"{grace}s",
            "kube-api-qps": 1000,
            "kube-api-burst": 2000,
            "profiling": "false",
            **_switches("feature-gates", cluster.options.feature_gates),
        },
    )


def scheduler(cluster: "EmbeddedCluster") -> ProcessSpec:
    """kube-scheduler, unmodified, with its default profile and one that packs."""
    kubeconfig = cluster.write_kubeconfig("kube-scheduler", "system:kube-scheduler")
    config = cluster.directory / "config" / "kube-scheduler.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(yaml.safe_dump(scheduler_configuration(str(kubeconfig)), sort_keys=False))
    return _process(
        cluster,
        "kube-scheduler",
        {
            **_serving(cluster, "kube-scheduler"),
            "config": config,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            **_switches("feature-gates", cluster.options.feature_gates),
        },
    )


def scheduler_configuration(kubeconfig: str) -> dict[str, Any]:
    """The default profile, untouched, and `dl2-bin-packing`, which fills a node before it starts the next."""
    packing = {
        "type": "MostAllocated",
        "resources": [{"name": name, "weight": weight} for name, weight in BIN_PACKING_WEIGHTS.items()],
    }
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig, "qps": 1000, "burst": 2000},
        "leaderElection": {"leaderElect": False},
        "profiles": [
            {"schedulerName": "default-scheduler"},
            {
                "schedulerName": BIN_PACKING,
                # What spreads would work against what packs.
                "plugins": {"score": {"disabled": [{"name": "NodeResourcesBalancedAllocation"}]}},
                "pluginConfig": [
                    {"name": "NodeResourcesFit", "args": {"scoringStrategy": packing}},
                    {
                        "name": "PodTopologySpread",
                        "args": {"defaultingType": "List", "defaultConstraints": []},
                    },
                ],
            },
        ],
    }


def wait_ready(cluster: "EmbeddedCluster", component: str, path: str, timeout: float = 60.0) -> None:
    """Waits until `path` of the component answers 200; raises ClusterError with its log when it keeps
    ending.
    """
    context = ssl.create_default_context(cafile=str(cluster.pki.ca))
    admin = cluster.admin
    context.load_cert_chain(admin.certificate, admin.key)
    # No proxy of the environment may come between us and an address of this machine.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    url = f"{_url(cluster.port(component))}{path}"

    def ready() -> bool | str:
        cluster.processes.expect_up(component)
        try:
            with opener.open(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.read().decode(errors="replace").strip()[-500:]
        except OSError as error:
            return str(error)

    wait_until(
        ready,
        f"{component} becoming ready",
        timeout,
        interval=0.05,
        mend=f"Read {cluster.processes.log_path(component)}",
    )


def _serving(cluster: "EmbeddedCluster", component: str) -> dict[str, object]:
    pair = cluster.pki.server(component, component, ("localhost", LOOPBACK))
    return {
        "bind-address": LOOPBACK,
        "secure-port": cluster.port(component),
        "tls-cert-file": pair.certificate,
        "tls-private-key-file": pair.key,
    }


def _etcd_pki(cluster: "EmbeddedCluster") -> Pki:
    # An authority of its own: no user of the API may pass as a client of the store behind it.
    return Pki(cluster.pki.directory / "etcd", "dl2-etcd-ca")


def _switches(flag: str, switches: Mapping[str, bool]) -> dict[str, str]:
    if not switches:
        return {}
    return {flag: ",".join(f"{name}={str(on).lower()}" for name, on in sorted(switches.items()))}


def _process(
    cluster: "EmbeddedCluster", name: str, flags: Mapping[str, object], stop_timeout: float = 10.0
) -> ProcessSpec:
    arguments = (f"--{flag}={value}" for flag, value in flags.items())
    return ProcessSpec(
        name=name,
        argv=(str(cluster.binaries.path(name)), *arguments),
        env=FEWER_COLLECTIONS,
        stop_timeout=stop_timeout,
    )


def _url(port: int) -> str:
    return f"https://{LOOPBACK}:{port}"
