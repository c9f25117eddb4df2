"""What is read out of the API server's own objects."""

from __future__ import annotations

from typing import Any

import pytest

from dl2.api.core import parse_pod

BEGAN, LATER = "2026-11-26T09:00:05Z", "2026-11-26T09:00:09Z"


def pod(ready: str, changed: str | None, state: dict[str, Any] | None) -> dict[str, Any]:
    condition = {"type": "Ready", "status": ready} | ({"lastTransitionTime": changed} if changed else {})
    containers = [{"name": "main", "state": state}] if state is not None else []
    return {
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {"containers": [{"name": "main"}]},
        "status": {"phase": "Running", "conditions": [condition], "containerStatuses": containers},
    }


@pytest.mark.parametrize(
    ("raw", "joined"),
    [
        (pod("True", LATER, {"running": {"startedAt": BEGAN}}), True),
        (pod("False", BEGAN, {"running": {"startedAt": LATER}}), False),
        (pod("False", BEGAN, {"running": {"startedAt": BEGAN}}), False),
        (pod("False", LATER, {"running": {"startedAt": BEGAN}}), True),
        (pod("False", LATER, {"terminated": {"startedAt": BEGAN, "exitCode": 0}}), True),
        (pod("False", BEGAN, {"waiting": {"reason": "ContainerCreating"}}), False),
        (pod("False", LATER, None), False),
        (pod("True", None, None), True),
        ({"metadata": {"name": "p"}}, False),
    ],
    ids=["ready", "unready before its start", "in the same second", "unready again", "ended", "not started",
         "no container yet", "simulated", "bare"],
)  # fmt: skip
def test_a_pod_has_joined_if_it_was_ever_ready(raw: dict[str, Any], joined: bool) -> None:
    assert parse_pod(raw).joined is joined
