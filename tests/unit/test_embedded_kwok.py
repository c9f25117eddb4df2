"""Simulated nodes: where they stand, what they have, how often they speak."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl2.embedded import kwok


@pytest.mark.parametrize(
    ("index", "rack", "block", "zone"),
    [
        (0, "rack-0", "block-0", "zone-0"),
        (7, "rack-0", "block-0", "zone-0"),
        (8, "rack-1", "block-0", "zone-0"),
        (31, "rack-3", "block-0", "zone-0"),
        (32, "rack-4", "block-1", "zone-0"),
        (127, "rack-15", "block-3", "zone-0"),
        (128, "rack-16", "block-4", "zone-1"),
    ],
)
def test_where_a_node_stands(index: int, rack: str, block: str, zone: str) -> None:
    labels = kwok.labels(f"kwok-{index}", index)
    assert labels["dl2.dev/rack"] == labels["topology.kubernetes.io/rack"] == rack
    assert labels["dl2.dev/block"] == block
    assert labels["topology.kubernetes.io/zone"] == zone
    assert labels["kubernetes.io/hostname"] == f"kwok-{index}"


@given(st.integers(0, 20_000), st.integers(0, 20_000))
def test_domains_are_nested(one: int, other: int) -> None:
    """Two nodes of one rack share its block, and two of one block its zone."""
    mine, theirs = kwok.labels("a", one), kwok.labels("b", other)
    levels = ["dl2.dev/rack", "dl2.dev/block", "topology.kubernetes.io/zone", "topology.kubernetes.io/region"]
    shared = [mine[level] == theirs[level] for level in levels]
    assert shared == sorted(shared)


@pytest.mark.parametrize(("gpus", "expected"), [(8, "8"), (1, "1"), (0, None)])
def test_gpus_of_a_node(gpus: int, expected: str | None) -> None:
    node = kwok.node("kwok-0", 0, kwok.Shape(gpus=gpus))
    assert node["status"]["capacity"].get("nvidia.com/gpu") == expected
    assert node["status"]["allocatable"] == node["status"]["capacity"]


def test_a_node_is_marked_for_kwok_and_carries_asked_labels_but_no_taint() -> None:
    node = kwok.node("kwok-0", 0, kwok.Shape(), {"pool": "a100"})
    assert node["metadata"]["annotations"] == {"kwok.x-k8s.io/node": "fake"}
    assert node["metadata"]["labels"].items() >= {"pool": "a100", "dl2.dev/node-kind": "kwok"}.items()
    assert "taints" not in node.get("spec", {})


@given(st.integers(1, 20_000))
def test_heartbeats_neither_overload_nor_come_too_late(nodes: int) -> None:
    interval = kwok.heartbeat_interval(nodes)
    assert nodes / interval <= kwok.HEARTBEATS_PER_SECOND
    # kwok draws each delay from [interval, 1.25 interval]: one may be lost without the node counting as lost.
    assert kwok.grace_period(nodes, shortest=50) >= 2 * 1.25 * interval


def test_without_simulated_nodes_a_lost_real_one_is_noticed_soon() -> None:
    assert kwok.grace_period(0, shortest=50) == 50


def test_pods_of_jobs_end_by_themselves_unless_they_are_in_a_group() -> None:
    (complete,) = [stage for stage in kwok.stages(20) if stage["metadata"]["name"] == "pod-complete"]
    conditions = {
        expression["key"]: (expression["operator"], expression.get("values"))
        for expression in complete["spec"]["selector"]["matchExpressions"]
    }
    assert conditions[".metadata.ownerReferences.[].kind"] == ("In", ["Job"])
    assert conditions['.metadata.labels["dl2.dev/pod-group"]'] == ("DoesNotExist", None)
