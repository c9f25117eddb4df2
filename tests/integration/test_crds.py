"""The custom resource definitions on a real API server: accepted, refusing what is wrong, readable with kubectl."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from dl2 import resources
from dl2.api import MODELS, names, parse
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.errors import ClusterError
from tests.integration import operator_conditions
from tests.integration.operator_harness import Operator
from tests.unit.api.wrong_objects import CASES, VALID, changed, names_field, wrong

pytestmark = pytest.mark.integration

KINDS = tuple(MODELS)
KIB = 1024
CONTAINER = ["spec", "workers", "template", "spec", "containers", 0]


class Refusal(Exception):
    """What the API server says when it refuses a request: status code and words."""


class Objects:
    """Custom resources of one namespace, written as any client would: strictly validated, refusals as text."""

    def __init__(self, api: Any, namespace: str) -> None:
        self.api, self.namespace = api, namespace

    def path(self, kind: str, name: str = "", subresource: str = "") -> str:
        scope = f"/namespaces/{self.namespace}" if kind in names.NAMESPACED else ""
        steps = (f"/apis/{names.API_VERSION}{scope}/{names.PLURALS[kind]}", name, subresource)
        return "/".join(step for step in steps if step)

    def call(self, verb: str, path: str, body: Any = None, dry: bool = False) -> Any:
        """The server's answer; raises Refusal with its words."""
        query = {"fieldValidation": "Strict"} if body is not None else {}
        query |= {"dryRun": "All"} if dry else {}
        content = "application/merge-patch+json" if verb == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": content}
        url = f"{self.api.configuration.host}{path}?{urlencode(query)}"
        response = self.api.call_api(verb, url, headers, body)
        answer = json.loads(response.read())
        if response.status >= 400:
            raise Refusal(response.status, answer["message"])
        return answer

    def create(self, raw: dict[str, Any], dry: bool = False) -> Any:
        if raw["kind"] in names.NAMESPACED:
            raw = {**raw, "metadata": {**raw["metadata"], "namespace": self.namespace}}
        return self.call("POST", self.path(raw["kind"]), raw, dry)

    def patch(self, kind: str, name: str, patch: Any, subresource: str = "") -> Any:
        return self.call("PATCH", self.path(kind, name, subresource), patch)

    def delete(self, kind: str, name: str) -> None:
        self.call("DELETE", self.path(kind, name))

    @contextmanager
    def existing(self, raw: dict[str, Any]) -> Iterator[Any]:
        """`raw`, there for as long as the block runs."""
        kind, name = raw["kind"], raw["metadata"]["name"]
        created = self.create(raw)
        try:
            yield created
        finally:
            self.delete(kind, name)


@pytest.fixture(scope="module", autouse=True)
def nobody_reconciles(operator_process: Operator) -> None:
    """What is written stays as it is; an operator that an earlier test has started comes back for the next one."""
    operator_process.stop()


@pytest.fixture(scope="module")
def api(embedded_cluster: EmbeddedCluster) -> Iterator[Any]:
    with embedded_cluster.api() as connected:
        yield connected


@pytest.fixture
def objects(api: Any, namespace: str) -> Objects:
    return Objects(api, namespace)


@pytest.fixture
def rehearsal(api: Any) -> Objects:
    """For writes that are only tried (dry run) and leave nothing behind."""
    return Objects(api, "default")


def refusal(write: Callable[[], Any]) -> str:
    """What the API server says when it refuses a write."""
    with pytest.raises(Refusal) as error:
        write()
    code, words = error.value.args
    assert code in (400, 403, 422), words
    return str(words)


# -- the definitions --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_is_established_and_structural(embedded_cluster: EmbeddedCluster, kind: str) -> None:
    name = f"{names.PLURALS[kind]}.{names.GROUP}"
    crd = json.loads(embedded_cluster.kubectl("get", "crd", name, "-o", "json"))
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert (conditions["Established"], conditions["NamesAccepted"]) == ("True", "True")
    assert "NonStructuralSchema" not in conditions


@pytest.mark.parametrize("short", ["queue", "queues", "tq", "dlpg", "dlj", "dljobs", "dlsp", "dl2"])
def test_short_names_and_the_category_are_served(embedded_cluster: EmbeddedCluster, short: str) -> None:
    embedded_cluster.kubectl("get", short, "-A")  # raises for a name that the server does not know


# -- what is right ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_server_and_types_read_a_valid_object_alike(rehearsal: Objects, kind: str) -> None:
    """The server's defaults, filled into the object it gives back, are the types' own."""
    given = parse(VALID[kind], strict=True)
    stored = parse(rehearsal.create(VALID[kind], dry=True))
    assert stored.spec == given.spec


