"""Kill -9, lost watches, missed deletions, an API server that restarts, two replicas: the same end from all of them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import urllib3

from dl2.api import names
from dl2.api.resources import pod_requests
from dl2.cluster.client import Credentials, KubeClient
from dl2.cluster.resync import Resync
from dl2.cluster.store import Store
from dl2.controller.loop import Controller
from dl2.controller.settings import Settings
from dl2.embedded.cluster import EmbeddedCluster
from dl2.web.metrics import Metrics
from tests.integration.operator_harness import (
    Api,
    ApiRefusal,
    Object,
    Operator,
    Process,
    eventually,
    gated,
    group,
    job,
    pod,
    queue,
    running,
)

pytestmark = pytest.mark.integration


@dataclass
class Witness:
    """Looks at all pods of a namespace again and again, and notes what must never be seen."""

    api: Api
    limit: int  # milli-CPU of the queue
    members: dict[str, int]  # pods wanted of each role of each job
    uids: dict[str, set[str]] = field(default_factory=dict)  # pod name -> every uid that was seen to run
    faults: list[str] = field(default_factory=list)
    looks: int = 0
    most_used: int = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.1):
            try:
                pods = self.api.list("Pod")
            except (ApiRefusal, urllib3.exceptions.HTTPError):
                continue  # the API server is restarting
            self.looks += 1
            self._check(pods)

    def _check(self, pods: list[Object]) -> None:
        alive: dict[tuple[str, str], int] = {}
        used = 0
        for found in pods:
            meta, labels = found["metadata"], found["metadata"]["labels"]
            if gated(found) or found["status"]["phase"] in ("Succeeded", "Failed"):
                continue
            used += pod_requests(found["spec"])["cpu"]
            if running(found):
                self.uids.setdefault(meta["name"], set()).add(meta["uid"])
                role = (labels[names.LABEL_POD_GROUP], labels[names.LABEL_MEMBER])
                alive[role] = alive.get(role, 0) + 1
        self.most_used = max(self.most_used, used)
        if used > self.limit:
            self.faults.append(f"{used}m CPU in use of {self.limit}m")
        self.faults += [
            f"{count} pods of {role}" for role, count in alive.items() if count > self.members[role[1]]
        ]


JOBS = [f"j{n}" for n in range(14)]
ROLES = {"coordinator": 1, "server": 1, "worker": 2}


def burst(api: Api, steps: int) -> None:
    for name in JOBS:
        api.apply(job(name, training={"epochs": 1, "stepsPerEpoch": steps}))


def assert_all_ran_once(api: Api, witness: Witness) -> None:
    assert witness.faults == []
    assert witness.looks > 20
    assert witness.most_used > 6000  # it did get busy
    for name in JOBS:
        status = api.status("DLJob", name)
        assert (status["restarts"], status["attempt"]) == (0, 0), name
    twice = {name: uids for name, uids in witness.uids.items() if len(uids) > 1}
    assert twice == {}, "running pods were made anew"
    eventually(lambda: api.used(api.namespace) == "0", "all quota being free")


@pytest.mark.timeout(400)
def test_killed_at_random_moments_of_a_burst(
    api: Api, simulated_trainers: Process, operator: Operator
) -> None:
    dice = random.Random(3)
    api.apply(queue(api.namespace, "16"))
    witness = Witness(api, 16_000, ROLES)
    with witness.watching():
        burst(api, steps=600)
        for kill in range(16):
            time.sleep(dice.uniform(0.0, 1.2))  # where in its work it dies is the point of this test
            operator.kill()
            if dice.random() < 0.5:
                operator.start()
            else:
                Process.start(operator)  # and not even ready is it when the next one comes
                time.sleep(dice.uniform(0.5, 2.5))
            if kill == 8:
                operator.wait_ready()
        operator.wait_ready()
        for name in JOBS:
            eventually(lambda name=name: api.state(name) in ("Succeeded", "Failed"), f"{name} ending", 120)
    assert {api.state(name) for name in JOBS} == {"Succeeded"}
    assert_all_ran_once(api, witness)


def test_a_restart_of_the_api_server(
    embedded_cluster: EmbeddedCluster, api: Api, simulated_trainers: Process, operator: Operator
) -> None:
    api.apply(queue(api.namespace, "16"))
    witness = Witness(api, 16_000, ROLES)
    with witness.watching():
        burst(api, steps=400)
        eventually(lambda: any(running(p) for p in api.list("Pod")), "pods running")
        embedded_cluster.restart_component("kube-apiserver")
        assert operator.alive
        for name in JOBS:
            eventually(lambda name=name: api.state(name) == "Succeeded", f"{name} succeeding", 120)
    assert_all_ran_once(api, witness)
    eventually(lambda: operator.page("/readyz")[0] == 200, "it being ready", 90)


def everything(api: Api) -> None:
    """A running and an ended job, one that waits, a gang of bare pods, a reservation."""
    api.apply(queue(api.namespace, "9"))
    api.apply(job("ended"))
    api.wait_state("Running", "ended")
    api.finish_job("ended")
    api.wait_state("Succeeded", "ended")
    api.apply(job("runs"), group("gang", 2), pod("p0", "gang"), pod("p1", "gang"), group("kept", 2))
    api.wait_state("Running", "runs")
    api.wait_state("Ready", "gang", kind="PodGroup")
    api.wait_state("Admitted", "kept", kind="PodGroup")
    api.apply(job("waits"))
    eventually(
        lambda: api.condition("DLJob", "waits", "Queued").get("reason") == "WaitingForQuota", "waits waiting"
    )


def test_kueue_1654_a_restart_changes_nothing_and_admits_nothing_again(api: Api, operator: Operator) -> None:
    everything(api)
    operator.wait_quiet()
    pods, states = api.uids(), {g["metadata"]["name"]: g["status"] for g in api.list("PodGroup")}
    operator.kill()
    operator.start()
    operator.wait_quiet()
    assert operator.writes() == 0
    assert api.uids() == pods
    assert {g["metadata"]["name"]: g["status"] for g in api.list("PodGroup")} == states


def test_deletions_that_nobody_saw(api: Api, operator: Operator) -> None:
    everything(api)
    operator.kill()
    before = api.uids("runs")
    api.delete("Pod", "runs-worker-0")
    api.delete("PodGroup", "kept")
    api.delete("DLJob", "ended")
    operator.start()
    eventually(
        lambda: api.uids("runs").get("runs-worker-0") not in (None, before["runs-worker-0"]), "a new worker"
    )
    api.wait_state("Running", "runs", "waits")
    for kind in ("DLJob", "PodGroup", "Service"):
        api.wait_gone(kind, "ended")
    eventually(lambda: api.used(api.namespace) == "8200m", "what is left being charged")


async def test_without_any_watch_resync_alone_brings_a_job_to_its_end(
    embedded_cluster: EmbeddedCluster, api: Api, operator: Operator
) -> None:
    operator.stop()
    store = Store()
    async with KubeClient(Credentials(str(embedded_cluster.kubeconfig))) as client:
        resync = Resync(client, store)
        await resync.prime()
        controller = Controller(client, store, Settings(), Metrics())
        tasks = [asyncio.create_task(resync.run(0.5)), asyncio.create_task(controller.run())]
        try:
            await asyncio.to_thread(_live_one_life, api)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await controller.applier.drain(5)


def _live_one_life(api: Api) -> None:
    api.apply(job("j"))
    api.wait_state("Running", "j")
    api.finish("j-worker-0", "j-worker-1")
    api.wait_state("Succeeded", "j")
    eventually(lambda: not [p for p in api.pods("j").values() if running(p)], "no pod running")
    api.delete("DLJob", "j")
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")


@pytest.fixture
def two_replicas(
    embedded_cluster: EmbeddedCluster, namespace: str, tmp_path: Path
) -> Iterator[tuple[Operator, Operator]]:
    options = ("--leader-elect", "--lease-namespace", namespace, "--lease-seconds", "6")
    replicas = tuple(Operator(embedded_cluster, tmp_path / f"replica-{n}", *options) for n in range(2))
    yield replicas[0], replicas[1]
    for replica in replicas:
        replica.kill()


def leads(replica: Operator) -> bool:
    return (
        replica.alive
        and replica.metric("dl2_leader") == 1
        and replica.metric("dl2_last_list_age_seconds") > 0
    )


def test_two_replicas(api: Api, operator: Operator, two_replicas: tuple[Operator, Operator]) -> None:
    """One leads, the other writes nothing; killed, stopped or robbed of its lease, the other takes over."""
    operator.stop()
    first, second = two_replicas
    first.start()
    eventually(lambda: leads(first), "the first replica leading")
    second.start()
    api.apply(job("a"))
    api.wait_state("Running", "a")
    uids = api.uids("a")
    assert second.writes() == 0
    assert not leads(second)

    first.kill()
    eventually(lambda: leads(second), "the second replica taking over from the dead")
    api.apply(job("b"))
    api.wait_state("Running", "b")

    first.start()
    second.stop()
    assert second.exit_code == 0
    eventually(lambda: leads(first), "the first replica taking over what was handed back")

    robbed: dict[str, Any] = {"spec": {"holderIdentity": "a-thief", "leaseDurationSeconds": 3600}}
    eventually(lambda: _rob(api, robbed, first), "the first replica ending, as it has lost the lease", 40)
    assert first.exit_code == 1
    assert api.uids("a") == uids
    assert api.state("a") == api.state("b") == "Running"


def _rob(api: Api, lease: Object, victim: Operator) -> bool:
    """Hold the lease in another's name until the victim notices."""
    api.patch("Lease", "dl2-operator", lease)
    return not victim.alive
