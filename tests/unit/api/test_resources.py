"""What a pod reserves of its node, container by container and while it is resized."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.api.core import parse_pod
from dl2.api.resources import pod_requests

Raw = dict[str, Any]


def container(cpu: str, *, sidecar: bool = False, name: str = "main") -> Raw:
    always = {"restartPolicy": "Always"} if sidecar else {}
    return {"name": name, "resources": {"requests": {"cpu": cpu}}, **always}


def pod(*containers: Raw, starting: tuple[Raw, ...] = (), **more: Any) -> Raw:
    return {"containers": list(containers), "initContainers": list(starting), **more}


SIDECAR = container("1", sidecar=True, name="log")


@pytest.mark.parametrize(
    ("spec", "milli"),
    [
        (pod(), 0),
        (pod(container("1"), container("2")), 3000),
        (pod(container("1"), starting=(container("4"),)), 4000),
        (pod(container("3"), starting=(container("2"), container("2"))), 3000),
        (pod(container("2"), starting=(SIDECAR,)), 3000),
        (pod(container("1"), starting=(SIDECAR, container("4"))), 5000),
        (pod(container("1"), starting=(container("4"), SIDECAR)), 4000),
        (pod(container("1"), starting=(container("4"),), overhead={"cpu": "250m"}), 4250),
        (pod(container("1"), container("2"), resources={"requests": {"cpu": "5"}}), 5000),
        (pod(container("1"), resources={"requests": {"cpu": "5"}}, overhead={"cpu": "1"}), 6000),
        (pod({"name": "main", "resources": {"limits": {"cpu": "2"}}}), 2000),
        (pod({"name": "main", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}}), 1000),
    ],
    ids=["nothing", "containers add up", "a larger init container", "init containers follow one another",
         "a sidecar stays", "an init container beside a sidecar", "an init container before the sidecar", "overhead",
         "the pod as a whole", "the pod as a whole and overhead", "a limit is a request", "a request below its limit"],
)  # fmt: skip
def test_what_kube_scheduler_reserves(spec: Raw, milli: int) -> None:
    assert pod_requests(spec).get("cpu", 0) == milli


def told(name: str = "main", *, allocated: str | None = None, actual: str | None = None) -> Raw:
    return {
        "name": name,
        **({"allocatedResources": {"cpu": allocated}} if allocated else {}),
        **({"resources": {"requests": {"cpu": actual}}} if actual else {}),
    }


def resizing(*statuses: Raw, pending: str = "", **more: Any) -> Raw:
    conditions = [{"type": "PodResizePending", "status": "True", "reason": pending}] if pending else []
    return {"containerStatuses": list(statuses), "conditions": conditions, **more}


PLAIN, TWO = pod(container("2")), pod(container("2"), container("1", name="other"))
WHOLE = pod(container("1"), resources={"requests": {"cpu": "4"}}, overhead={"cpu": "1"})


def whole(allocated: str, actual: str) -> Raw:
    return {"allocatedResources": {"cpu": allocated}, "resources": {"requests": {"cpu": actual}}}


@pytest.mark.parametrize(
    ("spec", "status", "milli"),
    [
        (PLAIN, {}, 2000),
        (PLAIN, resizing(told()), 2000),
        (PLAIN, resizing(told(allocated="2", actual="2")), 2000),
        (PLAIN, resizing(told(allocated="1", actual="1"), pending="Deferred"), 2000),
        (PLAIN, resizing(told(allocated="4", actual="4")), 4000),
        (PLAIN, resizing(told(allocated="2", actual="4")), 4000),
        (PLAIN, resizing(told(allocated="4")), 4000),
        (PLAIN, resizing(told(allocated="1", actual="1"), pending="Infeasible"), 1000),
        (PLAIN, resizing(pending="Infeasible"), 2000),
        (TWO, resizing(told(allocated="1", actual="1"), told("other", allocated="3", actual="3")), 4000),
        (TWO, resizing(told(allocated="4", actual="4")), 5000),
        (WHOLE, resizing(told(allocated="1", actual="1"), **whole("7", "6")), 7000),
        (WHOLE, resizing(told(allocated="1", actual="1"), pending="Infeasible", **whole("3", "2")), 3000),
        (WHOLE, resizing(pending="Infeasible"), 5000),
        (pod(container("1"), starting=(SIDECAR,)),
         {"initContainerStatuses": [told("log", allocated="2", actual="3")]}, 4000),
    ],
    ids=["no status yet", "a node that does not resize", "settled", "growth deferred", "shrinking",
         "shrinking, allocated", "shrinking, not told what it has", "growth that is infeasible",
         "infeasible, nothing told", "one grows while the other shrinks", "not all containers told",
         "the pod as a whole shrinks", "the pod as a whole cannot grow", "the pod as a whole, nothing told",
         "a sidecar shrinks"],
)  # fmt: skip
def test_a_pod_that_is_resized_in_place_holds_the_largest_of_what_is_told(
    spec: Raw, status: Raw, milli: int
) -> None:
    assert pod_requests(spec, status)["cpu"] == milli
    assert parse_pod({"metadata": {"name": "p"}, "spec": spec, "status": status}).requests["cpu"] == milli
