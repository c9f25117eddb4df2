"""A label is believed as long as the jobs that carry it train alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dl2.scaling import JobView, Scale, SpeedSample
from dl2.scaling.beliefs import Measured
from dl2.scaling.history import History, is_unlabelled
from tests.unit.scaling.worlds import job, seen

SHAPES = [Scale(1, 1), Scale(2, 1), Scale(4, 2)]


def told(name: str, label: str, level: float, at: float = 60.0) -> JobView:
    """A job that trains as fast as `level` says, in epochs a second and worker."""
    samples = tuple(SpeedSample(s, level * s.workers**0.8, at + n) for n, s in enumerate(SHAPES))
    return job(name, model=label, samples=samples)


def jobs(label: str, *levels: float) -> list[JobView]:
    return [told(f"{label}-{n}", label, level) for n, level in enumerate(levels)]


def with_samples(of: JobView, samples: tuple[SpeedSample, ...]) -> JobView:
    return replace(of, samples=samples)


def believed(*of: JobView) -> bool:
    """Do those of the only label there is still share what they measure?"""
    history = History()
    history.take_in(seen(*of, now=900.0))
    shared = [not is_unlabelled(name) for name in history.kinds]
    assert all(shared) or not any(shared)
    return all(shared)


@pytest.mark.parametrize(
    ("levels", "alike"),
    [
        ((1.0, 1.0, 1.0, 1.0), True),
        ((1.0, 1.1, 0.9, 1.15, 0.85), True),
        ((1.0, 1.0, 1.0, 1.0, 9.0, 1.0), True),  # one that lies or crawls at every shape takes no label away
        ((1.0, 9.0), True),  # nor does the first to come after another one
        ((1.0, 9.0, 0.1), False),
        ((1.0, 3.0, 0.4, 2.0, 0.3), False),
        ((1.0, 1.0, 1.0, 9.0, 0.1, 4.0, 30.0, 0.02), False),  # a user who has come to train other things
    ],
)
def test_a_label_is_believed_while_its_jobs_train_alike(levels: tuple[float, ...], alike: bool) -> None:
    assert believed(*jobs("m", *levels)) is alike


def test_jobs_of_a_label_that_says_nothing_believe_what_they_have_measured_themselves() -> None:
    mine = jobs("user", 1.0, 9.0, 0.1)
    beliefs = Measured().beliefs(seen(*mine, now=900.0))
    for level, each in zip((1.0, 9.0, 0.1), mine, strict=True):
        assert beliefs[each.id].at(Scale(2, 1)) == pytest.approx(level * 2**0.8, rel=0.1)
        assert beliefs[each.id].samples == len(SHAPES)


def test_who_comes_later_under_such_a_label_starts_as_if_it_had_none() -> None:
    source = Measured()
    source.beliefs(seen(*jobs("user", 1.0, 9.0, 0.1), now=900.0))
    later = seen(job("named", model="user"), job("unnamed", model=None), now=1000.0)
    beliefs = source.beliefs(later)
    assert beliefs["named"].samples == 0
    assert beliefs["named"].at(Scale(2, 1)) == beliefs["unnamed"].at(Scale(2, 1))


@pytest.mark.parametrize(
    ("levels", "shared"), [((1.0, 9.0, 0.1), False), ((1.0, 1.0, 1.0), True)], ids=["users", "models"]
)
def test_what_is_found_of_some_labels_is_likely_of_the_others(
    levels: tuple[float, ...], shared: bool
) -> None:
    """Of the label `new` one job has told something, and there is nobody to compare it with."""
    known = [each for label in ("a", "b", "c") for each in jobs(label, *levels)]
    source = Measured()
    source.beliefs(seen(*known, *jobs("new", 5.0), now=900.0))
    belief = source.beliefs(seen(job("next", model="new"), now=1000.0))["next"]
    assert (belief.samples > 0) is shared


def test_samples_are_not_lost_or_told_twice_when_a_label_falls() -> None:
    """It falls as the third of five jobs is read; each of them has told of a shape of its own before."""
    mine = jobs("user", 1.0, 9.0, 0.1, 70.0, 3.0)
    alone = [(SpeedSample(Scale(n + 8, 1), 1.0, 30.0),) for n in range(len(mine))]
    history = History()
    history.take_in(seen(*map(with_samples, mine, alone), now=840.0))
    whole = [with_samples(each, (*before, *each.samples)) for each, before in zip(mine, alone, strict=True)]
    for now in (900.0, 960.0):
        history.take_in(seen(*whole, now=now))
    assert [kind.samples for kind in history.kinds.values()] == [1 + len(SHAPES)] * len(mine)
    assert [kind.jobs for kind in history.kinds.values()] == [1] * len(mine)


def test_a_label_that_has_fallen_stays_fallen() -> None:
    """Whatever is found of others: what its jobs measure is told to each of them, and to nobody twice."""
    source = Measured()
    source.beliefs(seen(*jobs("user", 1.0, 9.0, 0.1), now=900.0))
    good = [each for label in ("a", "b", "c", "d") for each in jobs(label, 1.0, 1.0, 1.0)]
    source.beliefs(seen(*jobs("user", 1.0, 9.0, 0.1), *good, now=960.0))
    later = source.beliefs(
        seen(told("later", "user", 300.0, at=970.0), job("next", model="user"), now=1000.0)
    )
    assert later["later"].samples == len(SHAPES)
    assert later["next"].samples == 0
