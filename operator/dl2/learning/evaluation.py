"""Suites under several policies: figures, and paired differences to DRF and to Optimus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from dl2.learning.run import LOWER_BOUND, Outcome, run
from dl2.learning.statistics import Estimate, below, estimate
from dl2.learning.suites import Split, suite_named

REFERENCES = ("drf", "optimus")
FIGURES = ("mean_jct", "p95_jct", "makespan", "utilisation", "fairness", "resizes", "decision")


@dataclass(frozen=True, slots=True)
class Row:
    """One policy in one suite: figures over its cases, and how many percent below each reference it lies."""

    policy: str
    figures: dict[str, Estimate]
    below: dict[str, Estimate]
    unfinished: int
    cuts: int


@dataclass(frozen=True, slots=True)
class Report:
    """One suite. `bound`: mean seconds if each job had the cluster for itself, which nothing can reach."""

    suite: str
    seeds: int
    split: Split
    rows: tuple[Row, ...]
    bound: Estimate
    bound_below: dict[str, Estimate]
    outcomes: tuple[Outcome, ...]


def evaluate(
    suite: str,
    policies: Sequence[str],
    seeds: int,
    split: Split = Split.TEST,
    progress: Callable[[str, str], None] = lambda *_: None,
    processes: int = 1,
) -> Report:
    """Run every policy on the same `seeds` cases, in so many `processes`. References that were not asked for are
    run too. `progress` is told each case and policy that is done. How long a decision takes is the only figure that
    depends on `processes`.
    """
    names = list(dict.fromkeys([*policies, *REFERENCES]))
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    plays = [_Play(suite, n, split, name) for n in range(seeds) for name in names]
    for found in _played(plays, processes):
        outcomes[found.policy].append(found)
        progress(found.case, found.policy)
    jct = {name: [found.mean_jct for found in outcomes[name]] for name in names}
    alone = [found.alone for found in outcomes[names[0]]]
    return Report(
        suite,
        seeds,
        split,
        tuple(_row(name, outcomes[name], jct) for name in names),
        estimate(alone),
        {reference: below(alone, jct[reference]) for reference in REFERENCES},
        tuple(found for name in names for found in outcomes[name]),
    )


@dataclass(frozen=True, slots=True)
class _Play:
    """The n-th case of a suite under one policy."""

    suite: str
    n: int
    split: Split
    policy: str

    def outcome(self) -> Outcome:
        return run(self.policy, suite_named(self.suite).case(self.n, self.split))


def _played(plays: Sequence[_Play], processes: int) -> Iterator[Outcome]:
    """In the order of `plays`."""
    if processes == 1:
        yield from map(_Play.outcome, plays)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(_Play.outcome, plays)


def _row(name: str, outcomes: Sequence[Outcome], jct: dict[str, list[float]]) -> Row:
    return Row(
        name,
        {figure: estimate([float(getattr(found, figure)) for found in outcomes]) for figure in FIGURES},
        {reference: below(jct[name], jct[reference]) for reference in REFERENCES},
        sum(found.unfinished for found in outcomes),
        sum(found.cuts for found in outcomes),
    )


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data; an infinite half-width (one case) is null."""

    def plain(value: Estimate) -> dict[str, float | None]:
        return {"mean": value.mean, "half": value.half if value.half != float("inf") else None}

    return {
        "suite": report.suite,
        "split": report.split.value,
        "seeds": report.seeds,
        "policies": {
            row.policy: {
                **{name: plain(value) for name, value in row.figures.items()},
                "below": {name: plain(value) for name, value in row.below.items()},
                "unfinished": row.unfinished,
                "cuts": row.cuts,
            }
            for row in report.rows
        },
        LOWER_BOUND: {
            "mean_jct": plain(report.bound),
            "below": {name: plain(value) for name, value in report.bound_below.items()},
        },
    }
