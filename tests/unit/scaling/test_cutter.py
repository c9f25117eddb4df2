"""Whatever a policy answers, what is left is feasible, and nothing is cut that would have fitted."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl2.scaling import Cut, NodeView, Observation, Scale, cut
from tests.unit.scaling.worlds import GPU, job, nodes, observations, seen

anything = st.one_of(
    st.tuples(st.integers(-2, 20), st.integers(-2, 20)),
    st.just((math.nan, 1)), st.just((math.inf, 1)), st.none(), st.just((1.5, 2)), st.just("x"),
)  # fmt: skip


def held(observation: Observation, result: Cut) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """(node, resource) and (queue, resource) used."""
    by_node: Counter[tuple[str, str]] = Counter()
    by_queue: Counter[tuple[str, str]] = Counter()
    for view in observation.jobs:
        spread = result.spreads.get(view.id)
        if spread is None:
            continue
        for requests, places in (
            (view.worker_requests, spread.workers),
            (view.server_requests, spread.servers),
        ):
            for node in places:
                for name, amount in requests.items():
                    by_node[node, name] += amount
                    by_queue[view.queue, name] += amount
    return by_node, by_queue


@given(observations, st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_left_is_within_bounds_budgets_and_nodes(observation: Observation, data: Any) -> None:
    answer = {view.id: data.draw(anything) for view in observation.jobs}
    result = cut(observation, answer)
    by_node, by_queue = held(observation, result)
    free = {(node.name, name): amount for node in observation.nodes for name, amount in node.free.items()}
    assert all(amount <= free.get(key, 0) for key, amount in by_node.items())
    for queue, budget in observation.budgets.items():
        assert all(by_queue[queue, name] <= amount for name, amount in budget.items())
    views = {view.id: view for view in observation.jobs}
    for name, scale in result.scales.items():
        low, high = views[name].minimum, views[name].maximum
        assert low.workers <= scale.workers <= high.workers
        assert low.servers <= scale.servers <= high.servers
        assert (len(result.spreads[name].workers), len(result.spreads[name].servers)) == scale


@given(observations)
@settings(max_examples=20, deadline=None)
def test_a_feasible_answer_is_left_as_it_is(observation: Observation) -> None:
    first = cut(observation, {view.id: Scale(4, 4) for view in observation.jobs})
    again = cut(observation, first.scales)
    assert again.scales == first.scales
    assert not again.counts


@given(observations, st.randoms())
@settings(max_examples=20, deadline=None)
def test_the_order_of_jobs_and_nodes_means_nothing(observation: Observation, random: Any) -> None:
    answer = {view.id: Scale(5, 3) for view in observation.jobs}
    jobs, places = list(observation.jobs), list(observation.nodes)
    random.shuffle(jobs)
    random.shuffle(places)
    mixed = Observation(
        observation.now, observation.interval, tuple(jobs), tuple(places), observation.budgets
    )
    assert cut(mixed, answer) == cut(observation, answer)


@pytest.mark.parametrize(
    ("asked", "given_", "reason"),
    [
        pytest.param(Scale(20, 4), Scale(8, 4), "bounds", id="above the maximum"),
        pytest.param(Scale(2, 0), None, "bounds", id="below the minimum of servers"),
        pytest.param((math.nan, 1), None, "bounds", id="not a number"),
        pytest.param((-1, 1), None, "bounds", id="negative"),
        pytest.param(Scale(8, 8), Scale(8, 8), None, id="fits"),
    ],
)
def test_bounds(asked: Any, given_: Scale | None, reason: str | None) -> None:
    result = cut(seen(job(), on=nodes(4)), {"a": asked})
    assert result.scales.get("a") == given_
    assert dict(result.counts) == ({reason: 1} if reason else {})


def test_a_job_nobody_knows_is_counted_and_dropped() -> None:
    assert cut(seen(on=nodes(1)), {"ghost": Scale(1, 1)}).counts == {"unknown": 1}


def test_a_budget_gives_everybody_the_minimum_before_anybody_more() -> None:
    world = seen(job("a"), job("b"), on=nodes(9), budgets={"q": {"cpu": 12000}})
    result = cut(world, {"a": Scale(4, 4), "b": Scale(4, 4)})
    assert result.scales == {"a": Scale(2, 1), "b": Scale(2, 1)}
    assert result.counts == {"budget": 2}


def test_a_budget_of_another_queue_does_not_matter() -> None:
    world = seen(job("a"), on=nodes(9), budgets={"other": {"cpu": 0}})
    assert cut(world, {"a": Scale(4, 4)}).scales == {"a": Scale(4, 4)}


def test_cpu_only_pods_do_not_strand_gpus() -> None:
    """Two nodes of 8 CPU and 8 GPU hold 4 servers and 4 workers of 4 GPU, but only if the servers are spread."""
    view = job("a", worker_requests={"cpu": 2000, GPU: 4})
    result = cut(seen(view, on=nodes(2, gpu=8)), {"a": Scale(4, 4)})
    assert result.scales == {"a": Scale(4, 4)}
    assert Counter(result.spreads["a"].servers) == {"n000": 2, "n001": 2}


def test_a_job_that_cannot_have_its_minimum_makes_room_for_the_others() -> None:
    greedy = job("a", minimum=Scale(8, 8))
    result = cut(seen(greedy, job("b"), on=nodes(1)), {"a": Scale(8, 8), "b": Scale(2, 2)})
    assert result.scales == {"b": Scale(2, 2)}
    assert result.counts == {"nodes": 1}


def test_an_answer_beyond_all_nodes_is_rationed_as_a_budget_is() -> None:
    """Servers go to nodes first: with those of all three no worker would be left."""
    views = [job(name, worker_requests={"cpu": 2000, GPU: 2}) for name in "abc"]
    result = cut(
        seen(*views, on=nodes(1, gpu=2)),
        dict(zip("abc", [Scale(1, 3), Scale(1, 1), Scale(1, 1)], strict=True)),
    )
    assert result.scales == {"a": Scale(1, 3)}
    assert result.counts == {"nodes": 2}


def test_who_is_too_large_for_any_node_takes_nothing_from_the_others() -> None:
    giant = job("a", worker_requests={"cpu": 9000})
    result = cut(seen(giant, job("b"), on=nodes(2)), {"a": Scale(1, 1), "b": Scale(4, 4)})
    assert result.scales == {"b": Scale(4, 4)}


def test_who_went_without_gets_what_is_left_over() -> None:
    """Pods of one kind are placed for all jobs before those of the next: a fits only where nobody of b is."""
    a = job("a", priority=10, worker_requests={"cpu": 1000, GPU: 2}, maximum=Scale(1, 1))
    b = job("b", server_requests={"cpu": 1000}, worker_requests={"cpu": 2000, GPU: 1}, maximum=Scale(1, 1))
    world = seen(
        a, b, on=(NodeView("n0", *2 * [{"cpu": 4000, GPU: 2}]), NodeView("n1", *2 * [{"cpu": 4000, GPU: 1}]))
    )
    assert cut(world, {"a": Scale(1, 1), "b": Scale(1, 1)}).scales == {"a": Scale(1, 1), "b": Scale(1, 1)}


@given(observations)
@settings(max_examples=60, deadline=None)
def test_too_much_for_everybody_is_never_cut_to_nothing(observation: Observation) -> None:
    """Where one job could run at its minimum alone, some job runs."""
    everything = cut(observation, {view.id: view.maximum for view in observation.jobs})
    alone = [cut(observation, {view.id: view.minimum}).scales for view in observation.jobs]
    assert bool(everything.scales) == any(alone)


def test_an_unknown_resource_fits_nowhere_and_no_request_fits_everywhere() -> None:
    alien = job("a", worker_requests={"alien.com/tpu": 1})
    free = job("b", worker_requests={}, server_requests={})
    result = cut(seen(alien, free, on=nodes(1)), {"a": Scale(1, 1), "b": Scale(3, 3)})
    assert result.scales == {"b": Scale(3, 3)}


def test_without_nodes_nothing_runs() -> None:
    assert cut(seen(job()), {"a": Scale(1, 1)}).scales == {}
