"""Where a job's progress is served: port 8470 of its coordinator pod, or, for simulated trainers, an announced URL."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from dl2.api import names
from dl2.api.core import PodRecord
from dl2.cluster.store import Entry
from dl2.controller.progress import Source

PORT = 8470


def progress_source(job: Entry, pods: Sequence[PodRecord], trust_status_url: bool) -> Source | None:
    """None while there is nobody to ask."""
    coordinator = next(
        (p for p in pods if p.member == names.COORDINATOR and p.ready and not p.deleting), None
    )
    if coordinator is None:
        return None
    if trust_status_url and coordinator.status_url and urlsplit(coordinator.status_url).scheme == "http":
        return Source(job.uid, job.key, coordinator.status_url)
    if coordinator.ip:
        host = f"[{coordinator.ip}]" if ":" in coordinator.ip else coordinator.ip
        return Source(job.uid, job.key, f"http://{host}:{PORT}/v1/status")
    return None
