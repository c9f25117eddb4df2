"""The decision log: what every scaling round saw, was told and did, and what came of it.

One SQLite file in WAL mode: a crash at any moment loses at most the transaction under way, and readers (`dl2 explain`,
`dl2 log export`) never stop the operator. Beyond `max_bytes` the oldest rounds go.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from dl2.controller.rollout import Arm, Times

MAX_BYTES = 256 * 1024 * 1024
SCHEMA_VERSION = 1
_PART = 0.1  # of the rounds go at once, when it has become too large
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rounds (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, scaling_policy TEXT NOT NULL, stage TEXT NOT NULL,
    agreement REAL, predicted_gain REAL, observation BLOB NOT NULL, answers BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS verdicts (
    round INTEGER NOT NULL REFERENCES rounds(id) ON DELETE CASCADE, job TEXT NOT NULL, uid TEXT NOT NULL,
    arm TEXT NOT NULL, current TEXT NOT NULL, champion TEXT, challenger TEXT, asked TEXT NOT NULL, given TEXT NOT NULL,
    ruling TEXT NOT NULL, message TEXT NOT NULL, speed_before REAL, speed_after REAL);
CREATE TABLE IF NOT EXISTS outcomes (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, round INTEGER, job TEXT NOT NULL, uid TEXT NOT NULL, arm TEXT NOT NULL,
    policy TEXT NOT NULL, kind TEXT NOT NULL, seconds REAL, slowdown REAL, message TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS verdicts_by_job ON verdicts (job, round);
CREATE INDEX IF NOT EXISTS verdicts_by_round ON verdicts (round);
CREATE INDEX IF NOT EXISTS outcomes_by_job ON outcomes (job, at);
CREATE INDEX IF NOT EXISTS outcomes_by_kind ON outcomes (kind, at);
"""


class LogError(Exception):
    """The log cannot be opened or read; the message says which file and why."""


class VerdictRow(NamedTuple):
    """Shapes as "WxS": workers x servers. Speeds in epochs a second."""

    job: str
    uid: str
    arm: str
    current: str
    champion: str | None
    challenger: str | None
    asked: str
    given: str
    ruling: str
    message: str
    speed_before: float | None
    speed_after: float | None


class OutcomeRow(NamedTuple):
    """`kind`: Resized, ResizeFailed, NoRoom, Finished or RolledBack. `seconds`: the pause, or the completion time."""

    at: float
    round: int | None
    job: str
    uid: str
    arm: str
    policy: str
    kind: str
    seconds: float | None
    slowdown: float | None
    message: str


class DecisionLog:
    """Opened for writing by the one operator that decides; safe to use from several threads, one at a time."""

    def __init__(self, path: Path | None, max_bytes: int = MAX_BYTES) -> None:
        """None: in memory only. Raises LogError."""
        self._lock, self._max_bytes = threading.Lock(), max_bytes
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _connect(str(path) if path else ":memory:")
            with self._db:
                self._db.executescript(_SCHEMA)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (OSError, sqlite3.Error) as exc:
            raise LogError(f"the decision log {path} cannot be opened: {exc}") from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # -- writing --------------------------------------------------------------------------------------------------
    def add_round(
        self,
        at: float,
        scaling_policy: str,
        stage: str,
        figures: tuple[float | None, float | None],
        observation: object,
        answers: object,
        verdicts: Iterable[VerdictRow],
    ) -> int:
        """One round and its verdicts, all or nothing. `figures`: agreement and predicted gain. Returns its number."""
        row = (at, scaling_policy, stage, *figures, packed(observation), packed(answers))
        with self._writing() as db:
            number = db.execute(
                "INSERT INTO rounds (at, scaling_policy, stage, agreement, predicted_gain, observation, answers) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            assert number is not None
            marks = ", ".join("?" * (1 + len(VerdictRow._fields)))
            db.executemany(f"INSERT INTO verdicts VALUES ({marks})", [(number, *v) for v in verdicts])
            self._bound(db)
        return number

    def add_outcome(self, outcome: OutcomeRow) -> None:
        columns, marks = ", ".join(OutcomeRow._fields), ", ".join("?" * len(OutcomeRow._fields))
        with self._writing() as db:
            db.execute(f"INSERT INTO outcomes ({columns}) VALUES ({marks})", tuple(outcome))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db:
            yield self._db

    def _bound(self, db: sqlite3.Connection) -> None:
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size <= self._max_bytes:
            return
        (first, last) = db.execute("SELECT min(id), max(id) FROM rounds").fetchone()
        until = first + max(1, int((last - first) * _PART))
        (since,) = db.execute("SELECT at FROM rounds WHERE id >= ? ORDER BY id LIMIT 1", (until,)).fetchone()
        db.execute("DELETE FROM rounds WHERE id < ?", (until,))  # their verdicts go with them
        db.execute("DELETE FROM outcomes WHERE at < ?", (since,))

    # -- figures ----------------------------------------------------------------------------------------------------
    def count_rounds(self, scaling_policy: str, since: float = 0.0) -> int:
        query = "SELECT count(*) FROM rounds WHERE scaling_policy = ? AND at >= ?"
        return int(self._one(query, scaling_policy, since)[0])

    def compared(self, scaling_policy: str, since: float) -> tuple[float | None, float | None, int]:
        """Mean agreement and predicted gain of the rounds since then, and how many of them told a gain."""
        row = self._one(
            "SELECT avg(agreement), avg(predicted_gain), count(predicted_gain) FROM rounds "
            "WHERE scaling_policy = ? AND at >= ?",
            scaling_policy,
            since,
        )
        return row[0], row[1], int(row[2])

    def failures(self, arm: Arm, policy: str, since: float) -> int:
        """Resizes that one policy asked for and that failed since then."""
        row = self._one(
            "SELECT count(*) FROM outcomes WHERE kind = 'ResizeFailed' AND arm = ? AND policy = ? AND at >= ?",
            arm.value,
            policy,
            since,
        )
        return int(row[0])

    def times(self, policy: str, since: float, most: int = 1000) -> Times:
        """Of the jobs that finished under one policy since then, the latest `most`."""
        with self._lock:
            rows = self._db.execute(
                "SELECT seconds, slowdown FROM outcomes WHERE kind = 'Finished' AND policy = ? AND at >= ? "
                "ORDER BY at DESC LIMIT ?",
                (policy, since, most),
            ).fetchall()
        return Times([row[0] for row in rows], [row[1] for row in rows if row[1] is not None])

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        with self._lock:
            row: tuple[Any, ...] = self._db.execute(query, values).fetchone()
        return row


# -- reading: from another process, while the operator writes -------------------------------------------------------
@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The log, read only. Raises LogError."""
    if not path.exists():
        raise LogError(
            f"there is no decision log at {path}; name it with --log, as `dl2 run --decision-log` was told"
        )
    try:
        db = _connect_to_read(path)
        try:
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found != SCHEMA_VERSION:
                raise LogError(f"{path} is a log of version {found}, this dl2 reads version {SCHEMA_VERSION}")
            yield db
        finally:
            db.close()
    except sqlite3.Error as exc:
        raise LogError(f"{path}: {exc}") from None


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Reading a log in WAL mode makes files beside it. Where that cannot be, it is a copy that nobody writes to."""
    try:
        return _opened(path, "mode=ro")
    except sqlite3.OperationalError:
        if os.access(path.parent, os.W_OK):
            raise
        return _opened(path, "immutable=1")


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=10)
    db.row_factory = sqlite3.Row
    try:
        db.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error:
        db.close()
        raise
    return db


