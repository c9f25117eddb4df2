"""Train a small network on handwritten digits with MXNet's parameter server (`dist_sync`).

One script for every role of a job: DMLC_ROLE tells MXNet whether this process is a worker, a server or the scheduler,
and in the last two `import mxnet` serves until the job ends. The data are the 1,797 digits that scikit-learn ships.

The first worker checkpoints after every epoch, and on SIGTERM, to DL2_CHECKPOINT_DIR (a volume that all workers see);
a job started again goes on at the very step of the checkpoint, with the same result as one never interrupted: batches
depend on the step alone, and plain SGD has no state beside the parameters.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import dl2_runtime.progress

TEST_SIZE = 297
START_KEYS = 1_000_000  # in the parameter server; Gluon's own keys count the parameters from 0
TERMINATED = 128 + signal.SIGTERM


def parse_arguments() -> argparse.Namespace:
    environ = os.environ.get
    parser = argparse.ArgumentParser(description="Train on scikit-learn's handwritten digits with dist_sync.")
    parser.add_argument("--epochs", type=int, default=int(environ("DL2_EPOCHS", "12")))
    parser.add_argument(
        "--steps-per-epoch",
        type=int,
        default=int(environ("DL2_STEPS_PER_EPOCH", "0")),
        help="0: once through the data",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="examples a worker handles in one step")
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument(
        "--step-seconds",
        type=float,
        default=float(environ("DL2_STEP_SECONDS", "0")),
        help="make each step last this long at least, to watch a run",
    )
    parser.add_argument("--checkpoint-dir", type=Path, default=environ("DL2_CHECKPOINT_DIR") or None)
    parser.add_argument(
        "--rendezvous-seconds", type=float, default=120, help="how long to wait for the scheduler's name"
    )
    parser.add_argument("--grace-seconds", type=float, default=5, help="how long to outlive SIGTERM at most")
    return parser.parse_args()


def await_name(host: str | None, limit: float) -> None:
    """Wait until `host` resolves: a pod starts before its headless Service knows the peers, and ps-lite asks once."""
    deadline = time.monotonic() + limit
    while host:
        try:
            socket.getaddrinfo(host, None)
            return
        except socket.gaierror as error:
            if time.monotonic() > deadline:
                sys.exit(
                    f"DMLC_PS_ROOT_URI={host} did not resolve within {limit:g} s ({error}): is the scheduler's pod "
                    "created, and does a headless Service with publishNotReadyAddresses select it?"
                )
            time.sleep(0.5)


class Termination:
    """SIGTERM: `requested` turns true at once, and the process ends after `grace` seconds whatever it is waiting for.

    A Python signal handler runs only between two instructions of the main thread, which may be inside MXNet, waiting
    for a peer that is already gone; so a thread waits on the wake-up descriptor that the interpreter writes to.
    """

    def __init__(self, grace: float) -> None:
        self.requested = threading.Event()
        self._grace = grace
        receiving, sending = socket.socketpair()
        sending.setblocking(False)
        self._sockets = receiving, sending
        signal.signal(
            signal.SIGTERM, lambda number, frame: None
        )  # as process 1 of a container there is no default
        signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while signal.SIGTERM not in self._sockets[0].recv(16):
            pass
        self.requested.set()
        time.sleep(self._grace)
        os._exit(TERMINATED)


class Checkpoint:
    """The parameters, in one file that names its step; a newer file replaces the older atomically."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        if directory:
            directory.mkdir(parents=True, exist_ok=True)

    def _files(self) -> list[Path]:
        found = self._directory.glob("step-*.params") if self._directory else ()
        return sorted(found, key=lambda path: int(path.stem.partition("-")[2]))

    def load(self, net) -> int:
        """Fill `net` with the newest parameters; returns the steps they have seen, 0 without a checkpoint."""
        files = self._files()
        if not files:
            return 0
        net.load_parameters(str(files[-1]))
        return int(files[-1].stem.partition("-")[2])

    def save(self, net, step: int) -> None:
        if not self._directory:
            return
        older = self._files()
        path = self._directory / f"step-{step}.params"
        partial = path.with_suffix(".partial")
        net.save_parameters(str(partial))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        for file in older:
            if file != path:
                file.unlink()


