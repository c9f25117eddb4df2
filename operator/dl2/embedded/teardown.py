"""Taking a cluster down, whatever state it is in: hooks, processes, addresses, folders.

Everything needed is on disk, so `down` works after `up` or the supervisor was killed half-way, and can be
repeated.
"""

import importlib
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from dl2.embedded import procfs
from dl2.embedded.errors import ClusterError
from dl2.embedded.processes import Processes, end_marked
from dl2.embedded.state import Record, Registry, locked, read, runtime_directory, write
from dl2.embedded.waiting import Progress, Silent, wait_until

Phase = Literal["before", "after"]


class Hook(Record):
    """One call that `down` makes: `function` is "module:name", called with the cluster's folder and
    `arguments`.
    """

    name: str
    function: str
    phase: Phase
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class Teardown:
    """The hooks of the cluster in `directory`, each written down before what it undoes is made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._hooks = directory / "run" / "teardown"

    def register(
        self, name: str, function: str, phase: Phase = "after", arguments: dict[str, JsonValue] | None = None
    ) -> None:
        """Has `down` call `function`: "before" the processes are stopped, or "after".

        The function must be idempotent, and raise where it fails. The same name replaces the earlier hook in
        place.
        """
        hook = Hook(name=name, function=function, phase=phase, arguments=arguments or {})
        known = sorted(self._hooks.glob("[0-9]*.json"))
        same = [path for path in known if path.stem.partition("-")[2] == name]
        number = int(known[-1].name.partition("-")[0]) + 1 if known else 1
        write(same[0] if same else self._hooks / f"{number:03}-{name}.json", hook)

    def run(self, phase: Phase) -> list[str]:
        """Calls the hooks of `phase`, last registered first; returns what failed."""
        failures = []
        for path in sorted(self._hooks.glob("[0-9]*.json"), reverse=True):
            hook = read(path, Hook)
            if hook is None or hook.phase != phase:
                continue
            module, _, function = hook.function.partition(":")
            try:
                getattr(importlib.import_module(module), function)(self.directory, **hook.arguments)
            except Exception as error:  # a hook that fails must not keep the others from running
                failures.append(f"{hook.name}: {error}")
        return failures


def lock_of(directory: Path) -> Path:
    """The lock that `up` and `down` of one cluster exclude each other by; outside of the folder `down`
    removes.
    """
    return runtime_directory(directory).with_suffix(".lock")


def take_down(directory: Path, progress: Progress | None = None) -> None:
    """Stops and removes all that belongs to the cluster in `directory`. The caller holds
    `lock_of(directory)`.

    Raises ClusterError naming what could not be removed; the folder is then kept, for another try.
    """
    progress = progress or Silent()
    teardown, processes = Teardown(directory), Processes(directory)
    progress.step(f"Stopping the processes of cluster {directory.name}")
    # Their best effort: with dead processes they may fail, and it is for the hooks after to leave nothing
    # behind.
    regrets = teardown.run("before")
    _stop_supervisor(processes)
    end_marked(directory)
    progress.step("Removing what they left")
    failures = teardown.run("after")
    failures += [f"{mount} is still mounted" for mount in _mounts_below(directory)]
    if failures:
        raise ClusterError(
            f"cluster {directory.name} is not wholly down: " + "; ".join(regrets + failures),
            f"mend that and run `dl2 cluster down --name {directory.name}` again",
        )
    Registry().release(directory)
    shutil.rmtree(runtime_directory(directory), ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        raise ClusterError(f"{directory} cannot be removed", "see who owns what is in it")


def keep_logs(directory: Path) -> Path:
    """Copies the logs of a cluster beside the clusters, in place of earlier ones of its name; returns where
    to.
    """
    kept = directory.parent.parent / "failed" / directory.name
    shutil.rmtree(kept, ignore_errors=True)
    if (directory / "logs").is_dir():
        shutil.copytree(directory / "logs", kept)
    return kept


def _stop_supervisor(processes: Processes) -> None:
    supervisor = processes.supervisor()
    if supervisor is None:
        return
    procfs.send(supervisor, signal.SIGTERM)
    patience = 10.0 + sum(wish.spec.stop_timeout for wish in processes.wishes())
    wait_until(
        lambda: not procfs.alive(supervisor), "the end of the supervisor", timeout=patience, interval=0.02
    )


def _mounts_below(directory: Path) -> list[str]:
    roots = (f"{directory}/", f"{runtime_directory(directory)}/")
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(roots)]


def main(directory: Path) -> None:
    """For a cluster whose owner has ended: nobody is left to read a message but the log."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    lock = lock_of(directory)
    with locked(lock):
        take_down(directory)
        lock.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
