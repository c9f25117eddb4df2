"""`dl2 simulate`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dl2.cli import simulate
from dl2.learning.traces import COLUMNS

HEAD = ",".join(COLUMNS)


def answer(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(simulate.app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Three jobs that want two GPUs a worker; a node has eight CPUs and two GPUs."""
    rows = [f"{n * 60},resnet50,20,,2,2,2,4,4,default,0" for n in range(3)]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([HEAD, *rows]) + "\n")
    return str(path)


def test_the_figures_and_each_job_as_json(trace: str) -> None:
    found = answer("--trace", trace, "--nodes", "4")
    assert [job["id"] for job in found["jobs"]] == ["job-00000", "job-00001", "job-00002"]
    assert found["mean_jct"] == pytest.approx(sum(job["jct"] for job in found["jobs"]) / 3)
    assert (found["policy"], found["unfinished"], found["cut_by"]) == ("drf", 0, {})


def test_what_was_cut_from_answers_is_told_by_what_cut_it(trace: str) -> None:
    """One node for three jobs: with the operator's clock each gets its minimum, of which only one fits."""
    found = answer("--trace", trace, "--nodes", "1", "--clock", "operator", "--interval", "60")
    assert found["cut_by"]["nodes"] == found["cuts"] > 0


def test_the_operators_guardrails_hold_resizes_back(trace: str) -> None:
    policy = ("--policy", "envelope", "--clock", "operator", "--interval", "60")
    usual = ("--trace", trace, "--nodes", "8", *policy, "--cooldown", "0")
    free = answer(*usual)
    assert answer(*usual, "--cooldown", "1e9")["resizes"] < free["resizes"]
    assert answer(*usual, "--min-gain-percent", "1e6")["resizes"] < free["resizes"]
    assert answer(*usual, "--max-scale-step", "1")["mean_jct"] > free["mean_jct"]


def test_a_person_sees_a_table(trace: str) -> None:
    shown = CliRunner().invoke(simulate.app, ["--trace", trace, "--nodes", "4"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "mean completion time" in shown.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["--trace", "none.csv"], "none.csv: No such file or directory", id="no such trace"),
        pytest.param(["--suite", "none"], 'there is no suite "none"', id="no such suite"),
        pytest.param(["--policy", "none"], "none", id="no such policy"),
    ],
)
def test_bad_input_is_named(arguments: list[str], told: str) -> None:
    shown = CliRunner().invoke(simulate.app, arguments)
    assert shown.exit_code == 2
    assert told in shown.output


def test_a_trace_without_a_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text(HEAD + "\n")
    shown = CliRunner().invoke(simulate.app, ["--trace", str(tmp_path / "empty.csv")])
    assert (shown.exit_code, "holds no job" in shown.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--case", "9999999"], "there is no case 9999999"),
        (["--plot", "/nowhere/x.png"], "no folder /nowhere"),
        (["--plot", "x.txt"], "is no picture"),
        (["--trace-to", "/nowhere/x.csv"], "no folder /nowhere"),
        (["--trace-to", "/tmp"], "/tmp is a folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(simulate.app, arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())
