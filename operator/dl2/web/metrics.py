"""What the operator tells Prometheus. One registry per operator; series of gone objects are dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
BLOCK_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # buckets


class Metrics:
    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        self.passes = Histogram(
            "dl2_pass_seconds",
            "Wall time of one pass of the loop",
            registry=r,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
        )
        self.decide = Histogram(
            "dl2_decide_seconds",
            "Wall time of one call of decide",
            registry=r,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
        )
        self.decisions = Counter(
            "dl2_decisions_total", "Decisions that changed something", ("action", "reason"), registry=r
        )
        self.writes = Counter(
            "dl2_writes_total", "Writes to the API server", ("verb", "kind", "result"), registry=r
        )
        self.open_writes = Gauge("dl2_open_writes", "Writes in flight", registry=r)
        self.objects = Gauge("dl2_store_objects", "Objects in the store", ("kind",), registry=r)
        self.event_age = Gauge(
            "dl2_watch_last_event_age_seconds", "Age of the last watch event", ("kind",), registry=r
        )
        self.list_age = Gauge("dl2_last_list_age_seconds", "Age of the oldest complete LIST", registry=r)
        self.events_dropped = Gauge(
            "dl2_events_dropped", "Kubernetes Events that were not written", registry=r
        )
        self.failed_passes = Counter("dl2_failed_passes_total", "Passes that ended in an error", registry=r)
        self.queue_groups = Gauge("dl2_queue_groups", "PodGroups of a queue", ("queue", "state"), registry=r)
        self.queue_usage = Gauge(
            "dl2_queue_usage",
            "Used, share, borrowed and lent, in smallest units",
            ("queue", "resource", "figure"),
            registry=r,
        )
        self.leader = Gauge("dl2_leader", "1 while this replica decides", registry=r)
        self.scaling_rounds = Histogram(
            "dl2_scaling_round_seconds", "Wall time of a scaling round", registry=r,
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30),
        )  # fmt: skip
        self.scaling_loop = Histogram(
            "dl2_scaling_loop_seconds", "Time of the event loop that a scaling round takes", registry=r,
            buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2),
        )  # fmt: skip
        self.scaling_blocks = Histogram(
            "dl2_scaling_block_seconds", "The longest time for which a scaling round holds up the event loop",
            registry=r, buckets=BLOCK_SECONDS,
        )  # fmt: skip
        self.scaling_busy_blocks = Histogram(
            "dl2_scaling_busy_block_seconds", "The same without what it waits for other threads and for a core",
            registry=r, buckets=BLOCK_SECONDS,
        )  # fmt: skip
        self.scaling_verdicts = Counter(
            "dl2_scaling_verdicts_total", "Verdicts about jobs in scaling rounds", ("ruling",), registry=r
        )
        self.scaling_resizes = Counter(
            "dl2_scaling_resizes_total",
            "Resizes that a policy asked for, by what came of them",
            ("result",),
            registry=r,
        )
        self.scaling_rollbacks = Counter(
            "dl2_scaling_rollbacks_total", "Challengers rolled back, by trigger", ("trigger",), registry=r
        )
        self._queue_groups: frozenset[tuple[str, ...]] = frozenset()
        self._queue_usage: frozenset[tuple[str, ...]] = frozenset()
        self.watch_behind = Gauge(
            "dl2_watch_behind_seconds", "For how long a watch has been owing a change", ("kind",), registry=r
        )
        self.watch_restarts = Gauge(
            "dl2_watch_restarts", "How often the watches were started again", registry=r
        )

    def replace_queues(
        self, groups: Mapping[str, tuple[int, int]], usage: Mapping[tuple[str, str, str], int]
    ) -> None:
        """All queues anew: (pending, admitted) per queue; figures per (queue, resource, figure)."""
        counts = {
            (queue, state): number
            for queue, numbers in groups.items()
            for state, number in zip(("pending", "admitted"), numbers, strict=True)
        }
        self._queue_groups = _replace(self.queue_groups, self._queue_groups, counts)
        self._queue_usage = _replace(self.queue_usage, self._queue_usage, usage)

    def render(self) -> bytes:
        return generate_latest(self.registry)


def _replace(
    gauge: Gauge, before: frozenset[tuple[str, ...]], values: Mapping[Any, int]
) -> frozenset[tuple[str, ...]]:
    """Set the series of `gauge` and drop those of `before` that are gone. Returns the series there are now."""
    for labels in before - values.keys():
        gauge.remove(*labels)
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
    return frozenset(values)
