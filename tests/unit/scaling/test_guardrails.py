"""What of a policy's answer is done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dl2.scaling.beliefs import Belief
from dl2.scaling.guardrails import Limits, Restraint, Ruling, Verdict, guard, within
from dl2.scaling.interface import JobView, Observation, Scale, SpeedSample
from dl2.scaling.lattice import shapes_between

JOB = JobView(
    id="job", model="m", queue="team", priority=0, submitted_at=0.0, started_at=0.0,
    worker_requests={"cpu": 1000}, server_requests={"cpu": 1000}, minimum=Scale(1, 1), maximum=Scale(16, 16),
    current=Scale(2, 1), epochs_total=100.0, epochs_done=50.0, samples=(SpeedSample(Scale(2, 1), 0.01, 90.0),),
)  # fmt: skip
LIMITS = Limits(step=4, gain=0.03)


def seen(*jobs: JobView, cpu: int | None = None) -> Observation:
    budgets = {"team": {"cpu": cpu}} if cpu is not None else {}
    return Observation(now=100.0, interval=60.0, jobs=jobs, nodes=(), budgets=budgets)


def belief(per_pod: float, base: float = 0.01, deviation: float = 0.0) -> Belief:
    """Speed `base` at two workers and one server, and `per_pod` of it more with each further pod."""
    shapes = shapes_between(Scale(1, 1), Scale(16, 16))
    speed = base * (1.0 + per_pod * (shapes.workers + shapes.servers - 3))
    return Belief(shapes, np.maximum(speed, 1e-9), np.full(len(speed), deviation), 1.0)


@pytest.mark.parametrize(
    ("asked", "restraint", "per_pod", "given", "ruling"),
    [
        (Scale(4, 2), Restraint(), 0.1, Scale(4, 2), Ruling.AS_ASKED),
        (Scale(2, 1), Restraint(busy="x"), 0.1, Scale(2, 1), Ruling.AS_ASKED),
        (Scale(9, 9), Restraint(), 0.1, Scale(6, 5), Ruling.LARGEST_STEP),
        (Scale(0, 0), Restraint(), 0.1, Scale(1, 1), Ruling.MINIMUM),
        (Scale(3, 1), Restraint(busy="joining"), 0.1, Scale(2, 1), Ruling.BUSY),
        (Scale(3, 1), Restraint(resized_at=50.0, cooldown=60.0), 0.1, Scale(2, 1), Ruling.COOLDOWN),
        (Scale(3, 1), Restraint(resized_at=39.0, cooldown=60.0), 0.1, Scale(3, 1), Ruling.AS_ASKED),
        (Scale(3, 1), Restraint(), 0.02, Scale(2, 1), Ruling.SMALL_GAIN),
        (Scale(3, 1), Restraint(), -0.5, Scale(2, 1), Ruling.SMALL_GAIN),
        (Scale(1, 1), Restraint(), 0.5, Scale(1, 1), Ruling.AS_ASKED),
        (Scale(3, 1), Restraint(pause=10_000.0), 0.1, Scale(2, 1), Ruling.NOT_WORTH_PAUSE),
        (Scale(3, 1), Restraint(pause=1.0), 0.1, Scale(3, 1), Ruling.AS_ASKED),
    ],
)  # fmt: skip
def test_a_running_job_is_given(
    asked: Scale, restraint: Restraint, per_pod: float, given: Scale, ruling: Ruling
) -> None:
    verdict = guard(seen(JOB), {"job": asked}, {"job": belief(per_pod)}, {"job": restraint}, LIMITS)["job"]
    assert (verdict.asked, verdict.given, verdict.ruling) == (asked, given, ruling)


@pytest.mark.parametrize(
    ("wanted", "granted", "per_pod", "given", "ruling"),
    [
        (Scale(5, 3), Scale(5, 3), 0.1, Scale(5, 3), Ruling.AS_ASKED),
        (Scale(5, 3), Scale(4, 2), 0.1, Scale(4, 2), Ruling.NO_ROOM),
        (Scale(5, 3), Scale(4, 2), 0.005, JOB.current, Ruling.NO_ROOM),  # not worth a pause any more
        (
            Scale(5, 3),
            Scale(1, 1),
            0.1,
            JOB.current,
            Ruling.NO_ROOM,
        ),  # others are about to take from it: not its wish
        (Scale(1, 3), Scale(1, 2), 0.1, JOB.current, Ruling.NO_ROOM),  # as fast as it is
        (Scale(1, 1), Scale(1, 1), 0.1, Scale(1, 1), Ruling.AS_ASKED),
    ],
)
def test_where_admission_would_grant_less(
    wanted: Scale, granted: Scale, per_pod: float, given: Scale, ruling: Ruling
) -> None:
    asked = Verdict(wanted, wanted, Ruling.AS_ASKED)
    verdict = within(JOB, asked, granted, belief(per_pod), Restraint(), LIMITS)
    assert (verdict.given, verdict.ruling) == (given, ruling)


@pytest.mark.parametrize(
    ("per_pod", "pause", "given", "ruling"),
    [
        (0.0, 0.0, Scale(3, 1), Ruling.AS_ASKED),
        (-0.1, 0.0, Scale(3, 1), Ruling.AS_ASKED),
        (-0.3, 0.0, JOB.current, Ruling.SMALL_GAIN),
        (0.0, 1.0, Scale(3, 1), Ruling.AS_ASKED),
        (0.0, 1_000.0, JOB.current, Ruling.NOT_WORTH_PAUSE),
    ],
)
def test_a_shape_that_nobody_has_measured_may_be_tried_while_there_is_hope(
    per_pod: float, pause: float, given: Scale, ruling: Ruling
) -> None:
    """Twenty percent more than is expected of it is one standard deviation; 50 epochs of 100 s are left."""
    unsure = {"job": belief(per_pod, deviation=float(np.log(1.2)))}
    verdict = guard(seen(JOB), {"job": Scale(3, 1)}, unsure, {"job": Restraint(pause=pause)}, LIMITS)["job"]
    assert (verdict.given, verdict.ruling) == (given, ruling)


@pytest.mark.parametrize(
    ("asked", "given", "ruling"),
    [(Scale(9, 9), Scale(9, 9), Ruling.AS_ASKED), (Scale(0, 0), Scale(1, 1), Ruling.MINIMUM)],
)
def test_a_waiting_job_may_start_in_any_shape_from_its_minimum(
    asked: Scale, given: Scale, ruling: Ruling
) -> None:
    waiting = replace(JOB, current=Scale(0, 0), samples=())
    verdict = guard(seen(waiting), {"job": asked}, {}, {"job": Restraint(busy="it does not train")}, LIMITS)[
        "job"
    ]
    assert (verdict.given, verdict.ruling) == (given, ruling)


def test_a_job_near_its_end_is_left_alone() -> None:
    ending = replace(JOB, epochs_done=99.5)
    verdict = guard(seen(ending), {"job": Scale(4, 2)}, {"job": belief(0.1)}, {}, LIMITS)["job"]
    assert (verdict.given, verdict.ruling) == (JOB.current, Ruling.NEAR_END)


def test_growth_waits_for_what_another_job_keeps_after_all() -> None:
    """The answer gives what the second has to the first; the second is in its cooldown."""
    first, second = replace(JOB, id="a"), replace(JOB, id="b")
    asked = {"a": Scale(3, 1), "b": Scale(1, 1)}
    held = {"b": Restraint(resized_at=99.0)}
    beliefs = {"a": belief(0.1), "b": belief(0.1)}
    verdicts = guard(seen(second, first, cpu=6000), asked, beliefs, held, LIMITS)
    assert {name: (v.given, v.ruling) for name, v in verdicts.items()} == {
        "a": (Scale(2, 1), Ruling.BEYOND_SHARE),
        "b": (Scale(2, 1), Ruling.COOLDOWN),
    }
    free = guard(seen(second, first, cpu=6000), asked, beliefs, {}, LIMITS)
    assert {name: v.given for name, v in free.items()} == asked
