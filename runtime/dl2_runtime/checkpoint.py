"""Checkpoints on a shared folder: one file per server, and a manifest that makes the whole valid.

    DIR/step-120/server-0-ab12.part    a JSON line that describes the chunks, then their bytes
    DIR/step-120/manifest.json         the step, the parameters, the names of the parts and how parameters are cut

The manifest is written last and renamed into place; a folder without one is an attempt that failed. Chunks are known by
number, so a checkpoint is of use only to a runtime that cuts parameters in the same way.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from dl2_runtime.view import LAYOUT

KEEP = 2  # complete checkpoints
SUFFIX = ".part"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file."""


def write_part(folder: str, server: str, chunks: Sequence[tuple[dict[str, Any], list[Any]]]) -> None:
    """Write a server's chunks: for each its description and its arrays. Raises OSError."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    partial = path / f"{server}.partial"
    head = [
        {
            **body,
            "nbytes": [array.nbytes for array in arrays],
            "crc": [zlib.crc32(memoryview(array).cast("B")) for array in arrays],
        }
        for body, arrays in chunks
    ]
    with partial.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        for _, arrays in chunks:
            for array in arrays:
                file.write(memoryview(array).cast("B"))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path / (server + SUFFIX))


def read_parts(folder: str, wanted: set[int]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """The wanted chunks (by number). Raises CheckpointError if one is damaged or missing."""
    missing = set(wanted)
    for name in _manifest(Path(folder))["parts"]:
        path = Path(folder) / (name + SUFFIX)
        with path.open("rb") as file:
            for body in json.loads(file.readline()):
                if body["chunk"] not in missing:
                    file.seek(sum(body["nbytes"]), os.SEEK_CUR)
                    continue
                missing.discard(body["chunk"])
                yield body, [_array(file, path, *item) for item in _items(body)]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} chunks, the first is {min(missing)}")


def _items(body: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
    for nbytes, crc in zip(body["nbytes"], body["crc"]):
        yield nbytes, crc, body["dtype"]


def _array(file: Any, path: Path, nbytes: int, crc: int, dtype: str) -> Any:
    array = np.empty(nbytes, dtype=np.uint8)
    if file.readinto(array.data) != nbytes or zlib.crc32(array.data) != crc:
        raise CheckpointError(f"{path} is damaged")
    return array.view(dtype)


def folder_for(directory: Path, step: int) -> Path:
    return directory / f"step-{step}"


def complete(folder: str, step: int, keys: list[list[Any]], parts: Sequence[str]) -> None:
    """Write the manifest once all `parts` (server ids) are there, then remove older checkpoints. Raises OSError."""
    path = Path(folder)
    partial = path / "manifest.partial"
    body = {"step": step, "keys": keys, "parts": list(parts), "layout": LAYOUT}
    with partial.open("w") as file:
        json.dump(body, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path / "manifest.json")
    for old in _complete_folders(path.parent)[:-KEEP]:
        shutil.rmtree(str(old), ignore_errors=True)


def _complete_folders(directory: Path) -> list[Path]:
    """Oldest first."""
    found = [path.parent for path in directory.glob("step-*/manifest.json")]
    numbered = [path for path in found if path.name[5:].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name[5:]))


def latest(directory: Path | None) -> tuple[Path, int, list[list[Any]]] | None:
    """The newest complete checkpoint: its folder, step and parameters. Raises CheckpointError if it is unreadable."""
    folders = _complete_folders(directory) if directory else []
    if not folders:
        return None
    body = _manifest(folders[-1])
    return folders[-1], int(body["step"]), list(body["keys"])


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        body = json.loads((folder / "manifest.json").read_text())
        read = {"step": int(body["step"]), "keys": list(body["keys"]), "parts": list(body["parts"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/manifest.json: {error}") from None
    if body.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{folder}/manifest.json: its parameters are cut as {body.get('layout')!r:.40}, this version cuts them as "
            f"{LAYOUT!r}: go on with the version of dl2_runtime that wrote it, or train from the start in another folder"
        )
    return read
