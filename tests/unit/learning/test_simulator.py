"""The simulated cluster: time, work, noise, costs, failures, and what a policy may see of it."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable
from dataclasses import replace
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pytest

from dl2.learning.physics import TrueSpeed
from dl2.learning.run import policy_for, run
from dl2.learning.simulator import Clock, Settings, Simulation
from dl2.learning.suites import Case, suite_named
from dl2.learning.workload import Job, Recipe, Workload, draw, nodes_of
from dl2.scaling import Observation, Scale
from dl2.scaling.guardrails import Limits as StepLimits
from dl2.scheduling.snapshot import Limits, Queue

QUIET = Settings(noise=0.0)


def speed(per_pod: float = 1e-3) -> TrueSpeed:
    """As many epochs a second as workers, times `per_pod`."""
    return TrueSpeed(np.arange(17)[:, None] * np.ones(17)[None, :] * per_pod)


def job(name: str = "a", **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "id": name, "submitted_at": 0.0, "model": "m", "epochs": 6.0, "queue": "q", "priority": 0,
        "worker_requests": {"cpu": 1000}, "server_requests": {"cpu": 1000},
        "minimum": Scale(1, 1), "maximum": Scale(16, 16), "speed": speed(),
    }  # fmt: skip
    return Job(**{**fields, **changes})


def simulation(
    *jobs: Job, settings: Settings = QUIET, nodes: int = 4, queues: tuple[Queue, ...] = ()
) -> Simulation:
    return Simulation(Workload(jobs, nodes_of(nodes, {"cpu": 8000}), queues), settings, 0)


def always(sim: Simulation, scale: Scale) -> Simulation:
    """Every job at `scale`, to the end."""
    while not sim.over:
        sim.step({view.id: scale for view in sim.observe().jobs})
    return sim


def test_a_job_ends_when_its_work_is_done_inside_a_slot() -> None:
    (end,) = always(simulation(job()), Scale(2, 1)).tally.finished
    assert end.finished_at == pytest.approx(3000.0)  # 6 epochs at 0.002 a second


def test_a_job_waits_for_the_next_slot_but_not_for_events() -> None:
    early, late = job("a", epochs=100.0), job("b", submitted_at=100.0)
    slotted = always(simulation(early, late), Scale(2, 1)).tally
    events = always(simulation(early, late, settings=replace(QUIET, clock=Clock.EVENTS)), Scale(2, 1)).tally
    assert next(end for end in slotted.finished if end.id == "b").started_at == 1200.0
    assert next(end for end in events.finished if end.id == "b").started_at == pytest.approx(100.0)


def operated(*jobs: Job, nodes: int) -> Simulation:
    """On the operator's clock, with a policy that wants five workers for everybody."""
    sim = simulation(*jobs, settings=replace(QUIET, clock=Clock.OPERATOR), nodes=nodes)
    while not sim.over:
        seen = sim.observe()
        sim.step({view.id: Scale(5, 1) for view in seen.jobs} if sim.asks else sim.held(seen), seen)
    return sim


def test_under_the_operator_a_job_starts_at_its_minimum_and_grows_at_the_next_round() -> None:
    sim = operated(job("a", epochs=100.0), job("b", submitted_at=100.0), nodes=4)
    told = [(at, scale) for at, name, scale in sim.tally.shapes if name == "b"]
    assert told[:2] == [(100.0, Scale(1, 1)), (1200.0, Scale(5, 1))]
    assert [at for at, name, _ in sim.tally.shapes if name == "a"][:1] == [0.0]
    assert len([name for _, name, _ in sim.tally.shapes if name == "a"]) == 2  # it started and it ended


def test_under_the_operator_who_finds_no_room_between_rounds_takes_nothing_from_others() -> None:
    first = [job(name, worker_requests={"cpu": 1000}, epochs=5.0) for name in ("a", "b")]
    late = [job("c", submitted_at=100.0), job("d", submitted_at=100.0, maximum=Scale(1, 1))]
    sim = operated(*first, *late, nodes=2)  # a and b take 12 of 16 CPUs: c and d fit in
    starts = {name: at for at, name, _ in reversed(sim.tally.shapes)}
    assert starts == {"a": 0.0, "b": 0.0, "c": 100.0, "d": 100.0}
    small = operated(*first, job("c", submitted_at=100.0), nodes=1)  # they share 8 of 8: c waits for an end
    starts = {name: at for at, name, _ in reversed(small.tally.shapes)}
    ends = [end.finished_at for end in small.tally.finished if end.id in ("a", "b")]
    assert starts["c"] in (*ends, 1200.0)
    assert starts["c"] > 100.0


