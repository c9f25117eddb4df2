"""MXNet parameter-server jobs: workers, servers and one coordinator.

Runtime `static` is MXNet's own ps-lite: the coordinator pod runs the ps-lite scheduler, every pod gets the DMLC_*
variables, and a lost pod means that the whole job starts again from its checkpoint. Runtime `elastic` is dl2_runtime: it
gets DL2_* variables and a token, replaces single pods, and lets members join and leave while it trains.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dl2.api import DLJob, names
from dl2.controller.frameworks import Role
from dl2.controller.settings import PodSettings

PROGRESS_PORT = 8470  # the coordinator's, for members and for HTTP
SERVER_PORT = 8471
PS_PORT = 9091
_DMLC_ROLE = {names.COORDINATOR: "scheduler", names.SERVER: "server", names.WORKER: "worker"}
_COORDINATOR_REQUESTS = {"cpu": "100m", "memory": "256Mi"}
_TOKEN_VOLUME, _TOKEN_FOLDER = "dl2-token", "/var/run/secrets/dl2.dev"
_STATE_VOLUME, _STATE_FOLDER = "dl2-state", "/var/run/dl2.dev"
_READY_FILE = f"{_STATE_FOLDER}/joined"
_PROBE = {"periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 2}
_DEFAULT_GRACE, _LAST_SECONDS = 30, 5  # of a pod; what a member leaves of it for its process to end
_POD_IP = {"fieldRef": {"fieldPath": "status.podIP"}}


class MXNet:
    """Source of the variables: ps-lite's docs/env.md and MXNet's distributed training guide."""

    name = "mxnet"

    def __init__(self, runtime: str) -> None:
        self.static = runtime == "static"
        self.restarts_together = self.static

    def roles(self, job: DLJob) -> tuple[Role, ...]:
        spec = job.spec
        workers = self._role(names.WORKER, spec.workers)
        servers = self._role(names.SERVER, spec.servers) if spec.servers else None
        base = spec.servers.template if spec.servers and spec.servers.template else spec.workers.template
        coordinator = Role(names.COORDINATOR, 1, 1, _light(base))
        return tuple(role for role in (coordinator, servers, workers) if role and role.count)

    def _role(self, name: str, shape: Any) -> Role:
        wanted = min(max(shape.start, shape.min), shape.maximum)
        # ps-lite counts its members once, at the start: it can start only whole
        return Role(name, wanted, wanted if self.static else min(shape.min, wanted), shape.template)

    def pod(
        self, job: DLJob, role: Role, index: int, shape: Mapping[str, int], settings: PodSettings
    ) -> dict[str, Any]:
        name, namespace = job.metadata.name, job.metadata.namespace
        template = copy.deepcopy(dict(role.template))
        spec = template.setdefault("spec", {})
        coordinator = f"{name}-{names.COORDINATOR}-0.{name}.{namespace}.svc"
        variables = self._variables(job, role, index, shape, coordinator)
        for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
            own = {v.get("name") for v in container.get("env") or ()}
            added = [v for v in variables if v["name"] not in own]
            container["env"] = [*added, *(container.get("env") or ())]
        if not self.static:
            self._make_member(job, role, spec)
        spec["restartPolicy"] = "Never"  # the operator counts restarts; the kubelet must not
        spec["hostname"] = f"{name}-{role.name}-{index}"
        spec["subdomain"] = name
        if settings.scheduler_name and not spec.get("schedulerName"):
            spec["schedulerName"] = settings.scheduler_name
        if job.spec.priority_class_name:
            spec["priorityClassName"] = job.spec.priority_class_name
        return {"metadata": dict(template.get("metadata") or {}), "spec": spec}

    def _make_member(self, job: DLJob, role: Role, spec: dict[str, Any]) -> None:
        """What a member of dl2_runtime needs beside variables: its token, and a probe that says that it has joined."""
        mounts = [
            {"name": _TOKEN_VOLUME, "mountPath": _TOKEN_FOLDER, "readOnly": True},
            {"name": _STATE_VOLUME, "mountPath": _STATE_FOLDER},
        ]
        for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
            container["volumeMounts"] = [*(container.get("volumeMounts") or ()), *mounts]
        token = {"name": _TOKEN_VOLUME, "secret": {"secretName": self.secret(job), "defaultMode": 0o444}}
        state = {"name": _STATE_VOLUME, "emptyDir": {"sizeLimit": "1Mi"}}
        spec["volumes"] = [*(spec.get("volumes") or ()), token, state]
        joined: dict[str, Any] = {"exec": {"command": ["test", "-e", _READY_FILE]}}
        if role.name == names.COORDINATOR:
            joined = {"httpGet": {"path": "/v1/status", "port": PROGRESS_PORT}}
        spec["containers"][0].setdefault("readinessProbe", joined | _PROBE)

    def _variables(
        self, job: DLJob, role: Role, index: int, shape: Mapping[str, int], coordinator: str
    ) -> list[dict[str, Any]]:
        values = {
            "DL2_ROLE": role.name,
            "DL2_JOB": job.metadata.name,
            "DL2_JOB_UID": job.metadata.uid,  # names a checkpoint folder that no later job of this name finds
            "DL2_NAMESPACE": job.metadata.namespace,
            "DL2_INDEX": str(index),
            "DL2_COORDINATOR": f"{coordinator}:{PROGRESS_PORT}",
        }
        training = job.spec.training
        if training and training.epochs is not None:
            values["DL2_EPOCHS"] = str(training.epochs)
        if training and training.steps_per_epoch is not None:
            values["DL2_STEPS_PER_EPOCH"] = str(training.steps_per_epoch)
        if self.static:
            values |= {
                "DMLC_ROLE": _DMLC_ROLE[role.name],
                "DMLC_PS_ROOT_URI": coordinator,
                "DMLC_PS_ROOT_PORT": str(PS_PORT),
                "DMLC_NUM_WORKER": str(shape.get(names.WORKER, 0)),
                "DMLC_NUM_SERVER": str(shape.get(names.SERVER, 0)),
                "DMLC_USE_KUBERNETES": "1",
            }
        else:
            # Those that are there from the start; whoever is admitted later joins a job that trains already.
            founders = {each.name: str(each.min_count) for each in self.roles(job)}
            values |= {
                "DL2_WORKERS": founders[names.WORKER],
                "DL2_SERVERS": founders.get(names.SERVER, "0"),
                "DL2_TOKEN_FILE": f"{_TOKEN_FOLDER}/token",
                "DL2_READY_FILE": _READY_FILE,
                "DL2_GRACE_SECONDS": str(_grace(role.template)),
            }
        variables: list[dict[str, Any]] = [{"name": k, "value": v} for k, v in values.items()]
        variables.append({"name": "DMLC_NODE_HOST" if self.static else "DL2_HOST", "valueFrom": _POD_IP})
        return variables

    def secret(self, job: DLJob) -> str | None:
        return None if self.static else f"{job.metadata.name}-token-{job.metadata.uid[:8]}"

    def service(self, job: DLJob) -> dict[str, Any]:
        """Headless, and with addresses before readiness: members look each other up while they start."""
        ports = {"progress": PROGRESS_PORT, "ps": PS_PORT if self.static else SERVER_PORT}
        return {
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": {names.LABEL_POD_GROUP: job.metadata.name},
                "ports": [{"name": name, "port": port} for name, port in ports.items()],
            }
        }


def _grace(template: Mapping[str, Any]) -> int:
    """Seconds that a member has for leaving: a little less than the kubelet gives its pod."""
    given = (template.get("spec") or {}).get("terminationGracePeriodSeconds", _DEFAULT_GRACE)
    return max(1, int(given) - _LAST_SECONDS)


def _light(template: Mapping[str, Any]) -> dict[str, Any]:
    """The coordinator is made like a server, but trains nothing: a little of what a server asks for, no accelerator."""
    light = copy.deepcopy(dict(template))
    for position, container in enumerate(light.get("spec", {}).get("containers", ())):
        resources = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        requests = {name: amount for name, amount in _COORDINATOR_REQUESTS.items() if name in asked}
        container["resources"] = {"requests": requests} if position == 0 and requests else {}
        container.pop("livenessProbe", None)
        container.pop("readinessProbe", None)
    return light
