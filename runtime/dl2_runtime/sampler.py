"""Which examples this worker takes, when the number of workers changes while the global batch does not."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np

from dl2_runtime.worker import Position


class ElasticSampler:
    """Batches of indices, one for each round; usable as a Gluon DataLoader's `batch_sampler` (with num_workers=0).

    Round t trains on the t-th global batch of `global_batch` examples, in an order that `seed` and the epoch fix, and
    each worker takes a contiguous share of it that follows from its rank. So every example of a global batch is used
    exactly once, by whomever, and the result does not depend on how many workers there are. The last, incomplete batch
    of an epoch is left out. `member` has `position()`: a Worker, or the KVStore.

    Iterating goes on from wherever the job stands, up to the end of its epoch; `len()` is the batches in an epoch.
    """

    def __init__(
        self, member: Any, examples: int, global_batch: int, seed: int = 0, shuffle: bool = True
    ) -> None:
        if not 0 < global_batch <= examples:
            raise ValueError(f"a global batch of {global_batch} out of {examples} examples")
        self._member = member
        self.examples, self.global_batch = examples, global_batch
        self._seed, self._shuffle = seed, shuffle
        self._order: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self.examples // self.global_batch

    def batch(self, position: Position) -> list[int]:
        """The indices of one worker's share of one round; it may be empty if there are more workers than examples."""
        epoch, number = divmod(position.step, len(self))
        if self._order is None or self._order[0] != epoch:
            indices = np.arange(self.examples)
            if self._shuffle:
                np.random.RandomState((self._seed + epoch) % 2**32).shuffle(indices)
            self._order = epoch, indices
        first = number * self.global_batch
        low = self.global_batch * position.rank // position.workers
        high = self.global_batch * (position.rank + 1) // position.workers
        return [int(index) for index in self._order[1][first + low : first + high]]

    def __iter__(self) -> Iterator[list[int]]:
        position = self._member.position()
        epoch = position.step // len(self)
        while position.step // len(self) == epoch:
            yield self.batch(position)
            following = self._member.position()
            if following.step == position.step:
                raise RuntimeError(
                    f"round {position.step} was given a batch, but no gradient was exchanged for it"
                )
            position = following