STATUS: dict[str, dict[str, Any]] = {
    "TenantQueue": {
        "pending": 3,
        "admitted": 2,
        "dominant": "75%/50%",
        "resources": {"nvidia.com/gpu": {"used": "6", "share": "4", "borrowed": "2", "lent": "0"}},
    },
    "PodGroup": {
        "queue": "research",
        "state": "Admitted",
        "reason": "QuotaReserved",
        "queuePosition": 1,
        "estimatedStart": "2026-11-23T09:30:00Z",
        "requeueAt": "2026-11-23T09:30:00Z",
        "evictions": 1,
        "admittedAt": "2026-11-23T09:30:00Z",
        "readyAt": "2026-11-23T09:30:00Z",
        "passedOverSince": "2026-11-23T09:30:00Z",
        "members": [
            {"name": "worker", "admitted": 4, "ready": 3, "domain": {"label": "dl2.dev/rack", "value": "r1"}}
        ],
    },
    "DLJob": {
        "queue": "research",
        "state": "Running",
        "reason": "PodsReady",
        "restarts": 1,
        "workers": {"desired": 4, "ready": 3},
        "servers": {"desired": 1, "ready": 1},
        "progress": {
            "epoch": 3,
            "step": 1500,
            "fraction": 0.1,
            "stepsPerSecond": 12.5,
            "updatedAt": "2026-11-23T09:30:00Z",
            "metrics": {"loss": 0.25, "accuracy": 1},
        },
        "estimatedCompletion": "2026-11-23T10:30:00Z",
        "queuePosition": 0,
        "estimatedStart": "2026-11-23T09:30:00Z",
        "startTime": "2026-11-23T09:30:00Z",
        "completionTime": "2026-11-23T10:30:00Z",
        "lastScaling": {
            "time": "2026-11-23T09:40:00Z",
            "from": {"workers": 2, "servers": 1},
            "to": {"workers": 4, "servers": 1},
            "policy": "dl2",
            "reason": "two GPUs became free",
            "pauseMilliseconds": 18,
        },
        "labelSelector": "dl2.dev/pod-group=train,dl2.dev/member=worker",
        "printed": {"workers": "3/4", "servers": "1/1", "progress": "10%", "speed": "12.5/s"},
    },
    "ScalingPolicy": {
        "stage": "Canary",
        "decisions": 120,
        "agreement": 0.75,
        "predictedGain": 0.12,
        "observed": {
            "champion": {"jobs": 9, "meanJctSeconds": 60.5},
            "challenger": {"jobs": 1, "slowdown": 1.5},
        },
        "lastRollback": {"time": "2026-11-23T09:30:00Z", "reason": "3 failed resizes in 60 minutes"},
    },
}
CONDITION = {
    "type": "Admitted",
    "status": "True",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-11-23T09:30:00Z",
    "reason": "QuotaReserved",
    "message": "4 nvidia.com/gpu of research",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_status_field_is_stored_as_written_and_read_by_the_types(objects: Objects, kind: str) -> None:
    status = {"observedGeneration": 1, **STATUS[kind], "conditions": [CONDITION]}
    with objects.existing(VALID[kind]) as created:
        stored = objects.patch(kind, created["metadata"]["name"], {"status": status}, "status")
    assert stored["status"] == status
    written = parse(stored, strict=True).status.model_dump(by_alias=True, exclude_unset=True)
    assert written == status


@pytest.mark.parametrize(
    "line",
    [
        (
            "TenantQueue",
            "queues",
            "NAME PARENT WEIGHT PENDING ADMITTED USED/SHARE AGE",
            "research company 2 3 2 75%/50%",
        ),
        (
            "PodGroup",
            "dlpg",
            "NAME QUEUE STATE POSITION REASON AGE",
            "gang research Admitted 1 QuotaReserved",
        ),
        (
            "DLJob",
            "dljobs",
            "NAME QUEUE STATE REASON WORKERS SERVERS PROGRESS SPEED ETA AGE",
            "train research Running PodsReady 3/4 1/1 10% 12.5/s 2026-11-23T10:30:00Z",
        ),
        (
            "ScalingPolicy",
            "dlsp",
            "NAME STAGE CHAMPION CHALLENGER DECISIONS AGREEMENT GAIN AGE",
            "default Canary drf dl2 120 0.75 0.12",
        ),
    ],
    ids=lambda line: line[0],
)
def test_kubectl_get_prints(
    embedded_cluster: EmbeddedCluster, objects: Objects, line: tuple[str, ...]
) -> None:
    kind, plural, header, row = line
    name = VALID[kind]["metadata"]["name"]
    with objects.existing(VALID[kind]):
        objects.patch(kind, name, {"status": STATUS[kind]}, "status")
        printed = embedded_cluster.kubectl("get", plural, name, "-n", objects.namespace).splitlines()
    assert printed[0].split() == header.split()
    assert printed[1].split()[:-1] == row.split()


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("tenantqueue.spec.resources", "A resource that is not named is not limited"),
        ("podgroup.spec.members", "how many of them must start together"),
        ("dljob.spec", "Default is the queue named like the namespace"),
        ("dljob.spec.workers.replicas", "kubectl scale writes it"),
        ("dljob.status.printed", "read the fields themselves"),
        ("scalingpolicy.spec.stage", "the challenger decides on paper"),
    ],
)
def test_kubectl_explain_tells(embedded_cluster: EmbeddedCluster, field: str, says: str) -> None:
    explained = embedded_cluster.kubectl("explain", field)
    assert says.lower() in re.sub(r"\s+", " ", explained).lower()


