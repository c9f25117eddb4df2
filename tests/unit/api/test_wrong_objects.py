"""Wrong objects are refused by the types where the API server refuses them: both read one table."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dl2.api import InvalidObject, parse
from tests.unit.api.wrong_objects import CASES, VALID, changed, names_field, wrong

KIB = 1024


@pytest.mark.parametrize("kind", VALID)
def test_what_is_valid_is_read(kind: str) -> None:
    assert type(parse(VALID[kind], strict=True)).__name__ == kind


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"].replace(" ", "-"))
def test_what_is_wrong_is_named_with_field_and_mend(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidObject) as refusal:
        parse(wrong(case), strict=True)
    error = refusal.value
    assert names_field(error.field, case["field"])
    assert error.problem
    assert error.mend
    assert re.search(case.get("says", ""), str(error))
    assert str(error).startswith(f"{case['kind']} ")


CONTAINER = ["spec", "workers", "template", "spec", "containers", 0]


@pytest.mark.parametrize(
    ("kind", "at", "value", "field", "says"),
    [
        ("TenantQueue", ["spec", "parent"], "a" * 300 * KIB, "spec.parent", "shorten"),
        ("PodGroup", ["spec", "queue"], "a" * 300 * KIB, "spec.queue", "shorten"),
        ("DLJob", [*CONTAINER, "args"], ["x" * 300 * KIB], "containers[0].args[0]", "shorten"),
        ("DLJob", [*CONTAINER, "args"], ["x" * 60 * KIB] * 5, "spec.workers.template", "ConfigMap"),
        ("DLJob", [*CONTAINER, "anything"], "x" * 300 * KIB, "spec.workers.template", "ConfigMap"),
    ],
)
def test_objects_of_300_kib_are_refused(
    kind: str, at: list[str | int], value: Any, field: str, says: str
) -> None:
    with pytest.raises(InvalidObject) as refusal:
        parse(changed(kind, at, value))
    assert names_field(refusal.value.field, field)
    assert says in str(refusal.value)
    assert len(str(refusal.value)) < KIB, "the message does not repeat what is too long"


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({}, "kind"),
        ({"apiVersion": "dl2.dev/v1alpha1", "kind": ["PodGroup"]}, "kind"),
        ({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}, "kind"),
        ({**VALID["DLJob"], "apiVersion": "dl2.dev/v9"}, "apiVersion"),
        ({**VALID["DLJob"], "metadata": "train"}, "metadata"),
        ({**VALID["DLJob"], "metadata": {}}, "metadata.name"),
        (
            {**VALID["DLJob"], "metadata": {"name": "a", "creationTimestamp": "yesterday"}},
            "metadata.creationTimestamp",
        ),
        ({**VALID["DLJob"], "spec": []}, "spec"),
        ({**VALID["DLJob"], "status": {"conditions": [{"type": "Running"}]}}, "status.conditions[0].status"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_hardly_an_object_is_refused_like_any_other(raw: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidObject) as refusal:
        parse(raw)
    assert refusal.value.field == field


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[list[Any]]:
    """The path of everything below `value`."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in children:
        yield [*path, key]
        yield from places(inner, (*path, key))


@example(("DLJob", ["spec", "servers", "template", "metadata"]), {"": -(2**63) - 1})
@settings(max_examples=400)
@given(st.sampled_from([(kind, at) for kind in VALID for at in places(VALID[kind])]), JSON)
def test_whatever_stands_anywhere_the_object_is_read_or_refused(
    place: tuple[str, list[Any]], junk: Any
) -> None:
    """No object of one team may stop the work of the others: there is no third outcome."""
    with contextlib.suppress(InvalidObject):
        parse(changed(*place, junk))


@pytest.mark.parametrize("key", [("a", "b"), "itself"])
def test_a_template_that_yaml_can_say_but_json_cannot_is_refused(key: Any) -> None:
    job = changed("DLJob", ["spec", "workers", "template", "spec", "unheardOf"], {})
    spec = job["spec"]["workers"]["template"]["spec"]
    spec["unheardOf"][key] = spec
    with pytest.raises(InvalidObject, match=r"spec\.workers\.template: cannot be written as JSON"):
        parse(job)


def test_a_field_of_a_newer_version_is_ignored_when_read() -> None:
    newer = changed("DLJob", ["spec", "workers", "spotPercent"], 50)
    assert parse(newer) == parse(VALID["DLJob"])
    with pytest.raises(InvalidObject, match=r"spec\.workers\.spotPercent"):
        parse(newer, strict=True)
