"""Keeping a DLJob: given the job, its PodGroup and pods → what is written, counted, restarted or ended."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from dl2.api import conditions, names
from dl2.cluster.applier import Verb, Write
from dl2.cluster.store import Entry
from dl2.controller.frameworks import framework_of
from dl2.controller.jobs import SPEC_HASH, JobView, reconcile
from dl2.controller.outcome import Outcome
from dl2.controller.progress import Progress, Resize
from dl2.controller.settings import PodSettings
from tests.unit.controller.objects import NOW, condition, group, job, pod, template

SHAPE = {"coordinator": 1, "server": 1, "worker": 2}
ALL = [("coordinator", 0), ("server", 0), ("worker", 0), ("worker", 1)]


def keep(entry: Entry, *pods: Any, held: Entry | None = None, now: float = NOW, **more: Any) -> Outcome:
    framework = framework_of(entry.value)
    return reconcile(JobView(entry, entry.value, framework, held, pods, True, now, **more))


def writes(outcome: Outcome, verb: Verb, kind: str = "Pod") -> list[Write]:
    return [w for w in outcome.writes if w.verb is verb and w.resource.kind == kind]


def status(outcome: Outcome) -> dict[str, Any]:
    (write,) = [w for w in (*outcome.writes, *outcome.soft_writes) if w.verb is Verb.APPLY_STATUS]
    assert write.body is not None
    return dict(write.body["status"])


def running(state: str = "running", attempt: int = 0) -> list[Any]:
    return [pod(member, index, state, attempt=attempt) for member, index in ALL]


def admitted(**ready: Any) -> Entry:
    more = [condition("PodsReady")] if ready.get("ready", True) else []
    return group(SHAPE, SHAPE, more=more)


def test_first_look_makes_one_pod_group_of_three_members() -> None:
    (write,) = writes(keep(job(priorityClassName="high")), Verb.APPLY, "PodGroup")
    assert write.body is not None
    assert write.body["spec"] == {
        "queue": "team-a",
        "priorityClassName": "high",
        "suspend": False,
        "members": [
            {
                "name": "coordinator",
                "count": 1,
                "minCount": 1,
                "requests": {"cpu": "100m"},
            },
            {"name": "server", "count": 1, "minCount": 1, "requests": {"cpu": "1"}},
            {"name": "worker", "count": 2, "minCount": 2, "requests": {"cpu": "1"}},
        ],
    }
    assert write.body["metadata"]["ownerReferences"][0]["uid"] == "uid-j"


def test_elastic_jobs_may_start_with_their_minimum() -> None:
    (write,) = writes(keep(job(workers=4, runtime="elastic")), Verb.APPLY, "PodGroup")
    assert write.body is not None
    assert {m["name"]: m["minCount"] for m in write.body["spec"]["members"]} == {
        "coordinator": 1,
        "server": 1,
        "worker": 1,
    }


def test_an_unchanged_spec_is_not_applied_again() -> None:
    (write,) = writes(keep(job()), Verb.APPLY, "PodGroup")
    assert write.body is not None
    held = group(SHAPE)
    held.value.metadata.annotations[SPEC_HASH] = write.body["metadata"]["annotations"][SPEC_HASH]
    assert writes(keep(job(), held=held), Verb.APPLY, "PodGroup") == []


def test_pods_are_gated_labelled_owned_and_named() -> None:
    made = writes(keep(job(), held=group(SHAPE)), Verb.CREATE)
    assert [w.name for w in made] == ["j-coordinator-0", "j-server-0", "j-worker-0", "j-worker-1"]
    body = made[-1].body
    assert body is not None
    assert body["spec"]["schedulingGates"] == [{"name": "dl2.dev/admission"}]
    assert body["spec"]["restartPolicy"] == "Never"
    assert body["metadata"]["labels"] == {
        "dl2.dev/job": "j", "dl2.dev/pod-group": "j", "dl2.dev/member": "worker", "dl2.dev/index": "1",
        "dl2.dev/attempt": "0",
    }  # fmt: skip
    assert body["metadata"]["ownerReferences"][0]["controller"]


def test_static_pods_get_the_variables_of_ps_lite() -> None:
    made = writes(keep(job(training={"epochs": 3, "stepsPerEpoch": 10}), held=group(SHAPE)), Verb.CREATE)
    environment = {w.name: _environment(w) for w in made}
    assert environment["j-coordinator-0"]["DMLC_ROLE"] == "scheduler"
    assert environment["j-worker-1"] == {
        "DL2_ROLE": "worker", "DL2_JOB": "j", "DL2_JOB_UID": "uid-j", "DL2_NAMESPACE": "team-a", "DL2_INDEX": "1",
        "DL2_COORDINATOR": "j-coordinator-0.j.team-a.svc:8470", "DL2_EPOCHS": "3", "DL2_STEPS_PER_EPOCH": "10",
        "DMLC_ROLE": "worker", "DMLC_PS_ROOT_URI": "j-coordinator-0.j.team-a.svc", "DMLC_PS_ROOT_PORT": "9091",
        "DMLC_NUM_WORKER": "2", "DMLC_NUM_SERVER": "1", "DMLC_USE_KUBERNETES": "1", "DMLC_NODE_HOST": "status.podIP",
    }  # fmt: skip


def _environment(write: Write) -> dict[str, str]:
    assert write.body is not None
    (container,) = write.body["spec"]["containers"]
    return {v["name"]: v.get("value") or v["valueFrom"]["fieldRef"]["fieldPath"] for v in container["env"]}


def test_elastic_pods_get_none_of_them() -> None:
    made = writes(keep(job(runtime="elastic"), held=group(SHAPE)), Verb.CREATE)
    assert not any(name.startswith("DMLC") for w in made for name in _environment(w))


def test_the_users_own_variable_wins() -> None:
    own = template()
    own["spec"]["containers"][0]["env"] = [{"name": "DL2_EPOCHS", "value": "7"}]
    entry = job(training={"epochs": 3}, workers=1)
    entry.value.spec.workers.template["spec"] = own["spec"]
    made = writes(keep(entry, held=group({"coordinator": 1, "server": 1, "worker": 1})), Verb.CREATE)
    assert _environment(made[-1])["DL2_EPOCHS"] == "7"


def test_scheduler_profile_is_a_setting() -> None:
    made = writes(
        keep(job(), held=group(SHAPE), settings=PodSettings(scheduler_name="dl2-bin-packing")), Verb.CREATE
    )
    assert {w.body["spec"]["schedulerName"] for w in made if w.body} == {"dl2-bin-packing"}


# pods that exist -> names created
CREATED = {
    "only what is missing": (["worker-0"], ["coordinator-0", "server-0", "worker-1"]),
    "nothing twice": (["coordinator-0", "server-0", "worker-0", "worker-1"], []),
    "a name in use by a dying pod is waited for": (
        ["coordinator-0", "server-0", "worker-0", "worker-1-gated-"],
        [],
    ),
}


@pytest.mark.parametrize(("existing", "expected"), CREATED.values(), ids=CREATED.keys())
def test_created(existing: list[str], expected: list[str]) -> None:
    pods = [
        pod(t.split("-")[0], int(t.split("-")[1]), "-".join(t.split("-")[2:]) or "gated") for t in existing
    ]
    made = writes(keep(job(), *pods, held=group(SHAPE)), Verb.CREATE)
    assert [w.name.removeprefix("j-") for w in made] == expected


def test_running_when_all_are_ready() -> None:
    written = status(keep(job(), *running(), held=admitted()))
    assert written["state"] == "Running"
    assert written["workers"] == {"desired": 2, "ready": 2}
    assert written["printed"]["workers"] == "2/2"
    assert written["startTime"]


def test_succeeded_when_all_workers_have_though_servers_still_run() -> None:
    pods = [pod(m, i, "succeeded" if m == "worker" else "running") for m, i in ALL]
    written = status(keep(job(), *pods, held=admitted()))
    assert (written["state"], written["reason"]) == ("Succeeded", "WorkersSucceeded")
    assert written["completionTime"]


def test_a_job_that_was_over_before_anybody_read_its_progress_is_shown_as_done() -> None:
    pods = [pod(m, i, "succeeded" if m == "worker" else "running") for m, i in ALL]
    written = status(keep(job(), *pods, held=admitted()))
    assert written["progress"] == {"fraction": 1.0}
    assert written["printed"]["progress"] == "100%"


def test_the_last_report_of_a_finished_job_is_kept() -> None:
    pods = [pod(m, i, "succeeded" if m == "worker" else "running") for m, i in ALL]
    entry = job(status={"progress": {"epoch": 1, "step": 100}}, training={"epochs": 2, "stepsPerEpoch": 100})
    last = Progress(1, 198, 5.0, NOW, {"accuracy": 0.97}, received_at=NOW)
    told = status(keep(entry, *pods, held=admitted(), progress=last))["progress"]
    assert (told["step"], told["fraction"], told["metrics"]) == (198, 1.0, {"accuracy": 0.97})


CLEAN = {
    "Running": ["j-coordinator-0", "j-server-0"],
    "All": ["j-coordinator-0", "j-server-0", "j-worker-0", "j-worker-1"],
    "None": [],
}


@pytest.mark.parametrize(("policy", "deleted"), CLEAN.items(), ids=CLEAN.keys())
def test_clean_pod_policy(policy: str, deleted: list[str]) -> None:
    pods = [pod(m, i, "succeeded" if m == "worker" else "running") for m, i in ALL]
    entry = job(status={"conditions": [condition("Succeeded")]}, runPolicy={"cleanPodPolicy": policy})
    assert [w.name for w in writes(keep(entry, *pods, held=admitted()), Verb.DELETE)] == deleted


def test_no_pod_is_deleted_before_the_end_is_written_down() -> None:
    pods = [pod(m, i, "succeeded" if m == "worker" else "running") for m, i in ALL]
    assert writes(keep(job(), *pods, held=admitted()), Verb.DELETE) == []


def test_a_failed_static_pod_restarts_all_once() -> None:
    pods = [pod(m, i, "failed" if (m, i) == ("worker", 1) else "running") for m, i in ALL]
    outcome = keep(job(), *pods, held=admitted())
    written = status(outcome)
    assert (written["restarts"], written["attempt"]) == (1, 1)
    assert written["failedPods"] == ["uid-j-worker-1-0"]
    assert (
        writes(outcome, Verb.DELETE) == []
    )  # counted first, deleted second: a crash between them counts once
    entry = job(status=written)
    again = keep(entry, *pods, held=admitted())
    assert {w.name for w in writes(again, Verb.DELETE)} == {p.name for p in pods}
    assert entry.status["restarts"] == 1
    assert not any(
        w.verb is Verb.APPLY_STATUS and w.body and w.body["status"]["restarts"] != 1 for w in again.writes
    )


def test_the_next_attempt_is_marked() -> None:
    made = writes(keep(job(status={"attempt": 1}), held=admitted()), Verb.CREATE)
    assert {w.body["metadata"]["labels"][names.LABEL_ATTEMPT] for w in made if w.body} == {"1"}


def test_beyond_the_backoff_limit_it_fails_and_says_which_pod_and_why() -> None:
    pods = [pod(m, i, "failed" if (m, i) == ("worker", 1) else "running") for m, i in ALL]
    written = status(keep(job(status={"restarts": 3}), *pods, held=admitted()))
    failed = conditions.get(written["conditions"], "Failed")
    assert failed
    assert (written["state"], failed["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert "j-worker-1: container main exited with 1" in failed["message"]


def test_a_lost_pod_of_a_running_static_job_restarts_all_but_counts_as_no_failure() -> None:
    written = status(keep(job(), *running()[:3], held=admitted()))
    assert (written["attempt"], written["restarts"]) == (1, 0)


def test_a_lost_pod_of_an_elastic_job_is_replaced_alone() -> None:
    shape = group(SHAPE, SHAPE)
    outcome = keep(job(runtime="elastic"), *running()[:3], held=shape)
    assert [w.name for w in writes(outcome, Verb.CREATE)] == ["j-worker-1"]
    assert writes(outcome, Verb.DELETE) == []


def test_pods_of_an_evicted_job_are_no_failure() -> None:
    evicted = group(SHAPE, more=[condition("Evicted"), condition("QuotaReserved", False, "Preempted")])
    outcome = keep(job(status={"conditions": [condition("Running")]}), *running()[:2], held=evicted)
    written = status(outcome)
    assert (written.get("attempt"), written["restarts"], written["state"]) == (0, 0, "Queued")


def test_deadline() -> None:
    entry = job(status={"startTime": "2027-01-15T07:00:00Z"}, runPolicy={"activeDeadlineSeconds": 3600})
    assert status(keep(entry, *running(), held=admitted()))["reason"] == "DeadlineExceeded"
    assert "reason" in status(keep(entry, *running(), held=admitted(), now=NOW - 10))


def test_suspended_job_keeps_no_pods_and_says_so() -> None:
    outcome = keep(job(suspend=True), *(pod(m, i) for m, i in ALL), held=group(SHAPE))
    assert len(writes(outcome, Verb.DELETE)) == 4
    assert writes(outcome, Verb.CREATE) == []
    assert status(outcome)["state"] == "Suspended"


def test_ttl_deletes_exactly_this_job() -> None:
    done = {"conditions": [condition("Succeeded")], "completionTime": "2027-01-15T07:59:00Z"}
    entry = job(status=done, runPolicy={"ttlSecondsAfterFinished": 60})
    (write,) = writes(keep(entry, held=admitted()), Verb.DELETE, "DLJob")
    assert write.uid == "uid-j"
    early = keep(entry, held=admitted(), now=NOW - 10)
    assert writes(early, Verb.DELETE, "DLJob") == []
    assert early.wake_at == NOW


def test_progress_becomes_fraction_and_expected_end() -> None:
    entry = job(training={"epochs": 10, "stepsPerEpoch": 100})
    written = status(
        keep(entry, *running(), held=admitted(), progress=Progress(2, 250, 5.0, NOW, received_at=NOW))
    )
    assert written["progress"]["fraction"] == 0.25
    assert written["estimatedCompletion"] == "2027-01-15T08:02:30Z"


@pytest.mark.parametrize(
    ("reason", "warning"),
    [
        ("WaitingForQuota", False),
        ("QueueNotFound", True),
        ("NamespaceNotAllowed", True),
        ("Misconfigured", True),
    ],
)
def test_people_are_warned_of_what_they_have_to_write_differently(reason: str, warning: bool) -> None:
    waits = group(SHAPE, more=[condition("QuotaReserved", False, reason)])
    told = {notice.reason: notice.warning for notice in keep(job(), held=waits).notices}
    assert told[reason] is warning


def test_what_the_api_server_refuses_is_shown() -> None:
    outcome = keep(job(), held=group(SHAPE), rejection="Pod j-worker-0: exceeded quota")
    assert [notice.warning for notice in outcome.notices if notice.reason == "WriteRejected"] == [True]
    written = status(outcome)
    assert written["reason"] == "WriteRejected"


def test_a_second_look_writes_nothing() -> None:
    outcome = keep(job(), *running(), held=admitted())
    group_write = writes(outcome, Verb.APPLY, "PodGroup")[0]
    assert group_write.body is not None
    held = admitted()
    held.value.metadata.annotations[SPEC_HASH] = group_write.body["metadata"]["annotations"][SPEC_HASH]
    again = keep(job(status=status(outcome)), *running(), held=held, now=NOW + 60)
    assert (again.writes, again.soft_writes, again.notices) == ([], [], [])


def test_unknown_framework_names_the_registered_ones() -> None:
    with pytest.raises(LookupError, match=r"'torch' is not registered \(registered: mxnet\)"):
        framework_of(job(framework="torch").value)


UNACCEPTABLE = ["Misconfigured", "QueueNotFound", "NamespaceNotAllowed"]


@pytest.mark.parametrize("reason", UNACCEPTABLE)
def test_a_job_that_nobody_can_admit_gets_no_pods(reason: str) -> None:
    held = group(SHAPE, more=[condition("QuotaReserved", False, reason)])
    assert writes(keep(job(), held=held), Verb.CREATE) == []


def test_nothing_is_made_before_the_group_was_looked_at() -> None:
    held = group(SHAPE)
    held.status = {}
    assert writes(keep(job(), held=held), Verb.CREATE) == []


def test_pods_that_are_being_made_are_not_made_again_under_other_names() -> None:
    """j-worker-1 is dying, its replacement under another number is on its way: two workers are enough."""
    pods = [pod("coordinator", 0, "running"), pod("server", 0, "running"), pod("worker", 0, "running")]
    entry = job(runtime="elastic")
    dying = [*pods, pod("worker", 1, "running-")]
    assert [w.name for w in writes(keep(entry, *dying, held=admitted()), Verb.CREATE)] == ["j-worker-2"]
    again = keep(entry, *pods, held=admitted(), creating=frozenset({"j-worker-2"}))
    assert writes(again, Verb.CREATE) == []


def test_a_coordinator_keeps_its_name_because_it_is_its_address() -> None:
    pods = [pod("coordinator", 0, "running-"), *running()[1:]]
    assert writes(keep(job(runtime="elastic"), *pods, held=admitted()), Verb.CREATE) == []


def test_pods_of_others_are_neither_used_nor_deleted() -> None:
    stranger = pod("worker", 7, "gated", attempt=9, owned=False)
    outcome = keep(job(), *(pod(m, i) for m, i in ALL), stranger, held=group(SHAPE))
    assert writes(outcome, Verb.DELETE) == []
    assert writes(outcome, Verb.CREATE) == []


def test_a_name_that_a_namesake_left_behind_is_waited_for() -> None:
    left = pod("worker", 0, owned=False)
    made = writes(keep(job(), left, held=group(SHAPE)), Verb.CREATE)
    assert [w.name for w in made] == ["j-coordinator-0", "j-server-0", "j-worker-1"]


def suspends(outcome: Outcome) -> list[Any]:
    return [w.body["spec"] for w in writes(outcome, Verb.PATCH, "PodGroup") if w.body]


def test_an_admitted_group_is_suspended_before_anything_else_of_it_changes() -> None:
    outcome = keep(job(suspend=True, queue="another"), *running(), held=admitted())
    assert suspends(outcome) == [{"suspend": True}]
    assert writes(outcome, Verb.APPLY, "PodGroup") == []
    gone = keep(job(suspend=True, queue="another"), held=group(SHAPE))
    (write,) = writes(gone, Verb.APPLY, "PodGroup")
    assert write.body is not None
    assert (write.body["spec"]["queue"], write.body["spec"]["suspend"]) == ("another", True)


def test_a_static_job_takes_another_shape_by_stopping_first() -> None:
    made_for_two = {"workers": {"desired": 2, "ready": 2}, "servers": {"desired": 1, "ready": 1}}
    outcome = keep(job(workers=3, status=made_for_two), *running(), held=admitted())
    assert suspends(outcome) == [{"suspend": True}]
    written = status(outcome)
    assert (written["attempt"], written["restarts"]) == (1, 0)


def test_an_elastic_job_takes_another_shape_as_it_runs() -> None:
    outcome = keep(job(workers=3, runtime="elastic"), *running(), held=admitted())
    assert suspends(outcome) == []
    (write,) = writes(outcome, Verb.APPLY, "PodGroup")
    assert write.body is not None
    assert {m["name"]: m["count"] for m in write.body["spec"]["members"]}["worker"] == 3


def test_a_job_that_was_done_when_it_lost_its_admission_has_succeeded() -> None:
    pods = [pod(m, i, "succeeded" if m == "worker" else "running") for m, i in ALL]
    evicted = group(SHAPE, more=[condition("Evicted"), condition("QuotaReserved", False, "Preempted")])
    assert status(keep(job(), *pods, held=evicted))["state"] == "Succeeded"


def test_the_expected_end_does_not_move_by_being_looked_at() -> None:
    entry = job(training={"epochs": 10, "stepsPerEpoch": 100})
    told = Progress(2, 250, 5.0, NOW, received_at=NOW)
    held = admitted()
    first = keep(entry, *running(), held=held, progress=told)
    entry.status = status(first)
    assert keep(entry, *running(), held=held, progress=told, now=NOW + 60).soft_writes == []


def test_a_refusal_is_not_told_of_a_suspended_job() -> None:
    written = status(keep(job(suspend=True), held=group(SHAPE), rejection="Pod j-worker-0: exceeded quota"))
    assert "exceeded quota" not in str(written)


NATIVE = PodSettings(native_gang=True)


def native(outcome: Outcome) -> list[Write]:
    return writes(outcome, Verb.APPLY, "PodGroup.scheduling.k8s.io")


def test_a_native_gang_has_the_minimum_of_all_members_and_every_pod_names_it() -> None:
    outcome = keep(job(runtime="elastic"), held=group(SHAPE), settings=NATIVE)
    (gang,) = native(outcome)
    assert gang.body is not None
    assert (gang.body["apiVersion"], gang.body["kind"]) == ("scheduling.k8s.io/v1beta1", "PodGroup")
    assert gang.body["spec"] == {
        "schedulingPolicy": {"gang": {"minCount": 3}}
    }  # coordinator, server, one worker
    for write in writes(outcome, Verb.CREATE):
        assert write.body is not None
        assert write.body["spec"]["schedulingGroup"] == {"podGroupName": "j"}


def test_a_native_gang_is_there_while_pods_are_to_be_bound_and_left_alone_afterwards() -> None:
    released = [pod(member, index, "released") for member, index in ALL]
    assert len(native(keep(job(), *released, held=admitted(ready=False), settings=NATIVE))) == 1
    assert native(keep(job(), *running(), held=admitted(), settings=NATIVE)) == []
    assert native(keep(job(), *released, held=admitted(ready=False))) == []  # nobody asked for it


def test_a_worker_that_was_sent_away_and_ended_well_does_not_end_the_job() -> None:
    held = group(SHAPE, {**SHAPE, "worker": 1})
    pods = [pod("coordinator", 0, "running"), pod("server", 0, "running"), pod("worker", 0, "running")]
    written = status(keep(job(runtime="elastic"), *pods, pod("worker", 1, "succeeded-"), held=held))
    assert written["state"] != "Succeeded"


def test_an_elastic_job_shares_a_token_that_nobody_can_guess_or_confuse_with_anothers() -> None:
    outcome = keep(job(runtime="elastic"), held=group(SHAPE), token="t0k3n")
    (secret,) = writes(outcome, Verb.CREATE, "Secret")
    assert secret.body is not None
    assert base64.b64decode(secret.body["data"]["token"]) == b"t0k3n"
    assert secret.body["metadata"]["ownerReferences"][0]["uid"] == "uid-j"
    made = writes(outcome, Verb.CREATE)
    for write in made:
        assert write.body is not None
        volumes = {volume["name"]: volume for volume in write.body["spec"]["volumes"]}
        assert volumes["dl2-token"]["secret"]["secretName"] == secret.name == "j-token-uid-j"
        assert _environment(write)["DL2_TOKEN_FILE"] == "/var/run/secrets/dl2.dev/token"
    assert writes(keep(job(runtime="elastic"), *running(), held=admitted()), Verb.CREATE, "Secret") == []
    assert writes(keep(job(), held=group(SHAPE)), Verb.CREATE, "Secret") == []


def test_members_that_may_be_admitted_later_are_not_waited_for() -> None:
    shape = {"coordinator": 1, "server": 1, "worker": 4}
    made = writes(keep(job(workers=4, runtime="elastic"), held=group(shape)), Verb.CREATE)
    environment = _environment(made[-1])
    assert (environment["DL2_WORKERS"], environment["DL2_SERVERS"]) == ("1", "1")
    assert environment["DL2_HOST"] == "status.podIP"


def test_an_elastic_member_is_ready_when_it_has_joined() -> None:
    made = writes(keep(job(runtime="elastic"), held=group(SHAPE)), Verb.CREATE)
    probes = {}
    for write in made:
        assert write.body is not None
        (container,) = write.body["spec"]["containers"]
        probes[write.name] = container["readinessProbe"]
        file = _environment(write)["DL2_READY_FILE"]
        folder = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "dl2-state")
        assert file.startswith(folder)
        assert int(_environment(write)["DL2_GRACE_SECONDS"]) < 30  # what the kubelet gives a pod by default
    assert probes["j-coordinator-0"]["httpGet"] == {"path": "/v1/status", "port": 8470}
    assert probes["j-worker-0"]["exec"]["command"] == ["test", "-e", "/var/run/dl2.dev/joined"]
    assert probes["j-server-0"]["exec"] == probes["j-worker-1"]["exec"] == probes["j-worker-0"]["exec"]


RUNS = {"startTime": "2026-11-23T09:00:00Z", "conditions": [condition("Running")]}
GROWN = {**SHAPE, "worker": 3}


def told(written: dict[str, Any], kind: str) -> tuple[bool, str]:
    found = conditions.get(written["conditions"], kind)
    assert found is not None
    return found["status"] == "True", found["message"]


def test_an_elastic_job_runs_on_while_members_join() -> None:
    entry = job(workers=3, runtime="elastic", status=RUNS)
    held = group(GROWN, GROWN, more=[condition("PodsReady", False)])
    written = status(keep(entry, *running(), pod("worker", 2, "released"), held=held))
    assert told(written, "Running") == (True, "its minimum is ready; others may join")
    assert told(written, "Scaling") == (True, "2 of 3 workers have joined")
    assert (written["state"], written["reason"]) == ("Scaling", "Joining")


def test_a_job_that_waits_for_quota_to_grow_is_not_scaling() -> None:
    entry = job(workers=3, runtime="elastic", status=RUNS)
    held = group(GROWN, SHAPE, more=[condition("PodsReady")])
    written = status(keep(entry, *running(), pod("worker", 2), held=held))
    assert (written["state"], written["workers"]) == ("Running", {"desired": 3, "ready": 2})


def test_an_elastic_job_is_scaling_until_who_leaves_has_left() -> None:
    entry = job(workers=1, runtime="elastic", status=RUNS)
    held = group({**SHAPE, "worker": 1}, {**SHAPE, "worker": 1}, more=[condition("PodsReady")])
    leaving = [*running()[:3], pod("worker", 1, "running-")]
    assert told(status(keep(entry, *leaving, held=held)), "Scaling") == (True, "j-worker-1 leaves")
    entry.status = status(keep(entry, *leaving, held=held))
    assert told(status(keep(entry, *running()[:3], held=held)), "Scaling")[0] is False


def test_an_elastic_job_without_its_minimum_does_not_run() -> None:
    held = group(SHAPE, SHAPE, more=[condition("PodsReady", False)])
    written = status(keep(job(runtime="elastic", status=RUNS), *running()[1:], held=held))
    assert told(written, "Running")[0] is False


def test_an_elastic_job_whose_members_end_one_by_one_runs_to_its_end() -> None:
    held = group(SHAPE, SHAPE, more=[condition("PodsReady", False)])
    ending = [pod("coordinator", 0, "running"), pod("server", 0, "released"), pod("worker", 0, "succeeded"),
              pod("worker", 1, "released")]  # fmt: skip
    written = status(keep(job(runtime="elastic", status=RUNS), *ending, held=held))
    assert written["state"] == "Running"


@pytest.mark.parametrize(
    ("late", "state"),
    [
        (pod("worker", 1, "gated"), "Succeeded"),
        (pod("worker", 1, "released"), "Succeeded"),
        (replace(pod("worker", 1, "running"), ready=False, joined=False), "Succeeded"),
        (replace(pod("worker", 1, "running"), ready=False, joined=True), "Running"),  # it saves its model
        (pod("worker", 1, "running"), "Running"),
    ],
    ids=["gated", "not bound", "never joined", "joined once", "joined"],
)
def test_an_elastic_job_that_is_done_does_not_wait_for_a_worker_that_comes_too_late(
    late: Any, state: str
) -> None:
    pods = [
        pod("coordinator", 0, "succeeded"),
        pod("server", 0, "succeeded"),
        pod("worker", 0, "succeeded"),
        late,
    ]
    held = group(SHAPE, SHAPE, more=[condition("PodsReady", False)])
    assert status(keep(job(runtime="elastic", status=RUNS), *pods, held=held))["state"] == state


@pytest.mark.parametrize(
    ("to", "scaled_by", "policy", "word"),
    [((2, 1), "dl2", "dl2", "policy"), ((2, 1), "", None, "spec"), ((1, 1), "dl2", None, "admission")],
)
def test_the_last_scaling_says_who_decided_it_for_good(
    to: tuple[int, int], scaled_by: str, policy: str | None, word: str
) -> None:
    """Of a job that asks for two workers and a server; what is asked for later changes nothing about it."""
    progress = Progress(1, 9, 2.0, NOW, resize=Resize(NOW, (3, 1), to, 12, ""))
    entry = job(runtime="elastic", status=RUNS)
    first = status(keep(entry, *running(), held=admitted(), progress=progress, scaled_by=scaled_by))
    assert first["lastScaling"].get("policy") == policy
    assert word in first["lastScaling"]["reason"]
    entry = job(workers=4, runtime="elastic", status=first)
    later = status(keep(entry, *running(), held=admitted(), progress=progress, scaled_by="envelope"))
    assert later["lastScaling"] == first["lastScaling"]


def test_the_last_scaling_is_what_the_coordinator_tells() -> None:
    resize = Resize(NOW, (1, 1), (3, 2), 12, "worker-1 and worker-2 join")
    entry = job(runtime="elastic", status=RUNS)
    first = status(keep(entry, *running(), held=admitted(), progress=Progress(1, 9, 2.0, NOW, resize=resize)))
    assert first["lastScaling"] == {
        "time": "2027-01-15T08:00:00Z",
        "from": {"workers": 1, "servers": 1},
        "to": {"workers": 3, "servers": 2},
        "reason": "worker-1 and worker-2 join",
        "pauseMilliseconds": 12,
    }
    entry.status = first
    later = keep(entry, *running(), held=admitted(), progress=Progress(1, 10, 2.0, NOW))
    assert status(later)["lastScaling"] == first["lastScaling"]


def test_a_static_job_says_that_it_was_resized_by_a_restart_and_what_that_cost() -> None:
    shape = {"workers": {"desired": 1, "ready": 1}, "servers": {"desired": 1, "ready": 1}}
    entry = job(workers=2, status={**RUNS, **shape})
    one = group({**SHAPE, "worker": 1}, {**SHAPE, "worker": 1}, more=[condition("PodsReady")])
    entry.status = status(keep(entry, *running()[:3], held=one))
    scaling = entry.status["lastScaling"]
    assert (scaling["from"]["workers"], scaling["to"]["workers"]) == (1, 2)
    assert scaling["reason"] == "checkpoint and restart"
    assert (entry.status["state"], entry.status["reason"]) == ("Scaling", "Restarting")
    entry.status = status(keep(entry, *running(attempt=1), held=admitted(), now=NOW + 9))
    assert entry.status["lastScaling"]["pauseMilliseconds"] == 9000
    assert entry.status["state"] == "Running"
    later = keep(entry, *running(attempt=1), held=admitted(), now=NOW + 99)
    assert (writes(later, Verb.APPLY_STATUS, "DLJob"), later.soft_writes) == ([], [])
