"""A scaling policy at the wheel of the running operator: jobs on simulated nodes grow and shrink without a restart."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dl2.api import names
from dl2.api.names import PolicyCondition
from dl2.controller.decisionlog import jobs_in, reading
from dl2.embedded.cluster import EmbeddedCluster
from dl2.scheduling.quantities import parse_quantity
from tests.integration.operator_harness import (
    Api,
    Object,
    Operator,
    Process,
    eventually,
    job,
    queue,
    running,
    template,
)

KILLS = int(os.environ.get("DL2_KILLS", "6"))
SEED = int(os.environ.get("DL2_SEED", "7"))


def elastic(name: str, workers: int = 4) -> Object:
    """A job of 1 to `workers` workers and 1 or 2 servers of one CPU each that trains for ever."""
    shape = {"min": 1, "template": template()}
    made = job(name)
    made["spec"] = {
        "runtime": "elastic",
        "workers": {**shape, "max": workers},
        "servers": {**shape, "max": 2},
        "training": {"epochs": 100_000, "stepsPerEpoch": 1000},
        "scaling": {"cooldownSeconds": 0},
    }
    return made


@pytest.fixture
def policy(api: Api) -> Iterator[Any]:
    """Makes the one ScalingPolicy of the cluster; without it nothing is resized."""

    def make(**spec: Any) -> None:
        body = {"intervalSeconds": 5, "guardrails": {"minGainPercent": 0, "maxScaleStep": 2}, **spec}
        api.apply({"apiVersion": names.API_VERSION, "kind": "ScalingPolicy", "metadata": {"name": "training"},
                   "spec": body})  # fmt: skip

    yield make
    if api.find("ScalingPolicy", "training"):
        api.delete("ScalingPolicy", "training")


def shape(api: Api, name: str) -> tuple[int, int]:
    status = api.status("DLJob", name)
    return tuple((status.get(role) or {}).get("ready") or 0 for role in ("workers", "servers"))  # type: ignore[return-value]


def wait_shape(api: Api, name: str, wanted: tuple[int, int]) -> None:
    try:
        eventually(lambda: shape(api, name) == wanted, f"{name} having the shape {wanted}")
    except AssertionError as error:
        raise AssertionError(
            f"{error}; policy: {json.dumps(api.status('ScalingPolicy', 'training'))}"
        ) from None


def test_jobs_grow_into_what_is_free_and_shrink_for_others_without_a_restart(
    api: Api, operator: Operator, simulated_trainers: Process, policy: Any
) -> None:
    api.apply(elastic("first"))
    api.wait_state("Running", "first")
    assert shape(api, "first") == (1, 1)
    founders = api.uids("first")

    policy(champion="drf")
    wait_shape(api, "first", (4, 2))
    annotations = api.get("PodGroup", "first")["metadata"]["annotations"]
    assert annotations[names.SCALED_BY] == "drf"
    assert founders.items() <= api.uids("first").items()

    operator.kill()  # the shape is the PodGroup's: who comes back takes nothing away
    operator.start()
    assert shape(api, "first") == (4, 2)

    api.apply(elastic("second"))  # beside two coordinators there is room for seven pods
    eventually(lambda: sum(shape(api, "first") + shape(api, "second")) == 7, "both sharing the queue")
    assert min(shape(api, "second")) >= 1
    status = api.status("ScalingPolicy", "training")
    assert status["stage"] == "Observe"
    assert status["decisions"] > 0
    assert founders.items() <= api.uids("first").items()
    assert api.condition("ScalingPolicy", "training", PolicyCondition.READY)["status"] == "True"


def test_a_challenger_that_cannot_decide_is_rolled_back_and_the_champion_decides(
    api: Api, operator: Operator, simulated_trainers: Process, policy: Any
) -> None:
    api.apply(elastic("job", workers=2))
    api.wait_state("Running", "job")

    policy(stage="Active", champion="drf", challenger="/nowhere/agent.safetensors")
    wait_shape(api, "job", (2, 2))
    status = api.status("ScalingPolicy", "training")
    assert status["stage"] == "Shadow"
    assert "/nowhere/agent.safetensors" in status["lastRollback"]["reason"]
    assert api.condition("ScalingPolicy", "training", PolicyCondition.ROLLED_BACK)["reason"] == "PolicyFailed"

    policy(stage="Active", champion="drf", challenger="fifo")
    eventually(lambda: api.status("ScalingPolicy", "training").get("stage") == "Active", "another trial")
    rolled = api.condition("ScalingPolicy", "training", PolicyCondition.ROLLED_BACK)
    assert (rolled["status"], rolled["reason"]) == ("False", "SpecChanged")


def test_fixed_jobs_and_numbers_that_were_asked_for_are_left_alone(
    api: Api, operator: Operator, simulated_trainers: Process, policy: Any
) -> None:
    fixed = elastic("fixed")
    fixed["spec"]["scaling"]["mode"] = "Fixed"
    asked = elastic("asked")
    asked["spec"]["workers"]["replicas"] = 2
    api.apply(queue(api.namespace, cpu="16"), fixed, asked, elastic("free", workers=2))
    api.wait_state("Running", "fixed", "asked", "free")

    policy(champion="drf")
    wait_shape(api, "free", (2, 2))
    assert [shape(api, name) for name in ("fixed", "asked")] == [(1, 1), (2, 1)]


def members(api: Api) -> Counter[tuple[str, str]]:
    """How many pods there are of every job and role, those on their way out included."""
    labels = [pod["metadata"]["labels"] for pod in api.pods().values()]
    return Counter((label[names.LABEL_JOB], label[names.LABEL_MEMBER]) for label in labels)


@pytest.fixture
def logging_operator(
    embedded_cluster: EmbeddedCluster, nodes: list[str], tmp_path: Path
) -> Iterator[Operator]:
    """An operator of this test's own, with a decision log."""
    operator = Operator(embedded_cluster, tmp_path / "log", "--decision-log", str(tmp_path / "decisions.db"))
    operator.start()
    yield operator
    operator.stop()


