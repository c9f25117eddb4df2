"""From manifests (files, or a cluster's LISTs) to a snapshot: what `dl2 decide` decides on. Pure.

Later objects replace earlier ones of the same kind and name, as with `kubectl apply`, which is all that a what-if is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dl2.api import DLJob, InvalidObject, PodGroup, TenantQueue, conditions, core, corecheck, names, parse
from dl2.api.conditions import parse_time
from dl2.api.core import PodRecord
from dl2.api.names import JobCondition
from dl2.controller import intake
from dl2.controller.frameworks import framework_of
from dl2.controller.jobs import group_spec
from dl2.controller.shapes import is_sizable
from dl2.scheduling.snapshot import CapacityMode, Group, Key, Node, Queue, Snapshot

Raw = Mapping[str, Any]
_T = TypeVar("_T")
_STEP = 0.001  # seconds between objects that say nothing of when they were created: the order they stand in


class BadInput(ValueError):
    """What cannot be read: the message names where it stands, the object, the field and the mend."""


class LetIn(BadInput):
    """The same of an object that an API server has let in: its owner's to mend, which keeps nobody from an answer."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object and where it came from (a file's name, for messages). `let_in`: an API server has let it in."""

    source: str
    raw: Raw
    let_in: bool = False

    def wrong(self, text: object) -> BadInput:
        """What to raise about it."""
        return (LetIn if self.let_in else BadInput)(f"{self.source}: {text}")


def objects(source: str, document: Any) -> Iterator[Manifest]:
    """The objects of one YAML or JSON document; lists are opened. Raises BadInput."""
    if document is None:
        return
    if not isinstance(document, Mapping):
        raise BadInput(
            f"{source}: a document is no Kubernetes object but {type(document).__name__}; write kind: ..."
        )
    kind = document.get("kind")
    if not isinstance(kind, str) or not kind:
        raise BadInput(f"{source}: kind: is missing; name the kind of the object")
    if kind.endswith("List") and isinstance(document.get("items"), list):
        for item in document["items"]:
            member = dict(item) if isinstance(item, Mapping) else item
            if isinstance(member, dict) and kind != "List":  # a LIST of one kind leaves it out of its items
                member.setdefault("kind", kind.removesuffix("List"))
                member.setdefault("apiVersion", document.get("apiVersion"))
            yield from objects(source, member)
        return
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if name is not None and not isinstance(name, str):
        raise BadInput(f'{source}: {kind}: metadata.name: {name!r} is no text; quote it: "{name}"')
    if not name:
        raise BadInput(f"{source}: {kind}: metadata.name: is missing; give the object a name")
    _check(source, document)
    yield Manifest(source, document)


def _check(source: str, raw: Raw) -> None:
    """What no later reader would tell as well: times, core objects, kinds of ours that there are not."""
    kind, metadata = raw["kind"], raw["metadata"]
    for field in ("creationTimestamp", "deletionTimestamp"):
        try:
            if metadata.get(field) is not None:
                parse_time(metadata[field])
        except ValueError as exc:
            named = f"{kind} {'/'.join(filter(None, (_namespace(raw), metadata['name'])))}"
            raise BadInput(f"{source}: {named}: metadata.{field}: {exc}") from None
    try:
        if str(raw.get("apiVersion") or "").startswith(f"{names.GROUP}/") and kind not in names.PLURALS:
            parse(raw)
        corecheck.check(raw)
    except InvalidObject as exc:
        raise BadInput(f"{source}: {exc}") from None


class Inventory:
    """The objects that count, newest manifest of each name last in."""

    def __init__(self, manifests: Iterable[Manifest], now: float) -> None:
        latest: dict[tuple[str, str, str], Manifest] = {}
        for manifest in manifests:
            latest[_identity(manifest.raw)] = manifest
        self._by_kind: dict[str, list[Manifest]] = {}
        for manifest in latest.values():
            self._by_kind.setdefault(manifest.raw["kind"], []).append(manifest)
        self._now = now
        self._going_namespaces = {
            m.raw["metadata"]["name"] for m in self._of("Namespace") if _is_deleted(m.raw)
        }
        order = [m for kind in (names.TENANT_QUEUE, names.POD_GROUP, names.DL_JOB) for m in self._of(kind)]
        self._order = {id(m.raw): now - (len(order) - i) * _STEP for i, m in enumerate(order)}

    def snapshot(self, capacity: CapacityMode | None) -> Snapshot:
        """`capacity` None: Nodes where there is any Node, else Quota. Raises BadInput."""
        groups = tuple(self._groups())
        nodes = tuple(self._nodes({group.key for group in groups if not group.members}))
        if capacity is None:
            capacity = CapacityMode.NODES if nodes else CapacityMode.QUOTA
        return Snapshot(
            now=self._now,
            queues=tuple(self._queues()),
            groups=groups,
            nodes=nodes,
            namespaces={
                m.raw["metadata"]["name"]: dict(_read(m, core.parse_namespace).labels)
                for m in self._of("Namespace")
            },
            capacity=capacity,
        )

    def sizable(self) -> dict[Key, DLJob]:
        """The jobs whose numbers are a scaling policy's to choose."""
        found: dict[Key, DLJob] = {}
        for manifest in self._of(names.DL_JOB):
            try:
                job = _read(manifest, parse)
            except LetIn:
                continue
            assert isinstance(job, DLJob)
            if is_sizable(job) and not _ended(manifest.raw):
                found[_key(manifest)] = job
        return found

    def _of(self, kind: str) -> list[Manifest]:
        return self._by_kind.get(kind, [])

    def _created(self, raw: Raw) -> float:
        text = raw["metadata"].get("creationTimestamp")
        return parse_time(text) if text else self._order[id(raw)]

    def _queues(self) -> Iterator[Queue]:
        for manifest in self._of(names.TENANT_QUEUE):
            try:
                queue = _read(manifest, parse)
            except LetIn as exc:
                yield intake.broken_queue(manifest.raw["metadata"]["name"], str(exc))
                continue
            assert isinstance(queue, TenantQueue)
            yield replace(intake.read_queue(queue), created=self._created(manifest.raw))

    def _nodes(self, empty: Set[Key]) -> Iterator[Node]:
        """`empty`: groups of no members, which cannot be read; what runs of them is somebody else's load."""
        known = {_key(m) for kind in (names.POD_GROUP, names.DL_JOB) for m in self._of(kind)} - empty
        others: dict[str, list[PodRecord]] = {}
        for pod in self._pods():
            ours = pod.group is not None and Key(pod.namespace, pod.group) in known
            if pod.node and not pod.finished and not ours:
                others.setdefault(pod.node, []).append(pod)
        topologies = (_read(m, core.parse_node_topology) for m in self._of("NodeResourceTopology"))
        zones = {topology.name: topology.zones for topology in topologies}
        for manifest in self._of("Node"):
            node = _read(manifest, core.parse_node)
            if node.error:
                raise BadInput(f"{manifest.source}: {node.error}")
            yield intake.read_node(node, others.get(node.name, ()), zones.get(node.name, ()))

    def _pods(self) -> Iterator[PodRecord]:
        for manifest in self._of("Pod"):
            yield _read(manifest, core.parse_pod)

    def _groups(self) -> Iterator[Group]:
        classes = {
            c.name: c for c in (_read(m, core.parse_priority_class) for m in self._of("PriorityClass"))
        }
        pods: dict[Key, list[PodRecord]] = {}
        for pod in self._pods():
            if pod.group:
                pods.setdefault(Key(pod.namespace, pod.group), []).append(pod)
        jobs = {_key(m): m for m in self._of(names.DL_JOB)}
        groups = {_key(m): m for m in self._of(names.POD_GROUP)}
        for key, manifest in (groups | {k: m for k, m in jobs.items() if k not in groups}).items():
            try:
                yield from self._present(manifest, pods.get(key, []), classes, jobs.get(key))
            except LetIn as exc:
                spec = manifest.raw.get("spec")
                queue = spec.get("queue") if isinstance(spec, Mapping) else None
                yield intake.broken_group(
                    key, str(queue or key.namespace), self._created(manifest.raw), str(exc)
                )

    def _present(
        self, manifest: Manifest, pods: list[PodRecord], classes: intake.Priorities, job: Manifest | None
    ) -> Iterator[Group]:
        """What is being deleted starts nothing and holds what its pods hold; without pods it is as good as gone."""
        if job is not None:
            _read(job, parse)  # its status counts, too
            if manifest is job and _ended(job.raw):
                return
        group = _owned_group(manifest) if manifest is job else _read(manifest, parse)
        assert isinstance(group, PodGroup)
        going = any(each is not None and self._is_going(each.raw) for each in (manifest, job))
        if pods or not going:
            status = manifest.raw.get("status") or {} if manifest.raw["kind"] == names.POD_GROUP else {}
            end = ((job.raw.get("status") or {}) if job else {}).get("estimatedCompletion")
            found = intake.read_group(
                group,
                status,
                pods,
                classes,
                expected_end=parse_time(end) if end else None,
                created=self._created(manifest.raw),
            )
            yield replace(found, suspend=found.suspend or going)

    def _is_going(self, raw: Raw) -> bool:
        """Is it, or its namespace, being deleted?"""
        return _is_deleted(raw) or _namespace(raw) in self._going_namespaces


