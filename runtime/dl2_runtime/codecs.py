"""Gradient compression on the way to the servers: none, fp16, int8 with residual, or MXNet's 2 bits with residual.

With a residual each gradient is added to it; what is sent is taken off, the rest waits for a later round. Two bits: what
reaches the threshold is sent as +-threshold. int8: each chunk is sent as whole multiples, -127 to 127, of a scale of
its own, by which its largest number is 127. Values come back uncompressed, as in MXNet.
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

RAW, FP16, TWO_BIT, INT8 = range(4)
_NAMES = {"none": RAW, "fp16": FP16, "2bit": TWO_BIT, "int8": INT8}
_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8)
Array = Any


class Compressor:
    """A worker's side. Keeps a residual for each chunk, so a chunk's gradient must be encoded once a round."""

    def __init__(self, kind: str = "none", threshold: float = 0.5) -> None:
        if kind not in _NAMES:
            raise ValueError(f"gradient compression {kind!r:.40} is none of {', '.join(_NAMES)}")
        if not threshold > 0:
            raise ValueError(f"the threshold must be positive, not {threshold!r}")
        self.codec = _NAMES[kind]
        self._threshold = float(threshold)
        self._residual: dict[int, Array] = {}

    @classmethod
    def from_params(cls, params: Mapping[str, str | float]) -> Compressor:
        """From MXNet's `compression_params`, such as {"type": "2bit", "threshold": 0.5}."""
        unknown = set(params) - {"type", "threshold"}
        if unknown:
            raise ValueError(f"unknown compression parameters: {', '.join(sorted(unknown))}")
        return cls(str(params.get("type", "none")), float(params.get("threshold", 0.5)))

    def encode(self, chunk: int, grad: Array) -> Array:
        """The bytes to send for a flat gradient, as an array that nothing else will change."""
        if self.codec == FP16:
            return grad.astype(np.float16)
        residual = self._residual.get(chunk)
        if residual is None:
            residual = self._residual[chunk] = np.zeros_like(grad)
        residual += grad
        if self.codec == INT8:
            return _encode_int8(residual)
        up, down = residual >= self._threshold, residual <= -self._threshold
        residual[up] -= self._threshold
        residual[down] += self._threshold
        return pack(up, down, self._threshold)


def pack(up: Array, down: Array, threshold: float) -> Array:
    """Threshold (4 bytes), then four numbers a byte: 1 for +threshold, 2 for -threshold."""
    codes = np.zeros(-(-up.size // 4) * 4, dtype=np.uint8)
    codes[: up.size] = up
    codes[: up.size] += np.multiply(down, 2, dtype=np.uint8)
    packed = np.bitwise_or.reduce(codes.reshape(-1, 4) << _SHIFTS, axis=1).astype(np.uint8)
    return np.concatenate([np.array([threshold], dtype="<f4").view(np.uint8), packed])


def _encode_int8(residual: Array) -> Array:
    """Scale (4 bytes), then a byte a number; takes what is sent off the residual."""
    scale = np.array([np.abs(residual).max(initial=0) / 127], dtype="<f4")
    whole = np.clip(np.rint(residual / (scale[0] or 1)), -127, 127).astype(np.int8)
    residual -= np.multiply(whole, scale[0], dtype=residual.dtype)
    return np.concatenate([scale.view(np.uint8), whole.view(np.uint8)])


def decode(codec: int, payload: Array, dtype: str, size: int, out: Array | None = None) -> Array:
    """The flat gradient of `size` numbers in a payload (uint8). Raises ValueError if the payload has another length."""
    if codec == RAW:
        grad = payload.view(dtype)
    elif codec == FP16:
        grad = payload.view(np.float16).astype(dtype)
    elif codec == TWO_BIT and payload.nbytes == 4 + -(-size // 4):
        threshold = payload[:4].view("<f4")[0]
        codes = ((payload[4:, None] >> _SHIFTS) & 3).reshape(-1)[:size]
        grad = np.array([0, threshold, -threshold, 0], dtype=dtype)[codes]
    elif codec == INT8 and payload.nbytes == 4 + size:
        grad = np.multiply(payload[4:].view(np.int8), payload[:4].view("<f4")[0], dtype=dtype)
    else:
        raise ValueError(f"codec {codec} with {payload.nbytes} bytes for {size} numbers")
    if grad.size != size:
        raise ValueError(f"{grad.size} numbers where {size} were announced")
    if out is None:
        return grad
    np.copyto(out, grad)
    return out
