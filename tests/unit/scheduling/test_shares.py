"""Fair shares: the printed examples, and that nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl2.scheduling.shares import Ask, fair_shares
from dl2.scheduling.snapshot import Limits
from tests.unit.scheduling.dsl import GPU, World, g, nodes, q, run


def asks(*found: tuple[int, int, int]) -> list[Ask]:
    """(weight, request, min), all of it lent."""
    return [Ask(min(least, request), request, weight) for weight, request, least in found]


@pytest.mark.parametrize(
    ("total", "found", "shares"),
    [
        (100, [(40, 5, 10), (60, 20, 15), (50, 40, 20), (80, 70, 15)], [5, 20, 35, 40]),
        (100, [(40, 5, 10), (60, 20, 15), (50, 40, 20), (0, 70, 15)], [5, 20, 40, 15]),
        (15, [(2, 6, 2), (2, 6, 2)], [6, 6]),
        (8, [(1, 6, 2), (3, 6, 2)], [3, 5]),
        (11, [(1, 10, 2), (4, 10, 2)], [3, 8]),
        (8, [(1, 8, 6), (1, 10, 10)], [3, 5]),
        (3, [(1, 3, 0), (1, 3, 0)], [2, 1]),
        (0, [(1, 3, 2)], [0]),
        (5, [], []),
        (5, [(0, 9, 2), (0, 9, 1)], [2, 1]),
        (10, [(1, 0, 0), (1, 20, 0)], [0, 10]),
        (7, [(1, 2, 0), (1, 9, 0), (1, 9, 0)], [2, 3, 2]),
    ],
)
def test_examples(total, found, shares):
    assert fair_shares(total, asks(*found)) == shares


def test_what_is_not_lent_is_kept():
    assert fair_shares(10, [Ask(4, 0, 1), Ask(0, 20, 1)]) == [4, 6]


@st.composite
def levels(draw):
    found = draw(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=8)
    )
    return draw(st.integers(0, 120)), asks(*found)


@given(levels())
def test_shares_add_up_and_respect_guarantees_and_requests(level):
    total, found = level
    shares = fair_shares(total, found)
    guaranteed = sum(ask.guarantee for ask in found)
    wanted = guaranteed + sum(ask.request - ask.guarantee for ask in found if ask.weight)
    assert sum(shares) == min(total, wanted)
    for share, ask in zip(shares, found, strict=True):
        assert share <= ask.request
        if guaranteed <= total:
            assert share >= ask.guarantee


@given(levels(), st.randoms())
def test_the_order_matters_by_one_unit_at_most(level, rng):
    total, found = level
    order = list(range(len(found)))
    rng.shuffle(order)
    again = dict(zip(order, fair_shares(total, [found[i] for i in order]), strict=True))
    assert all(abs(share - again[i]) <= 1 for i, share in enumerate(fair_shares(total, found)))


@given(levels())
def test_more_total_is_less_for_nobody_but_rounding(level):
    total, found = level
    before, after = fair_shares(total, found), fair_shares(total + 1, found)
    assert all(b >= a - 1 for a, b in zip(before, after, strict=True))


def figures(world: World) -> dict[str, tuple[int, int, int, int]]:
    usage = {name: state.usage[GPU] for name, state in world.plan().queues.items()}
    return {name: (u.used, u.share, u.borrowed, u.lent) for name, u in usage.items()}


def test_shares_run_down_the_tree():
    queues = [q("l", weight=1), q("r", weight=3), q("a", "r"), q("b", "r", weight=3)]
    groups = [g("l/x", 99), g("a/x", 99), g("b/x", 99)]
    assert {name: row[1] for name, row in figures(World(queues, nodes(2), groups)).items()} == {
        "l": 4, "r": 12, "a": 3, "b": 9,
    }  # fmt: skip


def test_max_caps_the_share_and_the_rest_goes_on():
    queues = [q("a", max=2), q("b")]
    found = figures(World(queues, nodes(1), [g("a/x", 99), g("b/x", 99)]))
    assert (found["a"][1], found["b"][1]) == (2, 6)


def test_lent_is_what_others_really_use():
    queues = [q("a", min=4), q("b", min=2), q("c", min=2)]
    found = figures(World(queues, nodes(1), [run("c/x", 5, on={"n1": 5})]))
    assert found["c"] == (5, 5, 3, 0)
    assert (found["a"][3], found["b"][3]) == (2, 1)


def test_lend_caps_what_is_lent():
    queues = [q("a", min=4, lend=1), q("c")]
    assert figures(World(queues, nodes(1), [run("c/x", 5, on={"n1": 5})]))["a"][3] == 1


def test_pending_and_admitted_are_counted():
    world = World(
        [q("a", limits={"cpu": Limits()})], nodes(1), [g("a/x", 8), g("a/y"), g("a/z", suspend=True)]
    )
    state = world.plan().queues["a"]
    assert (state.pending, state.admitted) == (2, 1)


def test_a_queue_that_names_nothing_shows_what_it_asks_for_in_vain():
    world = World([q("a", weight=1_000_000), q("b")], nodes(1), [g("a/x", 8), g("b/y", 1)])
    usage = world.plan().queues["b"].usage["nvidia.com/gpu"]
    assert (usage.used, usage.share) == (0, 0)


def test_a_queue_without_its_parent_shows_what_its_groups_still_use():
    world = World([q("b", "nowhere")], nodes(1), [run("b/r", 4, on={"n1": 4})])
    state = world.plan().queues["b"]
    assert "nowhere" in state.error
    usage = state.usage["nvidia.com/gpu"]
    assert (usage.used, usage.share, usage.borrowed, usage.lent) == (4, 0, 4, 0)


def test_what_the_lender_uses_itself_comes_out_of_what_it_keeps():
    world = World([q("a", min=8, lend=4), q("b")], nodes(1), [run("a/0", 3), run("b/0", 4)])
    assert figures(world)["a"][3] == 4
