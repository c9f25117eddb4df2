"""The programs that admit: the operator, and Kueue as its own benchmark runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dl2.embedded.binaries import cache_key, cache_root
from dl2.embedded.build import GoModule
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.waiting import Silent, wait_until
from load.ports import free_port
from load.systems import Dl2, Kueue, System, queues
from load.usage import Usage

SPACE = "dl2-system"


class Admitting:
    """A program that admits, as a process that logs to a file."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **(environment or {})}
            )
        self.usage = Usage(self._process.pid)

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


_KUEUE = GoModule(Path(__file__).resolve().parent.parent / "peers" / "kueue")
_KUEUE_PACKAGE = "sigs.k8s.io/kueue/test/performance/scheduler/minimalkueue"


def kueue_program() -> Path:
    """Built once for what go.mod and go.sum pin."""
    key = cache_key(_KUEUE.directory, "kueue", _KUEUE.version())
    target = cache_root() / key / "minimalkueue"
    if not target.exists():
        print("building Kueue from its sources", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        _KUEUE.build(_KUEUE_PACKAGE, "-s -w", target, Silent())
    return target


def kueue_kinds() -> Path:
    """The folder of its CustomResourceDefinitions."""
    command = ["go", "mod", "download", "-json", "sigs.k8s.io/kueue"]
    told = json.loads(subprocess.check_output(command, cwd=_KUEUE.directory))
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
    running = Admitting([str(kueue_program())], log, {"KUBECONFIG": str(kubeconfig)})

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


def install_kueue(cluster: EmbeddedCluster) -> None:
    """Its kinds; and its program, so that nobody waits for that later."""
    kueue_program()
    cluster.kubectl("apply", "--server-side", "-f", str(kueue_kinds()))
    cluster.kubectl("wait", "--for=condition=Established", "--all", "crds", "--timeout=60s")


@dataclass(frozen=True)
class Contender:
    """A system and how it comes to run on a cluster."""

    system: System
    install: Callable[[EmbeddedCluster], None]
    admits: Callable[[EmbeddedCluster, Path], AbstractContextManager[Admitting]]


KUEUE = Contender(Kueue(), install_kueue, kueue_admits)
DL2 = Contender(Dl2(), lambda cluster: None, dl2_admits)  # its kinds are in every embedded cluster
