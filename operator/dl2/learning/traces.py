"""Trace files: one CSV row a job, as in the columns below. `model` names a row of the physics' table."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dl2.learning.families import FAMILIES
from dl2.learning.physics import MODELS, TrueSpeed, true_speed
from dl2.learning.workload import GPU, Job
from dl2.scaling.interface import Scale
from dl2.scheduling.quantities import QuantityError, format_quantity, parse_quantity

COLUMNS = (
    "submit_seconds", "model", "epochs", "batch", "worker_cpu", "worker_gpu", "server_cpu",
    "max_workers", "max_servers", "queue", "priority",
)  # fmt: skip
_MOST = 256


class TraceError(ValueError):
    """A file that is no trace; the message names file, line, column and the mend."""


def read_trace(path: Path, seed: int) -> tuple[Job, ...]:
    """Jobs by submission. CPUs are Kubernetes quantities; an empty model is a job without a label.

    A model that the table does not have gets a speed drawn from `seed` and its name: equal names train alike.
    `batch` is that of one worker, for models of the table; it may be empty (the table's own).
    """
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise TraceError(
                    f"{path}: has no column {', '.join(missing)}; a trace has {', '.join(COLUMNS)}"
                )
            jobs = [_job(row, n, path, seed) for n, row in enumerate(rows)]
    except OSError as exc:
        raise TraceError(f"{path}: {exc.strerror}") from None
    return tuple(sorted(jobs, key=lambda job: (job.submitted_at, job.id)))


def write_trace(path: Path, jobs: Iterable[Job]) -> None:
    """The jobs of a workload as a trace, true speeds left out."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for job in jobs:
            worker, server = job.worker_requests, job.server_requests
            writer.writerow(
                [
                    repr(job.submitted_at), job.model or "", repr(job.epochs), "",
                    format_quantity(worker.get("cpu", 0), "cpu"), worker.get(GPU, 0),
                    format_quantity(server.get("cpu", 0), "cpu"),
                    job.maximum.workers, job.maximum.servers, job.queue, job.priority,
                ]
            )  # fmt: skip


def _job(row: dict[str, str], n: int, path: Path, seed: int) -> Job:
    def fail(column: str, mend: str) -> TraceError:
        return TraceError(f'{path}:{n + 2}: {column} "{row[column]}" {mend}')

    def number(column: str, least: float, most: float = math.inf) -> float:
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            raise fail(column, "is no number") from None
        if not least <= value <= most or not math.isfinite(value):
            raise fail(column, f"is not between {least:g} and {most:g}")
        return value

    def amount(column: str, resource: str) -> int:
        try:
            return parse_quantity(row[column] or "0", resource)
        except QuantityError as exc:
            raise fail(column, str(exc)) from None

    most = Scale(int(number("max_workers", 1, _MOST)), int(number("max_servers", 0, _MOST)))
    gpus = amount("worker_gpu", GPU)
    worker = {"cpu": amount("worker_cpu", "cpu"), **({GPU: gpus} if gpus else {})}
    batch = number("batch", 1) if row["batch"] else None
    return Job(
        f"job-{n:05d}", number("submit_seconds", 0.0), row["model"] or None, number("epochs", 1e-9),
        row["queue"] or "default", int(number("priority", -1e9, 1e9)) if row["priority"] else 0,
        worker, {"cpu": amount("server_cpu", "cpu")}, Scale(1, min(1, most.servers)), most,
        _speed(row["model"] or f"job-{n}", batch, most, seed),
    )  # fmt: skip


def _speed(model: str, batch: float | None, most: Scale, seed: int) -> TrueSpeed:
    rng = np.random.default_rng([seed, *model.encode()])
    if model in MODELS:
        return true_speed(MODELS[model].with_batch(batch), most, rng)
    return FAMILIES["smooth"](rng, most)
