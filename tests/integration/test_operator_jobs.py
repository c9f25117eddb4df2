"""DLJobs under the running operator: from queue to end, and every way an owner can interfere."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.api import names
from dl2.embedded.cluster import EmbeddedCluster
from tests.integration.operator_harness import (
    Api,
    Operator,
    Process,
    eventually,
    gated,
    job,
    member_template,
    queue,
    running,
)

pytestmark = pytest.mark.integration
PODS = ["j-coordinator-0", "j-server-0", "j-worker-0", "j-worker-1"]


def test_a_job_runs_to_its_end(api: Api, simulated_trainers: Process, operator: Operator) -> None:
    api.apply(job("j", training={"epochs": 2, "stepsPerEpoch": 200}))
    eventually(lambda: (api.status("DLJob", "j").get("progress") or {}).get("step"), "progress of j")
    assert sorted(api.pods("j")) == PODS
    api.wait_state("Succeeded", "j")
    eventually(
        lambda: sorted(api.pods("j")) == sorted(n for n, p in api.pods("j").items() if not running(p)),
        "no pod running",
    )
    status = api.status("DLJob", "j")
    assert (status["progress"]["fraction"], status["printed"]["progress"]) == (1.0, "100%")
    assert status["restarts"] == 0
    assert status["completionTime"] >= status["startTime"]
    eventually(lambda: api.state("j", "PodGroup") == "Finished", "its group finishing")
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free again")
    wanted = {"Admitted", "PodsReady", "WorkersSucceeded"}
    eventually(
        lambda: wanted <= {e["reason"] for e in api.list("Event") if e["regarding"]["name"] == "j"},
        "its Events",
    )


def test_suspend_and_resume(api: Api, operator: Operator) -> None:
    api.apply(job("j"))
    api.wait_state("Running", "j")
    before = api.uids("j")
    api.patch("DLJob", "j", {"spec": {"suspend": True}})
    api.wait_state("Suspended", "j")
    eventually(lambda: not api.pods("j"), "its pods going")
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")
    assert api.status("DLJob", "j").get("startTime") is None
    operator.wait_quiet()
    api.patch("DLJob", "j", {"spec": {"suspend": False}})
    api.wait_state("Running", "j")
    after = api.uids("j")
    assert sorted(after) == sorted(before)
    assert not set(after.values()) & set(before.values())
    assert api.status("DLJob", "j")["restarts"] == 0
    assert api.status("PodGroup", "j").get("evictions", 0) == 0


def test_what_changes_while_suspended_holds_from_then_on(api: Api, operator: Operator) -> None:
    """Also when the operator sees both changes at once, with the group still admitted to the old queue."""
    other = f"{api.namespace}-other"
    api.apply(queue(other, namespaceSelector={}), job("j"))
    api.wait_state("Running", "j")
    operator.kill()
    api.patch("DLJob", "j", {"spec": {"suspend": True}})
    api.patch("DLJob", "j", {"spec": {"queue": other}})
    operator.start()
    api.wait_state("Suspended", "j")
    api.patch("DLJob", "j", {"spec": {"suspend": False}})
    api.wait_state("Running", "j")
    eventually(lambda: api.used(other) == "3100m", "the other queue being charged")
    eventually(lambda: api.used(api.namespace) == "0", "the first queue being free")


def test_a_failed_job_restarts_until_its_limit(api: Api, operator: Operator) -> None:
    api.apply(job("j", runPolicy={"backoffLimit": 1}))
    api.wait_state("Running", "j")
    before = api.uids("j")
    api.finish("j-worker-1", phase="Failed")
    eventually(lambda: api.status("DLJob", "j").get("restarts") == 1, "the failure being counted")
    eventually(lambda: not set(api.uids("j").values()) & set(before.values()), "all pods being made anew")
    api.wait_state("Running", "j")
    assert {p["metadata"]["labels"][names.LABEL_ATTEMPT] for p in api.pods("j").values()} == {"1"}
    api.finish("j-server-0", phase="Failed")
    eventually(lambda: api.state("j") == "Failed", "the job failing")
    failed = api.condition("DLJob", "j", "Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert "j-server-0: container main exited with 3" in failed["message"]
    assert api.status("DLJob", "j")["restarts"] == 1
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")


def test_clean_pod_policy(api: Api, operator: Operator) -> None:
    kept = {"All": 0, "Running": 2, "None": 4}
    api.apply(queue(api.namespace, "10"))
    for policy in kept:
        api.apply(job(policy.lower(), runPolicy={"cleanPodPolicy": policy}))
    api.wait_state("Running", *map(str.lower, kept))
    for policy in map(str.lower, kept):
        api.finish(f"{policy}-worker-0", f"{policy}-worker-1")
    for policy, count in kept.items():
        api.wait_state("Succeeded", policy.lower())
        eventually(
            lambda p=policy, n=count: len(api.pods(p.lower())) == n, f"{count} pods of {policy} being left"
        )
    operator.wait_quiet()
    assert {policy: len(api.pods(policy.lower())) for policy in kept} == kept


def test_time_to_live_after_the_end(api: Api, operator: Operator) -> None:
    api.apply(job("j", runPolicy={"ttlSecondsAfterFinished": 1, "cleanPodPolicy": "None"}))
    api.wait_state("Running", "j")
    api.finish_job("j")
    api.wait_gone("DLJob", "j")
    api.wait_gone("PodGroup", "j")
    eventually(lambda: not api.pods("j"), "its pods going with it")


def test_deadline(api: Api, operator: Operator) -> None:
    api.apply(job("j", runPolicy={"activeDeadlineSeconds": 2}))
    eventually(lambda: api.state("j") == "Failed", "the deadline striking")
    assert api.condition("DLJob", "j", "Failed")["reason"] == "DeadlineExceeded"
    eventually(lambda: not api.pods("j"), "its pods going")
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")


def test_foreground_deletion_leaves_nothing(api: Api, operator: Operator) -> None:
    api.apply(job("j"))
    api.wait_state("Running", "j")
    api.delete("DLJob", "j", "Foreground")
    api.wait_gone("DLJob", "j")
    for kind in ("PodGroup", "Service"):
        api.wait_gone(kind, "j")
    assert api.pods("j") == {}
    eventually(lambda: api.used(api.namespace) == "0", "its quota being free")


def test_a_namesake_of_a_deleted_job_starts_from_nothing(api: Api, operator: Operator) -> None:
    """Its status, pods and quota are its own, however late the old one's leftovers go."""
    api.apply(job("j"))
    api.wait_state("Running", "j")
    before = api.uids("j")
    api.finish_job("j")
    api.delete("DLJob", "j")
    api.apply(job("j"))
    api.wait_state("Running", "j")
    assert not set(before.values()) & set(api.uids("j").values())
    status = api.status("DLJob", "j")
    assert (status.get("completionTime"), status["restarts"], status["attempt"]) == (None, 0, 0)


