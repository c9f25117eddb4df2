"""PodGroups under the running operator: gangs, order, quota, and pods that somebody else makes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dl2.api import names
from dl2.embedded.cluster import EmbeddedCluster
from tests.integration import operator_conditions
from tests.integration.operator_harness import (
    Api,
    Operator,
    eventually,
    gated,
    group,
    job,
    member_template,
    pod,
    queue,
    running,
)

pytestmark = pytest.mark.integration


def released(api: Api, of: str) -> list[str]:
    return sorted(name for name, found in api.pods(of).items() if not gated(found))


def priority_class(name: str, value: int) -> dict[str, Any]:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
    }


def test_a_gang_waits_whole_and_starts_whole(api: Api, operator: Operator) -> None:
    api.apply(group("gang", 3), pod("p0", "gang"), pod("p1", "gang"))
    api.wait_state("Admitted", "gang", kind="PodGroup")
    operator.wait_quiet()
    assert released(api, "gang") == []
    api.apply(pod("p2", "gang"))
    api.wait_state("Ready", "gang", kind="PodGroup")
    assert released(api, "gang") == ["p0", "p1", "p2"]


def test_a_gang_beyond_the_room_that_is_there_waits_as_a_whole(
    embedded_cluster: EmbeddedCluster, simulated_nodes: Any, api: Api, operator: Operator
) -> None:
    """Two nodes of four CPUs, three pods of three: the quota would do, the nodes do not."""
    simulated_nodes(2, cpus=4, labels={"only-for": api.namespace})
    api.apply(queue(api.namespace, "9"))
    only = {"nodeSelector": {"only-for": api.namespace}}
    gang = group("gang", 3, "3")
    gang["spec"]["members"][0] |= only
    api.apply(gang, *(pod(f"p{n}", "gang", "3", **only) for n in range(3)))
    eventually(
        lambda: api.condition("PodGroup", "gang", "QuotaReserved").get("reason") == "NoFittingNodes",
        "the refusal",
    )
    operator.wait_quiet()
    assert released(api, "gang") == []
    simulated_nodes(1, cpus=4, labels={"only-for": api.namespace})
    api.wait_state("Ready", "gang", kind="PodGroup")


def test_max_of_a_queue_is_respected_and_whatever_ends_makes_room(api: Api, operator: Operator) -> None:
    api.apply(queue(api.namespace, "2"))
    for n in range(3):
        api.apply(group(f"g{n}", 1), pod(f"p{n}", f"g{n}"))
        eventually(lambda n=n: api.state(f"g{n}", "PodGroup"), f"g{n} being looked at")
    api.wait_state("Ready", "g0", "g1", kind="PodGroup")
    eventually(
        lambda: api.condition("PodGroup", "g2", "QuotaReserved").get("reason") == "WaitingForQuota",
        "g2 waiting",
    )
    operator.wait_quiet()
    assert (api.used(api.namespace), api.status("TenantQueue", api.namespace)["pending"]) == ("2", 1)
    assert api.status("PodGroup", "g2")["queuePosition"] == 1
    api.finish("p0")
    api.wait_state("Finished", "g0", kind="PodGroup")
    api.wait_state("Ready", "g2", kind="PodGroup")
    eventually(lambda: api.used(api.namespace) == "2", "g2 being charged in its place")


def test_priority_comes_first_then_age(api: Api, operator: Operator) -> None:
    high = f"high-{api.namespace}"
    api.apply(priority_class(high, 1000))
    api.apply(queue(api.namespace, "1", preemption={"withinQueue": "Never", "reclaim": "Never"}))
    api.apply(group("blocker", 1), pod("blocker", "blocker"))
    api.wait_state("Ready", "blocker", kind="PodGroup")
    order = []
    for name, more in (("first", {}), ("second", {}), ("urgent", {"priorityClassName": high})):
        api.apply(group(name, 1, **more), pod(name, name))
        eventually(lambda name=name: api.status("PodGroup", name).get("queuePosition"), f"{name} queueing")
    before = "blocker"
    waiting = {"first", "second", "urgent"}
    while waiting:
        api.finish(before)
        before = eventually(
            lambda: next((n for n in waiting if released(api, n)), ""), "the next one starting"
        )
        order.append(before)
        waiting.remove(before)
        api.wait_state("Ready", before, kind="PodGroup")
        operator_sees = {n: released(api, n) for n in waiting}
        assert not any(operator_sees.values()), operator_sees
    assert order == ["urgent", "first", "second"]
    api.delete("PriorityClass", high)


def test_a_batch_job_with_a_gate(api: Api, operator: Operator) -> None:
    batch = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train"},
        "spec": {
            "parallelism": 2,
            "completions": 2,
            "template": member_template("gang", restartPolicy="Never"),
        },
    }
    api.apply(group("gang", 2), batch)
    api.wait_state("Ready", "gang", kind="PodGroup")
    eventually(lambda: api.used(api.namespace) == "2", "it being charged")
    api.finish(*api.pods("gang"))
    eventually(lambda: api.state("gang", "PodGroup") == "Finished", "the group ending with its Job")
    eventually(lambda: api.status("Job", "train").get("succeeded") == 2, "the Job ending")
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")


def test_a_reservation_is_charged_until_it_is_deleted(api: Api, operator: Operator) -> None:
    api.apply(group("kept", 3))
    api.wait_state("Admitted", "kept", kind="PodGroup")
    eventually(lambda: api.used(api.namespace) == "3", "the reservation being charged")
    operator.wait_quiet()
    assert api.state("kept", "PodGroup") == "Admitted"
    api.delete("PodGroup", "kept")
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")


def test_a_pod_that_asks_for_more_than_its_member_is_held_and_named(api: Api, operator: Operator) -> None:
    api.apply(group("gang", 1), pod("greedy", "gang", "2"))
    eventually(
        lambda: api.condition("PodGroup", "gang", "PodsReady").get("reason") == "PodsRejected", "the refusal"
    )
    assert (
        "pod greedy asks for 2 cpu, but member worker requests 1"
        in api.condition("PodGroup", "gang", "PodsReady")["message"]
    )
    assert gated(api.get("Pod", "greedy"))
    api.delete("Pod", "greedy")
    api.apply(pod("modest", "gang"))
    api.wait_state("Ready", "gang", kind="PodGroup")


@pytest.mark.parametrize("case", operator_conditions.CASES, ids=lambda case: case["case"].replace(" ", "-"))
def test_what_only_the_operator_can_tell_is_told(
    api: Api, operator_process: Operator, case: dict[str, Any]
) -> None:
    """The object that is wrong says which field and how to mend it; a sound job beside it goes on."""
    if not operator_process.alive:
        operator_process.start()
    case = operator_conditions.in_namespace(case, api.namespace)
    api.apply(*case["given"])
    kind, _, name = case["of"].partition("/")
    wanted = case["condition"]

    def told() -> bool:
        for found in api.status(kind, name).get("conditions") or ():
            alike = all(
                found.get(field) == wanted[field] for field in ("type", "status", "reason") if field in wanted
            )
            if alike and re.search(wanted["says"], found["message"]):
                return True
        return False

    try:
        eventually(told, f"{kind} {name} saying so", 20)
    except AssertionError as error:
        raise AssertionError(f"{error}: {api.status(kind, name)}\n{operator_process.tail(10)}") from None
    api.apply(job("sound"))
    api.wait_state("Running", "sound")


def test_what_was_wrong_goes_on_when_it_is_mended(api: Api, operator: Operator) -> None:
    late = f"late-{api.namespace}"
    api.apply(job("j", priorityClassName=late))
    eventually(
        lambda: api.condition("DLJob", "j", "Queued").get("reason") == "Misconfigured",
        "the missing class being told",
    )
    operator.wait_quiet()
    assert api.pods("j") == {}
    api.apply(priority_class(late, 5))
    api.wait_state("Running", "j")
    api.delete("PriorityClass", late)
    operator.wait_quiet()
    assert api.state("j") == "Running"


def test_kueue_14811_no_quota_is_held_without_pods_past_the_time_out(api: Api, operator: Operator) -> None:
    api.apply(group("gang", 1, readyTimeoutSeconds=2), pod("p", "gang"))
    api.wait_state("Ready", "gang", kind="PodGroup")
    api.delete("Pod", "p")
    eventually(lambda: api.state("gang", "PodGroup") == "Finished", "the group ending")
    assert api.condition("PodGroup", "gang", "Finished")["reason"] == "PodsGone"
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")
    api.apply(pod("again", "gang"))
    eventually(lambda: api.state("gang", "PodGroup") == "Ready", "new pods being taken in again")


def test_a_gang_that_does_not_get_ready_in_time_is_evicted_and_says_so(api: Api, operator: Operator) -> None:
    """The group asks for less than the node selector of its pod allows for: kube-scheduler cannot bind it."""
    api.apply(group("gang", 1, readyTimeoutSeconds=2), pod("p", "gang", nodeSelector={"no-such": "node"}))
    evicted = eventually(lambda: api.condition("PodGroup", "gang", "Evicted"), "the eviction")
    assert (evicted["status"], evicted["reason"]) == ("True", "PodsReadyTimeout")
    eventually(
        lambda: api.condition("PodGroup", "gang", "QuotaReserved").get("reason") == "BackingOff",
        "the back-off",
    )
    states = {c["type"]: c["status"] for c in api.status("PodGroup", "gang")["conditions"]}
    assert (states["Admitted"], states["QuotaReserved"]) == ("False", "False")
    assert api.status("PodGroup", "gang")["requeueAt"]
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")
    eventually(lambda: not api.pods("gang"), "its pod being taken back")


def test_kai_1968_a_gang_is_not_evicted_because_its_first_pod_has_succeeded(
    api: Api, operator: Operator
) -> None:
    api.apply(group("gang", 2, readyTimeoutSeconds=2), pod("p0", "gang"), pod("p1", "gang"))
    api.wait_state("Ready", "gang", kind="PodGroup")
    uid = api.uids("gang")["p1"]
    api.finish("p0")
    operator.wait_quiet()
    assert api.state("gang", "PodGroup") == "Ready"
    assert api.uids("gang")["p1"] == uid
    assert running(api.get("Pod", "p1"))


def test_kueue_15399_evicted_amid_a_partial_scale_up_it_comes_back(
    embedded_cluster: EmbeddedCluster, api: Api, operator: Operator
) -> None:
    api.apply(queue(api.namespace, "4"), job("j", workers=2, runtime="elastic"))
    api.wait_state("Running", "j")
    embedded_cluster.kubectl("-n", api.namespace, "scale", "dljob/j", "--replicas=6")
    api.patch("DLJob", "j", {"spec": {"suspend": True}})
    api.wait_state("Suspended", "j")
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")
    api.patch("DLJob", "j", {"spec": {"suspend": False}})
    api.apply(queue(api.namespace, "8"))
    eventually(
        lambda: api.status("DLJob", "j").get("workers") == {"desired": 6, "ready": 6}, "all six workers"
    )
    eventually(lambda: api.used(api.namespace) == "7100m", "all of it being charged")


def test_kai_883_a_dead_operator_keeps_nobody_elses_pod_from_running(api: Api, operator: Operator) -> None:
    operator.kill()
    plain = pod("plain", "nobody")
    plain["metadata"].pop("labels")
    plain["spec"].pop("schedulingGates")
    api.apply(plain)
    eventually(lambda: running(api.get("Pod", "plain")), "a pod of nobody running")


def test_volcano_3597_series_of_a_gone_queue_are_dropped(api: Api, operator: Operator) -> None:
    name = f"{api.namespace}-x"
    api.apply(queue(name))
    eventually(lambda: f'queue="{name}"' in operator.page("/metrics")[1], "its series")
    api.delete("TenantQueue", name)
    eventually(lambda: f'queue="{name}"' not in operator.page("/metrics")[1], "its series going")


def test_volcano_3597_two_writers_do_not_fight_over_a_status(api: Api, operator: Operator) -> None:
    """Somebody else's condition stays, and ours are not written again and again because of it."""
    api.apply(group("gang", 1), pod("p", "gang"))
    api.wait_state("Ready", "gang", kind="PodGroup")
    theirs = {
        "type": "Audited",
        "status": "True",
        "reason": "Seen",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    held = api.status("PodGroup", "gang")["conditions"]
    api.patch("PodGroup", "gang", {"status": {"conditions": [*held, theirs]}}, "status")
    operator.wait_quiet()
    assert api.condition("PodGroup", "gang", "Audited") == theirs
    assert api.condition("PodGroup", "gang", "PodsReady")["status"] == "True"


def test_volcano_2389_a_group_that_an_older_version_left_is_taken_over(api: Api, operator: Operator) -> None:
    """Admitted by a version that wrote no members: its running pod is charged and left alone."""
    operator.kill()
    api.apply(group("gang", 1))
    old = {
        "type": "Admitted",
        "status": "True",
        "reason": "Old",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    api.patch("PodGroup", "gang", {"status": {"state": "Whatever", "conditions": [old]}}, "status")
    ours = pod("p", "gang")
    ours["metadata"]["annotations"] = {names.RELEASED: "2026-01-01T00:00:00Z"}
    ours["spec"].pop("schedulingGates")
    api.apply(ours)
    uid = api.uids()["p"]
    operator.start()
    api.wait_state("Ready", "gang", kind="PodGroup")
    assert api.uids()["p"] == uid
    assert api.status("PodGroup", "gang")["members"] == [{"name": "worker", "admitted": 1, "ready": 1}]
    eventually(lambda: api.used(api.namespace) == "1", "it being charged")


def test_held_and_drained_queues(api: Api, operator: Operator) -> None:
    api.apply(group("a", 1), pod("a", "a"))
    api.wait_state("Ready", "a", kind="PodGroup")
    api.patch("TenantQueue", api.namespace, {"spec": {"stop": "Hold"}})
    api.apply(group("b", 1), pod("b", "b"))
    eventually(
        lambda: api.condition("PodGroup", "b", "QuotaReserved").get("reason") == "QueueStopped",
        "b being held",
    )
    assert api.state("a", "PodGroup") == "Ready"
    api.patch("TenantQueue", api.namespace, {"spec": {"stop": "Drain"}})
    eventually(
        lambda: api.condition("PodGroup", "a", "Evicted").get("reason") == "QueueStopped", "a being drained"
    )
    eventually(lambda: not api.pods("a"), "its pod going")
    api.patch("TenantQueue", api.namespace, {"spec": {"stop": "None"}})
    api.wait_state("Ready", "b", kind="PodGroup")
