"""One operator that holds 2,000 DLJobs and 20,000 running pods on simulated nodes of a real API server.

    python benchmarks/operator_scale.py [--jobs 2000] [--pods-per-job 10] [--json out.json]

Brings up a cluster of its own, starts the operator, and creates the jobs until all of them run. Then it
measures what such an operator costs (peak resident memory, CPU seconds), how long a change takes to its effect
(from the creation of one more job until all its pods are released), and, with all of it in place, how long a
restarted operator takes until it is ready. Everything on one machine: API server, etcd, scheduler and kwok compete
with the operator for its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from dl2.api import names
from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.resources import DL_JOBS, PODS, TENANT_QUEUES, Resource
from dl2.embedded.cluster import EmbeddedCluster
from load.manifests import manifest
from load.usage import Usage

TARGETS = {"peak_rss_mib": 500.0, "change_to_effect_seconds": 2.0, "startup_to_ready_seconds": 60.0}
NAMESPACE = Resource("Namespace", "namespaces", namespaced=False)
SPACES = 10  # namespaces, each with a queue of its own
SLOTS = 200  # of the 256 pods that a simulated node may hold
PORT = "operator-scale"
_CONTAINER = {"name": "main", "image": "none", "resources": {"requests": {"cpu": "100m"}}}
TEMPLATE = {"spec": {"containers": [_CONTAINER], "terminationGracePeriodSeconds": 1}}
BACKLOG = 100  # jobs that are created and do not run yet
POLL_SECONDS = 2.0


def job(name: str, pods: int) -> dict[str, Any]:
    """A DLJob of `pods` pods: a coordinator, two servers, the rest workers."""
    workers = max(1, pods - 3)
    return dljob(
        name,
        runtime="static",
        workers={"min": 1, "max": workers, "initial": workers, "template": TEMPLATE},
        servers={"min": 2, "initial": 2, "template": TEMPLATE},
    )


def dljob(name: str, **spec: Any) -> dict[str, Any]:
    """In one of the namespaces, by the number at the end of its name."""
    return manifest(names.DL_JOB, name, spec, namespace=f"space-{int(name.rsplit('-', 1)[1]) % SPACES}")


class Operator:
    """`dl2 run` as a process of its own."""

    def __init__(self, cluster: EmbeddedCluster, log: Path, *options: str) -> None:
        self._url = f"http://127.0.0.1:{cluster.port(PORT)}"
        self._log = log
        self._command = [
            sys.executable, "-m", "dl2", "run", "--kubeconfig", str(cluster.kubeconfig), "--log-format", "json",
            "--listen", f"127.0.0.1:{cluster.port(PORT)}", "--log-level", "WARNING", *options,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ready when the block begins, gone when it ends."""
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=out)
        try:
            while not self._ready():
                if self.process.poll() is not None:
                    raise SystemExit(f"the operator has ended; its log is {self._log}")
                time.sleep(0.05)
            yield
        finally:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=30) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return sum(
            s.value
            for f in families
            for s in f.samples
            if s.name == name and labels.items() <= s.labels.items()
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def memory(self, field: str) -> float:
        """MiB; VmHWM is the peak, VmRSS the present."""
        return round(Usage(self.pid).memory_mib(field), 1)

    def cpu_seconds(self) -> float:
        return round(Usage(self.pid).cpu_seconds(), 1)


async def create(client: KubeClient, resource: Resource, body: dict[str, Any]) -> None:
    """Once, however often the API server is too busy to say so."""
    while True:
        try:
            await client.create(resource, body)
            return
        except ApiError as error:
            if error.conflict:
                return
            if error.rejected:
                raise
        await asyncio.sleep(0.5)


async def create_all(client: KubeClient, resource: Resource, bodies: list[dict[str, Any]]) -> None:
    limit = asyncio.Semaphore(8)

    async def one(body: dict[str, Any]) -> None:
        async with limit:
            await create(client, resource, body)

    await asyncio.gather(*(one(body) for body in bodies))


async def prepare(cluster: EmbeddedCluster, client: KubeClient) -> None:
    spaces = [f"space-{n}" for n in range(SPACES)]
    await create_all(
        client,
        NAMESPACE,
        [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": s}} for s in spaces],
    )
    queues = [manifest(names.TENANT_QUEUE, s, {"resources": {"cpu": {"max": "100k"}}}) for s in spaces]
    await create_all(client, TENANT_QUEUES, queues)
    for space in spaces:
        await asyncio.to_thread(cluster.wait_service_account, space)


async def load(operator: Operator, client: KubeClient, bodies: list[dict[str, Any]]) -> None:
    """Creates the jobs, so that at no time more than `BACKLOG` of them are not running yet, until all run.

    All at once they would measure how much the API server and kube-scheduler can take: pods then wait so long for
    their kubelet that the operator takes the groups back, which makes still more work for both.
    """
    began, waiting, left = time.monotonic(), list[dict[str, Any]](), list(reversed(bodies))
    while waiting or left:
        batch = [left.pop() for _ in range(min(BACKLOG - len(waiting), len(left)))]
        await create_all(client, DL_JOBS, batch)
        await asyncio.sleep(POLL_SECONDS)
        states = await asyncio.gather(*(state(client, body) for body in waiting + batch))
        waiting = [b for b, s in zip(waiting + batch, states, strict=True) if s != "Running"]
        running = len(bodies) - len(left) - len(waiting)
        if batch or not left:
            memory, passed = operator.memory("VmRSS"), time.monotonic() - began
            print(f"  {running} running after {passed:.0f} s, {memory} MiB", file=sys.stderr, flush=True)


async def state(client: KubeClient, body: dict[str, Any]) -> str:
    with contextlib.suppress(ApiError):  # too busy to say
        found = await client.get(DL_JOBS, body["metadata"]["namespace"], body["metadata"]["name"])
        return str((found.get("status") or {}).get("state"))
    return ""


async def running(client: KubeClient) -> int:
    """How many jobs run at this moment."""
    return sum([
        (found.get("status") or {}).get("state") == "Running"
        async for page, _ in client.list(DL_JOBS)
        for found in page
    ])  # fmt: skip


async def change_to_effect(client: KubeClient, name: str, pods: int) -> float:
    """Seconds from the creation of one more job until the gates of all its pods are gone."""
    body = job(name, pods)
    space, spec = body["metadata"]["namespace"], body["spec"]
    roles = {
        names.COORDINATOR: 1,
        names.SERVER: spec["servers"]["initial"],
        names.WORKER: spec["workers"]["initial"],
    }
    began = time.monotonic()
    await create(client, DL_JOBS, body)
    for role, count in roles.items():
        for index in range(count):
            await wait_released(client, space, f"{name}-{role}-{index}")
    return time.monotonic() - began


async def wait_released(client: KubeClient, space: str, pod: str) -> None:
    while True:
        with contextlib.suppress(ApiError):  # not made yet
            if not (await client.get(PODS, space, pod))["spec"].get("schedulingGates"):
                return
        await asyncio.sleep(0.02)


async def measure(cluster: EmbeddedCluster, jobs: int, pods: int, samples: int) -> dict[str, Any]:
    operator = Operator(cluster, cluster.directory / "operator.log")
    figures: dict[str, Any] = {"jobs": jobs, "pods": jobs * pods, "nodes": cluster.options.kwok_nodes}
    async with KubeClient(Credentials(str(cluster.kubeconfig))) as client:
        await prepare(cluster, client)
        with operator.running():
            began = time.monotonic()
            await load(operator, client, [job(f"job-{n}", pods) for n in range(jobs)])
            figures["all_running_seconds"] = round(time.monotonic() - began, 1)
            figures["loading_cpu_seconds"] = operator.cpu_seconds()
            times = [await change_to_effect(client, f"late-{n}", pods) for n in range(samples)]
            figures["change_to_effect_median_seconds"] = round(statistics.median(times), 2)
            figures["change_to_effect_seconds"] = round(max(times), 2)
            figures["peak_rss_mib"] = operator.memory("VmHWM")
            for _ in range(60):  # a restart has nothing to write about what is at rest
                await asyncio.sleep(2)
                figures["running"] = await running(client)
                if figures["running"] == jobs + samples:
                    break
        began = time.monotonic()
        with operator.running():
            figures["startup_to_ready_seconds"] = round(time.monotonic() - began, 1)
            await asyncio.sleep(60)
            figures["first_minute_cpu_seconds"] = operator.cpu_seconds()
            figures["writes_after_restart"] = operator.metric("dl2_writes_total")
            idle = operator.cpu_seconds()
            await asyncio.sleep(30)
            figures["idle_cpu_percent"] = round((operator.cpu_seconds() - idle) / 30 * 100, 1)
            times = [await change_to_effect(client, f"later-{n}", pods) for n in range(samples)]
            figures["change_to_effect_after_restart_seconds"] = round(max(times), 2)
            figures["rss_after_restart_mib"] = operator.memory("VmRSS")
            figures["peak_rss_mib"] = max(figures["peak_rss_mib"], operator.memory("VmHWM"))
    return figures


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the operator ends with it
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--pods-per-job", type=int, default=10)
    parser.add_argument("--samples", type=int, default=10, help="changes whose effect is timed, each time")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    total = (arguments.jobs + 2 * arguments.samples) * arguments.pods_per_job
    cluster = EmbeddedCluster("operator-scale", kwok_nodes=-(-total // SLOTS), owned=True)
    with cluster:
        figures = asyncio.run(measure(cluster, arguments.jobs, arguments.pods_per_job, arguments.samples))
    figures |= {"machine": f"{os.cpu_count()} cores, Python {platform.python_version()}"}
    for name, value in figures.items():
        target = f"  (target below {TARGETS[name]:g})" if name in TARGETS else ""
        print(f"{name:42} {value}{target}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    missed = [name for name, target in TARGETS.items() if figures[name] >= target]
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
