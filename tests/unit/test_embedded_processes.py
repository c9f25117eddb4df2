"""Supervised processes: kept as wished, found again after any crash, and never somebody else's."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dl2.embedded import procfs
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.errors import ClusterError
from dl2.embedded.processes import Processes, ProcessSpec, component_environment, end_marked
from dl2.embedded.state import ClusterOptions, ProcessIdentity, runtime_directory, write
from dl2.embedded.teardown import Teardown, lock_of
from dl2.embedded.waiting import wait_until


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """The folder of a cluster without a control plane; what runs in it ends with the test."""
    directory = tmp_path / "clusters" / "toy"
    directory.mkdir(parents=True)
    yield directory
    for hook in (directory / "run" / "teardown").glob("*.json"):
        hook.unlink()
    down(directory)


@pytest.fixture
def processes(directory: Path) -> Processes:
    return Processes(directory)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that belongs to no cluster."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def down(directory: Path) -> None:
    EmbeddedCluster(directory.name, state_root=directory.parent.parent).down()


def sleeper(name: str = "sleeper", **changes: object) -> ProcessSpec:
    return ProcessSpec.model_validate({"name": name, "argv": ("sleep", "600"), "stop_timeout": 5.0} | changes)


def identity(processes: Processes, name: str) -> ProcessIdentity | None:
    seen = processes.observation(name)
    return seen.identity if seen and seen.identity and procfs.alive(seen.identity) else None


def running(processes: Processes, name: str = "sleeper") -> ProcessIdentity:
    found = identity(processes, name)
    assert found is not None, f"{name} does not run: {processes.observation(name)}"
    return found


def kill(victim: ProcessIdentity) -> None:
    procfs.send(victim, signal.SIGKILL)
    wait_until(lambda: not procfs.alive(victim), f"the end of {victim.pid}", 10)


def supervisor(processes: Processes) -> ProcessIdentity:
    found = processes.supervisor()
    assert found is not None
    return found


# -- wishes ----------------------------------------------------------------------------------------


def test_ensure_starts_it_in_a_session_of_its_own_with_a_log(processes: Processes) -> None:
    processes.ensure(sleeper(argv=("sh", "-c", "echo hello; exec sleep 600")))
    pid = running(processes).pid
    assert os.getsid(pid) == pid
    wait_until(lambda: processes.log("sleeper").read_text() == "hello\n", "the log", 10)


def test_ensure_again_changes_nothing_and_another_spec_restarts(processes: Processes) -> None:
    processes.ensure(sleeper())
    first = running(processes)
    processes.ensure(sleeper())
    assert running(processes) == first
    processes.ensure(sleeper(argv=("sleep", "601")))
    assert running(processes) != first
    assert not procfs.alive(first)


def test_stop_start_restart_remove(processes: Processes) -> None:
    processes.ensure(sleeper())
    first = running(processes)
    processes.stop("sleeper")
    assert not procfs.alive(first)
    processes.start("sleeper")
    second = running(processes)
    processes.start("sleeper")
    assert running(processes) == second
    processes.restart("sleeper")
    assert running(processes) not in (first, second)
    processes.remove("sleeper")
    with pytest.raises(ClusterError, match="no process 'sleeper'"):
        processes.restart("sleeper")


def test_its_whole_group_ends_with_it(processes: Processes) -> None:
    processes.ensure(sleeper(argv=("sh", "-c", "sleep 600 & echo $!; wait")))
    wait_until(lambda: processes.log("sleeper").read_text().strip().isdigit(), "the child's pid", 10)
    child = procfs.identify(int(processes.log("sleeper").read_text()))
    assert child is not None
    kill(running(processes))
    wait_until(lambda: not procfs.alive(child), "the end of the child", 10)


def test_what_ignores_sigterm_is_killed(processes: Processes) -> None:
    script = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    processes.ensure(sleeper(argv=(sys.executable, "-c", script), stop_timeout=0.3))
    wait_until(lambda: "deaf" in processes.log("sleeper").read_text(), "its start", 10)
    deaf = running(processes)
    processes.stop("sleeper")
    assert not procfs.alive(deaf)


def test_environment_is_small_and_marked(
    processes: Processes, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("KUBECONFIG", "/somebody/elses")
    processes.ensure(sleeper(env={"GREETING": "hello"}))
    environment = Path(f"/proc/{running(processes).pid}/environ").read_text().split("\0")
    names = {line.partition("=")[0] for line in environment if line}
    assert {"DL2_CLUSTER=toy", f"DL2_CLUSTER_DIR={directory}", "GREETING=hello"} <= set(environment)
    assert not names & {"HTTPS_PROXY", "KUBECONFIG"}


# -- crashes ---------------------------------------------------------------------------------------


def test_a_killed_process_is_started_again(processes: Processes) -> None:
    processes.ensure(sleeper())
    first = running(processes)
    kill(first)
    wait_until(lambda: identity(processes, "sleeper") is not None, "the restart", 20)
    (status,) = (line for line in processes.status() if line.name == "sleeper")
    assert (status.up, status.restarts, status.failure) == (True, 1, "ended by SIGKILL")


def test_what_keeps_ending_is_reported_with_its_last_words(processes: Processes) -> None:
    processes.ensure(sleeper(argv=("sh", "-c", "echo no such flag: --foo; exit 3")))

    wait_until(lambda: keeps_ending(processes), "three failures in a row", 30)
    with pytest.raises(ClusterError, match="exit code 3") as error:
        processes.expect_up("sleeper")
    assert "no such flag: --foo" in error.value.what


def keeps_ending(processes: Processes) -> bool:
    seen = processes.observation("sleeper")
    return seen is not None and seen.failures >= 3


def test_a_program_that_is_not_there_is_reported(processes: Processes) -> None:
    processes.ensure(sleeper(argv=("/nowhere/etcd",)))
    seen = processes.observation("sleeper")
    assert seen is not None
    assert "No such file" in seen.failure


def test_restart_false_means_once(processes: Processes) -> None:
    processes.ensure(sleeper(argv=("sh", "-c", "echo ran"), restart=False))
    wait_until(lambda: identity(processes, "sleeper") is None, "its end", 10)
    processes.ensure(sleeper("other"))  # gives the supervisor another round
    assert processes.log("sleeper").read_text() == "ran\n"


def test_a_new_supervisor_takes_over_what_a_killed_one_started(processes: Processes) -> None:
    processes.ensure(sleeper())
    process, first = running(processes), supervisor(processes)
    kill(first)
    assert procfs.alive(process), "it goes on without its supervisor"
    processes.ensure(sleeper())
    assert running(processes) == process
    kill(process)
    wait_until(lambda: identity(processes, "sleeper") is not None, "the restart by the new supervisor", 20)
    processes.stop("sleeper")
    assert identity(processes, "sleeper") is None


def test_one_supervisor_is_enough(processes: Processes, directory: Path) -> None:
    processes.ensure(sleeper())
    first = supervisor(processes)
    subprocess.run(
        [sys.executable, "-m", "dl2.embedded.supervisor", str(directory)],
        env=os.environ | component_environment(directory),
        check=True,
        timeout=60,
    )
    assert supervisor(processes) == first
    assert procfs.alive(first)


# -- ownership -------------------------------------------------------------------------------------


def test_a_pid_given_to_another_process_is_not_ours(stranger: subprocess.Popen[bytes]) -> None:
    real = procfs.identify(stranger.pid)
    assert real is not None
    for reused in (
        real.model_copy(update={"started": real.started - 1}),
        real.model_copy(update={"boot": "another"}),
    ):
        assert not procfs.alive(reused)
        procfs.send(reused, signal.SIGKILL)
    assert procfs.alive(real)


def test_down_does_not_touch_a_process_that_got_a_recorded_pid(
    processes: Processes, directory: Path, stranger: subprocess.Popen[bytes]
) -> None:
    processes.ensure(sleeper())
    kill(supervisor(processes))
    seen = processes.observation("sleeper")
    assert seen is not None
    assert seen.identity is not None
    kill(seen.identity)
    reused = seen.identity.model_copy(update={"pid": stranger.pid})
    processes.observe("sleeper", seen.model_copy(update={"identity": reused}))
    down(directory)
    assert stranger.poll() is None


def test_marked_processes_are_ended_and_no_others(directory: Path, stranger: subprocess.Popen[bytes]) -> None:
    namesake = directory.parent.parent / "elsewhere" / directory.name
    ours = subprocess.Popen(["sleep", "600"], env=component_environment(directory), start_new_session=True)
    theirs = subprocess.Popen(["sleep", "600"], env=component_environment(namesake), start_new_session=True)
    try:
        end_marked(directory)
        assert ours.wait(timeout=10) == -signal.SIGTERM
        assert theirs.poll() is None, "a cluster of the same name in another state folder"
        assert stranger.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


# -- down ------------------------------------------------------------------------------------------


def record(directory: Path, word: str, fail: bool = False) -> None:
    """A teardown hook: leaves a trace beside the folder."""
    with (directory.parent / "trace").open("a") as trace:
        trace.write(word + "\n")
    if fail and not (directory.parent / "mended").exists():
        raise RuntimeError("the bridge is busy")


HOOK = f"{__name__}:record"


def test_down_runs_hooks_backwards_around_the_end_of_the_processes(
    processes: Processes, directory: Path
) -> None:
    hooks = Teardown(directory)
    for word, phase in (("one", "after"), ("two", "after"), ("pods", "before")):
        hooks.register(word, HOOK, phase, {"word": word})  # type: ignore[arg-type]
    hooks.register("one", HOOK, "after", {"word": "one again"})
    processes.ensure(sleeper())
    process = running(processes)
    down(directory)
    assert (directory.parent / "trace").read_text().split("\n")[:-1] == ["pods", "two", "one again"]
    assert not procfs.alive(process)
    assert not directory.exists()
    assert not runtime_directory(directory).exists()
    assert not lock_of(directory).exists()


def test_a_hook_that_fails_is_reported_and_down_can_be_repeated(
    processes: Processes, directory: Path
) -> None:
    Teardown(directory).register("bridge", HOOK, "after", {"word": "bridge", "fail": True})
    Teardown(directory).register("mount", HOOK, "after", {"word": "mount"})
    with pytest.raises(ClusterError, match="bridge: the bridge is busy") as error:
        down(directory)
    assert "dl2 cluster down --name toy" in error.value.mend
    assert directory.exists()
    (directory.parent / "mended").touch()
    down(directory)
    assert not directory.exists()
    assert (directory.parent / "trace").read_text().split() == ["mount", "bridge"] * 2


@pytest.mark.parametrize("lost", ["nothing", "supervisor", "records", "folder"])
def test_down_ends_everything_whatever_was_lost(processes: Processes, directory: Path, lost: str) -> None:
    processes.ensure(sleeper("one"))
    processes.ensure(sleeper("two"))
    everything = [supervisor(processes), running(processes, "one"), running(processes, "two")]
    if lost == "supervisor":
        kill(everything[0])
    elif lost == "records":
        kill(everything[0])
        shutil.rmtree(directory / "run")
    elif lost == "folder":
        shutil.rmtree(directory)
    down(directory)
    assert not [process for process in everything if procfs.alive(process)]
    assert not directory.exists()


def test_down_of_nothing_is_fine(directory: Path) -> None:
    down(directory)
    down(directory)


def test_a_cluster_goes_down_with_its_owner(directory: Path, stranger: subprocess.Popen[bytes]) -> None:
    owner = procfs.identify(stranger.pid)
    write(directory / "cluster.json", ClusterOptions(name="toy", owner=owner))
    processes = Processes(directory)
    processes.ensure(sleeper())
    process = running(processes)
    stranger.kill()
    wait_until(lambda: not procfs.alive(process) and not directory.exists(), "the end of the cluster", 30)


def test_what_ran_in_a_folder_removed_by_hand_stops_being_restarted(
    processes: Processes, directory: Path
) -> None:
    processes.ensure(sleeper())
    watched, process = supervisor(processes), running(processes)
    shutil.rmtree(directory)
    wait_until(lambda: not procfs.alive(watched), "the end of a supervisor that has nothing to do", 20)
    assert not procfs.alive(process)
    assert not directory.exists()
