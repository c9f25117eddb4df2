"""`dl2 train online`: a candidate is written only when it is surely better, and never takes power by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dl2.cli import online, train
from dl2.cli.finetuner import FineTuner
from dl2.cli.online import Online, agent_of, lesson, proposal
from dl2.cluster.client import Credentials
from dl2.learning.logged import LessonError
from dl2.learning.online import Tuned, Tuning
from dl2.learning.statistics import Estimate
from dl2.scaling.agent import SHIPPED
from dl2.scaling.agent.checkpoint import read
from tests.unit.learning.logs import written

CANDIDATE = Path("/var/lib/dl2/candidates/dl2-000012.safetensors")


def policy(
    stage: str = "Shadow", challenger: str | None = None, now: str = "", champion: str = "drf"
) -> dict[str, Any]:
    spec = {"stage": stage, "champion": champion} | ({"challenger": challenger} if challenger else {})
    status = {"stage": now} if now else {}
    return {"metadata": {"name": "training", "resourceVersion": "5"}, "spec": spec, "status": status}


PROPOSALS = {
    "nobody is on trial": (policy("Observe"), True),
    "an earlier candidate is": (policy("Shadow", str(CANDIDATE.with_name("dl2-000004.safetensors"))), True),
    "somebody's own challenger is": (policy("Shadow", "envelope"), False),
    "it would decide at once": (policy("Active", str(CANDIDATE)), False),
    "it was moved on by evidence": (policy("Shadow", str(CANDIDATE), now="Canary"), False),
    "it was rolled back from power that the spec still gives": (policy("Active", str(CANDIDATE), now="Shadow"), False),
}  # fmt: skip


@pytest.mark.parametrize(("found", "proposed"), PROPOSALS.values(), ids=PROPOSALS.keys())
def test_a_candidate_is_proposed_only_where_it_can_do_no_harm(found: dict[str, Any], proposed: bool) -> None:
    patch, why = proposal(found, CANDIDATE)
    assert (patch is not None) is proposed
    if patch is not None:
        assert patch == {"metadata": {"resourceVersion": "5"}, "spec": {"challenger": str(CANDIDATE)}}
    else:
        assert "kubectl patch dlsp training" in why


@pytest.mark.parametrize(
    ("found", "start"),
    [
        (None, SHIPPED),
        (policy(), SHIPPED),
        (policy(challenger="/c/one.safetensors"), Path("/c/one.safetensors")),
        (policy(challenger="/c/one.safetensors", champion="/c/two.safetensors"), Path("/c/two.safetensors")),
    ],
)
def test_it_goes_on_from_the_agent_in_charge(found: dict[str, Any] | None, start: Path) -> None:
    assert agent_of(found) == start


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A decision log of twelve jobs, all ended, still open for writing."""
    path = tmp_path / "decisions.db"
    kept = written(path)
    yield path
    kept.close()


def tuned(monkeypatch: pytest.MonkeyPatch, change: float, margin: float) -> None:
    monkeypatch.setattr(
        online, "tune", lambda fitted, weights, *_: Tuned(dict(weights), Estimate(change, margin))
    )


def asked(log: Path, tmp_path: Path) -> Online:
    return Online(log, tmp_path / "candidates", None, Tuning(), propose=False, credentials=Credentials())


def test_a_candidate_says_what_it_is(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned(monkeypatch, -0.05, 0.02)
    assert lesson(asked(log, tmp_path), 0) == 12
    (path,) = (tmp_path / "candidates").iterdir()  # and nothing else is left there
    assert path.name == "dl2-000012.safetensors"
    _, header = read(path)
    assert (header["method"], header["from"], header["test"]["log_jct_against_start"]) == (
        "online",
        SHIPPED.name,
        -0.05,
    )


def test_what_may_be_chance_is_no_candidate(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(monkeypatch, -0.05, 0.06)
    lesson(asked(log, tmp_path), 0)
    assert not [*(tmp_path / "candidates").iterdir()]


def test_nothing_is_learned_twice_from_the_same(log: Path, tmp_path: Path) -> None:
    with pytest.raises(LessonError, match="12 jobs have ended so far; the next lesson is due with 20"):
        lesson(asked(log, tmp_path), 12)


def test_a_log_that_is_not_there_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "be_modest", lambda _: None)
    result = CliRunner().invoke(train.app, ["online", "--log", str(tmp_path / "none.db")])
    assert result.exit_code == 2
    assert "there is no decision log at" in result.output


MODEST = """
import os, resource
from dl2.cli.online import be_modest
be_modest(512)
most, _ = resource.getrlimit(resource.RLIMIT_DATA)
print(os.sched_getscheduler(0) == os.SCHED_IDLE, len(os.sched_getaffinity(0)), most >> 20)
try:
    bytearray(1 << 30)
except MemoryError:
    print("no more")
"""


def test_it_takes_one_idle_core_and_no_more_memory_than_it_may() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", MODEST], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split("\n")[:2] == ["True 1 512", "no more"]


def test_it_ends_with_who_started_it(log: Path, tmp_path: Path) -> None:
    command = [
        "train",
        "online",
        "--leash",
        "--every",
        "3600",
        "--log",
        str(log),
        "--to",
        str(tmp_path / "c"),
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "dl2", *command], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdin is not None
    child.stdin.close()  # as the kernel does for a parent that was killed
    assert child.wait(60) == 0


def test_the_operator_says_where_everything_is() -> None:
    tuner = FineTuner(Path("/l.db"), Path("/c"), 60.0, Credentials("/k", None), "json")
    assert tuner._command[:2] == ["train", "online"]
    assert {"--leash", "--propose", "--log=/l.db", "--to=/c", "--kubeconfig=/k", "--log-format=json"} <= {
        *tuner._command
    }
