"""What the typed objects answer beside their fields."""

from typing import Any

import pytest

from dl2.api import DLJob, PodGroup, parse
from dl2.api.dljob import Progress, RoleStatus, printed
from tests.unit.api.wrong_objects import VALID, changed


def job(**workers: Any) -> DLJob:
    template = VALID["DLJob"]["spec"]["workers"]["template"]
    parsed = parse(changed("DLJob", ["spec", "workers"], {"template": template, **workers}))
    assert isinstance(parsed, DLJob)
    return parsed


@pytest.mark.parametrize(
    ("written", "start", "maximum", "wanted"),
    [
        ({}, 1, 1, None),
        ({"min": 2}, 2, 2, None),
        ({"min": 2, "max": 8}, 2, 8, None),
        ({"min": 2, "max": 8, "initial": 4}, 4, 8, None),
        ({"initial": 4}, 4, 4, None),
        ({"min": 2, "max": 8, "initial": 4, "replicas": 6}, 6, 8, 6),
        ({"initial": 4, "replicas": 6}, 6, 6, 6),
    ],
)
def test_numbers_of_a_role(written: dict[str, int], start: int, maximum: int, wanted: int | None) -> None:
    workers = job(**written).spec.workers
    assert (workers.start, workers.maximum, workers.wanted) == (start, maximum, wanted)


def test_a_member_without_min_count_needs_all_its_pods() -> None:
    group = parse(VALID["PodGroup"])
    assert isinstance(group, PodGroup)
    assert [member.minimum for member in group.spec.members] == [2, 1]


@pytest.mark.parametrize("kind", ["PodGroup", "DLJob"])
def test_the_default_queue_is_named_like_the_namespace(kind: str) -> None:
    named, unnamed = parse(VALID[kind]), parse(changed(kind, ["spec", "queue"]))
    assert isinstance(named, PodGroup | DLJob)
    assert isinstance(unnamed, PodGroup | DLJob)
    assert (named.queue, unnamed.queue) == ("research", "default")


def test_what_is_not_read_of_templates_and_affinity_is_kept_as_written() -> None:
    group, train = parse(VALID["PodGroup"]), parse(VALID["DLJob"])
    assert isinstance(group, PodGroup)
    assert isinstance(train, DLJob)
    assert group.spec.members[0].affinity == VALID["PodGroup"]["spec"]["members"][0]["affinity"]
    assert train.spec.workers.template == VALID["DLJob"]["spec"]["workers"]["template"]


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (None, {}),
        (Progress(fraction=0.999, steps_per_second=1234.5), {"progress": "99%", "speed": "1.23e+03/s"}),
        (Progress(fraction=0.0, steps_per_second=0.25), {"progress": "0%", "speed": "0.25/s"}),
    ],
)
def test_printed_columns_repeat_the_fields_beside_them(
    progress: Progress | None, shown: dict[str, str]
) -> None:
    columns = printed(RoleStatus(desired=4, ready=2), RoleStatus(desired=1, ready=1), progress)
    assert columns == {"workers": "2/4", "servers": "1/1", **shown}