@pytest.mark.timeout(120 + 20 * KILLS)
def test_killed_at_random_moments_of_scaling_it_loses_nothing(
    api: Api, logging_operator: Operator, simulated_trainers: Process, policy: Any, tmp_path: Path
) -> None:
    """Somebody comes or goes before every death, so that shapes have to change. DL2_KILLS: how many deaths,
    DL2_SEED: when they come."""
    operator, rng = logging_operator, Random(SEED)
    api.apply(elastic("steady"))
    api.wait_state("Running", "steady")
    founders = api.uids("steady")
    policy(champion="drf")
    for n in range(KILLS):
        if n % 2 == 0:
            api.apply(elastic("guest"))
        else:
            api.delete("DLJob", "guest")
        time.sleep(rng.uniform(0.1, 7.0))
        operator.kill()
        assert parse_quantity(api.used(api.namespace), "cpu") <= 8000
        operator.start()
    if api.find("DLJob", "guest"):
        api.delete("DLJob", "guest")
    api.wait_gone("DLJob", "guest")

    wait_shape(api, "steady", (4, 2))
    # Numbers may have gaps: who joins while another one still leaves does not get the number of the leaving one.
    whole = {("steady", "coordinator"): 1, ("steady", "server"): 2, ("steady", "worker"): 4}
    eventually(lambda: members(api) == whole, "nothing but the members of steady being there")
    kept = sorted(api.pods())
    time.sleep(7.0)  # one more round at least, in which nobody comes or goes
    assert sorted(api.pods()) == kept
    assert all(running(pod) for pod in api.pods().values())
    assert founders.items() <= api.uids("steady").items()
    assert api.status("DLJob", "steady")["restarts"] == 0
    with reading(tmp_path / "decisions.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert f"{api.namespace}/steady" in jobs_in(db)
