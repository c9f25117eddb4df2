"""Keeping a PodGroup: given its status, its pods and a decision → which pods are released or deleted, which status."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.api import conditions
from dl2.cluster.applier import Verb
from dl2.cluster.store import Entry
from dl2.controller.groups import GroupView, admitted_counts, reconcile, tightened
from dl2.controller.outcome import Outcome
from dl2.scheduling.plan import Action, Decision, MemberPlan, Reason
from tests.unit.controller.objects import NOW, condition, group, pod


def keep(
    entry: Entry, *pods: Any, decision: Decision | None = None, now: float = NOW, **more: Any
) -> Outcome:
    return reconcile(GroupView(entry, entry.value, pods, decision or as_it_is(entry), now, **more))


def as_it_is(entry: Entry) -> Decision:
    """The decision that leaves a group as its status says."""
    counts = admitted_counts(entry.value, entry.status)
    return decided(Action.KEEP, **counts) if counts else decided(Action.WAIT, Reason.WAITING_FOR_QUOTA)


def decided(action: Action, reason: Reason = Reason.NONE, message: str = "", **counts: int) -> Decision:
    members = {name: MemberPlan(n) for name, n in counts.items()}
    return Decision(KEY, action, reason, message, members=members)


KEY = group({"worker": 1}).key


def on_pods(outcome: Outcome) -> dict[str, str]:
    return {w.name: w.verb.value for w in outcome.writes if w.verb is not Verb.APPLY_STATUS}


def status(outcome: Outcome) -> dict[str, Any]:
    (write,) = [w for w in (*outcome.writes, *outcome.soft_writes) if w.verb is Verb.APPLY_STATUS]
    assert write.body is not None
    return dict(write.body["status"])


# members and what is admitted (None: not admitted), pods -> writes on pods
PODS = {
    "nothing is released before the admission stands in the API server": ({"w": 2}, None, ["w0", "w1"], {}),
    "all gated pods of an admitted gang are released together":
        ({"w": 2}, {"w": 2}, ["w0", "w1"], {"w0": "patch", "w1": "patch"}),
    "no partial start: one pod is still to come": ({"w": 2}, {"w": 2}, ["w0"], {}),
    "no partial start across members": ({"w": 1, "s": 1}, {"w": 1, "s": 1}, ["w0"], {}),
    "a dying namesake holds its room until it is gone": ({"w": 1}, {"w": 1}, ["w0-running-", "w1"], {}),
    "one too many is not released": ({"w": 1}, {"w": 1}, ["w0", "w1"], {"w0": "patch"}),
    "growth releases only what was added": ({"w": 3}, {"w": 3}, ["w0-running", "w1-running", "w2"], {"w2": "patch"}),
    "shrink: pending pods go first, survivors are not touched (volcano#2074)":
        ({"w": 3}, {"w": 2}, ["w0-released", "w1-running", "w2-running"], {"w0": "delete"}),
    "shrink of running pods takes the newest number":
        ({"w": 3}, {"w": 2}, ["w0-running", "w1-running", "w2-running"], {"w2": "delete"}),
    "evicted: every released pod goes, gated ones stay": ({"w": 2}, None, ["w0-running", "w1"], {"w0": "delete"}),
    "a succeeded member counts; nobody is deleted for it (kai#1968)":
        ({"w": 2}, {"w": 2}, ["w0-succeeded", "w1-running"], {}),
    "a failed pod frees its place for a replacement": ({"w": 1}, {"w": 1}, ["w0-failed", "w1"], {"w1": "patch"}),
}  # fmt: skip


def _pods(texts: list[str]) -> list[Any]:
    made = []
    for text in texts:
        name, _, state = text.partition("-")
        member = {"w": "w", "s": "s"}[name[0]]
        made.append(pod(member, int(name[1:]), state or "gated"))
    return made


@pytest.mark.parametrize(("members", "admitted", "pods", "expected"), PODS.values(), ids=PODS.keys())
def test_pods(
    members: dict[str, int], admitted: dict[str, int] | None, pods: list[str], expected: dict[str, str]
) -> None:
    entry = group(members, admitted)
    short = {f"j-{name[0]}-{name[1:]}": verb for name, verb in expected.items()}
    assert on_pods(keep(entry, *_pods(pods))) == short


def test_a_pod_that_was_never_gated_is_counted_but_not_deleted() -> None:
    stranger = pod("w", 0, "running")
    import dataclasses

    stranger = dataclasses.replace(stranger, released=False)
    assert on_pods(keep(group({"w": 1}), stranger)) == {}


def test_a_pod_that_asks_for_more_than_its_member_is_named_and_not_released() -> None:
    entry = group({"w": 2}, {"w": 2})
    outcome = keep(entry, pod("w", 0), pod("w", 1, cpu="2"), decision=decided(Action.KEEP, w=2))
    assert on_pods(outcome) == {}
    ready = conditions.get(status(outcome)["conditions"], "PodsReady")
    assert ready
    assert ready["reason"] == "PodsRejected"
    assert "pod j-w-1 asks for 2 cpu" in ready["message"]
    assert "member w requests 1" in ready["message"]


def test_release_pins_the_pod_to_its_domain_and_keeps_other_gates() -> None:
    entry = group({"w": 1}, {"w": 1}, domains={"w": {"label": "dl2.dev/rack", "value": "r1"}})
    gates = [{"name": "dl2.dev/admission"}, {"name": "example.com/quota"}]
    (write,) = [w for w in keep(entry, pod("w", 0, schedulingGates=gates)).writes if w.verb is Verb.PATCH]
    assert write.body is not None
    assert write.body["metadata"]["uid"] == "uid-j-w-0-0"
    (term,) = _terms(write.body["spec"]["affinity"])
    assert term["matchExpressions"] == [{"key": "dl2.dev/rack", "operator": "In", "values": ["r1"]}]


def _terms(affinity: Any) -> Any:
    return affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]


def test_tightening_adds_to_every_term_and_loses_nothing() -> None:
    own = {
        "podAntiAffinity": {"x": 1},
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                    {"matchFields": ["f"]},
                ]
            }
        },
    }
    tight = tightened(own, "rack", "r1")
    requirement = {"key": "rack", "operator": "In", "values": ["r1"]}
    assert _terms(tight) == [
        {"matchExpressions": [{"key": "a", "operator": "Exists"}, requirement]},
        {"matchFields": ["f"], "matchExpressions": [requirement]},
    ]
    assert tight["podAntiAffinity"] == {"x": 1}
    assert len(_terms(own)[0]["matchExpressions"]) == 1


def test_admit_is_written_before_anything_is_released() -> None:
    outcome = keep(group({"w": 2}), pod("w", 0), pod("w", 1), decision=decided(Action.ADMIT, w=2))
    assert on_pods(outcome) == {}
    written = status(outcome)
    assert written["members"] == [{"name": "w", "admitted": 2, "ready": 0}]
    assert conditions.is_true(written["conditions"], "Admitted")
    assert written["state"] == "Admitted"


def test_evict_ends_the_admission_and_counts(subtests: Any) -> None:
    entry = group({"w": 1}, {"w": 1})
    decision = decided(Action.EVICT, Reason.PODS_READY_TIMEOUT, "not ready in 300 s")
    written = status(keep(entry, pod("w", 0, "released"), decision=decision))
    assert written["evictions"] == 1
    for kind, value in {"Admitted": False, "QuotaReserved": False, "Evicted": True}.items():
        with subtests.test(kind):
            assert conditions.is_true(written["conditions"], kind) is value
    assert "members" not in written


def test_admitted_and_evicted_exclude_each_other_after_readmission() -> None:
    entry = group({"w": 1}, more=[condition("Evicted")])
    written = status(keep(entry, pod("w", 0), decision=decided(Action.ADMIT, w=1)))
    assert conditions.is_true(written["conditions"], "Admitted")
    assert not conditions.is_true(written["conditions"], "Evicted")


def test_position_alone_is_a_soft_write() -> None:
    first = keep(group({"w": 1}), decision=decided(Action.WAIT, Reason.WAITING_FOR_QUOTA, "needs 1"))
    written = status(first)
    entry = group({"w": 1})
    entry.status = written
    moved = Decision(entry.key, Action.WAIT, Reason.WAITING_FOR_QUOTA, "needs 1", position=3)
    outcome = keep(entry, decision=moved)
    assert not outcome.writes
    assert len(outcome.soft_writes) == 1


def test_a_second_look_at_what_was_written_writes_nothing() -> None:
    entry = group({"w": 1}, {"w": 1})
    decision = decided(Action.KEEP, w=1)
    running = pod("w", 0, "running")
    entry.status = status(keep(entry, running, decision=decision))
    again = keep(entry, running, decision=decision, now=NOW + 60)
    assert (again.writes, again.soft_writes, again.notices) == ([], [], [])


def test_a_batch_jobs_group_finishes_when_all_its_pods_have_succeeded() -> None:
    entry = group({"w": 2}, {"w": 2})
    outcome = keep(
        entry, pod("w", 0, "succeeded"), pod("w", 1, "succeeded"), decision=decided(Action.KEEP, w=2)
    )
    assert status(outcome)["state"] == "Finished"


def test_quota_without_pods_ends_after_the_time_out() -> None:
    """kueue#14811: a group whose pods are gone must not hold its quota for hours."""
    gone = condition("PodsReady", False, "PodsGone", at="2027-01-15T07:00:00Z")
    entry = group({"w": 1}, {"w": 1}, more=[gone])
    entry.status = {**entry.status, "readyAt": "2027-01-15T06:00:00Z"}
    assert status(keep(entry, decision=decided(Action.KEEP, w=1)))["state"] == "Finished"
    assert "Finished" not in str(status(keep(entry, decision=decided(Action.KEEP, w=1), now=NOW - 3580)))


