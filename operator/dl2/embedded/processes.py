"""Supervised processes as their clients see them: say what shall run; the supervisor makes it so.

The wish for a process is a file, `run/processes/<name>.json`; what became of it is `run/status/<name>.json`,
written by the supervisor alone. So both survive the death of either side.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from dl2.embedded import procfs
from dl2.embedded.errors import ClusterError
from dl2.embedded.state import ProcessIdentity, Record, locked, read, write
from dl2.embedded.waiting import wait_until

MARK_NAME, MARK_DIRECTORY = "DL2_CLUSTER", "DL2_CLUSTER_DIR"
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR")
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


class ProcessSpec(Record):
    """One process to keep running, in a session of its own."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    stop_timeout: float = 10.0  # seconds from SIGTERM to SIGKILL of its process group
    restart: bool = True  # started again, with back-off, when it ends by itself


class Wish(Record):
    """What shall be: `generation` grows with every change, and with every asked-for restart."""

    spec: ProcessSpec
    wanted: bool
    generation: int
    sequence: int  # order of first start; stops run the other way round


class Observation(Record):
    """What is, as of wish `generation`."""

    generation: int
    identity: ProcessIdentity | None = None
    restarts: int = 0
    failures: int = 0  # in a row, without a steady run between
    failure: str = ""  # how it ended last, unless it was told to


@dataclass(frozen=True)
class ProcessStatus:
    """One line of `dl2 cluster status`."""

    name: str
    pid: int | None  # of the running process
    log: Path
    wanted: bool = True
    restarts: int = 0
    failure: str = ""  # how it ended last, unless it was told to

    @property
    def up(self) -> bool:
        return self.pid is not None


