"""The supervisor: a small detached process, one a cluster, that keeps the cluster's processes as they are
wished.

`python -m dl2.embedded.supervisor <cluster folder>` puts itself into the background and returns. It reads the
wishes of `dl2.embedded.processes`, starts and stops, restarts what ends by itself with a growing delay, and
writes what it sees. SIGHUP wakes it, SIGTERM makes it stop everything, last started first, and end. One that
starts after another was killed takes over the processes that still run.
"""

import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dl2.embedded import procfs
from dl2.embedded.processes import Observation, Processes, ProcessSpec, Wish, component_environment
from dl2.embedded.state import ClusterOptions, ProcessIdentity, locked, read, write

log = logging.getLogger("dl2.supervisor")

FIRST_DELAY, LONGEST_DELAY = 0.2, 10.0  # seconds before a restart; doubled at every failure in a row
STEADY_AFTER = 10.0  # seconds up after which earlier failures are forgotten
POLL = 1.0  # seconds between looks at the wishes when nobody wakes the supervisor


@dataclass
class Child:
    """A process that runs, started here or taken over."""

    spec: ProcessSpec
    identity: ProcessIdentity
    pidfd: int
    generation: int
    popen: subprocess.Popen[bytes] | None
    since: float
    kill_at: float | None = None  # set once it was told to stop


@dataclass
class History:
    """What is remembered of a name between one process and the next."""

    restarts: int = 0
    failures: int = 0  # in a row
    start_at: float = 0.0
    failure: str = ""
    given_up: int = 0  # the generation that ended and shall not be restarted


