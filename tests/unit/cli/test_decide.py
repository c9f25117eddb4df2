"""`dl2 decide`: manifests in, plan out; bad input says what, where and the mend, and exits with 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from dl2.cli.decide import app
from dl2.controller.manifests import Inventory, Manifest
from dl2.scheduling.decide import decide
from dl2.scheduling.plan import Action, Reason
from dl2.scheduling.snapshot import Key

QUEUES = """
apiVersion: dl2.dev/v1alpha1
kind: TenantQueue
metadata: {name: a}
spec: {weight: 0, namespaceSelector: {}, resources: {nvidia.com/gpu: {min: "1"}}}
---
apiVersion: dl2.dev/v1alpha1
kind: TenantQueue
metadata: {name: b}
spec: {namespaceSelector: {}, resources: {nvidia.com/gpu: {min: "2"}}}
"""
NODE = """
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {allocatable: {nvidia.com/gpu: "3", cpu: "32", pods: "110"}}
"""


def group(name: str, queue: str, count: int, least: int, admitted: int | None = None) -> str:
    status = ""
    if admitted is not None:
        condition = '{type: Admitted, status: "True", reason: A, message: "", lastTransitionTime: 2026-11-23T09:00:00Z}'
        status = f"status: {{conditions: [{condition}], members: [{{name: worker, admitted: {admitted}}}]}}"
    return f"""
apiVersion: dl2.dev/v1alpha1
kind: PodGroup
metadata: {{name: {name}, namespace: x}}
spec:
  queue: {queue}
  members: [{{name: worker, count: {count}, minCount: {least}, requests: {{nvidia.com/gpu: "1"}}}}]
{status}
"""


def run(*documents: str, more: tuple[str, ...] = ("-o", "json")) -> Result:
    return CliRunner().invoke(app, ["-f", "-", *more], input="\n---\n".join(documents))


def plan(result: Result) -> dict[str, dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return {entry["name"]: entry for entry in json.loads(result.stdout)["plan"]}


def pod(name: str, group: str, more: str = "", on: str = "n1") -> str:
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: x, labels: {{dl2.dev/pod-group: {group}, dl2.dev/member: worker}}{more}}}
spec: {{nodeName: {on}, containers: [{{name: c, resources: {{requests: {{nvidia.com/gpu: "1"}}}}}}]}}
status: {{phase: Running}}
"""


def test_a_field_that_no_definition_has_is_told_beside_the_plan() -> None:
    misspelt = group("ga", "a", 1, 1).replace("minCount: 1", "minCuont: 1")
    result = run(QUEUES, NODE, misspelt)
    assert plan(result)["ga"]["action"] == "Admit"
    told = "PodGroup x/ga: spec.members[0].minCuont is no field of a PodGroup, and is not read"
    assert result.stderr.splitlines() == [f"dl2 decide: warning: standard input: {told}"]
    assert run(QUEUES, NODE, group("ga", "a", 1, 1)).stderr == ""


def test_to_settle_waits_for_pods_that_are_on_their_way_out() -> None:
    leaving = pod("ga-1", "ga", ", deletionTimestamp: 2026-11-23T09:00:00Z")
    running = (group("ga", "a", 1, 1, admitted=1), pod("ga-0", "ga"), leaving)
    documents = (QUEUES, NODE, *running, group("gb", "b", 2, 2))
    assert plan(run(*documents))["gb"]["reason"] == "WaitingForPreemption"
    assert plan(run(*documents, more=("-o", "json", "--settle")))["gb"]["action"] == "Admit"


def test_what_a_group_holds_before_it_is_admitted_is_asked_for_once() -> None:
    large = NODE.replace('"3"', '"8"')
    result = run(QUEUES, large, group("gb", "b", 3, 3), *(pod(f"gb-{n}", "gb") for n in range(3)))
    assert plan(result)["gb"]["action"] == "Admit"
    figures = json.loads(result.stdout)["queues"]["b"]["nvidia.com/gpu"]
    assert (figures["used"], figures["share"]) == ("3", "3")