def load_data(mx, rank: int, workers: int):
    """This worker's share of the training set (every share has the same size), and the whole test set."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    images = (digits.data[order] / 16).astype("float32")
    labels = digits.target[order].astype("float32")
    share = (len(labels) - TEST_SIZE) // workers
    mine = slice(TEST_SIZE + rank * share, TEST_SIZE + (rank + 1) * share)
    return (mx.nd.array(images[mine]), mx.nd.array(labels[mine])), (
        mx.nd.array(images[:TEST_SIZE]),
        mx.nd.array(labels[:TEST_SIZE]),
    )


def agree_on_start(mx, store, net, step: int) -> int:
    """Give every worker the first one's parameters and `step`: each must take the same number of steps."""
    value = mx.nd.array([step // 2**20, step % 2**20])  # float32 keeps integers only up to 2^24
    parameters = [parameter.data() for parameter in net.collect_params().values()]
    for key, array in enumerate([value, *parameters], START_KEYS):
        store.broadcast(key, array, out=array)
    high, low = value.asnumpy()
    return int(high) * 2**20 + int(low)


def train(
    mx, options: argparse.Namespace, progress: dl2_runtime.progress.Reporter, termination: Termination
) -> float:
    from mxnet import autograd, gluon

    mx.random.seed(1)
    store = mx.kv.create("dist_sync")
    first = store.rank == 0
    (images, labels), (test_images, test_labels) = load_data(mx, store.rank, store.num_workers)

    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(64, activation="relu"), gluon.nn.Dense(10))
    net.initialize(mx.init.Xavier())
    net(images[:1])  # the first call shapes the parameters
    checkpoint = Checkpoint(options.checkpoint_dir)
    begin = agree_on_start(mx, store, net, checkpoint.load(net) if first else 0)
    trainer = gluon.Trainer(
        net.collect_params(), "sgd", {"learning_rate": options.learning_rate}, kvstore=store
    )
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()

    def accuracy() -> float:
        return float((net(test_images).argmax(axis=1) == test_labels).mean().asscalar())

    size = min(options.batch_size, len(labels))
    steps_per_epoch = options.steps_per_epoch or len(labels) // size
    print(
        f"worker {store.rank} of {store.num_workers}: {len(labels)} examples, from step {begin} "
        f"to {options.epochs * steps_per_epoch}",
        flush=True,
    )
    measured = accuracy()
    for step in range(begin, options.epochs * steps_per_epoch):
        started = time.monotonic()
        offset = step * size % (len(labels) - size + 1)
        with autograd.record():
            loss = loss_of(net(images[offset : offset + size]), labels[offset : offset + size])
        loss.backward()
        trainer.step(size * store.num_workers)
        mean_loss = float(loss.mean().asscalar())

        done = step + 1
        epoch = done // steps_per_epoch
        epoch_ends = done % steps_per_epoch == 0
        if epoch_ends:
            measured = accuracy()
            print(f"epoch={epoch} step={done} loss={mean_loss:.4f} accuracy={measured:.4f}", flush=True)
        if first:
            progress.report(epoch=epoch, step=done, loss=mean_loss, accuracy=measured)
            if epoch_ends or termination.requested.is_set():
                checkpoint.save(net, done)
            if (
                termination.requested.is_set()
            ):  # the others go on until this worker is missing, then they end too
                print(f"terminated after step {done}", flush=True)
                os._exit(TERMINATED)
        time.sleep(max(0.0, started + options.step_seconds - time.monotonic()))
    return measured


def main() -> None:
    options = parse_arguments()
    progress = dl2_runtime.progress.start()
    termination = Termination(options.grace_seconds)
    if os.environ.get("DMLC_ROLE") != "scheduler":
        await_name(os.environ.get("DMLC_PS_ROOT_URI"), options.rendezvous_seconds)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers share a machine; this network is tiny
    import mxnet as mx  # the scheduler and the servers stay in here until the job ends

    accuracy = train(mx, options, progress, termination)
    progress.close()
    print(f"final accuracy={accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
