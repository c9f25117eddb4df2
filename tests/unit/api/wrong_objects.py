"""The table of wrong objects, for the types here and for the API server in tests/integration."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

_TABLE = yaml.safe_load((Path(__file__).parent / "wrong_objects.yaml").read_text())
VALID: dict[str, dict[str, Any]] = _TABLE["valid"]
CASES: list[dict[str, Any]] = _TABLE["wrong"]


def changed(kind: str, at: list[str | int], *value: Any) -> dict[str, Any]:
    """The valid object of `kind` with `value` at the path `at`; without a value, with nothing there."""
    result: dict[str, Any] = json.loads(json.dumps(VALID[kind]))  # a deep copy that also parts YAML aliases
    *path, last = at
    place: Any = result
    for step in path:
        place = place[step] if isinstance(step, int) else place.setdefault(step, {})
    if value:
        place[last] = value[0]
    else:
        del place[last]
    return result


def wrong(case: dict[str, Any]) -> dict[str, Any]:
    return changed(case["kind"], case["at"], *([case["value"]] if "value" in case else []))


def names_field(text: str, field: str) -> bool:
    """Whether `text` names `field`; `a[0].b[nvidia.com/gpu]` and `a[0].b.nvidia.com/gpu` are one field."""
    return _dotted(field) in _dotted(text)


def _dotted(path: str) -> str:
    return re.sub(r"\[([^\[\]]*)\]", r".\1", path)
