"""`dl2 train`: reinforcement learning of the scaling agent in simulation."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from dl2.learning.rl import VALIDATION_SUITES, Plan, State, train, validate
from dl2.learning.state import OtherRun
from dl2.scaling.agent.checkpoint import CheckpointError, read, save
from dl2.scaling.agent.network import SHAPES, initial
from dl2.scaling.lattice import Floats

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_Row = tuple[int, float, float | None]


@app.callback()
def command() -> None:
    """Train the scaling agent."""


@app.command()
def rl(
    folder: Annotated[Path, typer.Option("--run", help="Folder of the run; an interrupted one goes on.")] = Path("run"),
    to: Annotated[Path | None, typer.Option("--to", help="Checkpoint to write; default: in the folder.")] = None,
    start: Annotated[Path | None, typer.Option("--from", help="Checkpoint to begin with.")] = None,
    iterations: Annotated[int, typer.Option(min=1)] = 60,
    pairs: Annotated[int, typer.Option(min=1, help="Episodes an iteration, each run twice.")] = 10,
    deviation: Annotated[float, typer.Option(min=1e-6, help="Of the noise on a weight.")] = 0.3,
    rate: Annotated[float, typer.Option(min=1e-6, help="Step size.")] = 0.1,
    trained: Annotated[str, typer.Option(help="Weights that move, separated by commas.")] = "head2.bias",
    seed: Annotated[int, typer.Option(min=0)] = 1,
) -> None:  # fmt: skip
    """Reinforcement learning by evolution strategies in simulation; the best on validation is written."""
    names = tuple(name.strip() for name in trained.split(","))
    if unknown := sorted(set(names) - set(SHAPES)):
        typer.echo(f"dl2 train rl: no weights {', '.join(unknown)}; there are {', '.join(SHAPES)}", err=True)
        raise typer.Exit(2)
    plan = Plan(seed, iterations, pairs, deviation, rate, names)
    path = to or folder / "dl2.safetensors"
    try:
        weights = read(start)[0] if start else initial(seed)
        state, rows = _trained(plan, folder, weights)
    except (CheckpointError, OtherRun) as exc:
        typer.echo(f"dl2 train rl: {exc}", err=True)
        raise typer.Exit(2) from None
    save(path, state.best, header(plan, state, start))
    _curve(folder / "curve", rows)
    typer.echo(f"{path}: completion times on validation changed by {100 * state.best_score:+.1f} %")


def header(plan: Plan, state: State, start: Path | None) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return {
        "plan": asdict(plan),
        "iterations": min(state.iteration, plan.iterations),
        "from": None if start is None else start.name,
        "validation": {"log_jct_against_start": state.best_score, "suites": list(VALIDATION_SUITES)},
    }


def _trained(plan: Plan, folder: Path, weights: dict[str, Floats]) -> tuple[State, list[_Row]]:
    rows: list[_Row] = []
    with _bar() as bar:
        task = bar.add_task("train", total=plan.iterations)

        def tell(done: int, effect: float, score: float | None) -> None:
            rows.append((done, effect, score))
            said = f"train, best {100 * min([0.0, *(s for _, _, s in rows if s is not None)]):+.1f} %"
            bar.update(task, completed=done, description=said)

        return train(plan, folder, weights, tell), rows


@app.command("validate")
def compare(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to compare with the plain start.")],
    cases: Annotated[int, typer.Option(min=1, help="Of each validation suite.")] = 4,
) -> None:
    """Mean change of completion times on the validation seeds against the untrained agent, in percent."""
    plan = Plan(validation_cases=cases)
    begin = time.monotonic()
    scores = validate(read(checkpoint)[0], plan, validate(initial(plan.seed), plan))
    typer.echo(
        f"{100 * sum(scores) / len(scores):+.2f} % over {len(scores)} cases ({time.monotonic() - begin:.0f} s)"
    )


def _bar() -> Progress:
    return Progress(console=Console(stderr=True))


def _curve(stem: Path, rows: Sequence[_Row]) -> None:
    """Learning curve as CSV and PNG."""
    from dl2.learning.plots import learning_curve

    stem.parent.mkdir(parents=True, exist_ok=True)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "training", "validation"])
        writer.writerows((n, value, "" if score is None else score) for n, value, score in rows)
    learning_curve(rows, stem.with_suffix(".png"))
