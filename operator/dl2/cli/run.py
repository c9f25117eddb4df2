"""`dl2 run`: the operator process. Wires the rooms together and holds no logic of its own."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import structlog
import typer

from dl2 import compiled
from dl2.cli import logs
from dl2.cli.files import check_folder
from dl2.cli.finetuner import FineTuner
from dl2.cli.logs import LogFormat
from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.leader import Lease, lead
from dl2.cluster.resources import NATIVE_POD_GROUPS, SCALING_POLICIES, WATCHED
from dl2.cluster.resync import Resync
from dl2.cluster.store import Store
from dl2.controller.loop import Controller
from dl2.controller.settings import PodSettings, Settings
from dl2.handlers.watch import BEHIND_SECONDS, Watches
from dl2.web.metrics import Metrics
from dl2.web.server import Probes, WebServer

_LAST_PORT = 65535

log = structlog.get_logger(__name__)
STALLED_SECONDS = 60.0
FAILING_SECONDS = 30.0  # LISTs fail now and then; only for so long it is not ready
SHUTDOWN_SECONDS = 5.0

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def run(
    kubeconfig: Annotated[str | None, typer.Option(envvar="DL2_KUBECONFIG", help="Path of a kubeconfig; default: $KUBECONFIG, ~/.kube/config, else the pod's service account.")] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig; default: its current one.")] = None,
    listen: Annotated[str, typer.Option(envvar="DL2_LISTEN", help="HOST:PORT of /healthz, /readyz and /metrics.")] = "127.0.0.1:8080",
    log_format: Annotated[LogFormat, typer.Option(envvar="DL2_LOG_FORMAT")] = LogFormat.CONSOLE,
    log_level: Annotated[str, typer.Option(envvar="DL2_LOG_LEVEL")] = "INFO",
    leader_elect: Annotated[bool, typer.Option("--leader-elect", envvar="DL2_LEADER_ELECT", help="Decide only while holding a Lease; for several replicas.")] = False,
    lease_namespace: Annotated[str, typer.Option(envvar="DL2_LEASE_NAMESPACE")] = "dl2-system",
    lease_seconds: Annotated[int, typer.Option(envvar="DL2_LEASE_SECONDS", min=4, max=3600, help="How long a silent leader keeps the lease.")] = 15,
    scheduler_name: Annotated[str, typer.Option(envvar="DL2_SCHEDULER_NAME", help="kube-scheduler profile for the pods of DLJobs; default: the cluster's default.")] = "",
    native_gang: Annotated[bool, typer.Option("--native-gang", envvar="DL2_NATIVE_GANG", help="Let kube-scheduler bind a job's pods all or none, too: needs Kubernetes with the feature GenericWorkload and scheduling.k8s.io/v1beta1.")] = False,
    trust_status_url: Annotated[bool, typer.Option("--trust-status-url", envvar="DL2_TRUST_STATUS_URL", help="Ask simulated coordinators at the URL in their annotation dl2.dev/status-url. For test clusters.")] = False,
    resync_seconds: Annotated[float, typer.Option(envvar="DL2_RESYNC_SECONDS", min=1, help="LIST everything again this often.")] = 120,
    progress_seconds: Annotated[float, typer.Option(envvar="DL2_PROGRESS_SECONDS", min=0.2, help="Ask every coordinator this often.")] = 5,
    decision_log: Annotated[Path | None, typer.Option(envvar="DL2_DECISION_LOG", help="File of the decision log that `dl2 explain` reads; default: kept in memory only.")] = None,
    fine_tune: Annotated[Path | None, typer.Option(envvar="DL2_FINE_TUNE", help="Learn from the decision log in a process of the lowest priority, write candidates to this folder and propose them as challengers.")] = None,
    fine_tune_seconds: Annotated[float, typer.Option(envvar="DL2_FINE_TUNE_SECONDS", min=1, help="Between two lessons.")] = 21600,
    concurrency: Annotated[int, typer.Option(envvar="DL2_CONCURRENCY", min=1, max=256, help="Writes in flight.")] = 32,
) -> None:  # fmt: skip
    """Run the operator until SIGTERM or SIGINT."""
    if log_level.upper() not in logging.getLevelNamesMapping():
        raise typer.BadParameter(
            f"{log_level!r} is no level; use DEBUG, INFO, WARNING or ERROR", param_hint="--log-level"
        )
    logs.configure(log_format.value, log_level.upper())
    settings = Settings(
        pods=PodSettings(scheduler_name=scheduler_name, native_gang=native_gang),
        trust_status_url=trust_status_url,
        resync_seconds=resync_seconds,
        progress_seconds=progress_seconds,
        concurrency=concurrency,
    )
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or int(port) > _LAST_PORT:
        raise typer.BadParameter(
            f"{listen!r} is not HOST:PORT, with a port of at most {_LAST_PORT}", param_hint="--listen"
        )
    credentials, tuner = Credentials(kubeconfig, context), None
    if fine_tune is not None:
        if decision_log is None:
            raise typer.BadParameter("needs --decision-log FILE to learn from", param_hint="--fine-tune")
        check_folder(fine_tune, "--fine-tune")
        tuner = FineTuner(decision_log, fine_tune, fine_tune_seconds, credentials, log_format)
    operator = Operator(credentials, settings, host or "127.0.0.1", int(port), decision_log, tuner)
    lease = Lease.lasting(lease_seconds, lease_namespace) if leader_elect else None
    _keep_the_loop_free()
    try:
        asyncio.run(operator.main(lease))
    except (OSError, ApiError, RuntimeError) as exc:
        log.error("the operator cannot run", error=str(exc))
        raise typer.Exit(1) from None


def _keep_the_loop_free() -> None:
    """What would hold up the event loop comes in small parts.

    Garbage collection stops everything, the longer the more young objects it waits for; the old ones are many, live long
    and have no cycles: they are walked through when a quarter has come anew, not sooner. And threads that watch or decide
    make way for the loop after 1 ms, not Python's 5.
    """
    gc.freeze()
    gc.set_threshold(5_000, 3, 5_000)
    sys.setswitchinterval(0.001)


class Operator:
    """One process: web server from the start; watching and deciding once it leads."""

    def __init__(
        self, credentials: Credentials, settings: Settings, host: str, port: int, decision_log: Path | None,
        tuner: FineTuner | None,
    ) -> None:  # fmt: skip
        self._credentials, self._settings = credentials, settings
        self._decision_log, self._tuner = decision_log, tuner
        self._metrics, self._store = Metrics(), Store()
        self._controller: Controller | None = None
        self._resync: Resync | None = None
        self._watches = Watches(self._store, credentials)
        self._standby = False
        self._stop = asyncio.Event()
        self._web = WebServer(self._metrics, Probes(self._health, self._ready, self._collect), host, port)

    async def main(self, lease: Lease | None) -> None:
        """Until SIGTERM or SIGINT. Raises when it cannot go on."""
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, self._stop.set)
        port = await self._web.start()
        log.info("listening", port=port, compiled=compiled.in_use())
        try:
            if lease is None:
                await self._work()
            else:
                self._standby = True
                identity = f"{os.environ.get('POD_NAME') or os.uname().nodename}-{uuid4().hex[:8]}"
                await lead(self._credentials, lease, identity, self._work, self._stop)
        finally:
            await self._web.stop()

    async def _work(self) -> None:
        self._standby = False
        self._metrics.leader.set(1)
        async with KubeClient(self._credentials) as client:
            if self._settings.pods.native_gang:
                await _require_native_gangs(client)
            self._resync = resync = Resync(client, self._store)
            self._controller = controller = Controller(client, self._store, self._settings, self._metrics)
            stopped = asyncio.create_task(self._stop.wait())
            if not await _first(asyncio.create_task(resync.prime()), stopped):
                return
            gc.freeze()  # what was listed stays
            log.info("primed", **{resource.plural: self._store.count(resource) for resource in WATCHED})
            passes = asyncio.create_task(controller.run())
            tasks = [
                passes,
                asyncio.create_task(self._watches.run()),
                asyncio.create_task(controller.collector.run()),
                asyncio.create_task(controller.recorder.run()),
                asyncio.create_task(self._scale(controller)),
                asyncio.create_task(resync.run(self._settings.resync_seconds)),
            ]
            if self._tuner is not None:
                tasks.append(asyncio.create_task(self._tuner.run()))
            try:
                await _first(*tasks, stopped)
            finally:
                log.info("stopping", open_writes=controller.applier.open_writes)
                passes.cancel()
                await controller.applier.drain(SHUTDOWN_SECONDS)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=SHUTDOWN_SECONDS)

    async def _scale(self, controller: Controller) -> None:
        """Policies and what they compute with are loaded where there is a ScalingPolicy, and nowhere else."""
        while not self._store.count(SCALING_POLICIES):  # noqa: ASYNC110 - a second does not matter
            await asyncio.sleep(1.0)
        from dl2.controller.scaler import Scaler, decision_log

        await Scaler(self._store, controller, self._metrics, decision_log(self._decision_log)).run()

    # -- probes -------------------------------------------------------------------------------------------------------
    def _health(self) -> str:
        """The event loop answers, so it lives; but a loop of passes that stands still does not."""
        controller = self._controller
        if controller is None or not controller.last_pass or not self._store.changed.is_set():
            return ""
        stalled = time.monotonic() - controller.last_pass
        return f"no pass for {stalled:.0f} s though there is work" if stalled > STALLED_SECONDS else ""

    def _ready(self) -> str:
        """Ready: it knows the cluster and keeps up with it. A standby is ready to take over."""
        if self._standby:
            return ""
        resync, freshness = self._resync, self._store.freshness
        if resync is None or not resync.primed:
            return (resync.failure if resync else "") or "listing the cluster for the first time"
        if resync.failing() > FAILING_SECONDS:
            return f"for {resync.failing():.0f} s: {resync.failure}"
        if resync.age() > 3 * self._settings.resync_seconds + 30:
            return f"no complete LIST for {resync.age():.0f} s; {resync.failure or 'see the log'}"
        late = [r for r in WATCHED if freshness.behind(r.kind) > BEHIND_SECONDS]
        if late or self._watches.failure:
            ages = ", ".join(f"{r.kind} {freshness.event_age(r.kind):.0f} s" for r in late or WATCHED)
            return f"{self._watches.failure or 'watches are behind'}; age of the last event: {ages}"
        return ""

    def _collect(self) -> None:
        freshness = self._store.freshness
        for resource in WATCHED:
            self._metrics.objects.labels(resource.kind).set(self._store.count(resource))
            self._metrics.event_age.labels(resource.kind).set(freshness.event_age(resource.kind))
            self._metrics.watch_behind.labels(resource.kind).set(freshness.behind(resource.kind))
        self._metrics.watch_restarts.set(self._watches.restarts)
        if self._resync and self._resync.primed:
            self._metrics.list_age.set(self._resync.age())
        if self._controller:
            self._metrics.open_writes.set(self._controller.applier.open_writes)
            self._metrics.events_dropped.set(self._controller.recorder.dropped)


async def _require_native_gangs(client: KubeClient) -> None:
    """Without it no pod that names a gang would ever be bound. Raises RuntimeError."""
    try:
        await client.request("GET", NATIVE_POD_GROUPS.path(), {"limit": "1"})
    except ApiError as exc:
        raise RuntimeError(
            f"--native-gang: {NATIVE_POD_GROUPS.api_version} podgroups cannot be used: {exc}; start the API server and "
            "the scheduler with --feature-gates=GenericWorkload=true, the API server also with "
            f"--runtime-config={NATIVE_POD_GROUPS.api_version}=true, or leave the option out"
        ) from None


async def _first(*tasks: asyncio.Task[object]) -> bool:
    """Wait for the first of `tasks` to end; its error is raised. False when it was the last one, the stop signal."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return tasks[-1] not in done
