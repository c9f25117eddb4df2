"""`dl2 cluster` as a person runs it: side by side, interrupted, killed, repeated; and what it leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dl2
from dl2.embedded import procfs
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.processes import MARK_DIRECTORY
from dl2.embedded.state import ProcessIdentity, Registry, cluster_directory, runtime_directory
from dl2.embedded.teardown import lock_of
from dl2.embedded.waiting import wait_until

pytestmark = pytest.mark.integration


def process(cluster: EmbeddedCluster, name: str) -> ProcessIdentity:
    seen = cluster.processes.observation(name)
    assert seen is not None
    assert seen.identity is not None
    return seen.identity


def kill(victim: ProcessIdentity) -> None:
    procfs.send(victim, signal.SIGKILL)
    wait_until(lambda: not procfs.alive(victim), f"the end of {victim.pid}", 10)


class Machine:
    """Runs `dl2 cluster` as a person would, with a state folder and a home of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: set[str] = set()
        self.environment = os.environ | {
            # The binaries are those of the person who runs the tests; all else is of this test.
            "DL2_CACHE": os.environ.get("DL2_CACHE") or os.path.expanduser("~/.cache/dl2"),
            "GOMODCACHE": os.environ.get("GOMODCACHE") or os.path.expanduser("~/go/pkg/mod"),
            "GOCACHE": os.environ.get("GOCACHE") or os.path.expanduser("~/.cache/go-build"),
            "DL2_STATE": str(root / "state"),
            "HOME": str(root),
            "PYTHONPATH": str(Path(dl2.__file__).parents[1]),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "dl2", "cluster", *arguments],
            env=self.environment,
            start_new_session=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, out + err
        return out

    def name(self) -> str:
        name = f"t{uuid.uuid4().hex[:8]}"
        self.names.add(name)
        return name

    def directory(self, name: str) -> Path:
        return cluster_directory(name, self.root / "state")

    def cluster(self, name: str) -> EmbeddedCluster:
        return EmbeddedCluster.load(name, state_root=self.root / "state")

    def marked(self, name: str) -> list[ProcessIdentity]:
        return procfs.carrying(f"{MARK_DIRECTORY}={self.directory(name)}".encode())

    def assert_nothing_is_left(self, name: str) -> None:
        directory = self.directory(name)
        assert self.marked(name) == []
        assert not directory.exists()
        assert not runtime_directory(directory).exists()
        assert not lock_of(directory).exists()
        assert Registry().booking(directory) is None


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for name in machine.names:
        machine.run("down", "--name", name)


def test_two_clusters_run_side_by_side(machine: Machine) -> None:
    one, other = machine.name(), machine.name()
    ups = [
        machine.start("up", "--name", name, "--kwok-nodes", count)
        for name, count in ((one, "2"), (other, "3"))
    ]
    for up in ups:
        out, err = up.communicate(timeout=240)
        assert up.returncode == 0, out + err
    mine, theirs = machine.cluster(one), machine.cluster(other)
    assert mine.server != theirs.server
    mine.kubectl("create", "namespace", "only-here")
    assert "only-here" not in theirs.kubectl("get", "namespaces")
    assert len(mine.kubectl("get", "nodes", "-o", "name").split()) == 2
    assert len(theirs.kubectl("get", "nodes", "-o", "name").split()) == 3

    machine.run("down", "--name", one)
    machine.assert_nothing_is_left(one)
    assert "3 simulated" in machine.run("status", "--name", other)


def test_env_and_logs_of_a_cluster_and_the_users_own_context_untouched(machine: Machine) -> None:
    own = machine.root / ".kube" / "config"
    own.parent.mkdir()
    own.write_text("apiVersion: v1\nkind: Config\ncurrent-context: production\n")
    name = machine.name()
    machine.run("up", "--name", name, "--kwok-nodes", "1")

    exports = machine.run("env", "--name", name)
    script = exports + "kubectl config current-context && kubectl get nodes -o name"
    spoken = subprocess.run(
        ["sh", "-ec", script], env=machine.environment, capture_output=True, text=True, check=True
    ).stdout
    assert spoken.split() == [f"dl2-{name}", "node/kwok-0"]
    assert own.read_text() == "apiVersion: v1\nkind: Config\ncurrent-context: production\n"
    assert [path.name for path in own.parent.iterdir()] == ["config"]

    assert "kube-scheduler |" not in machine.run("logs", "kube-apiserver", "--name", name)
    everything = machine.run("logs", "--name", name, "--lines", "1")
    assert {line.split("|")[0].strip() for line in everything.splitlines()} >= {
        "supervisor",
        "kube-apiserver",
    }


