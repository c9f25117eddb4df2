"""A cluster in simulated time: jobs arrive, a policy shapes them, they train as fast as the physics lets them.

Three clocks. Slotted: the policy decides every `interval` and nothing changes in between, as in DL2's paper; a job
may end inside a slot. Event-driven: it also decides when a job arrives or ends and when a node fails or returns.
Operator: it decides every `interval`, the operator's guardrails say what of that is done, and who waits in between
starts at its minimum as soon as there is room.
Placement and cutting are the shared ones (`dl2.scaling.cutter`), budgets the decision core's (`quotas`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from dl2.learning.quotas import Quotas
from dl2.learning.workload import Job, Workload
from dl2.scaling.beliefs import Measured
from dl2.scaling.cutter import Cut, Spread, cut
from dl2.scaling.guardrails import Limits, Restraint, guard
from dl2.scaling.interface import STOPPED, JobView, NodeView, Observation, Scale, SpeedSample

_KEPT_SAMPLES = 64  # of one job; an operator does not keep them for ever either


class Clock(StrEnum):
    SLOTTED = "slotted"
    EVENTS = "events"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the cluster does to jobs. Seconds, and parts of 1."""

    interval: float = 1200.0
    clock: Clock = Clock.SLOTTED
    noise: float = 0.03  # deviation of the log of a measured speed
    interference: float = 0.0  # speed lost by a pod whose node is full of other jobs
    start_up: float = 0.0
    resize: float = 0.0  # pause of a job whose shape changes
    mean_time_to_failure: float = math.inf  # of one node
    repair: float = 7200.0
    limits: Limits = field(default_factory=Limits)  # of the guardrails, with the operator's clock
    cooldown: float = 60.0  # for which they leave a job alone that was resized
    most_intervals: int = 20_000  # a policy that lets jobs starve ends here


