"""Fair shares of one resource at one level of the tree, in exact integers.

Guarantees first (scaled down in proportion where they exceed the total), then the rest by weight among
those that still ask (water-filling), then whole units by largest remainder. Source: koordinator's elastic
quota and KAI-Scheduler's resource division; the rounding is ours, so that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class Ask(NamedTuple):
    """One child, oldest first in the sequence: what it is guaranteed, asks and weighs (smallest units)."""

    guarantee: int  # `min`; where all of it is lent, not more than `request`
    request: int  # min(max, admitted + pending demand)
    weight: int


def fair_shares(total: int, asks: Sequence[Ask]) -> list[int]:
    """Each child's share of `total`. The sum is `total` as long as anybody with a weight still asks."""
    total = max(total, 0)
    guaranteed = sum(ask.guarantee for ask in asks)
    if guaranteed > total:
        return split(total, [ask.guarantee for ask in asks])
    shares = [ask.guarantee for ask in asks]
    hungry = [i for i, ask in enumerate(asks) if ask.weight > 0 and ask.request > ask.guarantee]
    _fill(total - guaranteed, asks, hungry, shares)
    return shares


def _fill(rest: int, asks: Sequence[Ask], hungry: list[int], shares: list[int]) -> None:
    """Share `rest` by weight, each capped by its request: who is full at the lowest level goes first."""

    def level(i: int) -> tuple[Fraction, int]:
        return Fraction(asks[i].request - asks[i].guarantee, asks[i].weight), i

    weight = sum(asks[i].weight for i in hungry)
    waiting = sorted(hungry, key=level)
    for n, i in enumerate(waiting):
        gap = asks[i].request - asks[i].guarantee
        if gap * weight > rest * asks[i].weight:
            last = sorted(waiting[n:])
            parts = split(rest, [asks[j].weight for j in last])
            for j, part in zip(last, parts, strict=True):
                shares[j] += part
            return
        shares[i] += gap
        rest -= gap
        weight -= asks[i].weight


def split(total: int, parts: Sequence[int]) -> list[int]:
    """`total` in proportion to `parts`, in whole units: floors, then the largest remainders, first come first."""
    whole = sum(parts)
    if whole == 0:
        return [0] * len(parts)
    shares = [total * part // whole for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda i: (-(total * parts[i] % whole), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares
