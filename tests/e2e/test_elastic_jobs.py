"""Real MXNet training that gains and loses workers and parameter servers without a restart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dl2 import resources
from dl2.api import names
from dl2.cli.explain import app as explain
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.waiting import wait_until
from tests.e2e.operators import Raw, apply, await_state, await_step, get, operator, pods, queue

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
TEAM = "elastic-team"


@pytest.fixture(scope="module")
def decisions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "decisions.db"


@pytest.fixture(scope="module")
def cluster(real_cluster: EmbeddedCluster, decisions: Path) -> Iterator[EmbeddedCluster]:
    with operator(real_cluster, "--decision-log", str(decisions)):
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


def never_went_back(cluster: EmbeddedCluster) -> str:
    """The words of the first worker, who must have made every step after the one before."""
    log = cluster.kubectl("logs", "-n", TEAM, "elastic-worker-0")
    steps = [int(step) for step in re.findall(r"^epoch=.*step=(\d+)", log, re.MULTILINE)]
    assert steps
    assert steps == sorted(set(steps))
    return log


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
    assert "workers=3" in never_went_back(cluster)
    resize(cluster, workers=4)  # and ends well while others join
    status = await_state(cluster, TEAM, "elastic", "Succeeded", timeout=240)["status"]
    assert (status["restarts"], status["attempt"]) == (0, 0)
    assert status["progress"]["metrics"]["accuracy"] > 0.9


@pytest.fixture
def policy(cluster: EmbeddedCluster) -> Iterator[None]:
    spec = {"champion": "drf", "intervalSeconds": 5, "guardrails": {"minGainPercent": 0}}
    body = {
        "apiVersion": names.API_VERSION,
        "kind": "ScalingPolicy",
        "metadata": {"name": "training"},
        "spec": spec,
    }
    apply(cluster, body)
    yield
    cluster.kubectl("delete", "scalingpolicy", "training")


def test_a_scaling_policy_resizes_real_training(
    cluster: EmbeddedCluster, decisions: Path, policy: None
) -> None:
    """From its speed as measured to members that have joined, and `dl2 explain` tells of it."""
    cluster.kubectl("delete", "dljob", "-n", TEAM, "--all", "--wait")
    job = example(epochs=60)
    job["spec"]["scaling"] = {"mode": "Auto", "cooldownSeconds": 0}
    job["spec"]["workers"]["max"] = 3
    apply(cluster, job)
    await_step(cluster, TEAM, "elastic", 5)
    founders = pods(cluster, TEAM)
    grown = await_shape(cluster, workers=3, servers=2)
    assert founders.items() <= pods(cluster, TEAM).items()
    group = get(cluster, "podgroup", "-n", TEAM, "elastic")
    assert group["metadata"]["annotations"][names.SCALED_BY] == "drf"
    await_step(cluster, TEAM, "elastic", grown["progress"]["step"] + 25)
    never_went_back(cluster)

    said = CliRunner().invoke(explain, [f"{TEAM}/elastic", "--log", str(decisions), "--json"])
    assert said.exit_code == 0, said.output
    told = [json.loads(line) for line in said.stdout.splitlines()]
    assert any(record["record"] == "verdict" and record["given"] == "3x2" for record in told)
    resized = [record for record in told if record["record"] == "outcome" and record["kind"] == "Resized"]
    assert resized
    assert resized[-1]["seconds"] is not None  # the pause that the coordinator measured
    assert any(record["record"] == "verdict" and record["speed_before"] for record in told)
