"""The live table and the summary: what the API server says about queues and jobs, for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dl2.api import conditions
from dl2.api.conditions import parse_time
from dl2.demo.workload import ELASTIC, REAL, TOO_BIG

Raw = Mapping[str, Any]
_ORDER = {"Running": 0, "Scaling": 0, "Admitted": 1, "Queued": 2, "Suspended": 3, "Failed": 4, "Succeeded": 5}
_COLOUR = {"Running": "green", "Admitted": "cyan", "Queued": "yellow", "Failed": "red", "Succeeded": "dim"}


@dataclass(slots=True)
class History:
    """What was seen while it went on: every reason for which a job waited, with its first message."""

    waited: dict[str, dict[str, str]] = field(default_factory=dict)
    # of the elastic job, by shape before and after
    resizes: dict[tuple[str, str], Raw] = field(default_factory=dict)

    def note(self, jobs: Iterable[Raw]) -> None:
        for job in jobs:
            status = job.get("status") or {}
            scaling = status.get("lastScaling")
            if job["metadata"]["name"] == ELASTIC and scaling:
                self.resizes[_shape(scaling["from"]), _shape(scaling["to"])] = scaling
            queued = conditions.get(status.get("conditions") or (), "Queued")
            if queued and queued["status"] == "True" and queued["reason"] != "Pending":
                self.waited.setdefault(job["metadata"]["name"], {}).setdefault(
                    queued["reason"], queued["message"]
                )


def live(queues: Iterable[Raw], jobs: Iterable[Raw], elapsed: float, now: float, rows: int) -> RenderableType:
    """Running jobs first, then those that wait, in queue order; `rows` of them fit on the screen.

    `now` is in seconds since the epoch, `elapsed` in seconds.
    """
    ordered = sorted(jobs, key=_rank)
    states = Counter(state(job) for job in ordered)
    title = f"{elapsed:4.0f} s   " + "   ".join(f"{states[s]} {s.lower()}" for s in _COLOUR if states[s])
    table = Table(
        "job", "queue", "state", "workers", "servers", "progress", "speed", "ETA", title=title, expand=True
    )
    table.add_column("why", ratio=1)  # the others take what they need
    for job in ordered[:rows]:
        table.add_row(*_row(job, now))
    if len(ordered) > rows:
        table.caption = f"and {len(ordered) - rows} more"
    return Group(_queues(queues), table)


def state(job: Raw) -> str:
    return str((job.get("status") or {}).get("state") or "Queued")


def _rank(job: Raw) -> tuple[int, int, str]:
    status = job.get("status") or {}
    return _ORDER.get(state(job), 2), int(status.get("queuePosition") or 0), job["metadata"]["name"]


def _row(job: Raw, now: float) -> tuple[RenderableType, ...]:
    status = job.get("status") or {}
    printed = status.get("printed") or {}
    real = job["metadata"]["name"] in REAL
    why = ""
    if state(job) == "Queued":
        position = status.get("queuePosition")
        queued = conditions.get(status.get("conditions") or (), "Queued") or {}
        why = (f"#{position} " if position else "") + str(queued.get("message") or status.get("reason") or "")
    return (
        Text(job["metadata"]["name"], style="bold magenta" if real else ""),
        str(job["spec"].get("queue") or ""),
        Text(state(job), style=_COLOUR.get(state(job), "")),
        printed.get("workers", ""),
        printed.get("servers", ""),
        printed.get("progress", ""),
        printed.get("speed", ""),
        _eta(status, now),
        Text(why, overflow="ellipsis", no_wrap=True),
    )


def _eta(status: Raw, now: float) -> str:
    end = status.get("estimatedCompletion")
    return f"{max(0.0, parse_time(end) - now):.0f} s" if end else ""


def _queues(queues: Iterable[Raw]) -> Table:
    table = Table("queue", "parent", "pending", "admitted", "GPUs used", "share", "max", expand=True)
    for queue in sorted(queues, key=lambda q: q["metadata"]["name"]):
        status, gpu = queue.get("status") or {}, "nvidia.com/gpu"
        figures = (status.get("resources") or {}).get(gpu) or {}
        limit = (queue["spec"].get("resources") or {}).get(gpu) or {}
        table.add_row(
            queue["metadata"]["name"],
            queue["spec"].get("parent") or "",
            str(status.get("pending", "")),
            str(status.get("admitted", "")),
            str(figures.get("used", "")),
            str(figures.get("share", "")),
            str(limit.get("max", "")),
        )
    return table


def unfinished(jobs: Iterable[Raw]) -> list[str]:
    return [
        j["metadata"]["name"]
        for j in jobs
        if state(j) not in ("Succeeded", "Failed") and j["metadata"]["name"] != TOO_BIG
    ]


def summary(jobs: Iterable[Raw], history: History) -> RenderableType:
    """What was learned: accuracy of the real jobs, mean completion time, what waited and why."""
    everything = {job["metadata"]["name"]: job for job in jobs}
    table = Table(
        "real MXNet job", "end", "test accuracy", "loss", "steps", "restarts", title="Real training"
    )
    for name in REAL:
        status = everything.get(name, {}).get("status") or {}
        progress = status.get("progress") or {}
        metrics = progress.get("metrics") or {}
        table.add_row(name, str(status.get("state")), _figure(metrics.get("accuracy")), _figure(metrics.get("loss")),
                      str(progress.get("step", "")), str(status.get("restarts", 0)))  # fmt: skip
    times = [t for job in everything.values() if (t := _completion_seconds(job)) is not None]
    reasons = Counter(reason for waited in history.waited.values() for reason in waited)
    lines = [
        f"{len(times)} jobs completed, mean completion time {mean(times):.0f} s (submission to end)."
        if times
        else "",
        f"{len(history.waited)} jobs waited: "
        + (", ".join(f"{n} for {r}" for r, n in reasons.most_common()) or "none"),
    ]
    examples = {
        reason: (job, text) for job, waited in history.waited.items() for reason, text in waited.items()
    }
    lines += [f"  {reason}: {job}: {text}" for reason, (job, text) in examples.items()]
    lines += [
        f"{ELASTIC} went from {before} to {after} while it trained; its steps paused for {_pause(scaling)}"
        for (before, after), scaling in history.resizes.items()
    ]
    return Group(table, *(Text(line) for line in lines if line))


def _pause(scaling: Raw) -> str:
    return f"{scaling['pauseMilliseconds']} ms" if scaling.get("pauseMilliseconds") else "less than 1 ms"


def _shape(scale: Raw) -> str:
    return f"{scale['workers']} workers and {scale['servers']} servers"


def _figure(value: Any) -> str:
    return "" if value is None else f"{float(value):.3f}"


def _completion_seconds(job: Raw) -> float | None:
    end = (job.get("status") or {}).get("completionTime")
    if not end or state(job) != "Succeeded":
        return None
    return parse_time(end) - parse_time(job["metadata"]["creationTimestamp"])
