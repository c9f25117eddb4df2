"""The installation manifests on a real API server: they build, apply, and give the rights they should and no others."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from dl2 import resources
from dl2.api.names import API_VERSION, GROUP
from dl2.cluster.resources import WATCHED
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.errors import ClusterError
from dl2.embedded.waiting import wait_until

pytestmark = pytest.mark.integration

NAMESPACE, ACCOUNT = "dl2-system", "dl2-operator"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
OVERLAYS = ("", "base", "overlays/ha", "overlays/native-gang")
Objects = dict[tuple[str, str], dict[str, Any]]


def build(cluster: EmbeddedCluster, overlay: str) -> Objects:
    """What kustomize makes of an overlay, by kind and name."""
    built = cluster.kubectl("kustomize", str(resources.directory("manifests") / overlay))
    documents = list(yaml.safe_load_all(built))
    objects = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(objects) == len(documents)
    return objects


@pytest.fixture(scope="module")
def installed(embedded_cluster: EmbeddedCluster) -> Iterator[EmbeddedCluster]:
    """The cluster with the highly available overlay applied; without nodes, so that nothing of it runs."""
    directory = str(resources.directory("manifests") / "overlays/ha")
    embedded_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", directory)
    yield embedded_cluster
    made = [
        document
        for (kind, _), document in build(embedded_cluster, "overlays/ha").items()
        if kind != "CustomResourceDefinition"
    ]
    embedded_cluster.kubectl("delete", "-f", "-", "--wait=false", input=yaml.safe_dump_all(made))


# -- what they contain ------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_builds_with_crds_rights_and_operator(
    embedded_cluster: EmbeddedCluster, overlay: str
) -> None:
    objects = build(embedded_cluster, overlay)
    crds = {name for kind, name in objects if kind == "CustomResourceDefinition"}
    assert crds == {
        f"{plural}.{GROUP}" for plural in ("tenantqueues", "podgroups", "dljobs", "scalingpolicies")
    }
    assert ("Namespace", NAMESPACE) in objects
    assert {name for kind, name in objects if kind == "ClusterRole"} == {
        "dl2-operator",
        "dl2-viewer",
        "dl2-editor",
        *(["dl2-operator-native-gang"] if overlay.endswith("native-gang") else []),
    }
    for kind in ("ServiceAccount", "Deployment", "Service", "ClusterRoleBinding", "PriorityClass"):
        assert (kind, ACCOUNT) in objects
    assert {document["metadata"].get("namespace", NAMESPACE) for document in objects.values()} == {NAMESPACE}


def test_one_operator_is_never_two(embedded_cluster: EmbeddedCluster) -> None:
    spec = build(embedded_cluster, "base")["Deployment", ACCOUNT]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert "--leader-elect" not in spec["template"]["spec"]["containers"][0]["args"]


def test_two_operators_elect_a_leader_and_are_not_evicted_together(embedded_cluster: EmbeddedCluster) -> None:
    objects = build(embedded_cluster, "overlays/ha")
    spec = objects["Deployment", ACCOUNT]["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (2, "RollingUpdate")
    container = spec["template"]["spec"]["containers"][0]
    assert container["args"] == ["run", "--log-format", "json", "--listen", "0.0.0.0:8080", "--leader-elect"]
    assert {variable["name"] for variable in container["env"]} == {
        "POD_NAME",
        "DL2_DECISION_LOG",
        "DL2_LEASE_NAMESPACE",
    }
    budget = objects["PodDisruptionBudget", ACCOUNT]["spec"]
    assert budget["minAvailable"] == 1
    assert budget["selector"] == spec["selector"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_accepted_by_the_server(installed: EmbeddedCluster, overlay: str) -> None:
    directory = str(resources.directory("manifests") / overlay)
    applied = installed.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-k",
        directory,
    )
    assert applied.count("serverside-applied (server dry run)") == len(build(installed, overlay))


# -- Pod Security -----------------------------------------------------------------------------------


def without_root_check(spec: dict[str, Any]) -> None:
    del spec["securityContext"]["runAsNonRoot"]


def with_a_writable_capability(spec: dict[str, Any]) -> None:
    spec["containers"][0]["securityContext"]["capabilities"] = {"add": ["NET_ADMIN"]}


@pytest.mark.parametrize("spoil", [None, without_root_check, with_a_writable_capability])
@pytest.mark.parametrize("overlay", ["base", "overlays/ha"])
def test_the_operator_passes_restricted_pod_security(
    installed: EmbeddedCluster, overlay: str, spoil: Callable[[dict[str, Any]], None] | None
) -> None:
    template = build(installed, overlay)["Deployment", ACCOUNT]["spec"]["template"]
    metadata = {"name": "trial", "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
    if spoil:
        spoil(template["spec"])
    pod = json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    if spoil is None:
        installed.kubectl("create", "--dry-run=server", "-f", "-", input=pod)
    else:  # the namespace really enforces it
        with pytest.raises(ClusterError, match="violates PodSecurity"):
            installed.kubectl("create", "--dry-run=server", "-f", "-", input=pod)


def test_the_deployment_makes_its_pods(installed: EmbeddedCluster) -> None:
    def pods() -> bool:
        found = json.loads(installed.kubectl("get", "pods", "-n", NAMESPACE, "-o", "json"))["items"]
        return len(found) == 2

    wait_until(pods, "the two pods of the Deployment", 30)


# -- rights -----------------------------------------------------------------------------------------

READ = {"get", "list", "watch"}
STATUS = {"get", "patch"}
# All that the operator may do, anywhere in the cluster: (group, resource) -> verbs.
OPERATOR_MAY = {
    **{(GROUP, plural): READ | {"patch"} for plural in ("tenantqueues", "scalingpolicies")},
    (GROUP, "podgroups"): READ | {"patch", "create", "delete"},
    (GROUP, "dljobs"): READ | {"patch", "delete"},
    **{
        (GROUP, f"{plural}/status"): STATUS
        for plural in ("tenantqueues", "podgroups", "dljobs", "scalingpolicies")
    },
    (GROUP, "dljobs/finalizers"): {"update"},
    **{("", plural): READ | {"create", "patch", "delete"} for plural in ("pods", "services")},
    ("", "secrets"): {"create"},
    **{("", plural): READ for plural in ("nodes", "namespaces")},
    ("scheduling.k8s.io", "priorityclasses"): READ,
    ("topology.node.k8s.io", "noderesourcetopologies"): READ,
    **{(group, "events"): {"create", "patch"} for group in ("", "events.k8s.io")},
}


def test_the_operator_has_these_rights_and_no_others(embedded_cluster: EmbeddedCluster) -> None:
    granted: dict[tuple[str, str], set[str]] = {}
    for rule in build(embedded_cluster, "base")["ClusterRole", ACCOUNT]["rules"]:
        assert not rule.keys() - {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for plural in rule["resources"]:
                granted.setdefault((group, plural), set()).update(rule["verbs"])
    assert granted == OPERATOR_MAY


@pytest.mark.parametrize("resource", WATCHED, ids=lambda resource: resource.plural)
def test_the_operator_may_read_what_it_watches(resource: Any) -> None:
    assert OPERATOR_MAY[resource.group, resource.plural] >= READ


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "allowed"),
    [
        ("patch", f"dljobs.{GROUP}/status", "default", True),
        ("create", "pods", "default", True),
        ("patch", "pods", "default", True),
        ("list", "nodes", None, True),
        ("create", "leases.coordination.k8s.io", NAMESPACE, True),
        ("update", "leases.coordination.k8s.io/dl2-operator", NAMESPACE, True),
        ("update", "leases.coordination.k8s.io/other", NAMESPACE, False),
        ("create", "leases.coordination.k8s.io", "kube-system", False),
        ("get", "secrets", NAMESPACE, False),
        ("list", "secrets", "default", False),
        ("get", "configmaps", "default", False),
        ("create", "pods/exec", "default", False),
        ("create", "pods/binding", "default", False),
        ("patch", "nodes", None, False),
        ("delete", "namespaces", None, False),
        ("create", f"tenantqueues.{GROUP}", None, False),
        ("create", f"dljobs.{GROUP}", "default", False),
        ("get", "customresourcedefinitions.apiextensions.k8s.io", None, False),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io", None, False),
        ("impersonate", "users", None, False),
    ],
)
def test_the_server_decides_so_for_the_operator(
    installed: EmbeddedCluster, verb: str, resource: str, namespace: str | None, allowed: bool
) -> None:
    assert may(installed, OPERATOR, verb, resource, namespace) is allowed


def may(cluster: EmbeddedCluster, user: str, verb: str, resource: str, namespace: str | None) -> bool:
    """Whether the API server lets `user`; `resource` is PLURAL[.GROUP][/SUBRESOURCE or /NAME, as kubectl has it]."""
    kind, _, rest = resource.partition("/")
    plural, _, group = kind.partition(".")
    subresource = rest in ("status", "scale", "exec", "binding", "finalizers")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": rest if subresource else "",
        "name": "" if subresource else rest,
        "namespace": namespace or "",
    }
    groups = (
        ["system:serviceaccounts", "system:authenticated"]
        if user.startswith("system:")
        else ["system:authenticated"]
    )
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
    }
    answer = json.loads(cluster.kubectl("create", "-o", "json", "-f", "-", input=json.dumps(review)))
    return bool(answer["status"]["allowed"])


# A person with one of Kubernetes' own roles in a namespace: what of ours comes with it.
PEOPLE = [
    ("view", "list", f"dljobs.{GROUP}", True),
    ("view", "get", f"podgroups.{GROUP}/status", True),
    ("view", "create", f"dljobs.{GROUP}", False),
    ("view", "patch", f"dljobs.{GROUP}/scale", False),
    ("edit", "list", f"podgroups.{GROUP}", True),
    ("edit", "create", f"dljobs.{GROUP}", True),
    ("edit", "delete", f"podgroups.{GROUP}", True),
    ("edit", "patch", f"dljobs.{GROUP}/scale", True),
    ("edit", "patch", f"dljobs.{GROUP}/status", False),
    ("edit", "patch", f"podgroups.{GROUP}/status", False),
    ("admin", "create", f"podgroups.{GROUP}", True),
    ("admin", "patch", f"podgroups.{GROUP}/status", False),
    ("admin", "create", f"tenantqueues.{GROUP}", False),
]


@pytest.fixture(scope="module")
def people(installed: EmbeddedCluster) -> Iterator[str]:
    """Users called view, edit and admin with the role of that name in one namespace, once the roles are aggregated."""
    place = "people"
    installed.kubectl("create", "namespace", place)
    for role in ("view", "edit", "admin"):
        installed.kubectl(
            "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}", "-n", place
        )

    def aggregated() -> bool:
        return all(
            may(installed, role, "list", f"dljobs.{GROUP}", place) for role in ("view", "edit", "admin")
        )

    wait_until(aggregated, "the controller manager to aggregate the roles", 30)
    yield place
    installed.kubectl("delete", "namespace", place, "--wait=false")


@pytest.mark.parametrize(("role", "verb", "resource", "allowed"), PEOPLE)
def test_people_get_rights_with_their_role_in_a_namespace(
    installed: EmbeddedCluster, people: str, role: str, verb: str, resource: str, allowed: bool
) -> None:
    assert may(installed, role, verb, resource, people) is allowed


@contextmanager
def running_operator(kubeconfig: Path, log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "dl2", "run", "--kubeconfig", str(kubeconfig), "--listen", "127.0.0.1:0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--log-format", "json", *options], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("options", [(), ("--leader-elect",)], ids=["alone", "leader-elect"])
def test_the_operator_does_its_work_with_exactly_these_rights(
    installed: EmbeddedCluster, simulated_nodes: Any, namespace: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """A job from submission to deletion, and a foreign pod released, with no request refused."""
    simulated_nodes(2, gpus=8)
    container = {"name": "main", "image": "none", "resources": {"requests": {"cpu": "100m"}}}
    role = {"template": {"spec": {"containers": [container]}}}
    group_labels = {"dl2.dev/pod-group": "gang", "dl2.dev/member": "worker"}
    head = {"apiVersion": API_VERSION, "metadata": {"name": "train", "namespace": namespace}}
    objects = [
        {**head, "kind": "TenantQueue", "metadata": {"name": namespace}, "spec": {}},
        {**head, "kind": "DLJob", "spec": {"workers": role, "servers": role}},
        {
            **head,
            "kind": "PodGroup",
            "metadata": {"name": "gang", "namespace": namespace},
            "spec": {"members": [{"name": "worker", "count": 1, "requests": {"cpu": "100m"}}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "foreign", "namespace": namespace, "labels": group_labels},
            "spec": {"schedulingGates": [{"name": "dl2.dev/admission"}], "containers": [container]},
        },
    ]
    log = tmp_path / "operator.log"
    kubeconfig = installed.write_service_account_kubeconfig(tmp_path / "kubeconfig", NAMESPACE, ACCOUNT)

    def shown(*what: str) -> str:
        return installed.kubectl("get", "-n", namespace, *what)

    with running_operator(kubeconfig, log, *options) as operator:

        def holds(condition: Callable[[], bool], what: str) -> None:
            def checked() -> bool:
                assert operator.poll() is None, f"the operator has ended:\n{log.read_text()[-3000:]}"
                return condition()

            wait_until(checked, what, 60)

        installed.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))
        holds(lambda: shown("dljob/train", "-o", "jsonpath={.status.state}") == "Running", "the job to run")
        holds(lambda: "Running" in shown("pod/foreign"), "the foreign pod to run")
        holds(lambda: shown("events.events.k8s.io", "-o", "name") != "", "an Event")
        installed.kubectl(
            "patch", "dljob/train", "-n", namespace, "--type=merge", "-p", '{"spec": {"suspend": true}}'
        )
        holds(lambda: "train-worker-0" not in shown("pods", "-o", "name"), "the job's pods to be gone")
        installed.kubectl("delete", "tenantqueue", namespace)
    assert "forbidden" not in log.read_text()


def test_a_kubeconfig_of_the_service_account_has_its_rights(
    installed: EmbeddedCluster, tmp_path: Path
) -> None:
    path = installed.write_service_account_kubeconfig(tmp_path / "kubeconfig", NAMESPACE, ACCOUNT)
    assert path.stat().st_mode & 0o077 == 0
    as_operator = f"--kubeconfig={path}"
    assert OPERATOR in installed.kubectl(as_operator, "auth", "whoami")
    installed.kubectl(as_operator, "get", "nodes")
    with pytest.raises(ClusterError, match="forbidden"):
        installed.kubectl(as_operator, "get", "secrets")
