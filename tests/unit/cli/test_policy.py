"""One step of the rollout by hand."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.cli.policy import Refused, step


def policy(
    stage: str, in_force: str | None = None, challenger: str | None = "dl2", rolled_back: bool = False
) -> dict[str, Any]:
    spec = {"stage": stage, "champion": "drf"} | ({"challenger": challenger} if challenger else {})
    told = (
        [{"type": "RolledBack", "status": "True", "reason": "Slower", "message": ""}] if rolled_back else []
    )
    status = {"stage": in_force, "conditions": told} if in_force else {}
    return {"metadata": {"name": "p"}, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("found", "to", "spec"),
    [
        (policy("Observe"), None, {"stage": "Shadow"}),
        (policy("Shadow", "Shadow"), None, {"stage": "Canary"}),
        (policy("Shadow", "Canary"), None, {"stage": "Active"}),  # its evidence has moved it on
        (policy("Shadow"), "Active", {"stage": "Active"}),
        (policy("Active"), "Observe", {"stage": "Observe"}),
        (policy("Active"), None, {"champion": "dl2", "challenger": None, "stage": "Observe"}),
        (policy("Active", "Shadow"), None, {"stage": "Canary"}),  # rolled back: the way up starts anew
        (policy("Canary", "Shadow"), "Shadow", {"stage": "Shadow"}),
    ],
)
def test_one_step(found: dict[str, Any], to: str | None, spec: dict[str, Any]) -> None:
    assert step(found, to)[0] == {"spec": spec}


@pytest.mark.parametrize(
    ("found", "to", "words"),
    [
        (policy("Observe", challenger=None), None, "spec.challenger"),
        (policy("Shadow"), "Everywhere", "Observe, Shadow, Canary, Active"),
        (policy("Shadow"), "Shadow", "already"),
        (policy("Canary", "Shadow", rolled_back=True), None, "--to Shadow"),
        (policy("Canary", "Shadow"), None, "Canary has been asked for and comes into force .* within 60 s"),
    ],
)
def test_what_is_no_step_is_refused_with_its_mend(found: dict[str, Any], to: str | None, words: str) -> None:
    with pytest.raises(Refused, match=words):
        step(found, to)
