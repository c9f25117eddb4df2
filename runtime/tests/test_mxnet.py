"""MXNet's interfaces in real processes: the Gluon example, and `mxtrainee.py`.

Skipped, and says so, unless a Python with MXNet and scikit-learn is there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from harness import HERE, Cluster, wait_for

EXAMPLE = HERE.parent.parent / "examples" / "elastic" / "train.py"
PYTHON = os.environ.get("DL2_MXNET_PYTHON") or sys.executable
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


@contextmanager
def held(job: Cluster, worker):
    """Stops a worker after its first step until those who are started meanwhile are there: importing MXNet takes long."""
    job.await_step(1)
    worker.signal(signal.SIGSTOP)
    yield
    wait_for("the newcomers", lambda: len(job.status()["members"]) == len(job.processes) - 1)
    worker.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    "where", [(), ("--local-update", "--momentum", "0")], ids=["on servers", "in workers"]
)
def test_a_gluon_trainer_learns_the_same_with_members_that_come_later(tmp_path, where):
    with Cluster(tmp_path / "alone") as job:
        server = job.run("server-0", "server", 0, [PYTHON, str(EXAMPLE)])
        alone = start(job, 0, "--epochs", "4", *where)
        assert [alone.wait(), server.wait()] == [0, 0]
    with Cluster(tmp_path / "together", DL2_DEAD_AFTER_SECONDS="60") as job:
        options = ("--epochs", "4", "--step-seconds", "0.12", *where)
        servers = [job.server(0)]
        workers = [start(job, 0, *options)]
        with held(job, workers[0]):
            servers.append(job.server(1))
            workers.append(start(job, 1, *options))
        job.await_size(2, 2)
        assert [process.wait() for process in (*workers, *servers)] == [0, 0, 0, 0]
    step, accuracy, weight = final(alone)
    assert (step, accuracy > 0.8) == (100, True)
    for worker in workers:
        assert final(worker) == (step, pytest.approx(accuracy, abs=0.02), pytest.approx(weight, rel=1e-3))


def trainee(job: Cluster, index: int, *options: str):
    command = [PYTHON, str(HERE / "mxtrainee.py"), *options, "--out", str(job.result(index))]
    return job.run(f"worker-{index}", "worker", index, command)


def optimizer(name: str, **parameters: float) -> tuple[str, ...]:
    return "--optimizer", name, "--parameters", json.dumps(parameters)


MOMENTUM = optimizer("sgd", learning_rate=0.1, momentum=0.9, wd=0.01)
ADAM = optimizer("adam", learning_rate=0.02, wd=0.01)


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        pytest.param(2, MOMENTUM, id="momentum"),
        pytest.param(2, optimizer("sgd", learning_rate=0.1, clip_gradient=0.05, wd=0.01), id="clipped"),
        pytest.param(2, ADAM, id="adam"),
        pytest.param(1, (*MOMENTUM, "--compressed"), id="2bit"),
        pytest.param(2, (*MOMENTUM, "--api", "module"), id="module"),
        pytest.param(2, (*ADAM, "--api", "module"), id="module, adam"),
        pytest.param(
            2, (*MOMENTUM, "--api", "module", "--join", "--fixed", "output"), id="module, fixed parameter"
        ),
    ],
)
def test_servers_update_as_mxnets_own_optimizers_do(tmp_path, workers, options):
    with Cluster(tmp_path, DL2_WORKERS=str(workers), DL2_SERVERS="2") as job:
        servers = [job.server(n) for n in range(2)]
        trainees = [trainee(job, n, *options) for n in range(workers)]
        processes = [*trainees, trainee(job, workers, *options, "--alone"), *servers]
        assert [process.wait() for process in processes] == [0] * len(processes)
        expected = job.parameters(workers)
        for n in range(workers):
            for name, value in job.parameters(n).items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_module_trains_on_with_members_that_come_later(tmp_path):
    options = (*MOMENTUM, "--api", "module", "--join", "--seconds", "0.3")
    with Cluster(tmp_path, DL2_DEAD_AFTER_SECONDS="60") as job:
        servers, workers = [job.server(0)], [trainee(job, 0, *options)]
        with held(job, workers[0]):
            servers.append(job.server(1))
            workers.append(trainee(job, 1, *options))
        job.await_size(2, 2)
        alone = trainee(job, 2, *MOMENTUM, "--api", "module", "--alone")
        processes = (*workers, *servers, alone)
        assert [process.wait() for process in processes] == [0] * len(processes)
        for n in range(2):
            for name, value in job.parameters(n).items():
                np.testing.assert_allclose(value, job.parameters(2)[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_server_that_dies_costs_a_gluon_trainer_no_update(tmp_path):
    """Its values come back from where MXNet keeps the parameters."""
    options = (*optimizer("sgd", learning_rate=0.1), "--seconds", "0.1")
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_SERVERS="2") as job:
        servers, workers = [job.server(n) for n in range(2)], [trainee(job, n, *options) for n in range(2)]
        job.await_step(3)
        servers[1].kill()
        job.await_size(2, 1)
        alone = trainee(job, 2, *options, "--alone", "--seconds", "0")
        processes = (*workers, servers[0], alone)
        assert [process.wait() for process in processes] == [0] * len(processes)
        for n in range(2):
            for name, value in job.parameters(n).items():
                np.testing.assert_allclose(value, job.parameters(2)[name], rtol=1e-4, atol=1e-5, err_msg=name)


MEMORY = """
import mxnet as mx, numpy as np
from dl2_runtime.mxnet import _fill, _host

