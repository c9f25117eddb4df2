"""What goes wrong, with real processes and real signals."""

from __future__ import annotations

import signal
import socket
import struct
import time

import pytest
import trainee
from harness import Cluster, wait_for
from test_job import alone, assert_same, lost_shares

from dl2_runtime import wire
from dl2_runtime.checkpoint import latest
from dl2_runtime.settings import Settings

OPTIONS = ("--steps", "110", "--seconds", "0.02")
PLAIN = (*OPTIONS, "--momentum", "0")  # without state that dies with a server


@pytest.mark.parametrize(("pace", "steps"), [("0.002", 600), ("0.02", 200)], ids=["fast", "slow"])
def test_a_worker_that_dies_takes_its_share_of_one_round_and_the_job_says_which(tmp_path, pace, steps):
    """Fast rounds too: the others begin none that is shared out to the dead."""
    options = ("--steps", str(steps), "--seconds", pace)
    with Cluster(tmp_path, DL2_WORKERS="3", DL2_SERVERS="2") as job:
        servers = [job.server(0), job.server(1)]
        workers = [job.worker(n, *options) for n in range(2)]
        job.worker(2, *options, "--crash-at", "40")
        job.await_size(2, 2)
        job.await_step(42)
        lost = lost_shares(job)
        assert [sorted(share.pop("parameters")) for share in lost] == [["b", "big", "w"]]
        assert lost == [{"round": 40, "rank": 2, "workers": 3}]
        lost[0]["parameters"] = ["b", "big", "w"]
        expect_end(job, *workers, *servers)
        assert_same(job.parameters(0), alone(steps, lost=lost))


def expect_end(job: Cluster, *processes) -> None:
    assert [process.wait() for process in processes] == [0] * len(processes)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stalled"])
def test_a_worker_that_is_gone_is_noticed_and_the_others_finish(tmp_path, how):
    with Cluster(tmp_path, DL2_WORKERS="2") as job:
        server, first, second = job.server(0), job.worker(0, *OPTIONS), job.worker(1, *OPTIONS)
        job.await_step(5)
        second.signal(how)
        job.await_size(1, 1)
        assert job.status()["counts"]["deaths"] == 1
        expect_end(job, first, server)
        if how == signal.SIGSTOP:
            second.signal(signal.SIGCONT)
            assert second.wait() != 0  # it learns that it is no member any more
            assert (
                "declared dead" in second.text()
                or "not come back" in second.text()
                or "heartbeat" in second.text()
            )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stalled"])
def test_a_server_that_is_gone_costs_no_update(tmp_path, how):
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_SERVERS="2") as job:
        servers = [job.server(0), job.server(1)]
        workers = [job.worker(n, *PLAIN) for n in range(2)]
        job.await_step(5)
        servers[1].signal(how)
        notes = job.await_size(2, 1)["notes"]
        assert any(note.get("repeated_steps") == 1 for note in notes)
        expect_end(job, *workers, servers[0])
        for n in range(2):
            assert_same(job.parameters(n), alone(110, momentum=0.0))


def test_the_only_server_dies_and_a_new_one_takes_its_place(tmp_path):
    with Cluster(tmp_path) as job:
        old, worker = job.server(0), job.worker(0, *PLAIN)
        job.await_step(5)
        old.kill()
        new = job.server(0)
        expect_end(job, worker, new)
        assert_same(job.parameters(0), alone(110, momentum=0.0))


