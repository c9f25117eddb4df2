"""The table of objects that only the operator can tell are wrong, for whoever asks the operator about them."""

import json
from pathlib import Path
from typing import Any

import yaml

CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())["cases"]


def in_namespace(case: dict[str, Any], namespace: str) -> dict[str, Any]:
    """The case with its placeholders filled in: NAMESPACE, and 60KIB for an argument of that length."""
    text = json.dumps(case).replace("NAMESPACE", namespace).replace('"60KIB"', json.dumps("x" * 60 * 1024))
    filled: dict[str, Any] = json.loads(text)
    return filled
