"""The trainer simulator: plays the training program of DLJobs whose pods run on kwok nodes.

kwok makes pods look like running; nothing runs in them. For every such DLJob this process advances an imagined
training (steps per second from a parameter-server model of its present shape), serves the same progress JSON that a
real coordinator serves, and lets the pods succeed at the end. Nothing here measures anything: it exists so that the
operator can be watched and tested with hundreds of jobs on a machine that could not run them.

Run it as `python -m dl2.embedded.trainer_simulator --port PORT`; the operator follows its URLs only with
`--trust-status-url`. With `--trace FILE` the DLJobs named as `dl2 simulate` names the jobs of that trace train as fast
as they do there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from dl2.api import names
from dl2.api.conditions import format_time, is_true
from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.resources import DL_JOBS, NODES, PODS
from dl2.scaling.interface import Scale

CHECKPOINT_EVERY = 0.1  # of the whole training: what a restart falls back to
DEFAULT_STEPS = 200
Speed = Callable[[Scale], float]  # epochs a second
PAUSE_SECONDS = 0.05  # for which a change of members holds up an imagined training


class Costs(NamedTuple):
    """Of one step, in seconds: computing it alone, its traffic through one server, coordinating one member."""

    compute: float
    traffic: float
    coordination: float


# Chosen so that a small job finishes within a demonstration; they describe no real model. One label stands for networks
# that more workers soon slow down.
USUAL = Costs(0.2, 0.01, 0.002)
COSTS = {"lstm": Costs(0.07, 0.03, 0.025)}


def steps_per_second(workers: int, servers: int, model: str = "") -> float:
    """Synchronous parameter-server training, global batch fixed: computing shrinks with workers, traffic grows.

    One step takes compute/workers + traffic · workers/servers + coordination · (workers + servers), in seconds.
    """
    if workers <= 0:
        return 0.0
    costs = COSTS.get(model, USUAL)
    traffic = costs.traffic * workers / max(servers, 1)
    return 1.0 / (costs.compute / workers + traffic + costs.coordination * (workers + servers))


@dataclass(slots=True)
class Training:
    """One imagined training."""

    total: float  # steps
    epochs: int
    step: float = 0.0
    rate: float = 0.0
    run: str = ""  # uid of the coordinator pod that leads it
    at: float = field(default_factory=time.time)
    shape: tuple[int, int] = (0, 0)
    model: str = ""
    speed: Speed | None = None  # None: `steps_per_second` of the model
    scaling: dict[str, Any] | None = None  # the last change of shape, as a coordinator tells of it

    def reshape(self, now: float, shape: tuple[int, int]) -> None:
        """Members have come or gone; while some of the least are missing, nothing trains and nothing is told."""
        if 0 in shape or shape == self.shape:
            return
        if self.shape != (0, 0):
            before, after = (dict(zip(("workers", "servers"), s, strict=True)) for s in (self.shape, shape))
            self.scaling = {"time": now, "from": before, "to": after, "pause_ms": PAUSE_SECONDS * 1000}
            self.step = max(0.0, self.step - self.rate * PAUSE_SECONDS)
        self.shape = shape

    def advance(self, now: float, rate: float, run: str, speedup: float) -> None:
        """Go on to `now` at the rate that held since the last call; a new run starts at the last checkpoint."""
        self.step = min(self.total, self.step + self.rate * speedup * (now - self.at))
        if run and run != self.run:
            if self.run:
                unit = max(1.0, self.total * CHECKPOINT_EVERY)
                self.step = self.step // unit * unit
            self.run = run
        self.rate, self.at = rate, now

    def pace(self, workers: int, servers: int) -> float:
        """Steps a second of this shape."""
        if self.speed is None:
            return steps_per_second(workers, servers, self.model)
        return self.speed(Scale(workers, servers)) * self.total / self.epochs

    @property
    def done(self) -> bool:
        return self.step >= self.total

    def report(self, speedup: float) -> dict[str, Any]:
        fraction = self.step / self.total
        return {
            "epoch": int(self.epochs * fraction),
            "step": int(self.step),
            "steps_per_second": self.rate * speedup,
            "updated_at": self.at,
            "metrics": {"simulated": 1.0},
            "last_scaling": self.scaling,
        }


class TrainerSimulator:
    def __init__(
        self,
        client: KubeClient,
        port: int,
        speedup: float,
        interval: float,
        speeds: Mapping[str, Speed] | None = None,  # by the job's name
    ) -> None:
        self._speeds = speeds or {}
        self._client, self._port, self._speedup, self._interval = client, port, speedup, interval
        self._trainings: dict[str, Training] = {}
        self._nodes: dict[str, bool] = {}  # name -> is it simulated

    async def run(self) -> None:
        app = web.Application()
        app.router.add_get("/jobs/{uid}/v1/status", self._status)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        try:
            while True:
                with contextlib.suppress(ApiError):  # the API server is away: the next round will do
                    await self._round()
                await asyncio.sleep(self._interval)
        finally:
            await runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        training = self._trainings.get(request.match_info["uid"])
        if training is None:
            raise web.HTTPNotFound
        return web.json_response(training.report(self._speedup))

    async def _round(self) -> None:
        pods = await self._pods()
        seen: set[str] = set()
        async for jobs, _ in self._client.list(DL_JOBS):
            for job in jobs:
                seen.add(job["metadata"]["uid"])
                with contextlib.suppress(ApiError):  # its pods are going: the others play on
                    await self._play(job, pods.get(job["metadata"]["uid"], []))
        for gone in self._trainings.keys() - seen:
            del self._trainings[gone]

    async def _pods(self) -> dict[str, list[dict[str, Any]]]:
        """Pods of every DLJob, by the uid of the job."""
        found: dict[str, list[dict[str, Any]]] = {}
        async for pods, _ in self._client.list(PODS, selector=names.LABEL_JOB):
            for pod in pods:
                for owner in pod["metadata"].get("ownerReferences") or ():
                    found.setdefault(owner["uid"], []).append(pod)
        return found

    async def _play(self, job: Mapping[str, Any], pods: list[dict[str, Any]]) -> None:
        uid, status = job["metadata"]["uid"], job.get("status") or {}
        running = is_true(status.get("conditions") or (), names.JobCondition.RUNNING)
        training = self._trainings.get(uid)
        if training is None:
            if not running or not await self._is_simulated(pods):
                return
            training = self._trainings[uid] = _imagine(job)
            training.speed = self._speeds.get(job["metadata"]["name"])
        workers, servers = (
            int((status.get(role) or {}).get("ready") or 0) for role in ("workers", "servers")
        )
        rate = training.pace(workers, servers) if running else 0.0
        coordinator = next((pod for pod in pods if _role(pod) == names.COORDINATOR), None)
        run, now = coordinator["metadata"]["uid"] if coordinator else "", time.time()
        training.advance(now, rate, run, self._speedup)
        if running:
            training.reshape(now, (workers, servers))
        if running and coordinator:
            await self._announce(uid, coordinator)
        if running and training.done:
            await self._succeed(pods)

    async def _is_simulated(self, pods: list[dict[str, Any]]) -> bool:
        """Only jobs all of whose bound pods are on kwok nodes are ours to play."""
        bound = {pod["spec"].get("nodeName") or "" for pod in pods} - {""}
        if bound - self._nodes.keys():
            async for nodes, _ in self._client.list(NODES):
                for node in nodes:
                    labels = node["metadata"].get("labels") or {}
                    self._nodes[node["metadata"]["name"]] = labels.get(names.LABEL_NODE_KIND) == "kwok"
        return bool(bound) and all(self._nodes.get(node) for node in bound)

    async def _announce(self, uid: str, coordinator: Mapping[str, Any]) -> None:
        """Say on the coordinator pod where its progress is served."""
        url = f"http://127.0.0.1:{self._port}/jobs/{uid}/v1/status"
        meta = coordinator["metadata"]
        if (meta.get("annotations") or {}).get(names.STATUS_URL) != url:
            patch = {"metadata": {"uid": meta["uid"], "annotations": {names.STATUS_URL: url}}}
            await self._client.merge_patch(PODS, meta["namespace"], meta["name"], patch)

    async def _succeed(self, pods: list[dict[str, Any]]) -> None:
        for pod in pods:
            if (pod.get("status") or {}).get("phase") == "Running":
                meta, patch = pod["metadata"], _succeeded(pod)
                await self._client.merge_patch(PODS, meta["namespace"], meta["name"], patch, "status")


def _role(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("labels") or {}).get(names.LABEL_MEMBER) or "")


def _imagine(job: Mapping[str, Any]) -> Training:
    """The declared work, continued where the job's status says (after a restart of this simulator)."""
    declared = job["spec"].get("training") or {}
    epochs = int(declared.get("epochs") or 1)
    total = float(epochs * int(declared.get("stepsPerEpoch") or DEFAULT_STEPS))
    status = job.get("status") or {}
    step = float((status.get("progress") or {}).get("step") or 0)
    return Training(total, epochs, min(step, total), model=job["spec"].get("model") or "")


