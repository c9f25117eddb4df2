"""Real MXNet training that gains and loses workers and parameter servers without a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from dl2 import resources
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.waiting import wait_until
from tests.e2e.operators import Raw, apply, await_state, await_step, get, operator, pods, queue

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
TEAM = "elastic-team"


@pytest.fixture(scope="module")
def cluster(real_cluster: EmbeddedCluster) -> Iterator[EmbeddedCluster]:
    with operator(real_cluster):
        apply(
            real_cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}, queue(TEAM)
        )
        yield real_cluster
        real_cluster.kubectl("delete", "namespace", TEAM, "--wait=false")
        real_cluster.kubectl("delete", "tenantqueue", TEAM)


def example(epochs: int) -> Raw:
    text = (resources.directory("examples") / "dljob-elastic.yaml").read_text()
    job: Raw = yaml.safe_load(text)
    job["metadata"]["namespace"] = job["spec"]["queue"] = TEAM
    job["spec"]["training"]["epochs"] = epochs
    return job


def resize(cluster: EmbeddedCluster, **replicas: int) -> None:
    spec = {role: {"replicas": count} for role, count in replicas.items()}
    cluster.kubectl("patch", "dljob", "-n", TEAM, "elastic", "--type=merge", "-p", json.dumps({"spec": spec}))


def await_shape(cluster: EmbeddedCluster, workers: int, servers: int) -> Raw:
    """Until all of them have joined, nobody else is there, and the coordinator has told of it."""

    def reached() -> bool | str:
        status = get(cluster, "dljob", "-n", TEAM, "elastic")["status"]
        ready = {role: status[role]["ready"] for role in ("workers", "servers")}
        told = (status.get("lastScaling") or {}).get("to")
        wanted = {"workers": workers, "servers": servers}
        return (ready == told == wanted and status["state"] == "Running") or json.dumps(status)

    wait_until(reached, f"{workers} workers and {servers} servers", timeout=120, interval=0.5)
    status: Raw = get(cluster, "dljob", "-n", TEAM, "elastic")["status"]
    return status


def test_a_job_grows_and_shrinks_while_it_trains(cluster: EmbeddedCluster) -> None:
    apply(cluster, example(epochs=45))
    await_step(cluster, TEAM, "elastic", 20)
    founders = pods(cluster, TEAM)
    assert sorted(founders) == ["elastic-coordinator-0", "elastic-server-0", "elastic-worker-0"]
    cluster.kubectl("scale", "-n", TEAM, "dljob/elastic", "--replicas=3")
    resize(cluster, servers=2)
    grown = await_shape(cluster, workers=3, servers=2)
    assert grown["lastScaling"]["pauseMilliseconds"] is not None
    members = pods(cluster, TEAM)
    assert len(members) == 6
    assert founders.items() <= members.items()  # the same pods, not others of their names
    await_step(cluster, TEAM, "elastic", grown["progress"]["step"] + 50)
    resize(cluster, workers=1, servers=1)
    shrunk = await_shape(cluster, workers=1, servers=1)
    wait_until(lambda: pods(cluster, TEAM) == founders, "the pods of those who left to be gone", timeout=60)
    assert shrunk["progress"]["step"] > grown["progress"]["step"]
    log = cluster.kubectl("logs", "-n", TEAM, "elastic-worker-0")
    steps = [int(line.split("step=")[1].split()[0]) for line in log.splitlines() if line.startswith("epoch=")]
    assert steps == sorted(set(steps))  # it never went back
    assert "workers=3" in log
    resize(cluster, workers=4)  # and ends well while others join
    status = await_state(cluster, TEAM, "elastic", "Succeeded", timeout=240)["status"]
    assert (status["restarts"], status["attempt"]) == (0, 0)
    assert status["progress"]["metrics"]["accuracy"] > 0.9
