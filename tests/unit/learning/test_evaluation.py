"""Evaluation: pairs, intervals, rows; and the commands around it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dl2.cli import evaluate as evaluate_command
from dl2.cli import simulate as simulate_command
from dl2.learning.evaluation import as_json, evaluate
from dl2.learning.run import split_options
from dl2.learning.statistics import below, estimate


def test_pairs_cancel_what_cases_differ_in() -> None:
    """Two policies on cases that differ tenfold, always 20 % apart: a narrow interval all the same."""
    others = [100.0, 1000.0, 50.0, 5000.0]
    found = below([0.8 * value for value in others], others)
    assert found.mean == pytest.approx(20.0)
    assert found.half == pytest.approx(0.0, abs=1e-9)


def test_intervals_are_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isinf(estimate([1.0]).half)
    assert math.isnan(estimate([]).mean)


def test_a_report_has_references_bound_and_json() -> None:
    report = evaluate("testbed", ["envelope-oracle"], seeds=2)
    rows = {row.policy: row for row in report.rows}
    assert set(rows) == {"envelope-oracle", "drf", "optimus"}
    assert rows["drf"].below["drf"].mean == 0.0
    assert rows["envelope-oracle"].below["drf"].mean > 0.0
    assert all(report.bound.mean < row.figures["mean_jct"].mean for row in report.rows)
    data = json.loads(json.dumps(as_json(report)))
    assert data["policies"]["envelope-oracle"]["below"]["optimus"]["mean"] > 0


def test_processes_change_nothing_but_the_time() -> None:
    alone, beside = (as_json(evaluate("testbed", ["srtf"], seeds=2, processes=n)) for n in (1, 2))
    for report in (alone, beside):
        for row in report["policies"].values():
            del row["decision"]
    assert beside == alone


def test_evaluate_prints_a_table_and_writes_json_and_pictures(tmp_path: Path) -> None:
    found = CliRunner().invoke(
        evaluate_command.app,
        ["--suite", "testbed", "--policies", "drf,srtf", "--seeds", "1", "--json", str(tmp_path / "r.json"),
         "--plot", str(tmp_path / "plots")],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    (report,) = json.loads((tmp_path / "r.json").read_text())
    assert set(report["policies"]) == {"drf", "srtf", "optimus"}
    assert report["policies"]["srtf"]["mean_jct"]["half"] is None
    assert (tmp_path / "plots" / "testbed-jct.png").stat().st_size > 1000


def test_options_ride_on_the_name() -> None:
    assert split_options("dl2:labels=false+exploration=true") == (
        "dl2",
        {"labels": False, "exploration": True},
    )
    assert split_options("optimus:error=0.1") == ("optimus", {"error": 0.1})
    with pytest.raises(ValueError, match="maybe"):
        split_options("dl2:labels=maybe")


@pytest.mark.parametrize(
    "asked", [["--policies", "nonsense"], ["--suite", "nonsense"], ["--policies", "envelope:nonsense=1"]]
)
def test_evaluate_refuses_what_it_does_not_know(asked: list[str]) -> None:
    found = CliRunner().invoke(evaluate_command.app, [*asked, "--seeds", "1"])
    assert found.exit_code == 2
    assert "nonsense" in found.output


def test_simulate_a_case_and_its_trace(tmp_path: Path) -> None:
    trace, picture = tmp_path / "t.csv", tmp_path / "t.png"
    runner = CliRunner()
    first = runner.invoke(
        simulate_command.app, ["--json", "--trace-to", str(trace), "--plot", str(picture), "--resize", "30"]
    )
    assert first.exit_code == 0, first.output
    data = json.loads(first.output)
    assert len(data["jobs"]) == 30
    assert data["mean_jct"] > data["alone"] > 0
    assert picture.stat().st_size > 1000
    second = runner.invoke(
        simulate_command.app, ["--trace", str(trace), "--policy", "srtf", "--clock", "events"]
    )
    assert second.exit_code == 0, second.output
    assert "jobs finished" in second.output


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--policy", "nonsense"], "envelope"),
        (["--suite", "nonsense"], "testbed"),
        (["--trace", "/nowhere.csv"], "No such file"),
    ],
)
def test_simulate_says_what_is_wrong(asked: list[str], message: str) -> None:
    found = CliRunner().invoke(simulate_command.app, asked)
    assert found.exit_code == 2
    assert message in found.output
