"""Where the pods of a group go: the tightest domain that holds them, and in it the fewest nodes.

From a single node outwards over racks, blocks, zones: the first level that has a domain with room for the
whole group wins; there the domain that needs the fewest nodes, then the one left fullest (best fit), then
the first by name. Broken nodes go before idle ones, so that whole-node shapes stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from dl2.scheduling.fleet import Fleet, Picture, PodShape
from dl2.scheduling.index import Index
from dl2.scheduling.puzzle import Spread, Want, balance, solve
from dl2.scheduling.topology import Scope

_PUZZLE_NODES = 8
_LONG_LOG = 50_000


class Placer:
    """Finds room in a fleet and takes it. `now`: room that is free at once; else room that will be."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._indices: dict[tuple[int, str | None, bool], Index] = {}
        self._used: set[tuple[int, str | None, bool]] = set()

    def index(self, shape: PodShape, required: str | None, now: bool) -> Index:
        key = (shape.number, required, now)
        self._used.add(key)
        index = self._indices.get(key)
        if index is None:
            picture: Picture = self.fleet.now if now else self.fleet.future
            index = Index(self.fleet, picture, shape, self.fleet.scope(required))
            self._indices[key] = index
        else:
            index.refresh()
        return index

    def tidy(self) -> None:
        """Between passes: once the logs are long, drop the indices that nobody has used since the last time."""
        logs = (self.fleet.now.log, self.fleet.future.log)
        if max(map(len, logs)) < _LONG_LOG:
            return
        self._indices = {key: index for key, index in self._indices.items() if key in self._used}
        self._used.clear()
        for index in self._indices.values():
            index.refresh()
            index.rewind()
        for log in logs:
            log.clear()

    def place(
        self, wants: Sequence[Want], required: str | None, *, now: bool = True, home: Sequence[int] = ()
    ) -> list[Spread] | None:
        """Room for all of `wants`, taken in the fleet (`undo` gives it back), or None and nothing is taken.

        `required`: a label; all in one domain of it. `home`: nodes the group is on already; it stays in
        their domains while it can, and always in that of `required`.
        """
        wanted = [want for want in wants if want[1]]
        if not wanted:
            return [{} for _ in wants]
        found = self._on_one_node(wanted, required, now, home) or self._over_nodes(
            wanted, required, now, home
        )
        if found is None:
            return None
        rest = iter(found)
        return [next(rest) if count else {} for _, count in wants]

    def fits(
        self, wants: Sequence[Want], required: str | None, *, now: bool, home: Sequence[int] = ()
    ) -> bool:
        """Would `place` find room? Most often one look at single nodes tells."""
        wanted = [want for want in wants if want[1]]
        if not wanted or self._one_node(wanted, required, now, home) is not None:
            return True
        spreads = self._over_nodes(wanted, required, now, home)
        if spreads is not None:
            self.undo(wanted, spreads, now=now)
        return spreads is not None

    def undo(self, wants: Sequence[Want], spreads: Sequence[Spread], *, now: bool = True) -> None:
        for (shape, _), spread in zip(wants, spreads, strict=True):
            self._take(shape, spread, now, -1)

    def retake(self, wants: Sequence[Want], spreads: Sequence[Spread], *, now: bool = True) -> None:
        """Take again what `undo` has given back."""
        for (shape, _), spread in zip(wants, spreads, strict=True):
            self._take(shape, spread, now)

    def _take(self, shape: PodShape, spread: Mapping[int, int], now: bool, sign: int = 1) -> None:
        for i, pods in spread.items():
            vector = shape.vector if pods == 1 else tuple([amount * pods for amount in shape.vector])
            self.fleet.charge(i, vector, sign, real=now)

    def _one_node(
        self, wants: Sequence[Want], required: str | None, now: bool, home: Sequence[int]
    ) -> int | None:
        """The node for all of `wants` together."""
        shape, count = wants[0] if len(wants) == 1 else (self.fleet.together(wants), 1)
        index = self.index(shape, required, now)
        if not home:
            return index.one_node(count)
        fitting = [i for i in home if index.slots[i] >= count]
        return min(fitting, key=lambda i: (index.slots[i], i)) if fitting else None

    def _on_one_node(
        self, wants: Sequence[Want], required: str | None, now: bool, home: Sequence[int]
    ) -> list[Spread] | None:
        node = self._one_node(wants, required, now, home)
        if node is None:
            return None
        spreads = [{node: pods} for _, pods in wants]
        for (each, _), spread in zip(wants, spreads, strict=True):
            self._take(each, spread, now)
        return spreads

    def _over_nodes(
        self, wants: Sequence[Want], required: str | None, now: bool, home: Sequence[int]
    ) -> list[Spread] | None:
        order = self._biggest_first(wants)
        scope = self.fleet.scope(required)
        puzzled = len(scope.levels)  # the level of the last puzzle: one each, but at the outermost
        for depth, domain in self._domains([wants[n] for n in order], required, now, home, scope):
            spreads = self._fill(wants, order, required, now, depth, domain, home)
            if spreads is None and len(wants) > 1 and (depth < puzzled or depth == 0):
                puzzled = depth
                spreads = self._puzzle(wants, order, required, now, depth, domain)
            if spreads is not None:
                return spreads
        return None

    def _puzzle(
        self,
        wants: Sequence[Want],
        order: Sequence[int],
        required: str | None,
        now: bool,
        depth: int,
        domain: int,
    ) -> list[Spread] | None:
        """Several kinds of pods may fit though filling up one kind after the other fails: try all ways.

        For one kind of pod filling up is exact.
        """
        picture = self.fleet.now if now else self.fleet.future
        of_node = self.fleet.scope(required).levels[depth].of_node
        slots = [self.index(shape, required, now).slots for shape, _ in wants]
        nodes = [i for i, at in enumerate(of_node) if at == domain and any(row[i] for row in slots)]
        free, ordered = [picture.free[i] for i in nodes], [wants[n] for n in order]
        found = solve(free, ordered, nodes) if len(nodes) <= _PUZZLE_NODES else None
        found = found or balance(free, ordered, nodes)
        if found is None:
            return None
        spreads: list[Spread] = [{} for _ in wants]
        for n, spread in zip(order, found, strict=True):
            spreads[n] = spread
        self.retake(wants, spreads, now=now)
        return spreads

    def _biggest_first(self, wants: Sequence[Want]) -> list[int]:
        """Large pods before small ones: what is left over suits the small."""
        totals = self.fleet.totals

        def size(n: int) -> tuple[Fraction, int]:
            return -max(
                (Fraction(amount, totals[r]) for r, amount in wants[n][0].takes), default=Fraction(0)
            ), n

        return sorted(range(len(wants)), key=size) if len(wants) > 1 else [0]

    def _domains(
        self, wants: Sequence[Want], required: str | None, now: bool, home: Sequence[int], scope: Scope
    ) -> Iterator[tuple[int, int]]:
        """Domains that have the slots for each of `wants` on its own, the best first."""
        for depth in reversed(range(len(scope.levels))):
            level = scope.levels[depth]
            indices = [(self.index(shape, required, now), count) for shape, count in wants]
            first, pods = indices[0]
            sums = first.sums[depth]
            if home:
                candidates = [d for d in sorted({level.of_node[i] for i in home} - {-1}) if sums[d] >= pods]
            else:
                candidates = [d for d, room in enumerate(sums) if room >= pods]
            for index, count in indices[1:]:
                candidates = [d for d in candidates if index.sums[depth][d] >= count]
            candidates.sort(
                key=lambda domain: (
                    level.values[domain] is None,
                    first.nodes_needed(depth, domain, pods),
                    first.sums[depth][domain],
                    domain,
                )
            )
            for domain in candidates:
                yield depth, domain

    def _fill(
        self,
        wants: Sequence[Want],
        order: Sequence[int],
        required: str | None,
        now: bool,
        depth: int,
        domain: int,
        home: Sequence[int],
    ) -> list[Spread] | None:
        spreads: list[Spread] = [{} for _ in wants]
        touched = list(dict.fromkeys(home))
        for n in order:
            shape, count = wants[n]
            spread = self.index(shape, required, now).spread(depth, domain, count, touched)
            if spread is None:
                self.undo(wants, spreads, now=now)
                return None
            self._take(shape, spread, now)
            spreads[n] = spread
            touched += [i for i in spread if i not in touched]
        return spreads
