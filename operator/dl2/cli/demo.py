"""`dl2 demo`: cluster up, operator on, jobs in, live table, summary, everything down again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.live import Live

from dl2.cli.cluster import Shown
from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.resources import DL_JOBS, SCALING_POLICIES, TENANT_QUEUES, Resource
from dl2.demo import board, rollout, workload
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.errors import ClusterError
from dl2.embedded.processes import ProcessSpec

LONGEST = 600.0  # seconds until the demonstration gives up on jobs that do not end
ROLLED_BACK_WITHIN = 60.0  # seconds
PICTURE = Path("out/demo.png")
PLAIN_WIDTH = 140  # characters, there
PLAIN_EVERY = 10.0  # seconds between two tables where there is no terminal

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster and the operator running.")] = False,
    name: Annotated[str, typer.Option(help="Name of the embedded cluster.")] = "demo",
    kwok_nodes: Annotated[int, typer.Option(min=1, help="Simulated nodes, 8 GPUs each.")] = 50,
) -> None:
    """Real MXNet jobs and simulated ones on an embedded cluster, under the operator; then a learned policy takes over."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    try:
        with _cluster(console, name, kwok_nodes, keep) as cluster:
            ok = asyncio.run(_tell(console, cluster))
            if keep:
                _invite(console, name)
    except ClusterError as exc:
        console.print(f"[red]{exc.what}[/red]" + (f"\n{exc.mend}" if exc.mend else ""))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Interrupted; the cluster is down.")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if ok else 1)


@contextmanager
def _cluster(console: Console, name: str, kwok_nodes: int, keep: bool) -> Iterator[EmbeddedCluster]:
    with Shown() as progress:
        cluster = EmbeddedCluster(
            name, kwok_nodes=kwok_nodes, real_nodes=1, owned=not keep, progress=progress
        )
        cluster.up()
    done = False
    try:
        _start(console, cluster)
        yield cluster
        done = True
    finally:
        if not (keep and done):
            with Shown() as progress:
                cluster.progress = progress
                cluster.down()


def _start(console: Console, cluster: EmbeddedCluster) -> None:
    """The operator and the trainer simulator, as supervised processes of the cluster."""
    python, config = sys.executable, str(cluster.kubeconfig)
    port = cluster.port("operator")
    operator = (python, "-m", "dl2", "run", "--kubeconfig", config, "--listen", f"127.0.0.1:{port}",
                "--log-format", "json", "--trust-status-url", "--scheduler-name", "dl2-bin-packing",
                "--progress-seconds", "2", "--decision-log",
                str(cluster.directory / "decisions.db"))  # fmt: skip
    simulator = (python, "-m", "dl2.embedded.trainer_simulator", "--kubeconfig", config,
                 "--port", str(cluster.port("trainer-simulator")))  # fmt: skip
    cluster.processes.ensure(ProcessSpec(name="operator", argv=operator))
    cluster.processes.ensure(ProcessSpec(name="trainer-simulator", argv=simulator))
    console.print(f"Operator running; its log: dl2 cluster logs operator --name {cluster.name}")


async def _tell(console: Console, cluster: EmbeddedCluster) -> bool:
    """Play all acts until every job has ended. False when one has failed or does not end, or a part does not work."""
    await asyncio.to_thread(_apply, cluster, workload.setup())
    history = board.History()
    acts = [rollout.Act("champion", rollout.CHAMPION), rollout.Act("dl2", rollout.CHALLENGER)]
    async with KubeClient(Credentials(str(cluster.kubeconfig))) as client:
        stage = _Stage(console, cluster, client)
        console.rule("Queues, real MXNet training and simulated jobs")
        jobs = await stage.play(
            workload.waves(str(cluster.directory / "checkpoints")), lambda _, jobs: history.note(jobs)
        )
        console.print(board.summary(jobs, history))
        for act, promoted in zip(acts, ("Shadow", "Active"), strict=True):
            console.rule(f"Stage {promoted}: {act.policy} decides about the shapes of jobs")
            await asyncio.to_thread(_apply, cluster, [rollout.policy(promoted)])
            jobs = await stage.play(rollout.waves(act.name), act.note)
        console.rule("A challenger that cannot decide")
        rollback = await _break(cluster, client)
    console.print(rollout.summary(acts, rollback))
    _draw(console, acts)
    late = board.unfinished(jobs)
    failed = [job["metadata"]["name"] for job in jobs if board.state(job) == "Failed"]
    if late or failed:
        console.print(
            f"[red]Not ended: {', '.join(late) or 'none'}; failed: {', '.join(failed) or 'none'}[/red]"
        )
    return not late and not failed and bool(rollback)


