"""The demonstration's manifests are what the operator accepts, and its table tells what the API server says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from dl2.api import DLJob, parse
from dl2.demo import board, rollout, workload
from dl2.learning.plots import workers_over_time


def jobs() -> list[Any]:
    """As they arrive: what comes again is a change of what came before."""
    everything = [job for wave in workload.waves("/checkpoints") for job in wave.jobs]
    return list({job["metadata"]["name"]: job for job in everything}.values())


def test_thirty_simulated_jobs_two_real_ones_and_one_that_cannot_fit() -> None:
    parsed = [parse(job, strict=True) for job in jobs()]
    assert all(isinstance(job, DLJob) for job in parsed)
    names = {job.metadata.name for job in parsed}
    assert len(names) == 33
    assert {*workload.REAL, workload.TOO_BIG} <= names


def test_three_queues_and_every_job_names_one() -> None:
    queues = {o["metadata"]["name"] for o in workload.setup() if o["kind"] == "TenantQueue"}
    assert len(queues) == 3
    assert {job["spec"]["queue"] for job in jobs()} <= queues


def test_the_workload_is_the_same_every_time() -> None:
    assert jobs() == jobs()


def shown(content: Any) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(content)
    return console.export_text()


def job(name: str, state: str, reason: str = "", message: str = "", **status: Any) -> dict[str, Any]:
    queued = {"type": "Queued", "status": str(state == "Queued"), "reason": reason, "message": message}
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-11-23T09:00:00Z"},
        "spec": {"queue": "vision"},
        "status": {"state": state, "conditions": [queued], **status},
    }


def test_the_table_shows_running_jobs_first_and_why_others_wait() -> None:
    waiting = job("a", "Queued", "WaitingForQuota", "needs 4; 3 free", queuePosition=2)
    running = job("b", "Running", estimatedCompletion="2026-11-23T09:01:00Z", printed={"progress": "42%"})
    text = shown(board.live([], [waiting, running], 5, 1795424430, 10))
    assert text.index(" b ") < text.index(" a ")
    for part in ("42%", "30 s", "#2 needs 4; 3 free"):
        assert part in text


def test_the_summary_tells_accuracy_mean_time_and_reasons() -> None:
    real = job(workload.REAL[0], "Succeeded", completionTime="2026-11-23T09:00:40Z",
               progress={"metrics": {"accuracy": 0.97}})  # fmt: skip
    simulated = job("sim-01", "Succeeded", completionTime="2026-11-23T09:01:20Z")
    history = board.History()
    history.note([job("sim-01", "Queued", "WaitingForQuota", "needs 4; 3 free")])
    text = shown(board.summary([real, simulated], history))
    for part in (
        "0.970",
        "2 jobs completed, mean completion time 60 s",
        "1 jobs waited: 1 for WaitingForQuota",
        "3 free",
    ):
        assert part in text


def test_the_summary_tells_how_the_elastic_job_changed_its_shape() -> None:
    history = board.History()
    for to, pause in ((1, None), (3, 12)):
        scaling = {
            "from": {"workers": 1, "servers": 1},
            "to": {"workers": to, "servers": 2},
            "pauseMilliseconds": pause,
        }
        history.note([job(workload.ELASTIC, "Running", lastScaling=scaling)])
    ended = job(workload.ELASTIC, "Succeeded", completionTime="2026-11-23T09:01:20Z")
    text = shown(board.summary([ended], history))
    assert (
        "from 1 workers and 1 servers to 3 workers and 2 servers while it trained; its steps paused for 12 ms"
        in text
    )


def test_a_job_that_can_never_fit_is_not_waited_for() -> None:
    assert board.unfinished([job(workload.TOO_BIG, "Queued"), job("sim-01", "Running")]) == ["sim-01"]


def test_both_acts_are_the_same_jobs_at_the_same_times() -> None:
    def told(act: str) -> list[tuple[float, list[Any]]]:
        return [(wave.at, [job["spec"] for job in wave.jobs]) for wave in rollout.waves(act)]

    assert told("champion") == told("dl2")
    jobs = [job for wave in rollout.waves("dl2") for job in wave.jobs]
    assert all(isinstance(parse(job, strict=True), DLJob) for job in jobs)
    assert len({job["metadata"]["name"] for job in jobs}) == rollout.JOBS + 1
    parse(rollout.policy("Active"), strict=True)


def act(name: str, seconds: int) -> rollout.Act:
    """Of one job that had four workers, two of which went to the owner of the room."""
    seen = rollout.Act(name, name)
    for at, workers in ((0.0, 1), (17.0, 4), (25.0, 2), (40.0, 4)):
        running = job(f"{name}-1", "Running", workers={"ready": workers})
        running["spec"]["queue"] = rollout.BORROWER
        seen.note(at, [running, job("somebody-else", "Running")])
    ended = job(f"{name}-1", "Succeeded", completionTime=f"2026-11-23T09:00:{seconds}Z")
    ended["spec"]["queue"] = rollout.BORROWER
    seen.note(50.0, [ended])
    return seen


def test_the_end_compares_both_policies_and_tells_of_the_roll_back() -> None:
    acts = [act("champion", 50), act("dl2", 40)]
    assert [one.shrunk() for one in acts] == [1, 1]
    text = shown(rollout.summary(acts, "stage Shadow again"))
    for part in ("50.0 s", "40.0 s", "-20.0%", "stage Shadow again"):
        assert part in text


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    panels = [act("champion", 50).panel(), act("dl2", 40).panel()]
    workers_over_time(panels, rollout.ASKS, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
