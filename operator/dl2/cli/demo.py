"""`dl2 demo`: cluster up, operator on, jobs in, live table, summary, everything down again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.live import Live

from dl2.cli.cluster import Shown
from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.resources import DL_JOBS, TENANT_QUEUES, Resource
from dl2.demo import board, workload
from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.errors import ClusterError
from dl2.embedded.processes import ProcessSpec

LONGEST = 600.0  # seconds until the demonstration gives up on jobs that do not end
PLAIN_WIDTH = 140  # characters, there
PLAIN_EVERY = 10.0  # seconds between two tables where there is no terminal

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster and the operator running.")] = False,
    name: Annotated[str, typer.Option(help="Name of the embedded cluster.")] = "demo",
    kwok_nodes: Annotated[int, typer.Option(min=1, help="Simulated nodes, 8 GPUs each.")] = 50,
) -> None:
    """Real MXNet jobs and simulated ones on an embedded cluster, under the operator."""
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
                "--progress-seconds", "2")  # fmt: skip
    simulator = (python, "-m", "dl2.embedded.trainer_simulator", "--kubeconfig", config,
                 "--port", str(cluster.port("trainer-simulator")))  # fmt: skip
    cluster.processes.ensure(ProcessSpec(name="operator", argv=operator))
    cluster.processes.ensure(ProcessSpec(name="trainer-simulator", argv=simulator))
    console.print(f"Operator running; its log: dl2 cluster logs operator --name {cluster.name}")


async def _tell(console: Console, cluster: EmbeddedCluster) -> bool:
    """Apply the waves and watch until every job has ended. False when one has failed or does not end."""
    await asyncio.to_thread(_apply, cluster, workload.setup())
    history, waves = board.History(), list(workload.waves(str(cluster.directory / "checkpoints")))
    started = time.monotonic()
    queues: list[Any] = []
    jobs: list[Any] = []
    async with KubeClient(Credentials(str(cluster.kubeconfig))) as client:
        with _screen(console) as show:
            while True:
                elapsed = time.monotonic() - started
                while waves and waves[0].at <= elapsed:
                    await asyncio.to_thread(_apply, cluster, list(waves.pop(0).jobs))
                queues, jobs = (
                    await _listed(client, TENANT_QUEUES, queues),
                    await _listed(client, DL_JOBS, jobs),
                )
                history.note(jobs)
                show(
                    board.live(queues, jobs, elapsed, time.time(), max(8, console.height - len(queues) - 10))
                )
                if (not waves and not board.unfinished(jobs)) or elapsed > LONGEST:
                    break
                await asyncio.sleep(1)
    console.print(board.summary(jobs, history))
    late = board.unfinished(jobs)
    failed = [job["metadata"]["name"] for job in jobs if board.state(job) == "Failed"]
    if late or failed:
        console.print(
            f"[red]Not ended: {', '.join(late) or 'none'}; failed: {', '.join(failed) or 'none'}[/red]"
        )
    return not late and not failed


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
