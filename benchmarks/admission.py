"""How fast the operator admits through a real API server: `python benchmarks/admission.py [--json FILE]`.

The load is that of Kueue's own scheduler benchmark: 5 trees of 6 queues (min 20, max 120 CPUs, reclaim Any,
withinQueue LowerPriority), 15,000 groups in 60 seconds, finished by the load generator after their run time.
Nodes are so large that only quota binds. kube-scheduler and kube-controller-manager are stopped meanwhile:
there are no pods, and what they spend on watching is not what is measured. The operator has the rights of its
Deployment; it and the load generator come with tokens, as pods do: of a client certificate the API server checks
the signatures with every request.

Figures:
  wall_seconds        from the first creation to the last group finished
  wait_CLASS_s        mean time from creation to the admission that it ran to the end in
  quota_use_percent   admitted CPUs over that time, of the 600 there are
  cpu_seconds         of the operator, start-up included
  peak_rss_mib        of the operator
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from dl2.api import names
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.waiting import wait_until
from load import podgroups
from load.manifests import manifest
from load.podgroups import CAPACITY, CLASSES, MAX_CPUS, MIN_CPUS, QUEUES, TREES, Load, Report, Server
from load.ports import free_port

# Kueue 0.19.2 with the same load on a machine of two cores; the goals.
REFERENCE = {
    "wall_seconds": (402.0, "<= 150"),
    "groups_per_second": (37.3, ">= 100"),
    "quota_use_percent": (55.0, "> 80"),
    "cpu_seconds": (110.0, ""),
    "peak_rss_mib": (649.0, "< 220"),
    "wait_large_s": (35.0, ""),
    "wait_medium_s": (116.0, ""),
    "wait_small_s": (227.0, ""),
}
NOT_FIGURES = ("groups_per_second",)
IDLE = ("kube-scheduler", "kube-controller-manager")  # stopped while it is measured
TELL_SECONDS = 10.0
SPACE = "dl2-system"
MANIFESTS = Path(__file__).resolve().parent.parent / "manifests" / "base"


def objects() -> Iterator[dict[str, Any]]:
    """Priority classes, queues and namespaces of the load."""
    for kind in CLASSES:
        yield {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": kind.name},
            "value": kind.priority,
        }
    total = QUEUES * MIN_CPUS
    for tree in range(TREES):
        yield _queue(f"tree-{tree}", {"resources": {"cpu": {"min": total, "max": total}}})
    for tree_name, name in podgroups.queues():
        preemption = {"withinQueue": "LowerPriority", "reclaim": "Any"}
        limits = {"cpu": {"min": MIN_CPUS, "max": MAX_CPUS}}
        yield _queue(name, {"parent": tree_name, "resources": limits, "preemption": preemption})
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _queue(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return manifest(names.TENANT_QUEUE, name, spec)


class Process:
    """What a running process has used so far, from /proc."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_rss_mib(self) -> float:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


class Operator:
    """`dl2 run` as users run it, logging to a file."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        self.log = log
        self.address = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "dl2", "run", "--kubeconfig", str(kubeconfig)]
        with log.open("wb") as out:
            self._process = subprocess.Popen([*command, "--listen", self.address], stdout=out, stderr=out)
        self.usage = Process(self._process.pid)

    def ready(self) -> bool | str:
        if self._process.poll() is not None:
            raise RuntimeError(f"the operator has ended: {self.log.read_text()[-2000:]}")
        try:
            self.get("/readyz")
        except (urllib.error.URLError, OSError) as error:
            return str(error)
        return True

    def get(self, path: str) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.address}{path}", timeout=10) as response:
            return str(response.read().decode())

    def metrics(self) -> dict[tuple[str, ...], float]:
        """(name, label values) -> value."""
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.get("/metrics"))
            for sample in family.samples
        }

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def operator(kubeconfig: Path, log: Path) -> Iterator[Operator]:
    running = Operator(kubeconfig, log)
    try:
        wait_until(running.ready, "the operator's readiness", 60)
        yield running
    finally:
        running.stop()


def generate(server: Server, scale: float, timeout: float, pipe: Connection) -> None:
    """The load generator's process: sends a Report every TELL_SECONDS, and the last one with True."""
    report = asyncio.run(
        Load(server, scale, timeout).run(lambda report: pipe.send((False, report)), TELL_SECONDS)
    )
    pipe.send((True, report))


