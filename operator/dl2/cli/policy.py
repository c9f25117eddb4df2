"""`dl2 policy show|promote`: how far the rollout of a scaling policy is, and one step on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table

from dl2.api import conditions
from dl2.api.names import PolicyCondition
from dl2.api.scalingpolicy import ScalingPolicySpec
from dl2.cluster.client import ApiError, Credentials, KubeClient
from dl2.cluster.resources import SCALING_POLICIES
from dl2.controller.rollout import STAGES

_INTERVAL = ScalingPolicySpec.model_fields["interval_seconds"].default
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
NAME = Annotated[str | None, typer.Argument(help="A ScalingPolicy; may be left out where there is one.")]
KUBECONFIG = Annotated[str | None, typer.Option(envvar="DL2_KUBECONFIG")]
CONTEXT = Annotated[str | None, typer.Option()]


class Refused(Exception):
    """Cannot be done; the message says why, and the mend."""


@app.callback()
def policy() -> None:
    """The staged rollout of a scaling policy: Observe, Shadow, Canary, Active."""


@app.command()
def show(name: NAME = None, kubeconfig: KUBECONFIG = None, context: CONTEXT = None) -> None:
    """The stage in force, what the evidence is, and how it came here."""
    found = _run("show", _find(Credentials(kubeconfig, context), name))
    Console().print(_shown(found))


@app.command()
def promote(
    name: NAME = None,
    to: Annotated[str | None, typer.Option(help=f"{', '.join(STAGES)}; default: the next one.")] = None,
    kubeconfig: KUBECONFIG = None,
    context: CONTEXT = None,
) -> None:
    """Move the challenger one stage on; from Active on, it is the champion, and there is no challenger."""
    said = _run("promote", _promote(Credentials(kubeconfig, context), name, to))
    typer.echo(said)


def _run(command: str, work: Any) -> Any:
    try:
        return asyncio.run(work)
    except (Refused, ApiError) as exc:
        typer.echo(f"dl2 policy {command}: {exc}", err=True)
        raise typer.Exit(2) from None


async def _find(credentials: Credentials, name: str | None) -> dict[str, Any]:
    async with KubeClient(credentials) as client:
        return await _one(client, name)


async def _promote(credentials: Credentials, name: str | None, to: str | None) -> str:
    async with KubeClient(credentials) as client:
        found = await _one(client, name)
        patch, said = step(found, to)
        patch["metadata"] = {"resourceVersion": found["metadata"]["resourceVersion"]}  # nobody was faster
        await client.merge_patch(SCALING_POLICIES, "", found["metadata"]["name"], patch)
    return f"ScalingPolicy {found['metadata']['name']}: {said}"


async def _one(client: KubeClient, name: str | None) -> dict[str, Any]:
    items = [item async for page, _ in client.list(SCALING_POLICIES) for item in page]
    names = sorted(item["metadata"]["name"] for item in items)
    chosen = [item for item in items if name in (None, item["metadata"]["name"])]
    if not items:
        raise Refused("there is no ScalingPolicy; docs/scaling.md has one to begin with")
    if not chosen:
        raise Refused(f'there is no ScalingPolicy "{name}"; there are: {", ".join(names)}')
    if len(chosen) > 1:
        raise Refused(f"there are several; name one of {', '.join(names)}")
    return dict(chosen[0])


def step(policy: Mapping[str, Any], to: str | None) -> tuple[dict[str, Any], str]:
    """(merge patch, what it does) of one step on, from the stage in force. Raises Refused."""
    spec, stage = policy["spec"], policy.get("status", {}).get("stage") or policy["spec"]["stage"]
    challenger = spec.get("challenger")
    if to is not None and to not in STAGES:
        raise Refused(f'there is no stage "{to}"; name one of {", ".join(STAGES)}')
    if not challenger:
        raise Refused("it names no challenger; set spec.challenger to the policy to prove")
    if to is None and stage == STAGES[-1]:
        said = f"{challenger} is the champion now, in stage Observe; name the next challenger"
        return {"spec": {"champion": challenger, "challenger": None, "stage": STAGES[0]}}, said
    target = to or STAGES[STAGES.index(stage) + 1]
    if target == spec["stage"]:
        raise Refused(_nothing_to_do(policy, stage, target))
    return {"spec": {"stage": target}}, f"from {stage} to {target}, challenger {challenger}"


def _nothing_to_do(policy: Mapping[str, Any], stage: str, target: str) -> str:
    """Why a stage that the spec asks for already is not asked for again."""
    if target == stage:
        return f"it is in stage {stage} already"
    if conditions.is_true(policy.get("status", {}).get("conditions") or (), PolicyCondition.ROLLED_BACK):
        return f"it was rolled back from {target} to {stage}; for a new trial use --to {stage}, then promote again"
    seconds = policy["spec"].get("intervalSeconds", _INTERVAL)
    return f"stage {target} has been asked for and comes into force with the next round, within {seconds} s"


def _shown(policy: Mapping[str, Any]) -> Group:
    spec, status = policy["spec"], policy.get("status", {})
    facts = Table.grid(padding=(0, 2))
    rows: Sequence[tuple[str, Any]] = (
        ("ScalingPolicy", policy["metadata"]["name"]),
        ("stage in force", status.get("stage") or "not looked at yet"),
        ("stage asked for", spec["stage"]),
        ("promotion", spec.get("promotion", "Manual")),
        ("decisions", status.get("decisions", 0)),
        ("agreement", _percent(status.get("agreement"))),
        ("predicted gain", _percent(status.get("predictedGain"))),
    )
    for label, value in rows:
        facts.add_row(label, str(value))
    arms = Table("", "policy", "jobs finished", "mean completion", "95 % interval", "slowdown")
    for arm in ("champion", "challenger"):
        arms.add_row(arm, spec.get(arm) or "-", *_outcome((status.get("observed") or {}).get(arm) or {}))
    parts: list[Any] = [facts, arms]
    parts += [
        f"{told['type']}={told['status']} {told['reason']}: {told['message']}"
        for told in status.get("conditions") or ()
    ]
    if status.get("history"):
        moves = Table("time", "from", "to", "why")
        for move in status["history"]:
            moves.add_row(
                move["time"], move["from"], move["to"], f"{move['reason']}: {move.get('message', '')}"
            )
        parts.append(moves)
    return Group(*parts)


def _outcome(told: Mapping[str, Any]) -> tuple[str, str, str, str]:
    def seconds(name: str) -> str:
        return f"{told[name]:.0f} s" if name in told else "-"

    low, high = seconds("lowJctSeconds"), seconds("highJctSeconds")
    slowdown = f"{told['slowdown']:.2f}" if "slowdown" in told else "-"
    return str(told.get("jobs", 0)), seconds("meanJctSeconds"), f"{low} to {high}", slowdown


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
