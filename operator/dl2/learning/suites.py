"""Suites and seeds: what is measured and on which draws, named here and nowhere else.

Training, validation and test seeds are disjoint. A checkpoint is chosen on validation and reported on test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from dl2.learning.simulator import Clock, Settings
from dl2.learning.workload import GPU, Recipe, Workload, draw
from dl2.scheduling.snapshot import Limits, Queue


class Split(StrEnum):
    TRAINING = "training"
    VALIDATION = "validation"
    TEST = "test"


SEEDS = {
    Split.TRAINING: range(1_000_000, 2_000_000),
    Split.VALIDATION: range(10_000, 20_000),
    Split.TEST: range(100, 10_000),
}


@dataclass(frozen=True, slots=True)
class Suite:
    """Variants are taken in turn, seed by seed."""

    name: str
    about: str
    variants: tuple[tuple[Recipe, Settings], ...]

    def case(self, n: int, split: Split = Split.TEST) -> Case:
        """The n-th draw of a split. Raises ValueError where there is none."""
        if not 0 <= n < len(SEEDS[split]):
            raise ValueError(f"there is no case {n}; they are counted from 0 to {len(SEEDS[split]) - 1}")
        recipe, settings = self.variants[n % len(self.variants)]
        seed = SEEDS[split][n]
        return Case(f"{self.name}/{seed}", draw(recipe, seed), settings, seed)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    workload: Workload
    settings: Settings
    seed: int


_FAMILIES = ("table", "textbook", "physical", "smooth", "peaked")
_BIG_NODE: Mapping[str, int] = {"cpu": 8000, GPU: 8}
_TESTBED = Recipe(load=1.0)
_CONTENDED = Recipe(
    jobs=60, nodes=24, node=_BIG_NODE, gpus=(0, 4), load=1.5, families=_FAMILIES,
    minutes=900.0, tail=0.7,
)  # fmt: skip


# As in DL2's evaluation: jobs of 10 to 100 slots of 20 minutes, eight kinds, half of them with 4 GPUs a worker.
_SLOTTED = Recipe(
    jobs=60, nodes=24, node=_BIG_NODE, gpus=(0, 4), load=1.0, families=("jagged",), sizes=(200.0, 2000.0)
)  # fmt: skip
_SLOTTED_VARIANTS = (_SLOTTED, replace(_SLOTTED, nodes=96), replace(_SLOTTED, jobs=200, nodes=120, load=1.5))


def _tenant(name: str, weight: int, least: int) -> Queue:
    return Queue(name, weight=weight, limits={"cpu": Limits(min=least), GPU: Limits()}, created=0.0)


_TENANTS = (_tenant("a", 1, 16000), _tenant("b", 2, 16000), _tenant("c", 1, 32000), _tenant("d", 4, 0))


def _suites() -> dict[str, Suite]:
    quiet = Settings()
    rough = [
        Settings(noise=0.10, interference=share, start_up=60.0, resize=90.0, mean_time_to_failure=2e6)
        for share in (0.1, 0.2, 0.3)
    ]
    paper = replace(_CONTENDED, jobs=200, nodes=500, load=0.25, arrivals="day")
    suites = (
        Suite("testbed", "13 nodes x 2 GPU, 30 jobs, the models of the table", ((_TESTBED, quiet),)),
        Suite("paper", "500 nodes x 8 GPU, 200 jobs over working days", ((paper, quiet),)),
        Suite(
            "contended",
            "24 nodes, 60 jobs, load 1.5 and 3 in turn",
            ((_CONTENDED, quiet), (replace(_CONTENDED, load=3.0, arrivals="bursts"), quiet)),
        ),
        Suite(
            "tenants",
            "4 queues with guarantees and weights",
            ((replace(_CONTENDED, queues=_TENANTS), quiet),),
        ),
        Suite(
            "shift",
            "a family of speeds that is never trained on, half of the jobs without a label",
            ((replace(_CONTENDED, families=("staircase",), unlabelled=0.5), quiet),),
        ),
        Suite(
            "noise",
            "interference of 10, 20 and 30 %, 10 % noise, start-up, resizes and failures cost time",
            tuple((_CONTENDED, settings) for settings in rough),
        ),
        Suite("room", "96 nodes, 60 jobs", ((replace(_CONTENDED, nodes=96, load=0.5), quiet),)),
        Suite(
            "unlabelled", "contended, no job carries a label", ((replace(_CONTENDED, unlabelled=1.0), quiet),)
        ),
        Suite(
            "worker-only",
            "contended, jobs without servers",
            ((replace(_CONTENDED, worker_only=1.0), quiet),),
        ),
        Suite(
            "slotted",
            "surfaces as jagged as measured ones: 24 nodes, 96 with room, 120 contended, in turn",
            tuple((recipe, quiet) for recipe in _SLOTTED_VARIANTS),
        ),
        Suite(
            "slotted-unlabelled",
            "the same without labels",
            tuple((replace(recipe, unlabelled=1.0), quiet) for recipe in _SLOTTED_VARIANTS),
        ),
        Suite(
            "slotted-users",
            "the same, labels are the names of eight users who train anything",
            tuple((replace(recipe, users=8), quiet) for recipe in _SLOTTED_VARIANTS),
        ),
        Suite(
            "guarded",
            "slotted as in the operator: jobs start in between, guardrails as they are by default",
            tuple((recipe, Settings(clock=Clock.OPERATOR)) for recipe in _SLOTTED_VARIANTS),
        ),
        Suite(
            "slotted-alone",
            "the same without servers",
            tuple((replace(recipe, worker_only=1.0), quiet) for recipe in _SLOTTED_VARIANTS),
        ),
    )
    return {suite.name: suite for suite in suites}


SUITES = _suites()


def suite_named(name: str) -> Suite:
    """Raises ValueError for a suite that does not exist."""
    if name not in SUITES:
        raise ValueError(f'there is no suite "{name}"; known are {", ".join(SUITES)}')
    return SUITES[name]
