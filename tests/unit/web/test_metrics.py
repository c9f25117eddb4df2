"""Metrics: series of what is gone are dropped."""

from __future__ import annotations

from dl2.web.metrics import Metrics


def series(metrics: Metrics, name: str) -> set[str]:
    return {
        line.rsplit(" ", 1)[0]
        for line in metrics.render().decode().splitlines()
        if line.startswith(name + "{")
    }


def test_volcano_4745_series_of_a_queue_and_of_a_resource_go_with_them() -> None:
    metrics = Metrics()
    metrics.replace_queues(
        {"a": (1, 2), "b": (0, 1)},
        {("a", "cpu", "used"): 5, ("a", "gpu", "used"): 1, ("b", "cpu", "used"): 2},
    )
    assert len(series(metrics, "dl2_queue_groups")) == 4
    metrics.replace_queues({"a": (0, 2)}, {("a", "cpu", "used"): 7})
    assert series(metrics, "dl2_queue_usage") == {'dl2_queue_usage{figure="used",queue="a",resource="cpu"}'}
    assert series(metrics, "dl2_queue_groups") == {
        'dl2_queue_groups{queue="a",state="pending"}',
        'dl2_queue_groups{queue="a",state="admitted"}',
    }