@dataclass(slots=True)
class _Live:
    """A job while it is in the cluster."""

    job: Job
    noise: np.random.Generator
    done: float = 0.0
    started_at: float | None = None
    scale: Scale = STOPPED
    spread: Spread | None = None
    pause: float = 0.0  # seconds it still stands still
    resized_at: float | None = None
    samples: tuple[SpeedSample, ...] = ()
    rate: float = 0.0  # epochs a second, interference included
    gained: float = 0.0  # epochs since the last decision: what a failing node destroys

    def view(self) -> JobView:
        job = self.job
        return JobView(
            job.id, job.model, job.queue, job.priority, job.submitted_at, self.started_at,
            job.worker_requests, job.server_requests, job.minimum, job.maximum, self.scale,
            job.epochs, self.done, self.samples,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finished:
    """One job's story."""

    id: str
    model: str | None
    queue: str
    submitted_at: float
    started_at: float
    finished_at: float
    alone: float  # seconds it takes alone at its best shape

    @property
    def jct(self) -> float:
        return self.finished_at - self.submitted_at


@dataclass(slots=True)
class Tally:
    """What happened in a run."""

    finished: list[Finished] = field(default_factory=list)
    unfinished: int = 0
    decisions: int = 0
    job_slots: int = 0  # jobs times decisions
    resizes: int = 0  # of running jobs, starts and stops not counted
    failures: int = 0
    used: dict[str, float] = field(default_factory=dict)  # part of each resource held, times seconds
    cuts: Counter[str] = field(default_factory=Counter)
    shapes: list[tuple[float, str, Scale]] = field(
        default_factory=list
    )  # (time, job, scale) where it changed


class Simulation:
    """One run. `observe`, `step` with an answer, until `over`. Equal seeds draw equal noise for every policy."""

    def __init__(self, workload: Workload, settings: Settings, seed: int) -> None:
        self.settings, self.now = settings, 0.0
        self._seed = seed
        self._waiting = list(reversed(workload.jobs))  # next arrival last
        self._order = {job.id: n for n, job in enumerate(workload.jobs)}
        self._live: dict[str, _Live] = {}
        self._nodes = {node.name: node for node in workload.nodes}
        self._down: dict[str, float] = {}  # node -> when it is back
        self._failures = self._draw_failures(workload)
        self._queues = workload.queues
        self._quotas: Quotas | None = None
        self._up: tuple[NodeView, ...] | None = None
        self._measured = Measured()
        self.tally = Tally()
        self._arrive()

    @property
    def over(self) -> bool:
        finished = not self._waiting and not self._live
        return finished or self.tally.decisions >= self.settings.most_intervals

    def observe(self) -> Observation:
        """What a policy gets to see now."""
        views = tuple(live.view() for live in self._live.values())
        nodes = self._nodes_up()
        budgets: Mapping[str, Mapping[str, int]] = {}
        if self._queues:
            self._quotas = self._quotas or Quotas(self._queues, nodes)
            budgets = self._quotas.budgets(views)
        return Observation(self.now, self.settings.interval, views, nodes, budgets)

    @property
    def asks(self) -> bool:
        """Is it the policy's turn? If not, the answer is `held`."""
        past = self.now % self.settings.interval
        on_time = min(past, self.settings.interval - past) < 1e-6 * self.settings.interval
        return self.settings.clock is not Clock.OPERATOR or on_time

    def held(self, observation: Observation) -> dict[str, Scale]:
        """What the operator does between two decisions: all keep their shape; who waits, the first to come first,
        starts at its minimum where that takes nothing from the others.
        """
        answer = {name: live.scale for name, live in self._live.items() if live.scale.workers}
        waiting = (live.job for live in self._live.values() if not live.scale.workers)
        for job in sorted(waiting, key=lambda job: (job.submitted_at, job.id)):
            wider = {**answer, job.id: job.minimum}
            if cut(observation, wider).scales == wider:
                answer = wider
        return answer

    def granted(self, observation: Observation, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is done of a policy's answer: with the operator's clock what its guardrails leave, else all."""
        if self.settings.clock is not Clock.OPERATOR:
            return answer
        asked = cut(observation, answer).scales
        beliefs = self._measured.beliefs(observation)
        restraints = {
            name: Restraint(
                "it does not train at the moment" if live.pause > 0.0 else "",
                live.resized_at, self.settings.cooldown, self.settings.resize,
            )
            for name, live in self._live.items()
        }  # fmt: skip
        verdicts = guard(observation, asked, beliefs, restraints, self.settings.limits)
        return {name: verdict.given for name, verdict in verdicts.items()}

    def step(self, answer: Mapping[str, Any], observation: Observation | None = None) -> Cut:
        """Apply `answer` and go on to the next decision, over slots in which there is no job."""
        observation = observation or self.observe()
        possible = cut(observation, answer)
        self._apply(possible)
        self.tally.decisions += 1
        self.tally.job_slots += len(observation.jobs)
        self.tally.cuts.update(possible.counts)
        self._advance(self._next_decision())
        while not self._live and self._waiting:
            self._advance(self._next_decision())
        self.tally.unfinished = len(self._live) + len(self._waiting)
        return possible

    def true_speed(self, job: JobView, scale: Scale) -> float:
        """For the yardsticks that are allowed to know (`optimus-oracle`, `envelope-oracle`)."""
        return self._live[job.id].job.speed(scale)

    # -- one decision ---------------------------------------------------------------------------------------------
    def _apply(self, possible: Cut) -> None:
        tenants: Counter[str] = Counter()  # jobs by node
        for spread in possible.spreads.values():
            tenants.update({*spread.workers, *spread.servers})
        for name, live in self._live.items():
            scale = possible.scales.get(name, STOPPED)
            if scale != live.scale:
                self._resize(live, scale)
            live.spread = possible.spreads.get(name)
            slow = self._interference(live.spread, tenants) if live.spread else 1.0
            live.rate = live.job.speed(scale) * slow
            live.gained = 0.0

    def _resize(self, live: _Live, scale: Scale) -> None:
        if scale.workers:
            if live.scale.workers:
                self.tally.resizes += 1
                live.resized_at = self.now
                live.pause = max(live.pause, self.settings.resize)
            else:
                live.pause = self.settings.start_up
            if live.started_at is None:
                live.started_at = self.now
        live.scale = scale
        self.tally.shapes.append((self.now, live.job.id, scale))

    def _interference(self, spread: Spread, tenants: Mapping[str, int]) -> float:
        """Mean over the job's pods of 1 - interference * (1 - 1 / jobs on the pod's node)."""
        if not self.settings.interference:
            return 1.0
        pods = (*spread.workers, *spread.servers)
        return 1.0 - self.settings.interference * sum(1.0 - 1.0 / tenants[node] for node in pods) / len(pods)

    # -- time -----------------------------------------------------------------------------------------------------
    def _next_decision(self) -> float:
        tick = (math.floor(self.now / self.settings.interval + 1e-9) + 1) * self.settings.interval
        if self.settings.clock is Clock.SLOTTED:
            return tick
        times = [tick, self._failures[-1][0] if self._failures else math.inf, *self._down.values()]
        if self._waiting:
            times.append(self._waiting[-1].submitted_at)
        times += [self._end_of(live) for live in self._live.values()]
        return max(min(times), self.now)

    def _end_of(self, live: _Live) -> float:
        if live.rate <= 0.0:
            return math.inf
        return self.now + live.pause + max(live.job.epochs - live.done, 0.0) / live.rate

    def _advance(self, to: float) -> None:
        for name in list(self._live):
            live = self._live[name]
            end = self._end_of(live)
            held = min(end, to) - self.now
            for resource, part in self._parts(live).items():
                self.tally.used[resource] = self.tally.used.get(resource, 0.0) + part * held
            if end <= to + 1e-9:
                self._finish(live, end)
                continue
            trained = max(0.0, to - self.now - live.pause)
            live.pause = max(0.0, live.pause - (to - self.now))
            if live.rate > 0.0 and trained > 0.0:
                live.gained += live.rate * trained
                live.done += live.rate * trained
                noise = math.exp(self.settings.noise * live.noise.standard_normal())
                sample = SpeedSample(live.scale, live.rate * noise, to)
                live.samples = (*live.samples[1 - _KEPT_SAMPLES :], sample)
        self.now = to
        self._fail_and_repair()
        self._arrive()

    def _finish(self, live: _Live, at: float) -> None:
        job = live.job
        del self._live[job.id]
        self.tally.shapes.append((at, job.id, STOPPED))
        alone = job.epochs / job.speed.best(job.minimum, job.maximum) + self.settings.start_up
        started = at if live.started_at is None else live.started_at
        self.tally.finished.append(
            Finished(job.id, job.model, job.queue, job.submitted_at, started, at, alone)
        )

    def _parts(self, live: _Live) -> dict[str, float]:
        """Of each resource the part of the whole cluster that a job holds."""
        if not live.scale.workers:
            return {}
        held: Counter[str] = Counter()
        for requests, pods in (
            (live.job.worker_requests, live.scale.workers),
            (live.job.server_requests, live.scale.servers),
        ):
            held.update({name: amount * pods for name, amount in requests.items()})
        return {name: amount / self._capacity(name) for name, amount in held.items()}

    def _capacity(self, name: str) -> int:
        return max(1, sum(node.capacity.get(name, 0) for node in self._nodes.values()))

    def _arrive(self) -> None:
        while self._waiting and self._waiting[-1].submitted_at <= self.now + 1e-9:
            job = self._waiting.pop()
            noise = np.random.default_rng([self._seed, 0x5A11, self._order[job.id]])
            self._live[job.id] = _Live(job, noise)

    # -- failures -------------------------------------------------------------------------------------------------
    def _draw_failures(self, workload: Workload) -> list[tuple[float, str]]:
        """(time, node), last first; one failure a node, more would only repeat the lesson."""
        mean = self.settings.mean_time_to_failure
        if math.isinf(mean):
            return []
        rng = np.random.default_rng([self._seed, 0xFA11])
        times = rng.exponential(mean, len(workload.nodes))
        return sorted(zip(times.tolist(), (node.name for node in workload.nodes), strict=True), reverse=True)

    def _fail_and_repair(self) -> None:
        changed = False
        for name in [name for name, back in self._down.items() if back <= self.now + 1e-9]:
            del self._down[name]
            changed = True
        while self._failures and self._failures[-1][0] <= self.now + 1e-9:
            _, name = self._failures.pop()
            self._down[name] = self.now + self.settings.repair
            self.tally.failures += 1
            changed = True
            for live in self._live.values():
                if live.spread and name in {*live.spread.workers, *live.spread.servers}:
                    live.done -= live.gained  # back to the last checkpoint
                    live.gained, live.rate, live.scale, live.spread = 0.0, 0.0, STOPPED, None
        if changed:
            self._up, self._quotas = None, None

    def _nodes_up(self) -> tuple[NodeView, ...]:
        if self._up is None:
            self._up = tuple(node for name, node in sorted(self._nodes.items()) if name not in self._down)
        return self._up
