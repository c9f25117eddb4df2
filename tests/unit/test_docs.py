"""The docs name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dl2.controller.frameworks import framework_of
from dl2.controller.settings import PodSettings
from dl2.web.metrics import Metrics
from tests.unit.controller.objects import job

DOCS = Path(__file__).parents[2] / "docs"


def test_every_metric_is_documented() -> None:
    page = (DOCS / "operations.md").read_text()
    metrics = re.findall(r"^# HELP (dl2_\w+)", Metrics().render().decode(), re.M)
    assert [name for name in metrics if f"`{name}" not in page and not name.endswith("_created")] == []


@pytest.mark.parametrize("runtime", ["static", "elastic"])
def test_every_variable_of_a_pod_is_documented(runtime: str) -> None:
    page = (DOCS / "images.md").read_text()
    written = job(runtime=runtime, training={"epochs": 1, "stepsPerEpoch": 1}).value
    framework = framework_of(written)
    for role in framework.roles(written):
        (container,) = framework.pod(written, role, 0, {}, PodSettings())["spec"]["containers"]
        names = [variable["name"] for variable in container["env"]]
        assert names
        assert [n for n in names if f"`{n}`" not in page and not n.startswith("DMLC_")] == []