@pytest.mark.parametrize("kind", ["suspend", "drain"])
def test_what_must_go_goes_though_its_priority_class_is_gone(kind: str) -> None:
    stop = ", stop: Drain" if kind == "drain" else ""
    queues = f"""
apiVersion: dl2.dev/v1alpha1
kind: TenantQueue
metadata: {{name: a}}
spec: {{namespaceSelector: {{}}{stop}}}
"""
    spec = "spec:\n  priorityClassName: gone" + ("\n  suspend: true" if kind == "suspend" else "")
    running = group("ga", "a", 1, 1, admitted=1).replace("spec:", spec, 1)
    assert plan(run(queues, NODE, running))["ga"]["action"] == "Evict"


WRONG = """
apiVersion: dl2.dev/v1alpha1
kind: DLJob
metadata: {name: wrong, namespace: x}
spec: {queue: a, framework: pytorch, workers: {min: 1, template: {spec: {containers: [{name: c, image: i}]}}}}
"""


def test_one_wrong_object_that_a_cluster_has_let_in_concerns_its_owner_only() -> None:
    """A file of the user's own is refused; a cluster's is a row that says why, and the others get their answers."""
    refused = run(QUEUES, NODE, WRONG, group("gb", "b", 1, 1))
    assert (refused.exit_code, "pytorch" in refused.stderr) == (2, True)
    texts = (*QUEUES.split("---"), NODE, WRONG, pod("wrong-0", "wrong"), group("gb", "b", 1, 1))
    documents = [yaml.safe_load(text) for text in texts]
    found = Inventory([Manifest("cluster", raw, let_in=True) for raw in documents if raw], now=1e9)
    (node,) = found.snapshot(None).nodes
    assert node.used_by_others["nvidia.com/gpu"] == 1
    told = {decision.key.name: decision for decision in decide(found.snapshot(None)).decisions}
    assert told["wrong"].reason is Reason.MISCONFIGURED
    assert "pytorch" in told["wrong"].message
    assert told["gb"].action is Action.ADMIT
    assert not found.sizable().keys() - {Key("x", "wrong")}


def test_the_contracts_example_shrinks_one_and_starts_the_other() -> None:
    documents = (QUEUES, NODE, group("ga", "a", 2, 1, admitted=2), group("gb", "b", 3, 1))
    first = plan(run(*documents))
    assert (first["ga"]["action"], first["ga"]["members"]["worker"]["count"]) == ("Resize", 1)
    assert (first["gb"]["action"], first["gb"]["members"]["worker"]) == (
        "Admit",
        {"count": 1, "domains": {"n1": 1}},
    )
    end = run(*documents, more=("-o", "json", "--settle"))
    last = plan(end)
    assert (last["ga"]["action"], last["ga"]["reason"]) == ("Resize", "Reclaimed")
    assert (last["gb"]["action"], last["gb"]["members"]["worker"]["count"]) == ("Admit", 2)
    figures = json.loads(end.stdout)["queues"]["b"]["nvidia.com/gpu"]
    assert figures == {"used": "2", "share": "2", "borrowed": "0", "lent": "0"}


def test_without_nodes_quota_alone_decides_and_no_domains_are_shown() -> None:
    documents = ("apiVersion: dl2.dev/v1alpha1\nkind: TenantQueue\nmetadata: {name: a}\n"
                 "spec: {namespaceSelector: {}, resources: {nvidia.com/gpu: {max: 4}}}",
                 group("g", "a", 3, 3))  # fmt: skip
    assert plan(run(*documents))["g"]["members"] == {"worker": {"count": 3}}


def test_manifests_without_times_queue_in_the_order_they_stand_in() -> None:
    queue = ("apiVersion: dl2.dev/v1alpha1\nkind: TenantQueue\nmetadata: {name: a}\n"
             "spec: {namespaceSelector: {}, resources: {nvidia.com/gpu: {max: 1}}}")  # fmt: skip
    answer = plan(run(queue, group("z", "a", 1, 1), group("b", "a", 1, 1)))
    assert (answer["z"]["action"], answer["b"]["action"]) == ("Admit", "Wait")
    assert answer["b"]["position"] == 1


