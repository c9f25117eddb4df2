"""Paired comparisons: the same case under two policies, so that what cases differ in cancels out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the last the normal's is near enough.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
            2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
            2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
_NORMAL = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with the half-width of its 95 % confidence interval (infinite for a single value)."""

    mean: float
    half: float


def student(freedom: int) -> float:
    """Two-sided 95 % quantile."""
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and confidence of independent values."""
    if not values:
        return Estimate(math.nan, math.inf)
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(mean, student(len(values) - 1) * math.sqrt(variance / len(values)))


def below(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """By how many percent `values` lie below `others`, pair by pair."""
    return estimate(
        [100.0 * (1.0 - value / other) for value, other in zip(values, others, strict=True) if other > 0]
    )
