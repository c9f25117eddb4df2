"""The operator as a real process on a real API server, and the short sentences its tests are written in."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from dl2.api import conditions, names
from dl2.embedded.cluster import EmbeddedCluster

Object = dict[str, Any]
T = TypeVar("T")
PATHS = {
    "TenantQueue": ("/apis/dl2.dev/v1alpha1", "tenantqueues", False),
    "PodGroup": ("/apis/dl2.dev/v1alpha1", "podgroups", True),
    "ScalingPolicy": ("/apis/dl2.dev/v1alpha1", "scalingpolicies", False),
    "DLJob": ("/apis/dl2.dev/v1alpha1", "dljobs", True),
    "Pod": ("/api/v1", "pods", True),
    "Service": ("/api/v1", "services", True),
    "Namespace": ("/api/v1", "namespaces", False),
    "Event": ("/apis/events.k8s.io/v1", "events", True),
    "Job": ("/apis/batch/v1", "jobs", True),
    "PriorityClass": ("/apis/scheduling.k8s.io/v1", "priorityclasses", False),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases", True),
}
QUIET_SECONDS = 3.0


def eventually(probe: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """The first true answer of `probe`. Fails after `seconds`, naming what was waited for and the last answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s (last answer: {answer!r})")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def describe_nodes(cluster: EmbeddedCluster) -> str:
    """The nodes in a line each, or why nobody can tell."""
    columns = {
        "NAME": ".metadata.name",
        "VERSION": ".metadata.resourceVersion",
        "READY": '.status.conditions[?(@.type=="Ready")].status',
        "CORDONED": ".spec.unschedulable",
        "TAINTS": ".spec.taints[*].key",
        "CPU": ".status.allocatable.cpu",
    }
    try:
        return cluster.kubectl(
            "get", "nodes", "-o", "custom-columns=" + ",".join(map(":".join, columns.items()))
        )
    except Exception as error:
        return str(error)


class Process:
    """`python -m ...` in a process group of its own, logging to a file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log, self._arguments = log, arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments],
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=environment,
            )

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """kill -9: no last word."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(30)

    def stop(self) -> None:
        """SIGTERM, and the wait for its end."""
        self.signal(signal.SIGTERM)
        if self._process is not None:
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def tail(self, lines: int = 40) -> str:
        return (
            "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""
        )


