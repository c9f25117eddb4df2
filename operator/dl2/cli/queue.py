"""`dl2 queue tree`: the tree of queues with bars for what each uses, may count on and borrows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from dl2.cli import inputs
from dl2.cluster.client import Credentials
from dl2.controller.manifests import BadInput, Inventory
from dl2.scheduling.decide import decide
from dl2.scheduling.plan import QueueState, Usage
from dl2.scheduling.quantities import format_quantity
from dl2.scheduling.snapshot import Queue, Snapshot

WIDTH = 24  # characters of a bar

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def queue() -> None:
    """What the queues have and use."""


@app.command()
def tree(
    file: Annotated[
        list[str] | None,
        typer.Option("-f", "--file", help="Manifests in place of the cluster; - is standard input."),
    ] = None,
    resource: Annotated[str | None, typer.Option(help="Only this resource.")] = None,
    now: Annotated[str | None, typer.Option(help="As if it were this time (RFC 3339).")] = None,
    kubeconfig: Annotated[str | None, typer.Option(envvar="DL2_KUBECONFIG")] = None,
    context: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Print the tree: used █, borrowed ▓, share up to │, as parts of what the queue may have at most."""
    try:
        moment = inputs.moment(now)
        if file:
            manifests = [manifest for path in file for manifest in inputs.from_file(path)]
        else:
            manifests = inputs.from_cluster(Credentials(kubeconfig, context))
        snapshot = Inventory(manifests, moment).snapshot(None)
    except BadInput as exc:
        typer.echo(f"dl2 queue tree: {exc}", err=True)
        raise typer.Exit(2) from None
    Console().print(drawn(snapshot, decide(snapshot).queues, resource))


def drawn(snapshot: Snapshot, states: Mapping[str, QueueState], resource: str | None) -> Tree:
    """The tree, children below their parents by name; queues in a circle or without their parent stand at the top."""
    queues = {queue.name: queue for queue in snapshot.queues}
    root = Tree("cluster")
    roots = [q for q in queues.values() if q.parent not in queues or states[q.name].error]
    for queue in sorted(roots, key=lambda q: q.name):
        _grow(root, queue, queues, states, resource, snapshot)
    return root


def _grow(
    branch: Tree, queue: Queue, queues: Mapping[str, Queue], states: Mapping[str, QueueState], resource: str | None,
    snapshot: Snapshot,
) -> None:  # fmt: skip
    state = states[queue.name]
    leaf = branch.add(_node(queue, state, resource, snapshot))
    if state.error:
        return  # who hangs below it stands at the top too, or is told by its own error
    for child in sorted(queues.values(), key=lambda q: q.name):
        if child.parent == queue.name and not states[child.name].error:
            _grow(leaf, child, queues, states, resource, snapshot)


def _node(queue: Queue, state: QueueState, resource: str | None, snapshot: Snapshot) -> Table:
    table = Table.grid(padding=(0, 2))
    title = Text(queue.name, style="bold")
    title.append(f"  weight {queue.weight}, {state.admitted} admitted, {state.pending} pending", style="dim")
    table.add_row(title)
    for problem in filter(None, (state.error, state.overcommitted)):
        table.add_row(Text(problem, style="red"))
    rows = Table.grid(padding=(0, 2))
    for name, usage in sorted(state.usage.items()):
        if resource in (None, name):
            rows.add_row(*_bar(name, usage, _most(queue, name, usage, snapshot)))
    table.add_row(rows)
    return table


def _most(queue: Queue, resource: str, usage: Usage, snapshot: Snapshot) -> int:
    """What a full bar stands for: the queue's max, else the cluster, else the largest figure there is."""
    limit = queue.limits.get(resource)
    if limit and limit.max is not None:
        return limit.max
    capacity = sum(n.allocatable.get(resource, 0) for n in snapshot.nodes if n.ready and not n.unschedulable)
    return capacity or max(usage.used, usage.share, 1)


def _bar(resource: str, usage: Usage, most: int) -> tuple[str, Text, str]:
    def length(amount: int) -> int:
        return min(WIDTH, -(-amount * WIDTH // most)) if most else 0

    own, used, share = length(usage.used - usage.borrowed), length(usage.used), length(usage.share)
    cells = "█" * own + "▓" * (used - own) + "·" * (WIDTH - used)
    if 0 < share <= WIDTH:
        cells = cells[: share - 1] + "│" + cells[share:]
    numbers = {f: format_quantity(getattr(usage, f), resource) for f in ("used", "share", "borrowed", "lent")}
    text = f"{numbers['used']} used of {format_quantity(most, resource)}, share {numbers['share']}"
    text += f", {numbers['borrowed']} borrowed" if usage.borrowed else ""
    text += f", {numbers['lent']} lent" if usage.lent else ""
    style = "yellow" if usage.borrowed else "green"
    return resource, Text(cells, style=style), text