def drive(server: Server, scale: float, timeout: float, running: Operator) -> Report:
    """Run the load in a process of its own and tell how it gets on. Raises RuntimeError when it breaks."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=generate, args=(server, scale, timeout, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(timeout + 60):
                raise RuntimeError("the load generator does not answer")
            last, report = ours.recv()
            tell(report, running)
            if last:
                return report  # type: ignore[no-any-return]
    except EOFError:
        raise RuntimeError("the load generator has ended; its error stands above") from None
    finally:
        child.terminate()
        child.join()


def tell(report: Report, running: Operator) -> None:
    print(
        f"{report.wall:6.1f} s  created {report.created:6}  finished {report.finished:6}  "
        f"admitted {report.cpus:4} CPUs  operator {running.usage.cpu_seconds():6.1f} s "
        f"{running.usage.peak_rss_mib():5.0f} MiB",
        file=sys.stderr,
    )


def let_in(cluster: EmbeddedCluster) -> None:
    """Service accounts: the operator's with its rights, and one for the load generator, which may do anything."""
    cluster.kubectl("create", "namespace", SPACE)
    for file in ("service-account.yaml", "rights.yaml"):
        cluster.kubectl("apply", "-n", SPACE, "-f", str(MANIFESTS / file))
    cluster.kubectl("create", "serviceaccount", "load", "-n", SPACE)
    cluster.kubectl(
        "create",
        "clusterrolebinding",
        "load",
        "--clusterrole=cluster-admin",
        f"--serviceaccount={SPACE}:load",
    )


def measure(scale: float, timeout: float, log: Path) -> tuple[dict[str, float], dict[str, float], Report]:
    """(figures, further facts, the load's report)."""
    with EmbeddedCluster(f"admission-{os.getpid()}", kwok_nodes=8, cpus=1024, gpus=0, owned=True) as cluster:
        cluster.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(objects()))
        let_in(cluster)
        pids = {status.name: status.pid for status in cluster.status()}
        for name in IDLE:
            cluster.stop_component(name)
        servers = {name: Process(pids[name] or 0) for name in ("kube-apiserver", "etcd")}
        server = Server(cluster.server, cluster.pki.ca, cluster.service_account_token(SPACE, "load"))
        kubeconfig = cluster.write_service_account_kubeconfig(
            log.with_suffix(".kubeconfig"), SPACE, "dl2-operator"
        )
        with operator(kubeconfig, log) as running:
            before = {name: process.cpu_seconds() for name, process in servers.items()}
            report = drive(server, scale, timeout, running)
            facts = {
                f"{name} CPU seconds": process.cpu_seconds() - before[name]
                for name, process in servers.items()
            }
            figures = {
                "wall_seconds": report.wall,
                "groups_per_second": report.finished / report.wall,
                "quota_use_percent": 100 * report.held / (CAPACITY * report.wall),
                "cpu_seconds": running.usage.cpu_seconds(),
                "peak_rss_mib": running.usage.peak_rss_mib(),
                **{f"wait_{name}_s": wait for name, wait in report.waits.items()},
            }
            facts |= from_metrics(running.metrics())
    facts["load generator CPU seconds"] = report.processor
    facts["quota use by work alone, percent"] = 100 * report.worked / (CAPACITY * report.wall)
    facts |= {f"evictions of {name} groups": count for name, count in sorted(report.evictions.items())}
    facts |= {"requests repeated": report.repeats, "lists of the load generator": report.lists}
    return figures, facts, report


def from_metrics(metrics: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    facts: dict[str, float] = {}
    for name in ("dl2_pass_seconds", "dl2_decide_seconds"):
        facts[f"{name} count"] = metrics[f"{name}_count",]
        facts[f"{name} sum"] = metrics[f"{name}_sum",]
    writes = {key[1:]: value for key, value in metrics.items() if key[0] == "dl2_writes_total"}
    facts |= {f"writes {' '.join(labels)}": value for labels, value in sorted(writes.items())}
    return facts


def show(figures: Mapping[str, float], facts: Mapping[str, float]) -> None:
    print(f"{'':20} {'DL2':>8} {'Kueue':>8}  goal")
    for name, (kueue, goal) in REFERENCE.items():
        print(f"{name:20} {figures[name]:8.1f} {kueue:8.1f}  {goal}")
    for name, value in facts.items():
        print(f"  {name}: {value:.1f}")
    print(f"  load average: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the number of groups; 0.1 for a quick try"
    )
    parser.add_argument(
        "--timeout", type=float, default=900.0, help="seconds after which the load is given up"
    )
    parser.add_argument("--log", type=Path, help="where the operator logs to; default: a file that goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "operator.log"
        started = time.monotonic()
        figures, facts, report = measure(options.scale, options.timeout, log)
    show(figures, facts | {"seconds in all": time.monotonic() - started})
    if options.json:
        wanted = {name: round(value, 2) for name, value in figures.items() if name not in NOT_FIGURES}
        options.json.write_text(json.dumps({"figures": wanted}))
    if not report.complete:
        sys.exit(f"{report.groups - report.finished} of {report.groups} groups have not finished")


if __name__ == "__main__":
    main()
