"""The decision log: written by one, read by others, bounded, and whole after a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dl2.api.conditions import format_time
from dl2.cluster.resources import SCALING_POLICIES
from dl2.controller.decisionlog import (
    DecisionLog,
    LogError,
    OutcomeRow,
    VerdictRow,
    exported,
    history,
    jobs_in,
    observations,
    reading,
)
from dl2.controller.rollout import Arm
from dl2.controller.trial import Trial
from dl2.scaling.interface import Scale
from tests.unit.controller.objects import NOW, entry, raw

VERDICT = VerdictRow("ns/job", "u1", "champion", "1x1", "2x1", None, "2x1", "2x1", "AsAsked", "", 0.1, 0.2)


def resized(at: float, kind: str = "Resized", job: str = "ns/job", **changes: object) -> OutcomeRow:
    row = OutcomeRow(at, 1, job, "u1", "challenger", "dl2", kind, 0.1, None, "from 1x1 to 2x1")
    return row._replace(**changes)  # type: ignore[arg-type]


def add(log: DecisionLog, at: float, blob: object = None) -> int:
    return log.add_round(
        at, "training", "Shadow", (0.5, 0.1), {"jobs": [Scale(1, 2)], "blob": blob}, {}, [VERDICT]
    )


def test_what_was_written_is_read_while_the_log_is_open(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.db"
    log = DecisionLog(path)
    number = add(log, 10.0)
    log.add_outcome(resized(12.0))
    with reading(path) as db:
        verdicts, outcomes = history(db, "ns/job", 5)
        assert jobs_in(db) == ["ns/job"]
        records = list(exported(db))
    assert [(v["round"], v["given"], v["stage"]) for v in verdicts] == [(number, "2x1", "Shadow")]
    assert [o["kind"] for o in outcomes] == ["Resized"]
    assert [r["record"] for r in records] == ["round", "outcome"]
    assert records[0]["observation"]["jobs"] == [[1, 2]]
    log.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a folder read only")
def test_a_copy_in_a_read_only_folder_is_read(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.db")
    add(log, 10.0)
    log.close()
    command = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    export = [sys.executable, "-m", "dl2", "log", "export", "--log", str(tmp_path / "log.db")]
    told = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, str(tmp_path), *export],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert '"record":"round"' in told.stdout


def test_the_latest_observations_come_oldest_first(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.db")
    for at in range(50):
        add(log, float(at), blob=at)
    with reading(tmp_path / "log.db") as db:
        assert [seen["blob"] for seen in observations(db, 45)] == list(range(5, 50))
    with reading(tmp_path / "log.db") as db:
        assert len([*observations(db, 1000)]) == 50
    log.close()


def test_figures_count_what_belongs_to_them() -> None:
    log = DecisionLog(None)
    for at in (1.0, 2.0, 3.0):
        add(log, at)
    for row in (
        resized(1.0, "ResizeFailed"),
        resized(5.0, "ResizeFailed"),
        resized(5.0, "ResizeFailed", policy="other"),
        resized(5.0, "NoRoom"),
        resized(6.0, "Finished", seconds=100.0, slowdown=2.0),
        resized(7.0, "Finished", seconds=50.0),
        resized(7.0, "Finished", policy="drf", seconds=70.0),
    ):
        log.add_outcome(row)
    assert log.count_rounds("training") == 3
    assert log.count_rounds("another") == 0
    assert log.compared("training", 2.0) == (0.5, 0.1, 2)
    assert log.compared("training", 9.0) == (None, None, 0)
    assert log.failures(Arm.CHALLENGER, "dl2", 2.0) == 1
    times = log.times("dl2", 0.0)
    assert (times.completion, times.slowdown) == ([50.0, 100.0], [2.0])


def test_the_oldest_rounds_go_when_it_becomes_too_large(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.db", max_bytes=300_000)
    import random

    noise = random.Random(1)
    for n in range(200):
        add(log, float(n), [noise.random() for _ in range(200)])
    assert 20 < log.count_rounds("training") < 199
    with reading(tmp_path / "log.db") as db:
        verdicts, _ = history(db, "ns/job", 1000)
    assert verdicts[-1]["at"] == 199.0
    assert len(verdicts) == log.count_rounds("training")
    assert (tmp_path / "log.db").stat().st_size < 600_000


def test_a_crash_in_the_middle_of_writing_leaves_whole_rounds(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    script = (
        "import sys\nfrom pathlib import Path\nfrom dl2.controller.decisionlog import DecisionLog, VerdictRow\n"
        "log, row = DecisionLog(Path(sys.argv[1])), ('ns/job',) + ('x',) * 9 + (None, None)\n"
        "for n in range(10**9):\n"
        "    log.add_round(float(n), 'training', 'Shadow', (None, None), {}, {}, [VerdictRow(*row)] * 50)\n"
        "    if n == 5: print('going', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"going\n"
        writer.kill()
    with reading(path) as db:
        assert {len(r["verdicts"]) for r in exported(db)} == {50}
    assert add(DecisionLog(path), 1e9) > 5


@pytest.mark.parametrize(
    "content", [None, b"", b"this is no database at all, but long enough to look at" * 50]
)
def test_a_file_that_is_no_log_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "log.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LogError, match="log"), reading(path):
        pass


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(LogError, match="/proc/nowhere"):
        DecisionLog(Path("/proc/nowhere/log.db"))


def test_a_scaling_policy_made_anew_begins_without_the_evidence_of_its_namesake() -> None:
    log, born = DecisionLog(None), NOW + 1000.0
    for at in (born - 5.0, born - 1.0, born + 5.0):
        add(log, at)
        log.add_outcome(resized(at, "ResizeFailed"))
        log.add_outcome(resized(at, "Finished", seconds=100.0))
    written = raw("ScalingPolicy", "training", {"champion": "drf", "challenger": "dl2", "stage": "Canary"})
    written["metadata"]["creationTimestamp"] = format_time(born)
    trial = Trial(None, None, log)  # type: ignore[arg-type]
    evidence, figures = trial._evidence(entry(SCALING_POLICIES, written), {}, born + 60.0)
    assert (evidence.rounds, evidence.failures, len(evidence.challenger.completion)) == (1, 1, 1)
    assert figures["decisions"] == 1
