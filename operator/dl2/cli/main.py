"""The `dl2` command. Subcommands are imported when they are called, so that `dl2 --help` stays quick."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from dl2 import compiled

# Before numpy comes: its threads only wait for each other over matrices as small as ours, and take other people's cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# What a file or folder that was named can be in the way of: no defect of the program, so no traceback.
_FILES = frozenset({
    errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS
})  # fmt: skip

_COMMANDS = {
    "run": ("dl2.cli.run", "Run the operator."),
    "cluster": ("dl2.cli.cluster", "An embedded cluster on this machine: up, down, status, logs, env."),
    "decide": ("dl2.cli.decide", "One scheduling pass over manifests or a live cluster; touches nothing."),
    "queue": ("dl2.cli.queue", "The tree of queues: used, share, borrowed."),
    "policy": ("dl2.cli.policy", "The rollout of a scaling policy: show it, move it on."),
    "explain": ("dl2.cli.explain", "What was decided about the shape of a job, why, and what came of it."),
    "log": ("dl2.cli.log", "Export the decision log."),
    "simulate": ("dl2.cli.simulate", "One simulated cluster under one scaling policy."),
    "evaluate": ("dl2.cli.evaluate", "Scaling policies over suites, with confidence intervals."),
    "train": ("dl2.cli.train", "Train the scaling agent in simulation."),
    "compile": (
        "dl2.cli.compile",
        "Machine code of the decision core, for shorter passes; all works without.",
    ),
    "demo": ("dl2.cli.demo", "The whole product on an embedded cluster, with real and simulated jobs."),
}


class _Lazy(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[name]
        command = get_command(importlib.import_module(module).app)
        command.name = name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


app = typer.Typer(
    cls=_Lazy,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def main(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """DL2 shares one training cluster: elastic quotas, gang admission, learned scaling."""
    if version:
        from dl2 import __version__

        typer.echo(f"dl2 {__version__}")
        raise typer.Exit


def run() -> None:
    """The program: with machine code where it was built. Who imports `app` decides that for himself."""
    compiled.prefer()
    try:
        app(prog_name="dl2")
    except OSError as exc:
        if exc.errno not in _FILES:
            raise
        where = f"{exc.filename}: " if exc.filename else ""
        print(f"dl2: {where}{exc.strerror}", file=sys.stderr)
        sys.exit(1)
