"""Who takes part in a job and which server keeps which chunk. Pure: no sockets, no clocks.

A parameter is cut in chunks of at most CHUNK elements; a chunk never spans two parameters, so any subset of the
parameters can be exchanged. Chunks are numbered in the order in which their parameters were declared, which every
member derives alike from the list of parameters.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Mapping, Sequence

CHUNK = 256 * 1024  # elements: 1 MiB of float32 stays in a core's own cache between socket and sum
PIECES = 4  # a smaller parameter is cut in so many, to be shared out
MIN_CHUNK = 32 * 1024
LAYOUT = f"{CHUNK}/{PIECES}/{MIN_CHUNK}"  # how parameters are cut: checkpoints of another layout are not ours
BALANCED = 1.03  # a server this far above the mean load is left alone
DTYPES = ("float32", "float64", "float16")  # a frame's dtype is its position here
MAX_CHUNK_BYTES = 8 * CHUNK
ITEM_BYTES = {"float32": 4, "float64": 8, "float16": 2}


@dataclass(frozen=True)
class Key:
    """A parameter as workers declare it; `size` in elements."""

    name: str
    size: int
    dtype: str

    def to_json(self) -> list[Any]:
        return [self.name, self.size, self.dtype]

    @classmethod
    def from_json(cls, body: Sequence[Any]) -> Key:
        name, size, dtype = body
        if not isinstance(name, str) or type(size) is not int or size < 0 or dtype not in DTYPES:
            raise ValueError(
                f"parameter {name!r:.40} of {size!r:.20} x {dtype!r:.20}: names are strings, sizes "
                f"not negative and types one of {', '.join(DTYPES)}"
            )
        return cls(name, size, dtype)


@dataclass(frozen=True)
class Chunk:
    number: int
    key: str
    start: int  # element in the flat parameter
    size: int  # elements
    dtype: str

    @cached_property
    def nbytes(self) -> int:
        return self.size * ITEM_BYTES[self.dtype]

    @cached_property
    def code(self) -> int:
        """The dtype as frames have it."""
        return DTYPES.index(self.dtype)

    @cached_property
    def within(self) -> slice:
        """Which bytes of the parameter."""
        first = self.start * ITEM_BYTES[self.dtype]
        return slice(first, first + self.nbytes)


class Table:
    """All chunks of a job, by number and by parameter."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self.keys: dict[str, Key] = {}
        self.chunks: list[Chunk] = []
        self.of: dict[str, list[Chunk]] = {}
        self.add(keys)

    def add(self, keys: Sequence[Key]) -> None:
        """Append parameters. Raises ValueError if one is already here with another size or type."""
        for key in keys:
            known = self.keys.setdefault(key.name, key)
            if known != key:
                raise ValueError(
                    f"parameter {key.name!r} is {known.size} x {known.dtype}, not {key.size} x {key.dtype}"
                )
            if key.name not in self.of:
                self.of[key.name] = list(self._cut(key))
                self.chunks.extend(self.of[key.name])

    def _cut(self, key: Key) -> list[Chunk]:
        length = min(CHUNK, max(MIN_CHUNK, -(-key.size // PIECES)))
        first = len(self.chunks)
        return [
            Chunk(first + n, key.name, start, min(length, key.size - start), key.dtype)
            for n, start in enumerate(range(0, key.size, length))
        ]

    def to_json(self) -> list[list[Any]]:
        return [key.to_json() for key in self.keys.values()]


@dataclass(frozen=True)
class View:
    """The members from round `step` (the scaling clock) on. A worker's rank is its position in `workers`."""

    version: int = 0
    step: int = 0
    workers: tuple[str, ...] = ()
    servers: Mapping[str, str] = field(default_factory=dict)  # id -> host:port
    owners: tuple[str, ...] = ()  # by chunk number

    def to_json(self) -> dict[str, Any]:
        names = list(self.servers)
        place = {name: position for position, name in enumerate(names)}
        return {
            "version": self.version,
            "step": self.step,
            "workers": list(self.workers),
            "servers": dict(self.servers),
            "order": names,
            "owners": [place[owner] for owner in self.owners],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> View:
        names = body["order"]
        return cls(
            int(body["version"]),
            int(body["step"]),
            tuple(body["workers"]),
            dict(body["servers"]),
            tuple(names[position] for position in body["owners"]),
        )


def assign(
    sizes: Sequence[int], owners: Sequence[str | None], servers: Sequence[str], balance: bool = True
) -> tuple[str, ...]:
    """Place chunks (`sizes` in bytes, by number) on `servers`, moving as few bytes as will balance them.

    `owners` says where each chunk is now (None, or a server that is gone: it must move anyway). Homeless chunks go,
    largest first, to whoever has least; then the fullest gives to the emptiest until it is within BALANCED of the mean.
    Without `balance` only the homeless move.
    """
    if not servers:
        raise ValueError("there is no server to keep the parameters")
    load = dict.fromkeys(servers, 0)
    result: list[str | None] = [owner if owner in load else None for owner in owners]
    result.extend([None] * (len(sizes) - len(result)))
    for number, owner in enumerate(result):
        if owner is not None:
            load[owner] += sizes[number]
    heap = [(amount, position) for position, amount in enumerate(load.values())]
    heapq.heapify(heap)
    homeless = [number for number, owner in enumerate(result) if owner is None]
    for number in sorted(homeless, key=lambda n: -sizes[n]):
        amount, position = heap[0]
        result[number] = servers[position]
        load[servers[position]] += sizes[number]
        heapq.heapreplace(heap, (amount + sizes[number], position))
    if balance:
        _balance(sizes, result, load)
    return tuple(owner for owner in result if owner is not None)


def _balance(sizes: Sequence[int], result: list[str | None], load: dict[str, int]) -> None:
    mean = sum(load.values()) / len(load)
    held: dict[str, list[int]] = {server: [] for server in load}
    for number in sorted(range(len(sizes)), key=lambda n: sizes[n]):
        owner = result[number]
        assert owner is not None
        held[owner].append(number)  # smallest first
    while True:
        giver, taker = max(load, key=lambda s: load[s]), min(load, key=lambda s: load[s])
        if load[giver] <= BALANCED * mean:
            return
        # The largest chunk that leaves the giver at or above the mean, else the smallest; it must help.
        fitting = [n for n in held[giver] if sizes[n] <= load[giver] - mean] or held[giver][:1]
        number = fitting[-1]
        if not 0 < sizes[number] < load[giver] - load[taker]:
            return
        held[giver].remove(number)
        held[taker].append(number)
        held[taker].sort(key=lambda n: sizes[n])
        load[giver] -= sizes[number]
        load[taker] += sizes[number]
        result[number] = taker
