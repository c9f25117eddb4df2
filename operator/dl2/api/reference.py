"""The reference of the custom resources as a page, made from their definitions: `python -m dl2.api.reference`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import yaml

from dl2 import resources
from dl2.api.names import API_VERSION

_ORDER = ("tenantqueues", "podgroups", "dljobs", "scalingpolicies")
_BELOW = {"items": "[]", "additionalProperties": ".*"}
_TOLD = {"conditions", "servers.template"}  # Kubernetes' own fields; those of workers.template once more
_HEAD = f"""# Custom resources

Reference of the API group `{API_VERSION}`, made from `crds/` by `python -m dl2.api.reference > docs/api.md`.
`kubectl explain dljob.spec.workers` prints the same. Ready-made manifests are in `examples/`.
The definitions need Kubernetes 1.34 or newer (older ones price CEL rules on quantities by a megabyte each).

A wrong object is refused when it is applied, with the field and what to do about it. What only the operator can
tell (a queue that does not exist, a circle of parents) shows as a condition of the object and as an Event.
"""


def reference() -> str:
    """The page, as Markdown."""
    return "\n".join([_HEAD, *(line for plural in _ORDER for line in _kind(plural))])


def definition(plural: str) -> dict[str, Any]:
    """`spec` of a CustomResourceDefinition."""
    text = (resources.directory("crds") / f"{plural}.yaml").read_text()
    spec: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]
    return spec


def _kind(plural: str) -> Iterator[str]:
    spec = definition(plural)
    names, (version,) = spec["names"], spec["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    shorts = ", ".join(f"`{short}`" for short in names["shortNames"])
    columns = ", ".join(column["name"] for column in version["additionalPrinterColumns"])
    yield f"## {names['kind']}\n"
    yield f"{schema['description']}\n"
    yield f"{spec['scope']}. Short names {shorts}. `kubectl get {plural}` prints {columns}.\n"
    for part in ("spec", "status"):
        yield f"### {names['kind']} {part}\n"
        yield schema["properties"][part]["description"] + "\n"
        yield "| field | type | description |\n| --- | --- | --- |"
        yield from _rows(schema["properties"][part], "")
        yield ""
        if part == "spec":
            yield from _rules(schema)


def _rows(schema: dict[str, Any], path: str) -> Iterator[str]:
    """One line a field, depth first."""
    for name, field in schema.get("properties", {}).items():
        here = f"{path}{name}"
        required = " (required)" if name in schema.get("required", ()) else ""
        yield f"| `{here}`{required} | {_type(field)} | {_cell(field.get('description', ''))} |"
        if here in _TOLD:
            continue
        yield from _rows(field, f"{here}.")
        for below, mark in _BELOW.items():
            if isinstance(field.get(below), dict):
                yield from _rows(field[below], f"{here}{mark}.")


def _type(field: dict[str, Any]) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in field:
        return " \\| ".join(f"`{choice}`" for choice in field["enum"])
    kind = str({"array": "list", "string": "text"}.get(field["type"], field["type"]))
    if field.get("format") == "date-time":
        kind = "time"
    if isinstance(field.get("additionalProperties"), dict):
        kind = "map"
    low, high = field.get("minimum"), field.get("maximum")
    bounds = f" {low}..{high}" if high is not None else f" ≥ {low}" if low is not None else ""
    return kind + bounds


def _rules(schema: dict[str, Any]) -> Iterator[str]:
    """What must hold between fields and over time, in the words of the refusal."""
    rules = [rule for rule in dict.fromkeys(_messages(schema, "")) if "servers.template." not in rule]
    if rules:
        yield "Refused:\n"
        yield from (f"- {rule}" for rule in rules)
        yield ""


def _messages(schema: dict[str, Any], path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        where = (path + rule.get("fieldPath", "")).removeprefix(".")
        yield f"`{where}` {_cell(rule['message'])}" if where else _cell(rule["message"])
    for name, field in schema.get("properties", {}).items():
        yield from _messages(field, f"{path}.{name}")
    for below, mark in _BELOW.items():
        if isinstance(schema.get(below), dict):
            yield from _messages(schema[below], path + mark)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    sys.stdout.write(reference())
