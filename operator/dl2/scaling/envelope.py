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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dl2.scaling.beliefs import Belief, Known, Measured, Source, TrueSpeeds
from dl2.scaling.bounds import in_order, remaining
from dl2.scaling.interface import STOPPED, JobView, Observation, Scale
from dl2.scaling.lattice import Floats, Ints
from dl2.scaling.room import Room

LENGTH, CONCAVITY = 0.25, 0.50
_SHARPNESS = 6.0  # how much more a resource costs that is nearly used up


class Steps(NamedTuple):
    """A job's hull from nothing upwards: shape numbers, and value per cost of stepping there from the one before."""

    shapes: list[int]
    slopes: list[float]


class Envelope:
    """`optimism`: deviations added to the log of the believed speed where nothing was measured yet (capped).

    Exploration by optimism in the face of uncertainty (Auer et al., 2002); 0 turns it off.
    """

    name = "envelope"

    def __init__(self, optimism: float = 1.0, source: Source | None = None) -> None:
        self._optimism = optimism
        self._source = source or Measured()

    def allocate(self, observation: Observation) -> dict[str, Scale]:
        beliefs = self._source.beliefs(observation)
        room = Room(observation)
        jobs = [job for job in in_order(observation.jobs) if job.id in beliefs and room.hosts(job)]
        values = {
            job.id: value_of(job, hopeful(beliefs[job.id], self._optimism), observation.interval)
            for job in jobs
        }
        return spread_out(jobs, beliefs, values, observation)


class EnvelopeOracle(Envelope):
    """Envelope with the true speed function: a yardstick and a teacher, not a policy that anybody could run."""

    name = "envelope-oracle"

    def __init__(self, speeds: TrueSpeeds) -> None:
        super().__init__(optimism=0.0, source=Known(speeds))


def hopeful(belief: Belief, optimism: float = 1.0) -> Floats:
    """Upper confidence bound of the speed: 1 deviation at first, 0.3 once the kind is well sampled, at most x 1.6."""
    if optimism == 0.0:
        return belief.speed
    width = optimism * max(0.3, 1.0 / (1.0 + belief.samples / 16.0))
    return np.asarray(belief.speed * np.exp(np.minimum(width * belief.deviation, 0.5)))


def value_of(
    job: JobView, speed: Floats, interval: float, length: float = LENGTH, concavity: float = CONCAVITY
) -> Floats:
    """The value of each shape, from speeds in epochs a second (C,). `length`, `concavity`: the two exponents."""
    left = remaining(job)
    pace = np.maximum(speed * max(interval, 1e-9), 1e-12) / left
    served = np.where(pace <= 1.0, pace, 2.0 - 1.0 / np.maximum(pace, 1.0))
    return np.asarray((1.0 / max(float(pace.max()), 1e-12)) ** length * served**concavity)


def spread_out(
    jobs: Sequence[JobView],
    beliefs: Mapping[str, Belief],
    values: Mapping[str, Floats],
    observation: Observation,
) -> dict[str, Scale]:
    """Hand out shapes by hull slope. Twice: the second time costs count by how scarce the first found them."""
    weights: list[float] | None = None
    answer: dict[str, Scale] = {}
    for last in (False, True):
        room = Room(observation)
        prices = room.prices()
        if weights is not None:
            prices = [price * weight for price, weight in zip(prices, weights, strict=True)]
        answer = _walk(jobs, beliefs, values, room, prices, fill=last)
        used = [
            1.0 - left / has if has else 0.0 for left, has in zip(room.cluster, room.capacity, strict=True)
        ]
        peak = max(used, default=0.0)
        if peak <= 0.0:
            break
        weights = [max((part / peak) ** _SHARPNESS, 1e-3) for part in used]
    return answer


