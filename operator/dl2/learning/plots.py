"""Pictures: completion times, shapes over time, learning curves. matplotlib is imported here alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dl2.learning.run import Outcome
from dl2.scaling.interface import Scale

_HOUR = 3600.0


def completion_times(outcomes: Sequence[Outcome], path: Path) -> None:
    """Cumulative distribution of job completion times by policy, over all cases."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for policy in dict.fromkeys(found.policy for found in outcomes):
        times = sorted(
            job.jct / _HOUR for found in outcomes if found.policy == policy for job in found.tally.finished
        )
        axes.step(times, np.arange(1, len(times) + 1) / max(len(times), 1), where="post", label=policy)
    axes.set(xlabel="job completion time (hours)", ylabel="part of jobs", ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=120)


def timeline(outcome: Outcome, path: Path) -> None:
    """Gantt of shapes: one line a job from submission to end, as thick and dark as it has pods."""
    jobs = sorted(outcome.tally.finished, key=lambda job: (job.submitted_at, job.id))
    row = {job.id: n for n, job in enumerate(jobs)}
    figure = Figure(figsize=(10, max(3.0, 0.16 * len(jobs) + 1)), layout="constrained")
    axes = figure.subplots()
    since: dict[str, tuple[float, Scale]] = {}
    largest = max((sum(scale) for _, _, scale in outcome.tally.shapes), default=1) or 1
    for job in jobs:
        axes.plot([job.submitted_at / _HOUR, job.finished_at / _HOUR], [row[job.id]] * 2, lw=0.5, color="0.7")
    for at, name, scale in outcome.tally.shapes:
        if name in since and since[name][1].workers and name in row:
            begin, held = since[name]
            shade = sum(held) / largest
            axes.barh(
                row[name], (at - begin) / _HOUR, left=begin / _HOUR, height=0.25 + 0.65 * shade,
                color=(0.1, 0.35, 0.7, 0.25 + 0.75 * shade), linewidth=0,
            )  # fmt: skip
        since[name] = (at, scale)
    axes.set(xlabel="hours", ylabel="job, by submission", title=f"{outcome.policy} on {outcome.case}")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def learning_curve(rows: Sequence[tuple[int, float, float | None]], path: Path) -> None:
    """Training measure (left) and validation score (right) by iteration."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row[0] for row in rows], [row[1] for row in rows], color="0.6", label="training")
    axes.set(xlabel="iteration", ylabel="training")
    scored = [(n, score) for n, _, score in rows if score is not None]
    right = axes.twinx()
    right.plot([n for n, _ in scored], [score for _, score in scored], marker="o", label="validation")
    right.set(ylabel="validation (below 0 is better)")
    figure.savefig(path, dpi=120)


def workers_over_time(
    panels: Sequence[tuple[str, Sequence[tuple[float, Mapping[str, int]]]]], marked: float, path: Path
) -> None:
    """How many workers every job had, stacked: one panel a (title, [(seconds, workers by job)]), a line at `marked`."""
    figure = Figure(figsize=(10, 3 * len(panels)), layout="constrained")
    jobs = list(dict.fromkeys(job for _, seen in panels for _, workers in seen for job in workers))
    every = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (title, seen) in zip(every, panels, strict=True):
        rows = [[workers.get(job, 0) for _, workers in seen] for job in jobs]
        axes.stackplot([at for at, _ in seen], rows, labels=jobs, step="post")
        axes.axvline(marked, color="black", linestyle=":", linewidth=1)
        axes.set(ylabel="workers", title=title)
    every[-1].set(xlabel="seconds")
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside right center", title="job")
    figure.savefig(path, dpi=100)
