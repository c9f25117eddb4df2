"""What a server keeps of one chunk: its value, the optimizer's arrays and the sum of the round under way."""

from __future__ import annotations

from typing import Any

import numpy as np

from dl2_runtime import wire
from dl2_runtime.optimizers import Rule, State, apply
from dl2_runtime.view import DTYPES

Array = Any


class Buffers:
    """Used memory for the next payload: a fresh megabyte costs more to map and to fault in than to receive."""

    def __init__(self, limit: int = 256 << 20) -> None:
        self._free: dict[int, list[Array]] = {}
        self._limit, self._held = limit, 0

    def take(self, nbytes: int) -> Array:
        """An array of exactly `nbytes` bytes (uint8)."""
        stack = self._free.get(nbytes)
        if stack:
            self._held -= nbytes
            return stack.pop()
        return np.empty(nbytes, dtype=np.uint8)

    def give(self, buffer: Array) -> None:
        if self._held + buffer.nbytes <= self._limit:
            self._held += buffer.nbytes
            self._free.setdefault(buffer.nbytes, []).append(buffer)

    def reserve(self, nbytes: int) -> None:
        """Have one more buffer of this size at hand, with its pages in memory."""
        buffer = np.empty(nbytes, dtype=np.uint8)
        buffer.fill(0)
        self._held += nbytes
        self._free.setdefault(nbytes, []).append(buffer)


class Slot:
    """A chunk's state. `version` counts the rounds it has been through (the step it is the value for)."""

    __slots__ = (
        "dtype",
        "got",
        "key",
        "number",
        "pulls",
        "result",
        "round",
        "state",
        "sum",
        "updates",
        "value",
        "value_at",
        "version",
        "waiting",
    )

    def __init__(self, number: int, key: str, dtype: str) -> None:
        self.number, self.key, self.dtype = number, key, dtype
        self.value: Array | None = None
        self.state: State = {}
        self.version = -1
        # The step that the value is for: behind `version` where workers keep the values, ahead of it where they push
        # asynchronously.
        self.value_at = -1
        self.updates = 0
        self.sum: Array | None = None  # flat, of this dtype
        self.round = -1
        self.got: set[str] = set()  # the workers whose gradients are in the sum
        self.waiting: list[wire.Link] = []
        self.pulls: list[tuple[wire.Link, int]] = []
        self.result: Array | None = None  # with rule "sum": the last round's sum

    def add(self, worker: str, step: int, grad: Array) -> bool:
        """Take a gradient into round `step`; true if the array itself is now the sum and must not be used again."""
        if self.sum is None:
            self.sum, self.round = grad, step
        elif step != self.round:
            raise wire.WireError(f"{worker} pushes chunk {self.number} for round {step} during {self.round}")
        else:
            np.add(self.sum, grad, out=self.sum)
            self.got.add(worker)
            return False
        self.got.add(worker)
        return True

    def finish(self, rule: Rule, buffers: Buffers) -> Array:
        """Apply the round's sum; returns what workers get."""
        assert self.sum is not None
        total, self.sum = self.sum, None
        self.got.clear()
        self.updates += 1
        self.version = self.round + 1
        if rule.name == "sum":
            old, self.result = self.result, total
            if old is not None:
                buffers.give(old.view(np.uint8))
            return total
        assert self.value is not None
        self.value_at = self.version
        apply(rule, self.key, self.value, total, self.state, self.updates)
        buffers.give(total.view(np.uint8))
        return self.value

    def drop(self, buffers: Buffers) -> None:
        """Forget the round under way."""
        if self.sum is not None:
            buffers.give(self.sum.view(np.uint8))
        self.sum = None
        self.got.clear()
        self.waiting.clear()

    @property
    def parts(self) -> list[tuple[str, Array]]:
        """Everything to hand over or to save, by name; the value comes first."""
        assert self.value is not None
        return [("", self.value), *sorted(self.state.items())]

    def describe(self) -> dict[str, Any]:
        return {
            "chunk": self.number,
            "key": self.key,
            "dtype": self.dtype,
            "version": self.version,
            "value_at": self.value_at,
            "updates": self.updates,
            "parts": [name for name, _ in self.parts],
        }

    @classmethod
    def described(cls, body: dict[str, Any]) -> Slot:
        """An empty slot as `describe` put it. Raises ValueError if that makes no sense."""
        if body["dtype"] not in DTYPES or not all(
            type(body[n]) is int for n in ("chunk", "version", "value_at", "updates")
        ):
            raise ValueError(f"a chunk described as {body!r:.80}")
        slot = cls(body["chunk"], str(body["key"]), body["dtype"])
        slot.version, slot.value_at, slot.updates = body["version"], body["value_at"], body["updates"]
        return slot


def bytes_of(array: Array) -> memoryview:
    """The memory of an array, flat. Raises ValueError if it would have to be copied."""
    if not array.size:
        return memoryview(b"")
    try:
        return memoryview(array).cast("B")
    except TypeError:
        raise ValueError(
            "arrays must be C-contiguous: they are sent from, and received into, where they are"
        ) from None
