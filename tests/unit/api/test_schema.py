"""The hand-written schemas and the types say the same, in both directions, field by field."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from dl2 import resources
from dl2.api import MODELS, names
from dl2.api.podtemplate import PodTemplate
from dl2.api.selectors import Affinity

CRDS = {
    crd["spec"]["names"]["kind"]: crd
    for crd in map(yaml.safe_load, (path.read_text() for path in resources.directory("crds").glob("*.yaml")))
}
KINDS = tuple(MODELS)

# Fields kept as they were written, and the types that check them.
KEPT = {"template": PodTemplate, "affinity": Affinity}
BOUNDS = (
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "enum", "pattern"
)  # fmt: skip
CEL_PATTERN = re.compile(r"^self\.matches\('(.*)'\)$")
CEL_KEYS = re.compile(r"k\.matches\('(.*)'\)\)$", re.DOTALL)
METAV1_CONDITION = ("type", "status", "lastTransitionTime", "reason", "message")


def schema_of(kind: str) -> dict[str, Any]:
    (version,) = CRDS[kind]["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


# -- both sides as plain facts: path -> what is enforced there ----------------------------------------

Facts = dict[str, dict[str, Any]]


def server_facts(schema: dict[str, Any], path: str) -> Facts:
    """What the API server enforces: type, bounds, patterns (also those told in CEL), required fields."""
    own = {key: schema[key] for key in BOUNDS if key in schema}
    own["type"] = "int-or-string" if schema.get("x-kubernetes-int-or-string") else schema["type"]
    if schema.get("format") == "date-time":
        own["format"] = "date-time"
    for rule in schema.get("x-kubernetes-validations", []):
        if found := CEL_PATTERN.search(rule["rule"]):
            own["pattern"] = found[1]
        if found := CEL_KEYS.search(rule["rule"]):
            own["keys"] = found[1]
    facts: Facts = {path: own}
    if "properties" in schema:
        own["required"] = sorted(schema.get("required", []))
    for name, field in schema.get("properties", {}).items():
        facts |= server_facts(field, f"{path}.{name}")
    for below, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if below in schema:
            facts |= server_facts(schema[below], path + mark)
    return facts


def type_facts(schema: dict[str, Any], definitions: dict[str, Any], path: str) -> Facts:
    """The same of a type, from its JSON schema."""
    if "$ref" in schema:
        return type_facts(definitions[schema["$ref"].rpartition("/")[2]], definitions, path)
    if "anyOf" in schema:
        branches = [branch for branch in schema["anyOf"] if branch.get("type") != "null"]
        if len(branches) == 1:
            return type_facts(branches[0], definitions, path)
        integer, string = branches
        assert (integer["type"], string["type"]) == ("integer", "string")
        return {path: {"type": "int-or-string", "maxLength": string["maxLength"]}}
    if schema.get("additionalProperties") is True:
        kept = TypeAdapter(KEPT[path.rpartition(".")[2]]).json_schema()
        return type_facts(kept, kept["$defs"], path)

    own = {key: schema[key] for key in (*BOUNDS, "type", "format") if key in schema}
    if "const" in schema:
        own["enum"] = [schema["const"]]
    facts: Facts = {path: own}
    if "properties" in schema:
        own["required"] = sorted(schema.get("required", []))
    for name, field in schema.get("properties", {}).items():
        facts |= type_facts(field, definitions, f"{path}.{name}")
    if "items" in schema:
        facts |= type_facts(schema["items"], definitions, f"{path}[]")
    values = schema.get("additionalProperties")
    for pattern, field in schema.get("patternProperties", {}).items():
        own["keys"], values = pattern, field
    if isinstance(values, dict):
        facts |= type_facts(values, definitions, f"{path}{{}}")
    return facts


@pytest.mark.parametrize("part", ["spec", "status"])
@pytest.mark.parametrize("kind", KINDS)
def test_schema_and_types_have_the_same_fields_types_and_bounds(kind: str, part: str) -> None:
    types = MODELS[kind].model_json_schema()
    enforced = server_facts(schema_of(kind)["properties"][part], part)
    typed = type_facts(types["properties"][part], types["$defs"], part)
    both = ((path, enforced.get(path), typed.get(path)) for path in enforced | typed)
    assert [(path, server, type_) for path, server, type_ in both if server != type_] == []


@pytest.mark.parametrize("kind", KINDS)
def test_schema_and_types_require_the_same_parts(kind: str) -> None:
    schema, types = schema_of(kind), MODELS[kind].model_json_schema()
    assert set(schema["properties"]) == {"apiVersion", "kind", *types["properties"]}
    assert set(types["required"]) == {"metadata", *schema["required"]}


# -- defaults ---------------------------------------------------------------------------------------


def server_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """The defaults of an object's fields, as the API server fills them in, one inside the other."""
    filled = {}
    for name, field in schema.get("properties", {}).items():
        if "default" in field:
            inner = server_defaults(field) if field.get("type") == "object" else {}
            filled[name] = (
                {**inner, **field["default"]} if isinstance(field["default"], dict) else field["default"]
            )
    return filled


