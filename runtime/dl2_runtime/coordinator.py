"""The coordinator: notices who comes and goes and starts the transitions that follow from it.

It carries no parameters. Training goes on while it is away; one that starts again learns everything from the members
that come back to it. All decisions are made in the reactor's thread; HTTP threads hand theirs over (see web.py).
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from dl2_runtime import checkpoint, wire
from dl2_runtime.job import Declarations, Job, Member, counts
from dl2_runtime.reactor import Reactor
from dl2_runtime.scaling import Scaling
from dl2_runtime.settings import SERVER, WORKER, Settings
from dl2_runtime.view import Key, Table, View

MERGE_SECONDS = 0.05  # newcomers this close together come in at one clock
MAX_MEMBERS = 1024
STOP_SHARE = 0.7  # of the time between SIGTERM and the end, for the final checkpoint
LINGER_SECONDS = 3.0  # for members to hear that they are released

log = logging.getLogger("dl2_runtime.coordinator")


@dataclass
class Request:
    """A wish for so many workers and servers (None: as many as there are); `state` pending, committed or undone."""

    number: int
    workers: int | None
    servers: int | None
    deadline: float
    state: str = "pending"
    victims: list[Member] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"id": self.number, "workers": self.workers, "servers": self.servers, "state": self.state}


class Coordinator:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.reactor = Reactor(
            settings,
            place=self._place,
            deliver=self._deliver,
            joined=self._joined,
            lost=self._lost,
            tick=self._tick,
        )
        self._links: dict[str, wire.Link] = {}
        self._away: dict[str, float] = {}  # member -> when its connection broke
        self._last_tick = time.monotonic()
        self.job = Job(settings, self._send)
        self.scaling = Scaling(self.job, self._in_background)
        self._declarations = Declarations(self.job)
        self.request: Request | None = None
        self._requests = 0
        self._last_arrival = 0.0
        self._last_save = time.monotonic()
        self._save_asked = False
        self._rebalance = False
        self._rebuilding_until: float | None = None
        self._committed_versions: dict[str, int] = {}
        self._orphaned_since: float | None = None
        self._pace: list[Any] = [time.monotonic(), 0, 0.0]
        self.state = "waiting for members"
        self.failure: str | None = None
        self._stop_by: float | None = None  # after SIGTERM

    def run(self) -> None:
        """Coordinate until the job is over. Raises RuntimeError if it cannot go on."""
        try:
            self.reactor.run()
            self.reactor.linger(LINGER_SECONDS)
        finally:
            self.reactor.shut()
        if self.failure:
            raise RuntimeError(self.failure)

    def _in_background(self, work: Callable[[], None], then: Callable[[OSError | None], None]) -> None:
        """For a folder that may be slow: members that hear nothing from us meanwhile would take us for dead."""

        def run() -> None:
            error = None
            try:
                work()
            except OSError as failure:
                error = failure
            self.reactor.call(lambda: then(error))

        threading.Thread(target=run, name="dl2-manifest", daemon=True).start()

    # -- connections --

    def _place(self, link: wire.Link, frame: wire.Frame) -> memoryview:
        raise wire.WireError("data frames do not go to the coordinator")

    def _send(self, member: str, message: wire.Message) -> None:
        link = self._links.get(member)
        if link is not None and not link.closed:
            payload = wire.encode(message)
            link.send(wire.Frame(wire.CONTROL, size=len(payload)), (memoryview(payload),))
            self.reactor.dirty.add(link)

    def _joined(self, link: wire.Link) -> None:
        identity = link.identity
        name, role = str(identity.get("id")), str(identity.get("role"))
        if role not in (WORKER, SERVER) or type(identity.get("index")) is not int:
            raise wire.WireError(f"{name:.80} is neither worker nor server, or has no index")
        if len(self.job.members) >= MAX_MEMBERS and name not in self.job.members:
            self._forget_gone()
        old = self._links.get(name)
        self._links[name] = link
        if old is not None:
            self.reactor.close(old)
        self._away.pop(name, None)

    def _lost(self, link: wire.Link) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._away[link.peer] = time.monotonic()

    def _deliver(self, link: wire.Link, frame: wire.Frame, payload: memoryview) -> None:
        if frame.kind != wire.CONTROL:
            raise wire.WireError(f"{link.peer} sent frame kind {frame.kind}")
        message = wire.decode(payload)
        kind = str(message.get("type"))
        if kind == "hello":
            self._on_hello(link, message)
        else:
            member = self.job.members[link.peer]
            member.heard = time.monotonic()
            if member.state != "gone":
                handler = getattr(self, "_on_" + kind, None)
                if handler is None:
                    raise wire.WireError(f"{link.peer} sent {kind!r:.40}")
                handler(member, message)
        self._consider()

    # -- what members say --

    def _on_hello(self, link: wire.Link, message: wire.Message) -> None:
        identity, job = link.identity, self.job
        if self._stop_by is not None and link.peer not in job.members:
            self._refuse(link, "the job is being stopped")
            return
        member = job.members.get(link.peer)
        body = message.get("view")
        if member is None and body and job.view is not None and self._rebuilding_until is None:
            self._refuse(link, "it was declared dead; start it again as a new member")
            return
        if member is not None and member.state == "gone":
            self._refuse(link, "it left this job, or was declared dead; start it again as a new member")
            return
        if member is None:
            member = Member(link.peer, str(identity["role"]), int(identity["index"]))
            job.members[member.id] = member
            self._replace_older(member)
            self._last_arrival = time.monotonic()
        elif self.scaling.current is not None:
            # What was under way between us may be lost: begin again.
            self.scaling.abort(f"{member.id} lost its connection")
        member.heard, member.connected = time.monotonic(), True
        member.address = str(message.get("address", ""))
        member.step = int(message.get("step", 0))
        member.ready = member.ready or member.role == SERVER
        member.leaving = member.leaving or bool(message.get("leaving"))
        job.sums = job.sums or bool(message.get("sums"))
        self._send(member.id, {"type": "welcome"})
        if body:
            self._learn(member, View.from_json(body), message)

    def _refuse(self, link: wire.Link, why: str) -> None:
        link.tell({"type": "refused", "error": f"{link.peer}: {why}"})
        self.reactor.dirty.add(link)

    def _replace_older(self, member: Member) -> None:
        """A pod that starts again under its name was dead, noticed or not."""
        for other in list(self.job.members.values()):
            if (other.role, other.index) == (member.role, member.index) and other.id != member.id:
                self._gone(other, "it was started again")

    def _learn(self, member: Member, view: View, message: wire.Message) -> None:
        """A member with a view comes back: bring it up to date, or, after our own restart, learn from it."""
        job = self.job
        if job.view is None and self._rebuilding_until is None:
            self._rebuilding_until = time.monotonic() + self._settings.dead_after
            self.state = "rebuilding"
        self._committed_versions[member.id] = view.version
        job.version = max(job.version, view.version, int(message.get("planned", 0)))
        if self._rebuilding_until is not None:
            member.state = "active"
            member.ready = True
            # Of the same view workers know more: parameters declared since it began have a home there.
            if job.view is None or (view.version, len(view.owners)) > (
                job.view.version,
                len(job.view.owners),
            ):
                job.view = view
            keys = [Key.from_json(body) for body in message.get("keys", ())]
            if len(keys) > len(job.table.keys):
                job.table = Table(keys)
                job.seeders = {key.name: None for key in keys}
        elif job.view is not None:
            self._bring_up_to_date(member)

    def _bring_up_to_date(self, member: Member) -> None:
        """Send the commit or the abort that a member may have missed."""
        view = self.job.view
        assert view is not None
        if self._committed_versions.get(member.id, 0) < view.version:
            body = {"type": "commit", "version": view.version, "view": view.to_json(), "step": view.step}
            self._send(member.id, body)
        self._send(member.id, {"type": "abort", "version": -1})

    def _on_beat(self, member: Member, message: wire.Message) -> None:
        member.step = int(message.get("step", member.step))
        steps = {m.id: m.step for m in self.job.workers}
        self._send(
            member.id, {"type": "beat"} if member.role == SERVER else {"type": "steps", "steps": steps}
        )

    def _on_declare(self, member: Member, message: wire.Message) -> None:
        member.declared = list(message["keys"])
        self.job.sums = bool(message.get("sums"))
        if not member.ready:
            member.ready = True
            self._last_arrival = time.monotonic()

    def _on_seeded(self, member: Member, message: wire.Message) -> None:
        self._declarations.seeded(member.id, list(message["names"]))

    def _on_promise(self, member: Member, message: wire.Message) -> None:
        self.scaling.heard(member, message)

    _on_planned = _on_promise
    _on_received = _on_promise
    _on_at_clock = _on_promise
    _on_inventory = _on_promise

    def _on_failed(self, member: Member, message: wire.Message) -> None:
        blamed = self.job.members.get(str(message.get("blame")))
        if blamed is not None and blamed.state == "new":
            self._gone(blamed, str(message.get("error")))
        else:
            self.scaling.abort(str(message.get("error")))

    def _on_resumed(self, member: Member, message: wire.Message) -> None:
        self.scaling.resumed(message)

    def _on_short(self, member: Member, message: wire.Message) -> None:
        self.scaling.short(message)

    def _on_saved(self, member: Member, message: wire.Message) -> None:
        self.scaling.saved(member, message)

    def _on_checkpoint(self, member: Member, message: wire.Message) -> None:
        self._save_asked = True

    def _on_leave(self, member: Member, message: wire.Message) -> None:
        member.leaving = True
        if member.state == "new":
            self._send_away(member, "it left before it joined")

    def _on_done(self, member: Member, message: wire.Message) -> None:
        """A worker has finished its training: no round may wait for it."""
        member.step = int(message.get("step", member.step))
        self._send(member.id, {"type": "release"})
        self._gone(member, "", done=True)

    # -- who is gone --

    def _send_away(self, member: Member, why: str) -> None:
        """To a member that is alive: it ends as one that was released, not as one that failed."""
        self._send(member.id, {"type": "release"})
        self._gone(member, why)

    def _gone(self, member: Member, why: str, done: bool = False) -> None:
        if member.state == "gone":
            return
        was, member.state, member.done = member.state, "gone", done
        self._away.pop(member.id, None)
        if not done:
            self.scaling.note(
                f"{member.id} is gone: {why}", member=member.id, role=member.role, step=member.step
            )
            self.scaling.counts["deaths"] += was == "active"
        link = self._links.get(member.id)
        if link is not None and why:
            self._refuse(link, why)
        self.scaling.saver_gone(member)
        self.scaling.member_gone(member)

    def _forget_gone(self) -> None:
        view = self.job.view
        kept = set((*view.workers, *view.servers) if view else ())
        for name, member in list(self.job.members.items()):
            if member.state == "gone" and name not in kept:
                del self.job.members[name]

    def _tick(self) -> None:
        now = time.monotonic()
        self._forgive(now - self._last_tick)
        self._last_tick = now
        for member in list(self.job.members.values()):
            if member.state == "gone":
                continue
            away = self._away.get(member.id)
            if away is not None and now - away > self._settings.return_within:
                self._gone(member, f"its connection broke and did not come back within {now - away:.1f} s")
            elif now - member.heard > self._settings.dead_after:
                self._gone(member, f"no heartbeat for {now - member.heard:.1f} s")
        if self._stop_by is not None and now > self._stop_by:
            self.scaling.note("stopped without waiting any longer for a final checkpoint")
            self.release()
            return
        self.scaling.expire(now)
        self._measure_pace(now)
        self._consider()

    def _forgive(self, lapse: float) -> None:
        """While we stood still ourselves we could hear nobody, and perhaps the whole machine stood still."""
        if lapse > self._settings.heartbeat:
            log.warning("the coordinator stood still for %.1f s", lapse)
            for member in self.job.members.values():
                member.heard += lapse
            self._away = {name: since + lapse for name, since in self._away.items()}

    def _measure_pace(self, now: float) -> None:
        then, step, _ = self._pace
        if now - then >= 2:
            latest = self.step
            self._pace = [now, latest, max(0.0, (latest - step) / (now - then))]

    @property
    def step(self) -> int:
        return max((m.step for m in self.job.members.values() if m.role == WORKER), default=0)

    @property
    def steps_per_second(self) -> float:
        return float(self._pace[2])

    # -- what follows --

    def _consider(self) -> None:
        self._begin_due()
        self.scaling.tell_dead()

    def _begin_due(self) -> None:
        """Start the next transition if one is due."""
        if self.failure or self.reactor.stopped or not self.scaling.idle or self._rebuilding():
            return
        job = self.job
        if job.view is None:
            self._found()
        elif job.lost_servers():
            self._recover()
        else:
            self._orphaned_since = None
            # First: the rounds up to the next clock need those who only just joined, and they wait for this answer.
            self._declarations.answer_all()
            self._change()

    def _rebuilding(self) -> bool:
        until, view = self._rebuilding_until, self.job.view
        if until is None or view is None:
            return False
        names = [*view.workers, *view.servers]
        if any(name not in self.job.members for name in names) and time.monotonic() < until:
            return True
        self._rebuilding_until = None
        for name in names:
            if name not in self.job.members:
                role = WORKER if name in view.workers else SERVER
                self.job.members[name] = member = Member(name, role, -1, state="active")
                self._gone(member, "it did not come back to the coordinator")
        for member in self.job.members.values():
            if member.state == "active":
                self._bring_up_to_date(member)
                if member.id not in names:
                    member.state = "new"
        self.scaling.note(f"the coordinator started again and took over view {view.version}")
        self.state = "training"
        return False

    def _found(self) -> None:
        """The first view, from the newest checkpoint if there is one."""
        job, settings = self.job, self._settings
        workers, servers = job.newcomers(WORKER), job.newcomers(SERVER)
        if len(workers) < max(1, settings.founding_workers) or len(servers) < max(
            1, settings.founding_servers
        ):
            return
        try:
            found = checkpoint.latest(settings.checkpoint_dir)
            job.table = Table([Key.from_json(body) for body in found[2]] if found else [])
        except ValueError as error:
            self._fail(f"the checkpoint cannot be read: {error}")
            return
        job.seeders = dict.fromkeys(job.table.keys)
        view = replace(job.next_view(workers, servers), step=found[1] if found else 0)
        self.state = "training"
        self._last_save = time.monotonic()
        reason = f"resume from {found[0]}" if found else "start"
        self.scaling.begin(view, reason, restore=str(found[0]) if found else None)

    def _recover(self) -> None:
        """Servers died: their chunks go to those that are left, or to ones that come: the values from the workers'
        copies, the optimizer's state from the last checkpoint.
        """
        job = self.job
        assert job.view is not None
        dead = job.lost_servers()
        if not job.workers:
            self._start_over(dead)
            return
        homes = job.servers or job.newcomers(SERVER)
        if not homes:
            self._await_server(dead)
            return
        lost = [n for n, owner in enumerate(job.view.owners) if owner in dead]
        self._rebalance = True
        view = job.next_view([job.members[name] for name in job.view.workers], homes, keep=True)
        self.scaling.recover(view, lost, f"{', '.join(dead)} died", self._saved_state())

    def _saved_state(self) -> tuple[str, int] | None:
        """Folder and step of the newest checkpoint, if its chunks are ours."""
        try:
            found = None if self.job.sums else checkpoint.latest(self._settings.checkpoint_dir)
        except checkpoint.CheckpointError as error:
            self.scaling.note(f"the checkpoint cannot be read: {error}")
            return None
        if found is None or found[2] != self.job.table.to_json()[: len(found[2])]:
            return None
        return str(found[0]), found[1]

    def _await_server(self, dead: list[str]) -> None:
        now = time.monotonic()
        self._orphaned_since = self._orphaned_since or now
        if now - self._orphaned_since > self._settings.limit:
            self._fail(f"{', '.join(dead)} died and no server came within {self._settings.limit:g} s")

    def _start_over(self, dead: list[str]) -> None:
        """Neither the servers' nor any worker's copy is left: only a checkpoint can help."""
        self.scaling.note(f"{', '.join(dead)} and all workers are gone: the job starts from its checkpoint")
        for member in self.job.servers:
            self._send_away(member, "the job starts over")
        self.job.view = None
        self.job.table = Table()

    def _change(self) -> None:
        """Joins, leaves and checkpoints."""
        job, view = self.job, self.job.view
        assert view is not None
        if self._finish_or_stop():
            return
        request = self._due_request()
        joining = self._joining(request)
        workers = [m for m in job.workers if not m.leaving] + [m for m in joining if m.role == WORKER]
        servers = [m for m in job.servers if not m.leaving] + [m for m in joining if m.role == SERVER]
        if not workers or not servers:
            return
        key = lambda m: (m.index, m.id)  # noqa: E731
        workers.sort(key=key)
        names = {m.id for m in servers}
        same = {m.id for m in workers} == set(view.workers) and names == set(view.servers)
        if not same or self._rebalance:
            self._rebalance = False
            ordered = [m for m in job.servers if m.id in names] + [m for m in servers if m.state == "new"]
            target = job.next_view(workers, ordered)
            reason = self._reason(request, joining)
            self.scaling.begin(target, reason, then=self._committed(request))
        elif request is not None:
            request.state = "committed"
            self.request = None
        elif self._save_due():
            self._save_asked = False
            self._last_save = time.monotonic()
            self.scaling.begin(job.next_view(job.workers, job.servers, keep=True), "checkpoint", save=True)

    def _committed(self, request: Request | None) -> Callable[[], None]:
        def then() -> None:
            if request is not None and self.request is request:
                request.state = "committed"
                self.request = None

        return then

    def _reason(self, request: Request | None, joining: list[Member]) -> str:
        if request is not None:
            return f"request {request.number}"
        if joining:
            return f"{', '.join(m.id for m in joining)} joined"
        left = [m.id for m in self.job.members.values() if m.leaving and m.state == "active"]
        return f"{', '.join(left)} left" if left else "members are gone"

    def _joining(self, request: Request | None) -> list[Member]:
        waits = (
            self.request is not None and request is None
        )  # a request that is not complete holds its newcomers
        if waits or time.monotonic() - self._last_arrival < MERGE_SECONDS:
            return []
        return [*self.job.newcomers(WORKER), *self.job.newcomers(SERVER)]

    def _due_request(self) -> Request | None:
        """The pending request if everyone it asks for is there; its victims are marked then. Undone if too late."""
        request = self.request
        if request is None:
            return None
        missing = []
        for role, wanted in ((WORKER, request.workers), (SERVER, request.servers)):
            staying = [m for m in self.job.live(role) if not m.leaving]
            have = len(staying) + len(self.job.newcomers(role))
            if wanted is not None and have < wanted:
                missing.append(f"{wanted - have} {role}s")
        if missing:
            if time.monotonic() > request.deadline:
                self._undo(request, f"{' and '.join(missing)} did not come")
            return None
        for role, wanted in ((WORKER, request.workers), (SERVER, request.servers)):
            if wanted is not None:
                self._mark_victims(request, role, wanted)
        return request

    def _mark_victims(self, request: Request, role: str, wanted: int) -> None:
        """Newcomers go first, then the highest index."""
        staying = [m for m in self.job.live(role) if not m.leaving] + self.job.newcomers(role)
        for member in staying[wanted:]:
            member.leaving = True
            request.victims.append(member)
            if member.state == "new":
                self._send_away(member, "it is not wanted any more")

    def _undo(self, request: Request, why: str) -> None:
        """All or nothing: the newcomers that did come are sent away."""
        request.state, self.request = "undone", None
        for member in request.victims:
            member.leaving = False
        self.scaling.counts["undone"] += 1
        self.scaling.note(f"request {request.number} is undone: {why}")
        for role in (WORKER, SERVER):
            for member in self.job.live(role, "new"):
                self._send_away(member, f"the request it came for is undone: {why}")

    @property
    def _can_save(self) -> bool:
        return bool(self._settings.checkpoint_dir and self.job.table.chunks and not self.job.sums)

    def _save_due(self) -> bool:
        settings = self._settings
        if not self._can_save or self.scaling.saving:
            return False
        periodic = settings.checkpoint_seconds and self.job.workers
        late = time.monotonic() - self._last_save > settings.checkpoint_seconds
        return self._save_asked or bool(periodic and late)

    # -- the end --

    def _finish_or_stop(self) -> bool:
        """If no worker is left to train, or all of a role are to leave, save and release everyone."""
        job = self.job
        if job.newcomers(WORKER):
            return False
        done = [m for m in job.live(WORKER, "gone") if m.done]
        finished = any(m.step >= self.step for m in done) and all(m.leaving for m in job.workers)
        stopping = job.workers and (
            all(m.leaving for m in job.workers) or all(m.leaving for m in job.servers)
        )
        if not finished and not stopping:
            return False
        if self.state != "ending":
            self.state = "ending"
            if self._can_save and not self.scaling.saving:
                self.scaling.begin(
                    job.next_view(job.workers, job.servers, keep=True), "final checkpoint", save=True
                )
                return True
        if not self.scaling.saving:
            self.release(finished)
        return True

    def release(self, finished: bool = False) -> None:
        """Send everyone home; `finished`: because the training is done."""
        for member in list(self.job.members.values()):
            if member.state != "gone":
                self._send(member.id, {"type": "release", "finished": finished})
                member.state = "gone"
        self.state = "finished" if finished else "stopped"
        self.reactor.stopped = True

    def _fail(self, why: str) -> None:
        self.failure = why
        self.state = "failed"
        self.scaling.note(why)
        for member in self.job.members.values():
            self._send(member.id, {"type": "refused", "error": why})
        self.reactor.stopped = True

    # -- for HTTP; in the reactor's thread --

    def scale(self, workers: int | None, servers: int | None, within: float) -> dict[str, Any]:
        """Queue a wish; it takes the place of one that is pending and did not begin."""
        if self.request is not None:
            self.request.state = "superseded"
            workers = self.request.workers if workers is None else workers
            servers = self.request.servers if servers is None else servers
        self._requests += 1
        self.request = Request(self._requests, workers, servers, time.monotonic() + within)
        self._consider()
        return self.request.to_json() if self.request else {"id": self._requests, "state": "committed"}

    def save(self) -> None:
        self._save_asked = True
        self._consider()

    def stop(self) -> None:
        """SIGTERM: save and release everyone."""
        self._stop_by = time.monotonic() + STOP_SHARE * self._settings.grace
        for member in list(self.job.members.values()):
            member.leaving = member.state == "active"
            if member.state == "new":
                self._send_away(member, "the job is being stopped")
        if self.job.view is None:
            self.release()
        self._consider()

    def status(self) -> dict[str, Any]:
        view = self.job.view
        current = self.scaling.current
        return {
            "state": self.state,
            "view": view.version if view else 0,
            **counts(view),
            "round": self.step,
            "members": [m.to_json() for m in self.job.members.values() if m.state != "gone"],
            "last_scaling": dict(self.scaling.last) or None,
            "scaling": {"reason": current.reason, "phase": current.phase, "waiting": sorted(current.waiting)}
            if current
            else None,
            "request": self.request.to_json() if self.request else None,
            "parameters": len(self.job.table.keys),
            "bytes": sum(self.job.sizes()),
            "notes": list(self.scaling.notes),
            "counts": dict(self.scaling.counts),
        }