def _walk(
    jobs: Sequence[JobView],
    beliefs: Mapping[str, Belief],
    values: Mapping[str, Floats],
    room: Room,
    prices: Sequence[float],
    *,
    fill: bool,
) -> dict[str, Scale]:
    """One greedy over all hulls. `fill`: whose next step does not fit gets the best shape that does."""
    costs = Costs(room, prices)
    hulls = [hull(values[job.id], *costs.of(job, beliefs[job.id])) for job in jobs]
    at = [0] * len(jobs)  # steps taken
    heap = [(-steps.slopes[0], i) for i, steps in enumerate(hulls) if steps.shapes]
    heapq.heapify(heap)
    held = [STOPPED] * len(jobs)
    blocked = []
    while heap:
        _, i = heapq.heappop(heap)
        steps, shapes = hulls[i], beliefs[jobs[i].id].shapes
        if _move(jobs[i], held, i, shapes.scale(steps.shapes[at[i]]), room):
            at[i] += 1
            if at[i] < len(steps.shapes):
                heapq.heappush(heap, (-steps.slopes[at[i]], i))
        else:
            blocked.append(i)
    for i in blocked if fill else ():
        _squeeze(jobs[i], held, i, beliefs[jobs[i].id], values[jobs[i].id], room)
    return {job.id: scale for job, scale in zip(jobs, held, strict=True) if scale.workers}


def _move(job: JobView, held: list[Scale], i: int, to: Scale, room: Room) -> bool:
    change = room.amounts(job, Scale(to.workers - held[i].workers, to.servers - held[i].servers))
    if not room.fits(job, change):
        return False
    room.take(job, change)
    held[i] = to
    return True


def _squeeze(job: JobView, held: list[Scale], i: int, belief: Belief, value: Floats, room: Room) -> None:
    """The next hull point did not fit: take the most valuable shape that does."""
    worker, server = (np.array(vector) for vector in room.vectors(job))
    now = held[i]
    more = np.outer(belief.shapes.workers - now.workers, worker) + np.outer(
        belief.shapes.servers - now.servers, server
    )
    limits = np.array(room.limits(job))
    possible = ((more <= limits) | (more <= 0)).all(axis=1)
    if not possible.any():
        return
    best = int(np.argmax(np.where(possible, value, -np.inf)))
    held_value = belief_value(belief, value, now)
    if value[best] > held_value:
        _move(job, held, i, belief.shapes.scale(best), room)


def belief_value(belief: Belief, value: Floats, scale: Scale) -> float:
    """Value at exactly `scale`; 0 for a stopped job."""
    if not scale.workers:
        return 0.0
    same = (belief.shapes.workers == scale.workers) & (belief.shapes.servers == scale.servers)
    return float(value[int(np.argmax(same))])


def hull(value: Floats, order: Ints, cost: Floats) -> Steps:
    """Upper concave hull of value over cost, from (0, 0) on. `order`: the shapes by cost, all above 0."""
    ranked = value[order]
    rises = np.empty(len(ranked), dtype=bool)
    rises[0] = True
    np.greater(ranked[1:], np.maximum.accumulate(ranked)[:-1], out=rises[1:])
    front = order[rises]
    xs, ys = [0.0], [0.0]
    chosen: list[int] = []
    for i, x, y in zip(front.tolist(), cost[front].tolist(), value[front].tolist(), strict=True):
        while chosen and (y - ys[-2]) * (xs[-1] - xs[-2]) >= (ys[-1] - ys[-2]) * (x - xs[-2]):
            del chosen[-1], xs[-1], ys[-1]
        chosen.append(i)
        xs.append(x)
        ys.append(y)
    slopes = [(y1 - y0) / (x1 - x0) for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False)]
    return Steps(chosen, slopes)


class Costs:
    """Costs of shapes at given prices, and the shapes in their order: alike jobs share them."""

    def __init__(self, room: Room, prices: Sequence[float]) -> None:
        self._room, self._prices = room, prices
        self._known: dict[tuple[int, float, float], tuple[Ints, Floats]] = {}

    def of(self, job: JobView, belief: Belief) -> tuple[Ints, Floats]:
        """(order, cost) over the job's shapes. Costs are made positive, so that free pods sort too."""
        worker, server = (
            sum(amount * price for amount, price in zip(vector, self._prices, strict=True)) + 1e-12
            for vector in self._room.vectors(job)
        )
        key = (id(belief.shapes), worker, server)
        if key not in self._known:
            cost = belief.shapes.workers * worker + belief.shapes.servers * server
            self._known[key] = (np.argsort(cost, kind="stable"), cost)
        return self._known[key]
