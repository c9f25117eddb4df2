"""Fields that no definition has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dl2.api.unknown import unknown_fields

EXAMPLES = Path(__file__).parents[3] / "examples"


def ours(kind: str, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"apiVersion": "dl2.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec, **more}


POD = {
    "spec": {"containers": [{"name": "c", "imagePullPolicy": "Never", "resources": {"limits": {"x/y": 1}}}]}
}


@pytest.mark.parametrize(
    ("raw", "unknown"),
    [
        (ours("TenantQueue", {"wieght": 2}), ["spec.wieght"]),
        (ours("TenantQueue", {"resources": {"cpu": {"min": 1, "mex": 2}}}), ["spec.resources.cpu.mex"]),
        (ours("PodGroup", {"members": [{"name": "w"}, {"name": "v", "cuont": 1}]}), ["spec.members[1].cuont"]),
        (ours("DLJob", {"workers": {"mim": 1, "template": POD}, "trainig": {}}), ["spec.workers.mim", "spec.trainig"]),
        (ours("DLJob", {"workers": {"template": POD}}, status={"anything": 1}, sepc={}), ["sepc"]),
        (ours("ScalingPolicy", {"champion": "drf", "guardrails": {"maxStep": 1}}), ["spec.guardrails.maxStep"]),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"wrong": 1}}, []),
    ],
)  # fmt: skip
def test_what_no_definition_has(raw: dict[str, Any], unknown: list[str]) -> None:
    assert unknown_fields(raw) == unknown


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_have_nothing_unknown(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        assert unknown_fields(document) == []