class _Stage:
    """Where the acts are played: one cluster, one screen."""

    def __init__(self, console: Console, cluster: EmbeddedCluster, client: KubeClient) -> None:
        self._console, self._cluster, self._client = console, cluster, client

    async def play(
        self, waves: Sequence[workload.Wave], note: Callable[[float, list[Any]], None]
    ) -> list[Any]:
        """Apply the waves, each in its time, and watch until all jobs have ended. Returns all jobs there are."""
        left, started = list(waves), time.monotonic()
        queues: list[Any] = []
        jobs: list[Any] = []
        with _screen(self._console) as show:
            while True:
                elapsed = time.monotonic() - started
                while left and left[0].at <= elapsed:
                    await asyncio.to_thread(_apply, self._cluster, list(left.pop(0).jobs))
                queues = await _listed(self._client, TENANT_QUEUES, queues)
                jobs = await _listed(self._client, DL_JOBS, jobs)
                note(elapsed, jobs)
                rows = max(8, self._console.height - len(queues) - 10)
                show(board.live(queues, jobs, elapsed, time.time(), rows))
                if (not left and not board.unfinished(jobs)) or elapsed > LONGEST:
                    return jobs
                await asyncio.sleep(1)


async def _break(cluster: EmbeddedCluster, client: KubeClient) -> str:
    """Name a damaged checkpoint as challenger; why it was rolled back, or nothing if it was not."""
    damaged = cluster.directory / "damaged.safetensors"
    damaged.write_bytes(b"no checkpoint")
    await asyncio.to_thread(_apply, cluster, [rollout.policy("Active", str(damaged))])
    deadline = time.monotonic() + ROLLED_BACK_WITHIN
    while time.monotonic() < deadline:
        found = await _listed(client, SCALING_POLICIES, [])
        status = (found[0].get("status") or {}) if found else {}
        if status.get("lastRollback"):
            return f"stage {status['stage']} again. {status['lastRollback']['reason']}"
        await asyncio.sleep(1)
    return ""


def _draw(console: Console, acts: list[rollout.Act]) -> None:
    """A picture of who had how many workers, where matplotlib is installed (`pip install 'dl2[learning]'`)."""
    try:
        from dl2.learning.plots import workers_over_time
    except ImportError:
        return
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    workers_over_time([act.panel() for act in acts], rollout.ASKS, PICTURE)
    console.print(f"The shapes of the jobs over time: {PICTURE}")


async def _listed(client: KubeClient, resource: Resource, before: list[Any]) -> list[Any]:
    try:
        return [item async for items, _ in client.list(resource) for item in items]
    except ApiError:  # a hiccup: the last picture stays
        return before


def _apply(cluster: EmbeddedCluster, manifests: list[workload.Manifest]) -> None:
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(manifests))


@contextmanager
def _screen(console: Console) -> Iterator[Any]:
    """A table that redraws itself on a terminal; elsewhere one every PLAIN_EVERY seconds."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as screen:
            yield lambda content: screen.update(content, refresh=True)
        return
    last = 0.0

    def show(content: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_EVERY:
            last = time.monotonic()
            console.print(content)

    yield show


def _invite(console: Console, name: str) -> None:
    console.print(
        f"""The cluster goes on. Try:
  eval "$(dl2 cluster env --name {name})"
  kubectl get queues
  kubectl get dljobs -A
  kubectl describe dljob -n {workload.NAMESPACE} {workload.TOO_BIG}
  kubectl logs -n {workload.NAMESPACE} {workload.REAL[0]}-worker-0
  dl2 cluster logs operator --name {name}
and in the end: dl2 cluster down --name {name}""",
        highlight=False,
        markup=False,
    )