def test_a_lost_pod_of_an_elastic_job_is_replaced_alone(api: Api, operator: Operator) -> None:
    api.apply(job("j", workers=3, runtime="elastic"))
    api.wait_state("Running", "j")
    before = api.uids("j")
    api.delete("Pod", "j-worker-1")
    survivors = {name: uid for name, uid in before.items() if name != "j-worker-1"}

    def replaced() -> bool:
        now = {name: found["metadata"]["uid"] for name, found in api.pods("j").items() if running(found)}
        assert len(now) <= len(before), now
        return len(now) == len(before) and now != before

    eventually(replaced, "one new worker")
    operator.wait_quiet()
    after = api.uids("j")
    assert survivors.items() < after.items()
    assert len(after) == len(before)
    assert api.status("DLJob", "j")["restarts"] == 0


def test_a_lost_pod_of_a_static_job_restarts_all_and_counts_as_no_failure(
    api: Api, operator: Operator
) -> None:
    api.apply(job("j"))
    api.wait_state("Running", "j")
    before = api.uids("j")
    api.delete("Pod", "j-worker-1")
    eventually(lambda: not set(api.uids("j").values()) & set(before.values()), "all pods being made anew")
    api.wait_state("Running", "j")
    assert api.status("DLJob", "j")["restarts"] == 0


