"""What the end-to-end tests share: the operator as a process beside the cluster, jobs from the examples, waiting."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from dl2 import resources
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.processes import ProcessSpec
from dl2.embedded.waiting import wait_until

Raw = dict[str, Any]


@contextmanager
def operator(cluster: EmbeddedCluster, *options: str) -> Iterator[str]:
    """The operator as a supervised process of the cluster: killed, it comes back. Yields the process's name."""
    listen = f"127.0.0.1:{cluster.port('operator')}"
    argv = (sys.executable, "-m", "dl2", "run", "--kubeconfig", str(cluster.kubeconfig), "--listen", listen,
            "--log-format", "json", "--progress-seconds", "1", *options)  # fmt: skip
    cluster.processes.ensure(ProcessSpec(name="operator", argv=argv))
    try:
        yield "operator"
    finally:
        cluster.processes.remove("operator")


def digits(
    name: str, namespace: str, checkpoints: str, *, epochs: int = 12, step_seconds: float = 0.0
) -> Raw:
    """The example job, elsewhere, for so many epochs, slowed down so that a test can interfere."""
    text = (resources.directory("examples") / "dljob-digits.yaml").read_text()
    job: Raw = copy.deepcopy(next(yaml.safe_load_all(text)))
    job["metadata"] = {"name": name, "namespace": namespace}
    job["spec"]["queue"] = namespace
    job["spec"]["training"]["epochs"] = epochs
    template = job["spec"]["workers"]["template"]["spec"]
    template["volumes"][0]["hostPath"]["path"] = checkpoints
    template["containers"][0]["env"].append({"name": "DL2_STEP_SECONDS", "value": str(step_seconds)})
    return job


def queue(name: str) -> Raw:
    """A queue that takes what comes from the namespace of its name."""
    return {"apiVersion": "dl2.dev/v1alpha1", "kind": "TenantQueue", "metadata": {"name": name}, "spec": {}}


def apply(cluster: EmbeddedCluster, *objects: Raw) -> None:
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))


def get(cluster: EmbeddedCluster, *arguments: str) -> Raw:
    found: Raw = json.loads(cluster.kubectl("get", *arguments, "-o", "json"))
    return found


def _why(status: Raw) -> str:
    said = "; ".join(
        f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in status.get("conditions", ())
    )
    return f"it is {status.get('state', 'unknown')} ({said})"


def await_state(
    cluster: EmbeddedCluster, namespace: str, name: str, wanted: str, timeout: float = 180
) -> Raw:
    """Waits for a DLJob's printed state; on a time-out, `kubectl describe` tells why not."""

    def reached() -> bool | str:
        status = get(cluster, "dljob", "-n", namespace, name).get("status") or {}
        now = status.get("state")
        if now == "Failed" != wanted:
            described = cluster.kubectl("describe", "dljob", "-n", namespace, name)
            raise AssertionError(f"the job has failed:\n{described}")
        return now == wanted or _why(status)

    wait_until(reached, f"DLJob {namespace}/{name} to be {wanted}", timeout=timeout, interval=0.5)
    return get(cluster, "dljob", "-n", namespace, name)


def await_step(cluster: EmbeddedCluster, namespace: str, name: str, step: int) -> None:
    """Waits until the job has reported that many steps of training."""

    def reached() -> bool | str:
        status = get(cluster, "dljob", "-n", namespace, name).get("status") or {}
        done = (status.get("progress") or {}).get("step") or 0
        return done >= step or f"at step {done}: {_why(status)}"

    wait_until(reached, f"DLJob {namespace}/{name} to reach step {step}", timeout=180, interval=0.5)


def pods(cluster: EmbeddedCluster, namespace: str) -> dict[str, str]:
    """Name -> UID of a namespace's pods."""
    found = get(cluster, "pods", "-n", namespace)
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found["items"]}
