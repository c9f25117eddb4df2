"""`dl2 compile`: the decision core as machine code, in the cache."""

from __future__ import annotations

import subprocess

import typer

from dl2 import compiled

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def command() -> None:
    """Build machine code of the decision core, where it is not in the cache; prints the folder."""
    try:
        folder = compiled.build()
    except (OSError, subprocess.CalledProcessError) as error:
        typer.echo(
            f"dl2 compile: {error}; it needs `pip install 'dl2[dev]'`, a C compiler and Python's headers "
            "(Debian: apt-get install gcc python3-dev). Without it all is interpreted",
            err=True,
        )
        raise typer.Exit(1) from None
    typer.echo(folder)
