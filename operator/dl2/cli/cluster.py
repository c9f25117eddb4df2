"""`dl2 cluster`: a Kubernetes on this machine, for demos and tests."""

import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperCommand

from dl2.embedded.cluster import EmbeddedCluster
from dl2.embedded.errors import ClusterError
from dl2.embedded.processes import tail
from dl2.embedded.state import ClusterOptions, cluster_directory, cluster_names, read
from dl2.scheduling.quantities import QuantityError, parse_quantity

app = typer.Typer(
    no_args_is_help=True, help="A real Kubernetes on this machine, with simulated and real nodes."
)
out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)

NOT_WHOLE = 3  # exit code of `status` for a cluster of which something is down

Name = Annotated[str, typer.Option("--name", "-n", help="Which cluster; several run side by side.")]


class OptionalCount(TyperCommand):
    """Lets `--real-node` stand alone, for one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        followers = [*args, ""][1:]
        alone = [
            argument == "--real-node" and not follower.isdigit()
            for argument, follower in zip(args, followers, strict=True)
        ]
        counted = ["--real-node=1" if bare else argument for argument, bare in zip(args, alone, strict=True)]
        return super().parse_args(ctx, counted)


def _quantity(text: str | None) -> str | None:
    """Memory as Kubernetes writes it; raises BadParameter."""
    try:
        if text is not None:
            parse_quantity(text, "memory")
    except QuantityError as exc:
        raise typer.BadParameter(str(exc)) from None
    return text


@app.command(cls=OptionalCount)
def up(
    name: Name = "dl2",
    kwok_nodes: Annotated[
        int | None, typer.Option(min=0, help="Simulated nodes, in racks of 8.", show_default="0")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs of each simulated node.", show_default="8")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of each simulated node.", show_default="64")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of each.", show_default="512Gi", callback=_quantity)
    ] = None,
    real_node: Annotated[
        int | None,
        typer.Option(
            "--real-node",
            min=0,
            metavar="[N]",
            show_default="0",
            help="Real nodes, which run containers (root and containerd needed); alone it means 1.",
        ),
    ] = None,
    feature_gates: Annotated[
        str, typer.Option(help="Of every Kubernetes component: GenericWorkload=true,...")
    ] = "",
    runtime_config: Annotated[
        str, typer.Option(help="APIs to serve or not: scheduling.k8s.io/v1beta1=true,...")
    ] = "",
) -> None:
    """Bring a cluster up, add nodes to one that is up, or mend one of which something is down.

    Ctrl-C leaves nothing behind. Your own kubeconfig is not touched: see `dl2 cluster env`.
    """
    asked = {
        "kwok_nodes": kwok_nodes,
        "gpus": gpus,
        "cpus": cpus,
        "memory": memory,
        "real_nodes": real_node,
        "feature_gates": _switches(feature_gates) or None,
        "runtime_config": _switches(runtime_config) or None,
    }
    with _honest(), Shown() as progress:
        earlier = read(cluster_directory(name) / "cluster.json", ClusterOptions)
        kept = {field: getattr(earlier, field) for field in asked} if earlier else {}
        given = {field: value for field, value in asked.items() if value is not None}
        cluster = EmbeddedCluster(name, progress=progress, **(kept | given))
        cluster.up()
    options = cluster.options
    out.print(f"Cluster {name} is up: {options.kwok_nodes} simulated nodes, {options.real_nodes} real. Try:")
    out.print(f'  eval "$(dl2 cluster env{_name_flag(name)})"\n  kubectl get nodes', style="bold")


@app.command()
def build(
    real_node: Annotated[bool, typer.Option("--real-node", help="What real nodes need too.")] = False,
) -> None:
    """Build the binaries and images that clusters are made of, where they are not cached yet; `up` does it too."""
    with _honest(), Shown() as progress:
        EmbeddedCluster("build", real_nodes=int(real_node), progress=progress).build()


@app.command()
def down(
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Which cluster.", show_default="dl2")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every cluster of yours on this machine.")] = False,
) -> None:
    """Stop a cluster and remove all that it made: processes, mounts, interfaces, files."""
    with _honest():
        if every and name:
            raise ClusterError("--all and --name were given", "give one of them, not both")
    names = cluster_names() if every else [name or "dl2"]
    failed = False
    for each in names:
        try:
            with _honest(), Shown() as progress:
                there = cluster_directory(each).is_dir()
                EmbeddedCluster(each, progress=progress).down()
            state = f"Cluster {each} is down." if there else f"There is no cluster {each}: nothing to do."
            out.print(state)
        except typer.Exit:
            failed = True
    if every and not names:
        out.print("There is no cluster; nothing to take down.")
    if failed:
        raise typer.Exit(1)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Which cluster; all of them without.")
    ] = None,
) -> None:
    """Show the processes and nodes. Exit code 3 where something of a cluster is down."""
    with _honest():
        names = [name] if name else cluster_names()
        if not names:
            out.print("There is no cluster. Make one: dl2 cluster up")
        whole = [_show_status(EmbeddedCluster.load(each)) for each in names]
    if not all(whole):
        raise typer.Exit(NOT_WHOLE)


@app.command()
def logs(
    process: Annotated[
        str | None, typer.Argument(help="Such as kube-apiserver; all of them without.")
    ] = None,
    name: Name = "dl2",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")
    ] = False,
    lines: Annotated[int, typer.Option(min=0, help="Last lines to show of each.")] = 20,
) -> None:
    """Show what processes of a cluster wrote."""
    with _honest():
        cluster = EmbeddedCluster.load(name)
        shown = [process] if process else [line.name for line in cluster.status()]
        files = {each: cluster.processes.log(each) for each in shown}
    width = max(map(len, files))
    positions = {}
    for each, file in files.items():
        positions[each] = file.stat().st_size if file.exists() else 0
        for line in tail(file, lines).splitlines():
            _log_line(each if len(files) > 1 else "", width, line)
    try:
        while follow and cluster.directory.is_dir():
            for each, file in files.items():
                positions[each] = _print_new(file, positions[each], each if len(files) > 1 else "", width)
            time.sleep(0.2)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def env(name: Name = "dl2") -> None:
    """Print what to evaluate in a shell so that kubectl speaks to the cluster."""
    with _honest():
        cluster = EmbeddedCluster.load(name)
        kubectl = cluster.binaries.path("kubectl")
    print(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    print(f"export KUBECACHEDIR={shlex.quote(str(cluster.kubectl_cache))}")
    print(f'export PATH={shlex.quote(str(kubectl.parent))}:"$PATH"')


# -- showing ---------------------------------------------------------------------------------------


class Shown:
    """Progress on the terminal: a spinner for steps, a bar where units are counted; plain lines into a
    pipe.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            console=err,
            transient=True,
        )
        self._spinner = err.status("") if err.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._step: tuple[str, float] | None = None
        self._undoing = False

    def step(self, text: str) -> None:
        self._finish()
        self._step = (text, time.monotonic())
        if self._spinner is not None:
            self._spinner.update(text)
            self._spinner.start()

    def failed(self) -> None:
        self._finish("[red]✗[/]")
        self._undoing = True

    def advance(self, task: str, done: int, total: int) -> None:
        if self._spinner is None:
            return
        self._spinner.stop()
        if task not in self._tasks:
            self._progress.start()
            self._tasks[task] = self._progress.add_task(task, total=total)
        self._progress.update(self._tasks[task], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(task))
        if not self._tasks:
            self._progress.stop()

    def _finish(self, mark: str = "[green]✓[/]") -> None:
        if self._spinner is not None:
            self._spinner.stop()
        if self._step is not None:
            text, since = self._step
            err.print(f"{mark} {text} [dim]{time.monotonic() - since:.1f} s[/]")
        self._step = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks:
            self._progress.stop()
        self._finish("[green]✓[/]" if kind is None or self._undoing else "[red]✗[/]")


