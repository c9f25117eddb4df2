"""Pydantic's findings in our words: where, what, and the mend."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dl2.api.base import PATTERNS, Problem, child

_QUANTITY_MEND = 'write a quantity such as 4, "500m" or "16Gi"'
_SHOWN = 60  # characters of a bad value in a message

# Error type of pydantic -> what is wrong, how to mend it. {value} is the input, the rest its context.
_ERRORS: Final = {
    "missing": ("is missing", "add it"),
    "extra_forbidden": ("is not a field of this kind", "correct its spelling or remove it"),
    "int_type": ("{value} is not an integer", "write a whole number"),
    "float_type": ("{value} is not a number", "write a number"),
    "bool_type": ("{value} is neither true nor false", "write true or false"),
    "string_type": ("{value} is not a string", "write text, in quotes where it looks like a number"),
    "list_type": ("{value} is not a list", "write a list"),
    "dict_type": ("{value} is not an object", "write an object with fields"),
    "model_type": ("{value} is not an object", "write an object with fields"),
    "greater_than_equal": ("{value} is below {ge}", "write {ge} or more"),
    "less_than_equal": ("{value} is above {le}", "write {le} or less"),
    "string_too_long": ("is longer than {max_length} characters", "shorten it"),
    "string_too_short": ("is empty", "write a value or remove it"),
    "too_short": ("has {actual_length} entries", "give it {min_length} or more"),
    "too_long": ("has {actual_length} entries", "give it {max_length} or less"),
    "literal_error": ("{value} is not a choice", "write {expected}"),
}


def first_problem(error: ValidationError, prefix: str = "") -> Problem:
    """The first thing an object misses; `prefix` is the path of what was validated."""
    details = error.errors(include_url=False)[0]
    kind, location = details["type"], list(details["loc"])
    if location and location[-1] in ("int", "str", "constrained-str"):  # both branches of a quantity missed
        return Problem(
            _path(prefix, location[:-1]), f"{shown(details['input'])} is not a quantity", _QUANTITY_MEND
        )
    if kind == "string_pattern_mismatch":
        mend = PATTERNS.get(details["ctx"]["pattern"], "correct its spelling")
        return Problem(_path(prefix, location), f"{shown(details['input'])} is no valid value", mend)
    if kind == "value_error":  # our own messages carry their mend
        problem, _, mend = str(details["ctx"]["error"]).partition("; ")
        return Problem(_path(prefix, location), problem, mend or "correct it")
    return Problem(_path(prefix, location), *_describe(details))


def _describe(details: ErrorDetails) -> tuple[str, str]:
    problem, mend = _ERRORS.get(details["type"], (details["msg"], "correct it"))
    words = {"value": shown(details["input"]), **details.get("ctx", {})}
    return problem.format(**words), mend.format(**words)


def _path(prefix: str, location: list[int | str]) -> str:
    # pydantic marks what is wrong with a key, not with its value, by a last step "[key]"
    return reduce(child, (step for step in location if step != "[key]"), prefix)


def shown(value: Any) -> str:
    """A value as JSON, cut to what fits in a sentence."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
