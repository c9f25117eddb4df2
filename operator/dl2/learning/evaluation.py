"""Suites under several policies: figures, and paired differences to DRF and to Optimus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
) -> Report:
    """Run every policy on the same `seeds` cases. References that were not asked for are run too."""
    names = list(dict.fromkeys([*policies, *REFERENCES]))
    cases = [suite_named(suite).case(n, split) for n in range(seeds)]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for case in cases:
        for name in names:
            progress(case.name, name)
            outcomes[name].append(run(name, case))
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