def test_kueue_12670_rapid_resizes_end_at_the_last_wish_and_are_charged_once(
    embedded_cluster: EmbeddedCluster, api: Api, operator: Operator
) -> None:
    api.apply(job("j", workers=2, runtime="elastic"))
    api.wait_state("Running", "j")
    survivor = api.uids("j")["j-worker-0"]
    for wish in (5, 1, 4, 2, 6, 3):
        embedded_cluster.kubectl("-n", api.namespace, "scale", "dljob/j", f"--replicas={wish}")
    eventually(
        lambda: (
            sum(running(p) for n, p in api.pods("j").items() if "worker" in n) == 3 == len(api.pods("j")) - 2
        ),
        "exactly 3 workers, running",
    )
    eventually(lambda: api.used(api.namespace) == "4100m", "3 workers being charged")
    assert api.uids("j")["j-worker-0"] == survivor
    eventually(
        lambda: api.status("DLJob", "j")["workers"] == {"desired": 3, "ready": 3}, "its status saying so"
    )


def test_kueue_11977_no_pod_of_a_scale_up_runs_beyond_the_quota(
    embedded_cluster: EmbeddedCluster, api: Api, operator: Operator
) -> None:
    api.apply(queue(api.namespace, "5"), job("j", workers=2, runtime="elastic"))
    api.wait_state("Running", "j")
    embedded_cluster.kubectl("-n", api.namespace, "scale", "dljob/j", "--replicas=6")

    def grown() -> bool:
        released = [p for p in api.pods("j").values() if not gated(p)]
        assert len(released) <= 5, sorted(p["metadata"]["name"] for p in released)  # 100m + 1 + 3 x 1
        return len(released) == 5

    eventually(grown, "as many workers as the queue has room for")
    operator.wait_quiet()
    assert grown()
    eventually(lambda: api.used(api.namespace) == "4100m", "it being charged")


def test_a_static_job_takes_another_shape_by_a_restart(
    embedded_cluster: EmbeddedCluster, api: Api, operator: Operator
) -> None:
    api.apply(job("j"))
    api.wait_state("Running", "j")
    embedded_cluster.kubectl("-n", api.namespace, "scale", "dljob/j", "--replicas=3")
    eventually(lambda: len([p for p in api.pods("j").values() if running(p)]) == 5, "five pods running")
    api.wait_state("Running", "j")
    numbers = {
        v["value"]
        for p in api.pods("j").values()
        for v in p["spec"]["containers"][0]["env"]
        if v["name"] == "DMLC_NUM_WORKER"
    }
    assert numbers == {"3"}
    eventually(lambda: api.used(api.namespace) == "4100m", "the new shape being charged")


TAKEN: dict[str, dict[str, Any]] = {
    "PodGroup": {
        "apiVersion": "dl2.dev/v1alpha1",
        "spec": {"suspend": True, "members": [{"name": "worker", "count": 1}]},
    },
    "Service": {"apiVersion": "v1", "spec": {"clusterIP": "None", "selector": {"app": "other"}}},
}


def test_a_name_that_is_taken_is_told_and_left_alone(api: Api, operator: Operator) -> None:
    api.apply(queue(api.namespace, "16"))
    for kind, body in TAKEN.items():
        api.apply({**body, "kind": kind, "metadata": {"name": kind.lower()}})
    specs = {kind: api.get(kind, kind.lower())["spec"] for kind in TAKEN}
    api.apply(*(job(kind.lower()) for kind in TAKEN), job("other", workers=1))
    for kind in TAKEN:
        name = kind.lower()
        eventually(
            lambda n=name: api.condition("DLJob", n, "Queued").get("reason") == "Misconfigured",
            f"{name} being told",
        )
        queued = api.condition("DLJob", name, "Queued")
        assert f"metadata.name: there is a {kind} {name} already" in queued["message"]
    api.wait_state("Running", "other")
    operator.wait_quiet()
    assert {kind: api.get(kind, kind.lower())["spec"] for kind in TAKEN} == specs
    assert not any(api.pods(kind.lower()) for kind in TAKEN)
    for kind in TAKEN:
        api.delete(kind, kind.lower())
    api.wait_state("Running", *map(str.lower, TAKEN))


