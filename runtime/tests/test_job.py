"""Whole jobs of real processes: what they compute does not depend on who takes part."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import trainee
from harness import Cluster, wait_for

from dl2_runtime.optimizers import Rule, apply


def alone(
    steps: int,
    big: int = 100_000,
    rule: str = "sgd",
    momentum: float = 0.9,
    lost=(),
    workers: int = 1,
    again: tuple[int, int | None] = (-1, None),
    sent=lambda rank, name, grad: grad,
):
    """The same training without any runtime, and without the shares that a job says it `lost`.

    From round `again[0]` on, the optimizer's state is that of before round `again[1]` (None: there is none).
    `sent` makes of the gradient that each of `workers` computes what reaches the servers.
    """
    parameters = trainee.initial(big)
    features, targets = trainee.data()
    used = Rule(
        "sgd" if rule == "sum" else rule,
        lr=0.05,
        wd=0.0 if rule == "sum" else 0.01,
        momentum=momentum if rule == "sgd" else 0.0,
        rescale_grad=1 / trainee.BATCH,
    )
    states, updates = {name: {} for name in parameters}, 0
    saved = {None: (copy.deepcopy(states), 0)}
    per_epoch = trainee.EXAMPLES // trainee.BATCH
    for step in range(steps):
        if step == again[1]:
            saved[step] = copy.deepcopy(states), updates
        if step == again[0]:
            states, updates = saved[again[1]]
        updates += 1
        epoch, number = divmod(step, per_epoch)
        order = np.arange(trainee.EXAMPLES)
        np.random.RandomState(epoch).shuffle(order)
        batch = order[number * trainee.BATCH : (number + 1) * trainee.BATCH]

        def gradients(rank: int, workers: int, batch=batch, step=step):
            low, high = (trainee.BATCH * (rank + n) // workers for n in (0, 1))
            return trainee.gradients(parameters, features, targets, batch[low:high], step, rank)

        total = dict.fromkeys(parameters, 0.0)
        for rank in range(workers):
            for name, grad in gradients(rank, workers).items():
                total[name] = total[name] + sent(rank, name, grad)
        for share in (share for share in lost if share["round"] == step):
            gone = gradients(share["rank"], share["workers"])
            for name in share["parameters"]:
                total[name] = total[name] - gone[name]
        for name, grad in total.items():
            apply(used, name, parameters[name], grad, states[name], updates)
    return parameters


def lost_shares(job: Cluster):
    """What the coordinator says that deaths cost."""
    return [share for note in job.status()["notes"] for share in note.get("lost_shares", ())]


def assert_same(found, expected, tolerance: float = 1e-9) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("rule", ["sgd", "adam", "sum"])
def test_two_workers_and_two_servers_compute_what_one_process_does(tmp_path, rule):
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_SERVERS="2") as job:
        servers = [job.server(0), job.server(1)]
        workers = [job.worker(n, "--steps", "12", "--rule", rule) for n in range(2)]
        assert [process.wait() for process in (*workers, *servers)] == [0, 0, 0, 0]
        for n in range(2):
            assert_same(job.parameters(n), alone(12, rule=rule))


@pytest.mark.parametrize("rule", ["sgd", "sum"])
def test_members_come_and_go_while_the_job_trains(tmp_path, rule):
    with Cluster(tmp_path) as job:
        steps = "240"
        options = ("--steps", steps, "--seconds", "0.02", "--rule", rule)
        job.server(0)
        first = job.worker(0, *options)
        job.await_size(1, 1)
        job.await_step(5)
        others = [job.worker(1, *options), job.server(1), job.server(2), job.worker(2, *options)]
        status = job.await_size(3, 3)
        assert status["last_scaling"]["to"] == {"workers": 3, "servers": 3}
        wait_for("the pause is told", lambda: job.status()["last_scaling"]["reports"])
        job.scale(workers=2, servers=1)
        status = job.await_size(2, 1)
        assert status["last_scaling"]["from"] == {"workers": 3, "servers": 3}
        assert [process.wait() for process in others[1:]] == [143, 143, 143]
        assert [first.wait(), others[0].wait()] == [0, 0]
        assert_same(job.parameters(0), alone(int(steps), rule=rule))
        assert_same(job.parameters(1), alone(int(steps), rule=rule))
