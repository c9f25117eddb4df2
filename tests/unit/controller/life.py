"""An operator on an API server in memory, with a scheduler and kubelets of three lines: whole lives in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dl2.api import conditions, names
from dl2.cluster.resync import Resync
from dl2.cluster.store import Store
from dl2.controller.loop import Controller
from dl2.controller.settings import Settings
from dl2.web.metrics import Metrics
from tests.unit.cluster.fake_api import FakeApi, FakeClient, Fault

Script = Callable[[int, str], Fault | None]
NAMESPACE = "team-a"
HASTY = Settings(soft_writes_per_second=1e6, soft_write_interval=0, waits_seconds=0)


def node(cpu: str = "64") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "n"}},
        "status": {
            "allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "256"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def queue(cpu: str = "64", **spec: Any) -> dict[str, Any]:
    spec = {"resources": {"cpu": {"max": cpu}}, **spec}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "TenantQueue",
        "metadata": {"name": NAMESPACE},
        "spec": spec,
    }


def cluster() -> FakeApi:
    api = FakeApi()
    api.put(node())
    api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    api.put(queue())
    return api


class Life:
    """One operator process after the other on one API server; each starts with a LIST, as the real one does."""

    def __init__(self, api: FakeApi, script: Script = lambda _n, _what: None) -> None:
        self.api, self._script = api, script
        self.writes: list[str] = []
        self.processes = 0

    async def until(self, done: Callable[[], bool], rounds: int = 400) -> None:
        """Live until `done`, then on until nothing moves any more."""
        while True:
            self.processes += 1
            client = FakeClient(self.api, self._next_write)
            ended = await self._live(client, rounds, done)
            if ended:
                return

    def _next_write(self, _: int, what: str) -> Fault | None:
        fault = self._script(len(self.writes), what)
        self.writes.append(what)
        return fault

    async def _live(self, client: FakeClient, rounds: int, done: Callable[[], bool]) -> bool:
        """One process. False when it died on the way."""
        store: Store = Store()
        resync = Resync(client, store)  # type: ignore[arg-type]
        await resync.prime()
        controller = Controller(client, store, HASTY, Metrics())  # type: ignore[arg-type]
        still = 0
        for _ in range(rounds):
            before = len(self.writes)
            controller.one_pass()
            await _all_answered(controller, client)
            if client.dead:
                await self._bury(controller)
                return False
            self._hurry(controller)
            self.environment()
            for resource in resync._resources:
                await resync.list_once(resource)
            still = still + 1 if len(self.writes) == before else 0
            if done() and still >= 3:
                return True
        raise AssertionError(f"not done after {rounds} rounds; last writes: {self.writes[-10:]}")

    @staticmethod
    async def _bury(controller: Controller) -> None:
        tasks = list(controller.applier._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _hurry(controller: Controller) -> None:
        """Back-off is not what is tried here: let every failed write be due at once."""
        for slots in controller.applier._failures.values():
            for failure in slots.values():
                failure.retry_at = 0.0

    # -- the others ---------------------------------------------------------------------------------------------
    def environment(self) -> None:
        """Scheduler and kubelet: whatever is released runs and is ready."""
        for pod in self.api.of_kind("Pod"):
            gates = pod["spec"].get("schedulingGates")
            if not gates and not pod["spec"].get("nodeName"):
                ready = [{"type": "Ready", "status": "True"}]
                self.api.put(
                    {
                        **pod,
                        "spec": {**pod["spec"], "nodeName": "n"},
                        "status": {"phase": "Running", "conditions": ready},
                    }
                )

    def job(self, name: str = "j") -> dict[str, Any]:
        return self.api.objects["DLJob", NAMESPACE, name]

    def state(self, name: str = "j") -> str:
        return str((self.job(name).get("status") or {}).get("state") or "")

    def pods(self) -> dict[str, dict[str, Any]]:
        return {pod["metadata"]["name"]: pod for pod in self.api.of_kind("Pod")}

    def end(self, phase: str, *pods: str) -> None:
        for name in pods:
            pod = self.pods()[name]
            ended = {"exitCode": 1, "reason": "Error"}
            statuses = [{"name": "main", "state": {"terminated": ended}}] if phase == "Failed" else []
            self.api.put({**pod, "status": {"phase": phase, "containerStatuses": statuses}})

    def spec(self, name: str = "j", **changes: Any) -> None:
        job = self.job(name)
        self.api.put({**job, "metadata": {**job["metadata"]}, "spec": {**job["spec"], **changes}})

    def truth(self) -> dict[str, Any]:
        """What there is in the end, without what differs between two equal lives: uids, versions and times."""
        return {"/".join(place): _plain(raw) for place, raw in sorted(self.api.objects.items())}


async def _all_answered(controller: Controller, client: FakeClient) -> None:
    while True:
        if client.dead or not controller.applier.open_writes:
            return
        await asyncio.sleep(0)


def _plain(raw: dict[str, Any]) -> dict[str, Any]:
    status = {k: v for k, v in (raw.get("status") or {}).items() if not k.endswith(("At", "Time", "Pods"))}
    status["conditions"] = {
        c["type"]: (c["status"], c["reason"]) for c in status.get("conditions") or () if "reason" in c
    }
    return {"spec": raw.get("spec"), "status": status}


def true(raw: dict[str, Any], kind: str) -> bool:
    return conditions.is_true((raw.get("status") or {}).get("conditions") or (), kind)
