"""Real MXNet training in real pods under the operator."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.waiting import wait_until
from tests.e2e.operators import apply, await_state, await_step, digits, get, operator, pods, queue

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(real_cluster: EmbeddedCluster) -> Iterator[EmbeddedCluster]:
    with operator(real_cluster):
        yield real_cluster


@pytest.fixture
def team(cluster: EmbeddedCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace and its queue."""
    name = request.node.name.replace("_", "-").removeprefix("test-")[:40].strip("-")
    apply(cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, queue(name))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "tenantqueue", name)


def kill_operator(cluster: EmbeddedCluster) -> None:
    """kill -9, and wait until its supervisor has started another."""
    (before,) = (p for p in cluster.processes.status() if p.name == "operator")
    assert before.pid
    os.kill(before.pid, signal.SIGKILL)

    def another() -> bool:
        (now,) = (p for p in cluster.processes.status() if p.name == "operator")
        return now.up and now.pid != before.pid

    wait_until(another, "another operator process", timeout=30)


def test_training_survives_a_killed_operator(cluster: EmbeddedCluster, team: str, tmp_path: Path) -> None:
    apply(cluster, digits("digits", team, str(tmp_path), step_seconds=0.03))
    await_step(cluster, team, "digits", 20)
    before = pods(cluster, team)
    assert len(before) == 4  # coordinator, server, two workers
    kill_operator(cluster)
    await_step(cluster, team, "digits", 200)
    assert pods(cluster, team) == before
    status = await_state(cluster, team, "digits", "Succeeded")["status"]
    assert status["restarts"] == 0
    assert status["progress"]["metrics"]["accuracy"] > 0.9
    log = cluster.kubectl("logs", "-n", team, "digits-worker-0")
    assert "from step 0 to 600" in log
    assert float(log.rpartition("final accuracy=")[2]) > 0.9


def test_a_lost_worker_restarts_the_job_from_its_checkpoint(
    cluster: EmbeddedCluster, team: str, tmp_path: Path
) -> None:
    apply(cluster, digits("digits", team, str(tmp_path), epochs=8, step_seconds=0.05))
    await_step(cluster, team, "digits", 110)
    before = pods(cluster, team)
    cluster.kubectl("delete", "pod", "-n", team, "digits-worker-1", "--grace-period=0", "--force")

    def again() -> bool | str:
        status = get(cluster, "dljob", "-n", team, "digits")["status"]
        return (status.get("attempt"), status["state"]) == (1, "Running") or f"it is {status['state']}"

    wait_until(again, "the second attempt to run", timeout=180, interval=0.5)
    after = pods(cluster, team)  # at its end a server that outlives the workers is cleaned up
    status = await_state(cluster, team, "digits", "Succeeded")["status"]
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())
    begin = cluster.kubectl("logs", "-n", team, "digits-worker-0").partition("from step ")[2]
    assert int(begin.split()[0]) >= 100


def test_a_broken_program_fails_with_its_reason(cluster: EmbeddedCluster, team: str, tmp_path: Path) -> None:
    job = digits("broken", team, str(tmp_path))
    job["spec"]["runPolicy"]["backoffLimit"] = 1
    job["spec"]["workers"]["template"]["spec"]["containers"][0]["command"] = [
        "python3",
        "-c",
        "import sys; sys.exit(3)",
    ]
    apply(cluster, job)
    status = await_state(cluster, team, "broken", "Failed")["status"]
    assert (status["reason"], status["restarts"]) == ("BackoffLimitExceeded", 1)
    (failed,) = (c for c in status["conditions"] if c["type"] == "Failed")
    assert "broken-worker-" in failed["message"]
    assert "exited with 3" in failed["message"]

    def none_runs() -> bool | str:
        running = cluster.kubectl(
            "get", "pods", "-n", team, "--field-selector=status.phase=Running", "-o", "name"
        )
        return not running.strip() or running

    wait_until(none_runs, "running pods to be cleaned up", timeout=60)