def convolve(weight):
    image = mx.nd.ones((1, 64, 8, 8))
    return mx.nd.Convolution(image, weight, no_bias=True, kernel=(3, 3), num_filter=64).asnumpy()

numbers = np.random.RandomState(1).rand(64, 64, 3, 3).astype("float32")
weight = mx.nd.array(numbers)
before = convolve(weight)  # lays the weights out anew, for inference
seen = _host(weight)
assert np.array_equal(seen, numbers) and np.shares_memory(seen, _host(weight, seen))
seen *= 2
np.testing.assert_allclose(convolve(weight), 2 * before, rtol=1e-5)
assert np.array_equal(_host(weight, seen), 2 * numbers)
other = mx.nd.zeros(weight.shape)
_fill([weight, other], seen)
assert np.array_equal(other.asnumpy(), weight.asnumpy())
del weight
assert np.array_equal(seen, 2 * numbers)  # it keeps the memory alive
try:
    _host(mx.nd.ones((2, 2)).tostype("row_sparse"))
except ValueError as error:
    assert "dense" in str(error)
else:
    raise AssertionError("a sparse array was taken")
"""


def test_numpy_reads_and_changes_an_arrays_own_memory():
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run([PYTHON, "-c", MEMORY], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


UNFINISHED = """
import mxnet as mx, numpy as np
from mxnet import autograd, gluon
import dl2_runtime.mxnet

kv = mx.kv.create("dl2")
parameter = gluon.Parameter("weight", shape=(1500, 1500))
parameter.initialize(mx.init.Zero())
trainer = gluon.Trainer([parameter], "sgd", {"learning_rate": 0.1}, kvstore=kv)
value = mean = mx.nd.full((1500, 1500), 1 / 1500)
mx.nd.waitall()
for _ in range(20):
    value = mx.nd.dot(value, mean)
parameter.set_data(value)  # comes to pass when all of this has been computed
kv.join(trainer)
with autograd.record():
    loss = (0 * parameter.data()).sum()
loss.backward()
trainer.step(1)  # the servers send what they were given
np.testing.assert_allclose(parameter.data().asnumpy(), 1 / 1500, rtol=1e-3)
"""


def test_a_job_begins_with_what_its_parameters_were_to_become(tmp_path):
    """MXNet computes beside the program: at the join the initial values may still be under way."""
    with Cluster(tmp_path) as job:
        server = job.server(0)
        worker = job.run("worker-0", "worker", 0, [PYTHON, "-c", UNFINISHED])
        assert [worker.wait(), server.wait()] == [0, 0], worker.text()
