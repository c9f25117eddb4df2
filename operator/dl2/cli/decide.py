"""`dl2 decide`: one pass of the operator's own `decide` over manifests or a live cluster. Touches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dl2.api.unknown import unknown_fields
from dl2.cli import inputs
from dl2.cluster.client import Credentials
from dl2.controller.manifests import BadInput, Inventory, Manifest
from dl2.controller.sizing import sized
from dl2.scaling.interface import Policy
from dl2.scaling.registry import load_policy
from dl2.scheduling.apply import settle
from dl2.scheduling.decide import decide
from dl2.scheduling.plan import Action, Decision, Plan
from dl2.scheduling.quantities import format_quantity
from dl2.scheduling.snapshot import Admitted, CapacityMode, Key, Snapshot

MOST_PASSES = 20


app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


class Oscillation(RuntimeError):
    """Passes that never come to rest."""


@app.command("decide")
def command(
    file: Annotated[list[str] | None, typer.Option("-f", "--file", help="Manifests, YAML or JSON; - is standard input; may be repeated.")] = None,
    from_cluster: Annotated[bool, typer.Option("--from-cluster", help="Start from what the current kube context holds.")] = False,
    what_if: Annotated[list[str] | None, typer.Option("--what-if", help="Manifests that are added to it, or replace what has their name.")] = None,
    snapshot_to: Annotated[str | None, typer.Option("--snapshot-to", help="Save what is decided on, to be replayed with -f.")] = None,
    now: Annotated[str | None, typer.Option(help="Decide as if it were this time (RFC 3339); default: the present.")] = None,
    capacity: Annotated[CapacityMode | None, typer.Option(help="Count Nodes, or Quota alone; default: Nodes where there are any.")] = None,
    policy: Annotated[str | None, typer.Option(help="First let this scaling policy (or checkpoint) size the elastic jobs that leave it to one.")] = None,
    settled: Annotated[bool, typer.Option("--settle", help="Apply the plan as if pods left and started at once, until a pass plans nothing.")] = False,
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TABLE,
    kubeconfig: Annotated[str | None, typer.Option(envvar="DL2_KUBECONFIG")] = None,
    context: Annotated[str | None, typer.Option()] = None,
) -> None:  # fmt: skip
    """Print the plan of one pass. Exit 0: a plan; 2: bad input; 3: --settle does not come to rest."""
    try:
        if not file and not from_cluster:
            raise BadInput("nothing to decide on; name manifests with -f PATH, or use --from-cluster")
        at = inputs.moment(now)
        manifests = list(inputs.from_cluster(Credentials(kubeconfig, context))) if from_cluster else []
        for path in (*(file or ()), *(what_if or ())):
            manifests += inputs.from_file(path)
        if snapshot_to:
            inputs.save(manifests, snapshot_to)
        inventory = Inventory(manifests, at)
        snapshot = inventory.snapshot(capacity)
        _warn_of_unknown_fields(manifests)
        if policy:
            snapshot = sized(snapshot, inventory.sizable(), _policy(policy))
        end = settled_plan(snapshot) if settled else None
    except BadInput as exc:
        typer.echo(f"dl2 decide: {exc}", err=True)
        raise typer.Exit(2) from None
    except Oscillation as exc:
        typer.echo(f"dl2 decide: {exc}", err=True)
        raise typer.Exit(3) from None
    answer = answer_of(end.plan if end else decide(snapshot), snapshot, end)
    if output is Output.JSON:
        typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(answer)


def _warn_of_unknown_fields(manifests: Iterable[Manifest]) -> None:
    """As kubectl would refuse them; here they may come from another version, and all else of the object counts."""
    for manifest in manifests:
        if not manifest.let_in:
            kind, metadata = manifest.raw["kind"], manifest.raw["metadata"]
            name = "/".join(filter(None, (metadata.get("namespace"), metadata["name"])))
            for field in unknown_fields(manifest.raw):
                text = f"{manifest.source}: {kind} {name}: {field} is no field of a {kind}, and is not read"
                typer.echo(f"dl2 decide: warning: {text}", err=True)


def _policy(name: str) -> Policy:
    try:
        return load_policy(name)
    except TypeError:  # it wants to be told more than its name
        raise BadInput(f"--policy: {name} is a yardstick of the simulator; name another policy") from None
    except (LookupError, ValueError, OSError) as exc:
        raise BadInput(f"--policy: {exc}") from None


# -- deciding -------------------------------------------------------------------------------------------------------
_QUIET = (Action.KEEP, Action.WAIT)


@dataclass(frozen=True, slots=True)
class Settled:
    """Where passes come to rest: the plan of the last one, how many it took, and why each group was moved last."""

    plan: Plan
    passes: int
    why: Mapping[Key, Decision]


def settled_plan(snapshot: Snapshot) -> Settled:
    """Pass after pass, each on the result of the last, until one plans nothing. Raises Oscillation."""
    current, why = snapshot, dict[Key, Decision]()
    for number in range(1, MOST_PASSES + 1):
        plan = decide(current)
        moves = {decision.key: decision for decision in plan.decisions if decision.action not in _QUIET}
        if not moves and not any(pod.terminating for group in current.groups for pod in group.pods):
            return Settled(plan, number, why)
        why |= moves
        current = settle(current, plan)
    raise Oscillation(f"{MOST_PASSES} passes and still moving: {', '.join(map(str, moves))}")


def answer_of(plan: Plan, start: Snapshot, end: Settled | None) -> dict[str, Any]:
    """The contract's JSON. After settling, actions compare the end with the start."""
    figures = ("used", "share", "borrowed", "lent")
    answer: dict[str, Any] = {
        "plan": [],
        "queues": {
            name: {
                resource: {f: format_quantity(getattr(usage, f), resource) for f in figures}
                for resource, usage in sorted(state.usage.items())
            }
            for name, state in sorted(plan.queues.items())
        },
    }
    before = {group.key: group.admitted for group in start.groups}
    for decision in plan.decisions:
        told = _compared(decision, before.get(decision.key), end.why.get(decision.key)) if end else decision
        answer["plan"].append(_entry(told, start.capacity is CapacityMode.NODES))
    if end is not None:
        answer["passes"] = end.passes
    return answer