def component_environment(directory: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The small environment of everything a cluster starts, with the marks `down` finds it by.

    Proxies and KUBECONFIG are left out on purpose: components speak to each other on this machine only.
    """
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    folders = environment.get("PATH", "").split(os.pathsep)
    folders += [folder for folder in SYSTEM_FOLDERS if folder not in folders]
    environment["PATH"] = os.pathsep.join(folder for folder in folders if folder)
    return environment | (extra or {}) | {MARK_NAME: directory.name, MARK_DIRECTORY: str(directory)}


class Processes:
    """The supervised processes of the cluster in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._wishes = directory / "run" / "processes"
        self._status = directory / "run" / "status"

    def ensure(self, spec: ProcessSpec) -> None:
        """Makes `spec` run; a process that runs with another spec is restarted. Returns once it was
        started.
        """
        with self._lock():
            old = self._wish(spec.name)
            if old is not None and old.spec == spec and old.wanted:
                wish = old
            else:
                wish = Wish(
                    spec=spec,
                    wanted=True,
                    generation=old.generation + 1 if old else 1,
                    sequence=old.sequence if old else self._next_sequence(),
                )
                write(self._wishes / f"{spec.name}.json", wish)
        self.supervise()
        self._settled(wish)

    def stop(self, name: str) -> None:
        """Stops the process and keeps it stopped; returns when it has ended."""
        self._change(name, wanted=False)

    def start(self, name: str) -> None:
        """Starts a stopped process again; one that runs is left alone."""
        if not self._known(name).wanted:
            self._change(name, wanted=True)

    def restart(self, name: str) -> None:
        """Stops the process and starts it again; returns when the new one was started."""
        self._change(name, wanted=True)

    def remove(self, name: str) -> None:
        """Stops the process and forgets it."""
        self._change(name, wanted=False)
        (self._wishes / f"{name}.json").unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        """Where the process writes; raises ClusterError for a name the cluster does not have."""
        if name != "supervisor":
            self._known(name)
        return self.log_path(name)

    def log_path(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def status(self) -> list[ProcessStatus]:
        """Every process of the cluster, the supervisor first, then in order of their first start."""
        supervisor = self.supervisor()
        pid = supervisor.pid if supervisor else None
        first = ProcessStatus("supervisor", pid, log=self.log_path("supervisor"))
        return [first, *map(self._status_of, self.wishes())]

    def _status_of(self, wish: Wish) -> ProcessStatus:
        name = wish.spec.name
        seen = self.observation(name) or Observation(generation=0)
        alive = seen.identity is not None and procfs.alive(seen.identity)
        pid = seen.identity.pid if seen.identity and alive else None
        return ProcessStatus(name, pid, self.log_path(name), wish.wanted, seen.restarts, seen.failure)

    def expect_up(self, name: str) -> None:
        """Raises ClusterError with the last lines of its log when the process keeps ending by itself."""
        seen = self.observation(name)
        if seen is None or seen.failures < 3:
            return
        log = self.log_path(name)
        raise ClusterError(
            f"{name} keeps ending ({seen.failure}); the end of {log}:\n{tail(log, 8)}",
            f"Read it whole: dl2 cluster logs {name} --name {self.directory.name}",
        )

    def wishes(self) -> list[Wish]:
        """Every wish, in order of first start."""
        records = (read(path, Wish) for path in sorted(self._wishes.glob("[!.]*.json")))
        return sorted((wish for wish in records if wish), key=lambda wish: wish.sequence)

    def observation(self, name: str) -> Observation | None:
        return read(self._status / f"{name}.json", Observation)

    def observe(self, name: str, observation: Observation | None) -> None:
        """For the supervisor: tells what became of a process; None forgets it."""
        if observation is None:
            (self._status / f"{name}.json").unlink(missing_ok=True)
        elif self.directory.is_dir():  # never brought back once `down`, or a person, has removed it
            write(self._status / f"{name}.json", observation)

    # -- the supervisor ----------------------------------------------------------------------------

    @property
    def supervisor_record(self) -> Path:
        return self.directory / "run" / "supervisor.json"

    def supervisor(self) -> ProcessIdentity | None:
        """The living supervisor, or None."""
        identity = read(self.supervisor_record, ProcessIdentity)
        return identity if identity and procfs.alive(identity) else None

    def supervise(self) -> None:
        """Wakes the supervisor, and starts it where it is not running."""
        if (supervisor := self.supervisor()) is not None:
            procfs.send(supervisor, signal.SIGHUP)
            return
        log = self.log_path("supervisor")
        log.parent.mkdir(parents=True, exist_ok=True)
        modules = os.pathsep.join(folder for folder in sys.path if folder)  # whatever found us finds it
        with log.open("ab") as output:
            launched = subprocess.run(
                [sys.executable, "-P", "-m", "dl2.embedded.supervisor", str(self.directory)],
                env=component_environment(self.directory, {"PYTHONPATH": modules}),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if launched.returncode != 0:
            raise ClusterError(f"the supervisor did not start; the end of {log}:\n{tail(log, 8)}")

    def _settled(self, wish: Wish) -> None:
        """Waits until the supervisor has acted on `wish`."""
        name = wish.spec.name

        def acted() -> bool | str:
            seen = self.observation(name)
            if seen is not None and seen.generation >= wish.generation:
                return (
                    (seen.identity is not None or bool(seen.failure))
                    if wish.wanted
                    else seen.identity is None
                )
            if self.supervisor() is None:
                return "the supervisor has ended; see " + str(self.log_path("supervisor"))
            return "the supervisor has not answered"

        verb = "the start" if wish.wanted else "the stop"
        wait_until(acted, f"{verb} of {name}", timeout=wish.spec.stop_timeout + 20, interval=0.01)

    def _change(self, name: str, wanted: bool) -> None:
        with self._lock():
            old = self._known(name)
            wish = old.model_copy(update={"wanted": wanted, "generation": old.generation + 1})
            write(self._wishes / f"{name}.json", wish)
        self.supervise()
        self._settled(wish)

    def _wish(self, name: str) -> Wish | None:
        return read(self._wishes / f"{name}.json", Wish)

    def _known(self, name: str) -> Wish:
        wish = self._wish(name)
        if wish is None:
            known = ", ".join(wish.spec.name for wish in self.wishes()) or "none"
            raise ClusterError(
                f"the cluster {self.directory.name} has no process {name!r}", f"it has: {known}"
            )
        return wish

    def _next_sequence(self) -> int:
        return max((wish.sequence for wish in self.wishes()), default=0) + 1

    def _lock(self) -> AbstractContextManager[None]:
        return locked(self.directory / "run" / "processes.lock")


def tail(log: Path, lines: int) -> str:
    """The last `lines` lines of a log; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def end_marked(directory: Path, timeout: float = 20.0) -> None:
    """Ends every process that carries the marks of the cluster in `directory`: SIGTERM, and SIGKILL after 2
    s.

    Raises ClusterError for those that outlive `timeout` seconds.
    """
    begun = time.monotonic()
    asked: set[ProcessIdentity] = set()
    while left := _marked(directory):
        elapsed = time.monotonic() - begun
        if elapsed > timeout:
            raise ClusterError(
                "these processes of the cluster do not end: " + _describe(left),
                "see what holds them (a stuck mount?), then run `dl2 cluster down` again",
            )
        for identity in left:
            if elapsed > 2:
                procfs.send(identity, signal.SIGKILL)
            elif identity not in asked:
                procfs.send(identity, signal.SIGTERM)
                asked.add(identity)
        time.sleep(0.05)


def _marked(directory: Path) -> list[ProcessIdentity]:
    mark = f"{MARK_DIRECTORY}={directory}".encode()
    return [identity for identity in procfs.carrying(mark) if identity.pid != os.getpid()]


def _describe(identities: Iterable[ProcessIdentity]) -> str:
    descriptions = []
    for identity in identities:
        with suppress(OSError):
            command = Path(f"/proc/{identity.pid}/comm").read_text().strip()
            descriptions.append(f"{command} (pid {identity.pid})")
    return ", ".join(descriptions)
