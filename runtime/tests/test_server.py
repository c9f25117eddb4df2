"""What a parameter server does with single messages; tests of whole jobs show what comes of it."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
from harness import wait_for

from dl2_runtime import wire
from dl2_runtime.optimizers import Rule
from dl2_runtime.server import Server
from dl2_runtime.settings import SERVER, Settings
from dl2_runtime.slots import Slot, bytes_of
from dl2_runtime.view import LAYOUT, View

CLOCK = 3  # the round that the taker begins with
SIZE = 4


class Giver:
    """A server of two chunks that are planned to move to another one; what it sends there is read by `sent`."""

    def __init__(self) -> None:
        self.server = Server(Settings(role=SERVER, port=0))
        self.reports: list[wire.Message] = []
        self.server._control.tell = self.reports.append
        self.server._view = View(1, 0, ("w0", "w1"), {"here": "a:1"}, ("here", "here"))
        self.server._needed = {"w0", "w1"}
        for number in (0, 1):
            slot = self.server._slots[number] = Slot(number, str(number), "float32")
            slot.value, slot.version = np.zeros(SIZE, np.float32), CLOCK - 1
        self.workers = {}
        for name in ("w0", "w1"):
            link = self.workers[name] = wire.Link(socket.socketpair()[0], self.server._place, lambda *_: None)
            link.peer = name
            self.server._rules[link] = Rule("sgd", lr=1.0)
        self.taker, ours = socket.socketpair()
        self.taker.settimeout(5)
        self.link = wire.Link(ours, self.server._place, lambda *_: None)
        view = View(2, CLOCK, ("w0", "w1"), {"there": "b:1"}, ("there", "there"))
        self.server._dial = lambda server, address: ours
        self.server._reactor.attach = lambda sock, peer: self.link
        self.server._reactor.call = lambda action: action()
        self.server._heard({"type": "plan", "view": view.to_json(), "outgoing": [[0, "there"], [1, "there"]]})

    def push(self, chunk: int, *workers: str) -> None:
        for name in workers:
            grad = np.ones(SIZE, np.float32)
            frame = wire.Frame(wire.PUSH, 0, 1, chunk, grad.nbytes, SIZE, CLOCK - 1)
            self.server._push(self.workers[name], frame, bytes_of(grad).obj.view(np.uint8))

    def move(self, rest: bool) -> None:
        self.server._heard({"type": "move", "version": 2, "rest": rest})

    def sent(self) -> dict[int, float]:
        """The chunks that have left since the last question, and what their value is."""
        self.link.flush()
        self.taker.setblocking(False)
        found: dict[int, float] = {}
        with self.taker.makefile("rb") as file:
            while header := file.read(wire.HEADER.size):
                frame = wire.unpack(header, 1 << 20)
                payload = file.read(frame.size)
                if frame.kind == wire.MOVE:
                    found[frame.chunk] = float(np.frombuffer(payload, np.float32)[0])
        return found


@pytest.fixture
def giver():
    made = Giver()
    wait_for("its answer to the plan", lambda: made.reports)
    assert [report["type"] for report in made.reports] == ["planned"]
    return made


def test_a_checkpoint_that_makes_no_sense_is_told_and_hangs_nobody(tmp_path):
    """It is read in a thread; whatever that meets must reach the coordinator, which waits for an answer."""
    manifest = {"step": 1, "keys": [["w", SIZE, "float32"]], "parts": ["server-0"], "layout": LAYOUT}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "server-0.part").write_bytes(b'[{"no": "chunk"}]\n')
    server = Server(Settings(role=SERVER, port=0))
    reports: list[wire.Message] = []
    server._control.tell = reports.append
    view = View(1, 1, ("w0",), {server._settings.id: "a:1"}, (server._settings.id,))
    server._heard({"type": "plan", "view": view.to_json(), "restore": str(tmp_path)})
    wait_for("its answer", lambda: reports, limit=5)
    assert (reports[0]["type"], reports[0]["version"]) == ("failed", 1)


def test_a_chunk_leaves_once_the_last_round_before_the_clock_is_over_for_it(giver):
    giver.move(rest=False)
    assert giver.sent() == {}
    giver.push(0, "w0")
    giver.push(1, "w0")
    assert giver.sent() == {}
    giver.push(0, "w1")
    assert giver.sent() == {0: -2.0}
    giver.move(rest=True)  # every worker stands at the clock
    assert giver.sent() == {1: 0.0}


def test_what_is_through_with_that_round_before_the_takers_are_ready_waits_for_them(giver):
    giver.push(0, "w0", "w1")
    assert giver.sent() == {}
    giver.move(rest=False)
    assert giver.sent() == {0: -2.0}


def test_what_has_left_early_still_serves_until_the_commit_and_stays_if_the_plan_is_undone(giver):
    giver.move(rest=False)
    giver.push(0, "w0", "w1")
    giver.server._heard({"type": "abort", "version": 2})
    assert giver.server._slots[0].value[0] == -2.0
    assert giver.server._view.version == 1
