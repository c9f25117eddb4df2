"""Imitation and reinforcement learning in torch: deterministic, resumable, and what they learn is what is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from dl2.cli import train as train_command
from dl2.learning import validation
from dl2.learning.curriculum import training_case
from dl2.learning.suites import Case
from dl2.scaling import Scale, load_policy
from dl2.scaling.agent import network
from dl2.scaling.agent.checkpoint import read
from dl2.scaling.agent.features import CLUSTER, FEATURES
from dl2.scaling.agent.policy import Memory
from dl2.scaling.lattice import Floats
from tests.unit.scaling.worlds import job, nodes, random_observation, seen

torch = pytest.importorskip("torch")

from dl2.learning import imitation, learner, rl  # noqa: E402
from dl2.learning.actor import forward, parameters, weights_of  # noqa: E402
from dl2.learning.learner import Learner  # noqa: E402
from dl2.learning.state import OtherRun  # noqa: E402

KINDS: dict[str, tuple[Callable[..., learner.Plan], Callable[[Learner], float]]] = {
    "imitation": (imitation.ImitationPlan, imitation.improve),
    "rl": (rl.RLPlan, rl.improve),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases of a few jobs, and validation on a training draw."""

    def few(n: int) -> Case:
        case = training_case(n)
        return replace(case, workload=replace(case.workload, jobs=case.workload.jobs[:4]))

    def validate(weights: dict[str, Floats], cases: int, reference: list[float] | None = None) -> list[float]:
        found = [validation.log_jct(weights, few(500_000))]
        return found if reference is None else [found[0] - reference[0]]

    monkeypatch.setattr(imitation, "training_case", few)
    monkeypatch.setattr(rl, "training_case", few)
    monkeypatch.setattr(learner, "validate", validate)


def wild(seed: int = 3) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in network.SHAPES.items()}


def test_torch_says_what_the_agent_says() -> None:
    rng, weights = np.random.default_rng(0), wild()
    jobs, cluster = rng.standard_normal((7, FEATURES)), rng.standard_normal(CLUSTER)
    outputs, value = forward(parameters(weights, 1), jobs, cluster)
    assert outputs.detach().numpy() == pytest.approx(network.forward(weights, jobs, cluster))
    assert value.item() == 0.0


def test_the_value_head_does_not_mind_the_order_of_jobs() -> None:
    params = parameters(wild(), 1)
    with torch.no_grad():
        params["value2.weight"] += 1.0
    rng = np.random.default_rng(0)
    jobs, cluster = rng.standard_normal((7, FEATURES)), rng.standard_normal(CLUSTER)
    value, other = (forward(params, each, cluster)[1].item() for each in (jobs, jobs[::-1].copy()))
    assert value == pytest.approx(other)
    assert value != 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_as_if_it_never_stopped(kind: str, tmp_path: Path) -> None:
    make, improve = KINDS[kind]

    def trained(folder: str, iterations: int) -> Learner:
        one = Learner(
            make(seed=3, iterations=iterations, rate=1e-2, episodes=1, validate_every=1), network.initial(3)
        )
        one.run(tmp_path / folder, improve, lambda *_: None)
        return one

    whole = trained("whole", 3)
    trained("killed", 1)
    rest = trained("killed", 3)
    assert rest.iteration == 3
    for one, other in ((whole.params, rest.params), (whole.best, rest.best)):
        assert all(np.array_equal(np.asarray(one[n].data), np.asarray(other[n].data)) for n in network.SHAPES)
    assert any(not np.array_equal(weights_of(whole.params)[n], network.initial(3)[n]) for n in network.SHAPES)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    make, improve = KINDS["imitation"]
    Learner(make(iterations=1, episodes=1), network.initial(1)).run(tmp_path, improve, lambda *_: None)
    with pytest.raises(OtherRun, match="rate"):
        Learner(make(iterations=1, episodes=1, rate=0.5), network.initial(1)).run(
            tmp_path, improve, lambda *_: None
        )


def test_imitation_learns_whom_the_teacher_prefers() -> None:
    """Two jobs alike but for their progress; the teacher gives all to the one that is nearly done."""
    views = (job("new", maximum=Scale(4, 4)), job("old", maximum=Scale(4, 4), epochs_done=60.0))
    sight = Memory().look(seen(*views, on=nodes(3)))
    lesson = imitation.lesson_from(sight, {"old": Scale(4, 4), "new": Scale(1, 1)})
    assert lesson is not None
    one = Learner(imitation.ImitationPlan(rate=1e-2), network.initial(1))
    before = float(imitation.loss_of(one.params, lesson).detach())
    for _ in range(60):
        imitation.study(one, [lesson])
    weight = network.preference(network.forward(weights_of(one.params), sight.features, sight.cluster)).weight
    ids = [view.id for view in sight.table.jobs]
    assert weight[ids.index("old")] > weight[ids.index("new")]
    assert float(imitation.loss_of(one.params, lesson).detach()) < 0.6 * before


