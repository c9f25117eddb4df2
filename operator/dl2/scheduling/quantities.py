"""Kubernetes quantities as exact integers in a resource's smallest unit, and back.

Grammar and canonical printing follow `k8s.io/apimachinery/pkg/api/resource.Quantity`. CPU is counted in
milli-CPU, everything else in whole units (bytes, devices, pods); what is finer is rounded up, as
kube-scheduler does, so that nothing is ever promised that is not there.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache

MAX = 2**63 - 1  # what Kubernetes itself can hold

_GRAMMAR = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:(?P<binary>[KMGTPE]i)|(?P<exponent>[eE][+-]?[0-9]+)|(?P<decimal>[numkMGTPE]))?"
)
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_SUFFIX = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_LONGEST = 64  # characters
_WIDEST_EXPONENT = 63
_BYTES = ("memory", "storage", "ephemeral-storage")
_EXAMPLES = 'write a number with an optional suffix, such as "4", "500m" or "16Gi"'


class QuantityError(ValueError):
    """No quantity, or one out of bounds. The message names the resource, the text and the mend."""


def parse_quantity(text: object, resource: str, *, down: bool = False) -> int:
    """`text` in the smallest unit of `resource` (cpu: milli-CPU; else whole units), rounded up, or `down`: a limit.

    Raises QuantityError: not in Kubernetes' grammar, negative, or above 2**63 - 1.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise QuantityError(f"{resource}: {text!r} is not a quantity; {_EXAMPLES}")
    return _parse(text if isinstance(text, str) else repr(text), resource, down)


@lru_cache(maxsize=16384)
def _parse(text: str, resource: str, down: bool) -> int:
    exact = _value(text, resource) * (1000 if resource == "cpu" else 1)
    value = math.floor(exact) if down else math.ceil(exact)
    if value < 0:
        raise QuantityError(f'{resource}: "{text}" is negative; a quantity must be 0 or more')
    if value > MAX:
        raise QuantityError(f'{resource}: "{text}" is above 2^63-1, the most that Kubernetes can hold')
    return value


def _value(text: str, resource: str) -> Fraction:
    found = _GRAMMAR.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        raise QuantityError(f'{resource}: "{text[:_LONGEST]}" is not a quantity; {_EXAMPLES}')
    number = Fraction(found["number"])
    if found["binary"]:
        return number * _BINARY[found["binary"]]
    exponent = int(found["exponent"][1:]) if found["exponent"] else _DECIMAL[found["decimal"] or ""]
    if abs(exponent) > _WIDEST_EXPONENT:
        raise QuantityError(f'{resource}: the exponent of "{text}" is out of bounds (±{_WIDEST_EXPONENT})')
    return number * Fraction(10) ** exponent


def format_quantity(value: int, resource: str) -> str:
    """`value` smallest units of `resource` as Kubernetes prints them ("1500m", "1Gi")."""
    if (resource in _BYTES or resource.startswith("hugepages-")) and abs(value) >= 1024:
        return _binary(value)
    return _decimal(value, -3 if resource == "cpu" else 0)


def _decimal(value: int, exponent: int) -> str:
    """The largest SI suffix that needs no fraction."""
    if value == 0:
        return "0"
    while value % 1000 == 0 and exponent < 18:
        value, exponent = value // 1000, exponent + 3
    return f"{value}{_SUFFIX[exponent]}"


def _binary(value: int) -> str:
    for suffix, unit in reversed(_BINARY.items()):
        if value % unit == 0:
            return f"{value // unit}{suffix}"
    return str(value)