def history(db: sqlite3.Connection, job: str, rounds: int) -> tuple[list[sqlite3.Row], list[sqlite3.Row]]:
    """The last `rounds` verdicts about a job, oldest first, and all outcomes since the first of them."""
    verdicts = db.execute(
        "SELECT * FROM (SELECT r.at, r.stage, r.scaling_policy, r.answers, v.* FROM verdicts v JOIN rounds r "
        "ON r.id = v.round WHERE v.job = ? ORDER BY v.round DESC LIMIT ?) ORDER BY round",
        (job, rounds),
    ).fetchall()
    since = verdicts[0]["at"] if verdicts else 0.0
    outcomes = db.execute(
        "SELECT * FROM outcomes WHERE job = ? AND at >= ? ORDER BY at, id", (job, since)
    ).fetchall()
    return verdicts, outcomes


def jobs_in(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT DISTINCT job FROM verdicts ORDER BY job")]


def exported(db: sqlite3.Connection) -> Iterator[Mapping[str, Any]]:
    """Everything, oldest first: a `round` record with its verdicts, then every `outcome`."""
    for row in db.execute("SELECT * FROM rounds ORDER BY id"):
        record = dict(row) | {
            "observation": unpacked(row["observation"]),
            "answers": unpacked(row["answers"]),
        }
        found = db.execute("SELECT * FROM verdicts WHERE round = ? ORDER BY job", (row["id"],))
        verdicts = [{k: v for k, v in dict(each).items() if k != "round"} for each in found]
        yield {"record": "round", **record, "verdicts": verdicts}
    for row in db.execute("SELECT * FROM outcomes ORDER BY id"):
        yield {"record": "outcome", **dict(row)}


def observations(db: sqlite3.Connection, most: int) -> Iterator[Any]:
    """What the last `most` rounds saw, the oldest first; in short reads, for a long one would keep the log growing."""
    query = "SELECT id, observation FROM rounds WHERE id > ? ORDER BY id LIMIT 20"
    last = (db.execute("SELECT max(id) FROM rounds").fetchone()[0] or 0) - most
    while rows := db.execute(query, (last,)).fetchall():
        for row in rows:
            yield unpacked(row["observation"])
        last = rows[-1]["id"]


def pauses(db: sqlite3.Connection) -> list[float]:
    """Seconds that training stood still for each resize of which that is known."""
    rows = db.execute("SELECT seconds FROM outcomes WHERE kind = 'Resized' AND seconds IS NOT NULL")
    return [row["seconds"] for row in rows]


def finished(db: sqlite3.Connection) -> int:
    """How many jobs have come to their end."""
    return int(db.execute("SELECT count(*) FROM outcomes WHERE kind = 'Finished'").fetchone()[0])


def packed(value: object) -> bytes:
    return zlib.compress(orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS), 3)


def unpacked(data: bytes) -> Any:
    return orjson.loads(zlib.decompress(data))


def _plain(value: object) -> object:
    """Named tuples, read-only mappings and numbers of numpy, as JSON has them."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    item = getattr(value, "item", None)
    return item() if callable(item) else repr(value)


def _connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    return db
