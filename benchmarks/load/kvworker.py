"""One MXNet worker of a data-parallel job without a model: Gluon's Trainer over parameters of given sizes.

Run by benchmarks/runtime.py with a Python that has MXNet, for `dist_sync` (ps-lite) and `dl2` alike. Prints a line of
JSON for every step: when it ended (monotonic seconds) and its number.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator

Shape = tuple[int, ...]


def resnet50() -> Iterator[Shape]:
    """Shapes of ResNet-50's parameters (He et al. 2016): 25.6 million numbers in 161 keys."""
    yield from ((64, 3, 7, 7), (64,), (64,))
    inside = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for shape in ((width, inside, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                yield from (shape, (shape[0],), (shape[0],))
            if block == 0:
                yield from ((4 * width, inside, 1, 1), (4 * width,), (4 * width,))
            inside = 4 * width
    yield from ((1000, 2048), (1000,))


SETS: dict[str, Callable[[], Iterator[Shape]]] = {
    "mlp": lambda: iter(((128, 784), (128,), (64, 128), (64,), (10, 64), (10,))),
    "resnet50": resnet50,
    "1gb": lambda: iter([(5000, 5000)] * 10),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=["dl2", "dist_sync"], required=True)
    parser.add_argument("--set", choices=list(SETS), required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.store == "dl2":
        import dl2_runtime.mxnet  # noqa: F401
    import mxnet as mx
    from mxnet import gluon

    parameters = gluon.ParameterDict()
    for number, shape in enumerate(SETS[options.set]()):
        parameters.get(f"p{number}", shape=shape, init=mx.init.Constant(0.5))
    parameters.initialize()
    for parameter in parameters.values():
        parameter.grad()[:] = 0.001
    store = mx.kv.create(options.store)
    optimizer = {"learning_rate": 0.01, "momentum": 0.9}
    trainer = gluon.Trainer(parameters, "sgd", optimizer, kvstore=store, update_on_kvstore=True)
    done = store.join(trainer) if options.store == "dl2" else 0
    while done < options.steps:
        trainer.step(1, ignore_stale_grad=True)
        mx.nd.waitall()
        done += 1
        print(json.dumps({"step": done, "at": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main()
