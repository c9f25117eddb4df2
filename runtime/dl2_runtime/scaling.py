"""How a job passes from one view to the next: all of it or none.

    promise    every worker names a round that it will not begin before it hears the clock
    clock      the clock is the latest of these rounds; workers go on up to it while servers prepare the plan
    move       every worker stands at the clock: servers hand over what is left of the chunks that leave (most went as
               soon as the last round before the clock was over for them)
    commit     servers save a checkpoint if one is due; servers and workers take the new view and go on

A server that died takes another way, for its round cannot be finished: workers tell which version of each lost chunk
they hold (inventory), the new homes read the optimizer's state from the last checkpoint, the newest copies are brought
there, and every worker repeats the round if it was in one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional

from dl2_runtime import checkpoint, wire
from dl2_runtime.job import Job, Member, counts
from dl2_runtime.settings import SERVER
from dl2_runtime.view import View

MAX_NOTES = 20
MAX_NAMES = 50  # of parameters in a note

# What to do where it may take its time, and whom to tell how it ended.
Background = Callable[[Callable[[], None], Callable[[Optional[OSError]], None]], None]

log = logging.getLogger("dl2_runtime.coordinator")


@dataclass
class Transition:
    view: View
    reason: str
    phase: str
    waiting: set[str]
    deadline: float
    save: str | None = None  # folder
    restore: str | None = None
    step: int = 0  # the latest promise, or what servers say when there is no worker
    state_parts: int = 0  # arrays beside each chunk
    received: set[str] = field(default_factory=set)  # servers that have all they get
    lost: tuple[int, ...] = ()
    saved: tuple[str, int] | None = None  # the folder and the step of the checkpoint that has their state
    restored: int = 0  # lost chunks whose state was read from there
    repeats: bool = False  # a worker was within a round
    copies: dict[int, tuple[int, str]] = field(
        default_factory=dict
    )  # lost chunk -> newest version and its worker
    then: Callable[[], None] | None = None  # after the commit


class Scaling:
    """Runs one transition at a time; `idle` says that the next may begin."""

    def __init__(self, job: Job, background: Background) -> None:
        self._job, self._background = job, background
        self.current: Transition | None = None
        self.last: dict[str, Any] = {}
        self.notes: deque[dict[str, Any]] = deque(maxlen=MAX_NOTES)  # what went wrong and what it cost
        self.counts: Counter[str] = Counter()
        self._untold: list[str] = []  # dead workers that the servers still wait for
        self._saving: tuple[str, int, set[str], list[str]] | None = None

    @property
    def idle(self) -> bool:
        return self.current is None

    def note(self, what: str, **more: Any) -> None:
        log.warning("%s", what)
        self.notes.append({"at": time.time(), "what": what, **more})

    # -- beginning --

    def begin(
        self,
        view: View,
        reason: str,
        *,
        save: bool = False,
        restore: str | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Start a transition at a scaling clock; without workers there is nobody to wait for."""
        workers = self._job.workers
        transition = self._start(view, reason, "promise", {m.id for m in workers})
        transition.restore, transition.then = restore, then
        transition.step = view.step
        if save and self._job.settings.checkpoint_dir:
            transition.save = "?"  # the folder is named after the clock
        self._job.broadcast(workers, {"type": "prepare", "version": view.version, "now": bool(self._untold)})
        self.advance()

    def recover(self, view: View, lost: list[int], reason: str, saved: tuple[str, int] | None) -> None:
        """Start a transition that gives lost chunks a new home; `saved`: a checkpoint's folder and step."""
        workers = self._job.workers
        transition = self._start(view, reason, "inventory", {m.id for m in workers})
        transition.lost, transition.saved = tuple(lost), saved
        self._job.broadcast(
            workers, {"type": "recover", "version": view.version, "lost": lost, "servers": dict(view.servers)}
        )
        self.advance()

    def _start(self, view: View, reason: str, phase: str, waiting: set[str]) -> Transition:
        assert self.current is None
        deadline = time.monotonic() + self._job.settings.limit
        self.current = Transition(view, reason, phase, waiting, deadline)
        log.info("view %d: %s; waiting for %s", view.version, reason, sorted(waiting))
        return self.current

    # -- what members answer --

    def heard(self, member: Member, message: wire.Message) -> None:
        transition = self.current
        if transition is None or message.get("version") != transition.view.version:
            return
        kind = message["type"]
        if kind in ("promise", "planned"):
            transition.step = max(transition.step, int(message["step"]))
            transition.state_parts = max(transition.state_parts, int(message.get("parts", 0)))
            transition.restored += int(message.get("restored", 0))
        elif kind == "inventory":
            self._take_inventory(transition, member, message)
        elif kind == "received":
            transition.received.add(member.id)
        transition.waiting.discard(f"{kind} {member.id}" if kind == "planned" else member.id)
        if kind == "planned" and not any(name.startswith("planned ") for name in transition.waiting):
            self._tell_to_move(transition, rest=False)
        self.advance()

    def _take_inventory(self, transition: Transition, member: Member, message: wire.Message) -> None:
        transition.repeats |= bool(message["in_round"])
        transition.step = max(transition.step, int(message["step"]))
        for number, version in message["versions"]:
            if version > transition.copies.get(int(number), (-1, ""))[0]:
                transition.copies[int(number)] = (int(version), member.id)

    def advance(self) -> None:
        """Go on if nobody is waited for any more."""
        transition = self.current
        while transition is not None and not transition.waiting:
            phase = transition.phase
            if phase == "promise":
                self._set_clock(transition)
            elif phase == "inventory":
                self._plan(transition, "plan", set())
            elif phase == "clock":
                self._move(transition)
            else:
                self._commit(transition)
            transition = self.current

    def member_gone(self, member: Member) -> None:
        """A dead worker is not waited for; a dead server, or a newcomer that dies, undoes the transition.

        So does a worker's death before the clock: rounds up to it would be without that worker's share.
        """
        present, transition = self._job.view, self.current
        old_worker = present is not None and member.id in present.workers
        if old_worker:
            self._untold.append(member.id)
        if transition is None:
            return
        if old_worker and not member.done and transition.phase in ("promise", "clock"):
            self.abort(f"{member.id} is gone")
            return
        if not old_worker and (
            member.id in transition.view.servers
            or member.id in transition.view.workers
            or (present is not None and member.id in present.servers)
        ):
            self.abort(f"{member.id} is gone")
            return
        transition.waiting.discard(member.id)
        self.advance()

    def tell_dead(self) -> None:
        """Let the round under way end without the dead: not before the others promised to begin no further one."""
        if self.current is not None and self.current.phase not in ("clock", "move"):
            return
        for worker in self._untold:
            self._job.broadcast(self._job.servers, {"type": "drop", "worker": worker})
        self._untold.clear()

    def short(self, message: wire.Message) -> None:
        """A server finished a round of one chunk without the share of workers that died: say so with their death."""
        key = self._job.table.chunks[int(message["chunk"])].key
        for worker, rank in message["ranks"].items():
            note = next((n for n in reversed(self.notes) if n.get("member") == worker), None)
            if note is None:
                continue  # it finished its training
            share = {"round": message["round"], "rank": rank, "workers": message["workers"]}
            lost = note.setdefault("lost_shares", [])
            if not lost or any(lost[-1][name] != value for name, value in share.items()):
                lost.append({**share, "parameters": []})
            if key not in lost[-1]["parameters"] and len(lost[-1]["parameters"]) < MAX_NAMES:
                lost[-1]["parameters"].append(key)

    def expire(self, now: float) -> None:
        transition = self.current
        if transition is not None and now > transition.deadline:
            names = ", ".join(sorted(transition.waiting))
            self.abort(f"{names} did not answer within {self._job.settings.limit:g} s ({transition.phase})")

    def abort(self, why: str) -> None:
        """Undo: everyone forgets the planned view and goes on with the present one."""
        transition, self.current = self.current, None
        if transition is None:
            return
        self.counts["undone"] += 1
        self.note(f"view {transition.view.version} ({transition.reason}) is undone: {why}")
        present = [m for m in self._job.members.values() if m.state != "gone"]
        self._job.broadcast(present, {"type": "abort", "version": transition.view.version})

    # -- the phases --

    def _set_clock(self, transition: Transition) -> None:
        job = self._job
        transition.view = replace(transition.view, step=transition.step)
        workers = job.workers
        if transition.save and job.settings.checkpoint_dir:
            transition.save = str(checkpoint.folder_for(job.settings.checkpoint_dir, transition.step))
        body = {"type": "clock", "step": transition.step, "view": transition.view.to_json()}
        job.broadcast(workers, body)
        if workers:  # newcomers fetch the parameters while the others finish the last round
            newcomers = [job.members[n] for n in transition.view.workers if job.members[n].state == "new"]
            present = job.view.to_json() if job.view else None
            job.broadcast(newcomers, {**body, "keys": job.table.to_json(), "present": present})
        self._plan(transition, "clock", {m.id for m in workers})

    def _plan(self, transition: Transition, phase: str, waiting: set[str]) -> None:
        """Tell servers what will move, so that they can connect and have memory at hand."""
        job = self._job
        transition.phase, transition.waiting = phase, waiting
        outgoing, incoming = self._moves(transition.view)
        sizes = job.sizes()
        for name in self._concerned(transition):
            reserve = Counter(sizes[n] for n in incoming.get(name, ()))
            job.send(
                name,
                {
                    "type": "plan",
                    "view": transition.view.to_json(),
                    "outgoing": outgoing.get(name, []),
                    "incoming": len(incoming.get(name, ())),
                    "reserve": [[size, n * (2 + transition.state_parts)] for size, n in reserve.items()],
                    "restore": transition.restore,
                    "save": transition.save if job.view and name in job.view.servers else None,
                    "fresh": not job.workers,
                    "lost": transition.lost,
                    "state": transition.saved[0] if transition.saved else None,
                    "sums": job.sums,
                },
            )
            waiting.add(f"planned {name}")

    def _concerned(self, transition: Transition) -> list[str]:
        """Every live server of the present and of the next view."""
        present = list(self._job.view.servers) if self._job.view else []
        names = dict.fromkeys([*present, *transition.view.servers])
        return [name for name in names if self._job.alive(name)]

    def _moves(self, view: View) -> tuple[dict[str, list[list[Any]]], dict[str, list[int]]]:
        outgoing: dict[str, list[list[Any]]] = {}
        incoming: dict[str, list[int]] = {}
        present = self._job.view
        for number, (old, new) in enumerate(zip(present.owners if present else (), view.owners)):
            if old != new and self._job.alive(old):
                outgoing.setdefault(old, []).append([number, new])
                incoming.setdefault(new, []).append(number)
        return outgoing, incoming

    def _move(self, transition: Transition) -> None:
        if not self._job.workers:  # nobody promised a round: the servers' own count is the clock
            transition.view = replace(transition.view, step=transition.step)
        _, incoming = self._moves(transition.view)
        transition.phase, transition.waiting = "move", set(incoming) - transition.received
        savers = set(self._job.view.servers) if transition.save and self._job.view else set()
        if transition.save:
            self._saving = (transition.save, transition.view.step, set(savers), sorted(savers))
        self._tell_to_move(transition, rest=True)

    def _tell_to_move(self, transition: Transition, rest: bool) -> None:
        for name in self._moves(transition.view)[0]:
            self._job.send(name, {"type": "move", "version": transition.view.version, "rest": rest})

    def _commit(self, transition: Transition) -> None:
        job = self._job
        before, concerned = job.view, self._concerned(transition)
        self.current = None
        job.view = view = transition.view
        body = {"type": "commit", "version": view.version, "view": view.to_json(), "step": view.step}
        for name in concerned:
            job.send(name, body)
        if transition.lost:
            donors = {str(n): [v, worker] for n, (v, worker) in transition.copies.items()}
            body = {**body, "lost": list(transition.lost), "donors": donors}
            self._tell_recovered(transition)
        names = dict.fromkeys([*(before.workers if before else ()), *view.workers])
        job.broadcast([job.members[n] for n in names if job.alive(n)], body)
        self._settle_members(view, before)
        self.counts["committed"] += 1
        if (
            before is None
            or set(before.workers) != set(view.workers)
            or set(before.servers) != set(view.servers)
        ):
            self.last = {
                "from": counts(before),
                "to": counts(view),
                "step": view.step,
                "pause_ms": 0.0,
                "reports": 0,
                "reason": transition.reason,
                "version": view.version,
                "time": time.time(),
            }
        log.info("view %d from round %d: %s", view.version, view.step, transition.reason)
        if transition.then is not None:
            transition.then()

    def _tell_recovered(self, transition: Transition) -> None:
        """What the death of servers cost."""
        lost, repeats = len(transition.lost), int(transition.repeats)
        step = transition.saved[1] if transition.saved and transition.restored else None
        state = "their optimizer state starts again"
        if step is not None:
            some = (
                ""
                if transition.restored == lost
                else f" for {transition.restored} of them, else starts again"
            )
            state = f"their optimizer state comes from the checkpoint of step {step}{some}"
        self.note(
            f"{transition.reason}: {lost} chunks come back from the workers' copies; {state}; {repeats} steps repeated",
            round=transition.step,
            repeated_steps=repeats,
            chunks=lost,
            state_step=step,
        )

    def _settle_members(self, view: View, before: View | None) -> None:
        """Newcomers are active now; those whom the view left out are released."""
        for name in (*view.workers, *view.servers):
            if self._job.alive(name):
                self._job.members[name].state = "active"
        left = [*before.workers, *before.servers] if before else []
        for name in left:
            if name not in view.workers and name not in view.servers and self._job.alive(name):
                self._job.send(name, {"type": "release"})
                self._job.members[name].state = "gone"

    def resumed(self, message: wire.Message) -> None:
        """A worker that was there before says how long the transition held it up; the longest counts."""
        if message.get("version") == self.last.get("version"):
            self.last["reports"] += 1
            self.last["pause_ms"] = max(self.last["pause_ms"], round(float(message["pause_ms"]), 3))

    # -- checkpoints --

    @property
    def saving(self) -> bool:
        return self._saving is not None

    def saved(self, member: Member, message: wire.Message) -> None:
        """A server's part is on disk; with the last one the checkpoint becomes valid."""
        if self._saving is None or message.get("folder") != self._saving[0]:
            return
        folder, step, waiting, parts = self._saving
        if message.get("error"):
            self._saving = None
            self.note(f"checkpoint {folder} failed on {member.id}: {message['error']}")
            return
        waiting.discard(member.id)
        if not waiting:
            self._background(
                lambda: checkpoint.complete(folder, step, self._job.table.to_json(), parts),
                lambda error: self._completed(folder, error),
            )

    def _completed(self, folder: str, error: OSError | None) -> None:
        self._saving = None
        if error is None:
            self.counts["checkpoints"] += 1
        else:
            self.note(f"checkpoint {folder} failed: {error}")

    def saver_gone(self, member: Member) -> None:
        if self._saving is not None and member.role == SERVER and member.id in self._saving[2]:
            self.note(f"checkpoint {self._saving[0]} failed: {member.id} is gone")
            self._saving = None
