"""A parameter server: sums the workers' gradients, applies the update rule, hands chunks over when servers change.

One thread does everything that touches a chunk, so there are no locks. What it owns follows from what it was given:
chunks arrive by SEED (from a worker, at the start or after a server died), by MOVE (from another server, at a scaling
clock) or from a checkpoint. A plan for the next view is prepared beside the present one and takes effect only by its
commit; an abort forgets it.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from typing import Any

from dl2_runtime import checkpoint, codecs, wire
from dl2_runtime.control import Control
from dl2_runtime.optimizers import Rule
from dl2_runtime.reactor import Reactor
from dl2_runtime.settings import SERVER, Settings
from dl2_runtime.slots import Buffers, Slot, bytes_of
from dl2_runtime.view import DTYPES, View

DIAL_SECONDS = 10.0

log = logging.getLogger("dl2_runtime.server")


class Plan:
    """The next view, and this server's part in the move to it."""

    def __init__(self, body: wire.Message) -> None:
        self.view = View.from_json(body["view"])
        self.outgoing: dict[int, str] = {int(n): str(to) for n, to in body.get("outgoing", ())}
        self.left: dict[int, str] | None = None  # of these, not on their way yet; None: takers are not ready
        self.fresh = bool(body.get("fresh"))  # nobody is in the middle of a round
        self.lost = {
            int(n) for n in body.get("lost", ())
        }  # if any, the clock does not count: a round may be on
        self.sums = bool(body.get("sums"))  # the workers keep the values
        self.incoming = int(body.get("incoming", 0))  # chunks
        self.staged: dict[int, Slot] = {}
        self.save: str | None = body.get("save")  # the folder for a checkpoint of what is here at the clock
        self.links: dict[str, wire.Link] = {}
        self.due: dict[wire.Link, deque[tuple[Slot, str]]] = {}  # parts that a link will bring, in order


class Unreachable(OSError):
    """A server that this one cannot connect to."""

    def __init__(self, server: str, error: OSError) -> None:
        super().__init__(f"{server}: {error}")
        self.server = server


