"""What the embedded cluster keeps on disk: where its folders are, what was asked for, and who holds which
port.

A cluster lives in one folder, `<state root>/clusters/<name>`. Ports and slots are shared by all clusters of a
machine, whatever their state root, so they are booked in one registry under the runtime root.
"""

import fcntl
import hashlib
import ipaddress
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dl2.embedded.errors import ClusterError

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
SLOTS = 64  # clusters of one machine; each owns the /16 network 10.(128+slot).0.0
PORTS = range(20_000, 30_000)  # below the kernel's ephemeral ports and Kubernetes' node ports


class Record(BaseModel):
    """A small file of the state folder: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound=BaseModel)


def write(path: Path, record: BaseModel) -> None:
    """Writes `record` as JSON so that a reader sees the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(record.model_dump_json(indent=2))
    os.replace(file.name, path)


def read(path: Path, kind: type[R]) -> R | None:
    """The record at `path`, or None where there is none. Raises ClusterError for a damaged file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(text)
    except ValueError as error:
        raise ClusterError(
            f"{path} is damaged or of another version of dl2 ({error})",
            "run `dl2 cluster down`, or delete the file",
        ) from error


def state_root() -> Path:
    """The folder of all clusters: DL2_STATE, else XDG_STATE_HOME/dl2, else ~/.local/state/dl2."""
    if configured := os.environ.get("DL2_STATE"):
        return Path(configured).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser().absolute() / "dl2"


def runtime_root() -> Path:
    """A short, machine-wide folder of this user for locks and sockets; gone after a reboot."""
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        root = Path("/run/dl2")
    elif (base := os.environ.get("XDG_RUNTIME_DIR")) and os.access(base, os.W_OK):
        root = Path(base) / "dl2"
    else:
        root = Path(f"/tmp/dl2-{os.geteuid()}")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.geteuid():
        raise ClusterError(f"{root} belongs to another user", "remove it or set XDG_RUNTIME_DIR")
    return root


def cluster_directory(name: str, root: Path | None = None) -> Path:
    """The folder of the cluster called `name`; raises ClusterError for a name that cannot be one."""
    if not NAME.fullmatch(name):
        raise ClusterError(
            f"{name!r} is not a cluster name",
            "use 1 to 40 lower-case letters, digits and dashes that begin and end with a letter or digit",
        )
    return (root or state_root()) / "clusters" / name


def cluster_names(root: Path | None = None) -> list[str]:
    """Every cluster that has a folder, up or not."""
    folder = (root or state_root()) / "clusters"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def runtime_directory(directory: Path) -> Path:
    """The folder for sockets of the cluster in `directory`, short enough for a socket's 108 bytes."""
    digest = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
    return runtime_root() / f"{directory.name[:16]}-{digest}"


@contextmanager
def locked(path: Path, block: bool = True) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`; the kernel frees it when the process ends, however it ends.

    Raises BlockingIOError where another process holds it and `block` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            # Who held the lock before us may have removed the file: then we hold a lock nobody else will find.
            if _is_at(path, file.fileno()):
                yield
                return


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock on `path` right now."""
    try:
        with locked(path, block=False):
            return False
    except BlockingIOError:
        return True


class ProcessIdentity(Record):
    """One process, told apart from any later one that gets the same pid."""

    pid: int
    started: int  # clock ticks after boot: field 22 of /proc/<pid>/stat
    boot: str  # the kernel's boot id


class ClusterOptions(Record):
    """What a cluster was asked to be; kept as cluster.json."""

    name: str
    kwok_nodes: int = Field(default=0, ge=0, le=20_000)
    gpus: int = Field(default=8, ge=0, le=1024)
    cpus: int = Field(default=64, ge=1, le=4096)
    memory: str = "512Gi"
    real_nodes: int = Field(default=0, ge=0, le=16)
    feature_gates: dict[str, bool] = Field(default_factory=dict)
    runtime_config: dict[str, bool] = Field(default_factory=dict)
    owner: ProcessIdentity | None = None  # the cluster goes down when this process ends


@dataclass(frozen=True)
class Network:
    """The addresses of one cluster: the /16 of its slot, halved between services and pods of real nodes."""

    slot: int

    @property
    def service_cidr(self) -> str:
        return f"10.{128 + self.slot}.0.0/20"

    @property
    def service_ip(self) -> str:
        """The address of the Service kubernetes.default: the first of the service range."""
        return str(ipaddress.ip_network(self.service_cidr)[1])

    @property
    def pod_cidr(self) -> str:
        return f"10.{128 + self.slot}.128.0/17"

    @property
    def gateway(self) -> str:
        """The address of the bridge of the real nodes."""
        return str(ipaddress.ip_network(self.pod_cidr)[1])

    @property
    def bridge(self) -> str:
        return f"dl2br{self.slot}"


class Booking(Record):
    """What one cluster holds of the machine."""

    slot: int
    ports: dict[str, int] = Field(default_factory=dict)


class _Ledger(Record):
    bookings: dict[str, Booking] = Field(default_factory=dict)  # by cluster folder


class Registry:
    """Books slots and ports for clusters, under one lock for the machine.

    A booking whose folder is gone is void, so a cluster removed by hand frees what it held.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._path = (root or runtime_root()) / "registry.json"

    def booking(self, directory: Path) -> Booking | None:
        """What the cluster in `directory` holds; None where it holds nothing."""
        return self._load().bookings.get(str(directory))

    def slot(self, directory: Path) -> int:
        """The slot of the cluster in `directory`, booked on the first call."""
        with self._edit() as bookings:
            if (held := bookings.get(str(directory))) is None:
                taken = {booking.slot for booking in bookings.values()}
                free = next((slot for slot in range(SLOTS) if slot not in taken), None)
                if free is None:
                    raise ClusterError(
                        f"all {SLOTS} cluster slots of this machine are taken",
                        "take a cluster down: dl2 cluster down --all",
                    )
                held = bookings[str(directory)] = Booking(slot=free)
            return held.slot

    def port(self, directory: Path, purpose: str) -> int:
        """A free port for `purpose`; the same answer on every later call for the same cluster."""
        slot = self.slot(directory)
        with self._edit() as bookings:
            held = bookings[str(directory)]
            if purpose not in held.ports:
                taken = {port for booking in bookings.values() for port in booking.ports.values()}
                start = slot * len(PORTS) // SLOTS
                order = (PORTS[(start + offset) % len(PORTS)] for offset in range(len(PORTS)))
                port = next((port for port in order if port not in taken and _bindable(port)), None)
                if port is None:
                    raise ClusterError(
                        f"no port in {PORTS.start}-{PORTS.stop - 1} is free for {purpose}",
                        "take a cluster down: dl2 cluster down --all",
                    )
                held = bookings[str(directory)] = Booking(slot=held.slot, ports={**held.ports, purpose: port})
            return held.ports[purpose]

    def release(self, directory: Path) -> None:
        """Gives back all that the cluster in `directory` holds."""
        with self._edit() as bookings:
            bookings.pop(str(directory), None)

    def _load(self) -> _Ledger:
        return read(self._path, _Ledger) or _Ledger()

    @contextmanager
    def _edit(self) -> Iterator[dict[str, Booking]]:
        with locked(self._path.with_suffix(".lock")):
            ledger = self._load().bookings
            bookings = {folder: booking for folder, booking in ledger.items() if Path(folder).is_dir()}
            yield bookings
            if bookings != ledger:
                write(self._path, _Ledger(bookings=bookings))


def _bindable(port: int) -> bool:
    """Whether nothing on this machine listens on `port` (real nodes bind every address, so that is tried)."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True
