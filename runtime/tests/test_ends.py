"""How members leave and jobs end: pods deleted one by one, whole jobs evicted, readiness, what HTTP says."""

from __future__ import annotations

import json
import os
import signal
import urllib.error

import pytest
from harness import Cluster, wait_for
from test_job import alone, assert_same

from dl2_runtime.checkpoint import latest

LONG = ("--steps", "100000", "--seconds", "0.02")


def test_sigterm_to_one_server_and_one_worker_makes_them_leave_at_a_clock(tmp_path):
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_SERVERS="2") as job:
        options = ("--steps", "120", "--seconds", "0.02")
        servers = [job.server(n) for n in range(2)]
        workers = [job.worker(n, *options) for n in range(2)]
        job.await_step(5)
        servers[1].signal(signal.SIGTERM)
        assert servers[1].wait() == 143
        workers[1].signal(signal.SIGTERM)
        assert workers[1].wait() == 143
        last = job.await_size(1, 1)["last_scaling"]
        assert (last["from"]["workers"], last["to"]) == (2, {"workers": 1, "servers": 1})
        assert set(last) >= {"time", "from", "to", "pause_ms", "reason"}
        assert [workers[0].wait(), servers[0].wait()] == [0, 0]
        assert_same(job.parameters(0), alone(120))


@pytest.mark.parametrize("rule", ["sgd", "sum"])
def test_a_worker_that_is_sent_away_right_after_it_joined_leaves_in_order(tmp_path, rule):
    """The next transition is due at the very commit that takes it in, and has its clock some rounds ahead: the
    newcomer must be told what it joined in time to take part in these.
    """
    options = ("--steps", "400", "--seconds", "0.005", "--rule", rule)
    with Cluster(tmp_path, DL2_DEAD_AFTER_SECONDS="8") as job:
        servers, stays = [job.server(0)], job.worker(0, *options)
        job.await_size(1, 1)
        job.scale(servers=3)  # holds the second one until we want it
        servers.append(job.server(1))
        wait_for("it is known", lambda: len(job.status()["members"]) == 3)
        servers[1].signal(signal.SIGSTOP)  # holds up the transition, but not the rounds before its clock
        newcomer = job.worker(1, *options)
        job.scale(workers=2, servers=2)
        wait_for("both are joining", lambda: (job.status()["scaling"] or {}).get("phase") == "clock")
        job.scale(workers=1)
        servers[1].signal(signal.SIGCONT)
        assert newcomer.wait(10) == 143
        assert [process.wait() for process in (stays, *servers)] == [0, 0, 0]
        assert_same(job.parameters(0), alone(400, rule=rule))


def test_newcomers_are_sent_away_in_order_when_what_they_came_for_is_undone(tmp_path):
    with Cluster(tmp_path) as job:
        job.server(0)
        job.worker(0, *LONG)
        job.await_size(1, 1)
        job.scale(workers=3, servers=2, timeout_seconds=4)
        newcomers = [job.worker(1, *LONG), job.server(1)]
        wait_for("both are known", lambda: len(job.status()["members"]) == 4)
        assert [process.wait() for process in newcomers] == [143, 143]
        assert job.await_size(1, 1)["counts"]["undone"] == 1


def test_sigterm_to_everybody_ends_in_a_checkpoint_that_a_new_job_goes_on_from(tmp_path):
    saved = tmp_path / "saved"
    with Cluster(tmp_path / "first", DL2_WORKERS="2", DL2_SERVERS="2", DL2_CHECKPOINT_DIR=str(saved)) as job:
        for n in range(2):
            job.server(n)
            job.worker(n, *LONG)
        job.await_step(5)
        for process in job.processes.values():
            process.signal(signal.SIGTERM)
        assert [process.wait(25) for process in job.processes.values()] == [143] * 5
    step = latest(saved)[1]
    assert step >= 5
    with Cluster(tmp_path / "second", DL2_CHECKPOINT_DIR=str(saved)) as job:
        job.server(0)
        worker = job.worker(0, "--steps", str(step + 10))
        assert worker.wait() == 0
        assert f'"joined": {step}' in worker.text()
        assert_same(job.parameters(0), alone(step + 10))


def test_a_checkpoint_of_a_version_that_cuts_parameters_in_another_way_is_refused(tmp_path):
    """Its chunks would be taken for others: nothing is trained, and the coordinator says why."""
    saved = tmp_path / "saved"
    with Cluster(tmp_path / "first", DL2_CHECKPOINT_DIR=str(saved)) as job:
        job.server(0)
        assert job.worker(0, "--steps", "10").wait() == 0
        wait_for("its last checkpoint", lambda: latest(saved))
    manifest = latest(saved)[0] / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "layout": "1/2/3"}))
    with Cluster(tmp_path / "second", DL2_CHECKPOINT_DIR=str(saved)) as job:
        members = [job.server(0), job.worker(0, *LONG)]
        assert all(process.wait() not in (0, None) for process in members)
        assert "cut as '1/2/3'" in job.status().get("error", "") + members[1].text()