def test_a_reservation_without_pods_stays() -> None:
    outcome = keep(group({"w": 1}, {"w": 1}), decision=decided(Action.KEEP, w=1), now=NOW + 1e6)
    assert status(outcome)["state"] == "Admitted"


def test_the_end_of_the_job_ends_its_group() -> None:
    entry = group({"w": 1}, {"w": 1})
    outcome = keep(entry, job_end=("JobSucceeded", "done"), job_uid="uid-j")
    assert status(outcome)["reason"] == "JobSucceeded"


def test_a_restart_releases_nothing_until_the_last_pod_of_the_old_run_is_gone() -> None:
    """Else new workers run beside a dying coordinator, are torn from it, and start again and again."""
    entry = group({"s": 1, "w": 1}, {"s": 1, "w": 1})
    entry.status = {**entry.status, "readyAt": "2027-01-15T06:00:00Z"}
    held = {"decision": decided(Action.KEEP, s=1, w=1)}
    assert on_pods(keep(entry, pod("s", 0, "running-"), pod("w", 0, attempt=1), **held)) == {}
    assert on_pods(keep(entry, pod("w", 0, attempt=1), **held)) == {}
    whole = (pod("s", 0, attempt=1), pod("w", 0, attempt=1))
    assert on_pods(keep(entry, *whole, **held)) == {"j-s-0": "patch", "j-w-0": "patch"}


