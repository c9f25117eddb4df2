"""A worker process for the tests: linear regression and a large parameter, through the numpy interface.

The gradient of a round is a function of the global batch and the present parameters alone, so every run that makes the
same number of rounds must end with the same parameters, whoever took part.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import time
from pathlib import Path

import numpy as np

from dl2_runtime.codecs import Compressor
from dl2_runtime.optimizers import Rule
from dl2_runtime.sampler import ElasticSampler
from dl2_runtime.worker import Worker

EXAMPLES, FEATURES, BATCH = 240, 12, 24


def data():
    random = np.random.RandomState(7)
    features = random.rand(EXAMPLES, FEATURES)
    return features, features @ random.rand(FEATURES, 3) + 0.5


def initial(big: int):
    random = np.random.RandomState(3)
    return {"w": random.rand(FEATURES, 3), "b": np.zeros(3), "big": random.rand(big)}


def gradients(parameters, features, targets, mine, step, rank):
    """Summed over the examples `mine`; that of "big" depends on its value, so that a stale value shows."""
    x, y = features[mine], targets[mine]
    error = x @ parameters["w"] + parameters["b"] - y
    share = len(mine) / BATCH
    return {
        "w": x.T @ error,
        "b": error.sum(axis=0),
        "big": (np.sin(parameters["big"]) + step % 5) * share * BATCH,
    }


def train(worker: Worker, options, parameters) -> None:
    features, targets = data()
    sampler = ElasticSampler(worker, EXAMPLES, BATCH)
    while worker.step < options.steps:
        position = worker.position()
        if position.step >= options.steps:
            break
        grads = gradients(
            parameters, features, targets, sampler.batch(position), position.step, position.rank
        )
        if options.crash_at is not None and position.step >= options.crash_at:
            signal.raise_signal(signal.SIGKILL)
        if options.compute and position.step % options.compute_every == 0:
            time.sleep(options.compute)
        while options.gate and options.gate.exists():
            time.sleep(0.01)
        if options.rule == "sum":
            worker.pushpull(grads)
            for name, total in grads.items():
                parameters[name] -= 0.05 / BATCH * total
        else:
            worker.pushpull(grads, parameters)
        if options.seconds:
            time.sleep(options.seconds)
        if options.trace:
            print(json.dumps({"step": worker.step, "workers": position.workers}), flush=True)


def main() -> None:
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rule", default="sgd")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--big", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=0.0, help="to sleep between two rounds")
    parser.add_argument(
        "--compute", type=float, default=0.0, help="seconds that a gradient takes, within a round"
    )
    parser.add_argument("--compute-every", type=int, default=1, help="of so many rounds one is that slow")
    parser.add_argument("--gate", type=Path, help="while this file exists, no gradient becomes ready")
    parser.add_argument("--crash-at", type=int)
    parser.add_argument("--compression", default="none")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--asynchronous", action="store_true")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    parameters = initial(options.big)
    worker = Worker.connect()
    worker.rule = Rule(
        options.rule,
        lr=0.05,
        wd=0.01 if options.rule != "sum" else 0.0,
        momentum=options.momentum if options.rule == "sgd" else 0.0,
        rescale_grad=1 / BATCH,
        asynchronous=options.asynchronous,
    )
    worker.compressor = Compressor(options.compression, options.threshold)
    worker.leave_on_sigterm()
    with worker:
        worker.init(parameters)
        print(json.dumps({"joined": worker.step}), flush=True)
        train(worker, options, parameters)
        if options.out:
            np.savez(str(options.out), **parameters)
    print(json.dumps({"finished": worker.step}), flush=True)


if __name__ == "__main__":
    main()
