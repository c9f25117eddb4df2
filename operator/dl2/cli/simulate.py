"""`dl2 simulate`: one simulated cluster under one policy, from a suite or a trace file."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from dl2.cli.files import PICTURES, check_target
from dl2.learning.run import Outcome, run
from dl2.learning.simulator import Clock, Settings
from dl2.learning.suites import Case, suite_named
from dl2.learning.traces import TraceError, read_trace, write_trace
from dl2.learning.workload import GPU, Workload, nodes_of
from dl2.scaling.guardrails import Limits
from dl2.scaling.registry import UnknownPolicy

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command("simulate")
def command(
    policy: Annotated[str, typer.Option(help="A policy's name, or the path of a checkpoint.")] = "drf",
    suite: Annotated[str, typer.Option(help="Suite to draw the case from.")] = "testbed",
    case: Annotated[int, typer.Option(min=0, help="Which of its test cases.")] = 0,
    trace: Annotated[Path | None, typer.Option(help="Jobs from this CSV in place of a suite.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="With --trace: how many nodes.")] = 13,
    node_cpu: Annotated[int, typer.Option(min=1, help="With --trace: CPUs of a node.")] = 8,
    node_gpu: Annotated[int, typer.Option(min=0, help="With --trace: GPUs of a node.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="With --trace: of speeds and noise.")] = 0,
    clock: Annotated[Clock | None, typer.Option(help="Decide by slots, by events too, or as the operator.")] = None,
    interval: Annotated[float | None, typer.Option(min=1.0, help="Seconds between decisions.")] = None,
    noise: Annotated[float | None, typer.Option(min=0.0, help="Deviation of measured speeds.")] = None,
    interference: Annotated[float | None, typer.Option(min=0.0, max=0.9, help="Speed lost on a shared node.")] = None,
    resize: Annotated[float | None, typer.Option(min=0.0, help="Seconds that a resize costs.")] = None,
    start_up: Annotated[float | None, typer.Option(min=0.0, help="Seconds until a job that starts trains.")] = None,
    cooldown: Annotated[float | None, typer.Option(min=0.0, help="With the operator's clock: seconds between two resizes of a job.")] = None,
    max_step: Annotated[int | None, typer.Option("--max-scale-step", min=1, help="With it: the largest change of workers or servers at once.")] = None,
    min_gain: Annotated[float | None, typer.Option("--min-gain-percent", min=0.0, help="With it: the least gain in speed to grow for.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures and jobs as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw shapes over time to this picture.")] = None,
    trace_to: Annotated[Path | None, typer.Option(help="Write the jobs as a trace.")] = None,
) -> None:  # fmt: skip
    """Run one case to its end and print what came of it. Exit 2: bad input."""
    check_target(plot, "--plot", PICTURES)
    check_target(trace_to, "--trace-to")
    try:
        chosen = (
            _from_trace(trace, nodes, node_cpu, node_gpu, seed) if trace else suite_named(suite).case(case)
        )
        asked = {
            "clock": clock,
            "interval": interval,
            "noise": noise,
            "interference": interference,
            "resize": resize,
            "start_up": start_up,
            "cooldown": cooldown,
        }
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        limits = chosen.settings.limits
        limits = Limits(
            limits.step if max_step is None else max_step, limits.gain if min_gain is None else min_gain / 100
        )
        settings = replace(chosen.settings, limits=limits, **changes)
        chosen = replace(chosen, settings=settings)
        found = run(policy, chosen)
    except (TraceError, UnknownPolicy, ValueError) as exc:
        typer.echo(f"dl2 simulate: {exc}", err=True)
        raise typer.Exit(2) from None
    if trace_to:
        write_trace(trace_to, chosen.workload.jobs)
    if plot:
        from dl2.learning.plots import timeline

        timeline(found, plot)
    if as_json:
        typer.echo(orjson.dumps(_plain(found), option=orjson.OPT_INDENT_2).decode())
    else:
        _show(found)


def _from_trace(path: Path, nodes: int, cpu: int, gpu: int, seed: int) -> Case:
    jobs = read_trace(path, seed)
    if not jobs:
        raise TraceError(f"{path}: holds no job")
    return Case(path.name, Workload(jobs, nodes_of(nodes, {"cpu": cpu * 1000, GPU: gpu})), Settings(), seed)


def _plain(found: Outcome) -> dict[str, Any]:
    figures = {field.name: getattr(found, field.name) for field in fields(found) if field.name != "tally"}
    jobs = [{**asdict(job), "jct": job.jct} for job in found.tally.finished]
    return {**figures, "jobs": jobs, "cut_by": dict(found.tally.cuts)}


def _show(found: Outcome) -> None:
    table = Table(title=f"{found.policy} on {found.case}", show_header=False)
    rows = (
        ("jobs finished", f"{len(found.tally.finished)}"),
        ("unfinished", f"{found.unfinished}"),
        ("mean completion time", f"{found.mean_jct / 60:.1f} min"),
        ("95th percentile", f"{found.p95_jct / 60:.1f} min"),
        ("makespan", f"{found.makespan / 60:.1f} min"),
        ("utilisation", f"{found.utilisation:.1%}"),
        ("fairness (Jain)", f"{found.fairness:.3f}"),
        ("resizes", f"{found.resizes}"),
        ("jobs cut", f"{found.cuts}"),
        ("failed nodes", f"{found.tally.failures}"),
        ("one decision", f"{found.decision:.1f} ms"),
        ("every job alone", f"{found.alone / 60:.1f} min (bound)"),
    )
    for row in rows:
        table.add_row(*row)
    Console().print(table)
