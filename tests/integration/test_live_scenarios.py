"""Scenarios of the decision core's tables, live: a real API server and kube-scheduler, simulated nodes, real pods.

Each scenario has an extended resource of its own in the place of GPUs, so that nothing else in the cluster counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from types import ModuleType
from typing import Any

import pytest

from dl2.api import names
from dl2.embedded import kwok
from dl2.embedded.cluster import EmbeddedCluster
from dl2.scheduling.snapshot import Group, Limits, Node, Queue
from tests.integration.operator_harness import Api, Operator, eventually, gated, job, queue, running
from tests.unit.scheduling import test_gang, test_making_room, test_order, test_placement, test_quota
from tests.unit.scheduling.cases import Case
from tests.unit.scheduling.dsl import GPU

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
TABLES = (test_quota, test_order, test_making_room, test_gang, test_placement)
SAMPLE = [
    "up to max", "siblings share the max of their parent", "nothing of an unused min is lent",
    "hold of a parent holds its children", "drain evicts",
    "strict does not", "best effort passes over", "priority before age", "the queue with less goes first",
    "contract: within min takes one of b", "contract: above min takes one of b by fairness",
    "contract: nobody for two", "contract: growth shrinks another's elastic part",
    "the owner reclaims all of its min", "reclaim Never", "higher priority evicts the youngest lower",
    "shrink before evict", "the lowest of the lower goes first",
    "all or nothing over nodes", "a partial start between minCount and count", "several members together",
    "required rack", "required hostname",
]  # fmt: skip


def tables(modules: tuple[ModuleType, ...]) -> dict[str, Case]:
    marks = (
        mark
        for module in modules
        for test in vars(module).values()
        for mark in getattr(test, "pytestmark", ())
    )
    return {case.name: case for mark in marks if mark.args[:1] == ("case",) for case in mark.args[1]}


CASES = tables(TABLES)


class Live:
    """One scenario in one namespace. Names of queues and nodes begin with the namespace's, which is unique."""

    def __init__(self, api: Api, cluster: EmbeddedCluster, case: Case) -> None:
        self.api, self.cluster, self.case = api, cluster, case
        self.space = api.namespace
        self.resource = f"scenario.dl2.dev/{self.space}"
        self.nodes: list[str] = []

    def start(self) -> None:
        self.nodes = [f"{self.space}-{node.name}" for node in self.case.nodes or ()]
        kwok.create(self.cluster, [self.node(node) for node in self.case.nodes or ()])
        self.api.apply(self.root("None"))
        for each in self.case.queues:
            self.api.apply(self.queue(each))
        for priority in {group.priority for group in self.case.groups} - {0}:
            self.api.apply({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": {"name": self.priority(priority)}, "value": priority,
            })  # fmt: skip
        begun = [group for group in self.case.groups if group.admitted is not None]
        later = [group for group in self.case.groups if group.admitted is None]
        self.submit(begun)
        for group in begun:
            self.api.wait_state("Ready", self.name(group), kind="PodGroup")
        self.api.apply(self.root("Hold"))  # all that waits is decided upon at once, as in the tables
        time.sleep(0.5)  # the watches of two kinds may be apart
        for each in self.case.queues:  # what is held or drained was not while its first groups came
            if each.stop != "None":
                self.api.patch("TenantQueue", f"{self.space}-{each.name}", {"spec": {"stop": str(each.stop)}})
        self.submit(later)
        for group in later:
            eventually(
                lambda group=group: self.api.state(self.name(group), "PodGroup"), f"{group.key} being seen"
            )
        self.api.apply(self.root("None"))

    def submit(self, groups: list[Group]) -> None:
        """In the order of their age, which the API server tells in whole seconds."""
        for _, alike in groupby(sorted(groups, key=lambda group: group.created), lambda group: group.created):
            for group in alike:
                self.api.apply(self.group(group), *self.pods(group))
            time.sleep(1.05)

    def expected(self) -> dict[str, str]:
        """Where the core alone comes to rest, for every group of the scenario."""
        settled = self.case.world().settled()
        return {str(group.key): settled.get(str(group.key), "-") for group in self.case.groups}

    def end(self) -> dict[str, str]:
        return {str(group.key): self.runs(group) for group in self.case.groups}

    def runs(self, group: Group) -> str:
        """Pods running by member, as the tables write it."""
        pods = [pod for pod in self.api.pods(self.name(group)).values() if running(pod) and not gated(pod)]
        members = [pod["metadata"]["labels"][names.LABEL_MEMBER] for pod in pods]
        counts = [str(members.count(member.name)) for member in group.members]
        return "+".join(counts) if pods else "-"

    # -- manifests ------------------------------------------------------------------------------------------------
    def name(self, group: Group) -> str:
        return f"{group.key.namespace}-{group.key.name}".lower()

    def priority(self, value: int) -> str:
        return f"{self.space}-{value}"

    def node(self, node: Node) -> dict[str, Any]:
        made = kwok.node(f"{self.space}-{node.name}", 0, kwok.Shape(0), {
            key: f"{self.space}-{value}" for key, value in node.labels.items()
        })  # fmt: skip
        room = made["status"]["capacity"] | {self.resource: str(node.allocatable.get(GPU, 0))}
        made["status"] |= {"capacity": room, "allocatable": room}
        return made

    def root(self, stop: str) -> dict[str, Any]:
        """One queue above all others, which changes no share."""
        return queue(f"{self.space}-root", None, stop=stop)

    def queue(self, each: Queue) -> dict[str, Any]:
        def written(limits: Limits) -> dict[str, str]:
            least = (
                limits.min if GPU in each.min_declared else None
            )  # a parent without min has its children's
            named = {"min": least, "max": limits.max, "lend": limits.lend}
            return {key: str(value) for key, value in named.items() if value is not None}

        spec: dict[str, Any] = {
            "weight": each.weight, "strategy": str(each.strategy), "namespaceSelector": {},
            "preemption": {"withinQueue": str(each.within_queue), "reclaim": str(each.reclaim)},
            "resources": {self.resource: written(each.limits[GPU]) if GPU in each.limits else {}},
        }  # fmt: skip
        spec["parent"] = f"{self.space}-{each.parent}" if each.parent else f"{self.space}-root"
        return {
            "apiVersion": names.API_VERSION, "kind": "TenantQueue",
            "metadata": {"name": f"{self.space}-{each.name}"}, "spec": spec,
        }  # fmt: skip

    def group(self, group: Group) -> dict[str, Any]:
        members = [
            {"name": m.name, "count": m.count, "minCount": m.min_count, "requests": self.requests(m.requests)}
            for m in group.members
        ]
        spec: dict[str, Any] = {"queue": f"{self.space}-{group.queue}", "members": members}
        if group.priority:
            spec["priorityClassName"] = self.priority(group.priority)
        if group.topology:
            spec["topology"] = {"required" if group.topology.required else "preferred": group.topology.label}
        return {
            "apiVersion": names.API_VERSION, "kind": "PodGroup", "metadata": {"name": self.name(group)}, "spec": spec,
        }  # fmt: skip

    def requests(self, wanted: Any) -> dict[str, str]:
        written = {name: f"{amount}m" for name, amount in wanted.items() if name != GPU}
        return written | ({self.resource: str(wanted[GPU])} if GPU in wanted else {})

    def pods(self, group: Group) -> Iterator[dict[str, Any]]:
        for member in group.members:
            resources = {"requests": self.requests(member.requests), "limits": self.requests(member.requests)}
            for index in range(member.count):
                labels = {names.LABEL_POD_GROUP: self.name(group), names.LABEL_MEMBER: member.name}
                yield {
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": f"{self.name(group)}-{member.name}-{index}", "labels": labels},
                    "spec": {
                        "schedulingGates": [{"name": names.GATE}], "restartPolicy": "Never",
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{"name": "main", "image": "none", "resources": resources}],
                    },
                }  # fmt: skip


