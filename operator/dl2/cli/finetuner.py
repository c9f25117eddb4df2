"""The operator's side of fine-tuning: it starts `dl2 train online` beside itself, and starts it again when it has ended.

Nothing else connects the two. The process ends with the operator, however that ends, because its standard input does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from dl2.cluster.client import Credentials

log = structlog.get_logger(__name__)
SHORTEST_DELAY, LONGEST_DELAY = 5.0, 3600.0  # seconds until it is started again
STEADY_SECONDS = 600.0  # a process that ran for so long earns a quick start again


class FineTuner:
    """`run` ends only by cancellation, and then ends the process."""

    def __init__(
        self, decision_log: Path, folder: Path, every: float, credentials: Credentials, log_format: str
    ) -> None:
        self._command = [
            "train", "online", "--leash", "--propose", f"--log={decision_log}", f"--to={folder}", f"--every={every}",
            f"--log-format={log_format}", *_told(credentials),
        ]  # fmt: skip

    async def run(self) -> None:
        delay = SHORTEST_DELAY
        while True:
            started = time.monotonic()
            code = await self._once()
            if time.monotonic() - started > STEADY_SECONDS:
                delay = SHORTEST_DELAY
            log.warning("the fine-tuning process has ended", exit_code=code, retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _once(self) -> int | str:
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "dl2", *self._command,
                stdin=asyncio.subprocess.PIPE, env=os.environ | alone,
            )  # fmt: skip
        except OSError as exc:
            return str(exc)
        log.info("fine-tuning", pid=process.pid)
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


def _told(credentials: Credentials) -> Iterator[str]:
    for option in ("kubeconfig", "context"):
        value = getattr(credentials, option)
        if value:
            yield f"--{option}={value}"
