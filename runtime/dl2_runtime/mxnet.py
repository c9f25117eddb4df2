"""MXNet's plug-in: `import dl2_runtime.mxnet`, then `kv = mx.kv.create("dl2")` and an unchanged Gluon Trainer.

    import dl2_runtime.mxnet                       # coordinators and servers serve in here, and the process ends
    kv = mx.kv.create("dl2")
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1}, kvstore=kv)
    kv.join(trainer)                               # now the parameters are the job's, also for one that joins late
    for indices in ElasticSampler(kv, examples, global_batch): ...

Gluon hands over one parameter at a time; the store collects them and exchanges all of a step in one round, which runs
inside the call for the last one. Dense arrays only: sparse gradients need MXNet's own store. With
`update_on_kvstore=True` (the default) servers run SGD or Adam and move its state when they change; with False they
only add up, and the state (momentum) of the local optimizer starts from nothing in a worker that joins late.

The Module API, with updates on the servers: `module.fit(..., kvstore=kv)`, where `optimizer_params` has "rescale_grad",
one over the global batch. A worker that may come late, or whose module has `fixed_param_names`, does first what `fit`
does first:

    module.bind(...); module.init_params(...); module.init_optimizer(kvstore=kv, ...)
    module.fit(..., kvstore=kv, begin_epoch=kv.join(module) // rounds_in_an_epoch)
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import sys
from typing import Any, Mapping

from dl2_runtime.roles import enter

enter()

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402

from dl2_runtime.codecs import Compressor  # noqa: E402
from dl2_runtime.optimizers import Rule  # noqa: E402
from dl2_runtime.worker import Position, Worker  # noqa: E402

log = logging.getLogger("dl2_runtime.mxnet")


def rule_of(optimizer: Any, keys: list[str]) -> Rule:
    """What servers do in place of an MXNet optimizer. Raises ValueError for one that they do not know."""
    known = {mx.optimizer.SGD: "sgd", mx.optimizer.Adam: "adam"}
    name = known.get(type(optimizer))
    if name is None or getattr(optimizer, "multi_precision", False):
        raise ValueError(
            f"servers run SGD and Adam without multi_precision, not {type(optimizer).__name__}: "
            "pass update_on_kvstore=False to the Trainer"
        )
    lr, wd = float(optimizer.learning_rate), float(optimizer.wd)
    index = {
        key: int(key) if key.isdigit() else key for key in keys
    }  # Gluon numbers parameters, a Module names them
    lrs = {key: float(optimizer._get_lr(index[key])) for key in keys}
    wds = {key: float(optimizer._get_wd(index[key])) for key in keys}
    options: dict[str, Any] = {"momentum": float(optimizer.momentum)} if name == "sgd" else {}
    if name == "adam":
        options = {field: float(getattr(optimizer, field)) for field in ("beta1", "beta2", "epsilon")}
    return Rule(
        name,
        lr=lr,
        wd=wd,
        rescale_grad=float(optimizer.rescale_grad),
        clip_gradient=float(optimizer.clip_gradient or 0.0),
        lr_mult={key: each / lr for key, each in lrs.items() if lr and each != lr},
        wd_mult={key: each / wd for key, each in wds.items() if wd and each != wd},
        **options,
    )


@mx.kvstore.KVStoreBase.register
class DL2(mx.kvstore.KVStoreBase):  # type: ignore[misc]
    """The store that `mx.kv.create("dl2")` returns. Raises what dl2_runtime.Worker raises (Left, RuntimeLost)."""

    def __init__(self) -> None:
        self._worker = Worker.connect()
        self._worker.leave_on_sigterm()
        atexit.register(self._at_exit)
        self._optimizer: Any | None = None
        self._outs: dict[str, list[Any]] = {}  # the arrays that hold a parameter, one per device
        self._values: dict[
            str, Any
        ] = {}  # what the servers have sent: the memory of the first of these, or a copy
        self._grads: dict[str, Any] = {}  # what the servers were sent last
        self._with_grad: list[str] = []
        self._queued: dict[str, tuple[list[Any], list[Any] | None]] = {}
        self._fixed: frozenset[str] = frozenset()  # of a Module
        self._joined = False

    # -- what a training script uses --

    def join(self, model: Any = None) -> int:
        """Become a member now and fill the parameters with the job's values; returns the next step's number.

        `model` is the Trainer, or the Module after its `init_optimizer`; it may be left out once the parameters are
        broadcast. A store that is not told to joins in the first step, which then has no gradient of the right
        parameters and gives none.
        """
        if isinstance(model, mx.gluon.Trainer):
            model._init_kvstore() if not model._kv_initialized else None
            model._init_params() if model._params_to_init else None
        self._fixed = frozenset(getattr(model, "_fixed_param_names", None) or ())
        if not self._joined:
            self._join()
        return self._worker.step

    def position(self) -> Position:
        """Which share of which global batch is ours; for ElasticSampler. Waits at a scaling clock. Raises Left."""
        if not self._joined:
            self._join()
        return self._worker.position()

    @property
    def step(self) -> int:
        return self._worker.step

    @property
    def worker(self) -> Worker:
        """The numpy interface, for checkpoint() and leave()."""
        return self._worker

    def close(self) -> None:
        """Say that this worker has finished its training."""
        self._worker.close()

    # -- what MXNet calls --

    def broadcast(self, key: Any, value: Any, out: Any, priority: int = 0) -> None:
        name, outs = str(key), out if isinstance(out, list) else [out]
        source = value[0] if isinstance(value, list) else value
        if source.stype != "default":
            raise ValueError(f"parameter {name} is {source.stype}: only dense arrays are elastic")
        for array in outs:
            if array is not source:
                array[:] = source
        self._outs[name] = outs
        if outs[0].grad is not None:
            self._with_grad.append(name)
        if self._joined:  # a parameter whose shape only now is known
            self._init([name])

    def init(self, key: Any, value: Any) -> None:
        """What a Module calls where it would update the parameters itself, or has sparse ones."""
        raise NotImplementedError(
            f"parameter {key}: a Module's parameters are dense and updated by the servers; "
            "is MXNET_UPDATE_ON_KVSTORE set?"
        )

    @property
    def _trained(self) -> list[str]:
        """The parameters that a round exchanges. A Module keeps gradients elsewhere: there it says which have none."""
        return self._with_grad or [name for name in self._outs if name not in self._fixed]

    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0) -> None:
        name = str(key)
        if name in self._queued or name not in self._trained:
            missing = ", ".join(sorted(set(self._trained) - set(self._queued))[:5])
            raise RuntimeError(
                f"a step must exchange every parameter that has a gradient, once; {name} came "
                f"{'again' if name in self._queued else 'unannounced'}, still missing: {missing} (of a Module with "
                "fixed_param_names? call join(module) first)"
            )
        grads = value if isinstance(value, list) else [value]
        outs = out if out is None or isinstance(out, list) else [out]
        if outs is not None:
            self._outs[name] = outs
        self._queued[name] = grads, outs
        if len(self._queued) == len(self._trained):
            self._round()

    def set_optimizer(self, optimizer: Any) -> None:
        rule_of(optimizer, [])
        self._optimizer = optimizer
        self._worker.rule = Rule(
            "sgd"
        )  # decides who holds the parameters; the numbers are those of each round

    def set_gradient_compression(self, compression_params: Mapping[str, Any]) -> None:
        self._worker.compressor = Compressor.from_params(compression_params)

    @staticmethod
    def is_capable(capability: str) -> bool:
        return bool(capability.lower() == mx.kvstore.KVStoreBase.OPTIMIZER)

    def save_optimizer_states(self, fname: str, dump_optimizer: bool = False) -> None:
        raise NotImplementedError("optimizer states are in the job's checkpoints: set DL2_CHECKPOINT_DIR")

    def load_optimizer_states(self, fname: str) -> None:
        raise NotImplementedError("optimizer states are in the job's checkpoints: set DL2_CHECKPOINT_DIR")

    @property
    def type(self) -> str:
        return "dl2"  # no "dist": the Trainer would complain when the batch size changes

    @property
    def rank(self) -> int:
        """Among the present workers; before joining, the pod's number."""
        return self._worker.rank if self._joined else self._worker.settings.index

    @property
    def num_workers(self) -> int:
        return self._worker.workers if self._joined else self._worker.settings.founding_workers

    # -- one round --

    def _join(self) -> None:
        if not self._outs:
            raise RuntimeError(
                "no parameter is known yet: call join(trainer) before the first batch is asked for"
            )
        self._worker.refresh = self._refresh
        self._init(list(self._outs))
        self._joined = True

    def _init(self, names: list[str]) -> None:
        mx.nd.waitall()  # their first values may still be under way, and so may the memory that they will be in
        values = {name: _host(self._outs[name][0]) for name in names}
        self._values.update(values)
        self._worker.init(values)
        for name in names:
            _fill(self._outs[name], self._values[name])

    def _round(self) -> None:
        queued, self._queued = self._queued, {}
        late = not self._joined
        if late:
            self._join()
            late = self._worker.step > 0
        mx.nd.waitall()  # nothing reads or writes them any more; waiting for one after the other takes far longer
        grads = self._grads = {
            name: _total(grads, self._grads.get(name)) for name, (grads, _) in queued.items()
        }
        if late:
            log.warning(
                "joined at step %d without join(trainer): this step's gradient is left out", self._worker.step
            )
            grads = {name: np.zeros_like(grad) for name, grad in grads.items()}
        if self._optimizer is None:
            self._worker.pushpull(grads)
            for name, (arrays, outs) in queued.items():
                _fill(outs or arrays, grads[name])
            return
        self._optimizer.num_update = self._worker.step  # what learning-rate schedules go by
        rule = rule_of(self._optimizer, self._trained)
        if rule != self._worker.rule:
            self._worker.rule = rule
        values = self._refresh()
        self._worker.pushpull(grads, {name: values[name] for name in grads})
        for name in grads:
            _fill(self._outs[name], values[name])

    def _refresh(self) -> Mapping[str, Any]:
        """The parameters as they are now: MXNet may have laid an array out anew, or its own optimizer changed it."""
        mx.nd.waitall()
        for name, outs in self._outs.items():
            value = self._values[name]
            if self._optimizer is None or isinstance(value.base, _Memory):
                self._values[name] = _host(outs[0], value)
        return self._values

    def _at_exit(self) -> None:
        self._worker.close(finished=getattr(sys, "last_type", None) is None)


