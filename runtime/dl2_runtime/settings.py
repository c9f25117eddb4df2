"""What a member of a job knows from its environment, in one place."""

from __future__ import annotations

import logging
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping

from dl2_runtime.progress import PORT

SERVER_PORT = 8471
COORDINATOR, SERVER, WORKER = "coordinator", "server", "worker"

log = logging.getLogger("dl2_runtime")


@dataclass(frozen=True)
class Settings:
    """Times are seconds. `founders` are the members that the first view waits for; others join hot."""

    role: str = WORKER
    job: str = "job"
    index: int = 0
    coordinator: str = f"127.0.0.1:{PORT}"
    token: bytes = b""
    port: int = SERVER_PORT
    host: str | None = (
        None  # the address a server tells others; None: the one it reaches the coordinator from
    )
    founding_workers: int = 1
    founding_servers: int = 1
    heartbeat: float = 1.0
    dead_after: float = 10.0  # without a heartbeat
    return_within: float = 2.0  # for a member whose connection broke
    limit: float = 300.0  # the longest any wait may last
    grace: float = 20.0  # between SIGTERM and the end of the process, whatever it waits for
    ready_file: Path | None = None  # exists while this member is in the committed view
    scale_within: float = 120.0  # for the newcomers that a scaling request asks for
    checkpoint_dir: Path | None = None
    checkpoint_seconds: float = 60.0
    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def id(self) -> str:
        """Unique to this process: a pod that starts again is another member."""
        return f"{self.role}-{self.index}-{self.incarnation}"

    @property
    def bind(self) -> str:
        """Without a token nothing but this machine may talk to us."""
        return "" if self.token else "127.0.0.1"

    def identity(self) -> dict[str, object]:
        return {"job": self.job, "role": self.role, "id": self.id, "index": self.index}

    def mark_ready(self, ready: bool) -> None:
        """Create or remove the file that a readiness probe looks for. Does not raise: training goes on without it."""
        if self.ready_file is None:
            return
        try:
            if ready:
                self.ready_file.touch()
            else:
                self.ready_file.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("DL2_READY_FILE: %s", error)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read DL2_*; see the README's table. Raises ValueError that names the variable, OSError for the token file."""

        def number(name: str, default: float) -> float:
            text = environ.get(name) or str(default)
            try:
                value = float(text)
            except ValueError:
                value = -1.0
            if not 0 <= value < 1e9:
                raise ValueError(f"{name} must be a number from 0 to 1e9, not {text!r:.40}")
            return value

        file, folder = environ.get("DL2_TOKEN_FILE"), environ.get("DL2_CHECKPOINT_DIR")
        ready, role = environ.get("DL2_READY_FILE"), environ.get("DL2_ROLE") or WORKER
        if role not in (COORDINATOR, SERVER, WORKER):
            raise ValueError(f"DL2_ROLE must be coordinator, server or worker, not {role!r:.40}")
        return cls(
            role=role,
            job=environ.get("DL2_JOB") or "job",
            index=int(number("DL2_INDEX", 0)),
            coordinator=environ.get("DL2_COORDINATOR") or cls.coordinator,
            token=Path(file).read_bytes().strip() if file else b"",
            port=int(number("DL2_PORT", SERVER_PORT)),
            host=environ.get("DL2_HOST") or None,
            founding_workers=int(number("DL2_WORKERS", 1)),
            founding_servers=int(number("DL2_SERVERS", 1)),
            heartbeat=number("DL2_HEARTBEAT_SECONDS", cls.heartbeat),
            dead_after=number("DL2_DEAD_AFTER_SECONDS", cls.dead_after),
            return_within=number("DL2_RETURN_SECONDS", cls.return_within),
            limit=number("DL2_LIMIT_SECONDS", cls.limit),
            grace=number("DL2_GRACE_SECONDS", cls.grace),
            ready_file=Path(ready) if ready else None,
            scale_within=number("DL2_SCALE_SECONDS", cls.scale_within),
            checkpoint_dir=Path(folder) if folder else None,
            checkpoint_seconds=number("DL2_CHECKPOINT_SECONDS", cls.checkpoint_seconds),
        )
