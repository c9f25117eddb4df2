"""Carry out a plan on a snapshot, as if pods left and started at once and time stood still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dl2.scheduling.items import is_held, leaving_first
from dl2.scheduling.plan import Action, Decision, MemberPlan, Plan, Reason
from dl2.scheduling.snapshot import EMPTY, Admitted, Group, Key, Pod, Snapshot

_NO_FAULT = (Reason.SUSPENDED, Reason.QUEUE_STOPPED)  # evictions that do not count towards the back-off


def settle(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """The snapshot after `plan`: what was evicted or shrunk is gone, what was admitted runs and is ready."""
    decisions: Mapping[Key, Decision] = {decision.key: decision for decision in plan.decisions}
    groups = tuple(_after(group, decisions.get(group.key), snapshot.now) for group in snapshot.groups)
    return replace(snapshot, groups=groups)


def _after(group: Group, decision: Decision | None, now: float) -> Group:
    present = tuple(pod for pod in group.pods if not pod.terminating)
    if decision is None:
        return replace(group, pods=tuple(pod for pod in present if pod.finished))
    if decision.action is Action.EVICT:
        fault = decision.reason not in _NO_FAULT
        return replace(
            group, admitted=None, admitted_at=None, ready_at=None, assumed=EMPTY, progress_lost=0.0,
            evictions=group.evictions + fault, requeue_at=decision.requeue_at or 0.0,
            pods=tuple(pod for pod in present if pod.gated), promised=False,
        )  # fmt: skip
    if decision.action is Action.WAIT:
        since = group.passed_over_since
        return replace(
            group, pods=present, passed_over_since=now if decision.passed_over and since is None else since,
            promised=decision.reason is Reason.WAITING_FOR_PREEMPTION,
        )  # fmt: skip
    return _running(group, present, decision.members, now)


def _running(group: Group, present: tuple[Pod, ...], members: Mapping[str, MemberPlan], now: float) -> Group:
    pods: list[Pod] = [pod for pod in present if pod.finished]
    assumed: dict[str, dict[str, int]] = {}
    for name, member in members.items():
        alive = [pod for pod in present if pod.member == name and not pod.finished]
        held = leaving_first(pod for pod in alive if is_held(pod))
        stay = held[max(0, len(held) - member.count) :]
        spots = {node: count for node, count in member.nodes.items() if count}
        for pod in stay:
            if pod.node is not None and pod.node in spots:
                spots[pod.node] -= 1
        waiting = [pod for pod in stay if pod.node is None] + [pod for pod in alive if pod.gated]
        for pod in waiting[: max(0, member.count - sum(pod.node is not None for pod in stay))]:
            node = next((node for node, count in spots.items() if count > 0), None)
            if node is not None:
                spots[node] -= 1
            pods.append(replace(pod, gated=False, node=node, ready=True))
        pods += [pod for pod in stay if pod.node is not None]
        pods += waiting[max(0, member.count - sum(pod.node is not None for pod in stay)) :]
        assumed[name] = {node: count for node, count in spots.items() if count > 0}
    return replace(
        group, pods=tuple(pods), assumed=assumed,
        admitted={name: Admitted(member.count, member.domain) for name, member in members.items()},
        admitted_at=now if group.admitted is None else group.admitted_at,
        ready_at=now if group.ready_at is None else group.ready_at,
        passed_over_since=None, promised=False,
    )  # fmt: skip
