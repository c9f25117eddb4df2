"""The Gluon example in real processes. Skipped, and says so, unless a Python with MXNet and scikit-learn is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from harness import HERE, Cluster

EXAMPLE = HERE.parent.parent / "examples" / "elastic" / "train.py"
PYTHON = os.environ.get("DL2_MXNET_PYTHON", sys.executable)
HAS_MXNET = (
    subprocess.run([PYTHON, "-c", "import mxnet, sklearn"], capture_output=True, check=False).returncode == 0
)
pytestmark = pytest.mark.skipif(
    not HAS_MXNET, reason=f"{PYTHON} has no MXNet: name one that has in DL2_MXNET_PYTHON"
)


def final(process) -> tuple[int, float, float]:
    found = re.search(r"final step=(\d+) accuracy=([\d.]+) weight=([\d.]+)", process.text())
    assert found, process.text()
    return int(found[1]), float(found[2]), float(found[3])


def start(job: Cluster, index: int, *options: str):
    return job.run(f"worker-{index}", "worker", index, [PYTHON, str(EXAMPLE), *options])


@pytest.mark.parametrize(
    "where", [(), ("--local-update", "--momentum", "0")], ids=["on servers", "in workers"]
)
def test_a_gluon_trainer_learns_the_same_with_members_that_come_later(tmp_path, where):
    with Cluster(tmp_path / "alone") as job:
        server = job.run("server-0", "server", 0, [PYTHON, str(EXAMPLE)])
        alone = start(job, 0, "--epochs", "4", *where)
        assert [alone.wait(), server.wait()] == [0, 0]
    with Cluster(tmp_path / "together") as job:
        options = ("--epochs", "4", "--step-seconds", "0.12", *where)
        servers = [job.server(0)]
        workers = [start(job, 0, *options)]
        job.await_step(1)
        servers.append(job.server(1))
        workers.append(start(job, 1, *options))
        job.await_size(2, 2)
        assert [process.wait() for process in (*workers, *servers)] == [0, 0, 0, 0]
    step, accuracy, weight = final(alone)
    assert (step, accuracy > 0.8) == (100, True)
    for worker in workers:
        assert final(worker) == (step, pytest.approx(accuracy, abs=0.02), pytest.approx(weight, rel=1e-3))