def test_a_dljob_without_a_pod_group_is_decided_as_the_one_it_would_own() -> None:
    template = "template: {spec: {containers: [{name: m, image: i, resources: {requests: {cpu: 1}}}]}}"
    job = f"""
apiVersion: dl2.dev/v1alpha1
kind: DLJob
metadata: {{name: j, namespace: x}}
spec: {{queue: a, runtime: static, workers: {{min: 2, max: 4, {template}}}, servers: {{min: 1, {template}}}}}
"""
    members = plan(run(QUEUES, NODE, job))["j"]["members"]
    assert {name: member["count"] for name, member in members.items()} == {
        "coordinator": 1,
        "server": 1,
        "worker": 2,
    }


def test_what_if_replaces_and_snapshot_replays(tmp_path: Path) -> None:
    base, change, saved = tmp_path / "base.yaml", tmp_path / "change.yaml", tmp_path / "saved.json"
    base.write_text("\n---\n".join((QUEUES, NODE, group("g", "b", 4, 4))))
    change.write_text(NODE.replace('gpu: "3"', 'gpu: "4"'))
    arguments = ["-f", str(base), "--what-if", str(change), "--snapshot-to", str(saved), "-o", "json"]
    answer = CliRunner().invoke(app, arguments)
    assert plan(answer)["g"]["action"] == "Admit"
    assert CliRunner().invoke(app, ["-f", str(saved), "-o", "json"]).stdout == answer.stdout
    assert plan(CliRunner().invoke(app, ["-f", str(base), "-o", "json"]))["g"]["action"] == "Wait"


GONE = "metadata: {deletionTimestamp: 2026-11-23T09:00:00Z, finalizers: [foregroundDeletion], "


@pytest.mark.parametrize(
    "going",
    [
        pytest.param(group("g", "b", 3, 3).replace("metadata: {", GONE), id="the group"),
        pytest.param(
            group("g", "b", 3, 3) + "---\n" + "{apiVersion: v1, kind: Namespace, " + GONE + "name: x}}",
            id="its namespace",
        ),
    ],
)
def test_what_is_being_deleted_starts_nothing_and_takes_nothing(going: str) -> None:
    other = group("h", "a", 2, 2, admitted=2).replace("namespace: x", "namespace: y")
    assert {name: entry["action"] for name, entry in plan(run(QUEUES, NODE, other, going)).items()} == {
        "h": "Keep"
    }


def test_a_folder_is_its_manifests(tmp_path: Path) -> None:
    for name, text in {
        "a.yaml": QUEUES,
        "b.yml": NODE,
        "c.yaml": group("g", "b", 1, 1),
        "README.md": "no manifest",
    }.items():
        (tmp_path / name).write_text(text)
    shown = CliRunner().invoke(app, ["-f", str(tmp_path), "-o", "json"])
    assert plan(shown)["g"]["action"] == "Admit"


def test_a_folder_without_manifests_is_bad_input(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["-f", str(tmp_path)])
    assert (shown.exit_code, "holds no .json, .yaml, .yml file" in shown.output) == (2, True)


def test_lists_are_opened() -> None:
    item = {
        "metadata": {"name": "g", "namespace": "x"},
        "spec": {"queue": "a", "members": [{"name": "w", "count": 1}]},
    }
    as_list = {"kind": "PodGroupList", "apiVersion": "dl2.dev/v1alpha1", "items": [item]}
    assert plan(run(QUEUES, json.dumps(as_list)))["g"]["action"] == "Admit"


def test_the_table_is_for_people() -> None:
    result = run(QUEUES, NODE, group("g", "b", 1, 1), more=())
    assert result.exit_code == 0
    assert "Admit" in result.stdout
    assert "x/g" in result.stdout