class Supervisor:
    """Brings the processes of one cluster from what they are to what is wished."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._processes = Processes(directory)
        self._directory = directory
        self._clock = clock
        self._children: dict[str, Child] = {}
        self._history: dict[str, History] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        options = read(directory / "cluster.json", ClusterOptions)
        self._owner = options.owner if options else None

    def run(self) -> None:
        """Works until SIGTERM; then stops everything and returns."""
        wake = self._catch_signals()
        self._take_over()
        self._watch_owner()
        while True:
            self._reconcile()
            if self._stopping and not self._children:
                return
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj == wake:
                    self._read_signals(wake)
                elif key.data is None:
                    self._owner_gone(key.fd)
                else:
                    self._reap(key.data)

    # -- events ------------------------------------------------------------------------------------

    def _catch_signals(self) -> int:
        receive, transmit = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(transmit)
        self._selector.register(receive, selectors.EVENT_READ)
        return receive

    def _read_signals(self, wake: int) -> None:
        with suppress(BlockingIOError):
            received = os.read(wake, 512)
            if signal.SIGTERM in received or signal.SIGINT in received:
                log.info("stopping everything")
                self._stopping = True

    def _watch_owner(self) -> None:
        if self._owner is None:
            return
        if (pidfd := procfs.open_pidfd(self._owner)) is None:
            self._tear_down()
        else:
            self._selector.register(pidfd, selectors.EVENT_READ, data=None)

    def _owner_gone(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        self._tear_down()

    def _tear_down(self) -> None:
        """The process the cluster was made for has ended: take everything down, from outside of ourselves."""
        log.warning("the owner of the cluster has ended: taking the cluster down")
        environment = component_environment(self._directory, {"PYTHONPATH": os.environ.get("PYTHONPATH", "")})
        unmarked = {name: value for name, value in environment.items() if not name.startswith("DL2_CLUSTER")}
        subprocess.Popen(
            [sys.executable, "-P", "-m", "dl2.embedded.teardown", str(self._directory)],
            env=unmarked,
            cwd="/",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )

    # -- reconciling -------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        wishes = {wish.spec.name: wish for wish in self._processes.wishes()}
        for name in [name for name in self._history if name not in wishes and name not in self._children]:
            del self._history[name]
            self._processes.observe(name, None)
        if not self._directory.is_dir() and not self._stopping:
            log.warning("the folder of the cluster is gone: stopping everything")
            self._stopping = True
        if self._stopping:
            self._stop_last(wishes)
        else:
            for name, child in list(self._children.items()):
                wish = wishes.get(name)
                if wish is None or not wish.wanted or wish.generation != child.generation:
                    self._stop(child)
            for wish in wishes.values():
                self._meet(wish)
        for child in self._children.values():
            self._check(child)

    def _check(self, child: Child) -> None:
        """What is due by the clock: killing what does not stop, forgetting the failures of what runs
        steadily.
        """
        now, history = self._clock(), self._history[child.spec.name]
        if child.kill_at is not None and now >= child.kill_at:
            log.warning("%s did not stop in time: killing it", child.spec.name)
            self._signal_group(child, signal.SIGKILL)
            child.kill_at = now + 1.0
        if history.failures and now - child.since >= STEADY_AFTER:
            history.failures = 0
            self._tell(child.spec.name, child.generation, child.identity)

    def _meet(self, wish: Wish) -> None:
        name = wish.spec.name
        history = self._history.setdefault(name, History())
        if name in self._children:
            return
        seen = self._processes.observation(name)
        if not wish.wanted:
            if seen is None or seen.generation != wish.generation or seen.identity is not None:
                self._processes.observe(
                    name, Observation(generation=wish.generation, restarts=history.restarts)
                )
            return
        fresh = seen is None or seen.generation != wish.generation
        if fresh:  # asked for just now: earlier failures do not count
            history.start_at, history.failures = 0.0, 0
        if self._clock() >= history.start_at and history.given_up != wish.generation:
            self._spawn(wish, history)

    def _spawn(self, wish: Wish, history: History) -> None:
        spec = wish.spec
        path = self._processes.log_path(spec.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("ab") as output:
                popen = subprocess.Popen(
                    spec.argv,
                    env=component_environment(self._directory, spec.env),
                    cwd=spec.cwd or self._directory,
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
        except OSError as error:
            self._failed(wish, history, f"cannot be started: {error}")
            return
        identity = procfs.identify(popen.pid)
        if identity is None:
            self._failed(wish, history, _ending(popen.wait()))
            return
        log.info("%s started, pid %d", spec.name, popen.pid)
        self._keep(Child(spec, identity, os.pidfd_open(popen.pid), wish.generation, popen, self._clock()))

    def _keep(self, child: Child) -> None:
        self._children[child.spec.name] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, data=child)
        self._tell(child.spec.name, child.generation, child.identity)

    def _tell(self, name: str, generation: int, identity: ProcessIdentity | None) -> None:
        history = self._history.setdefault(name, History())
        self._processes.observe(
            name,
            Observation(
                generation=generation,
                identity=identity,
                restarts=history.restarts,
                failures=history.failures,
                failure=history.failure,
            ),
        )

    def _failed(self, wish: Wish, history: History, failure: str) -> None:
        history.failure = failure
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2**history.failures)
        history.failures += 1
        history.start_at = self._clock() + delay
        if wish.spec.restart:
            history.restarts += 1
            log.warning("%s %s; next start in %.1f s", wish.spec.name, failure, delay)
        else:
            history.given_up = wish.generation
            log.warning("%s %s", wish.spec.name, failure)
        self._tell(wish.spec.name, wish.generation, None)

    def _reap(self, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        del self._children[child.spec.name]
        ending = "ended (started by an earlier supervisor)"
        if child.popen is not None:
            # Not yet reaped, so its group cannot have become another's: end what is left in it.
            self._signal_group(child, signal.SIGKILL)
            ending = _ending(child.popen.wait())
        history = self._history.setdefault(child.spec.name, History())
        if child.kill_at is not None:
            log.info("%s stopped", child.spec.name)
            history.failure = ""
            self._tell(child.spec.name, child.generation, None)
            return
        self._failed(
            Wish(spec=child.spec, wanted=True, generation=child.generation, sequence=0), history, ending
        )

    def _stop(self, child: Child) -> None:
        if child.kill_at is None:
            child.kill_at = self._clock() + child.spec.stop_timeout
            self._signal_group(child, signal.SIGTERM)

    def _stop_last(self, wishes: dict[str, Wish]) -> None:
        def started(name: str) -> int:
            return wishes[name].sequence if name in wishes else sys.maxsize

        if self._children:
            self._stop(self._children[max(self._children, key=started)])

    def _signal_group(self, child: Child, number: signal.Signals) -> None:
        if child.popen is None and not procfs.alive(child.identity):
            return
        with suppress(ProcessLookupError):
            os.killpg(child.identity.pid, number)

    def _take_over(self) -> None:
        """Adopts what an earlier supervisor started and what still runs."""
        for wish in self._processes.wishes():
            seen = self._processes.observation(wish.spec.name)
            if seen is None:
                continue
            self._history[wish.spec.name] = History(seen.restarts, seen.failures, failure=seen.failure)
            if seen.identity is not None and (pidfd := procfs.open_pidfd(seen.identity)) is not None:
                log.info("%s taken over, pid %d", wish.spec.name, seen.identity.pid)
                self._keep(Child(wish.spec, seen.identity, pidfd, seen.generation, None, self._clock()))

    def _patience(self) -> float:
        """Seconds until the next thing is due."""
        now = self._clock()
        due = [child.kill_at for child in self._children.values() if child.kill_at is not None]
        if not self._stopping:
            due += [past.start_at for name, past in self._history.items() if name not in self._children]
        return max(0.0, min([POLL, *(at - now for at in due if at > now)]))


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main(directory: Path) -> int:
    """Detaches, and supervises the cluster in `directory`; returns in the launching process once that has
    begun.

    A second supervisor of the same cluster ends at once: the first one is enough.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    receive, transmit = os.pipe()
    if os.fork():
        os.close(transmit)
        return 0 if os.read(receive, 1) else 1
    os.setsid()
    record = Processes(directory).supervisor_record
    try:
        with locked(record.with_suffix(".lock"), block=False):
            identity = procfs.identify(os.getpid())
            assert identity is not None
            write(record, identity)
            os.write(transmit, b"1")
            os.close(transmit)
            Supervisor(directory).run()
            record.unlink(missing_ok=True)
    except BlockingIOError:
        os.write(transmit, b"1")
    except Exception:
        log.exception("the supervisor has failed")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