@pytest.mark.parametrize("saved", [True, False], ids=["checkpoint", "no checkpoint"])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_the_optimizer_of_a_server_that_died_goes_on_from_the_last_checkpoint(tmp_path, rule, saved):
    """It dies while the worker computes, so what is lost is what had changed since the checkpoint, in all chunks."""
    options = ("--steps", "9", "--compute", "1", "--trace", "--rule", rule)
    environ = {"DL2_CHECKPOINT_DIR": str(tmp_path / "saved"), "DL2_CHECKPOINT_SECONDS": "0"} if saved else {}
    with Cluster(tmp_path, **environ) as job:
        old, worker = job.server(0), job.worker(0, *options)
        rounds = lambda n: wait_for(f"round {n}", lambda: worker.text().count('"step"') >= n)  # noqa: E731
        rounds(2)
        if saved:
            job.http("/v1/checkpoint", {})
            wait_for("the checkpoint", lambda: job.status()["counts"].get("checkpoints"))
        rounds(5)
        old.kill()
        new = job.server(0)
        job.await_size(1, 1)
        note = wait_for("it is told", lambda: [n for n in job.status()["notes"] if "state_step" in n])[0]
        step = latest(tmp_path / "saved")[1] if saved else None
        assert note["state_step"] == step
        assert note["round"] >= 5 > (step or 0)
        expect_end(job, worker, new)
        assert_same(job.parameters(0), alone(9, rule=rule, again=(note["round"], step)))


@pytest.mark.parametrize("victim", ["giver", "taker"])
def test_a_server_that_dies_while_chunks_move_costs_no_update(tmp_path, victim):
    """The taker stands still before a round that the move waits for can end: the death of either falls into the move."""
    gate = tmp_path / "gate"
    options = ("--steps", "8", "--compute", "1", "--momentum", "0", "--big", "4000000", "--gate", str(gate))
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_SERVERS="2", DL2_DEAD_AFTER_SECONDS="8") as job:
        giver, other = [job.server(n) for n in range(2)]
        workers = [job.worker(n, *options) for n in range(2)]
        job.await_size(2, 2)
        gate.touch()
        job.scale(servers=4)  # holds the newcomer until we want it
        taker = job.server(2)
        wait_for("the newcomer is known", lambda: len(job.status()["members"]) == 5)
        job.scale(servers=3)
        wait_for("the move is planned", lambda: waits_for(job, "clock") == ["worker"] * 2)
        taker.signal(signal.SIGSTOP)
        before = job.status()["round"]
        gate.unlink()
        wait_for("chunks move", lambda: waits_for(job, "move") == ["server"])
        {"giver": giver, "taker": taker}[victim].kill()
        taker.signal(signal.SIGCONT)
        wait_for("the move is undone", lambda: job.status()["counts"].get("undone") == 1)
        job.await_step(before + 3)
        notes = [note for note in job.status()["notes"] if "chunks" in note]
        assert [note["repeated_steps"] for note in notes] == {"giver": [0], "taker": []}[victim]
        assert all(note["chunks"] > 0 for note in notes)
        expect_end(job, *workers, other, {"giver": taker, "taker": giver}[victim])
        for n in range(2):
            assert_same(job.parameters(n), alone(8, big=4_000_000, momentum=0.0))


def waits_for(job: Cluster, phase: str) -> list[str] | None:
    """The roles of whom a transition in this phase waits for; None in another phase."""
    scaling = job.status().get("scaling") or {}
    return [name.partition("-")[0] for name in scaling["waiting"]] if scaling.get("phase") == phase else None


def test_a_worker_that_is_slow_changes_nothing(tmp_path):
    """It computes for longer than it may be silent, now and then."""
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_SERVERS="2") as job:
        servers = [job.server(n) for n in range(2)]
        workers = [
            job.worker(0, "--steps", "12"),
            job.worker(1, "--steps", "12", "--compute", "2", "--compute-every", "6"),
        ]
        expect_end(job, *workers, *servers)
        for n in range(2):
            assert_same(job.parameters(n), alone(12))


@pytest.mark.parametrize("first", ["workers", "servers"])
def test_a_coordinator_that_starts_again_takes_the_job_over(tmp_path, first):
    """Servers know no chunk's home that was declared after their view began: whoever comes back first, workers tell."""
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_DEAD_AFTER_SECONDS="6") as job:
        servers, workers = [job.server(0)], [job.worker(n, *OPTIONS) for n in range(2)]
        job.await_step(5)
        late = workers if first == "servers" else servers
        for process in late:
            process.signal(signal.SIGSTOP)
        job.processes["coordinator#1"].kill()
        job.coordinator()
        wait_for(f"the {first} are back", lambda: len(job.status()["members"]) == 3 - len(late))
        for process in late:
            process.signal(signal.SIGCONT)
        job.await_size(2, 1)
        servers.append(job.server(1))
        job.await_size(2, 2)
        expect_end(job, *workers, *servers)
        assert_same(job.parameters(0), alone(110))


