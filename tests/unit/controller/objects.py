"""Manifests in one line each, as the API server would print them, for tests of the controller."""

from __future__ import annotations

from itertools import count
from typing import Any

from dl2.api import names
from dl2.cluster.resources import DL_JOBS, POD_GROUPS, PODS, Resource
from dl2.cluster.store import Entry, Store

_versions = count(1)
NOW = 1_800_000_000.0


def raw(
    kind: str, name: str, spec: Any = None, status: Any = None, namespace: str = "team-a", **meta: Any
) -> dict[str, Any]:
    custom = kind in names.PLURALS
    return {
        "apiVersion": names.API_VERSION if custom else "v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": meta.pop("uid", f"uid-{name}"),
            "resourceVersion": str(next(_versions)),
            "generation": 1,
            "creationTimestamp": "2026-11-23T09:00:00Z",
            **meta,
        },
        "spec": spec or {},
        "status": status or {},
    }


def entry(resource: Resource, manifest: dict[str, Any]) -> Entry:
    store = Store()
    store.upsert(resource, manifest)
    (found,) = store.all(resource)
    assert not found.error, found.error
    return found


def template(cpu: str = "1", **spec: Any) -> dict[str, Any]:
    return {
        "spec": {
            "containers": [{"name": "main", "image": "trainer", "resources": {"requests": {"cpu": cpu}}}],
            **spec,
        }
    }


def job(
    workers: int = 2, servers: int = 1, runtime: str = "static", status: Any = None, **spec: Any
) -> Entry:
    body = {
        "runtime": runtime,
        "workers": {"min": 1, "max": 8, "initial": workers, "template": template()},
        "servers": {"min": 1, "max": 4, "initial": servers, "template": template()},
        **spec,
    }
    return entry(DL_JOBS, raw("DLJob", "j", body, status))


def condition(
    kind: str, status: bool = True, reason: str = "Because", at: str = "2026-11-23T09:00:00Z"
) -> dict[str, Any]:
    return {"type": kind, "status": str(status), "reason": reason, "message": "", "lastTransitionTime": at}


def group(
    members: dict[str, int],
    admitted: dict[str, int] | None = None,
    domains: Any = None,
    more: Any = (),
    **spec: Any,
) -> Entry:
    """A PodGroup of one-CPU members; `admitted` None: decided upon, but not admitted. `more`: conditions."""
    body = {
        "members": [{"name": m, "count": n, "requests": {"cpu": "1"}} for m, n in members.items()],
        **spec,
    }
    status: dict[str, Any] = {"conditions": list(more)}
    if "QuotaReserved" not in {c["type"] for c in more}:
        reason = "WaitingForQuota" if admitted is None else "QuotaReserved"
        status["conditions"].append(condition("QuotaReserved", admitted is not None, reason))
    if admitted is not None:
        status["conditions"].append(condition("Admitted"))
        status["members"] = [
            {"name": m, "admitted": n, **({"domain": domains[m]} if domains and m in domains else {})}
            for m, n in admitted.items()
        ]
    return entry(POD_GROUPS, raw("PodGroup", "j", body, status, ownerReferences=[_owned_by_job()]))


def _owned_by_job() -> dict[str, Any]:
    return {"apiVersion": names.API_VERSION, "kind": "DLJob", "name": "j", "uid": "uid-j", "controller": True}


def pod(
    member: str,
    index: int,
    state: str = "gated",
    cpu: str = "1",
    attempt: int = 0,
    owned: bool = True,
    **extra: Any,
) -> Any:
    """`state`: gated, released, running, succeeded, failed; a trailing `-` means it is being deleted."""
    name = f"j-{member}-{index}"
    going, state = state.endswith("-"), state.rstrip("-")
    meta: dict[str, Any] = {
        "uid": f"uid-{name}-{attempt}",
        "labels": {
            names.LABEL_POD_GROUP: "j",
            names.LABEL_MEMBER: member,
            names.LABEL_INDEX: str(index),
            names.LABEL_ATTEMPT: str(attempt),
        },
        "ownerReferences": [_owned_by_job()] if owned else [],
    }
    if going:
        meta["deletionTimestamp"] = "2026-11-23T09:00:00Z"
    spec: dict[str, Any] = {**template(cpu)["spec"], **extra}
    status: dict[str, Any] = {"phase": "Pending"}
    if state == "gated":
        spec["schedulingGates"] = [{"name": names.GATE}]
    else:
        meta["annotations"] = {names.RELEASED: "2026-11-23T09:00:00Z"}
    if state in ("running", "succeeded", "failed"):
        spec["nodeName"] = "n"
        status = {"phase": state.capitalize()}
    if state == "running":
        status["conditions"] = [{"type": "Ready", "status": "True"}]
    if state == "failed":
        ended = {"exitCode": 1, "reason": "Error"}
        status["containerStatuses"] = [{"name": "main", "state": {"terminated": ended}}]
    return entry(PODS, raw("Pod", name, spec, status, **meta)).value
