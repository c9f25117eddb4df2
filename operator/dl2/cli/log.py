"""`dl2 log export`: the decision log as JSON lines, for offline learning and for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import orjson
import typer

from dl2.cli.explain import LOG
from dl2.controller.decisionlog import LogError, exported, reading

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def log() -> None:
    """The decision log."""


@app.command()
def export(
    log: LOG,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: standard output.")] = None,
) -> None:
    """Every round (observation, answers, verdicts), then every outcome, oldest first, one JSON object a line."""
    try:
        with reading(log) as db, click.open_file(str(out) if out else "-", "wb") as file:
            for record in exported(db):
                file.write(orjson.dumps(record) + b"\n")
    except (LogError, OSError) as exc:
        typer.echo(f"dl2 log export: {exc}", err=True)
        raise typer.Exit(2) from None
