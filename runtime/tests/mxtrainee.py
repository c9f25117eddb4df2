"""A worker that trains through MXNet, for the tests: Gluon's Trainer or a Module, on a dl2 store or without any.

Without a store one process computes whole batches and MXNet's own optimizer updates: what a job must come to.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from dl2_runtime import ElasticSampler
from dl2_runtime.worker import Position

EXAMPLES, BATCH, EPOCHS, THRESHOLD = 120, 24, 6, 0.5


class Alone:
    """The one worker of a training without a store; counts rounds as a store does."""

    step = 0

    def position(self) -> Position:
        return Position(self.step, 0, 1)


def data():
    random = np.random.RandomState(7)
    features = random.rand(EXAMPLES, 12).astype("float32")
    return features, (features @ random.rand(12, 3) + 0.5).astype("float32")


def initial():
    random = np.random.RandomState(3)
    return {
        name: mx.nd.array(random.rand(*shape) - 0.5)
        for name, shape in (("hidden", (16, 12)), ("output", (3, 16)))
    }


def quantise(grad, residual) -> None:
    """MXNet's rule for two bits, in place."""
    residual += grad
    sent = THRESHOLD * (residual >= THRESHOLD) - THRESHOLD * (residual <= -THRESHOLD)
    residual -= sent
    grad[:] = sent


def with_gluon(options, store, member) -> dict:
    net, loss_of = gluon.nn.HybridSequential(prefix=""), gluon.loss.L2Loss()
    net.add(gluon.nn.Dense(16, activation="tanh", use_bias=False, in_units=12))
    net.add(gluon.nn.Dense(3, use_bias=False, in_units=16))
    net.initialize()
    parameters = dict(zip(initial(), (net[n].weight for n in range(2))))
    for name, value in initial().items():
        parameters[name].set_data(value)
    compressed = {"type": "2bit", "threshold": THRESHOLD} if options.compressed else None
    trainer = gluon.Trainer(
        net.collect_params(),
        options.optimizer,
        options.parameters,
        kvstore=store,
        compression_params=compressed if store else None,
    )
    if store:
        store.join(trainer)
    features, targets = data()
    residuals = {name: np.zeros(value.shape, "float32") for name, value in initial().items()}
    sampler = ElasticSampler(member, EXAMPLES, BATCH)
    while member.step < EPOCHS * len(sampler):
        for indices in sampler:
            time.sleep(options.seconds)
            with autograd.record():
                loss = loss_of(net(mx.nd.array(features[indices])), mx.nd.array(targets[indices])).sum()
            loss.backward()
            if compressed and not store:
                for name, residual in residuals.items():
                    grad = parameters[name].grad().asnumpy()
                    quantise(grad, residual)
                    parameters[name].grad()[:] = grad
            trainer.step(BATCH)
            if not store:
                member.step += 1
            if member.step == EPOCHS * len(sampler):
                break
    return {name: parameter.data().asnumpy() for name, parameter in parameters.items()}


class Shares(mx.io.DataIter):
    """A Module's batches: this worker's shares of the rounds up to the end of the epoch."""

    def __init__(self, member, seconds: float) -> None:
        super().__init__(BATCH)
        self.sampler, self._member, self._seconds = ElasticSampler(member, EXAMPLES, BATCH), member, seconds
        self.provide_data = [mx.io.DataDesc("data", (BATCH, 12))]
        self.provide_label = [mx.io.DataDesc("label", (BATCH, 3))]

    def __iter__(self):
        features, targets = data()
        for indices in self.sampler:
            time.sleep(self._seconds)
            yield mx.io.DataBatch([mx.nd.array(features[indices])], [mx.nd.array(targets[indices])])
            if isinstance(self._member, Alone):
                self._member.step += 1

    def reset(self) -> None:
        """Iterating always goes on from where the job stands."""


def with_module(options, store, member) -> dict:
    symbol = mx.sym.Variable("data")
    symbol = mx.sym.FullyConnected(symbol, num_hidden=16, no_bias=True, weight=mx.sym.Variable("hidden"))
    symbol = mx.sym.Activation(symbol, act_type="tanh")
    symbol = mx.sym.FullyConnected(symbol, num_hidden=3, no_bias=True, weight=mx.sym.Variable("output"))
    symbol = mx.sym.LinearRegressionOutput(symbol, mx.sym.Variable("label"))
    module = mx.mod.Module(symbol, label_names=["label"], fixed_param_names=options.fixed)
    batches = Shares(member, options.seconds)
    how = {
        "kvstore": store,
        "optimizer": options.optimizer,
        "optimizer_params": {**options.parameters, "rescale_grad": 1 / BATCH},
    }
    begin = 0
    if options.join and store:
        module.bind(batches.provide_data, batches.provide_label)
        module.init_params(arg_params=initial())
        module.init_optimizer(**how)
        begin = store.join(module) // len(batches.sampler)
    module.fit(batches, eval_metric="mse", arg_params=initial(), begin_epoch=begin, num_epoch=EPOCHS, **how)
    return {name: value.asnumpy() for name, value in module.get_params()[0].items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--api", choices=["gluon", "module"], default="gluon")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--parameters", type=json.loads, default={"learning_rate": 0.1})
    parser.add_argument("--compressed", action="store_true")
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--fixed", nargs="*")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    store = None
    if not options.alone:
        import dl2_runtime.mxnet  # noqa: F401

        store = mx.kv.create("dl2")
    train = {"gluon": with_gluon, "module": with_module}[options.api]
    np.savez(str(options.out), **train(options, store, store or Alone()))


if __name__ == "__main__":
    main()