def type_defaults(model: Any) -> dict[str, Any]:
    filled = {}
    for field in model.model_fields.values():
        if not field.is_required() and (default := field.get_default(call_default_factory=True)) is not None:
            dump = getattr(default, "model_dump", None)
            filled[field.alias] = dump(by_alias=True, exclude_none=True) if dump else default
    return filled


def spec_objects(kind: str) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every object below spec with its type."""

    def walk(path: str, schema: dict[str, Any], model: Any) -> Iterator[tuple[str, dict[str, Any], Any]]:
        yield path, schema, model
        for field in model.model_fields.values():
            inner = schema["properties"][field.alias]
            inner = inner.get("items", inner)
            inner = (
                inner["additionalProperties"]
                if isinstance(inner.get("additionalProperties"), dict)
                else inner
            )
            for candidate in _models(field.annotation):
                yield from walk(f"{path}.{field.alias}", inner, candidate)

    yield from walk(
        "spec", schema_of(kind)["properties"]["spec"], MODELS[kind].model_fields["spec"].annotation
    )


def _models(annotation: Any) -> Iterator[Any]:
    if hasattr(annotation, "model_fields"):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


@pytest.mark.parametrize("kind", KINDS)
def test_schema_and_types_fill_in_the_same_defaults(kind: str) -> None:
    seen = 0
    for path, schema, model in spec_objects(kind):
        assert type_defaults(model) == server_defaults(schema), path
        seen += 1
    assert seen > 1


# -- what holds for every schema --------------------------------------------------------------------


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        if path or name != "metadata":
            yield from fields(field, f"{path}.{name}")
    for below, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(below), dict):
            yield from fields(schema[below], f"{path}{mark}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str) -> None:
    silent = [
        path
        for path, field in fields(schema_of(kind))
        if not path.endswith(("]", "}")) and not field.get("description")
    ]
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_list_map_and_text_is_bounded(kind: str) -> None:
    def unbounded(field: dict[str, Any]) -> bool:
        if field.get("x-kubernetes-int-or-string"):
            return "maxLength" not in field
        return {
            "string": not field.keys() & {"maxLength", "enum", "format"},
            "array": "maxItems" not in field,
            "object": "additionalProperties" in field and "maxProperties" not in field,
            "integer": "minimum" not in field,
        }.get(field["type"], False)

    loose = [path for path, field in fields(schema_of(kind)) if unbounded(field)]
    assert [
        path for path in loose if path not in (".apiVersion", ".kind") and "tolerationSeconds" not in path
    ] == []


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_are_metav1_conditions_keyed_by_type(kind: str) -> None:
    conditions = schema_of(kind)["properties"]["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == (
        "map",
        ["type"],
    )
    assert set(conditions["items"]["required"]) == set(METAV1_CONDITION)


@pytest.mark.parametrize(
    ("kind", "shorts", "columns"),
    [
        ("TenantQueue", ["queue", "queues", "tq"], "Parent Weight Pending Admitted Used/Share Age"),
        ("PodGroup", ["dlpg"], "Queue State Position Reason Age"),
        ("DLJob", ["dlj"], "Queue State Reason Workers Servers Progress Speed ETA Age"),
        ("ScalingPolicy", ["dlsp"], "Stage Champion Challenger Decisions Agreement Gain Age"),
    ],
)
def test_names_and_printed_columns(kind: str, shorts: list[str], columns: str) -> None:
    spec = CRDS[kind]["spec"]
    assert spec["names"]["shortNames"] == shorts
    assert spec["names"]["categories"] == ["dl2"]
    assert spec["names"]["plural"] == names.PLURALS[kind]
    assert (spec["scope"] == "Namespaced") == (kind in names.NAMESPACED)
    assert [version["name"] for version in spec["versions"]] == [names.VERSION]
    assert [column["name"] for column in spec["versions"][0]["additionalPrinterColumns"]] == columns.split()
    assert "status" in spec["versions"][0]["subresources"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_printed_column_is_one_scalar_field(kind: str) -> None:
    by_path = dict(fields(schema_of(kind)))
    for column in CRDS[kind]["spec"]["versions"][0]["additionalPrinterColumns"]:
        if not column["jsonPath"].startswith(".metadata"):
            assert by_path[column["jsonPath"]]["type"] in ("string", "integer", "number"), column["name"]
