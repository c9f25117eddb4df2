"""`dl2 explain` and `dl2 log export`, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dl2.cli import explain, log
from dl2.controller.decisionlog import DecisionLog, OutcomeRow, VerdictRow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "decisions.db"
    kept = DecisionLog(path)
    verdict = VerdictRow(
        "team/job", "u", "champion", "2x1", "4x2", "3x1", "4x2", "2x1", "Cooldown", "9 s left", 0.5, 0.5
    )
    answers = {
        arm: {"policy": name, "answer": {}} for arm, name in (("champion", "drf"), ("challenger", "dl2"))
    }
    kept.add_round(1e9, "training", "Shadow", (None, None), {}, answers, [verdict])
    kept.add_outcome(
        OutcomeRow(1e9 + 1, 1, "team/job", "u", "champion", "drf", "Resized", 0.25, None, "from 1x1 to 2x1")
    )
    kept.close()
    return path


def test_a_person_sees_what_each_wanted_and_why_not(path: Path) -> None:
    shown = CliRunner().invoke(explain.app, ["team/job", "--log", str(path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for word in (
        "drf (champion)",
        "dl2 (challenger)",
        "Shadow",
        "2x1",
        "4x2",
        "3x1",
        "Cooldown: 9 s left",
        "0.25 s",
    ):
        assert word in shown.stdout


def test_a_program_gets_a_line_each(path: Path) -> None:
    shown = CliRunner().invoke(explain.app, ["team/job", "--log", str(path), "--json"])
    assert [json.loads(line)["record"] for line in shown.stdout.splitlines()] == ["verdict", "outcome"]
    out = path.with_name("out.jsonl")
    assert CliRunner().invoke(log.app, ["export", "--log", str(path), "--out", str(out)]).exit_code == 0
    assert [json.loads(line)["record"] for line in out.read_text().splitlines()] == ["round", "outcome"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["team/other"], "there are team/job"), (["team/job", "--log", "/nowhere"], "--decision-log")],
)
def test_what_is_not_there_is_named(path: Path, arguments: list[str], word: str) -> None:
    shown = CliRunner().invoke(explain.app, ["--log", str(path), *arguments])
    assert shown.exit_code == 2
    assert word in shown.stderr
