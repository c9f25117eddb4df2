"""Envelope: whole shapes from the upper concave hull of a concave value of speed. The strongest heuristic here.

Per job, shapes are reduced to those that are fastest for their cost; over cost, the value

    (remaining / vmax)^(1/4) * sat(v / remaining)^(1/2),   sat(x) = x up to 1, then 2 - 1/x

(v and vmax in epochs an interval; sat: what runs out of work early frees its nodes early) is replaced by its
upper concave hull, and one global greedy walks the hulls by slope. For separable concave values and one scarce
resource this greedy is optimal up to the last step (Fox, "Discrete optimization via marginal analysis", 1966); a
step may be a jump over many workers and servers at once, which single-step rules (Optimus, EuroSys 2018) miss.
Concave values keep every job running. Ours; found by a study on measured speeds of parameter-server training.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from dl2.scaling.beliefs import Known, Measured, Source, TrueSpeeds
from dl2.scaling.bounds import in_order
from dl2.scaling.interface import Observation, Scale
from dl2.scaling.lattice import Floats, Ints
from dl2.scaling.room import Room
from dl2.scaling.table import Table

LENGTH, CONCAVITY = 0.25, 0.50
_SHARPNESS = 6.0  # how much more a resource costs that is nearly used up
_WIDTH, _LEAST_WIDTH, _SAMPLES = 1.5, 0.3, 64.0  # deviations: at first, in the end, and samples to halve them
_SCOUTS, _SCOUTING, _FOLLOWING = 4, 1.5, 0.2  # one in so many alike jobs is a scout; factors on the optimism
_PATIENCE, _LEAST_PART = 50.0, 0.4  # intervals ahead that are worth all of the optimism; the least part of it
_MOST_HOPE = 0.5  # log of the largest factor that optimism puts on a speed


class Envelope:
    """`optimism`: deviations added to the log of the believed speed where little was measured yet (capped).

    Exploration by optimism in the face of uncertainty (Auer et al., 2002); 0 turns it off. `length`, `concavity`:
    the exponents of the value.
    """

    name = "envelope"

    def __init__(
        self,
        optimism: float = 1.0,
        source: Source | None = None,
        length: float = LENGTH,
        concavity: float = CONCAVITY,
    ) -> None:
        self._optimism, self._length, self._concavity = optimism, length, concavity
        self._source = source or Measured()

    def allocate(self, observation: Observation) -> dict[str, Scale]:
        beliefs = self._source.beliefs(observation)
        room = Room(observation)
        jobs = [job for job in in_order(observation.jobs) if job.id in beliefs and room.hosts(job)]
        table = Table(jobs, beliefs, room)
        speed = hopeful(table, np.full(len(table.jobs), self._optimism), observation.interval)
        values = value_of(table, speed, observation.interval, self._length, self._concavity)
        return spread_out(table, values, room)


class EnvelopeOracle(Envelope):
    """Envelope with the true speed function: a yardstick and a teacher, not a policy that anybody could run."""

    name = "envelope-oracle"

    def __init__(self, speeds: TrueSpeeds, length: float = LENGTH, concavity: float = CONCAVITY) -> None:
        super().__init__(0.0, Known(speeds), length, concavity)


def hopeful(table: Table, optimism: Floats, interval: float) -> Floats:
    """Upper confidence bound of the speeds (J, C), from each job's optimism (J,).

    What one job of a kind measures all of them know, so a few of them explore and the others use what is known. The
    sooner all of a kind are done, the less there is to gain by it.
    """
    optimism = optimism * np.clip(np.sqrt(_ahead(table, interval) / _PATIENCE), _LEAST_PART, 1.0)
    width = np.maximum(_LEAST_WIDTH, _WIDTH / (1.0 + table.samples / _SAMPLES))
    width = optimism * width * np.where(table.rank % _SCOUTS == 0, _SCOUTING, _FOLLOWING)
    return np.asarray(table.speed * np.exp(np.minimum(width[:, None] * table.deviation, _MOST_HOPE)))


def _ahead(table: Table, interval: float) -> Floats:
    """(J,): intervals of training that all jobs of the kind have before them, as fast as they are."""
    if not table.jobs:
        return np.zeros(0)
    now = table.speed[np.arange(len(table.jobs)), table.current]
    pace = np.where(table.held[:, 0] > 0, now, table.speed.max(axis=1)) * interval
    return np.asarray(np.bincount(table.kind, weights=table.left / np.maximum(pace, 1e-12))[table.kind])


def value_of(
    table: Table,
    speed: Floats,
    interval: float,
    length: Floats | float = LENGTH,
    concavity: Floats | float = CONCAVITY,
) -> Floats:
    """The value of each shape (J, C), from speeds in epochs a second. `length`, `concavity`: exponents, (J,)."""
    pace = np.maximum(speed * max(interval, 1e-9), 1e-12) / table.left[:, None]
    served = np.where(pace <= 1.0, pace, 2.0 - 1.0 / np.maximum(pace, 1.0))
    shortness = (1.0 / pace.max(axis=1, initial=1e-12)) ** length
    return np.asarray(shortness[:, None] * served ** np.reshape(concavity, (-1, 1)))


def spread_out(table: Table, values: Floats, room: Room) -> dict[str, Scale]:
    """Hand out shapes by hull slope. Twice: the second time costs count by how scarce the first found them."""
    weights: list[float] | None = None
    held: list[Scale] = []
    for last in (False, True):
        room.clear()
        prices = room.prices()
        if weights is not None:
            prices = [price * weight for price, weight in zip(prices, weights, strict=True)]
        held = _Walk(table, values, room, prices).held(fill=last)
        used = [
            1.0 - left / has if has else 0.0 for left, has in zip(room.cluster, room.capacity, strict=True)
        ]
        peak = max(used, default=0.0)
        if peak <= 0.0:
            break
        weights = [max((part / peak) ** _SHARPNESS, 1e-3) for part in used]
    return {job.id: scale for job, scale in zip(table.jobs, held, strict=True) if scale.workers}


class _Walk:
    """One greedy over all hulls."""

    def __init__(self, table: Table, values: Floats, room: Room, prices: Sequence[float]) -> None:
        self._table, self._values, self._room = table, values, room
        self._pods = [room.vectors(job) for job in table.jobs]
        self._held = [(0, 0)] * len(table.jobs)  # workers, servers
        # Costs are made positive, so that free pods sort too; padding costs more than there is.
        worker, server = (table.pods @ np.array(prices, dtype=float) + 1e-12).T
        cost = table.workers * worker[:, None] + table.servers * server[:, None]
        self._cost = np.where(table.workers > 0, cost, np.inf)

    def held(self, *, fill: bool) -> list[Scale]:
        """What each job gets. `fill`: whose next step does not fit gets the best shape that does."""
        shapes, slopes = hulls(self._values, self._cost)
        steps = self._steps(shapes)
        turns = self._turns()
        last = max(turns, default=0)
        heap = [(turns[i], -line[0], i, 0) for i, line in enumerate(slopes) if line]
        heapq.heapify(heap)
        blocked = []
        while heap:
            *_, i, at = heapq.heappop(heap)
            if not self._move(i, steps[i][at]):
                blocked.append(i)
            elif at + 1 < len(steps[i]):
                heapq.heappush(heap, (last, -slopes[i][at + 1], i, at + 1))
        if fill and blocked:
            self._squeeze(blocked)
        return [Scale(*held) for held in self._held]

    def _turns(self) -> list[int]:
        """When each job may start: the higher its priority, the sooner. All growth comes with the last to start."""
        priorities = sorted({job.priority for job in self._table.jobs}, reverse=True)
        turn = {priority: n for n, priority in enumerate(priorities)}
        return [turn[job.priority] for job in self._table.jobs]

    def _steps(self, shapes: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
        """(workers, servers) of many shapes at once."""
        rows = np.repeat(np.arange(len(shapes)), [len(line) for line in shapes])
        columns = np.fromiter(chain.from_iterable(shapes), np.int64, len(rows))
        workers, servers = self._table.workers[rows, columns], self._table.servers[rows, columns]
        all_ = zip(workers.astype(int).tolist(), servers.astype(int).tolist(), strict=True)
        return [list(islice(all_, len(line))) for line in shapes]

    def _move(self, i: int, to: tuple[int, int]) -> bool:
        (worker, server), held = self._pods[i], self._held[i]
        more, further = to[0] - held[0], to[1] - held[1]
        change = [w * more + s * further for w, s in zip(worker, server, strict=True)]
        if not self._room.fits(self._table.jobs[i], change):
            return False
        self._room.take(self._table.jobs[i], change)
        self._held[i] = to
        return True

    def _squeeze(self, blocked: Sequence[int]) -> None:
        """The next hull point did not fit: each takes the most valuable shape that does, if it is worth more.

        Worked out for all at once; that holds while nobody gives something back and the shape still fits.
        """
        given_back = False
        for i, best in zip(blocked, self._best_that_fit(blocked), strict=True):
            held = self._held[i]
            if given_back or (best and not self._move(i, best)):
                (anew,) = self._best_that_fit([i])
                if anew:
                    self._move(i, anew)
            given_back = given_back or self._held[i][0] < held[0] or self._held[i][1] < held[1]

    def _best_that_fit(self, jobs: Sequence[int]) -> list[tuple[int, int] | None]:
        """Of each of `jobs` the most valuable shape that it could have, None where it has nothing to win."""
        table, rows = self._table, np.array(jobs, dtype=np.int64)
        values, workers, servers = self._values[rows], table.workers[rows], table.servers[rows]
        held = np.array([self._held[i] for i in jobs])
        more, further = workers - held[:, :1], servers - held[:, 1:]
        limits = np.array([self._room.limits(table.jobs[i]) for i in jobs], dtype=float)
        possible = workers > 0
        for r in range(limits.shape[1]):
            change = more * table.pods[rows, 0, r, None] + further * table.pods[rows, 1, r, None]
            possible &= (change <= limits[:, r, None]) | (change <= 0)
        worth = np.where((workers > 0) & (more == 0) & (further == 0), values, 0.0).max(axis=1)
        masked = np.where(possible, values, -np.inf)
        best = masked.argmax(axis=1)
        at = np.arange(len(rows))
        better = masked[at, best] > worth
        shapes = zip(
            workers[at, best].astype(int).tolist(), servers[at, best].astype(int).tolist(), strict=True
        )
        return [shape if wins else None for shape, wins in zip(shapes, better.tolist(), strict=True)]


def hulls(value: Floats, cost: Floats) -> tuple[list[list[int]], list[list[float]]]:
    """Of each row the upper concave hull of value over cost (J, C), from (0, 0) on: shape numbers, and slopes.

    Always on to the shape in whose direction it is steepest (gift wrapping; Jarvis, 1973), for all rows at once,
    among those that no cheaper one equals.
    """
    shapes: list[list[int]] = [[] for _ in value]
    slopes: list[list[float]] = [[] for _ in value]
    rows: Ints = np.arange(len(value))
    value, cost, number = _front(value, cost)
    x = y = np.zeros(len(value))
    while len(rows) and value.shape[1]:
        run = cost - x[:, None]
        slope = np.divide(value - y[:, None], run, out=np.zeros_like(value), where=run > 0.0)
        best = slope.argmax(axis=1)
        at = np.arange(len(rows))
        on = slope[at, best] > 0.0
        for row, shape, steep in zip(
            rows[on].tolist(), number[at, best][on].tolist(), slope[at, best][on].tolist(), strict=True
        ):
            shapes[row].append(shape)
            slopes[row].append(steep)
        x, y = cost[at, best][on], value[at, best][on]
        rows, value, cost, number = rows[on], value[on], cost[on], number[on]
    return shapes, slopes


def _front(value: Floats, cost: Floats) -> tuple[Floats, Floats, Ints]:
    """Of each row (J, C) the shapes that no cheaper one equals, by cost: value, cost and shape number (J, F).

    Padded with shapes that cost more than there is. Rows of equal costs are sorted once.
    """
    first: dict[bytes, int] = {}  # row of each kind of costs
    of = [first.setdefault(row.tobytes(), n) for n, row in enumerate(cost)]
    kind = {row: n for n, row in enumerate(first.values())}
    order = np.argsort(cost[list(kind)], axis=1, kind="stable")[[kind[row] for row in of]]
    ordered = np.take_along_axis(value, order, axis=1)
    top = np.maximum.accumulate(ordered, axis=1)
    front = ordered > np.concatenate([np.zeros((len(value), 1)), top[:, :-1]], axis=1)
    count = front.sum(axis=1)
    rows, columns = np.nonzero(front)
    slot = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    size = (len(value), int(count.max(initial=0)))
    values, costs, numbers = np.zeros(size), np.full(size, np.inf), np.zeros(size, dtype=np.int64)
    numbers[rows, slot] = order[rows, columns]
    values[rows, slot] = ordered[rows, columns]
    costs[rows, slot] = cost[rows, numbers[rows, slot]]
    return values, costs, numbers
