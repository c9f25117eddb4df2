"""The programs that admit: the operator, and Kueue as its own benchmark runs it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dl2 import resources
from dl2.embedded.build import GoModule
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.waiting import Silent, wait_until
from load.ports import free_port
from load.systems import queues

SPACE = "dl2-system"


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


class Admitting:
    """A program that admits, as a process that logs to a file."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **(environment or {})}
            )
        self.usage = Process(self._process.pid)

    def check(self) -> None:
        """Raises RuntimeError when it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._process.args!r} has ended: {self._log.read_text()[-2000:]}")

    def metrics(self) -> dict[tuple[str, ...], float]:
        """(name, label values) -> value."""
        return {}

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Operator(Admitting):
    """`dl2 run` as users run it."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "dl2", "run", "--kubeconfig", str(kubeconfig)]
        super().__init__([*command, "--listen", self.address], log)

    def ready(self) -> bool | str:
        self.check()
        try:
            self._get("/readyz")
        except (urllib.error.URLError, OSError) as error:
            return str(error)
        return True

    def metrics(self) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self._get("/metrics"))
            for sample in family.samples
        }

    def _get(self, path: str) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.address}{path}", timeout=10) as response:
            return str(response.read().decode())


class Peer:
    """Kueue: where its program and its kinds come from."""

    package = "sigs.k8s.io/kueue/test/performance/scheduler/minimalkueue"

    def __init__(self) -> None:
        self._module = GoModule(Path(__file__).resolve().parent.parent / "peers" / "kueue")

    def program(self) -> Path:
        """Built once for what go.mod and go.sum pin."""
        digest = hashlib.sha256()
        for file in ("go.mod", "go.sum"):
            digest.update((self._module.directory / file).read_bytes())
        target = resources.cache() / "peers" / f"kueue-{digest.hexdigest()[:16]}" / "minimalkueue"
        if not target.exists():
            print("building Kueue from its sources", file=sys.stderr)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._module.build(self.package, "-s -w", target, Silent())
        return target

    def kinds(self) -> Path:
        """The folder of its CustomResourceDefinitions."""
        command = ["go", "mod", "download", "-json", "sigs.k8s.io/kueue"]
        told = json.loads(subprocess.check_output(command, cwd=self._module.directory))
        return Path(told["Dir"]) / "config" / "components" / "crd" / "bases"


@contextmanager
def dl2_admits(cluster: EmbeddedCluster, log: Path) -> Iterator[Admitting]:
    kubeconfig = log.with_suffix(".kubeconfig")
    cluster.write_service_account_kubeconfig(kubeconfig, SPACE, "dl2-operator")
    running = Operator(kubeconfig, log)
    try:
        wait_until(running.ready, "the operator's readiness", 60)
        yield running
    finally:
        running.stop()


@contextmanager
def kueue_admits(cluster: EmbeddedCluster, log: Path) -> Iterator[Admitting]:
    kubeconfig = log.with_suffix(".kubeconfig")
    cluster.write_service_account_kubeconfig(kubeconfig, SPACE, "load")
    running = Admitting([str(Peer().program())], log, {"KUBECONFIG": str(kubeconfig)})

    def active() -> bool:
        running.check()
        path = "{.items[*].status.conditions[?(@.type=='Active')].status}"
        told = cluster.kubectl("get", "clusterqueues", "-o", f"jsonpath={path}")
        return told.split() == ["True"] * len(list(queues()))

    try:
        wait_until(active, "Kueue's queues", 60)
        yield running
    finally:
        running.stop()
