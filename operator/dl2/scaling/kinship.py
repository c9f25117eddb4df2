"""Which unlabelled jobs train like which others, told by what was measured.

The speed of a job at a shape is a fingerprint: jobs of two models seldom train equally fast at several shapes.
An unlabelled job joins the jobs whose samples explain its own better than the prior does (Bayes factor of two
Gaussian processes with one surface against two; Rasmussen and Williams, section 5.4.1), and from then on shares
what they measure, as if they had a label in common. It leaves when more samples speak against it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from dl2.scaling.history import Cell, Kind, Name, is_unlabelled, requests_of
from dl2.scaling.interface import Scale

# (one kind, another): log of how much better one surface explains both than two do.
Evidence = Callable[[Kind, Kind], float]
_DOUBT = 2.0  # log odds against two kinds being one, beside the number of candidates
_ASKED_AGAIN = 1.5  # once a kind has so many times the samples


class Kinship:
    """Groups of kinds, each called by its leader. Labelled kinds stand alone, until unlabelled ones join them."""

    def __init__(self) -> None:
        self._leaders: dict[Name, Name] = {}
        self._asked: dict[Name, float] = {}  # samples when its kinship was last considered
        self._pools: dict[Name, tuple[object, Kind]] = {}

    def leader(self, name: Name) -> Name:
        return self._leaders.get(name, name)

    def pools(self, kinds: Mapping[Name, Kind], evidence: Evidence) -> dict[Name, Kind]:
        """By leader what its group measured, after kinds with enough new samples have chosen their groups."""
        self._forget(kinds)
        groups = self._groups(kinds)
        for name in sorted(kinds):
            samples = kinds[name].samples
            if is_unlabelled(name) and samples >= max(1.0, _ASKED_AGAIN * self._asked.get(name, 0.0)):
                self._asked[name] = samples
                self._choose(name, groups, kinds, evidence)
        return {leader: self._pool(leader, members, kinds) for leader, members in groups.items()}

    def _choose(
        self,
        name: Name,
        groups: dict[Name, list[Name]],
        kinds: Mapping[Name, Kind],
        evidence: Evidence,
    ) -> None:
        """Take `name` out of its group, and let it go where the evidence is largest, or stand alone."""
        left = groups.pop(self.leader(name))
        left.remove(name)
        if left:
            self._lead(left[0], left, groups)
        mine = kinds[name]
        others = [each for each in groups if requests_of(each) == requests_of(name)]
        found = [(evidence(mine, self._pool(each, groups[each], kinds)), each) for each in others]
        best, leader = max(found, default=(-math.inf, name))
        if best <= _DOUBT + math.log(len(others) + 1.0):
            leader = name
        self._lead(leader, [*groups.get(leader, ()), name], groups)

    def _lead(self, leader: Name, members: list[Name], groups: dict[Name, list[Name]]) -> None:
        groups[leader] = members
        self._leaders.update(dict.fromkeys(members, leader))

    def _groups(self, kinds: Mapping[Name, Kind]) -> dict[Name, list[Name]]:
        groups: defaultdict[Name, list[Name]] = defaultdict(list)
        for name in sorted(kinds):
            if kinds[name].cells:
                groups[self.leader(name)].append(name)
        return dict(groups)

    def _pool(self, leader: Name, members: list[Name], kinds: Mapping[Name, Kind]) -> Kind:
        if len(members) == 1:
            return kinds[members[0]]
        versions = [(name, kinds[name].version) for name in members]
        known = self._pools.get(leader)
        if known is None or known[0] != versions:
            cells = _merged(cell for name in members for cell in kinds[name].cells.items())
            known = self._pools[leader] = (versions, Kind(cells))
        return known[1]

    def _forget(self, kinds: Mapping[Name, Kind]) -> None:
        """Kinds that the history has forgotten; who followed a leader that is gone follows the next of its group."""
        heirs: dict[Name, Name] = {}
        kept = {}
        for name in sorted(self._leaders):
            if name in kinds:
                leader = self._leaders[name]
                kept[name] = leader if leader in kinds else heirs.setdefault(leader, name)
        self._leaders = kept
        self._asked = {name: samples for name, samples in self._asked.items() if name in kinds}
        self._pools = {name: pool for name, pool in self._pools.items() if name in kinds}


def _merged(cells: Iterable[tuple[Scale, Cell]]) -> dict[Scale, Cell]:
    merged: dict[Scale, Cell] = {}
    for scale, cell in cells:
        merged.setdefault(scale, Cell()).merge(cell)
    return merged
