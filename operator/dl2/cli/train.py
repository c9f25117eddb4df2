"""`dl2 train`: the scaling agent learns from a teacher, from a decision log, and by itself in simulation."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from dl2.cli import logs
from dl2.cli.logs import LogFormat
from dl2.learning import evolution
from dl2.learning.state import OtherRun
from dl2.learning.validation import VALIDATION_SUITES, validate, validation_cases
from dl2.scaling.agent.checkpoint import CheckpointError, read, save
from dl2.scaling.agent.network import SHAPES, initial
from dl2.scaling.lattice import Floats
from dl2.scaling.registry import UnknownPolicy

if TYPE_CHECKING:
    from dl2.learning.learner import Learner, Plan

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_Row = tuple[int, float, float | None]
RUN = Annotated[Path, typer.Option("--run", help="Folder of the run; an interrupted one goes on.")]
TO = Annotated[Path | None, typer.Option("--to", help="Checkpoint to write; default: in the folder.")]
FROM = Annotated[Path | None, typer.Option("--from", help="Checkpoint to begin with.")]
SEED = Annotated[int, typer.Option(min=0)]
ITERATIONS = Annotated[int, typer.Option(min=1)]
RATE = Annotated[float, typer.Option(min=1e-6, help="Step size.")]


@app.callback()
def command() -> None:
    """Train the scaling agent. The best checkpoint on the validation seeds is written."""


@app.command()
def imitate(
    folder: RUN = Path("run"), to: TO = None, start: FROM = None, seed: SEED = 1, iterations: ITERATIONS = 40, rate: RATE = 1e-3,
    teacher: Annotated[str, typer.Option(help="Whose allocations to imitate, in simulation.")] = "envelope-oracle",
    log: Annotated[Path | None, typer.Option("--log", help="Learn from this export of a decision log (`dl2 log export`) instead.")] = None,
) -> None:  # fmt: skip
    """Learn which step along the hulls a teacher takes next. Needs torch."""
    with _refusals("imitate"):
        from dl2.learning import imitation

        plan = imitation.ImitationPlan(
            seed=seed, iterations=iterations, rate=rate, teacher="log" if log else teacher
        )
        lessons = imitation.lessons_from_log(log) if log else []
        _learn(
            plan,
            lambda one: imitation.study(one, lessons) if log else imitation.improve(one),
            folder,
            to,
            start,
        )


@app.command()
def rl(
    folder: RUN = Path("run"), to: TO = None, start: FROM = None, seed: SEED = 1, iterations: ITERATIONS = 40, rate: RATE = 1e-3,
    episodes: Annotated[int, typer.Option(min=1, help="Of an iteration.")] = 4,
    value_head: Annotated[bool, typer.Option(help="Compare rewards with what the value head expects.")] = True,
) -> None:  # fmt: skip
    """Reinforcement learning in simulation: an actor-critic with clipped steps (PPO). Needs torch."""
    with _refusals("rl"):
        from dl2.learning import rl as reinforcement

        plan = reinforcement.RLPlan(
            seed=seed, iterations=iterations, rate=rate, episodes=episodes, value_head=value_head
        )
        _learn(plan, reinforcement.improve, folder, to, start)


@app.command()
def prior(
    to: Annotated[Path, typer.Option("--to", help="File to write.")] = Path("prior.safetensors"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    surfaces: Annotated[int, typer.Option(min=1, help="Random speed functions to fit to.")] = 3000,
) -> None:
    """What the agent expects of speeds before anything was measured. Needs no torch."""
    from dl2.learning.prior import ROUNDS, learn
    from dl2.scaling.agent.prior import save

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("prior", total=ROUNDS)
        save(to, *learn(seed, surfaces, progress=lambda done: bar.update(task, completed=done)))
    typer.echo(f"{to}: learned from {surfaces} speed functions")


@app.command()
def evolve(
    folder: RUN = Path("run"), to: TO = None, start: FROM = None, seed: SEED = 1, iterations: ITERATIONS = 60, rate: RATE = 0.1,
    pairs: Annotated[int, typer.Option(min=1, help="Episodes an iteration, each run twice.")] = 10,
    deviation: Annotated[float, typer.Option(min=1e-6, help="Of the noise on a weight.")] = 0.3,
    trained: Annotated[str, typer.Option(help="Weights that move, separated by commas.")] = "head2.bias",
) -> None:  # fmt: skip
    """Evolution strategies in simulation, without torch."""
    names = tuple(name.strip() for name in trained.split(","))
    if unknown := sorted(set(names) - set(SHAPES)):
        typer.echo(
            f"dl2 train evolve: no weights {', '.join(unknown)}; there are {', '.join(SHAPES)}", err=True
        )
        raise typer.Exit(2)
    plan = evolution.Plan(seed, iterations, pairs, deviation, rate, names)
    with _refusals("evolve"):
        weights = read(start)[0] if start else initial(seed)
        rows, tell = _followed(iterations)
        with tell as progress:
            state = evolution.train(plan, folder, weights, progress)
        _written("evolution strategies", asdict(plan), state.best, state.best_score, rows, folder, to, start)


@app.command()
def online(
    log: Annotated[Path, typer.Option("--log", help="The decision log, as `dl2 run --decision-log` was told.")],
    folder: Annotated[Path, typer.Option("--to", help="Folder for candidates; the operator must be able to read it.")] = Path("candidates"),
    start: FROM = None, seed: SEED = 1, iterations: ITERATIONS = 10,
    pairs: Annotated[int, typer.Option(min=1, help="Episodes an iteration, each run twice.")] = 4,
    judging: Annotated[int, typer.Option(min=2, help="Cases by which a candidate has to be surely better.")] = 12,
    every: Annotated[float, typer.Option(min=0, help="Seconds between two lessons; 0: one lesson only.")] = 0,
    propose: Annotated[bool, typer.Option(help="Name a candidate as challenger of the ScalingPolicy in charge.")] = False,
    kubeconfig: Annotated[str | None, typer.Option(envvar="DL2_KUBECONFIG")] = None,
    context: Annotated[str | None, typer.Option()] = None,
    memory_mib: Annotated[int, typer.Option(min=256, help="Most memory.")] = 1024,
    leash: Annotated[bool, typer.Option(help="End with standard input.", hidden=True)] = False,
    log_format: Annotated[LogFormat, typer.Option(envvar="DL2_LOG_FORMAT")] = LogFormat.CONSOLE,
) -> None:  # fmt: skip
    """Fine-tune from a cluster's own decision log, in the simulator fitted to it, at the lowest priority."""
    from dl2.cli import online as process
    from dl2.cluster.client import Credentials
    from dl2.learning.online import Tuning

    logs.configure(log_format.value, "INFO")
    process.be_modest(memory_mib)
    if leash:
        process.end_with_parent()
    tuning = Tuning(seed=seed, iterations=iterations, pairs=pairs, judging=judging)
    with _refusals("online"):
        asked = process.Online(log, folder, start, tuning, propose, Credentials(kubeconfig, context))
        process.lessons(asked, every)


