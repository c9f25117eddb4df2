"""The container runtime of a real node: a containerd of its own, its pod network plug-in and its images."""

import json
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl2.embedded.errors import ClusterError
from dl2.embedded.images import reference
from dl2.embedded.network import NodeNetwork
from dl2.embedded.system import run, unmount_below

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
CNI_RESULTS = Path("/var/lib/cni/results")  # shared by all containerds of the machine
SYS_RESOURCE = 24  # number of the capability, see capabilities(7)


@dataclass(frozen=True)
class Runtime:
    """The folders and the socket of one node's containerd."""

    node: str
    directory: Path  # on disk: images and containers
    volatile: Path  # short, in memory: sockets and state

    @property
    def socket(self) -> Path:
        return self.volatile / "containerd.sock"

    @property
    def endpoint(self) -> str:
        return f"unix://{self.socket}"

    @property
    def state(self) -> Path:
        return self.volatile / "state"

    @property
    def kubelet_root(self) -> Path:
        """Where the folder of pods' volumes, on disk, appears by a path short enough for kubelet's sockets in it."""
        return self.volatile / "kubelet"

    def ctr(self, *arguments: str | Path, timeout: float = 300.0) -> str:
        return run("ctr", "--address", self.socket, "--namespace", "k8s.io", *arguments, timeout=timeout)


def cni_folder() -> Path | None:
    """Where the machine keeps its network plug-ins."""
    return next((folder for folder in CNI_FOLDERS if (folder / "ptp").exists()), None)


def configure(runtime: Runtime, network: NodeNetwork) -> Path:
    """Writes the configuration of containerd and of the pod network; returns containerd's."""
    plugins = cni_folder()
    if plugins is None:
        raise ClusterError(
            "the CNI plug-ins are not installed", "apt-get install containernetworking-plugins"
        )
    conflists = runtime.directory / "cni"
    conflists.mkdir(parents=True, exist_ok=True)
    (conflists / "pods.conflist").write_text(json.dumps(pod_network(runtime, network), indent=2))
    path = runtime.directory / "containerd.toml"
    path.write_text(containerd_configuration(runtime, plugins, conflists))
    return path


def containerd_configuration(runtime: Runtime, plugins: Path, conflists: Path) -> str:
    """containerd's TOML, with every path below the node's own folders."""
    return f"""version = 2
root = "{runtime.directory / "containerd"}"
state = "{runtime.state}"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "{runtime.socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{reference("pause")}"
  netns_mounts_under_state_dir = true
  # Pods ask for a lower score than ours; without the right to lower it, none would start.
  restrict_oom_score_adj = {str(not may_raise_limits()).lower()}

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{conflists}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  Root = "{runtime.volatile / "runc"}"
"""


def pod_network(runtime: Runtime, network: NodeNetwork) -> dict[str, Any]:
    """A routed veth pair for each pod. With a bridge, an answer from a pod of the same node would bypass the
    node's translation of Service addresses, unless the kernel filters bridged packets too."""
    return {
        "cniVersion": "0.4.0",
        "name": f"dl2-{runtime.node}",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": network.pods}]],
                    "dataDir": str(runtime.volatile / "addresses"),
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def may_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, which root of a sandbox may lack."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> SYS_RESOURCE & 1)
    return False


def import_image(runtime: Runtime, archive: Path) -> None:
    """Loads the OCI `archive` into the node; does nothing where the node has this very image."""
    name, digest = described(archive)
    if f"{name} " in (listing := runtime.ctr("images", "list", f"name=={name}")) and digest in listing:
        return
    runtime.ctr("images", "import", archive)


def described(archive: Path) -> tuple[str, str]:
    """The reference and the digest of the one image in an OCI archive."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("index.json")
        assert member is not None, f"{archive}: index.json is no file"
        manifest = json.load(member)["manifests"][0]
    return manifest["annotations"]["org.opencontainers.image.ref.name"], manifest["digest"]


def remove_traces(directory: Path, node_directory: str, volatile: str) -> None:
    """Unmounts what containerd and kubelet mounted, and removes what they left elsewhere. A teardown hook."""
    runtime = Runtime(Path(node_directory).name, Path(node_directory), Path(volatile))
    _unlink(_shim_sockets(runtime))
    _unlink(_cni_notes(runtime))
    _unlink(
        link for link in Path("/var/log/containers").glob("*.log") if _leads_into(link, runtime.directory)
    )
    unmount_below(runtime.directory, runtime.volatile)


def _shim_sockets(runtime: Runtime) -> Iterable[Path]:
    """The sockets of containerd's shims; they lie in a folder shared by all containerds of the machine."""
    for file in runtime.state.glob("io.containerd.runtime.v2.task/*/*/address"):
        yield Path(file.read_text().strip().removeprefix("unix://"))


def _cni_notes(runtime: Runtime) -> Iterable[Path]:
    """libcni's notes of pods that nobody has deleted; each names the pod's namespace, which is below our state."""
    return (
        note for note in CNI_RESULTS.glob("*") if f'"{runtime.state}/' in note.read_text(errors="replace")
    )


def _leads_into(link: Path, directory: Path) -> bool:
    return link.is_symlink() and link.readlink().is_relative_to(directory)


def _unlink(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with suppress(FileNotFoundError):
            path.unlink()