def _compared(last: Decision, before: Mapping[str, Admitted] | None, moved: Decision | None) -> Decision:
    """The last decision, told as the change since the start, with the reason of the move that made it."""
    if last.action is not Action.KEEP:
        if before is None:
            return last
        evicted = moved or last
        return replace(last, action=Action.EVICT, reason=evicted.reason, message=evicted.message)
    if before is None:
        return replace(last, action=Action.ADMIT)
    if {m: a.count for m, a in before.items() if a.count} == {
        m: p.count for m, p in last.members.items() if p.count
    }:
        return last
    return replace(last, action=Action.RESIZE, reason=moved.reason if moved else last.reason,
                   message=moved.message if moved else last.message)  # fmt: skip


def _entry(decision: Decision, nodes: bool) -> dict[str, Any]:
    return {
        "kind": "PodGroup",
        "namespace": decision.key.namespace,
        "name": decision.key.name,
        "action": decision.action.value,
        "reason": decision.reason.value,
        "message": decision.message,
        "position": decision.position,
        "members": {
            name: {"count": member.count, **({"domains": dict(member.nodes)} if nodes else {})}
            for name, member in decision.members.items()
        },
    }


# -- output -----------------------------------------------------------------------------------------------------------
_COLOUR = {"Admit": "green", "Resize": "cyan", "Evict": "red", "Wait": "yellow", "Keep": "dim"}


def _show(answer: Mapping[str, Any]) -> None:
    console = Console()
    plan = Table("group", "action", "members", "#", "reason", "message")
    for entry in answer["plan"]:
        members = ", ".join(f"{m['count']} {name}" for name, m in entry["members"].items())
        action = Text(entry["action"], style=_COLOUR[entry["action"]])
        position = "" if entry["position"] is None else str(entry["position"])
        plan.add_row(
            f"{entry['namespace']}/{entry['name']}",
            action,
            members,
            position,
            entry["reason"],
            entry["message"],
        )
    queues = Table("queue", "resource", "used", "share", "borrowed", "lent")
    for name, usage in answer["queues"].items():
        for resource, figures in usage.items():
            queues.add_row(name, resource, *(figures[f] for f in ("used", "share", "borrowed", "lent")))
    console.print(plan, queues)
    if "passes" in answer:
        console.print(f"at rest after {answer['passes']} passes")