def test_up_again_keeps_all_and_changes_the_number_of_nodes(machine: Machine) -> None:
    name = machine.name()
    machine.run("up", "--name", name, "--kwok-nodes", "3")
    cluster = machine.cluster(name)
    before = {line.name: line.pid for line in cluster.status()}
    machine.run("up", "--name", name)
    assert {line.name: line.pid for line in cluster.status()} == before
    for count in (5, 2):
        machine.run("up", "--name", name, "--kwok-nodes", str(count))
        nodes = cluster.kubectl("get", "nodes", "-o", "name").split()
        assert nodes == [f"node/kwok-{index}" for index in range(count)]
    assert {line.name: line.pid for line in cluster.status()} == before


def test_without_its_supervisor_status_says_so_up_mends_and_down_cleans(machine: Machine) -> None:
    name = machine.name()
    machine.run("up", "--name", name)
    cluster = machine.cluster(name)

    def kill_supervisor() -> None:
        supervisor = cluster.processes.supervisor()
        assert supervisor is not None
        kill(supervisor)

    kill_supervisor()
    kill(process(cluster, "kube-scheduler"))
    assert "down" in machine.run("status", "--name", name, code=3)
    apiserver = process(cluster, "kube-apiserver")
    machine.run("up", "--name", name)
    assert all(line.up for line in cluster.status())
    assert process(cluster, "kube-apiserver") == apiserver, "what still ran goes on"
    kill_supervisor()
    machine.run("down", "--name", name)
    machine.assert_nothing_is_left(name)


HALF_WAY: dict[str, Callable[[Machine, str], bool]] = {
    "before the first process": lambda machine, name: machine.directory(name).exists(),
    "etcd has started": lambda machine, name: len(machine.marked(name)) >= 2,
    "everything has started": lambda machine, name: len(machine.marked(name)) >= 6,
}


def interrupted(machine: Machine, name: str, moment: str, number: signal.Signals) -> int:
    """Starts `up`, and signals it at `moment`; returns its exit code."""
    up = machine.start("up", "--name", name, "--kwok-nodes", "2")
    while not HALF_WAY[moment](machine, name):
        assert up.poll() is None, up.communicate()
        time.sleep(0.001)
    if number == signal.SIGINT:
        os.killpg(up.pid, number)  # as a terminal does: everything in the foreground gets it
    else:
        up.send_signal(number)
    up.communicate(timeout=120)
    return up.returncode


@pytest.mark.parametrize("moment", HALF_WAY)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(machine: Machine, moment: str, number: signal.Signals) -> None:
    name = machine.name()
    assert interrupted(machine, name, moment, number) == 130
    machine.assert_nothing_is_left(name)


@pytest.mark.parametrize("moment", HALF_WAY)
def test_a_killed_up_is_cleaned_by_down(machine: Machine, moment: str) -> None:
    name = machine.name()
    assert interrupted(machine, name, moment, signal.SIGKILL) == -signal.SIGKILL
    machine.run("down", "--name", name)
    machine.assert_nothing_is_left(name)


def test_a_killed_up_is_completed_by_up(machine: Machine) -> None:
    name = machine.name()
    interrupted(machine, name, "etcd has started", signal.SIGKILL)
    machine.run("up", "--name", name)
    assert "2 simulated" in machine.run("status", "--name", name)


def test_an_up_that_fails_keeps_the_logs_and_nothing_else(machine: Machine) -> None:
    name = machine.name()
    up = machine.start("up", "--name", name, "--feature-gates", "NoSuchGate=true")
    _, err = up.communicate(timeout=240)
    assert up.returncode == 1
    assert "NoSuchGate" in err
    machine.assert_nothing_is_left(name)
    kept = machine.root / "state" / "failed" / name
    assert "NoSuchGate" in (kept / "kube-apiserver.log").read_text()


def test_down_ends_what_runs_in_a_folder_removed_by_hand(machine: Machine) -> None:
    name = machine.name()
    machine.run("up", "--name", name)
    shutil.rmtree(machine.directory(name))
    machine.run("down", "--name", name)
    machine.assert_nothing_is_left(name)