class _Memory:
    """The memory of a dense NDArray, for numpy; keeps the array alive."""

    def __init__(self, array: Any) -> None:
        self.array, self.address = array, _address(array)
        self.__array_interface__ = {
            "data": (self.address, False),
            "shape": array.shape,
            "typestr": np.dtype(array.dtype).str,
            "version": 3,
        }


def _address(array: Any) -> int:
    """Where an array in main memory is, in MXNet's ordinary layout."""
    pointer = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return pointer.value or 0


def _host(array: Any, before: Any = None) -> Any:
    """An array for numpy: its own memory where that is possible, for a copy takes longer than sending it.

    `before` is what this gave for the parameter last time: mostly it still holds.
    """
    memory = getattr(before, "base", None)
    if isinstance(memory, _Memory) and memory.array is array and memory.address == _address(array):
        return before
    if array.stype != "default":
        raise ValueError(f"a {array.stype} array: only dense ones are elastic")
    if array.context.device_type.startswith("cpu"):
        return np.asarray(_Memory(array))
    return np.ascontiguousarray(array.asnumpy())


def _total(arrays: list[Any], before: Any) -> Any:
    if len(arrays) == 1:
        return _host(arrays[0], before)
    return sum((array.asnumpy() for array in arrays[1:]), arrays[0].asnumpy())


def _fill(arrays: list[Any], value: Any) -> None:
    for array in arrays:
        if getattr(value.base, "array", None) is not array:
            array[:] = value
