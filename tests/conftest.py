"""What holds for every test."""

from importlib.metadata import entry_points

import pytest

# An installed dl2 brings its fixtures as a pytest plugin; a bare checkout names them here.
if "dl2-cluster" not in {entry.name for entry in entry_points(group="pytest11")}:
    pytest_plugins = ["dl2.embedded.pytest_plugin"]


@pytest.fixture(autouse=True)
def no_foreign_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the cluster of the person who runs it: it must name a kubeconfig itself."""
    monkeypatch.setenv("KUBECONFIG", "/dev/null")