# -- what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"].replace(" ", "-"))
def test_what_is_wrong_is_refused_with_field_and_mend(rehearsal: Objects, case: dict[str, Any]) -> None:
    said = refusal(lambda: rehearsal.create(wrong(case), dry=True))
    assert names_field(said, case["field"])
    assert re.search(case.get("says", ""), said)


@pytest.mark.parametrize(
    ("kind", "at", "value", "field"),
    [
        ("TenantQueue", ["spec", "parent"], "a" * 300 * KIB, "spec.parent"),
        ("TenantQueue", ["metadata", "annotations"], {"note": "x" * 300 * KIB}, "metadata.annotations"),
        ("PodGroup", ["spec", "members", 0, "requests"], {f"r{i}": 1 for i in range(30 * KIB)}, "requests"),
        ("DLJob", [*CONTAINER, "args"], ["x" * 300 * KIB], "containers[0].args[0]"),
        ("DLJob", [*CONTAINER, "env", 0, "value"], "x" * 300 * KIB, "containers[0].env[0].value"),
    ],
)
def test_objects_of_300_kib_are_refused(
    rehearsal: Objects, kind: str, at: list[str | int], value: Any, field: str
) -> None:
    said = refusal(lambda: rehearsal.create(changed(kind, at, value), dry=True))
    assert names_field(said, field)


@pytest.mark.parametrize("case", operator_conditions.CASES, ids=lambda case: case["case"].replace(" ", "-"))
def test_what_only_the_operator_can_tell_is_taken(
    embedded_cluster: EmbeddedCluster, namespace: str, case: dict[str, Any]
) -> None:
    """Were the server to refuse one of these, it would belong into the other table."""
    given = operator_conditions.in_namespace(case, namespace)["given"]
    text = yaml.safe_dump_all(given)
    taken = embedded_cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=text)
    assert taken.count("created (server dry run)") == len(given)


# -- what must not change ---------------------------------------------------------------------------

SUSPENDED = {"spec": {"suspend": True}}
ADMITTED = {"status": {"conditions": [CONDITION]}}