@pytest.fixture
def live(
    request: pytest.FixtureRequest, api: Api, embedded_cluster: EmbeddedCluster, operator: Operator
) -> Iterator[Live]:
    scenario = Live(api, embedded_cluster, CASES[request.param])
    yield scenario
    embedded_cluster.remove_nodes(scenario.nodes)


@pytest.mark.parametrize("live", SAMPLE, indirect=True, ids=[name.replace(" ", "-") for name in SAMPLE])
def test_scenario(live: Live, operator: Operator) -> None:
    live.start()
    expected = live.expected()
    eventually(lambda: live.end() == expected, f"{expected} running")
    operator.wait_quiet()
    assert live.end() == expected


def test_a_drained_node_loses_its_gang_to_another_and_no_quota_leaks(
    embedded_cluster: EmbeddedCluster, simulated_nodes: Any, api: Api, operator: Operator
) -> None:
    (home,) = simulated_nodes(1, cpus=4, prefix=f"{api.namespace}-home", labels={"only-for": api.namespace})
    api.apply(queue(api.namespace, "4"))
    api.apply(job("j", workers=2, servers=1, nodes={"only-for": api.namespace}))
    api.wait_state("Running", "j")
    (other,) = simulated_nodes(1, cpus=4, prefix=f"{api.namespace}-other", labels={"only-for": api.namespace})
    embedded_cluster.kubectl("drain", home, "--force", "--timeout=30s")

    def moved() -> bool:
        pods = [pod for pod in api.pods("j").values() if running(pod)]
        return len(pods) == 4 and {pod["spec"]["nodeName"] for pod in pods} == {other}

    eventually(moved, "the job running on the other node")
    api.wait_state("Running", "j")
    operator.wait_quiet()
    assert moved()
    assert api.status("DLJob", "j")["restarts"] == 0  # a drain is nobody's failure
    assert api.used(api.namespace) == "3100m"


@pytest.mark.timeout(1000)
def test_a_burst_of_a_thousand_jobs_fills_the_queue_and_no_more(
    simulated_nodes: Any, api: Api, operator: Operator
) -> None:
    """2.1 CPUs each, for a worker, a server and the coordinator: 23 of them make 48.3, one more would be above 50."""
    simulated_nodes(4, cpus=64, labels={"only-for": api.namespace})
    api.apply(queue(api.namespace, "50"))
    for n in range(1000):
        api.apply(job(f"j{n:03}", workers=1, nodes={"only-for": api.namespace}))

    def admitted() -> int:
        used = api.used(api.namespace)
        assert used.removesuffix("m").isdigit()
        milli = int(used.removesuffix("m")) * (1 if used.endswith("m") else 1000)
        assert milli <= 50_000
        return milli // 2100

    eventually(lambda: admitted() == 23, "23 jobs admitted", 300)
    waiting = eventually(
        lambda: api.status("TenantQueue", api.namespace).get("pending") == 977, "all others queueing", 300
    )
    assert waiting
    operator.wait_quiet(240)
    assert admitted() == 23
    released: dict[str, list[bool]] = {}
    for pod in api.pods().values():
        released.setdefault(pod["metadata"]["labels"][names.LABEL_JOB], []).append(not gated(pod))
    assert sum(all(pods) for pods in released.values()) == 23
    assert sum(any(pods) for pods in released.values()) == 23  # no partial gang
    assert api.status("PodGroup", "j999")["queuePosition"] == 977
