"""Evolution strategies: deterministic and resumable."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dl2.cli import train as train_command
from dl2.learning import evolution, validation
from dl2.learning.curriculum import training_case
from dl2.learning.evolution import Plan, flatten, improve, moved, start, train
from dl2.learning.state import OtherRun, load_state
from dl2.learning.suites import SEEDS, Case, Split
from dl2.scaling.agent.checkpoint import read, save
from dl2.scaling.agent.network import OUTPUTS, initial
from dl2.scaling.lattice import Floats

TINY = Plan(seed=3, iterations=3, pairs=1, validate_every=2, validation_cases=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cases cut to a few jobs, and validation on training draws; the names of the cases that were run."""
    ran: list[str] = []

    def few(n: int) -> Case:
        case = training_case(n)
        ran.append(case.name)
        return replace(case, workload=replace(case.workload, jobs=case.workload.jobs[:4]))

    def validate(weights: dict[str, Floats], cases: int, reference: list[float] | None = None) -> list[float]:
        found = [validation.log_jct(weights, few(500_000))]
        return found if reference is None else [found[0] - reference[0]]

    monkeypatch.setattr(evolution, "training_case", few)
    monkeypatch.setattr(evolution, "validate", validate)
    return ran


def same(one: dict[str, Floats], other: dict[str, Floats]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_noise_moves_only_what_is_trained() -> None:
    weights, names = initial(1), ("head2.bias",)
    by = np.arange(1.0, OUTPUTS + 1)
    there = moved(weights, names, by)
    assert np.array_equal(there["head2.bias"], weights["head2.bias"] + by)
    assert there["embed1.weight"] is weights["embed1.weight"]
    assert np.array_equal(flatten(there, names) - flatten(weights, names), by)


def test_a_killed_run_goes_on_as_if_it_never_stopped(quick: list[str], tmp_path: Path) -> None:
    whole = train(TINY, tmp_path / "whole")
    train(replace(TINY, iterations=1), tmp_path / "killed")
    rest = train(TINY, tmp_path / "killed")
    assert rest.iteration == TINY.iterations
    assert same(whole.weights, rest.weights)
    assert same(whole.best, rest.best)
    assert whole.best_score == rest.best_score
    assert all(int(name.split("/")[1]) in SEEDS[Split.TRAINING] for name in quick)


def test_a_step_goes_against_what_made_jobs_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """With completion times that rise with one bias alone, that bias falls and no other moves much."""
    monkeypatch.setattr(evolution, "log_jct", lambda weights, case: 0.1 * weights["head2.bias"][1])
    monkeypatch.setattr(evolution, "training_case", lambda n: None)
    plan = Plan(pairs=64, trained=("head2.bias",))
    state = start(plan)
    for _ in range(5):
        improve(state, plan)
    bias = state.weights["head2.bias"]
    assert bias[1] < -0.1
    assert abs(bias[1]) > 1.5 * np.abs(np.delete(bias, 1)).max()


def test_a_folder_of_another_run_is_refused(quick: list[str], tmp_path: Path) -> None:
    train(replace(TINY, iterations=1), tmp_path)
    with pytest.raises(OtherRun, match="seed"):
        load_state(tmp_path / "state.safetensors", asdict(replace(TINY, seed=4)))


def test_the_command_writes_a_checkpoint_and_a_curve(quick: list[str], tmp_path: Path) -> None:
    begin, folder = tmp_path / "begin.safetensors", tmp_path / "run"
    save(begin, initial(9), {})
    found = CliRunner().invoke(
        train_command.app,
        ["evolve", "--run", str(folder), "--from", str(begin), "--iterations", "1", "--pairs", "1"],
    )
    assert found.exit_code == 0, found.output
    weights, header = read(folder / "dl2.safetensors")
    assert header["from"] == "begin.safetensors"
    assert np.array_equal(weights["embed1.weight"], read(begin)[0]["embed1.weight"])
    assert (folder / "curve.csv").read_text().startswith("iteration,training,validation")
    assert (folder / "curve.png").stat().st_size > 1000


def test_training_from_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    found = CliRunner().invoke(train_command.app, ["evolve", "--from", str(tmp_path / "none.safetensors")])
    assert found.exit_code == 2
    assert "no such file" in found.output


def test_without_torch_the_commands_that_need_it_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dl2.learning.imitation", raising=False)
    monkeypatch.delitem(sys.modules, "dl2.learning.actor", raising=False)
    monkeypatch.delattr("dl2.learning.imitation", raising=False)
    found = CliRunner().invoke(train_command.app, ["imitate"])
    assert found.exit_code == 2
    assert "dl2[learning]" in found.output
