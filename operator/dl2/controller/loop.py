"""The loop: changes → snapshot → decide → writes. One pass at a time; nothing in it waits for the network."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from itertools import count, islice
from secrets import token_hex

import structlog

from dl2.api import DLJob, PodGroup, conditions, names
from dl2.api.core import PodRecord
from dl2.api.names import GroupCondition, JobCondition
from dl2.cluster.applier import Applier, Write
from dl2.cluster.client import ApiError, KubeClient
from dl2.cluster.events import EventRecorder
from dl2.cluster.resources import DL_JOBS, POD_GROUPS, PODS, SERVICES, TENANT_QUEUES, Resource
from dl2.cluster.store import Entry, Store
from dl2.controller import groups, jobs, misconfigured, queues
from dl2.controller.decisions import Decisions
from dl2.controller.frameworks import framework_of
from dl2.controller.outcome import Outcome
from dl2.controller.pace import Pace
from dl2.controller.progress import ProgressCollector, Source
from dl2.controller.settings import Settings
from dl2.controller.shapes import Target, chosen
from dl2.controller.sources import progress_source
from dl2.controller.world import World
from dl2.scheduling.snapshot import Group, Key, Snapshot
from dl2.web.metrics import Metrics

log = structlog.get_logger(__name__)
_PAUSE = 2.0  # between two passes, in lengths of the last one
# seconds
_SOFT_RETRY = 0.2
_SHORTEST_WAIT = 0.1  # for what time alone brings: it must not make a busy loop
_LONGEST_PAUSE = 0.5
_LONGEST_BACKLOG = 2.0
_BROKEN_SECONDS = 30.0
_STRAY_SECONDS = 30.0  # for which a pod may be there before its PodGroup


class Controller:
    """Owns the decisions of one operator process. `run` ends only by cancellation."""

    def __init__(self, client: KubeClient, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store, self._settings, self._metrics = store, settings, metrics
        self.applier = Applier(client, store, settings.concurrency)
        self.applier.on_result = self._count_write
        self.recorder = EventRecorder(client)
        self.collector = ProgressCollector(
            self._sources, self._on_progress, settings.progress_seconds, settings.progress_timeout
        )
        self._world = World(store, self.applier)
        self._decisions = Decisions(self._world, metrics, settings.waits_seconds)
        self._pace = Pace(settings.soft_writes_per_second)
        self._due: dict[Key, None] = {}  # names to be looked at, the longest waiting first
        self._later: dict[Key, None] = {}  # the same, of those where only people want to know
        self._told: dict[Key, float] = {}  # when that was written last (monotonic)
        self._wakes: dict[Key, float] = {}
        self._targets: dict[str, Target] = {}  # by uid of the job, until its PodGroup says so
        self._passes = count(1)
        self._pass_seconds = 0.0
        self.last_pass = 0.0  # monotonic

    # -- running --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        delay: float | None = 0.0
        while True:
            if delay is None or delay > 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._store.changed.wait(), delay)
            # Changes come in bursts, and taking them in and writing need more time than deciding.
            pause = min(_PAUSE * self._pass_seconds, _LONGEST_PAUSE)
            await asyncio.sleep(max(self._settings.debounce_seconds, pause))
            await self._until_written()
            self._store.changed.clear()
            try:
                delay = self.one_pass()
            except Exception:  # whatever one object did to a pass, the next one comes
                log.exception("pass failed; trying again")
                self._metrics.failed_passes.inc()
                delay = 1.0

    async def _until_written(self) -> None:
        """While more is being written than can be sent soon, deciding again would only decide the same again."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.applier.has_room.wait(), _LONGEST_BACKLOG)

    def one_pass(self) -> float | None:
        """Returns in how many seconds to pass again even if nothing changes; None: not before a change."""
        started, now = time.perf_counter(), time.time()
        identity = f"{int(now):x}-{next(self._passes):x}"
        with structlog.contextvars.bound_contextvars(decision=identity):
            self._due |= dict.fromkeys(self._take_dirty(now))  # they stay due, should deciding fail
            self._due |= dict.fromkeys(self._decisions.renew(now))
            self._later |= dict.fromkeys(self._decisions.retold(now))
            self._keep_all(now)
            for entry in self._store.all(TENANT_QUEUES):
                self._keep_queue(entry, now)
            self._tell(now)
            self._due |= dict.fromkeys(self.applier.settle_due())
            self._export()
        self.last_pass = time.monotonic()
        self._pass_seconds = time.perf_counter() - started
        self._metrics.passes.observe(self._pass_seconds)
        return self._next(now)

    def _take_dirty(self, now: float) -> set[Key]:
        store = self._store
        keys = store.dirty | self.applier.due() | {key for key, at in self._wakes.items() if at <= now}
        read = self._world.refresh(keys, store.dirty_nodes, store.dirty_kinds)
        # Only now: what could not be read stays marked, for nothing but its next change would mark it again.
        store.dirty, store.dirty_nodes, store.dirty_kinds = set(), set(), set()
        return read

    # -- one group and job ------------------------------------------------------------------------------------------
    def _keep_all(self, now: float) -> None:
        """Look at what is due for as long as there is room for the writes that come of it.

        What is admitted comes first: more is not admitted than can be started, or all would be late together.
        """
        for key in sorted(self._due, key=self._urgency):
            if self.applier.full:
                return
            del self._due[key]
            self._keep(key, now)

    def _urgency(self, key: Key) -> int:
        group = self._store.get(POD_GROUPS, *key)
        if group is None:
            return 1
        if conditions.is_true(group.status.get("conditions") or (), GroupCondition.ADMITTED):
            return 0
        return 1 if self._decisions.acts_on(key) else 2

    def _tell(self, now: float) -> None:
        """Write what only people want to know, as the pace allows: of each object once in a while, in turn."""
        clock, interval = time.monotonic(), self._settings.soft_write_interval
        self._told = {key: at for key, at in self._told.items() if clock - at < interval}
        ready = (key for key in tuple(self._later) if key not in self._told)
        for key in islice(ready, self._pace.allows()):
            if self.applier.half_full:
                return
            del self._later[key]
            self._told[key] = clock
            queue = self._store.get(TENANT_QUEUES, *key)
            if queue is not None:
                self._keep_queue(queue, now, tell=True)
            else:
                self._keep(key, now, tell=True)

    def _keep(self, key: Key, now: float, tell: bool = False) -> None:
        """Bring one name's DLJob and PodGroup forward. An error here is that object's alone.

        `tell`: what only people want to know is written too, and not put off.
        """
        if not key.namespace:
            return  # a queue: every pass looks at all of them
        group, job = self._store.get(POD_GROUPS, *key), self._store.get(DL_JOBS, *key)
        self._wakes.pop(key, None)
        if group is None and job is None:
            self.applier.forget(key)
            self._tell_stray_pods(key, now)
            return
        if self._store.is_going(key.namespace):
            return  # and everything in it with it
        known = self._world.group(key)
        with structlog.contextvars.bound_contextvars(job=str(key), queue=known.queue if known else ""):
            try:
                if job is not None:
                    self.carry_out(key, self._keep_job(job, group, now), tell)
                if group is not None:
                    self.carry_out(key, self._keep_group(group, job, now), tell)
            except Exception:
                log.exception("object cannot be kept")
                self._wakes[key] = now + _BROKEN_SECONDS

    def _tell_stray_pods(self, key: Key, now: float) -> None:
        """Pods that wait for a PodGroup that nobody has made; what a deleted job leaves behind goes by itself."""
        for entry in self._store.pod_entries_of(key):
            pod: PodRecord = entry.value
            if not pod.gated or pod.deleting or (pod.owner and pod.owner[0] == names.DL_JOB):
                continue
            due = pod.created + _STRAY_SECONDS
            if now < due:
                self._wakes[key] = min(due, self._wakes.get(key, due))
                continue
            text = (
                f"label {names.LABEL_POD_GROUP}={key.name}: there is no PodGroup of this name in namespace "
                f"{key.namespace}; make it, or mend the label"
            )
            self.recorder.post(PODS, entry, "PodGroupNotFound", text, warning=True)

    def _keep_job(self, entry: Entry, group: Entry | None, now: float) -> Outcome:
        job = entry.value
        if not isinstance(job, DLJob):
            return misconfigured.outcome(DL_JOBS, entry, entry.error, now)
        try:
            framework = framework_of(job)
        except LookupError as exc:
            return misconfigured.outcome(DL_JOBS, entry, str(exc), now)
        service = self._store.get(SERVICES, entry.namespace, entry.name)
        for resource, taken in ((POD_GROUPS, group), (SERVICES, service)):
            if taken is not None and taken.owner != entry.uid and not entry.deleting:
                return _name_taken(resource, taken, entry, now)
        job, scaled_by = self._chosen(entry, job, group)
        view = jobs.JobView(
            entry=entry,
            job=job,
            scaled_by=scaled_by,
            framework=framework,
            group=group,
            pods=self._store.pods_of(entry.key),
            service_exists=service is not None,
            now=now,
            settings=self._settings.pods,
            progress=self.collector.latest(entry.uid),
            rejection=self.applier.rejection_of(entry.key),
            creating=self.applier.creating(PODS, entry.key),
            token=token_hex(32),
        )
        return jobs.reconcile(view)

    def _chosen(self, entry: Entry, job: DLJob, group: Entry | None) -> tuple[DLJob, str]:
        known = group.value if group is not None and isinstance(group.value, PodGroup) else None
        target = self._targets.get(entry.uid)
        sized, scaled_by, settled = chosen(job, known, target)
        if settled:
            self._targets.pop(entry.uid, None)
        return sized, scaled_by

    def _keep_group(self, entry: Entry, job: Entry | None, now: float) -> Outcome:
        group = entry.value
        error = entry.error or self._world.errors.get(entry.key, "")
        if not isinstance(group, PodGroup) or error:
            return misconfigured.outcome(POD_GROUPS, entry, error, now)
        owned = job is not None and entry.owner == job.uid
        view = groups.GroupView(
            entry=entry,
            group=group,
            pods=self._store.pods_of(entry.key),
            decision=self._decisions.of(entry.key),
            now=now,
            job_end=_job_end(job) if owned and job else None,
            job_uid=entry.owner if owned else "",
            rejection=self.applier.rejection_of(entry.key),
        )
        return groups.reconcile(view)

    def _keep_queue(self, entry: Entry, now: float, tell: bool = False) -> None:
        outcome = queues.reconcile(entry, self._decisions.plan, self._world.capacity, now)
        self.carry_out(entry.key, outcome, tell)

    def carry_out(self, key: Key, outcome: Outcome, tell: bool) -> None:
        for write in outcome.writes:
            if self.applier.full:
                self._due[key] = None
                break
            if self.applier.submit(write):
                self._pace.count()
                if write.resource is POD_GROUPS:
                    self._store.dirty.add(write.owner)  # from now on the assumed status counts
        for write in outcome.soft_writes:
            if not tell:
                self._later[key] = None
            elif self.applier.submit(write):
                self._pace.spend()
        for notice in outcome.notices:
            self.recorder.post(notice.resource, notice.entry, notice.reason, notice.message, notice.warning)
        if outcome.wake_at is not None:
            self._wakes[key] = min(self._wakes.get(key, outcome.wake_at), outcome.wake_at)

    def _next(self, now: float) -> float | None:
        delays = [at - now for at in (self._decisions.wake_at(), *self._wakes.values()) if at is not None]
        retry = self.applier.next_retry()
        if retry is not None:
            delays.append(retry - time.monotonic())
        if self._later or self._due:
            delays.append(_SOFT_RETRY)
        return max(_SHORTEST_WAIT, min(delays)) if delays else None

    # -- scaling --------------------------------------------------------------------------------------------------
    def retarget(self, key: Key, uid: str, target: Target) -> None:
        """From now on a job has the shape `target`; the counts of its PodGroup remember it."""
        self._targets[uid] = target
        self._store.touch(key)

    def group(self, key: Key) -> Group | None:
        return self._world.group(key)

    def snapshot(self, now: float) -> Snapshot:
        return self._world.snapshot(now)

    # -- progress, metrics --------------------------------------------------------------------------------------------
    def _sources(self) -> Iterable[Source]:
        for entry in self._store.all(DL_JOBS):
            if conditions.is_true(entry.status.get("conditions") or (), JobCondition.RUNNING):
                source = progress_source(
                    entry, self._store.pods_of(entry.key), self._settings.trust_status_url
                )
                if source:
                    yield source

    def _on_progress(self, key: Key) -> None:
        self._store.touch(key)

    def _count_write(self, write: Write, error: ApiError | None) -> None:
        result = "ok" if error is None else str(error.status or "no answer")
        self._metrics.writes.labels(write.verb.value, write.resource.kind, result).inc()

    def _export(self) -> None:
        plan = self._decisions.plan
        self._metrics.open_writes.set(self.applier.open_writes)
        usage = {
            (name, resource, figure): getattr(figures, figure)
            for name, state in plan.queues.items()
            for resource, figures in state.usage.items()
            for figure in ("used", "share", "borrowed", "lent")
        }
        states = {name: (state.pending, state.admitted) for name, state in plan.queues.items()}
        self._metrics.replace_queues(states, usage)


def _job_end(job: Entry) -> tuple[str, str] | None:
    for kind in (JobCondition.SUCCEEDED, JobCondition.FAILED):
        end = conditions.get(job.status.get("conditions") or (), kind)
        if end and end["status"] == "True":
            return f"Job{kind}", str(end["message"])
    return None


def _name_taken(resource: Resource, taken: Entry, job: Entry, now: float) -> Outcome:
    """Something of the job's name is not the job's. What a deleted namesake left behind goes by itself."""
    if taken.owner_name == f"{DL_JOBS.kind}/{job.name}":
        return Outcome()
    error = (
        f"metadata.name: there is a {resource.kind} {job.name} already that does not belong to this job; "
        f"delete it, or give the job another name"
    )
    return misconfigured.outcome(DL_JOBS, job, error, now)
