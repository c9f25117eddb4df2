"""Who starts: the minimum of every waiting group that can, in the order of the contest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

from dl2.scheduling.contest import Contest, Cursor
from dl2.scheduling.explain import Blocked, Short, of_nodes, of_quota
from dl2.scheduling.items import Counts, Item
from dl2.scheduling.reserve import Reservations
from dl2.scheduling.room import Room
from dl2.scheduling.snapshot import Key
from dl2.scheduling.state import Line
from dl2.scheduling.tree import TreeNode, Vector
from dl2.scheduling.work import Work


@dataclass(frozen=True, slots=True)
class Wall:
    """Nobody of a leaf with at most this priority gets `amount` or more of one resource."""

    resource: int
    amount: int
    priority: int
    told: Blocked


@dataclass(frozen=True, slots=True)
class News:
    """What has been done: branches that hold more, branches that hold less, leaves that left it to others."""

    risen: set[TreeNode]
    fallen: set[TreeNode]
    deferred: set[TreeNode]


def _branches(leaves: Iterable[TreeNode]) -> set[TreeNode]:
    return {node for leaf in leaves for node in leaf.path[:-1]}


def _any_line(line: Line) -> bool:
    return True


class Admission:
    """The rounds of one pass. `blocked` says afterwards why groups of a (leaf, shape) do not start."""

    def __init__(self, work: Work, room: Room, reservations: Reservations, now: float) -> None:
        self.work, self.room, self.state, self.now = work, room, work.state, now
        self.reservations = reservations
        self.blocked: dict[tuple[int, int], Blocked] = {}
        self._served: set[Key] = set()  # started or promised; not again in this pass, even if withdrawn
        self._walls: dict[int, list[Wall]] = {}
        self._fresh_rights: dict[int, bool] = {}  # in this round, by leaf
        self._news = News(set(), set(), set())
        self._heads: dict[int, Item | None] = {}  # of each queue in this round, by leaf
        self._modest: dict[int, tuple[Item, Vector]] = {}  # see `_least`, by leaf

    def run(self) -> None:
        """What others' starts and losses have given a group a right to take, it takes at once: hence rounds.

        From what this pass has started itself first; once that is settled, also from what ran before.
        """
        going = self._round(_any_line, self._possible)
        while going:
            going = self._round(self._may_take_fresh, self._possible_now)
        self._served.intersection_update(self.work.runs)  # who started and had to give way may try once more
        with self.room.as_done():
            going = True
            while going:
                self._news = self._look()
                going = self._round(self._may_gain, self._possible_at_last)

    def tempted(self) -> list[Item]:
        """Who waits, and would evict for it once all that this pass gives is given."""
        found: list[Item] = []

        def look(item: Item) -> bool:
            if item.key not in self.work.runs and self._would_evict(item):
                found.append(item)
            return False

        self._news = self._look()
        with self.room.as_done():
            for line in filter(self._may_gain, self.state.lines.values()):
                Cursor(line, self._ready).keep(look)
        return found

    def _possible_at_last(self, item: Item) -> bool:
        return self.work.fits(item, item.asks) or self._would_evict(item)

    def _would_evict(self, item: Item) -> bool:
        return self._could_ever(item, item.needs) and self.room.would_evict(item)

    def _may_gain(self, line: Line) -> bool:
        """Can what was done since the last look have made anything possible in a line? Asked first, and cheap.

        There is room, or more of it beside what it may take; its branch holds less or another one more; or somebody else
        was to come first.
        """
        news, leaf = self._news, line.leaf
        if not line.waiting:
            return False
        if leaf in news.deferred or any(node in news.fallen for node in leaf.path[:-1]):
            return True
        item, least = self._least(line)
        if news.fallen and (
            self.state.future.shortage(leaf, least) is None or self.room.could(item, least, everything=True)
        ):
            return True
        return bool(news.risen) and self.room.may_gain(item, least, news.risen)

    def _look(self) -> News:
        """What was done since this was asked last."""
        work, room = self.work, self.room
        news = News(_branches(work.gained), _branches(room.lost), set(room.deferred))
        for seen in (work.gained, room.lost, room.deferred):
            seen.clear()
        return news

    def _round(self, among: Callable[[Line], bool], possible: Callable[[Item], bool]) -> bool:
        """One contest over those in some lines that are possible. Has anything started?"""
        self._fresh_rights.clear()
        tree = self.state.tree
        contest = Contest(tree, self.state.future, attrgetter("needs"), tree.weighted_share)
        cursors: dict[int, Cursor] = {}
        withdrawn = {self.state.items[key].leaf for key in self._served if key not in self.work.runs}
        for line in self.state.lines.values():
            if line.waiting and among(line) and not (line.leaf.strict and line.leaf in withdrawn):
                cursors[line.leaf.index] = cursor = Cursor(line, self._ready)
                self._heads[line.leaf.index] = cursor.first
                cursor.keep(possible)
                contest.enter(line.leaf, cursor.head)
        started = False
        while (item := contest.next()) is not None:
            started |= self._turn(item, cursors[item.leaf.index])
            contest.update_all({item.leaf, *self.work.moved})
            self.work.moved.clear()
        return started

    def _turn(self, item: Item, cursor: Cursor) -> bool:
        if self._try(item):
            self._served.add(item.key)
            cursor.done()
            if item.leaf.strict and self.work.runs[item.key].promised:
                cursor.stop()
                self.room.deferred.add(item.leaf)  # whoever is behind it waits for the others' turns
            return True
        if self._is_due(item):
            self.reservations.ask(item, item.asks)
        cursor.failed()
        cursor.keep(self._possible_at_last if self.work.done else self._still_possible)
        return False

    def _ready(self, item: Item) -> bool:
        return item.group.requeue_at <= self.now and item.key not in self._served

    def _is_due(self, item: Item) -> bool:
        """Is it the head of its queue, and passed over for so long that room is to be kept for it?"""
        first = item.group.promised or self._heads.get(item.leaf.index) is item
        return first and self.reservations.due(item)

    # ---- who is worth a try ------------------------------------------------------------------------------

    def _possible(self, item: Item) -> bool:
        """Could this group start if it were its turn now? If not, it is answered."""
        counts, vector = item.asks, item.needs
        if self._hits_wall(item):
            return False
        if (
            self.work.fits(item, counts)
            or self._is_due(item)
            or (self._could_ever(item, vector) and self.room.would(item, counts, item.spreads))
        ):
            return True
        self._note(item, counts)
        return False

    def _still_possible(self, item: Item) -> bool:
        """After another of its leaf has failed: leave out what fails for want of quota too."""
        counts, vector = item.asks, item.needs
        if self.state.future.shortage(item.leaf, vector) is None or self._is_due(item):
            return True
        if self._hits_wall(item):
            return False
        if self._could_ever(item, vector) and self.room.would(item, counts, item.spreads):
            return True
        self._note(item, counts)
        return False

    def _possible_now(self, item: Item) -> bool:
        """In a later round: only those that may take from what this pass has started meanwhile."""
        return self._could_ever(item, item.needs) and self.room.may_take_fresh(item, item.needs)

    def _may_take_fresh(self, line: Line) -> bool:
        """Asked once per leaf, for the least that any of its groups wants of every resource."""
        index = line.leaf.index
        if index not in self._fresh_rights:
            self._fresh_rights[index] = self.room.may_take_fresh(*self._least(line), everything=True)
        return self._fresh_rights[index]

    def _least(self, line: Line) -> tuple[Item, Vector]:
        """Whom of a line most may lose to, and the least that anybody there wants of every resource."""
        known = self._modest.get(line.leaf.index)
        if known is None:
            heads = [waiting[0][1] for waiting in line.waiting.values()]
            asked = (item.shape.quota(item.shape.least) for item in heads)
            known = max(heads, key=attrgetter("group.priority")), tuple(map(min, zip(*asked, strict=True)))
            self._modest[line.leaf.index] = known
        return known

    def _could_ever(self, item: Item, vector: Vector) -> bool:
        """Not where it exceeds a limit all by itself, or a pod of it every node."""
        limits = all(vector[r] <= top for node in item.leaf.path for r, top in node.limited)
        return limits and self._has_nodes(item)

    def _has_nodes(self, item: Item) -> bool:
        fleet = self.state.fleet
        if fleet is None:
            return True
        pods = (m.pod for m, n in zip(item.shape.members, item.asks, strict=True) if n)
        return all(pod is None or fleet.holds_one(pod) for pod in pods)

    def _hits_wall(self, item: Item) -> bool:
        """Has somebody of the leaf who asked for less failed for want of the same resource? Then it is answered."""
        walls = self._walls.get(item.leaf.index)
        if not walls or self._is_due(item):
            return False
        vector = item.needs
        for wall in walls:
            asked = vector[wall.resource]
            if (
                asked >= wall.amount
                and item.group.priority <= wall.priority
                and self._could_ever(item, vector)
                and self.state.future.lacking(item.leaf, vector) == [wall.resource]
            ):
                told = wall.told
                if isinstance(told, Short) and asked != told.needs:
                    told = replace(told, needs=asked)
                self.blocked[item.leaf.index, item.shape.number] = told
                return True
        return False

    # ---- one turn ----------------------------------------------------------------------------------------

    def _try(self, item: Item) -> bool:
        """Does it start, or get a promise? If not, it is answered."""
        counts = item.asks
        could = self._could_ever(item, item.needs)
        if self.reservations.pending and not self._fits_or_would(item, could=could):
            self._note(item, counts)  # what is to be kept makes no difference to it
            return False
        self.reservations.settle()
        if self.work.start(item, counts, now=True) or self.work.start(item, counts, now=False):
            return True
        placed = self.room.make(item, counts, item.spreads) if could else None
        if placed is None:
            self._note(item, counts)
            return False
        self.work.unplace(item, placed, now=False)
        return self.work.start(item, counts, now=True) or self.work.start(item, counts, now=False)

    def _fits_or_would(self, item: Item, *, could: bool) -> bool:
        fits = self.work.fits(item, item.asks)
        return fits or (could and self.room.would(item, item.asks, item.spreads))

    def _note(self, item: Item, counts: Counts) -> None:
        """Remember why groups of this shape do not start."""
        vector = item.shape.quota(counts)
        key = (item.leaf.index, item.shape.number)
        held = self.reservations.why(item, counts)
        short = self.state.future.shortage(item.leaf, vector)
        if held is not None:
            self.blocked[key] = held
        elif short is None or (
            not self._has_nodes(item) and all(vector[r] <= top for r, top in short[0].limited)
        ):
            self.blocked[key] = of_nodes(self.state, item, counts)
        else:
            told = self.blocked[key] = of_quota(self.state, item, vector, short)
            lacking = self.state.future.lacking(item.leaf, vector)
            if len(lacking) == 1 and isinstance(told, Short):
                wall = Wall(lacking[0], vector[lacking[0]], item.group.priority, told)
                self._walls.setdefault(item.leaf.index, []).append(wall)
