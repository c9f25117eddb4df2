"""Which unlabelled jobs train like which others, told by what was measured.

The speed of a job at a shape is a fingerprint: jobs of two models seldom train equally fast at several shapes.
An unlabelled job joins the jobs whose samples explain its own better than the prior does (Bayes factor of two
Gaussian processes with one surface against two; Rasmussen and Williams, section 5.4.1), and from then on shares
what they measure, as if they had a label in common. It leaves when more samples speak against it. Before anything
was measured, it is as likely of a group as there are jobs in it (Chinese restaurant process; Aldous, 1985).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from dl2.scaling.cells import Cell, Kind, Name
from dl2.scaling.history import is_unlabelled, requests_of

# (one kind, another): log of how much better one surface explains both than two do.
Evidence = Callable[[Kind, Kind], float]
_ALONE = 3.0  # standing alone is as likely beforehand as a group of so many jobs
_ASKED_AGAIN = 1.5  # once a kind has so many times the samples
_SETTLED = 24  # samples after which a kind stays where it is
_MOST_ASKED, _MOST_COMPARED = 16, 16  # kinds in one round, fewest samples first, with the best known groups


class Kinship:
    """Groups of kinds, each called by its leader. Labelled kinds stand alone, until unlabelled ones join them."""

    def __init__(self) -> None:
        self._leaders: dict[Name, Name] = {}
        self._asked: dict[Name, int] = {}  # samples when its kinship was last considered
        self._pools: dict[Name, tuple[dict[Name, int], Kind]] = {}  # with the samples of each member in it

    def leader(self, name: Name) -> Name:
        return self._leaders.get(name, name)

    def pools(self, kinds: Mapping[Name, Kind], evidence: Evidence) -> dict[Name, Kind]:
        """By leader what its group measured, after kinds with enough new samples have chosen their groups."""
        self._forget(kinds)
        groups = self._groups(kinds)
        due = sorted((kinds[name].version, name) for name in kinds if self._is_due(name, kinds[name].version))
        for samples, name in due[:_MOST_ASKED]:
            self._asked[name] = samples
            self._choose(name, groups, kinds, evidence)
        return {leader: self._pool(leader, members, kinds) for leader, members in groups.items()}

    def _is_due(self, name: Name, samples: int) -> bool:
        asked = self._asked.get(name, 0)
        return is_unlabelled(name) and asked < _SETTLED and samples >= max(1.0, _ASKED_AGAIN * asked)

    def _has_chosen(self, name: Name) -> bool:
        return name in self._asked or not is_unlabelled(name)

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
        others = sorted(
            (each for each in groups if requests_of(each) == requests_of(name) and self._has_chosen(each)),
            key=lambda each: (-sum(kinds[member].version for member in groups[each]), each),
        )[:_MOST_COMPARED]
        found = [
            (
                evidence(mine, self._pool(each, groups[each], kinds)) + math.log(_size(groups[each], kinds)),
                each,
            )
            for each in others
        ]
        best, leader = max(found, default=(-math.inf, name))
        if best <= math.log(_ALONE):
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
        counts, pool = self._pools.get(leader, ({}, Kind()))
        if list(counts) != members or any(
            kinds[name].version - count > len(kinds[name].latest) for name, count in counts.items()
        ):
            counts, pool = {name: kinds[name].version for name in members}, _merged(kinds, members)
        for name in members:
            kind, new = kinds[name], kinds[name].version - counts[name]
            for scale, value in list(kind.latest)[len(kind.latest) - new :] if new else ():
                pool.add(scale, value)
            counts[name] = kind.version
        self._pools[leader] = (counts, pool)
        return pool

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


def _size(members: Sequence[Name], kinds: Mapping[Name, Kind]) -> int:
    """Jobs of a group of kinds. A job whose label was changed counts where it was first, and is here all the same."""
    return sum(max(1, kinds[member].jobs) for member in members)


def _merged(kinds: Mapping[Name, Kind], members: Sequence[Name]) -> Kind:
    merged = Kind()
    for name in members:
        for scale, cell in kinds[name].cells.items():
            merged.cells.setdefault(scale, Cell()).merge(cell)
    return merged
