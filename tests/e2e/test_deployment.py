"""The operator's own image, installed by its own manifests, on the real node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dl2 import compiled, resources
from dl2.embedded.cluster import EmbeddedCluster
from tests.e2e.operators import apply, await_state, digits, queue

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
TEAM = "deployed"


@pytest.fixture
def installed(real_cluster: EmbeddedCluster) -> Iterator[EmbeddedCluster]:
    """`kubectl apply -k manifests/base`, as README says."""
    base = str(resources.directory("manifests") / "base")
    real_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", base)
    real_cluster.kubectl(
        "wait",
        "-n",
        "dl2-system",
        "deployment/dl2-operator",
        "--for=condition=Available",
        "--timeout=120s",
        timeout=150,
    )
    yield real_cluster
    real_cluster.kubectl("delete", "deployment", "-n", "dl2-system", "dl2-operator", "--wait=true")


def test_the_deployed_operator_trains_a_job(installed: EmbeddedCluster, tmp_path: Path) -> None:
    apply(installed, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}, queue(TEAM))
    apply(installed, digits("digits", TEAM, str(tmp_path), epochs=3))
    status = await_state(installed, TEAM, "digits", "Succeeded")["status"]
    assert status["progress"]["fraction"] == 1
    log = installed.kubectl("logs", "-n", "dl2-system", "deployment/dl2-operator")
    assert '"action":"Admit"' in log.replace(" ", "")
    assert "Forbidden" not in log  # its rights suffice
    assert f'"compiled":{str(compiled.cached().is_dir()).lower()}' in log.replace(" ", "")
    installed.kubectl("delete", "namespace", TEAM, "--wait=false")
