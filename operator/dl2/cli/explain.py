"""`dl2 explain JOB`: what was decided about the shape of a job, why, and what came of it, from the decision log."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from dl2.controller.decisionlog import LogError, history, jobs_in, reading, unpacked

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
LOG = Annotated[Path, typer.Option("--log", envvar="DL2_DECISION_LOG", help="The file that `dl2 run --decision-log` writes.")]  # fmt: skip


@app.command()
def explain(
    job: Annotated[str, typer.Argument(help="NAMESPACE/NAME of a DLJob.")],
    log: LOG,
    last: Annotated[int, typer.Option(min=1, help="So many rounds.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Shapes are workers x servers: what the job had, what each policy wanted, what it was given and why."""
    try:
        with reading(log) as db:
            verdicts, outcomes = history(db, job, last)
            if not verdicts:
                raise LogError(f"{job} is in no round of {log}; there are {_some(jobs_in(db))}")
    except LogError as exc:
        typer.echo(f"dl2 explain: {exc}", err=True)
        raise typer.Exit(2) from None
    if json:
        for record in _records(verdicts, outcomes):
            typer.echo(orjson.dumps(record).decode())
        return
    Console().print(_table(verdicts, outcomes))


def _some(jobs: list[str]) -> str:
    return ", ".join(jobs[:5]) + (f" and {len(jobs) - 5} more" if len(jobs) > 5 else "") if jobs else "none"


def _records(verdicts: list[sqlite3.Row], outcomes: list[sqlite3.Row]) -> list[dict[str, Any]]:
    """Rounds and outcomes in the order of time."""
    told = [
        {"record": "verdict"} | {k: v for k, v in dict(row).items() if k != "answers"} for row in verdicts
    ]
    came = [{"record": "outcome"} | dict(row) for row in outcomes]
    return sorted(told + came, key=lambda record: record["at"])


def _table(verdicts: list[sqlite3.Row], outcomes: list[sqlite3.Row]) -> Table:
    names = {arm: told["policy"] for arm, told in unpacked(verdicts[-1]["answers"]).items()}
    table = Table(
        "time", "stage", "has", *(f"{names[arm]} ({arm})" for arm in names), "given", "why", "epochs/s"
    )
    for record in _records(verdicts, outcomes):
        moment = datetime.fromtimestamp(record["at"]).astimezone().strftime("%H:%M:%S")
        if record["record"] == "outcome":
            took = "" if record["seconds"] is None else f" ({record['seconds']:.3g} s)"
            empty = [""] * (1 + len(names))
            table.add_row(
                moment, record["arm"], *empty, record["kind"], record["message"] + took, "", style="cyan"
            )
            continue
        speed = (
            ""
            if record["speed_before"] is None
            else f"{record['speed_before']:.3g} → {record['speed_after']:.3g}"
        )
        why = record["ruling"] + (f": {record['message']}" if record["message"] else "")
        wanted = [record[arm] or "no answer" for arm in names]
        table.add_row(moment, record["stage"], record["current"], *wanted, record["given"], why, speed)
    return table