def test_under_the_operator_guardrails_say_what_of_an_answer_is_done() -> None:
    """In steps of two, and not while it is still starting."""
    settings = replace(QUIET, clock=Clock.OPERATOR, limits=StepLimits(step=2), cooldown=0.0, start_up=1500.0)
    sim = simulation(job("a", epochs=100.0), settings=settings)
    held = []
    while len(held) < 5:
        seen = sim.observe()
        sim.step(sim.granted(seen, {"a": Scale(7, 1)}) if held else {"a": Scale(1, 1)}, seen)
        held.append(seen.jobs[0].current.workers)
    assert held == [0, 1, 1, 3, 5]


def test_resizes_and_starts_cost_what_they_are_said_to() -> None:
    settings = replace(QUIET, start_up=60.0, resize=100.0)
    sim = simulation(job(), settings=settings)
    sim.step({"a": Scale(2, 1)})
    sim.step({"a": Scale(4, 1)})
    (end,) = always(sim, Scale(4, 1)).tally.finished
    first = (1200.0 - 60.0) * 0.002
    assert end.finished_at == pytest.approx(1200.0 + 100.0 + (6.0 - first) / 0.004)
    assert sim.tally.resizes == 1


def test_neighbours_slow_a_job_down() -> None:
    settings = replace(QUIET, interference=0.3)
    alone = always(simulation(job(), settings=settings, nodes=1), Scale(2, 1)).tally.finished[0]
    both = always(simulation(job(), job("b"), settings=settings, nodes=1), Scale(2, 1)).tally.finished[0]
    assert alone.finished_at == pytest.approx(3000.0)
    assert both.finished_at == pytest.approx(3000.0 / (1 - 0.3 / 2))


def test_a_failed_node_costs_the_interval_and_comes_back() -> None:
    settings = replace(QUIET, mean_time_to_failure=1500.0, repair=3600.0)
    sim = simulation(job(epochs=40.0), settings=settings, nodes=1)
    always(sim, Scale(2, 1))
    assert sim.tally.failures == 1
    assert sim.tally.finished[0].finished_at >= 20_000.0 + 3600.0


def test_what_is_measured_is_the_speed_with_noise() -> None:
    sim = simulation(job(epochs=1e3), settings=Settings(noise=0.05))
    for _ in range(60):
        sim.step({"a": Scale(2, 1)})
    samples = sim.observe().jobs[0].samples
    logs = np.log([sample.epochs_per_second / 0.002 for sample in samples])
    assert abs(logs.mean()) < 0.025
    assert logs.std() == pytest.approx(0.05, rel=0.3)


def test_the_same_seed_gives_the_same_run_and_noise_does_not_depend_on_the_policy() -> None:
    case = suite_named("testbed").case(0)
    assert run("drf", case).mean_jct == run("drf", case).mean_jct
    noises = []
    for scale in (Scale(1, 1), Scale(3, 2)):
        sim = simulation(job(epochs=1e3), settings=Settings(noise=0.1))
        sim.step({"a": scale})
        (sample,) = sim.observe().jobs[0].samples
        noises.append(sample.epochs_per_second / (scale.workers * 1e-3))
    assert noises[0] == pytest.approx(noises[1])


def test_work_is_conserved() -> None:
    """What all jobs trained is what they declared."""
    workload = draw(Recipe(jobs=12, nodes=4), 3)
    sim = Simulation(workload, QUIET, 0)
    while not sim.over:
        sim.step({view.id: Scale(2, 2) for view in sim.observe().jobs})
    assert {end.id for end in sim.tally.finished} == {each.id for each in workload.jobs}
    for end in sim.tally.finished:
        spec = next(each for each in workload.jobs if each.id == end.id)
        assert end.finished_at - end.started_at >= spec.epochs / spec.speed(Scale(2, 2)) - 1e-6
        assert end.jct >= end.alone - 1e-6


def test_utilisation_is_that_of_the_resource_used_most() -> None:
    """Of 8 CPUs one job holds three, all the time."""
    case = Case(
        "one", Workload((job(maximum=Scale(2, 1)),), nodes_of(1, {"cpu": 8000, "memory": 1})), QUIET, 0
    )
    assert run("drf", case).utilisation == pytest.approx(3 / 8)