# what is decided in this pass, though the API server still holds an admission of 2 -> writes on two gated pods
ABOUT_TO_CHANGE = {
    "kept": (decided(Action.KEEP, w=2), 2),
    "shrinking": (decided(Action.RESIZE, w=1), 0),  # not whole, so nobody starts
    "evicted": (decided(Action.EVICT, Reason.PREEMPTED, "for another"), 0),
}


@pytest.mark.parametrize(("decision", "released"), ABOUT_TO_CHANGE.values(), ids=ABOUT_TO_CHANGE.keys())
def test_kueue_11977_nothing_starts_that_is_about_to_be_taken_away(decision: Decision, released: int) -> None:
    outcome = keep(group({"w": 2}, {"w": 2}), pod("w", 0), pod("w", 1), decision=decision)
    assert list(on_pods(outcome).values()) == ["patch"] * released


def test_pods_of_a_group_that_nobody_has_decided_upon_are_left_alone() -> None:
    """Its PodGroup was deleted and made anew: undecided is not refused."""
    entry = group({"w": 1})
    entry.status = {}
    assert on_pods(keep(entry, pod("w", 0, "running"))) == {}


def test_volcano_2389_an_admission_without_members_is_an_admission_of_all() -> None:
    entry = group({"w": 1}, {"w": 1})
    entry.status = {k: v for k, v in entry.status.items() if k != "members"}
    outcome = keep(entry, pod("w", 0, "running"))
    assert on_pods(outcome) == {}
    assert status(outcome)["members"] == [{"name": "w", "admitted": 1, "ready": 1}]


def test_a_pod_that_the_job_did_not_make_is_named_and_not_released() -> None:
    entry = group({"w": 1}, {"w": 1})
    stranger = pod("w", 0, owned=False)
    outcome = keep(entry, stranger, job_uid="uid-j")
    assert on_pods(outcome) == {}
    assert "pod j-w-0 is not made by DLJob j" in str(status(outcome)["conditions"])


def test_what_a_deleted_namesake_left_behind_is_waited_for_without_a_word() -> None:
    entry = group({"w": 1}, {"w": 1})
    outcome = keep(entry, pod("w", 0), job_uid="uid-of-the-new-job")
    assert on_pods(outcome) == {}
    assert "j-w-0" not in str(status(outcome)["conditions"])