def test_episodes_that_teach_nothing_change_nothing() -> None:
    """Where there is room for all, no step is disputed."""
    one = Learner(imitation.ImitationPlan(), network.initial(1))
    before = weights_of(one.params)
    assert np.isnan(imitation.study(one, []))
    assert all(np.array_equal(before[name], array) for name, array in weights_of(one.params).items())


def test_only_steps_up_to_the_teachers_shape_are_right() -> None:
    sight = Memory().look(seen(job("a"), job("b", epochs_done=50.0), on=nodes(9)))
    lesson = imitation.lesson_from(sight, {"a": Scale(8, 8)})
    assert lesson is not None
    a = [view.id for view in sight.table.jobs].index("a")
    assert set(lesson.of[lesson.right.any(axis=0)]) == {a}
    assert (lesson.right <= lesson.open_).all()
    assert np.exp(lesson.cost).sum() > 0
    assert imitation.lesson_from(sight, {}) is None


def test_advantages_are_what_came_more_than_expected() -> None:
    assert rl.advantage([1.0, 1.0], [0.0, 0.0, 0.0], 0.5, 1.0) == [1.5, 1.0]
    assert rl.advantage([1.0, 1.0], [1.5, 1.0, 0.0], 0.5, 1.0) == [0.0, 0.0]
    assert rl.advantage([0.0], [0.0, 4.0], 0.5, 1.0) == [2.0]


def test_reinforcement_moves_towards_what_was_better_than_expected() -> None:
    rng, plan = np.random.default_rng(1), rl.RLPlan(rate=1e-2)
    one = Learner(plan, network.initial(1))
    jobs, cluster = rng.standard_normal((5, FEATURES)), rng.standard_normal(CLUSTER)
    said = network.forward(weights_of(one.params), jobs, cluster)
    drawn = said + plan.deviation
    for _ in range(10):
        one.descend(rl._loss(one.params, rl.Moment(jobs, cluster, said, drawn, 0.0), 1.0, 2.0, plan))
    outputs, value = forward(one.params, jobs, cluster)
    assert (outputs.detach().numpy() > said).all()
    assert value.item() > 0.1


def test_an_episode_goes_on_where_no_job_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the end of one job and the arrival of the next there is nothing to say, and nothing to value."""
    case = training_case(1)
    first, second = case.workload.jobs[:2]
    late = replace(second, submitted_at=first.submitted_at + 1e7)
    apart = replace(case, workload=replace(case.workload, jobs=(first, late)))
    monkeypatch.setattr(rl, "training_case", lambda n: apart)
    moments, rest = rl._play(network.initial(1), rl.RLPlan(slots=10**6), 0, 0)
    assert rest is None
    assert {len(moment.jobs) for moment in moments} == {1}
    _, rest = rl._play(network.initial(1), rl.RLPlan(slots=len(moments) - 1), 0, 0)
    assert rest is not None
    assert len(rest.jobs) == 1


def exported(tmp_path: Path) -> Path:
    """A decision log of the envelope policy, as `dl2 log export` prints it."""
    policy, path = load_policy("envelope"), tmp_path / "log.jsonl"
    with path.open("wb") as file:
        for n in range(6):
            observation = replace(random_observation(n), now=4000.0 + n)
            answers = {"champion": {"policy": "envelope", "answer": policy.allocate(observation)}}
            record = {"record": "round", "observation": observation, "answers": answers}
            file.write(orjson.dumps(record, default=list) + b"\n")
        file.write(orjson.dumps({"record": "outcome", "job": "a"}) + b"\n")
    return path


def test_a_decision_log_teaches_what_its_champion_did(tmp_path: Path) -> None:
    lessons = imitation.lessons_from_log(exported(tmp_path))
    observation = replace(random_observation(0), now=4000.0)
    first = imitation.lesson_from(Memory().look(observation), load_policy("envelope").allocate(observation))
    assert len(lessons) >= 4
    assert first is not None
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(lessons[0], first, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("{", "no export"), ('{"record": "round"}', "no export"), ("", "no round")],
)
def test_a_log_that_teaches_nothing_says_so(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    if text is not None:
        path.write_text(text)
    found = CliRunner().invoke(train_command.app, ["imitate", "--log", str(path)])
    assert found.exit_code == 2
    assert message in found.output


@pytest.mark.parametrize("asked", [["imitate", "--log", "LOG"], ["imitate"], ["rl", "--no-value-head"]])
def test_commands_write_a_checkpoint_and_a_curve(asked: list[str], tmp_path: Path) -> None:
    words = [str(exported(tmp_path)) if word == "LOG" else word for word in asked]
    found = CliRunner().invoke(
        train_command.app, [*words, "--run", str(tmp_path), "--iterations", "1", "--seed", "5"]
    )
    assert found.exit_code == 0, found.output
    _, header = read(tmp_path / "dl2.safetensors")
    assert header["plan"]["seed"] == 5
    assert (tmp_path / "curve.csv").read_text().startswith("iteration,training,validation\n1,")
    assert (tmp_path / "curve.png").stat().st_size > 1000
