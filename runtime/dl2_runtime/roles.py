"""Run the role that the environment names: `python -m dl2_runtime`, or a training script that starts with `enter()`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Mapping

from dl2_runtime.coordinator import Coordinator
from dl2_runtime.progress import PORT
from dl2_runtime.server import Server
from dl2_runtime.settings import COORDINATOR, SERVER, Settings
from dl2_runtime.signals import TERMINATED, on_sigterm
from dl2_runtime.web import Web

log = logging.getLogger("dl2_runtime")


def run_coordinator(settings: Settings) -> bool:
    port = settings.coordinator.rpartition(":")[2]
    coordinator = Coordinator(settings)
    on_sigterm(lambda: coordinator.reactor.call(coordinator.stop), settings)
    with Web(settings, int(port) if port.isdigit() else PORT, coordinator) as web:
        print(f"coordinator of {settings.job} on port {web.port}", flush=True)
        coordinator.run()
    return coordinator.state == "finished"


def run_server(settings: Settings) -> bool:
    server = Server(settings)
    on_sigterm(server.leave, settings)
    print(f"server {settings.index} of {settings.job} on port {server.port}", flush=True)
    server.run()
    return server.finished


def run(settings: Settings) -> bool:
    """Serve as a coordinator or a server until the job lets us go. Raises RuntimeError if it failed.

    Returns whether the training is finished; else the job was stopped, or goes on without us.
    """
    if settings.role == COORDINATOR:
        return run_coordinator(settings)
    if settings.role == SERVER:
        return run_server(settings)
    raise ValueError("DL2_ROLE is worker: a worker runs the training script")


def enter(environ: Mapping[str, str] = os.environ) -> None:
    """First thing in a script that all roles run: coordinators and servers serve in here, and the process ends.

    In a worker, and in a script run outside DL2, it returns at once.
    """
    if environ.get("DL2_ROLE") not in (COORDINATOR, SERVER):
        return
    sys.exit(main(environ))


def main(environ: Mapping[str, str] = os.environ) -> int:
    logging.basicConfig(
        level=environ.get("DL2_LOG_LEVEL", "INFO"), format="%(asctime)s %(name)s: %(message)s"
    )
    try:
        settings = Settings.from_environ(environ)
        if not settings.token:
            log.warning("no DL2_TOKEN_FILE: only this machine may connect")
        return 0 if run(settings) else TERMINATED
    except (ValueError, OSError, RuntimeError) as error:
        log.error("%s", error)
        return 1