def _succeeded(pod: Mapping[str, Any]) -> dict[str, Any]:
    now = format_time(time.time())
    containers = [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": now}},
        }
        for container in pod["spec"]["containers"]
    ]
    conditions = [
        {**c, "status": "False", "reason": "PodCompleted"} if c["type"] in ("Ready", "ContainersReady") else c
        for c in pod["status"].get("conditions") or ()
    ]
    return {"status": {"phase": "Succeeded", "conditions": conditions, "containerStatuses": containers}}


async def _main(arguments: argparse.Namespace) -> None:
    async with KubeClient(Credentials(arguments.kubeconfig)) as client:
        simulator = TrainerSimulator(
            client, arguments.port, arguments.speedup, arguments.interval, _speeds(arguments)
        )
        await simulator.run()


def _speeds(arguments: argparse.Namespace) -> dict[str, Speed]:
    if arguments.trace is None:
        return {}
    from dl2.learning.traces import read_trace

    return {job.id: job.speed for job in read_trace(arguments.trace, arguments.trace_seed)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="trainer-simulator", description="Plays the trainers of DLJobs on kwok nodes."
    )
    parser.add_argument("--kubeconfig")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--speedup", type=float, default=1.0, help="imagined seconds per second")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks at the jobs")
    parser.add_argument("--trace", type=Path, help="take the speeds of its jobs from this trace")
    parser.add_argument("--trace-seed", type=int, default=0, help="as `dl2 simulate --seed`")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
