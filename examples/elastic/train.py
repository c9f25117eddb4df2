"""Train a small network on handwritten digits while workers and servers come and go.

One script for every role of a job with `runtime: elastic`: DL2_ROLE tells what this process is, and in the coordinator
and the servers `import dl2_runtime.mxnet` serves until the job ends. The data are the 1,797 digits of scikit-learn.

The global batch is fixed and the workers share it, so the result does not depend on how many there are. Checkpoints go
to DL2_CHECKPOINT_DIR, if it is set, and a job that starts again goes on from the newest one.
"""

from __future__ import annotations

import argparse
import logging
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers share a machine; this network is tiny

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from sklearn.datasets import load_digits

import dl2_runtime.mxnet  # first: what is not a worker stays in here
import dl2_runtime.progress
from dl2_runtime import ElasticSampler

TEST_SIZE = 297


def parse_arguments() -> argparse.Namespace:
    environ = os.environ.get
    parser = argparse.ArgumentParser(description="Train on scikit-learn's handwritten digits, elastically.")
    parser.add_argument("--epochs", type=int, default=int(environ("DL2_EPOCHS", "12")))
    parser.add_argument(
        "--global-batch", type=int, default=60, help="examples that all workers share in a step"
    )
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument(
        "--local-update", action="store_true", help="workers run the optimizer, not the servers"
    )
    parser.add_argument(
        "--step-seconds",
        type=float,
        default=float(environ("DL2_STEP_SECONDS", "0")),
        help="make each step last this long at least, to watch a run",
    )
    parser.add_argument(
        "--example-seconds",
        type=float,
        default=float(environ("DL2_EXAMPLE_SECONDS", "0")),
        help="make each example last this long at least, as in a large network: more workers are faster then",
    )
    return parser.parse_args()


def load_data():
    """Training images and labels, then the test set's; the same in every worker."""
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    images = (digits.data[order] / 16).astype("float32")
    labels = digits.target[order].astype("float32")
    return (
        images[TEST_SIZE:],
        labels[TEST_SIZE:],
        mx.nd.array(images[:TEST_SIZE]),
        mx.nd.array(labels[:TEST_SIZE]),
    )


def build(images) -> gluon.nn.HybridSequential:
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(64, activation="relu"), gluon.nn.Dense(10))
    net.initialize(mx.init.Xavier())
    net(mx.nd.array(images[:1]))  # the first call shapes the parameters
    return net


def train(options: argparse.Namespace, progress: dl2_runtime.progress.Reporter) -> float:
    mx.random.seed(1)
    images, labels, test_images, test_labels = load_data()
    net, loss_of = build(images), gluon.loss.SoftmaxCrossEntropyLoss()
    store = mx.kv.create("dl2")
    trainer = gluon.Trainer(
        net.collect_params(),
        "sgd",
        {"learning_rate": options.learning_rate, "momentum": options.momentum},
        kvstore=store,
        update_on_kvstore=not options.local_update,
    )
    print(f"worker {store.rank} starts at step {store.join(trainer)}", flush=True)
    sampler = ElasticSampler(store, len(labels), options.global_batch)

    def accuracy() -> float:
        return float((net(test_images).argmax(axis=1) == test_labels).mean().asscalar())

    measured = accuracy()
    while store.step < options.epochs * len(sampler):
        for indices in sampler:
            started = time.monotonic()
            with autograd.record():
                loss = loss_of(net(mx.nd.array(images[indices])), mx.nd.array(labels[indices])).sum()
            loss.backward()
            mx.nd.waitall()
            time.sleep(max(0.0, started + len(indices) * options.example_seconds - time.monotonic()))
            trainer.step(options.global_batch)
            epoch, within = divmod(store.step, len(sampler))
            if not within:
                measured = accuracy()
            if store.rank == 0:
                mean = float(loss.asscalar()) / max(1, len(indices))
                progress.report(epoch=epoch, step=store.step, loss=mean, accuracy=measured)
                if not within:
                    print(
                        f"epoch={epoch} step={store.step} workers={store.num_workers} "
                        f"loss={mean:.4f} accuracy={measured:.4f}",
                        flush=True,
                    )
            time.sleep(max(0.0, started + options.step_seconds - time.monotonic()))
            if not within:
                break  # asking for the next epoch's first batch belongs to the next epoch
    total = sum(float(abs(p.data()).sum().asscalar()) for p in net.collect_params().values())
    print(f"final step={store.step} accuracy={measured:.4f} weight={total:.5f}", flush=True)
    return measured


def main() -> None:
    logging.basicConfig(level="WARNING")
    with dl2_runtime.progress.start() as progress:
        train(parse_arguments(), progress)


if __name__ == "__main__":
    main()