def _is_deleted(raw: Raw) -> bool:
    return bool(raw["metadata"].get("deletionTimestamp"))


def _identity(raw: Raw) -> tuple[str, str, str]:
    return raw["kind"], _namespace(raw), raw["metadata"]["name"]


def _key(manifest: Manifest) -> Key:
    return Key(_namespace(manifest.raw), manifest.raw["metadata"]["name"])


def _namespace(raw: Raw) -> str:
    namespaced = raw["kind"] in names.NAMESPACED or raw["kind"] == "Pod"
    return str(raw["metadata"].get("namespace") or "default") if namespaced else ""


def _read(manifest: Manifest, reader: Callable[[Any], _T]) -> _T:
    """One object through its parser; whatever is wrong with it becomes BadInput."""
    try:
        return reader(manifest.raw)
    except InvalidObject as exc:
        raise manifest.wrong(exc) from None
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        kind, name = manifest.raw["kind"], manifest.raw["metadata"]["name"]
        text = f"{kind} {name}: {exc}; compare it with a manifest that the API server accepts"
        raise manifest.wrong(text) from None


def _ended(raw: Raw) -> bool:
    had = (raw.get("status") or {}).get("conditions") or ()
    return any(conditions.is_true(had, kind) for kind in (JobCondition.SUCCEEDED, JobCondition.FAILED))


def _owned_group(manifest: Manifest) -> PodGroup:
    """The PodGroup that the operator would make for this DLJob."""
    job = _read(manifest, parse)
    assert isinstance(job, DLJob)
    try:
        roles = framework_of(job).roles(job)
    except LookupError as exc:
        raise manifest.wrong(f"DLJob {job.metadata.namespace}/{job.metadata.name}: {exc}") from None
    raw = {
        "apiVersion": names.API_VERSION,
        "kind": names.POD_GROUP,
        "metadata": {"name": job.metadata.name, "namespace": job.metadata.namespace, "uid": job.metadata.uid},
        "spec": group_spec(job, roles),
    }
    group = _read(replace(manifest, raw=raw), parse)
    assert isinstance(group, PodGroup)
    return group