BAD = {
    "not YAML": ("a: [", ["standard input", "no YAML"]),
    "no object": ("just text", ["standard input", "no Kubernetes object"]),
    "no kind": ("metadata: {name: x}", ["kind: is missing"]),
    "no name": ("kind: Node\nmetadata: {}", ["Node: metadata.name"]),
    "bad quantity": (
        group("g", "a", 1, 1).replace('gpu: "1"', 'gpu: "1x"'),
        ["PodGroup x/g", "spec.members[0].requests"],
    ),
    "min above count": (
        group("g", "a", 1, 2),
        ["PodGroup x/g", "spec.members[0].minCount", "lower minCount"],
    ),
    "old version": (
        "apiVersion: dl2.dev/v1\nkind: PodGroup\nmetadata: {name: g}",
        ["apiVersion", "v1alpha1"],
    ),
    "bad time": (
        group("g", "a", 1, 1).replace("namespace: x", "namespace: x, creationTimestamp: today"),
        ["g", "today"],
    ),
    "node": (
        "kind: Node\nmetadata: {name: n}\nstatus: {allocatable: {cpu: many}}",
        ["Node n", "allocatable", "many"],
    ),
    "pod": ("kind: Pod\nmetadata: {name: p}\nspec: {containers: 3}", ["Pod default/p", "spec.containers"]),
    "pod on a list": (
        "kind: Pod\nmetadata: {name: p}\nspec: {nodeName: [n1]}",
        ["Pod default/p", "spec.nodeName"],
    ),
    "pod label": (
        "kind: Pod\nmetadata: {name: p, labels: {dl2.dev/pod-group: {a: b}}}",
        ["Pod default/p", "metadata.labels[dl2.dev/pod-group]"],
    ),
    "pod request": (
        "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, resources: {requests: {cpu: x}}}]}",
        ["Pod default/p", "spec.containers[0].resources.requests", "cpu"],
    ),
    "pod overhead": ("kind: Pod\nmetadata: {name: p}\nspec: {overhead: 3}", ["spec.overhead"]),
    "pod allocation": (
        "kind: Pod\nmetadata: {name: p}\nstatus: {containerStatuses: [{name: c, allocatedResources: {cpu: x}}]}",
        ["Pod default/p", "status.containerStatuses[0].allocatedResources", "cpu"],
    ),
    "pod status": ("kind: Pod\nmetadata: {name: p}\nstatus: oops", ["Pod default/p: status"]),
    "unquoted label": (
        "kind: Node\nmetadata: {name: n, labels: {dl2.dev/rack: 1}}",
        ["Node n", "metadata.labels[dl2.dev/rack]", "in quotes"],
    ),
    "taints": ("kind: Node\nmetadata: {name: n}\nspec: {taints: oops}", ["Node n", "spec.taints"]),
    "allocatable": (
        "kind: Node\nmetadata: {name: n}\nstatus: {allocatable: []}",
        ["Node n", "status.allocatable"],
    ),
    "unquoted True": (
        "kind: Node\nmetadata: {name: n}\nstatus: {conditions: [{type: Ready, status: True}]}",
        ["Node n", "status.conditions[0].status", "'True'"],
    ),
    "priority": ("kind: PriorityClass\nmetadata: {name: p}\nvalue: oops", ["PriorityClass p", "value"]),
    "time that is no number": (
        group("g", "a", 1, 1).replace("namespace: x", "namespace: x, creationTimestamp: .nan"),
        ["PodGroup x/g", "metadata.creationTimestamp"],
    ),
    "job status": (
        "apiVersion: dl2.dev/v1alpha1\nkind: DLJob\nmetadata: {name: j}\nspec: {}\nstatus: {conditions: oops}",
        ["DLJob default/j"],
    ),
    "misspelt kind": (
        "apiVersion: dl2.dev/v1alpha1\nkind: PodGruop\nmetadata: {name: g}",
        ["PodGruop", "PodGroup"],
    ),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_exits_with_2_and_says_what_and_where(text: str, said: list[str]) -> None:
    result = run(text)
    assert result.exit_code == 2
    for part in said:
        assert part in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_time_option() -> None:
    result = run(NODE, more=("--now", "yesterday"))
    assert (result.exit_code, "--now" in result.stderr) == (2, True)


def test_nothing_to_decide_on() -> None:
    assert CliRunner().invoke(app, []).exit_code == 2


def topology(node: str, *free: int) -> str:
    zones = [
        f'{{name: node-{i}, type: Node, resources: [{{name: nvidia.com/gpu, available: "{n}"}}]}}'
        for i, n in enumerate(free)
    ]
    return f"""
apiVersion: topology.node.k8s.io/v1alpha2
kind: NodeResourceTopology
metadata: {{name: {node}}}
zones: [{", ".join(zones)}]
"""


GUARANTEED = """
apiVersion: v1
kind: Pod
metadata: {name: g-0, namespace: x, labels: {dl2.dev/pod-group: g, dl2.dev/member: worker}}
spec:
  schedulingGates: [{name: dl2.dev/admission}]
  containers:
  - {name: c, image: i, resources: {limits: {cpu: "1", memory: 1Gi, nvidia.com/gpu: "2"}}}
"""


def test_guaranteed_pods_go_where_node_resource_topology_tells_of_a_free_zone() -> None:
    nodes = [NODE, NODE.replace("n1", "n2")]
    members = "[{name: worker, count: 1, requests: {cpu: '1', memory: 1Gi, nvidia.com/gpu: '2'}}]"
    gang = (
        "apiVersion: dl2.dev/v1alpha1\nkind: PodGroup\nmetadata: {name: g, namespace: x}\n"
        f"spec: {{queue: b, members: {members}}}\n"
    )
    nodes = [n.replace('cpu: "32"', 'cpu: "32", memory: 64Gi') for n in nodes]
    placed = plan(run(QUEUES, *nodes, gang, GUARANTEED, topology("n1", 1, 1), topology("n2", 2, 0)))
    assert placed["g"]["members"]["worker"]["domains"] == {"n2": 1}
    placed = plan(run(QUEUES, *nodes, gang, GUARANTEED, topology("n1", 2, 0), topology("n2", 1, 1)))
    assert placed["g"]["members"]["worker"]["domains"] == {"n1": 1}


# -- --policy: numbers that a scaling policy chooses ----------------------------------------------------------------
def elastic(name: str, queue: str, most: int = 6, **spec: Any) -> str:
    container = {"name": "m", "image": "i", "resources": {"requests": {"cpu": "1"}}}
    trainer = {"name": "m", "image": "i", "resources": {"requests": {"cpu": "1", "nvidia.com/gpu": "1"}}}
    body = {
        "queue": queue,
        "model": "mlp",
        "training": {"epochs": 10, "stepsPerEpoch": 10},
        "workers": {"min": 1, "max": most, "template": {"spec": {"containers": [trainer]}}},
        "servers": {"min": 1, "max": 2, "template": {"spec": {"containers": [container]}}},
    }
    metadata = {"name": name, "namespace": "x"}
    return json.dumps(
        {"apiVersion": "dl2.dev/v1alpha1", "kind": "DLJob", "metadata": metadata, "spec": body | spec}
    )


BIG_NODE = NODE.replace('"3"', '"8"')


def workers(result: Result) -> dict[str, int]:
    return {name: entry["members"]["worker"]["count"] for name, entry in plan(result).items()}


@pytest.mark.parametrize("policy", ["drf", "envelope", "dl2", "srtf"])
@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([elastic("j", "b")], {"j": 6}),  # alone, all that it may have
        ([elastic("j", "b", most=4)], {"j": 4}),
        ([elastic("j", "b", scaling={"mode": "Fixed"})], {"j": 1}),  # its owner decides
        ([elastic("j", "b", runtime="static")], {"j": 1}),  # it would have to restart
        (
            [elastic("j", "b"), group("g", "a", 6, 6, admitted=6)],
            {"j": 2, "g": 6},
        ),  # others keep what they have
    ],
)
def test_a_policy_sizes_elastic_jobs(policy: str, jobs: list[str], expected: dict[str, int]) -> None:
    assert workers(run(QUEUES, BIG_NODE, *jobs, more=("-o", "json", "--policy", policy))) == expected


def test_a_policy_stays_within_the_share_of_each_queue() -> None:
    """Guarantees 1 and 2 of 8; what is left is b's alone, for a has no weight."""
    documents = (QUEUES, BIG_NODE, elastic("j", "a"), elastic("k", "b"))
    told = workers(run(*documents, more=("-o", "json", "--policy", "drf")))
    assert told == {"j": 1, "k": 6}


def test_what_a_policy_chooses_comes_to_rest() -> None:
    documents = (QUEUES, BIG_NODE, elastic("j", "a"), elastic("k", "b"))
    assert run(*documents, more=("-o", "json", "--policy", "dl2", "--settle")).exit_code == 0


@pytest.mark.parametrize("policy", ["nope", "optimus-oracle", "/nowhere/x.safetensors"])
def test_a_policy_that_cannot_be_used_is_bad_input(policy: str) -> None:
    result = run(QUEUES, NODE, elastic("j", "a"), more=("--policy", policy))
    assert result.exit_code == 2
    assert "--policy" in result.stderr
