"""Observations as a decision log holds them (JSON), read back into what policies are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dl2.scaling.interface import JobView, NodeView, Observation, Scale, SpeedSample


class LessonError(ValueError):
    """The log holds nothing to learn from; the message says where and why."""


def observation_from(seen: Mapping[str, Any]) -> Observation:
    """Raises KeyError or TypeError for anything that is no observation."""
    jobs = tuple(_job(job) for job in seen["jobs"])
    nodes = tuple(NodeView(node["name"], node["free"], node["capacity"]) for node in seen["nodes"])
    return Observation(seen["now"], seen["interval"], jobs, nodes, seen["budgets"])


def _job(job: Mapping[str, Any]) -> JobView:
    scales = {name: Scale(*job[name]) for name in ("minimum", "maximum", "current")}
    return JobView(**{**job, **scales, "samples": tuple(_samples(job["samples"]))})


def _samples(samples: Iterable[Mapping[str, Any]]) -> Iterator[SpeedSample]:
    for each in samples:
        yield SpeedSample(Scale(*each["scale"]), each["epochs_per_second"], each["at"])