def test_every_checkpoint_is_written_also_when_workers_are_fast(tmp_path):
    """A server may hear of the commit from a worker that pushes the next round, before it hears the coordinator."""
    environ = {"DL2_CHECKPOINT_DIR": str(tmp_path / "saved"), "DL2_CHECKPOINT_SECONDS": "0"}
    with Cluster(tmp_path, DL2_SERVERS="4", **environ) as job:
        for n in range(4):
            job.server(n)
        job.worker(0, "--steps", "1000000", "--big", "1000")
        job.await_step(5)
        for number in range(1, 41):
            job.http("/v1/checkpoint", {})
            wait_for(
                f"checkpoint {number}",
                lambda number=number: job.status().get("counts", {}).get("checkpoints") == number,
            )


def test_a_folder_that_takes_its_time_holds_nobody_up(tmp_path):
    """Opening the manifest waits for ever here: nobody reads from the pipe that is in its place."""
    for step in range(100):
        (tmp_path / "saved" / f"step-{step}").mkdir(parents=True)
        os.mkfifo(tmp_path / "saved" / f"step-{step}" / "manifest.partial")
    environ = {"DL2_CHECKPOINT_DIR": str(tmp_path / "saved"), "DL2_CHECKPOINT_SECONDS": "0"}
    with Cluster(tmp_path, **environ) as job:
        server, worker = job.server(0), job.worker(0, *LONG)
        job.await_step(2)
        job.http("/v1/checkpoint", {})
        wait_for("the server's part", lambda: list(tmp_path.glob("saved/step-*/server-0-*.part")))
        server_of_next_view = job.server(1)
        status = job.await_size(1, 2)
        job.await_step(status["round"] + 60)
        assert job.status()["counts"] == {
            "committed": 3
        }  # start, checkpoint, join: nobody was taken for dead
        assert [process.popen.poll() for process in (server, worker, server_of_next_view)] == [None] * 3


def test_a_job_whose_coordinator_is_sent_away_does_not_look_finished(tmp_path):
    saved = tmp_path / "saved"
    with Cluster(tmp_path, DL2_CHECKPOINT_DIR=str(saved)) as job:
        members = [job.server(0), job.worker(0, *LONG)]
        job.await_step(5)
        job.processes["coordinator#1"].signal(signal.SIGTERM)
        assert [process.wait(25) for process in (*members, job.processes["coordinator#1"])] == [143] * 3
    assert latest(saved)[1] >= 5


def test_sigterm_ends_a_process_that_waits_for_a_coordinator_that_is_gone(tmp_path):
    with Cluster(tmp_path, DL2_GRACE_SECONDS="1") as job:
        server, worker = job.server(0), job.worker(0, *LONG)
        job.await_step(2)
        job.processes["coordinator#1"].kill()
        for process in (server, worker):
            process.signal(signal.SIGTERM)
        assert [server.wait(), worker.wait()] == [143, 143]


def test_a_coordinator_ends_with_its_job(tmp_path):
    with Cluster(tmp_path) as job:
        job.server(0)
        job.worker(0, "--steps", "5")
        assert [process.wait() for process in job.processes.values()] == [0, 0, 0]


def test_the_ready_file_is_there_while_a_member_is_in_the_view(tmp_path):
    ready = [tmp_path / "server", tmp_path / "worker"]
    with Cluster(tmp_path / "job") as job:
        server = job.server(0, DL2_READY_FILE=str(ready[0]))
        assert job.status()["members"] == [] or not ready[0].exists()
        wait_for("the server is known", lambda: job.status()["members"])
        assert not ready[0].exists()  # there is no view yet
        worker = job.worker(
            0, "--steps", "100", "--seconds", "0.02", environ={"DL2_READY_FILE": str(ready[1])}
        )
        wait_for("both are ready", lambda: all(file.exists() for file in ready))
        assert [worker.wait(), server.wait()] == [0, 0]
        assert not any(file.exists() for file in ready)


def test_status_carries_progress_and_members(tmp_path):
    with Cluster(tmp_path) as job:
        server = job.server(0)
        worker = job.worker(0, *LONG)
        job.await_step(3)
        status = job.status()
        assert set(status) >= {"epoch", "step", "steps_per_second", "updated_at", "metrics", "last_scaling"}
        assert sorted(member["role"] for member in status["members"]) == ["server", "worker"]
        assert "dl2_runtime_workers 1\n" in job.http("/metrics")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            job.http("/v1/scale", {"workers": 2}, token="wrong")
        assert worker.popen.poll() is None
        assert server.popen.poll() is None
