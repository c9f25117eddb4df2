"""Compressed and asynchronous training, against what their rules say."""

from __future__ import annotations

import numpy as np
import pytest
import trainee
from harness import Cluster
from test_job import alone, assert_same

from dl2_runtime import checkpoint
from dl2_runtime.view import Key, Table

THRESHOLD = 20.0


class TwoBit:
    """MXNet's rule: what has gathered is sent as +-THRESHOLD once it reaches that, and the rest waits."""

    def __init__(self) -> None:
        self.residual = {}
        self.signs = set()

    def __call__(self, rank, name, grad):
        residual = self.residual.get((rank, name), 0.0) + grad
        sent = THRESHOLD * (residual >= THRESHOLD) - THRESHOLD * (residual <= -THRESHOLD)
        self.residual[rank, name] = residual - sent
        self.signs.update(np.sign(sent).flat)
        return sent


class Int8:
    """Each chunk as whole multiples of a 127th of its largest number; the rest waits."""

    def __init__(self) -> None:
        self.residual = {}

    def __call__(self, rank, name, grad):
        residual = self.residual.get((rank, name), 0.0) + grad
        sent = np.empty_like(grad)
        for chunk in Table([Key(name, grad.size, str(grad.dtype))]).chunks:
            part = slice(chunk.start, chunk.start + chunk.size)
            numbers = residual.reshape(-1)[part]
            scale = float(np.float32(abs(numbers).max() / 127))
            sent.reshape(-1)[part] = np.rint(numbers / scale) * scale
        self.residual[rank, name] = residual - sent
        return sent


def half(rank, name, grad):
    return grad.astype(np.float16).astype(float)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("2bit", TwoBit()), ("int8", Int8()), ("fp16", half)],
    ids=["2bit", "int8", "fp16"],
)
def test_compressed_gradients_train_as_their_rule_says(tmp_path, kind, rule):
    options = ("--steps", "25", "--compression", kind, "--threshold", str(THRESHOLD))
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_SERVERS="2") as job:
        processes = [job.server(0), job.server(1), *(job.worker(n, *options) for n in range(2))]
        assert [process.wait() for process in processes] == [0] * 4
        expected = alone(25, workers=2, sent=rule)
        for n in range(2):
            assert_same(job.parameters(n), expected)
    if kind == "2bit":
        assert rule.signs == {-1.0, 0.0, 1.0}  # all that the rule can say was said


def loss(parameters) -> float:
    features, targets = trainee.data()
    error = features @ parameters["w"] + parameters["b"] - targets
    return float((error * error).mean())


def test_asynchronous_workers_train_each_at_its_own_pace_and_every_push_counts(tmp_path):
    """The slow worker does not hold up the fast one, which is done long before it; the servers count updates."""
    saved, steps = tmp_path / "saved", 40
    options = ("--steps", str(steps), "--asynchronous", "--momentum", "0", "--trace")
    with Cluster(tmp_path, DL2_WORKERS="2", DL2_SERVERS="2", DL2_CHECKPOINT_DIR=str(saved)) as job:
        servers = [job.server(0), job.server(1)]
        fast, slow = job.worker(0, *options), job.worker(1, *options, "--compute", "0.05")
        assert fast.wait() == 0
        assert slow.text().count('"step"') < steps
        assert [process.wait() for process in (slow, *servers)] == [0] * 3
        assert loss(job.parameters(1)) < 0.25 * loss(trainee.initial(0))
    folder, step, keys = checkpoint.latest(saved)
    assert step == steps  # a job that starts from it is done
    chunks = Table([Key.from_json(body) for body in keys]).chunks
    parts = list(checkpoint.read_parts(str(folder), {chunk.number for chunk in chunks}))
    assert {body["updates"] for body, _ in parts} == {2 * steps}
