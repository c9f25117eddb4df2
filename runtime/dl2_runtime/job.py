"""What the coordinator knows about its job: who is there, the view they share, the parameters they declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Mapping

from dl2_runtime import wire
from dl2_runtime.settings import SERVER, WORKER, Settings
from dl2_runtime.view import Key, Table, View, assign

Send = Callable[[str, wire.Message], None]


@dataclass
class Member:
    """`state`: "new" until a view has it, then "active", in the end "gone"."""

    id: str
    role: str
    index: int
    address: str = ""
    state: str = "new"
    ready: bool = False  # a worker that declared its parameters; a server always
    leaving: bool = False
    done: bool = False  # a worker that finished its training
    connected: bool = True
    heard: float = 0.0
    step: int = 0
    declared: list[list[Any]] = field(default_factory=list)  # parameters it waits to hear about

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "role": self.role,
            "index": self.index,
            "state": "leaving" if self.leaving and self.state == "active" else self.state,
            "step": self.step,
            "address": self.address,
        }


class Job:
    """The state, and questions about it; what to do about it is decided in scaling.py and coordinator.py."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self.settings = settings
        self.send = send
        self.members: dict[str, Member] = {}
        self.view: View | None = None
        self.version = 0  # the highest that any view, tried or committed, has had
        self.table = Table()
        self.sums = False  # servers only add up gradients: they hold nothing worth a checkpoint
        self.seeders: dict[str, str | None] = {}  # parameter -> who brings its first value; None: it is there

    def live(self, role: str, state: str = "active") -> list[Member]:
        found = [m for m in self.members.values() if m.role == role and m.state == state]
        return sorted(found, key=lambda member: (member.index, member.id))

    @property
    def workers(self) -> list[Member]:
        return self.live(WORKER)

    @property
    def servers(self) -> list[Member]:
        return self.live(SERVER)

    def newcomers(self, role: str) -> list[Member]:
        return [m for m in self.live(role, "new") if m.ready]

    def alive(self, member: str) -> bool:
        return member in self.members and self.members[member].state != "gone"

    def lost_servers(self) -> list[str]:
        return [s for s in self.view.servers if not self.alive(s)] if self.view else []

    def broadcast(self, members: list[Member], message: wire.Message) -> None:
        for member in members:
            self.send(member.id, message)

    def sizes(self) -> list[int]:
        return [chunk.nbytes for chunk in self.table.chunks]

    def next_view(self, workers: list[Member], servers: list[Member], keep: bool = False) -> View:
        """The view after the present one. With `keep` only homeless chunks move. The clock is set later."""
        self.version += 1
        names = [m.id for m in servers]
        owners: tuple[str | None, ...] = self.view.owners if self.view else ()
        placed = assign(self.sizes(), owners, names, balance=not keep) if self.table.chunks else ()
        return View(
            self.version,
            self.view.step if self.view else 0,
            tuple(m.id for m in workers),
            {m.id: m.address for m in servers},
            placed,
        )


class Declarations:
    """Workers say which parameters they have; each new one gets a home and one worker that brings its first value."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def answer_all(self) -> None:
        """Answer every worker whose parameters all have a value, or are its own to bring. Not during a transition."""
        for member in self._job.workers:
            if member.declared:
                self._answer(member)

    def _answer(self, member: Member) -> None:
        job = self._job
        try:
            keys = [Key.from_json(body) for body in member.declared]
            new = [key for key in keys if key.name not in job.table.keys]
            first = not job.workers or job.workers[0] is member
            if new and not first:
                Table([*job.table.keys.values(), *new])  # raises what is wrong with them
                return  # the worker of rank 0 brings the first values
            self._place(new)
            job.table.add(keys)
        except (ValueError, TypeError) as error:
            member.declared = []
            job.send(member.id, {"type": "declared", "error": str(error)})
            return
        seeds = [key.name for key in keys if self._may_seed(key.name, member.id)]
        if any(job.seeders[key.name] not in (None, member.id) for key in keys):
            return
        member.declared = []
        assert job.view is not None
        job.send(
            member.id,
            {
                "type": "declared",
                "keys": job.table.to_json(),
                "view": job.view.to_json(),
                "seed": seeds,
                "names": [key.name for key in keys],
            },
        )

    def _place(self, new: list[Key]) -> None:
        job = self._job
        if not new or job.view is None:
            return
        job.table.add(new)
        for key in new:
            job.seeders[key.name] = ""
        owners = assign(job.sizes(), job.view.owners, list(job.view.servers), balance=False)
        job.view = View(job.view.version, job.view.step, job.view.workers, job.view.servers, owners)

    def _may_seed(self, name: str, member: str) -> bool:
        seeder = self._job.seeders.get(name)
        if seeder is not None and not self._job.alive(seeder):
            self._job.seeders[name] = seeder = member
        return seeder == member

    def seeded(self, member: str, names: list[str]) -> None:
        for name in names:
            if self._job.seeders.get(name) == member:
                self._job.seeders[name] = None


def counts(view: View | None) -> Mapping[str, int]:
    return {"workers": len(view.workers) if view else 0, "servers": len(view.servers) if view else 0}
