"""Fine-tuning beside the running operator: its death changes nothing, and what it finds becomes a challenger, no more."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from dl2.api import names
from dl2.cli import online
from dl2.cluster.client import Credentials
from dl2.embedded.cluster import EmbeddedCluster
from dl2.learning.online import Tuned, Tuning
from dl2.learning.statistics import Estimate
from dl2.scaling.agent.network import Weights
from tests.integration.operator_harness import Api, Operator, eventually, job
from tests.unit.learning.logs import written


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A decision log of twelve jobs, all ended."""
    path = tmp_path / "decisions.db"
    kept = written(path)
    kept.close()
    return path


@pytest.fixture
def tuning_operator(
    embedded_cluster: EmbeddedCluster, nodes: list[str], log: Path, tmp_path: Path
) -> Iterator[Operator]:
    operator = Operator(
        embedded_cluster, tmp_path / "log", "--decision-log", str(log), "--fine-tune", str(tmp_path / "candidates"),
        "--fine-tune-seconds", "3600",
    )  # fmt: skip
    operator.start()
    yield operator
    if operator.alive:
        operator.stop()


def tuners(log: Path) -> list[int]:
    """Process numbers of those that learn from `log`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:  # it has just ended
            continue
        if b"online" in words and f"--log={log}".encode() in words:
            found.append(int(entry.name))
    return found


def test_the_death_of_the_one_changes_nothing_for_the_other(
    api: Api, tuning_operator: Operator, log: Path
) -> None:
    (first,) = eventually(lambda: tuners(log), "fine-tuning")
    eventually(lambda: os.sched_getscheduler(first) == os.SCHED_IDLE, "it being modest")
    os.kill(first, signal.SIGKILL)
    api.apply(job("j"))
    api.wait_state("Running", "j")
    eventually(lambda: tuners(log) not in ([], [first]), "another one")
    tuning_operator.kill()
    eventually(lambda: not tuners(log), "the end of the orphan")


def test_what_is_surely_better_becomes_the_challenger_of_a_policy_in_shadow(
    embedded_cluster: EmbeddedCluster, api: Api, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(fitted: object, weights: Weights, *_: object) -> Tuned:
        """Meanwhile the operator goes on writing the policy's status."""
        api.patch("ScalingPolicy", "training", {"metadata": {"annotations": {"written": token_hex(4)}}})
        return Tuned(dict(weights), Estimate(-0.05, 0.01))

    monkeypatch.setattr(online, "tune", tune)
    login = Credentials(str(embedded_cluster.kubeconfig))
    asked = online.Online(log, tmp_path / "candidates", None, Tuning(), propose=True, credentials=login)
    spec = {"stage": "Shadow", "champion": "drf", "challenger": "envelope", "intervalSeconds": 3600}
    api.apply(
        {
            "apiVersion": names.API_VERSION,
            "kind": "ScalingPolicy",
            "metadata": {"name": "training"},
            "spec": spec,
        }
    )
    try:
        online.lesson(asked, 0)
        assert (
            api.get("ScalingPolicy", "training")["spec"]["challenger"] == "envelope"
        )  # somebody's own choice
        api.patch("ScalingPolicy", "training", {"spec": {"stage": "Observe", "challenger": None}})
        online.lesson(asked, 0)
        proposed = api.get("ScalingPolicy", "training")["spec"]
        assert proposed["challenger"] == str(tmp_path / "candidates" / "dl2-000012.safetensors")
        assert proposed["stage"] == "Observe"
    finally:
        api.delete("ScalingPolicy", "training")