@contextmanager
def _honest() -> Iterator[None]:
    """Turns what can go wrong into a sentence on stderr and an exit code."""
    try:
        yield
    except ClusterError as error:
        err.print(f"[red]error:[/] {_plain(error.what)}")
        if error.mend:
            err.print(f"[yellow]mend:[/]  {_plain(error.mend)}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(130) from None


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _show_status(cluster: EmbeddedCluster) -> bool:
    """Prints one cluster; whether all of it is up."""
    lines = cluster.status()
    table = Table(title=f"cluster {cluster.name}", title_justify="left", box=None, pad_edge=False)
    for column in ("PROCESS", "PID", "STATE", "RESTARTS"):
        table.add_column(column, overflow="fold")
    for line in lines:
        told = "[dim]stopped[/]" if not line.wanted else f"[red]down[/] {_plain(line.failure)}".rstrip()
        table.add_row(
            line.name, str(line.pid or "-"), "[green]up[/]" if line.up else told, str(line.restarts)
        )
    out.print(table)
    served = any(line.name == "kube-apiserver" and line.up for line in lines)
    out.print(_nodes(cluster) if served else "nodes: unknown, the API server is down")
    out.print(f"logs:  {cluster.processes.log_path('<process>')}\n")
    return all(line.up for line in lines)


def _nodes(cluster: EmbeddedCluster) -> str:
    template = (
        "{range .items[*]}{.metadata.labels.dl2\\.dev/node-kind} "
        '{.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
    )
    try:
        answer = cluster.kubectl(
            "get", "nodes", "-o", f"jsonpath={template}", "--request-timeout=5s", timeout=15
        )
    except ClusterError as error:
        return f"nodes: unknown, the API server does not answer ({_plain(error.what.splitlines()[-1])})"
    nodes = [line.split() for line in answer.splitlines()]
    kinds = {"kwok": "simulated", "real": "real"}
    counts = []
    for kind, word in kinds.items():
        ready = [node[-1] == "True" for node in nodes if node[0] == kind]
        counts.append(f"{len(ready)} {word}" + ("" if all(ready) else f", {ready.count(False)} not Ready"))
    return "nodes: " + "; ".join(counts)


def _print_new(file: Path, position: int, label: str, width: int) -> int:
    """Prints the whole lines behind `position`; returns where the next call goes on."""
    if not file.exists():
        return position
    with file.open("rb") as log:
        log.seek(position)
        text = log.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        _log_line(label, width, line)
    return position + len(whole)


def _log_line(label: str, width: int, line: str) -> None:
    # Not through rich: logs are full of brackets, and may be piped on.
    sys.stdout.write(f"{label:{width}} | {line}\n" if label else f"{line}\n")
    sys.stdout.flush()


def _switches(text: str) -> dict[str, bool]:
    """Reads "A=true,B=false"; raises BadParameter for anything else."""
    found = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"\s*([^=\s]+)=(true|false)\s*", part)
        if match is None:
            raise typer.BadParameter(f"{part!r} is not NAME=true or NAME=false")
        found[match[1]] = match[2] == "true"
    return found


def _name_flag(name: str) -> str:
    return "" if name == "dl2" else f" --name {name}"