class Operator(Process):
    """`dl2 run`, and what it tells of itself."""

    def __init__(self, cluster: EmbeddedCluster, log: Path, *options: str) -> None:
        self.port = free_port()
        super().__init__(
            log, "dl2", "run", "--kubeconfig", str(cluster.kubeconfig), "--listen", f"127.0.0.1:{self.port}",
            "--log-format", "json", "--trust-status-url", "--progress-seconds", "0.5", *options,
        )  # fmt: skip

    def page(self, path: str) -> tuple[int, str]:
        """HTTP status and text of a page; (0, reason) where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def start(self) -> None:
        super().start()
        self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.alive, f"the operator has ended ({self.exit_code}):\n{self.tail()}"
            return self.page("/readyz")[0] == 200

        eventually(ready, "the operator becoming ready")

    def complaints(self, lines: int = 20) -> str:
        """The last lines of its log that are not at level info."""
        written = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([line for line in written if '"level":"info"' not in line][-lines:])

    def freshness(self) -> str:
        """What its metrics say of its watches and LISTs, and of what it knows."""
        _, text = self.page("/metrics")
        told = ("dl2_watch", "dl2_last_list", "dl2_failed_passes", "dl2_open_writes", "dl2_store_objects")
        return "\n".join(line for line in text.splitlines() if line.startswith(told))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of `name` that carry `labels`."""
        _, text = self.page("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def writes(self, **labels: str) -> float:
        return self.metric("dl2_writes_total", **labels)

    def wait_quiet(self, seconds: float = 60) -> None:
        """Nothing moves any more: no write, and none in flight, for QUIET_SECONDS on end."""
        deadline = time.monotonic() + seconds
        seen, since = -1.0, time.monotonic()
        while time.monotonic() - since < QUIET_SECONDS:
            assert self.alive, f"the operator has ended ({self.exit_code}):\n{self.tail()}"
            now = self.writes() + self.metric("dl2_open_writes") * 1e6
            if now != seen:
                seen, since = now, time.monotonic()
            assert time.monotonic() < deadline, f"it never stops writing:\n{self.tail()}"
            time.sleep(0.1)


class ApiRefusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """Objects of one namespace (and of none) as any client writes them."""

    def __init__(self, http: urllib3.PoolManager, server: str, namespace: str) -> None:
        self._http, self._server, self.namespace = http, server, namespace

    @staticmethod
    def connections(cluster: EmbeddedCluster) -> urllib3.PoolManager:
        """As administrator of the cluster; requests that meet a restarting API server are tried again."""
        return urllib3.PoolManager(
            maxsize=8,
            ca_certs=str(cluster.pki.ca),
            cert_file=str(cluster.admin.certificate),
            key_file=str(cluster.admin.key),
            retries=urllib3.Retry(connect=40, read=40, redirect=0, status=0, other=0, backoff_factor=0.1,
                                  backoff_max=1, allowed_methods=None),
        )  # fmt: skip

    def _path(self, kind: str, name: str = "", subresource: str = "", namespace: str = "") -> str:
        root, plural, namespaced = PATHS[kind]
        scope = f"/namespaces/{namespace or self.namespace}" if namespaced else ""
        return "/".join(part for part in (f"{root}{scope}/{plural}", name, subresource) if part)

    def call(self, verb: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        answer = self._http.request(
            verb,
            self._server + path,
            headers={"Accept": "application/json", "Content-Type": content},
            body=None if body is None else json.dumps(body),
        )
        if answer.status >= 300:
            raise ApiRefusal(answer.status, answer.data.decode())
        return answer.json()

    def apply(self, *objects: Object) -> None:
        """Server-side apply, as a user."""
        for raw in objects:
            kind, name = raw["kind"], raw["metadata"]["name"]
            path = self._path(kind, name, namespace=raw["metadata"].get("namespace") or "")
            self.call("PATCH", f"{path}?fieldManager=user&force=true", raw, "application/apply-patch+yaml")

    def find(self, kind: str, name: str) -> Object | None:
        try:
            found: Object = self.call("GET", self._path(kind, name))
        except ApiRefusal as error:
            if error.status != 404:
                raise
            return None
        return found

    def get(self, kind: str, name: str) -> Object:
        found = self.find(kind, name)
        assert found is not None, f"there is no {kind} {name}"
        return found

    def list(self, kind: str) -> list[Object]:
        items: list[Object] = self.call("GET", self._path(kind))["items"]
        return items

    def patch(self, kind: str, name: str, patch: Object, subresource: str = "") -> Object:
        path = self._path(kind, name, subresource)
        patched: Object = self.call("PATCH", path, patch, "application/merge-patch+json")
        return patched

    def delete(self, kind: str, name: str, propagation: str = "Background") -> None:
        self.call("DELETE", self._path(kind, name), {"propagationPolicy": propagation})

    # -- what is there ------------------------------------------------------------------------------------------
    def pods(self, owner: str = "") -> dict[str, Object]:
        """Pods by name, or those of one group."""
        return {
            pod["metadata"]["name"]: pod
            for pod in self.list("Pod")
            if not owner or (pod["metadata"].get("labels") or {}).get(names.LABEL_POD_GROUP) == owner
        }

    def uids(self, owner: str = "") -> dict[str, str]:
        return {name: pod["metadata"]["uid"] for name, pod in self.pods(owner).items()}

    def status(self, kind: str, name: str) -> Object:
        return (self.find(kind, name) or {}).get("status") or {}

    def state(self, name: str, kind: str = "DLJob") -> str:
        return str(self.status(kind, name).get("state") or "")

    def condition(self, kind: str, name: str, of: str) -> Object:
        return dict(conditions.get(self.status(kind, name).get("conditions") or (), of) or {})

    def used(self, queue: str, resource: str = "cpu") -> str:
        resources = self.status("TenantQueue", queue).get("resources") or {}
        return str((resources.get(resource) or {}).get("used") or "0")

    # -- waiting ------------------------------------------------------------------------------------------------
    def wait_state(self, state: str, *jobs: str, kind: str = "DLJob") -> None:
        for name in jobs:

            def there(name: str = name) -> bool:
                seen = self.state(name, kind)
                assert seen == state or seen not in ("Failed", "Succeeded", "Finished"), self.status(
                    kind, name
                )
                return seen == state

            try:
                eventually(there, f"{kind} {name} becoming {state}")
            except AssertionError as error:
                raise AssertionError(f"{error}; status: {json.dumps(self.status(kind, name))}") from None

    def wait_gone(self, kind: str, name: str) -> None:
        eventually(lambda: self.find(kind, name) is None, f"{kind} {name} going")

    def finish(self, *pods: str, phase: str = "Succeeded") -> None:
        """What a kubelet writes when the containers of a pod have ended."""
        for name in pods:
            container = self.get("Pod", name)["spec"]["containers"][0]["name"]
            ended = {
                "exitCode": 0 if phase == "Succeeded" else 3,
                "reason": "Completed" if phase == "Succeeded" else "Error",
            }
            status = {"name": container, "image": "none", "imageID": "", "ready": False, "restartCount": 0,
                      "state": {"terminated": ended}}  # fmt: skip
            ready = [{"type": "Ready", "status": "False", "reason": "PodCompleted"}]
            self.patch(
                "Pod",
                name,
                {"status": {"phase": phase, "conditions": ready, "containerStatuses": [status]}},
                "status",
            )

    def finish_job(self, job: str) -> None:
        self.finish(*(name for name, pod in self.pods(job).items() if pod["status"]["phase"] == "Running"))


def gated(pod: Object) -> bool:
    return any(gate["name"] == names.GATE for gate in pod["spec"].get("schedulingGates") or ())


def running(pod: Object) -> bool:
    return bool(pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp"))


# -- manifests ----------------------------------------------------------------------------------------------------
def queue(name: str, cpu: str | None = "8", **spec: Any) -> Object:
    limits = {"resources": {"cpu": {"max": cpu}}} if cpu else {}
    return _custom("TenantQueue", name, {**limits, **spec})


def template(cpu: str = "1", **spec: Any) -> Object:
    container = {"name": "main", "image": "none", "resources": {"requests": {"cpu": cpu}}}
    return {"spec": {"containers": [container], "terminationGracePeriodSeconds": 1, **spec}}


def job(
    name: str,
    workers: int = 2,
    servers: int = 1,
    cpu: str = "1",
    nodes: dict[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A static DLJob on `nodes` (a node selector); its coordinator asks for 100m."""
    where = {"nodeSelector": nodes} if nodes else {}
    body = {
        "runtime": "static",
        "workers": {
            "min": 1,
            "max": max(workers, 8),
            "initial": workers,
            "template": template(cpu, **where),
        },
        "servers": {"min": 1, "initial": servers, "template": template(cpu, **where)},
        **spec,
    }
    return _custom("DLJob", name, body)


def group(name: str, count: int, cpu: str = "1", **spec: Any) -> Object:
    """A PodGroup of `count` workers."""
    return _custom(
        "PodGroup", name, {"members": [{"name": "worker", "count": count, "requests": {"cpu": cpu}}], **spec}
    )


def member_template(group: str, cpu: str = "1", **spec: Any) -> Object:
    labels = {names.LABEL_POD_GROUP: group, names.LABEL_MEMBER: "worker"}
    made = template(cpu, schedulingGates=[{"name": names.GATE}], **spec)
    return {"metadata": {"labels": labels}, **made}


def pod(name: str, group: str, cpu: str = "1", **spec: Any) -> Object:
    """A bare pod of a group's worker member."""
    made = member_template(group, cpu, restartPolicy="Never", **spec)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **made["metadata"]},
        "spec": made["spec"],
    }


def _custom(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


@contextmanager
def trainers(cluster: EmbeddedCluster, log: Path, speedup: float = 20.0) -> Iterator[Process]:
    """The trainer simulator, for as long as the block runs."""
    process = Process(
        log, "dl2.embedded.trainer_simulator", "--kubeconfig", str(cluster.kubeconfig), "--port", str(free_port()),
        "--speedup", str(speedup), "--interval", "0.3",
    )  # fmt: skip
    process.start()
    try:
        yield process
        assert process.alive, process.tail()
    finally:
        process.stop()
