"""The embedded cluster: a real Kubernetes control plane on this machine, with simulated and real nodes.

with EmbeddedCluster("tests", kwok_nodes=4) as cluster:
    cluster.kubectl("get", "nodes")
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from dl2 import resources
from dl2.embedded import controlplane, kwok, procfs
from dl2.embedded.binaries import CONTROL_PLANE, Binaries
from dl2.embedded.errors import ClusterError
from dl2.embedded.pki import KeyPair, Pki, write_kubeconfig
from dl2.embedded.processes import Processes, ProcessStatus
from dl2.embedded.state import (
    ClusterOptions,
    Network,
    Registry,
    cluster_directory,
    is_locked,
    locked,
    read,
    runtime_directory,
    write,
)
from dl2.embedded.teardown import Teardown, keep_logs, lock_of, take_down
from dl2.embedded.waiting import Progress, Silent, wait_until

READINESS = {
    "kube-apiserver": "/readyz",
    "kube-controller-manager": "/healthz",
    "kube-scheduler": "/readyz",
    "kwok": "/healthz",
}
# What cannot change once the cluster is made.
FIXED = ("gpus", "cpus", "memory", "feature_gates", "runtime_config")
Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


class EmbeddedCluster:
    """One cluster, by name; the object is a handle, the cluster lives in its folder and may outlive this
    process.
    """

    def __init__(
        self,
        name: str = "dl2",
        *,
        kwok_nodes: int = 0,
        gpus: int = 8,
        cpus: int = 64,
        memory: str = "512Gi",
        real_nodes: int = 0,
        feature_gates: dict[str, bool] | None = None,
        runtime_config: dict[str, bool] | None = None,
        owned: bool = False,
        state_root: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Describes the cluster; `up()` makes it. Each simulated node has `gpus`, `cpus` and `memory`.

        `owned`: the cluster goes down by itself when this process ends, however it ends.
        `state_root`: where its folder is made, in place of DL2_STATE.
        """
        self.directory = cluster_directory(name, state_root)
        self.options = ClusterOptions(
            name=name,
            kwok_nodes=kwok_nodes,
            gpus=gpus,
            cpus=cpus,
            memory=memory,
            real_nodes=real_nodes,
            feature_gates=feature_gates or {},
            runtime_config=runtime_config or {},
            owner=procfs.identify(os.getpid()) if owned else None,
        )
        self._attach(progress)

    @classmethod
    def load(cls, name: str, state_root: Path | None = None, progress: Progress | None = None) -> Self:
        """The cluster that an `up` has made; raises ClusterError where there is none of that name."""
        directory = cluster_directory(name, state_root)
        options = read(directory / "cluster.json", ClusterOptions)
        if options is None:
            raise ClusterError(f"there is no cluster {name!r}", f"make it: dl2 cluster up --name {name}")
        cluster = cls.__new__(cls)
        cluster.directory, cluster.options = directory, options
        cluster._attach(progress)
        return cluster

    def _attach(self, progress: Progress | None) -> None:
        self.progress: Progress = progress or Silent()
        self.binaries = Binaries(self.progress)
        self.processes = Processes(self.directory)
        self.teardown = Teardown(self.directory)
        self._registry = Registry()

    # -- facts -------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def runtime_directory(self) -> Path:
        """A short folder for sockets; made by `up`, removed by `down`."""
        return runtime_directory(self.directory)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig: a file of its own; ~/.kube/config is never read nor written."""
        return self.directory / "kubeconfig"

    @property
    def kubectl_cache(self) -> Path:
        """Where kubectl shall remember which resources this cluster has, in place of ~/.kube/cache."""
        return self.directory / "kubectl-cache"

    @property
    def slot(self) -> int:
        """A number below 64 that no other cluster of this machine has."""
        return self._registry.slot(self.directory)

    @property
    def network(self) -> Network:
        return Network(self.slot)

    @property
    def api_port(self) -> int:
        return self.port("kube-apiserver")

    @property
    def server(self) -> str:
        """The URL of the API server on this machine."""
        return f"https://127.0.0.1:{self.api_port}"

    @property
    def pki(self) -> Pki:
        return Pki(self.directory / "pki")

    @property
    def admin(self) -> KeyPair:
        """The administrator's client certificate."""
        return self.pki.client("admin", "dl2-admin", (controlplane.MASTERS,))

    def port(self, purpose: str) -> int:
        """A free port, booked for `purpose`: the same one on every call."""
        return self._registry.port(self.directory, purpose)

    # -- up and down -------------------------------------------------------------------------------

    def up(self) -> None:
        """Makes the cluster, completes a half-made one, or does nothing to one that is up.

        What this call began it takes down again when it fails or is interrupted; a cluster that was there
        before is left as it is then. Raises ClusterError.
        """
        self.check_earlier()  # before anything is built for what cannot be
        self.build()
        with self._exclusive(), _interruptible():
            before = self.check_earlier()
            try:
                self._bring_up()
            except BaseException as error:
                if before is None:
                    self._undo(error)
                raise

    def build(self) -> None:
        """Finds or builds the binaries, and the images of real nodes, that `up` needs. Raises ClusterError."""
        needed: tuple[str, ...] = CONTROL_PLANE
        if self.options.real_nodes:
            from dl2.embedded import realnode

            realnode.preflight()
            needed += realnode.BINARIES
        for binary in needed:
            self.binaries.path(binary)
        if self.options.real_nodes:
            realnode.build_images(self.progress)

    def _undo(self, error: BaseException) -> None:
        """Takes down what a failed `up` has begun; a second Ctrl-C does not end that half-way."""
        with _deaf():
            self.progress.failed()
            if isinstance(error, ClusterError):
                kept = str(keep_logs(self.directory))
                error.what = error.what.replace(str(self.directory / "logs"), kept)
                error.mend = f"Read the logs, kept in {kept}"
            take_down(self.directory, self.progress)

    def down(self) -> None:
        """Stops and removes everything of the cluster; does nothing where there is none. Raises
        ClusterError.
        """
        with self._exclusive():
            take_down(self.directory, self.progress)

    def _bring_up(self) -> None:
        self._make_folders()
        if self.options.real_nodes:
            from dl2.embedded import realnode

            realnode.prepare(self)
        count = self.options.kwok_nodes
        self.progress.step("Starting etcd and the API server")
        self.processes.ensure(controlplane.etcd(self))
        self.processes.ensure(controlplane.apiserver(self))
        self.wait_ready("kube-apiserver")
        self.progress.step("Starting the controller manager, the scheduler and kwok")
        grace = kwok.grace_period(count, controlplane.GRACE)
        self.processes.ensure(controlplane.controller_manager(self, grace))
        self.processes.ensure(controlplane.scheduler(self))
        self.processes.ensure(kwok.process(self))
        self._apply_crds()
        for component in ("kube-controller-manager", "kube-scheduler", "kwok"):
            self.wait_ready(component)
        self.wait_service_account("default")
        self.progress.step(f"Registering {count} simulated nodes")
        kwok.ensure_nodes(self)
        if self.options.real_nodes:
            realnode.start(self, self.options.real_nodes)

    def _make_folders(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.runtime_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(self.directory / "cluster.json", self.options)
        write_kubeconfig(
            self.kubeconfig,
            server=self.server,
            ca=self.pki.ca,
            user="dl2-admin",
            login=self.admin,
            context=f"dl2-{self.name}",
        )

    def check_earlier(self) -> ClusterOptions | None:
        """What is there of this name already; raises ClusterError where it cannot become what is asked
        for.
        """
        earlier = read(self.directory / "cluster.json", ClusterOptions)
        if earlier is None:
            return None
        mend = f"take it down first: dl2 cluster down --name {self.name}"
        if self._registry.booking(self.directory) is None:
            raise ClusterError(
                f"cluster {self.name} is a remainder from before this machine was started", mend
            )
        for field in FIXED:
            was, asked = getattr(earlier, field), getattr(self.options, field)
            if was != asked:
                raise ClusterError(f"cluster {self.name} was made with {field}={was}, not {asked}", mend)
        if self.options.real_nodes < earlier.real_nodes:
            raise ClusterError(f"cluster {self.name} has {earlier.real_nodes} real nodes already", mend)
        return earlier

    def _apply_crds(self) -> None:
        directory = resources.directory("crds")
        if not any(directory.glob("*.yaml")):
            return
        self.progress.step("Applying the custom resource definitions")
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(directory))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(directory))

    def wait_service_account(self, namespace: str) -> None:
        """Waits until pods can be created in `namespace`: its service account `default` is made a moment
        after it.
        """
        from kubernetes import client

        with self.api() as api:
            core = client.CoreV1Api(api)

            def present() -> bool:
                try:
                    core.read_namespaced_service_account("default", namespace)
                except client.ApiException as error:
                    if error.status != 404:
                        raise
                    return False
                return True

            wait_until(present, f"the service account default of namespace {namespace}", 30)

    # -- use ---------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 60.0) -> str:
        """What kubectl prints, as administrator of this cluster; raises ClusterError with what it complains
        of.
        """
        command = [str(self.binaries.path("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        # What it caches is filed by address, and another cluster had ours before.
        cache = {"KUBECACHEDIR": str(self.kubectl_cache)}
        environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
        try:
            result = subprocess.run(
                command,
                input=input,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env=environment | cache,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"`kubectl {' '.join(arguments)}` took more than {timeout:g} s") from error
        if result.returncode != 0:
            words = (result.stderr or result.stdout).strip()
            raise ClusterError(f"`kubectl {' '.join(arguments)}` failed: {words}")
        return result.stdout

    @contextmanager
    def api(self) -> Iterator[Any]:
        """A client of the `kubernetes` library (ApiClient), as administrator."""
        from kubernetes import client

        configuration = client.Configuration()
        configuration.host = self.server
        configuration.ssl_ca_cert = str(self.pki.ca)
        configuration.cert_file, configuration.key_file = str(self.admin.certificate), str(self.admin.key)
        configuration.proxy = None
        with client.ApiClient(configuration) as api:
            yield api

    def add_nodes(
        self,
        count: int,
        *,
        prefix: str = "kwok",
        gpus: int | None = None,
        cpus: int | None = None,
        memory: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> list[str]:
        """Adds Ready simulated nodes `<prefix>-0` and so on, shaped like the cluster's where not told
        otherwise.

        Returns their names, for `remove_nodes`. `labels` come on top of those that place them in racks and
        zones.
        """
        shape = kwok.Shape(
            self.options.gpus if gpus is None else gpus,
            self.options.cpus if cpus is None else cpus,
            memory or self.options.memory,
        )
        nodes = [kwok.node(f"{prefix}-{index}", index, shape, labels) for index in range(count)]
        kwok.create(self, nodes)
        return [node["metadata"]["name"] for node in nodes]

    def remove_nodes(self, names: Iterable[str]) -> None:
        """Deletes simulated nodes, and with them the pods that were on them."""
        kwok.delete(self, names)

    def write_kubeconfig(
        self, name: str, common_name: str, organizations: Sequence[str] = (), server: str | None = None
    ) -> Path:
        """A kubeconfig for the user `common_name` in the groups `organizations`, with a certificate of its
        own.
        """
        pair = self.pki.client(name, common_name, organizations)
        path = self.directory / "kubeconfigs" / name
        return write_kubeconfig(
            path,
            server=server or self.server,
            ca=self.pki.ca,
            user=common_name,
            login=pair,
            context=f"dl2-{self.name}",
        )

    def service_account_token(self, namespace: str, name: str, hours: int = 1) -> str:
        """A token of service account `namespace/name`, which must exist, that the API server gives out."""
        return self.kubectl("create", "token", name, "-n", namespace, f"--duration={hours}h").strip()

    def write_service_account_kubeconfig(self, path: Path, namespace: str, name: str, hours: int = 1) -> Path:
        """A kubeconfig with exactly the rights of service account `namespace/name`."""
        return write_kubeconfig(
            path,
            server=self.server,
            ca=self.pki.ca,
            user=name,
            login=self.service_account_token(namespace, name, hours),
            context=f"dl2-{self.name}",
        )

    def status(self) -> list[ProcessStatus]:
        """The processes of the cluster, the supervisor first."""
        return self.processes.status()

    def restart_component(self, name: str) -> None:
        """Ends the process `name` and starts it again; returns when it is ready."""
        self.processes.restart(name)
        self.wait_ready(name)

    def stop_component(self, name: str) -> None:
        """Ends the process `name`, to stay down until `start_component`."""
        self.processes.stop(name)

    def start_component(self, name: str) -> None:
        """Starts the process `name` after `stop_component`; returns when it is ready."""
        self.processes.start(name)
        self.wait_ready(name)

    def wait_ready(self, name: str) -> None:
        """Waits until the process `name` says it is ready; returns at once for one that cannot be asked."""
        if path := READINESS.get(name):
            controlplane.wait_ready(self, name, path)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keeps another `up` or `down` of this cluster out."""
        lock = lock_of(self.directory)
        if is_locked(lock):
            self.progress.step(f"Waiting for another `dl2 cluster` at work on {self.name}")
        with locked(lock):
            try:
                yield
            finally:
                if not self.directory.exists():
                    lock.unlink(missing_ok=True)  # safe while it is held: see state.locked

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Has SIGTERM interrupt like Ctrl-C does, so that either leaves nothing behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt, signal.SIGTERM):
        yield


@contextmanager
def _deaf() -> Iterator[None]:
    """Lets neither Ctrl-C nor SIGTERM interrupt."""
    with _handling(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def _handling(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # the only one that may, and the only one hit
        yield
        return
    earlier = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)
