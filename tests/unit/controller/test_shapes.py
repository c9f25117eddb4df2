"""The shape of a DLJob: as written, or as a policy has chosen it."""

from __future__ import annotations

import pytest

from dl2.api import names
from dl2.cluster.resources import DL_JOBS, POD_GROUPS
from dl2.controller.shapes import Target, chosen
from dl2.scaling.interface import Scale
from tests.unit.controller.objects import entry, job, raw

BY_POLICY = {"annotations": {names.SCALED_BY: "drf"}}
UNTOUCHED: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize(
    ("meta", "target", "shape", "scaled_by", "settled"),
    [
        (UNTOUCHED, None, (2, 1), "", True),  # as it was written
        (BY_POLICY, None, (5, 3), "drf", True),  # as its PodGroup remembers
        (UNTOUCHED, Target(Scale(5, 3), "dl2"), (5, 3), "dl2", True),
        (BY_POLICY, Target(Scale(6, 2), "dl2"), (6, 2), "dl2", False),
        (BY_POLICY, Target(Scale(99, 99), "dl2"), (8, 4), "dl2", False),
        (BY_POLICY, Target(Scale(0, 0), "dl2"), (1, 1), "dl2", False),
    ],
)
def test_an_elastic_job_has(
    meta: dict[str, dict[str, str]],
    target: Target | None,
    shape: tuple[int, int],
    scaled_by: str,
    settled: bool,
) -> None:
    members = [
        {"name": name, "count": count, "requests": {"cpu": "1"}}
        for name, count in (("worker", 5), ("server", 3))
    ]
    group = entry(POD_GROUPS, raw("PodGroup", "train", {"queue": "team-a", "members": members}, **meta)).value
    sized, by, done = chosen(job(runtime="elastic").value, group, target)
    assert ((sized.spec.workers.start, sized.spec.servers.start), by, done) == (shape, scaled_by, settled)


@pytest.mark.parametrize(
    ("replicas", "meta", "target", "shape"),
    [
        (7, BY_POLICY, None, (7, 3)),  # the servers stay as the policy has left them
        (7, BY_POLICY, Target(Scale(2, 2), "dl2"), (7, 3)),  # what was decided before he spoke counts no more
        (7, UNTOUCHED, None, (7, 1)),
        (0, BY_POLICY, None, (5, 3)),  # all stays as it is until the policy decides
        (0, UNTOUCHED, None, (2, 1)),
    ],
)
def test_somebody_who_names_the_number_of_workers_decides_about_these_alone(
    replicas: int, meta: dict[str, dict[str, str]], target: Target | None, shape: tuple[int, int]
) -> None:
    body = job(runtime="elastic").value.model_dump(by_alias=True, exclude_none=True)["spec"]
    body["workers"]["replicas"] = replicas
    written = entry(DL_JOBS, raw("DLJob", "train", body)).value
    members = [{"name": n, "count": c, "requests": {"cpu": "1"}} for n, c in (("worker", 5), ("server", 3))]
    group = entry(POD_GROUPS, raw("PodGroup", "train", {"queue": "team-a", "members": members}, **meta)).value
    sized, _, _ = chosen(written, group, target)
    assert (sized.spec.workers.start, sized.spec.servers.start) == shape


@pytest.mark.parametrize("spec", [{"scaling": {"mode": "Fixed"}}, {"runtime": "static"}, {"replicas": 3}])
def test_a_job_that_is_nobodys_to_size_stays_as_it_was_written(spec: dict[str, object]) -> None:
    body = job(runtime="elastic").value.model_dump(by_alias=True, exclude_none=True)["spec"]
    if "replicas" in spec:
        body["workers"]["replicas"] = 3
    else:
        body |= spec
    written = entry(DL_JOBS, raw("DLJob", "train", body)).value
    assert chosen(written, None, Target(Scale(6, 2), "dl2")) == (written, "", True)