def test_a_machine_that_stands_still_makes_nobody_dead(tmp_path):
    """The coordinator wakes first, long after everybody's last heartbeat."""
    with Cluster(tmp_path, DL2_RETURN_SECONDS="5") as job:
        members = server, worker = job.server(0), job.worker(0, *OPTIONS)
        job.await_step(5)
        coordinator = job.processes["coordinator#1"]
        for process in (coordinator, *members):
            process.signal(signal.SIGSTOP)
        time.sleep(2.5)  # they are dead after 1.5
        coordinator.signal(signal.SIGCONT)
        wait_for("it looks at its members", lambda: "stood still" in coordinator.text())
        assert len(job.status()["members"]) == 2
        for process in members:
            process.signal(signal.SIGCONT)
        expect_end(job, worker, server)
        assert_same(job.parameters(0), alone(110))


def test_garbage_and_oversized_frames_end_one_connection_only(tmp_path):
    with Cluster(tmp_path) as job:
        server, worker = job.server(0), job.worker(0, *OPTIONS)
        job.await_step(3)
        address = next(m["address"] for m in job.status()["members"] if m["role"] == "server")
        ports = [job.port, int(address.rpartition(":")[2])]
        huge = wire.HEADER.pack(wire.MAGIC, wire.VERSION, wire.PUSH, 0, 0, 0, 0, 2**32 - 1, 0, 0)
        version = wire.HEADER.pack(wire.MAGIC, wire.VERSION + 1, wire.HELLO, 0, 0, 0, 0, 2, 0, 0) + b"{}"
        nonsense = wire.Frame(wire.HELLO, size=4).pack() + b"\xff\x00[{"
        for port in ports:
            for data in (
                b"\x00" * 64,
                wire.MAGIC + b"\xff" * 64,
                huge,
                version,
                nonsense,
                struct.pack("<I", 7) * 999,
            ):
                with socket.create_connection(("127.0.0.1", port), 5) as sock:
                    sock.sendall(data)
        expect_end(job, worker, server)
        assert_same(job.parameters(0), alone(110))


def test_a_wrong_token_or_job_is_refused(tmp_path):
    with Cluster(tmp_path) as job:
        address = f"127.0.0.1:{job.port}"
        identity = Settings(job="test", role="worker").identity()
        with pytest.raises(wire.Refused, match="token"):
            wire.connect(address, identity, b"another", 5)
        with pytest.raises(wire.Refused, match="job"):
            wire.connect(address, {**identity, "job": "else"}, job.token.encode(), 5)
        wire.connect(address, identity, job.token.encode(), 5).close()
        wrong = tmp_path / "wrong"
        wrong.write_text("another")
        stranger = job.server(0, DL2_TOKEN_FILE=str(wrong))
        assert stranger.wait() == 1
        assert "token" in stranger.text()


def test_newcomers_that_do_not_come_undo_the_request(tmp_path):
    with Cluster(tmp_path) as job:
        server, worker = job.server(0), job.worker(0, *OPTIONS)
        job.await_step(3)
        job.scale(servers=3, timeout_seconds=0.2)
        wait_for("the request is undone", lambda: job.status()["counts"].get("undone"))
        assert (job.status()["servers"], job.status()["request"]) == (1, None)
        expect_end(job, worker, server)
        assert_same(job.parameters(0), alone(110))


def test_trainee_itself_depends_on_the_global_batch_only():
    """Two halves of a batch sum to the whole: what the other tests' equality stands on."""
    import numpy as np

    parameters, (features, targets) = trainee.initial(10), trainee.data()
    whole = trainee.gradients(parameters, features, targets, range(trainee.BATCH), 3, 0)
    halves = [
        trainee.gradients(parameters, features, targets, part, 3, 0)
        for part in (range(10), range(10, trainee.BATCH))
    ]
    for name in whole:
        np.testing.assert_allclose(halves[0][name] + halves[1][name], whole[name], rtol=1e-12)
