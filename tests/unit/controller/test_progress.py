"""What a coordinator reports → what is believed of it. Coordinators are other people's programs."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from dl2.controller.progress import Resize, read_report

SCALING = {
    "time": 5.0,
    "from": {"workers": 1, "servers": 1},
    "to": {"workers": 2, "servers": 1},
    "pause_ms": 7.6,
}


@pytest.mark.parametrize(
    ("told", "believed"),
    [
        (SCALING, Resize(5.0, (1, 1), (2, 1), 8, "")),
        (SCALING | {"reason": "x" * 999, "version": 3}, Resize(5.0, (1, 1), (2, 1), 8, "x" * 256)),
        (None, None),
        ([], None),
        ("grown", None),
        ({}, None),
        (SCALING | {"from": {"workers": 0, "servers": 0}}, None),  # the first members are no change
        (SCALING | {"to": SCALING["from"]}, None),
        (SCALING | {"to": {"workers": -1, "servers": 1}}, None),
        (SCALING | {"to": {"workers": 10**9, "servers": 1}}, None),
        (SCALING | {"pause_ms": "long"}, None),
        (SCALING | {"pause_ms": -1}, None),
        (SCALING | {"time": 1e300}, None),
    ],
)
def test_the_last_scaling_is_read_or_left_out_and_costs_nothing_else(told: Any, believed: Any) -> None:
    progress = read_report(orjson.dumps({"epoch": 2, "step": 9, "last_scaling": told}))
    assert (progress.resize, progress.epoch, progress.step) == (believed, 2, 9)
