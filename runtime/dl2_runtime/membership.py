"""What a worker knows about its job, shared between the caller's thread and the one that hears the coordinator."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from typing import Any, Callable, Mapping

from dl2_runtime import wire
from dl2_runtime.control import Control
from dl2_runtime.settings import Settings
from dl2_runtime.signals import TERMINATED
from dl2_runtime.view import Key, View

DIAL_SECONDS = 5.0
LEAD_SECONDS = 0.03  # what the coordinator may take to set the clock without holding us up
MAX_LEAD = 64  # rounds
LONG_ROUND_SECONDS = 1.0
FAREWELL_SECONDS = 5.0

log = logging.getLogger("dl2_runtime.worker")


class RuntimeLost(RuntimeError):
    """The job cannot go on for this worker: something did not answer in time, or we were declared dead."""


class Left(SystemExit):
    """This worker is not part of the job any more. Not caught, it ends the process: with success if the training is
    finished, else with status 143, so that nobody takes a worker that was sent away for one that is done.
    """

    def __init__(self, finished: bool) -> None:
        super().__init__(0 if finished else TERMINATED)


class Membership:
    """The view, the step, and the promises made about them. `wake` interrupts the caller's waiting for servers."""

    def __init__(
        self, settings: Settings, wake: Callable[[], None], keys: Callable[[], list[list[Any]]]
    ) -> None:
        self._settings = settings
        self.id = settings.id
        self._wake = wake
        self._keys = keys
        self._changed = threading.Condition()
        self._control = Control(settings, self._hello, self._heard, lambda: {"step": self.step})
        self.view = View()
        self.present: View | None = None  # a newcomer's: what the job has before our clock
        self.shunned: set[str] = set()  # servers that were declared dead
        self.joined: tuple[str, ...] = ()  # workers who came since we last brought them values
        self.fresh = False  # our first view is the one whose values were prefetched
        self.step = 0
        self.in_round = False
        self.claimed = False  # someone computes a gradient for the next round, as this view shares it out
        self._planned = 0  # version of the view we promised to wait for
        self._stop: int | None = None  # the round not to begin: first our promise, then the clock
        self._at_clock = False
        self._paused_since: float | None = None
        self._resuming = False  # the coordinator is to hear how long the last commit held us up
        self._round_seconds = 0.0
        self._last_end: float | None = None
        self._declared: list[Key] | None = None
        self._sums = False
        self._replies: list[wire.Message] = []
        self._recoveries: list[wire.Message] = []
        self._dialled: dict[str, socket.socket] = {}
        self._steps: Mapping[str, int] = {}
        self._released = self._finished = False
        self._leaving = False
        self._error: str | None = None

    def start(self) -> None:
        """Connect to the coordinator. Raises RuntimeLost."""
        self._control.start()
        deadline = time.monotonic() + self._settings.limit
        while not self._control.connected.wait(0.05):
            if self._error or time.monotonic() > deadline:
                raise RuntimeLost(
                    self._error or f"the coordinator {self._settings.coordinator} did not answer"
                )

    def leave(self) -> None:
        self._leaving = True
        self.tell({"type": "leave"})

    def tell(self, message: wire.Message) -> None:
        self._control.tell(message)

    @property
    def rank(self) -> int:
        workers = self.view.workers
        return workers.index(self.id) if self.id in workers else -1

    @property
    def owners(self) -> tuple[str, ...]:
        return (self.view if self.view.version else self.present or self.view).owners

    @property
    def servers(self) -> Mapping[str, str]:
        return (self.view if self.view.version else self.present or self.view).servers

    def settled(self) -> bool:
        """Something other than a clock has come for a worker that waits to be declared."""
        with self._changed:
            return any(reply["type"] != "clock" for reply in self._replies) or len(self._replies) > 1

    def check(self) -> None:
        """Raise Left if the job let us go (it may do so before we have all values), RuntimeLost if it has lost us."""
        if self._released:
            raise Left(self._finished)
        if self._error:
            raise RuntimeLost(self._error)

    # -- the caller's thread --

    def declare(self, keys: list[Key], sums: bool) -> None:
        with self._changed:
            self._declared, self._sums = keys, sums
            self._replies = []
        self._send_declaration()

    def _send_declaration(self) -> None:
        keys = self._declared
        if keys is not None:
            self.tell({"type": "declare", "keys": [key.to_json() for key in keys], "sums": self._sums})

    def forget_declared(self) -> None:
        self._declared = None

    def await_declared(self, deadline: float) -> wire.Message:
        """The coordinator's next word on our declaration: a "clock" to prepare for, or "declared"."""
        with self._changed:
            while not self._replies:
                self.check()
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise RuntimeLost(
                        f"{self.id} waited {self._settings.limit:g} s to join: are there servers, and does the first "
                        f"worker declare the same parameters?{self.laggards()}"
                    )
            return self._replies.pop(0)

    def await_turn(self) -> None:
        """Wait while the next round is behind a clock that is not committed. Raises Left, RuntimeLost.

        The answer holds for the whole round: no clock strikes before it is over.
        """
        deadline = time.monotonic() + self._settings.limit
        with self._changed:
            while self._stop is not None and self.step >= self._stop and not self._recoveries:
                self._paused_since = self._paused_since or time.monotonic()
                self.check()
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise RuntimeLost(
                        f"round {self.step}: waited {self._settings.limit:g} s at a scaling clock for the "
                        f"coordinator and the servers to go on{self.laggards()}"
                    )
            self.check()
            if self._recoveries:
                return
            if self.id not in self.view.workers:
                raise Left(self._finished)
            self.claimed = True
            self._report_pause()

    def _report_pause(self) -> None:
        """Also when there was none: else nobody could tell that from a report that is missing."""
        since, self._paused_since = self._paused_since, None
        if self._resuming:
            self._resuming = False
            pause = (time.monotonic() - since) * 1000 if since is not None else 0.0
            self.tell({"type": "resumed", "version": self.view.version, "pause_ms": pause})

    def take_joined(self) -> tuple[str, ...]:
        with self._changed:
            joined, self.joined = self.joined, ()
        return joined

    def begin_round(self) -> None:
        with self._changed:
            self.in_round = True

    def end_round(self) -> None:
        now = time.monotonic()
        with self._changed:
            self.step += 1
            self.in_round = self.claimed = False
            self._say_at_clock()
            if self._last_end is not None:
                self._round_seconds += 0.2 * (now - self._last_end - self._round_seconds)
            self._last_end = now

    def laggards(self) -> str:
        behind = [name for name, step in self._steps.items() if step < self.step]
        return f"; behind us: {', '.join(sorted(behind))}" if behind else ""

    @property
    def recovery(self) -> wire.Message | None:
        return self._recoveries[0] if self._recoveries else None

    def take_recovery(self) -> wire.Message | None:
        with self._changed:
            return self._recoveries.pop(0) if self._recoveries else None

    def dialled(self, server: str) -> socket.socket | None:
        with self._changed:
            return self._dialled.pop(server, None)

    def forget_dialled(self) -> None:
        with self._changed:
            for server in set(self._dialled) - set(self.servers):
                if self._stop is None:
                    self._dialled.pop(server).close()

    def finish(self, done: bool) -> None:
        """Tell the coordinator if we are done, and disconnect once it knows."""
        self._settings.mark_ready(False)
        deadline = time.monotonic() + FAREWELL_SECONDS
        if done:
            self.tell({"type": "done", "step": self.step})
        with self._changed:
            while done and not self._released and self._error is None and self._control.connected.is_set():
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
        self._control.close()
        for sock in self._dialled.values():
            sock.close()

    # -- the coordinator's thread --

    def _hello(self) -> wire.Message:
        view = self.view
        return {
            "view": view.to_json() if view.version else None,
            "planned": self._planned,
            "step": self.step,
            "keys": self._keys(),
            "leaving": self._leaving,
            "sums": self._sums,
        }

    def _heard(self, message: wire.Message) -> None:
        handler = getattr(self, "_on_" + str(message.get("type")), None)
        if handler is None:
            log.warning("the coordinator sent %r, which this version does not know", message.get("type"))
            return
        with self._changed:
            handler(message)
            self._changed.notify_all()
        self._wake()

    def _on_welcome(self, message: wire.Message) -> None:
        self._send_declaration()

    def _on_steps(self, message: wire.Message) -> None:
        self._steps = message["steps"]

    def _on_prepare(self, message: wire.Message) -> None:
        lead = 0 if message.get("now") else self._lead()
        self._stop = self.step + (self.in_round or self.claimed) + lead
        self._planned = int(message["version"])
        self._at_clock = False
        self.tell({"type": "promise", "version": self._planned, "step": self._stop})

    def _lead(self) -> int:
        """Rounds to go on for, at least a whole one: servers get ready meanwhile, and chunks leave as its last part.
        Where rounds are long, the one that is under way gives time enough.
        """
        if not 0 < self._round_seconds < LONG_ROUND_SECONDS:
            return 0
        return min(MAX_LEAD, math.ceil(LEAD_SECONDS / self._round_seconds))

    def _on_clock(self, message: wire.Message) -> None:
        view = View.from_json(message["view"])
        self._dial({s: a for s, a in view.servers.items() if s not in self.view.servers})
        if not self.view.version:
            self.present = View.from_json(message["present"]) if message.get("present") else None
            self._replies.append(message)
        elif view.version == self._planned:
            self._stop = int(message["step"])
            self._say_at_clock(clock=True)

    def _say_at_clock(self, clock: bool = False) -> None:
        """Tell the coordinator, once, when the clock's round is next."""
        self._at_clock = self._at_clock or clock
        if self._at_clock and self.step == self._stop and not self.in_round:
            self._at_clock = False
            self.tell({"type": "at_clock", "version": self._planned})

    def _on_abort(self, message: wire.Message) -> None:
        if message["version"] in (-1, self._planned):
            self._planned, self._stop, self._at_clock = 0, None, False
        self._recoveries = [m for m in self._recoveries if m["version"] != message["version"]]
        self._replies = [m for m in self._replies if m["type"] != "clock"]

    def _on_recover(self, message: wire.Message) -> None:
        self._dial({s: a for s, a in message["servers"].items() if s not in self.view.servers})
        self.shunned = set(self.view.servers) - set(message["servers"])
        self._recoveries.append(message)

    def _on_commit(self, message: wire.Message) -> None:
        view = View.from_json(message["view"])
        if view.version <= self.view.version:
            return
        old = set(self.view.workers)
        self.fresh = not self.view.version
        if self.fresh:
            self.step = view.step
        else:
            self.joined = tuple(n for n in view.workers if n not in old or n in self.joined)
            self._resuming = True
        self.view, self.shunned = view, set()
        self._settings.mark_ready(self.id in view.workers)
        self._planned, self._stop, self._at_clock = 0, None, False
        if "lost" in message:
            self._recoveries.append(message)

    def _on_declared(self, message: wire.Message) -> None:
        view = View.from_json(message["view"]) if "view" in message else self.view
        if view.version >= self.view.version:
            self.view = view
            self._settings.mark_ready(self.id in view.workers)
        self._replies.append(message)

    def _on_release(self, message: wire.Message) -> None:
        self._released, self._finished = True, bool(message.get("finished"))

    def _on_refused(self, message: wire.Message) -> None:
        self._error = str(message.get("error"))

    _on_lost = _on_refused

    def _dial(self, servers: Mapping[str, str]) -> None:
        """Connect to the next view's servers before its clock strikes; in threads, because it may wait."""
        for server, address in servers.items():
            threading.Thread(target=self._dial_one, args=(server, address), daemon=True).start()

    def _dial_one(self, server: str, address: str) -> None:
        try:
            sock = wire.connect(address, self._settings.identity(), self._settings.token, DIAL_SECONDS)
        except OSError as error:
            log.info("server %s cannot be reached yet: %s", server, error)
            return
        with self._changed:
            old = self._dialled.pop(server, None)
            if old is not None:
                old.close()
            self._dialled[server] = sock