def test_somebodys_pod_with_the_labels_of_a_job_is_neither_used_nor_deleted(
    api: Api, operator: Operator
) -> None:
    stranger = member_template("j")
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "stranger", **stranger["metadata"]},
            "spec": stranger["spec"],
        }
    )
    api.apply(job("j"))
    api.wait_state("Running", "j")
    assert gated(api.get("Pod", "stranger"))
    message = api.condition("PodGroup", "j", "PodsReady")["message"]
    assert "pod stranger is not made by DLJob j" in message


def test_what_the_api_server_refuses_is_told_and_tried_again(api: Api, operator: Operator) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": api.namespace},
    }
    path = f"/api/v1/namespaces/{api.namespace}/resourcequotas"
    api.call("POST", path, {**quota, "spec": {"hard": {"pods": "2"}}})
    eventually(
        lambda: (api.call("GET", f"{path}/few").get("status") or {}).get("hard"),
        "the ResourceQuota being in force",
    )
    api.apply(job("j"))
    eventually(lambda: "exceeded quota" in str(api.status("DLJob", "j")), "the refusal being told")
    assert api.state("j") != "Running"
    api.call("DELETE", f"{path}/few")
    api.wait_state("Running", "j")
    assert "exceeded quota" not in str(api.status("DLJob", "j"))


def test_a_misspelt_field_of_a_template_is_told(api: Api, operator: Operator) -> None:
    manifest = job("j", workers=1)
    (container,) = manifest["spec"]["workers"]["template"]["spec"]["containers"]
    container["imagePullpolicy"] = "Never"
    api.apply(manifest)
    eventually(lambda: "imagePullpolicy" in str(api.status("DLJob", "j")), "the misspelt field being told")
    assert not [name for name in api.pods() if "worker" in name]


def test_namesakes_of_deleted_jobs_get_all_that_they_ask_for(
    simulated_nodes: Any, api: Api, operator: Operator
) -> None:
    """`kubectl delete` and `apply` of the same files: the old pods' room is given to the new jobs, all of it."""
    simulated_nodes(5, cpus=6, labels={"only-for": api.namespace})
    api.apply(queue(api.namespace, "30"))
    jobs = [f"j{n}" for n in range(5)]

    def apply_all() -> None:
        for name in jobs:
            api.apply(job(name, workers=4, nodes={"only-for": api.namespace}, runtime="elastic"))

    apply_all()
    for _ in range(3):
        for name in jobs:
            api.wait_state("Running", name)
        for name in jobs:
            api.delete("DLJob", name)
        apply_all()
    # 5.1 CPUs a job, and 30 on the nodes: there is room for all 20 workers
    eventually(
        lambda: sum(running(pod) for pod in api.pods().values() if "worker" in pod["metadata"]["name"]) == 20,
        "all workers running",
        90,
    )


def test_a_deleted_pod_group_of_a_running_job_comes_back_without_harm(api: Api, operator: Operator) -> None:
    api.apply(job("j"))
    api.wait_state("Running", "j")
    before, group = api.uids("j"), api.get("PodGroup", "j")["metadata"]["uid"]
    api.delete("PodGroup", "j")
    eventually(
        lambda: (api.find("PodGroup", "j") or {"metadata": {"uid": group}})["metadata"]["uid"] != group,
        "a new group",
    )
    api.wait_state("Ready", "j", kind="PodGroup")
    operator.wait_quiet()
    assert api.uids("j") == before
    eventually(lambda: api.used(api.namespace) == "3100m", "it being charged")