def test_one_pod_too_many_is_named() -> None:
    entry = group({"w": 1}, {"w": 1})
    written = status(keep(entry, pod("w", 0, "running"), pod("w", 1)))
    ready = conditions.get(written["conditions"], "PodsReady")
    assert ready
    assert ready["status"] == "True"
    assert "pod j-w-1 is one too many: member w has count 1" in ready["message"]


@pytest.mark.parametrize(("reason", "evictions"), [(Reason.SUSPENDED, None), (Reason.PREEMPTED, 1)])
def test_the_owners_own_wish_earns_no_longer_back_off(reason: Reason, evictions: int | None) -> None:
    written = status(keep(group({"w": 1}, {"w": 1}), decision=decided(Action.EVICT, reason, "because")))
    assert written.get("evictions") == evictions


def test_a_back_off_is_told_as_a_moment_and_so_written_once() -> None:
    entry = group({"w": 1})
    entry.status = {**entry.status, "evictions": 2, "requeueAt": "2027-01-15T08:05:00Z"}
    told = [decided(Action.WAIT, Reason.BACKING_OFF, f"tries again in {n} s") for n in (60, 59)]
    entry.status = status(keep(entry, decision=told[0]))
    again = keep(entry, decision=told[1], now=NOW + 1)
    assert (again.writes, again.soft_writes) == ([], [])
    assert "tries again at 2027-01-15T08:05:00Z" in str(entry.status["conditions"])


def test_being_passed_over_is_noted_once_and_ends_with_the_admission() -> None:
    entry = group({"w": 1})
    passed = Decision(KEY, Action.WAIT, Reason.WAITING_FOR_QUOTA, "needs 1", passed_over=True)
    entry.status = status(keep(entry, decision=passed))
    since = entry.status["passedOverSince"]
    assert keep(entry, decision=passed, now=NOW + 60).writes == []
    assert since
    assert "passedOverSince" not in status(keep(entry, decision=decided(Action.ADMIT, w=1)))


def test_what_the_api_server_refuses_to_release_is_told() -> None:
    outcome = keep(group({"w": 1}, {"w": 1}), pod("w", 0), rejection="Pod j-w-0: affinity: Invalid value")
    ready = conditions.get(status(outcome)["conditions"], "PodsReady")
    assert ready
    assert (ready["reason"], "affinity: Invalid value" in ready["message"]) == ("WriteRejected", True)


def ended(reason: str) -> Entry:
    return group({"w": 1}, {"w": 1}, more=[condition("Finished", reason=reason)])


@pytest.mark.parametrize(("reason", "state"), [("PodsGone", "Pending"), ("PodsSucceeded", "Finished")])
def test_a_group_whose_pods_were_gone_queues_again_when_new_ones_come(reason: str, state: str) -> None:
    """A batch Job makes its next pod after a back-off of its own."""
    entry = ended(reason)
    entry.status = {**entry.status, "state": "Finished", "reason": reason}
    outcome = keep(entry, pod("w", 0))
    written = status(outcome) if outcome.writes or outcome.soft_writes else entry.status
    assert written["state"] == state


def test_time_without_pods_counts_from_the_last_admission() -> None:
    long_ago = condition("PodsReady", False, "PodsGone", at="2027-01-15T01:00:00Z")
    entry = group({"w": 1}, {"w": 1}, more=[long_ago])
    entry.status = {**entry.status, "admittedAt": "2027-01-15T07:59:00Z"}
    outcome = keep(entry)
    assert "Finished" not in str([w.body for w in (*outcome.writes, *outcome.soft_writes)])
    assert outcome.wake_at == NOW + 240


def test_conditions_of_other_writers_are_neither_lost_nor_fought_over() -> None:
    entry = group({"w": 1}, {"w": 1})
    running = pod("w", 0, "running")
    entry.status = status(keep(entry, running))
    entry.status["conditions"] = [*entry.status["conditions"], condition("Audited")]
    again = keep(entry, running)
    assert (again.writes, again.soft_writes) == ([], [])


def test_a_status_holds_for_this_object_at_this_version() -> None:
    entry = group({"w": 1})
    (write,) = [
        w for w in keep(entry, decision=decided(Action.ADMIT, w=1)).writes if w.verb is Verb.APPLY_STATUS
    ]
    assert write.body is not None
    assert write.body["metadata"]["uid"] == entry.uid
    assert write.body["metadata"]["resourceVersion"] == str(entry.version)