@pytest.mark.parametrize(
    ("at", "value", "field"),
    [
        (["spec", "queue"], "other", "spec.queue"),
        (["spec", "queue"], None, "spec.queue"),
        (["spec", "framework"], "other", "spec.framework"),
        (["spec", "runtime"], "static", "spec.runtime"),
        ([*CONTAINER, "image"], "other", "spec.workers.template"),
        (["spec", "workers", "template", "spec", "unheardOf"], {"a": [1]}, "spec.workers.template"),
        (["spec", "servers", "template", "metadata", "labels", "team"], "other", "spec.servers.template"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_a_job_changes_what_its_pods_are_only_while_suspended(
    objects: Objects, at: list[str | int], value: Any, field: str
) -> None:
    after = changed("DLJob", at, value) if value is not None else changed("DLJob", at)
    change = {"spec": after["spec"] | {"queue": after["spec"].get("queue")}}  # a merge patch removes by null
    with objects.existing(VALID["DLJob"]):
        said = refusal(lambda: objects.patch("DLJob", "train", change))
        assert names_field(said, field)
        assert "suspend" in said
        objects.patch("DLJob", "train", SUSPENDED)
        objects.patch("DLJob", "train", change)


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": True},
        {"priorityClassName": "low"},
        {"workers": {"min": 1, "max": 16}},
        {"workers": {"replicas": 6}},
        {"scaling": {"mode": "Fixed"}},
        {"training": {"epochs": 60}},
        {"topology": {"preferred": "dl2.dev/block"}},
        {"runPolicy": {"backoffLimit": 5}},
    ],
    ids=str,
)
def test_a_running_job_may_change_the_rest(objects: Objects, change: dict[str, Any]) -> None:
    with objects.existing(VALID["DLJob"]):
        objects.patch("DLJob", "train", {"spec": change})


def member(index: int, **change: Any) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json.loads(json.dumps(VALID["PodGroup"]["spec"]["members"]))
    members[index] |= change
    return members


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"queue": "other"}, "spec.queue"),
        ({"members": member(0, name="other")}, "spec.members"),
        ({"members": member(0)[:1]}, "spec.members"),
        ({"members": [*member(0), {"name": "third", "count": 1}]}, "spec.members"),
        ({"members": member(0, requests={"cpu": "5"})}, "spec.members"),
        ({"members": member(1, requests={})}, "spec.members"),
    ],
    ids=str,
)
def test_an_admitted_group_keeps_its_queue_members_and_requests(
    objects: Objects, change: dict[str, Any], field: str
) -> None:
    with objects.existing(VALID["PodGroup"]):
        objects.patch("PodGroup", "gang", ADMITTED, "status")
        said = refusal(lambda: objects.patch("PodGroup", "gang", {"spec": change}))
        assert names_field(said, field)
        assert "admitted" in said
        objects.patch(
            "PodGroup", "gang", {"status": {"conditions": [{**CONDITION, "status": "False"}]}}, "status"
        )
        objects.patch("PodGroup", "gang", {"spec": change})


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": True},
        {"members": member(0, count=8)},
        {"members": member(0, minCount=1)},
        {"members": member(0)[::-1]},
        {"readyTimeoutSeconds": 60},
    ],
    ids=str,
)
def test_an_admitted_group_may_grow_shrink_and_be_suspended(objects: Objects, change: dict[str, Any]) -> None:
    with objects.existing(VALID["PodGroup"]):
        objects.patch("PodGroup", "gang", ADMITTED, "status")
        objects.patch("PodGroup", "gang", {"spec": change})


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("TenantQueue", {"weight": 9}),
        ("PodGroup", {"suspend": True}),
        ("DLJob", {"suspend": True}),
        ("ScalingPolicy", {"intervalSeconds": 99}),
    ],
)
def test_spec_and_status_are_written_apart(objects: Objects, kind: str, spec: dict[str, Any]) -> None:
    with objects.existing({**VALID[kind], "status": STATUS[kind]}) as created:
        assert "status" not in created
        name = created["metadata"]["name"]
        after = objects.patch(kind, name, {"spec": spec, "status": STATUS[kind]}, "status")
        assert (after["spec"], after["metadata"]["generation"]) == (created["spec"], 1)


# -- kubectl scale ----------------------------------------------------------------------------------


def test_kubectl_scale_asks_for_workers(embedded_cluster: EmbeddedCluster, objects: Objects) -> None:
    def scale(replicas: int) -> str:
        return embedded_cluster.kubectl(
            "scale", "dljob/train", f"--replicas={replicas}", "-n", objects.namespace
        )

    with objects.existing(VALID["DLJob"]):
        objects.patch("DLJob", "train", {"status": STATUS["DLJob"]}, "status")
        scale(6)
        shown = objects.call("GET", objects.path("DLJob", "train", "scale"))
        assert (shown["spec"]["replicas"], shown["status"]["replicas"]) == (6, 3)
        assert shown["status"]["selector"] == STATUS["DLJob"]["labelSelector"]
        with pytest.raises(ClusterError, match=r"spec\.workers\.replicas.*choose a number between"):
            scale(9)
        scale(0)  # back to the scaling policy
        assert objects.call("GET", objects.path("DLJob", "train"))["spec"]["workers"]["replicas"] == 0


# -- the examples -----------------------------------------------------------------------------------

EXAMPLES = sorted(path.name for path in resources.directory("examples").glob("*.yaml"))


def documents(name: str) -> list[dict[str, Any]]:
    text = (resources.directory("examples") / name).read_text()
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_types_read_every_example(name: str) -> None:
    ours = [document for document in documents(name) if document["apiVersion"] == names.API_VERSION]
    assert ours
    for document in ours:
        parse(document, strict=True)


@pytest.fixture
def example_namespaces(embedded_cluster: EmbeddedCluster) -> Iterator[None]:
    """The namespaces of the examples, which examples/queues.yaml makes."""
    wanted = [document for document in documents("queues.yaml") if document["kind"] == "Namespace"]
    embedded_cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(wanted))
    for document in wanted:
        embedded_cluster.wait_service_account(document["metadata"]["name"])
    yield
    embedded_cluster.kubectl("delete", "--wait=false", "-f", "-", input=yaml.safe_dump_all(wanted))


@pytest.mark.usefixtures("example_namespaces")
def test_every_example_applies(embedded_cluster: EmbeddedCluster) -> None:
    assert "queues.yaml" in EXAMPLES
    for name in EXAMPLES:
        path = str(resources.directory("examples") / name)
        applied = embedded_cluster.kubectl(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", path
        )
        assert applied.count("serverside-applied (server dry run)") == len(documents(name))
