"""The learned policy: shapes by repeated steps, each to the job and whole shape that the network values most.

A decision is a sequence of masked steps, as in DL2 (Peng et al., TPDS 2021): give this job its next shape, until
nothing fits. Steps go along the concave hull of a value per job (`dl2.scaling.envelope`), so that one step may
be one pod or a jump over many; masks are capacity and budgets. What is learned is the value: the network bends
its weight, exponents, optimism and inertia, job by job, from what was measured; and what speeds are like before
(`prior`). With all outputs 0 its values are those of the envelope policy, the champion, which it falls back to if an
output is not finite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dl2.scaling.agent.features import features
from dl2.scaling.agent.meters import PauseMeter
from dl2.scaling.agent.network import Preference, Weights, forward, preference
from dl2.scaling.agent.prior import learned
from dl2.scaling.beliefs import Blinkers, Measured, Source
from dl2.scaling.bounds import in_order
from dl2.scaling.envelope import CONCAVITY, LENGTH, Envelope, hopeful, spread_out, value_of
from dl2.scaling.history import History
from dl2.scaling.interface import Observation, Scale
from dl2.scaling.lattice import Floats
from dl2.scaling.room import Room
from dl2.scaling.table import Table


class Sight(NamedTuple):
    """An observation as the network takes it."""

    observation: Observation
    room: Room
    table: Table  # of the jobs that can run at all, in their order
    features: Floats  # (J, FEATURES)
    cluster: Floats  # (CLUSTER,)
    pause: float  # seconds a resize costs


class Memory:
    """What was measured so far, and how to look at the present with it."""

    def __init__(self, source: Source | None = None) -> None:
        self._source = source or Measured(prior=learned())
        self._pauses = PauseMeter()

    def look(self, observation: Observation) -> Sight:
        beliefs = self._source.beliefs(observation)
        self._pauses.take_in(observation)
        room, pause = Room(observation), self._pauses.seconds
        jobs = [job for job in in_order(observation.jobs) if job.id in beliefs and room.hosts(job)]
        table = Table(jobs, beliefs, room)
        return Sight(observation, room, table, *features(table, observation, room, pause), pause)


class Agent:
    """A network and a memory. `fallbacks` counts decisions made without the network.

    Ablations: `exploration` false takes speeds as expected, without optimism; `labels` and `speeds` false hide the
    labels of jobs, or what was measured; `prior` false expects of speeds what was put down by hand, not what was learned.
    """

    name = "dl2"

    def __init__(
        self,
        weights: Weights,
        *,
        exploration: bool = True,
        labels: bool = True,
        speeds: bool = True,
        prior: bool = True,
    ) -> None:
        self.weights = weights
        self.fallbacks = 0
        history = History()
        source: Source = Measured(history, learned() if prior else None)
        self._champion = Envelope(source=Measured(history))
        if not (labels and speeds):
            source = Blinkers(source, labels=labels, speeds=speeds)
        self._memory = Memory(source)
        self._exploration = exploration

    def allocate(self, observation: Observation) -> dict[str, Scale]:
        sight = self._memory.look(observation)
        outputs = forward(self.weights, sight.features, sight.cluster)
        if not np.isfinite(outputs).all():
            self.fallbacks += 1
            return self._champion.allocate(observation)
        return act(sight, outputs, exploration=self._exploration)


def act(sight: Sight, outputs: Floats, *, exploration: bool = True) -> dict[str, Scale]:
    """The decision that raw outputs (J, OUTPUTS) of the network stand for."""
    wish = preference(outputs)
    if not exploration:
        wish = wish._replace(optimism=np.full(len(outputs), -np.inf))
    return spread_out(sight.table, bent_values(sight, wish), sight.room)


def bent_values(sight: Sight, wish: Preference) -> Floats:
    """(J, C). Moving loses the measured pause, spread over the intervals a shape is kept, and inertia."""
    table, interval = sight.table, sight.observation.interval
    speed = hopeful(table, np.exp(wish.optimism), interval)
    concavity = np.minimum(CONCAVITY * np.exp(wish.concavity), 1.0)
    value = value_of(table, speed, interval, LENGTH + wish.length, concavity)
    value *= np.exp(wish.weight)[:, None]
    workers, servers = table.held[:, :1], table.held[:, 1:]
    moved = (table.workers != workers) | (table.servers != servers)
    lost = min(0.5 * sight.pause / max(interval, 1e-9), 0.5) + wish.inertia
    return np.asarray(np.where(moved & (workers > 0), value * (1.0 - lost[:, None]), value))