@app.command("validate")
def compare(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to compare with the plain start.")],
    cases: Annotated[int, typer.Option(min=1, help="Of each validation suite.")] = 4,
) -> None:
    """Mean change of completion times on the validation seeds against the untrained agent, in percent."""
    begin = time.monotonic()
    with _refusals("validate"):
        drawn = validation_cases(cases)
        scores = validate(read(checkpoint)[0], drawn, validate(initial(1), drawn))
    typer.echo(
        f"{100 * sum(scores) / len(scores):+.2f} % over {len(scores)} cases ({time.monotonic() - begin:.0f} s)"
    )


def _learn(
    plan: Plan, improve: Callable[[Learner], float], folder: Path, to: Path | None, start: Path | None
) -> None:
    from dl2.learning.learner import Learner

    learner = Learner(plan, read(start)[0] if start else initial(plan.seed))
    rows, tell = _followed(plan.iterations)
    with tell as progress:
        learner.run(folder, improve, progress)
    said = {**asdict(plan), "iterations": learner.iteration}
    _written(type(plan).__name__, said, learner.best, learner.best_score, rows, folder, to, start)


class _refusals:
    """Turns what a person can mend into a message and exit code 2."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        message = str(error)
        if isinstance(error, ModuleNotFoundError):
            message = f"{error.name} is not installed; install it with `pip install 'dl2[learning]'`"
        elif not isinstance(error, (CheckpointError, OtherRun, UnknownPolicy, ValueError)):
            return
        typer.echo(f"dl2 train {self._name}: {message}", err=True)
        raise typer.Exit(2) from None


class _Bar:
    """A progress bar that says the best score so far and keeps the rows of the learning curve."""

    def __init__(self, total: int, rows: list[_Row]) -> None:
        self._bar = Progress(console=Console(stderr=True))
        self._task, self._rows = self._bar.add_task("train", total=total), rows

    def __enter__(self) -> Callable[[int, float, float | None], None]:
        self._bar.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _tell(self, done: int, measure: float, score: float | None) -> None:
        self._rows.append((done, measure, score))
        best = min([0.0, *(each for _, _, each in self._rows if each is not None)])
        self._bar.update(self._task, completed=done, description=f"train, best {100 * best:+.1f} %")


def _followed(total: int) -> tuple[list[_Row], _Bar]:
    rows: list[_Row] = []
    return rows, _Bar(total, rows)


def _written(
    method: str, plan: dict[str, Any], weights: dict[str, Floats], score: float, rows: Sequence[_Row],
    folder: Path, to: Path | None, start: Path | None,
) -> None:  # fmt: skip
    """Checkpoint, learning curve, and a line that says what came of it."""
    path = to or folder / "dl2.safetensors"
    validation = {"log_jct_against_start": score, "suites": list(VALIDATION_SUITES)}
    save(
        path,
        weights,
        {"method": method, "plan": plan, "from": start.name if start else None, "validation": validation},
    )
    _curve(folder / "curve", rows)
    typer.echo(f"{path}: completion times on validation changed by {100 * score:+.1f} %")


def _curve(stem: Path, rows: Sequence[_Row]) -> None:
    """Learning curve as CSV and PNG."""
    from dl2.learning.plots import learning_curve

    stem.parent.mkdir(parents=True, exist_ok=True)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "training", "validation"])
        writer.writerows((n, value, "" if score is None else score) for n, value, score in rows)
    learning_curve(rows, stem.with_suffix(".png"))