class Server:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reactor = Reactor(
            settings,
            place=self._place,
            deliver=self._deliver,
            joined=lambda link: None,
            lost=self._lost,
            tick=lambda: None,
        )
        self.finished = False  # the training is: else we were sent away, or the job was stopped
        self.port = self._reactor.listen(settings.bind, settings.port)
        self._control = Control(
            settings, self._hello, lambda m: self._reactor.call(lambda: self._heard(m)), dict
        )
        self._buffers = Buffers()
        self._filling: dict[wire.Link, Any] = {}  # the buffer that a link's frame is read into
        self._slots: dict[int, Slot] = {}
        self._rules: dict[wire.Link, Rule] = {}
        self._workers: dict[str, wire.Link] = {}
        self._view = View()
        self._needed: set[str] = set()
        self._dropped: set[str] = set()
        self._plan: Plan | None = None
        self._failure: str | None = None
        self._leaving = False

    def run(self) -> None:
        """Serve until the coordinator releases this server. Raises RuntimeError if the job has lost us."""
        self._control.start()
        try:
            self._reactor.run()
        finally:
            self._settings.mark_ready(False)
            self._control.close()
            self._reactor.shut()
        if self._failure:
            raise RuntimeError(self._failure)

    def leave(self) -> None:
        """Ask to be relieved of all chunks at the next scaling clock (SIGTERM); `run` returns when that is done."""
        self._leaving = True
        self._control.tell({"type": "leave"})

    # -- the coordinator's messages --

    def _hello(self) -> wire.Message:
        host = self._settings.host or self._control.local_host
        return {
            "address": f"{host}:{self.port}",
            "view": self._view.to_json() if self._view.version else None,
            "leaving": self._leaving,
        }

    def _heard(self, message: wire.Message) -> None:
        kind = str(message.get("type"))
        try:
            handler = getattr(self, "_on_" + kind)
        except AttributeError:
            log.warning("the coordinator sent %r, which this version does not know", kind)
            return
        try:
            handler(message)
        except (
            Exception
        ):  # a server that stopped half-way would hang the job; the coordinator's limit ends the plan
            log.exception("the coordinator's %r failed", kind)
            self._control.tell({"type": "failed", "error": f"{kind} failed on {self._settings.id}"})

    def _on_welcome(self, message: wire.Message) -> None:
        pass

    def _on_plan(self, message: wire.Message) -> None:
        self._forget_plan()
        self._plan = plan = Plan(message)
        for nbytes, count in message.get("reserve", ()):
            for _ in range(int(count)):
                self._buffers.reserve(int(nbytes))
        if plan.outgoing or message.get("restore") or message.get("state"):
            threading.Thread(
                target=self._prepare, args=(plan, message), name="dl2-prepare", daemon=True
            ).start()
        else:
            self._prepared(plan, {}, {})

    def _prepare(self, plan: Plan, message: wire.Message) -> None:
        """What a plan needs and what may take its time, in a thread of its own: reading a checkpoint, and connecting to
        the servers that we shall send to.
        """
        socks: dict[str, socket.socket] = {}
        try:
            restored = self._restored(plan, message)
            for server in dict.fromkeys(plan.outgoing.values()):
                socks[server] = self._dial(server, plan.view.servers[server])
        except Exception as error:  # as in `_heard`: a server that stopped half-way would hang the job
            log.warning("view %d cannot be prepared: %s", plan.view.version, error, exc_info=True)
            for sock in socks.values():
                sock.close()
            failure = {"type": "failed", "version": plan.view.version, "error": str(error)}
            self._control.tell(
                {**failure, "blame": error.server} if isinstance(error, Unreachable) else failure
            )
            return
        self._reactor.call(lambda: self._prepared(plan, restored, socks))

    def _dial(self, server: str, address: str) -> socket.socket:
        settings = self._settings
        try:
            return wire.connect(address, settings.identity(), settings.token, DIAL_SECONDS)
        except OSError as error:
            raise Unreachable(server, error) from error

    def _prepared(self, plan: Plan, restored: dict[int, Slot], socks: dict[str, socket.socket]) -> None:
        if self._plan is not plan:
            for sock in socks.values():
                sock.close()
            return
        plan.staged.update(restored)
        plan.links = {server: self._reactor.attach(sock, server) for server, sock in socks.items()}
        slots = [*self._slots.values(), *plan.staged.values()]
        step = max((max(slot.version, slot.value_at) for slot in slots), default=0)
        answer = {"type": "planned", "version": plan.view.version, "step": max(step, 0)}
        self._control.tell({**answer, "restored": len(restored)})

    def _on_move(self, message: wire.Message) -> None:
        """The takers are ready for what is through the last round before the clock; with `rest` every worker stands
        there, and all that leaves may go.
        """
        plan = self._plan
        if plan is None or plan.view.version != message["version"]:
            return
        if plan.left is None:
            plan.left = dict(plan.outgoing)
        for number in list(plan.left):
            if message["rest"]:
                self._hand_over(plan, self._slots[number])
            elif number in self._slots:
                self._hand_over_early(self._slots[number])

    def _hand_over_early(self, slot: Slot) -> None:
        """A chunk that leaves, and that no round before the clock can change any more."""
        plan = self._plan
        if plan is None or slot.number not in (plan.left or ()) or slot.value is None:
            return
        asynchronous = any(rule.asynchronous for rule in self._rules.values())  # then rounds end for nobody
        if slot.version >= plan.view.step and not asynchronous:
            self._hand_over(plan, slot)

    def _hand_over(self, plan: Plan, slot: Slot) -> None:
        assert plan.left is not None
        link = plan.links[plan.left.pop(slot.number)]
        link.tell({"type": "moving", "version": plan.view.version, "chunk": slot.describe()})
        for part, (_, array) in enumerate(slot.parts):
            frame = wire.Frame(wire.MOVE, chunk=slot.number, size=array.nbytes, aux=part)
            link.send(frame, (bytes_of(array),))
        self._reactor.dirty.add(link)

    def _on_commit(self, message: wire.Message) -> None:
        plan = self._plan
        if plan is not None and plan.view.version == message["version"]:
            plan.view = View.from_json(message["view"])
            self._commit()

    def _commit(self) -> None:
        plan = self._plan
        assert plan is not None
        if plan.save:  # not before: here a worker's first push of the next round may tell us of the commit
            self._save(plan.save)
        self._plan = None
        self._view = plan.view
        self._settings.mark_ready(self._settings.id in plan.view.servers)
        if plan.fresh:
            for slot in self._slots.values():
                slot.drop(self._buffers)
        for number in plan.outgoing:
            del self._slots[number]
        self._slots.update(plan.staged)
        for link in plan.links.values():
            self._reactor.close(link)
        if not plan.lost:  # every round before the clock is over, also for chunks that none of them touched
            for slot in self._slots.values():
                slot.version = max(slot.version, plan.view.step)
                if not plan.sums:
                    slot.value_at = slot.version
                self._settle_pulls(slot)
        self._recount()

    def _on_abort(self, message: wire.Message) -> None:
        if self._plan is not None and self._plan.view.version == message["version"]:
            self._forget_plan()

    def _forget_plan(self) -> None:
        plan, self._plan = self._plan, None
        if plan is not None:
            for link in (*plan.links.values(), *plan.due):
                self._reactor.close(link)

    def _on_drop(self, message: wire.Message) -> None:
        """A worker is dead or done: no round waits for it any more."""
        worker = str(message["worker"])
        self._dropped.add(worker)
        link = self._workers.pop(worker, None)
        if link is not None:
            self._reactor.close(link)
        self._recount()

    def _on_release(self, message: wire.Message) -> None:
        self.finished = bool(message.get("finished"))
        self._reactor.stopped = True

    def _on_refused(self, message: wire.Message) -> None:
        if not self._reactor.stopped:  # one that is released may hear this too
            self._failure = str(message.get("error"))
            self._reactor.stopped = True

    _on_lost = _on_refused

    def _recount(self) -> None:
        self._needed = set(self._view.workers) - self._dropped
        for slot in list(self._slots.values()):
            self._settle(slot)

    # -- checkpoints --

    def _save(self, folder: str) -> None:
        """Copy everything now, write it in a thread."""
        copies = [
            (slot.describe(), [array.copy() for _, array in slot.parts]) for slot in self._slots.values()
        ]

        def write() -> None:
            try:
                checkpoint.write_part(folder, self._settings.id, copies)
                self._control.tell({"type": "saved", "folder": folder})
            except OSError as error:
                log.exception("the checkpoint could not be written")
                self._control.tell({"type": "saved", "folder": folder, "error": str(error)})

        threading.Thread(target=write, name="dl2-checkpoint").start()

    def _restored(self, plan: Plan, message: wire.Message) -> dict[int, Slot]:
        """What the plan says to read from a checkpoint: all that is ours, or the optimizer's state of lost chunks as far
        as it can be read (a worker brings the values, which are newer). Raises OSError, ValueError for the former.
        """
        mine, restored = self._mine(plan.view), {}
        if message.get("restore"):
            for body, arrays in checkpoint.read_parts(str(message["restore"]), mine):
                slot = restored[body["chunk"]] = Slot.described(body)
                slot.value, slot.state = arrays[0], dict(zip(body["parts"][1:], arrays[1:]))
        if message.get("state"):
            try:
                for body, arrays in checkpoint.read_parts(str(message["state"]), plan.lost & mine):
                    slot = restored[body["chunk"]] = Slot(body["chunk"], str(body["key"]), body["dtype"])
                    slot.updates, slot.state = int(body["updates"]), dict(zip(body["parts"][1:], arrays[1:]))
            except (OSError, ValueError) as error:
                log.warning("the optimizer's state is not restored: %s", error)
        return restored

    def _mine(self, view: View) -> set[int]:
        return {n for n, owner in enumerate(view.owners) if owner == self._settings.id}

    # -- frames from workers and servers --

    def _place(self, link: wire.Link, frame: wire.Frame) -> memoryview:
        buffer = self._buffers.take(frame.size)
        self._filling[link] = buffer
        return memoryview(buffer)

    def _deliver(self, link: wire.Link, frame: wire.Frame, payload: memoryview) -> None:
        kind = frame.kind
        if kind == wire.PUSH:
            self._push(link, frame, self._filling.pop(link))
        elif kind == wire.PULL:
            self._pull(link, frame)
        elif kind == wire.SEED:
            self._seed(link, frame, self._filling.pop(link))
        elif kind == wire.MOVE:
            self._moved(link, frame, self._filling.pop(link))
        elif kind == wire.RULE:
            self._rules[link] = Rule.from_json(wire.decode(payload))
            self._workers[link.peer] = link
        elif kind == wire.CONTROL:
            self._expect_moves(link, wire.decode(payload))
        else:
            raise wire.WireError(f"{link.peer} sent frame kind {kind}")

    def _lost(self, link: wire.Link) -> None:
        self._filling.pop(link, None)
        self._rules.pop(link, None)
        for slot in self._slots.values():
            if link in slot.waiting:
                slot.waiting.remove(link)
            slot.pulls = [pull for pull in slot.pulls if pull[0] is not link]
        if self._workers.get(link.peer) is link:
            del self._workers[link.peer]

    def _push(self, link: wire.Link, frame: wire.Frame, buffer: Any) -> None:
        rule, worker = self._rules[link], link.peer
        self._keep_up(link, frame.view)
        if worker not in self._needed:
            raise wire.WireError(f"{worker} is no worker of view {self._view.version}")
        dtype = DTYPES[frame.codec & 15]
        slot = self._slots.get(frame.chunk)
        if slot is None:
            slot = self._slots[frame.chunk] = Slot(frame.chunk, "", dtype)
        grad = codecs.decode(frame.codec >> 4, buffer, dtype, frame.aux)
        if slot.value is not None and (slot.value.size != grad.size or slot.dtype != dtype):
            raise wire.WireError(f"{worker} pushes {grad.size} x {dtype} to chunk {frame.chunk}")
        if frame.step < slot.version:
            self._answer(link, slot, self._outcome(slot, rule, frame.step))
            self._buffers.give(buffer)
            return
        if rule.asynchronous:
            self._apply_now(link, slot, rule, worker, frame.step, grad)
            return
        if worker in slot.got or not slot.add(
            worker, frame.step, grad
        ):  # it pushes again after a server died
            self._buffers.give(buffer)
        slot.waiting.append(link)
        self._settle(slot)

    def _keep_up(self, link: wire.Link, view: int) -> None:
        """A worker at our next view has heard of the commit before us; what it sends is for the chunks of that view."""
        if view <= self._view.version:
            return
        if self._plan is None or self._plan.view.version != view:
            raise wire.WireError(f"{link.peer} is at view {view}, this server at {self._view.version}")
        self._commit()

    def _outcome(self, slot: Slot, rule: Rule, step: int) -> Any:
        """What a round that is over gave, for a worker that did not get it before a server died."""
        if rule.name != "sum":
            return slot.value
        if slot.result is None or step != slot.version - 1:
            raise wire.WireError(f"round {step} of chunk {slot.number} is not kept any more")
        return slot.result

    def _settle(self, slot: Slot) -> None:
        """Finish the slot's round if every worker's gradient is in."""
        if slot.sum is None or not slot.waiting or not slot.got >= self._needed:
            return
        rule = self._rules[slot.waiting[-1]]
        if rule.name != "sum" and slot.value is None:
            return  # a worker will bring it
        if len(slot.got) < len(self._view.workers):
            self._say_short(slot)
        outcome = slot.finish(rule, self._buffers)
        for link in slot.waiting:
            self._answer(link, slot, outcome)
        slot.waiting.clear()
        self._settle_pulls(slot)
        self._hand_over_early(slot)

    def _say_short(self, slot: Slot) -> None:
        workers = self._view.workers
        ranks = {name: rank for rank, name in enumerate(workers) if name not in slot.got}
        message = {"type": "short", "round": slot.round, "chunk": slot.number}
        self._control.tell({**message, "ranks": ranks, "workers": len(workers)})

    def _apply_now(self, link: wire.Link, slot: Slot, rule: Rule, worker: str, step: int, grad: Any) -> None:
        if slot.value is None:
            raise wire.WireError(f"chunk {slot.number} has no value yet")
        version = max(slot.version, 0)
        slot.add(worker, step, grad)
        outcome = slot.finish(rule, self._buffers)
        slot.version = version  # rounds differ by worker here, so none is over for all
        slot.value_at = max(slot.value_at, step + 1)
        self._answer(link, slot, outcome.copy())  # another worker may change it while this is being sent

    def _answer(self, link: wire.Link, slot: Slot, array: Any) -> None:
        frame = wire.Frame(
            wire.VALUE, DTYPES.index(slot.dtype), 0, slot.number, array.nbytes, array.size, slot.version
        )
        link.send(frame, (bytes_of(array),))
        self._reactor.dirty.add(link)

    def _pull(self, link: wire.Link, frame: wire.Frame) -> None:
        """Send the value as soon as it is there, and as new as `step` asks (for values that workers keep)."""
        self._keep_up(link, frame.view)
        slot = self._slots.get(frame.chunk)
        if slot is None:
            slot = self._slots[frame.chunk] = Slot(frame.chunk, "", DTYPES[frame.codec])
        slot.pulls.append((link, frame.step))
        self._settle_pulls(slot)

    def _settle_pulls(self, slot: Slot) -> None:
        if slot.value is None:
            return
        for pull in list(slot.pulls):
            if slot.value_at >= pull[1]:
                slot.pulls.remove(pull)
                self._answer(pull[0], slot, slot.value)

    def _seed(self, link: wire.Link, frame: wire.Frame, buffer: Any) -> None:
        self._keep_up(link, frame.view)
        dtype = DTYPES[frame.codec]
        slot = self._slots.get(frame.chunk)
        if slot is None:
            slot = self._slots[frame.chunk] = Slot(frame.chunk, str(frame.aux), dtype)
        slot.key, slot.dtype = str(frame.aux), dtype
        slot.value = buffer.view(dtype)
        slot.version = max(slot.version, frame.step)
        slot.value_at = max(slot.value_at, frame.step)
        if slot.sum is not None and slot.round < slot.version:  # that round was over before a server died
            late, rules = list(slot.waiting), dict(self._rules)
            step = slot.round
            slot.drop(self._buffers)
            for waiting in late:
                self._answer(waiting, slot, self._outcome(slot, rules[waiting], step))
        self._settle(slot)
        self._settle_pulls(slot)

    def _expect_moves(self, link: wire.Link, message: wire.Message) -> None:
        plan = self._plan
        if link.identity.get("role") != SERVER or message.get("type") != "moving":
            raise wire.WireError(f"{link.peer} sent {message.get('type')!r:.40}")
        if plan is None or plan.view.version != message["version"]:
            raise wire.WireError(
                f"{link.peer} moves chunks for view {message['version']}, which is not planned"
            )
        due = plan.due.setdefault(link, deque())
        slot = Slot.described(message["chunk"])
        due.extend((slot, str(part)) for part in message["chunk"]["parts"])

    def _moved(self, link: wire.Link, frame: wire.Frame, buffer: Any) -> None:
        plan = self._plan
        if plan is None or not plan.due.get(link):
            raise wire.WireError(f"{link.peer} moves a chunk that was not announced")
        slot, part = plan.due[link].popleft()
        if slot.number != frame.chunk:
            raise wire.WireError(f"{link.peer} moves chunk {frame.chunk} instead of {slot.number}")
        if part:
            slot.state[part] = buffer.view(slot.dtype)
        else:
            slot.value = buffer.view(slot.dtype)
        if not plan.due[link] or plan.due[link][0][0] is not slot:
            plan.staged[slot.number] = slot
        if len(plan.staged) == plan.incoming:
            self._control.tell({"type": "received", "version": plan.view.version})


def serve(settings: Settings) -> None:
    """Run a server until it is released."""
    Server(settings).run()
