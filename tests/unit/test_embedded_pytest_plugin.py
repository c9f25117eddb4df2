"""The fixtures, where no cluster can be had."""

import os
import subprocess
import sys
from pathlib import Path

import dl2

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def test_without_a_cluster_tests_fail_with_the_reason_and_are_not_skipped(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_it.py").write_text("def test_it(embedded_cluster): pass\n")
    environment = os.environ | {
        "DL2_ETCD_BINARY": "/nowhere/etcd",
        "DL2_STATE": str(tmp_path / "state"),
        "PYTHONPATH": str(Path(dl2.__file__).parents[1]),
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "the embedded cluster of these tests cannot run: DL2_ETCD_BINARY=/nowhere/etcd" in run.stdout
    assert "skipped" not in run.stdout
