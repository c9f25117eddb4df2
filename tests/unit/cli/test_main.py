"""The program as people start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

QUEUES = Path(__file__).parents[3] / "examples" / "queues.yaml"
START = "from dl2.cli.main import run; run()"


@pytest.mark.parametrize(
    ("arguments", "output", "environment", "told"),
    [
        (["decide", "-f", str(QUEUES)], "/dev/full", {}, "dl2: No space left on device"),
        (
            ["cluster", "build"],
            os.devnull,
            {"DL2_CACHE": "/proc/x"},
            "dl2: /proc/x: No such file or directory",
        ),
    ],
)
def test_a_file_in_the_way_is_told_without_a_traceback(
    arguments: list[str], output: str, environment: dict[str, str], told: str
) -> None:
    with open(output, "w") as out:
        ended = subprocess.run(
            [sys.executable, "-c", START, *arguments],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == told
    assert "Traceback" not in ended.stderr
