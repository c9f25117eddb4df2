"""`dl2 evaluate`: policies over suites, with confidence intervals of paired differences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dl2.cli.files import check_folder, check_target
from dl2.learning.evaluation import Report, as_json, evaluate
from dl2.learning.run import ORACLES, split_options
from dl2.learning.statistics import Estimate
from dl2.learning.suites import SUITES, Split, suite_named
from dl2.scaling.registry import UnknownPolicy, load_policy

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
_WIDTH = 140  # narrower, and figures would be broken over lines
_DEFAULT = "drf,tetris,tiresias,srtf,optimus,srpt-gain,envelope,dl2,optimus-oracle,envelope-oracle"


@app.command("evaluate")
def command(
    suite: Annotated[list[str] | None, typer.Option(help="Suite; may be repeated. Default: contended.")] = None,
    policies: Annotated[str, typer.Option(help="Names or checkpoints, separated by commas; options as in envelope:optimism=0.")] = _DEFAULT,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Cases of each suite.")] = 10,
    split: Annotated[Split, typer.Option(help="Which seeds; numbers to publish come from test.")] = Split.TEST,
    processes: Annotated[int, typer.Option(min=1, help="Processes that play cases side by side.")] = 1,
    list_suites: Annotated[bool, typer.Option("--list", help="Name the suites and exit.")] = False,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file (- is standard output).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for the distributions of completion times.")] = None,
) -> None:  # fmt: skip
    """Print a table per suite. "below" is by how many percent the mean completion time is shorter, pair by pair."""
    if list_suites:
        for known in SUITES.values():
            typer.echo(f"{known.name:12} {known.about}")
        return
    check_target(to_json, "--json")
    check_folder(plot, "--plot")
    names = [name.strip() for name in policies.split(",") if name.strip()]
    try:
        for name in names:
            base, options = split_options(name)
            if base not in ORACLES:  # those want the true speeds of a run
                load_policy(base, **options)
        for name in suite or ():
            suite_named(name)
    except (UnknownPolicy, ValueError, TypeError) as exc:
        typer.echo(f"dl2 evaluate: {exc}", err=True)
        raise typer.Exit(2) from None
    to_stderr = to_json is not None and str(to_json) == "-"
    console = Console(stderr=to_stderr, width=max(Console(stderr=to_stderr).width, _WIDTH))
    reports = [_measured(name, names, seeds, split, processes) for name in suite or ["contended"]]
    for report in reports:
        console.print(_table(report))
    if to_json is not None:
        data = orjson.dumps([as_json(report) for report in reports], option=orjson.OPT_INDENT_2)
        typer.echo(data.decode()) if str(to_json) == "-" else to_json.write_bytes(data)
    if plot is not None:
        from dl2.learning.plots import completion_times

        plot.mkdir(parents=True, exist_ok=True)
        for report in reports:
            completion_times(report.outcomes, plot / f"{report.suite}-jct.png")


def _measured(suite: str, names: list[str], seeds: int, split: Split, processes: int) -> Report:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(suite, total=seeds * len({*names, "drf", "optimus"}))

        def tell(case: str, policy: str) -> None:
            bar.update(task, advance=1, description=f"{case} {policy}")

        return evaluate(suite, names, seeds, split, tell, processes)


def _table(report: Report) -> Table:
    table = Table(title=f"{report.suite}: {report.seeds} {report.split.value} seeds", box=SIMPLE)
    table.add_column("policy", no_wrap=True)
    heads = ("mean\nJCT min", "p95\nmin", "make-\nspan h", "used", "fair", "re-\nsizes", "ms",
             "% below\ndrf", "% below\noptimus", "un-\nfinished", "cut")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in report.rows:
        means = {name: value.mean for name, value in row.figures.items()}
        table.add_row(
            row.policy.rpartition("/")[2],
            f"{means['mean_jct'] / 60:.0f}", f"{means['p95_jct'] / 60:.0f}", f"{means['makespan'] / 3600:.1f}",
            f"{means['utilisation']:.2f}", f"{means['fairness']:.2f}", f"{means['resizes']:.0f}",
            f"{means['decision']:.1f}", _interval(row.below["drf"]), _interval(row.below["optimus"]),
            str(row.unfinished), str(row.cuts),
        )  # fmt: skip
    table.add_row(
        "(alone)", f"{report.bound.mean / 60:.0f}", *[""] * 6,
        _interval(report.bound_below["drf"]), _interval(report.bound_below["optimus"]), "", "",
    )  # fmt: skip
    return table


def _interval(value: Estimate) -> str:
    return f"{value.mean:.1f}" if math.isinf(value.half) else f"{value.mean:.1f} ± {value.half:.1f}"
