"""Files that a command will write to, checked before it begins to work."""

from __future__ import annotations

import os
from pathlib import Path

import typer

PICTURES = (".png", ".svg", ".pdf")


def check_target(path: Path | None, option: str, suffixes: tuple[str, ...] = ()) -> None:
    """Raises typer.BadParameter where `path` (None or "-": no file) cannot be written."""
    if path is None or str(path) == "-":
        return
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"there is no folder {folder}"
        raise typer.BadParameter(f"{what}; name a file in a folder that exists", param_hint=option)
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise typer.BadParameter(f"{path} may not be written", param_hint=option)
    if suffixes and path.suffix not in suffixes:
        raise typer.BadParameter(
            f"{path} is no picture; end its name with {', '.join(suffixes)}", param_hint=option
        )


def check_folder(path: Path | None, option: str) -> None:
    """Raises typer.BadParameter where `path` is no folder and cannot become one."""
    above = path
    while above is not None and not above.exists():
        above = above.parent
    if above is not None and not (above.is_dir() and os.access(above, os.W_OK)):
        raise typer.BadParameter(f"{path}: {above} is no folder that may be written to", param_hint=option)
