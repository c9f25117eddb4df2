"""Whatever joins, leaves and crashes: the parameters are those of a run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import tempfile
from pathlib import Path

from harness import Cluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_job import alone, assert_same, lost_shares

STEPS = 150
events = st.lists(
    st.sampled_from(["+worker", "+server", "-worker", "-server", "crash"]), min_size=2, max_size=4
)


def play(job: Cluster, schedule: list[str]):
    """Member 0 of each role stays; others come and go, a few rounds apart. Without momentum no server's death costs
    anything. Returns what the workers' deaths cost.
    """
    options = ("--steps", str(STEPS), "--seconds", "0.02", "--big", "40000", "--momentum", "0")
    crew = {"worker": [job.worker(0, *options)], "server": [job.server(0)]}
    job.await_step(2)
    for number, event in enumerate(schedule, 1):
        role = "worker" if event == "crash" else event[1:]
        if event[0] == "+":
            start = job.worker if role == "worker" else job.server
            crew[role].append(start(number, *(options if role == "worker" else ())))
        elif len(crew[role]) > 1:
            crew[role].pop().signal(signal.SIGKILL if event == "crash" else signal.SIGTERM)
        job.await_step(2 + 8 * number)
    job.await_step(STEPS - 60)  # every event is over, and the job is there to be asked
    lost = lost_shares(job)
    assert [process.wait() for process in (*crew["worker"], *crew["server"])] == [0] * sum(
        map(len, crew.values())
    )
    return lost


@given(events)
@settings(
    max_examples=3, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_any_schedule_ends_with_the_parameters_of_an_undisturbed_run(schedule):
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as job:
        lost = play(job, schedule)
        assert_same(job.parameters(0), alone(STEPS, big=40000, momentum=0.0, lost=lost))


def test_twenty_resizes_end_with_the_parameters_of_an_unresized_run(tmp_path):
    """With momentum: the optimizer's state moves along. Between 1 and 4 of each role, one after the other."""
    steps, choose = 1200, random.Random(5)
    options = ("--steps", str(steps), "--seconds", "0.02", "--big", "40000")
    with Cluster(tmp_path) as job:
        start = {"worker": lambda n: job.worker(n, *options), "server": job.server}
        crew = {role: [start[role](0)] for role in start}
        left = []
        job.await_size(1, 1)  # else the first newcomer may be a founder
        for _ in range(20):
            role = choose.choice(["worker", "server"])
            size = len(crew[role])
            if size == 1 or (size < 4 and choose.random() < 0.6):
                crew[role].append(start[role](size))
            else:
                left.append(crew[role].pop())
                left[-1].signal(signal.SIGTERM)
            job.await_size(len(crew["worker"]), len(crew["server"]))
        status = job.status()
        assert status["round"] < steps  # all of it happened while the job trained
        assert status["counts"] == {"committed": 21}  # each at once: nothing undone, nobody lost
        assert [process.wait() for process in left] == [143] * len(left)
        assert {process.wait() for process in (*crew["worker"], *crew["server"])} == {0}
        for n in range(len(crew["worker"])):
            assert_same(job.parameters(n), alone(steps, big=40000))
