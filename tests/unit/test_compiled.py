"""The decision core as machine code is used where it was built from exactly these sources, and never needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dl2 import compiled

TELL = """
from dl2 import compiled
used = compiled.prefer()
import dl2.scheduling.decide as core
print(used, compiled.in_use(), core.__file__)
"""


def told(cache: Path, **more: str) -> list[str]:
    environment = {**os.environ, "DL2_CACHE": str(cache), **more}
    environment = {name: value for name, value in environment.items() if value}
    return subprocess.run(
        [sys.executable, "-c", TELL], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()


def test_what_nobody_has_built_is_interpreted(tmp_path: Path) -> None:
    *used, file = told(tmp_path, DL2_INTERPRETED="")
    assert (used, Path(file).suffix) == (["False", "False"], ".py")


def test_what_is_damaged_is_interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DL2_CACHE", str(tmp_path))
    compiled.cached().mkdir(parents=True)
    (compiled.cached() / "core__mypyc.so").write_bytes(b"not machine code")
    assert told(tmp_path, DL2_INTERPRETED="")[0] == "False"


def test_other_sources_have_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DL2_CACHE", str(tmp_path))
    here = compiled.cached()
    assert here.parent == tmp_path / "compiled"
    copy = tmp_path / "dl2"
    for source in compiled.sources():
        there = copy / source.relative_to(compiled._HERE)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(source.read_bytes())
    monkeypatch.setattr(compiled, "_HERE", copy)
    assert compiled.cached() == here
    (copy / "scheduling" / "decide.py").write_text("# another\n")
    assert compiled.cached() != here
