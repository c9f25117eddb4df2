"""`dl2 cluster`: what it says to wrong use, and what its options mean. No cluster is started here."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dl2.cli import cluster as cli
from dl2.embedded import state
from dl2.embedded.binaries import Binaries
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.errors import ClusterError
from dl2.embedded.state import ClusterOptions, Registry, write


@pytest.fixture(autouse=True)
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DL2_STATE", str(tmp_path / "state"))
    # Locks and bookings as well: no test here starts what would have to be found from elsewhere.
    monkeypatch.setattr(state, "runtime_root", lambda: tmp_path / "runtime")
    monkeypatch.setattr(Binaries, "path", lambda _, name: pytest.fail(f"{name} would be built for this"))
    return tmp_path / "state"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("up --name A_B", 1, ["'A_B' is not a cluster name", "lower-case letters"]),
        ("up --kwok-nodes -1", 2, ["--kwok-nodes"]),
        ("up --kwok-nodes many", 2, ["--kwok-nodes"]),
        ("up --real-node=many", 2, ["--real-node"]),
        ("up --memory 512GB", 2, ["--memory", "is not a quantity", "16Gi"]),
        ("up --feature-gates GenericWorkload", 2, ["NAME=true or NAME=false"]),
        ("up --feature-gates A=yes", 2, ["NAME=true or NAME=false"]),
        (
            "up --name has-8-gpus --gpus 4",
            1,
            ["was made with gpus=8, not 4", "dl2 cluster down --name has-8-gpus"],
        ),
        ("down --name none", 0, ["There is no cluster none"]),
        ("down --all --name none", 1, ["not both"]),
        ("status", cli.NOT_WHOLE, ["has-8-gpus"]),
        ("status --name none", 1, ["there is no cluster 'none'", "dl2 cluster up --name none"]),
        ("logs --name none", 1, ["there is no cluster 'none'"]),
        ("logs foo --name has-8-gpus", 1, ["no process 'foo'", "it has: none"]),
        ("env --name none", 1, ["there is no cluster 'none'"]),
        ("upp", 2, ["upp"]),
    ],
)
def test_wrong_use_is_answered_with_the_mend(
    state_root: Path, arguments: str, code: int, words: list[str]
) -> None:
    directory = state_root / "clusters" / "has-8-gpus"
    write(directory / "cluster.json", ClusterOptions(name="has-8-gpus"))
    Registry().slot(directory)
    result = CliRunner().invoke(cli.app, arguments.split())
    assert result.exit_code == code, result.output
    for word in words:
        assert word in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ("", {}),
        ("--real-node", {"real_nodes": 1}),
        ("--real-node=2", {"real_nodes": 2}),
        ("--real-node 3", {"real_nodes": 3}),
        ("--real-node --kwok-nodes 5", {"real_nodes": 1, "kwok_nodes": 5}),
        (
            "--kwok-nodes 5 --gpus 4 --cpus 16 --memory 64Gi",
            {"kwok_nodes": 5, "gpus": 4, "cpus": 16, "memory": "64Gi"},
        ),
        ("--feature-gates A=true,B=false", {"feature_gates": {"A": True, "B": False}}),
        ("--runtime-config x/v1=true", {"runtime_config": {"x/v1": True}}),
    ],
)
def test_what_up_asks_for(monkeypatch: pytest.MonkeyPatch, arguments: str, asked: dict[str, object]) -> None:
    made: list[ClusterOptions] = []
    monkeypatch.setattr(EmbeddedCluster, "up", lambda cluster: made.append(cluster.options))
    result = CliRunner().invoke(cli.app, ["up", *arguments.split()])
    assert result.exit_code == 0, result.output
    assert made == [ClusterOptions.model_validate({"name": "dl2"} | asked)]


def test_up_keeps_what_the_cluster_has_where_nothing_else_is_asked(
    monkeypatch: pytest.MonkeyPatch, state_root: Path
) -> None:
    earlier = ClusterOptions(name="dl2", kwok_nodes=7, gpus=4, real_nodes=1)
    write(state_root / "clusters" / "dl2" / "cluster.json", earlier)
    made: list[ClusterOptions] = []
    monkeypatch.setattr(EmbeddedCluster, "up", lambda cluster: made.append(cluster.options))
    CliRunner().invoke(cli.app, ["up", "--kwok-nodes", "9"])
    assert made == [earlier.model_copy(update={"kwok_nodes": 9})]


def test_a_cluster_from_before_a_reboot_is_called_so(state_root: Path) -> None:
    write(state_root / "clusters" / "old" / "cluster.json", ClusterOptions(name="old"))
    with pytest.raises(ClusterError, match="before this machine was started") as error:
        EmbeddedCluster("old").check_earlier()
    assert "dl2 cluster down --name old" in error.value.mend


def test_real_nodes_are_not_taken_away_by_up(state_root: Path) -> None:
    directory = state_root / "clusters" / "real"
    write(directory / "cluster.json", ClusterOptions(name="real", real_nodes=2))
    Registry().slot(directory)
    with pytest.raises(ClusterError, match="has 2 real nodes already"):
        EmbeddedCluster("real", real_nodes=1).check_earlier()
