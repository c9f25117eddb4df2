"""What holds for every policy, and what each is for."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from dl2.scaling import (
    JobView,
    Observation,
    Policy,
    Scale,
    SpeedSample,
    UnknownPolicy,
    cut,
    load_policy,
    policy_names,
)
from tests.unit.scaling.worlds import EVERY_POLICY, GPU, job, nodes, options, random_observation, seen

every_policy = pytest.mark.parametrize("name", EVERY_POLICY)


@every_policy
def test_is_a_policy_with_its_name(name: str) -> None:
    policy = load_policy(name, **options(name))
    assert isinstance(policy, Policy)
    assert policy.name == name


@every_policy
@pytest.mark.parametrize("seed", range(4))
def test_answers_fit_bounds_and_budgets_by_themselves(name: str, seed: int) -> None:
    observation = random_observation(seed)
    answer = load_policy(name, **options(name)).allocate(observation)
    counts = cut(observation, answer).counts
    assert answer
    assert not counts.keys() & {"unknown", "bounds", "budget"}


@every_policy
def test_permuted_jobs_get_the_same_answer(name: str) -> None:
    observation = random_observation(7)
    jobs = list(observation.jobs)
    random.Random(3).shuffle(jobs)
    mixed = replace(observation, jobs=tuple(jobs))
    assert load_policy(name, **options(name)).allocate(mixed) == load_policy(name, **options(name)).allocate(
        observation
    )


@every_policy
def test_asked_twice_answers_the_same(name: str) -> None:
    policy, observation = load_policy(name, **options(name)), random_observation(5)
    assert policy.allocate(observation) == policy.allocate(observation)


BAD = {
    "no jobs": seen(on=nodes(2)),
    "no nodes": seen(job()),
    "no requests": seen(job(worker_requests={}, server_requests={}), on=nodes(2)),
    "requests of nothing": seen(job(worker_requests={"cpu": 0}, server_requests={"cpu": 0}), on=nodes(2)),
    "a node that has nothing left": seen(job(), on=(*nodes(1), *nodes(1, cpu=0), *nodes(1, cpu=-5))),
    "unknown resource": seen(job(worker_requests={"alien.com/tpu": 1}), on=nodes(2)),
    "no declared work": seen(job(epochs_total=None), on=nodes(2)),
    "work that is no number": seen(job(epochs_total=float("nan"), epochs_done=float("nan")), on=nodes(2)),
    "done more than declared": seen(job(epochs_done=1e9), on=nodes(2)),
    "samples that are no numbers": seen(
        job(
            samples=tuple(
                SpeedSample(Scale(1, 1), value, float(n))
                for n, value in enumerate((float("nan"), float("inf"), -1.0, 0.0))
            )
        ),
        on=nodes(2),
    ),
    "samples at no scale": seen(
        job(samples=(SpeedSample(Scale(0, 0), 1.0, 1.0), SpeedSample(Scale(0, 3), 1.0, 2.0))), on=nodes(2)
    ),
    "samples beyond the maximum": seen(job(samples=(SpeedSample(Scale(400, 400), 1.0, 1.0),)), on=nodes(2)),
    "no label and no samples": seen(job("a", model=None), job("b", model=None), on=nodes(2)),
    "maximum below minimum": seen(job(minimum=Scale(4, 4), maximum=Scale(2, 2)), on=nodes(2)),
    "minimum of nothing": seen(job(minimum=Scale(0, 0)), on=nodes(2)),
    "an empty budget": seen(job(), on=nodes(2), budgets={"q": {"cpu": 0}}),
    "no interval": replace(seen(job(), on=nodes(2)), interval=0.0),
}


@every_policy
@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_a_sane_answer(name: str, what: str) -> None:
    answer = load_policy(name, **options(name)).allocate(BAD[what])
    counts = cut(BAD[what], answer).counts
    assert not counts.keys() & {"unknown", "bounds", "budget"}
    runs = what not in ("no jobs", "no nodes", "unknown resource", "maximum below minimum", "an empty budget")
    assert bool(answer) == runs


@every_policy
def test_a_job_without_servers_gets_workers_only(name: str) -> None:
    view = job(minimum=Scale(1, 0), maximum=Scale(8, 0))
    answer = load_policy(name, **options(name)).allocate(seen(view, on=nodes(4)))
    assert answer["a"].workers >= 1
    assert answer["a"].servers == 0


@every_policy
def test_a_minimum_that_says_nothing_is_one_of_each(name: str) -> None:
    answer = load_policy(name, **options(name)).allocate(seen(job(minimum=Scale(0, 0)), on=nodes(4)))
    assert answer["a"].servers >= 1


def _measured(name: str, speeds: dict[Scale, float], **changes: Any) -> JobView:
    samples = tuple(SpeedSample(scale, value, 10.0 * n) for n, (scale, value) in enumerate(speeds.items()))
    return job(name, samples=samples, **changes)


def test_drf_gives_equal_dominant_shares() -> None:
    thrifty = job("a", worker_requests={"cpu": 1000}, server_requests={"cpu": 1000})
    answer = load_policy("drf").allocate(seen(thrifty, job("b"), on=nodes(3)))
    assert answer == {"a": Scale(6, 6), "b": Scale(3, 3)}


def test_fifo_serves_priority_then_age() -> None:
    views = (job("old"), job("new", submitted_at=9.0), job("vip", submitted_at=99.0, priority=1))
    assert set(load_policy("fifo").allocate(seen(*views, on=nodes(1, cpu=4000)))) == {"vip"}
    assert set(load_policy("fifo").allocate(seen(*views[:2], on=nodes(1, cpu=4000)))) == {"old"}


def test_srtf_serves_the_shortest() -> None:
    views = (job("long"), job("short", epochs_total=10.0))
    assert set(load_policy("srtf").allocate(seen(*views, on=nodes(1, cpu=4000)))) == {"short"}


def test_tiresias_serves_who_was_served_least() -> None:
    served = job("served", samples=tuple(SpeedSample(Scale(4, 4), 1.0, float(n)) for n in range(9)))
    fresh = job("fresh", submitted_at=50.0, samples=(SpeedSample(Scale(1, 1), 1.0, 1.0),))
    policy = load_policy("tiresias", threshold=2000.0)
    assert set(policy.allocate(seen(served, fresh, on=nodes(1, cpu=4000)))) == {"fresh"}


def test_tetris_prefers_what_the_cluster_has_left() -> None:
    """Equally short; the GPUs are idle, so the GPU job aligns better."""
    gpu = job("z-gpu", worker_requests={"cpu": 1000, GPU: 2}, server_requests={"cpu": 1000}, model="g")
    plain = job("a-cpu", worker_requests={"cpu": 1000}, server_requests={"cpu": 1000}, model="g")
    one = {"minimum": Scale(1, 1), "maximum": Scale(1, 1)}
    views = (replace(gpu, **one), replace(plain, **one))
    assert set(load_policy("tetris").allocate(seen(*views, on=nodes(1, cpu=2000, gpu=2)))) == {"z-gpu"}


def test_srpt_gain_feeds_who_scales_and_is_short() -> None:
    def speeds(view: JobView, scale: Scale) -> float:
        return float(min(scale)) if view.id == "scales" else 1.0

    from dl2.scaling.beliefs import Known
    from dl2.scaling.steps import SrptGain

    views = (job("flat"), job("scales"))
    answer = SrptGain(source=Known(speeds)).allocate(seen(*views, on=nodes(4)))
    assert answer == {"flat": Scale(1, 1), "scales": Scale(7, 7)}


@pytest.mark.parametrize(("dip", "workers"), [(3, 6), (6, 2)])
def test_optimus_leaps_over_a_short_dip_and_stops_at_a_long_one(dip: int, workers: int) -> None:
    def speeds(view: JobView, scale: Scale) -> float:
        return {1: 1.0, 2: 2.0}.get(scale.workers, 1.5 if scale.workers < 3 + dip else 9.0)

    world = seen(job(), on=nodes(12))
    assert load_policy("optimus-oracle", speeds=speeds).allocate(world) == {"a": Scale(workers, 1)}


def test_envelope_jumps_over_the_dip_that_stops_single_steps() -> None:
    def speeds(view: JobView, scale: Scale) -> float:
        return {1: 1.0, 2: 2.0, 3: 1.5, 4: 1.5}.get(scale.workers, 9.0) + 0.0 * scale.servers

    world = seen(job(epochs_total=1e6), on=nodes(8))
    assert load_policy("envelope-oracle", speeds=speeds).allocate(world) == {"a": Scale(5, 1)}


def test_envelope_keeps_every_job_running_where_that_is_possible() -> None:
    views = [job(f"j{n}", epochs_total=10.0 * 4**n) for n in range(4)]
    answer = load_policy("envelope").allocate(seen(*views, on=nodes(5)))
    assert set(answer) == {view.id for view in views}


@pytest.mark.parametrize("name", ["envelope", "dl2"])
def test_who_has_priority_starts_first_and_growth_is_shared_by_gain(name: str) -> None:
    """Twelve alike at one shape only, room for six; then two that can grow: the second is not starved by the first."""
    one = Scale(1, 1)
    jobs = [job(f"j{n:02d}", priority=10 * (n % 2), maximum=one, submitted_at=float(n)) for n in range(12)]
    answer = load_policy(name).allocate(seen(*jobs, on=nodes(3)))
    assert sorted(answer) == [f"j{n:02d}" for n in range(1, 12, 2)]
    first, second = job("a", priority=10), job("b")
    assert load_policy(name).allocate(seen(first, second, on=nodes(3))).keys() == {"a", "b"}


def test_the_error_option_of_optimus_changes_what_it_believes() -> None:
    observation = replace(random_observation(11), nodes=nodes(30, gpu=2), budgets={})
    assert load_policy("optimus", error=0.5).allocate(observation) != load_policy("optimus").allocate(
        observation
    )


def test_two_jobs_of_one_id_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match='two jobs have the id "a"'):
        seen(job("a"), job("b"), job("a"), on=nodes(1))


def test_samples_of_finished_jobs_serve_their_successors() -> None:
    """The first job found out that eight workers are slow; the next of its label does not try them again."""
    speeds = {Scale(w, 1): 1e-3 if w <= 2 else 1e-4 for w in range(1, 9)}
    first = _measured("first", speeds, maximum=Scale(8, 1))
    policy = load_policy("envelope", optimism=0.0)
    policy.allocate(seen(first, on=nodes(8)))
    answer = policy.allocate(seen(job("second", maximum=Scale(8, 1)), on=nodes(8), now=7200.0))
    assert answer["second"].workers <= 2


def test_time_that_runs_backwards_is_a_new_cluster() -> None:
    policy = load_policy("envelope", optimism=0.0)
    slow = {Scale(w, s): 1e-3 / w for w in range(1, 9) for s in (1, 4)}
    policy.allocate(seen(_measured("first", slow), on=nodes(8)))
    again = seen(job("second"), on=nodes(8), now=0.0)
    assert policy.allocate(again) == load_policy("envelope", optimism=0.0).allocate(again)


def test_names_are_listed_and_unknown_ones_refused() -> None:
    assert set(EVERY_POLICY) <= set(policy_names())
    with pytest.raises(UnknownPolicy, match="envelope"):
        load_policy("nonsense")


def test_third_parties_register_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "mine"

        def load(self) -> Any:
            return load_policy

    class Mine:
        name = "mine"

        def __init__(self, spice: int = 0) -> None:
            self.spice = spice

        def allocate(self, observation: Observation) -> dict[str, Scale]:
            return {}

    monkeypatch.setattr(Point, "load", lambda self: Mine)
    monkeypatch.setattr("dl2.scaling.registry.entry_points", lambda group: [Point()])
    assert load_policy("mine", spice=3).spice == 3  # type: ignore[attr-defined]
    assert "mine" in policy_names()


@pytest.mark.parametrize("statement", ["import dl2.scaling", 'import dl2.scaling as s; s.load_policy("dl2")'])
def test_neither_torch_nor_plots_are_imported(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in ('torch', 'matplotlib', 'kubernetes') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
