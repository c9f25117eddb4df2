"""The network of the real nodes: each node is a network namespace, joined by a bridge in one more namespace.

    host ── <bridge> (gateway) ══ uplink ┐
                                         ├ fabric: bridge br0, address of the cluster's DNS
    namespace real-0: eth0 ══════ real-0 ┤
    namespace real-1: eth0 ══════ real-1 ┘

So the host gets one interface and a route for each node's pods, and nothing else of it changes: Service
rules, forwarding and pods' interfaces live in the nodes' namespaces, two clusters cannot meet, and what is
forgotten in a namespace goes with it. The bridge is kept out of the host's namespace because a firewall there
(Docker sets one up) may also filter what is only bridged.
"""

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dl2.embedded.errors import ClusterError
from dl2.embedded.system import mounts_below, run, unmount_below

if TYPE_CHECKING:
    from dl2.embedded.cluster import EmbeddedCluster

BRIDGE = "br0"
FIRST_NODE = 10  # host number of real-0 in the nodes' range; the gateway is 1, DNS is 2
DNS = 2


@dataclass(frozen=True)
class NodeNetwork:
    """The addresses of real node `index`."""

    namespace: Path  # the file that its network namespace is mounted on
    address: str
    pods: str  # the range of its pods, in CIDR notation


@dataclass(frozen=True)
class Fabric:
    """What joins the nodes of one cluster: the first /24 of its pod range is for nodes, each further one for
    a node.
    """

    directory: Path  # for the files that namespaces are mounted on
    link: str  # the interface on the host
    pod_cidr: str
    gateway: str

    @classmethod
    def of(cls, cluster: "EmbeddedCluster") -> "Fabric":
        network = cluster.network
        return cls(cluster.runtime_directory / "net", network.bridge, network.pod_cidr, network.gateway)

    @property
    def namespace(self) -> Path:
        return self.directory / "fabric"

    @property
    def nodes(self) -> ipaddress.IPv4Network:
        return self._range(0)

    @property
    def dns(self) -> str:
        return str(self.nodes[DNS])

    def node(self, index: int) -> NodeNetwork:
        return NodeNetwork(
            self.directory / f"real-{index}", str(self.nodes[FIRST_NODE + index]), str(self._range(index + 1))
        )

    def _range(self, number: int) -> ipaddress.IPv4Network:
        whole = ipaddress.IPv4Network(self.pod_cidr)
        return ipaddress.IPv4Network((int(whole.network_address) + number * 256, 24))

    def with_prefix(self, address: str) -> str:
        return f"{address}/{self.nodes.prefixlen}"


def enter(namespace: Path, *argv: str | Path) -> tuple[str, ...]:
    """The command line that runs `argv` in the network namespace mounted on `namespace`."""
    return ("nsenter", f"--net={namespace}", "--", *map(str, argv))


def make_fabric(fabric: Fabric) -> None:
    """Joins the host to the fabric, so that its gateway address exists; does nothing where it is there
    already.
    """
    if _linked(fabric.link) and _mounted(fabric.namespace):
        return
    remove_fabric(fabric.directory.parent, str(fabric.directory), fabric.link)
    _refuse_overlap(fabric)
    _make_namespace(fabric.namespace)
    _ip("link", "add", fabric.link, "type", "veth", "peer", "name", "uplink", "netns", fabric.namespace)
    for command in (
        ("link", "add", BRIDGE, "type", "bridge"),
        ("address", "add", fabric.with_prefix(fabric.dns), "dev", BRIDGE),
        ("link", "set", BRIDGE, "up"),
        ("link", "set", "uplink", "master", BRIDGE, "up"),
    ):
        _ip(*command, inside=fabric.namespace)
    _ip("address", "add", fabric.with_prefix(fabric.gateway), "dev", fabric.link)
    _ip("link", "set", fabric.link, "up")


def join_nodes(fabric: Fabric, count: int) -> None:
    """Gives real-0 ... real-(count-1) their namespaces, and everybody the routes to everybody's pods."""
    nodes = [fabric.node(index) for index in range(count)]
    for node in nodes:
        if not _mounted(node.namespace):
            _join(fabric, node)
    for node in nodes:
        _ip("route", "replace", node.pods, "via", node.address, "dev", fabric.link)
        _ip("route", "replace", node.pods, "via", node.address, inside=fabric.namespace)
        for other in nodes:
            if other != node:
                _ip("route", "replace", other.pods, "via", other.address, inside=node.namespace)


def _join(fabric: Fabric, node: NodeNetwork) -> None:
    port = node.namespace.name
    _make_namespace(node.namespace)
    _ip(
        "link",
        "add",
        port,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        node.namespace,
        inside=fabric.namespace,
    )
    _ip("link", "set", port, "master", BRIDGE, "up", inside=fabric.namespace)
    _ip("address", "add", fabric.with_prefix(node.address), "dev", "eth0", inside=node.namespace)
    _ip("link", "set", "eth0", "up", inside=node.namespace)
    _ip("route", "add", "default", "via", fabric.gateway, inside=node.namespace)
    run(*enter(node.namespace, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))


def remove_fabric(directory: Path, namespaces: str, link: str) -> None:
    """Removes the interface `link` of the host and every namespace mounted below `namespaces`. A teardown
    hook.
    """
    if _linked(link):
        _ip("link", "delete", link)
    unmount_below(Path(namespaces))
    for file in Path(namespaces).glob("*"):
        file.unlink()


def _make_namespace(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    run("unshare", f"--net={file}", "true")
    _ip("link", "set", "lo", "up", inside=file)


def _refuse_overlap(fabric: Fabric) -> None:
    """A route of the host into our range would take our traffic, or ours its."""
    for route in json.loads(_ip("-json", "-4", "route", "show", "root", fabric.pod_cidr) or "[]"):
        raise ClusterError(
            f"the cluster's range {fabric.pod_cidr} is in use by {route.get('dev')} (route to {route['dst']})",
            "remove that route, or bring up another cluster first so that this one gets the next range",
        )


def _mounted(file: Path) -> bool:
    return bool(mounts_below(file))


def _linked(link: str) -> bool:
    return Path(f"/sys/class/net/{link}").exists()


def _ip(*arguments: str | Path, inside: Path | None = None) -> str:
    return run(*enter(inside, "ip", *arguments)) if inside else run("ip", *arguments)