def test_starving_jobs_end_the_run_and_are_counted() -> None:
    sim = simulation(job(), settings=replace(QUIET, most_intervals=5))
    while not sim.over:
        sim.step({})
    assert sim.tally.unfinished == 1


def test_budgets_are_the_fair_shares_of_the_queue_tree() -> None:
    """32 CPU; a is guaranteed 20, b weighs as much in the rest; c asks nothing and lends all."""
    queues = (
        Queue("a", limits={"cpu": Limits(min=20_000)}),
        Queue("b", limits={"cpu": Limits()}),
        Queue("c", limits={"cpu": Limits(min=4_000)}),
    )
    sim = simulation(job("x", queue="a"), job("y", queue="b"), queues=queues)
    budgets = sim.observe().budgets
    assert {name: budget["cpu"] for name, budget in budgets.items()} == {"a": 26_000, "b": 6_000, "c": 0}


def test_an_inner_queue_shares_what_it_may_have() -> None:
    queues = (
        Queue("top", limits={"cpu": Limits(max=12_000)}),
        Queue("x", parent="top", weight=2),
        Queue("y", parent="top"),
    )
    sim = simulation(job("1", queue="x"), job("2", queue="y"), queues=queues)
    budgets = sim.observe().budgets
    assert (budgets["x"]["cpu"], budgets["y"]["cpu"]) == (8_000, 4_000)


# -- the true speed is out of reach -----------------------------------------------------------------------------------
def reachable(root: object) -> Iterable[object]:
    """Everything that can be got hold of from `root` without going through modules, classes and code."""
    seen, todo = {id(root)}, [root]
    while todo:
        at = todo.pop()
        yield at
        for there in gc.get_referents(at):
            if id(there) not in seen and not isinstance(there, ModuleType | type | FunctionType):
                seen.add(id(there))
                todo.append(there)


def test_no_policy_can_reach_the_true_speeds_from_what_it_sees() -> None:
    case = suite_named("contended").case(0)
    sim = Simulation(case.workload, case.settings, case.seed)
    for _ in range(3):
        observation = sim.observe()
        found = [thing for thing in reachable(observation) if isinstance(thing, TrueSpeed | Job | Simulation)]
        assert found == []
        assert not any(isinstance(thing, MethodType) for thing in reachable(observation))
        sim.step({view.id: Scale(1, 1) for view in observation.jobs}, observation)


@pytest.mark.parametrize("name", ["drf", "envelope", "optimus", "dl2"])
def test_only_the_yardsticks_are_handed_the_true_speeds(name: str) -> None:
    case = suite_named("testbed").case(0)
    sim = Simulation(case.workload, case.settings, case.seed)
    policy = policy_for(name, sim)
    policy.allocate(sim.observe())
    assert not any(isinstance(thing, TrueSpeed | Simulation) for thing in reachable(policy))
    oracle = policy_for("envelope-oracle", sim)
    assert any(isinstance(thing, Simulation) for thing in reachable(oracle))


def test_a_policy_sees_the_same_whatever_the_unseen_speeds_are() -> None:
    """Two clusters that differ only in speeds nobody has measured yet give the same first answer."""

    def first_answer(per_pod: float) -> dict[str, Scale]:
        sim = simulation(*(job(f"j{n}", speed=speed(per_pod)) for n in range(5)))
        return policy_for("dl2", sim).allocate(sim.observe())

    assert first_answer(1e-3) == first_answer(7e-3)


def test_observations_do_not_change_behind_a_policys_back() -> None:
    sim = simulation(job(epochs=1e3))
    before: Observation = sim.observe()
    sim.step({"a": Scale(2, 1)})
    assert before.jobs[0].epochs_done == 0.0
    assert before.jobs[0].samples == ()


def test_an_empty_workload_is_over_at_once() -> None:
    case = Case("none", Workload((), nodes_of(1, {"cpu": 1})), QUIET, 0)
    assert run("drf", case).mean_jct == 0.0


def test_an_idle_cluster_waits_for_the_next_job() -> None:
    sim = simulation(job("a", epochs=1.0), job("b", submitted_at=50_000.0, epochs=1.0))
    always(sim, Scale(1, 1))
    ends = {end.id: end.finished_at for end in sim.tally.finished}
    assert ends["b"] == pytest.approx(math.ceil(50_000 / 1200) * 1200 + 1000.0)
