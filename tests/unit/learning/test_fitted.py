"""The simulator fitted to a decision log: what was seen comes again in other draws; what trains on it has to prove it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dl2.learning import online
from dl2.learning.fitted import LEAST_JOBS, fit
from dl2.learning.logged import LessonError
from dl2.learning.online import Tuned, Tuning, tune
from dl2.learning.run import policy_for
from dl2.learning.simulator import Simulation
from dl2.learning.suites import Split
from dl2.scaling.agent.network import Weights, initial
from dl2.scaling.interface import Observation, Scale
from tests.unit.learning.logs import WORKLOAD, seen


def test_a_log_gives_back_the_jobs_their_speeds_and_the_nodes() -> None:
    fitted = fit(seen(), pauses=[2.0, 4.0])
    assert [job.id for job, _ in fitted.jobs] == [job.id for job in WORKLOAD.jobs]
    assert fitted.nodes == WORKLOAD.nodes
    assert fitted.settings.resize == 3.0
    true = {job.id: job.speed for job in WORKLOAD.jobs}
    measured = [
        abs(np.log(belief.at(sample.scale) / true[job.id](sample.scale)))
        for job, belief in fitted.jobs
        for sample in job.samples
    ]
    assert len(measured) > 20
    assert np.median(measured) < 0.05


def test_every_draw_is_another_one_and_the_same_again() -> None:
    fitted = fit(seen())
    one, again, other = fitted.case(0), fitted.case(0), fitted.case(1)
    assert [(j.model, j.submitted_at, j.epochs) for j in one.workload.jobs] == [
        (j.model, j.submitted_at, j.epochs) for j in again.workload.jobs
    ]
    assert [j.epochs for j in one.workload.jobs] != [j.epochs for j in other.workload.jobs]
    shape = Scale(4, 4)
    assert {j.speed(shape) for j in one.workload.jobs} != {j.speed(shape) for j in other.workload.jobs}
    assert len({fitted.case(0, split).seed for split in Split}) == 3
    assert {j.epochs for j in one.workload.jobs} <= {j.epochs for j in WORKLOAD.jobs}


def test_a_draw_can_be_played_to_its_end() -> None:
    case = fit(seen()).case(3)
    simulation = Simulation(case.workload, case.settings, case.seed)
    policy = policy_for("drf", simulation)
    while not simulation.over:
        simulation.step(policy.allocate(simulation.observe()))
    assert simulation.tally.unfinished == 0
    assert len(simulation.tally.finished) == len(case.workload.jobs)


def test_budgets_become_ceilings() -> None:
    limited = (replace(each, budgets={"default": {"cpu": 16000}}) for each in seen())
    (queue,) = fit(limited).queues
    assert (queue.name, queue.limits["cpu"].max) == ("default", 16000)


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ([], "no round"),
        ([replace(next(seen()), jobs=())], f"0 jobs are and how fast they train, {LEAST_JOBS} are needed"),
        ([replace(o, jobs=tuple(replace(j, epochs_total=None) for j in o.jobs)) for o in seen()], "spec.training.epochs"),
        ([replace(o, jobs=tuple(replace(j, samples=()) for j in o.jobs)) for o in seen()], "0 jobs"),
    ],
    ids=["empty", "no jobs", "no declared work", "nothing measured"],
)  # fmt: skip
def test_a_log_that_says_too_little_says_what_is_missing(rounds: list[Observation], words: str) -> None:
    with pytest.raises(LessonError, match=words):
        fit(rounds)


@pytest.mark.parametrize(
    ("off", "better"), [([-0.1, -0.12, -0.11], True), ([-0.1, 0.2, -0.2], False), ([0.0, 0.0, 0.0], False)]
)
def test_only_what_is_surely_better_is_a_candidate(
    off: list[float], better: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = initial(1)

    def train(plan: object, folder: Path, begin: Weights, **_: object) -> object:
        return type("State", (), {"best": begin})

    monkeypatch.setattr(online.evolution, "train", train)
    monkeypatch.setattr(online, "validate", lambda w, cases, reference=None: off if reference else [0.0] * 3)
    assert tune(fit(seen()), weights, Tuning(judging=3), tmp_path).surely_better is better


def test_a_short_lesson_runs_and_gives_the_same_again(tmp_path: Path) -> None:
    fitted = fit(seen())
    tuning = Tuning(iterations=1, pairs=1, choosing=1, judging=2)

    def once(name: str) -> Tuned:
        return tune(fitted, initial(1), tuning, tmp_path / name)

    one, again = once("one"), once("again")
    assert one.change == again.change
    assert all(np.array_equal(one.weights[name], again.weights[name]) for name in one.weights)
