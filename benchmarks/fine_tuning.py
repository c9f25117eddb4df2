"""What fine-tuning from a decision log is worth: `python benchmarks/fine_tuning.py [--json FILE]`.

A contended cluster that the shipped agent was not trained on is simulated under `envelope`, and its decision log
written as the operator writes it. `dl2 train online` learns from the log. What it has learned is compared with the
weights before on further draws of the same cluster: as the log lets one believe it is, and as it really is, with the
true speeds, which nobody was shown.

Figures, in percent of the mean completion time (below 0: shorter), and half of their 95 % intervals:
  believed_percent, believed_margin   on draws of the fitted simulator that nothing else has seen
  true_percent, true_margin           on the same draws with the true speeds
  lesson_seconds                      of one core, at the priority that this was started with
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dl2.cli.online import fitted_to
from dl2.controller.decisionlog import DecisionLog
from dl2.learning.fitted import Fitted
from dl2.learning.online import Tuning, compared, tune
from dl2.learning.run import policy_for
from dl2.learning.simulator import Clock, Simulation
from dl2.learning.suites import Case, Split, suite_named
from dl2.scaling.agent import SHIPPED
from dl2.scaling.agent.checkpoint import read
from dl2.scaling.beliefs import Belief

DRAW = 777  # of the training seeds, and of a suite that training does not use
JUDGING = 12


def write_log(path: Path, case: Case) -> None:
    """The rounds of `case` under `envelope`."""
    settings = replace(case.settings, clock=Clock.OPERATOR, noise=0.05, resize=30.0)
    simulation, log = Simulation(case.workload, settings, 1), DecisionLog(path)
    champion = policy_for("envelope", simulation)
    while not simulation.over:
        observation = simulation.observe()
        if simulation.asks:
            log.add_round(observation.now, "training", "Observe", (None, None), observation, {}, [])
            simulation.step(champion.allocate(observation), observation)
        else:
            simulation.step(simulation.held(observation), observation)
    log.close()


def really(fitted: Fitted, case: Case) -> Fitted:
    """The same with the true speeds in place of beliefs."""
    true = {job.id: job.speed for job in case.workload.jobs}

    def known(name: str, belief: Belief) -> Belief:
        speeds = np.array([true[name](belief.shapes.scale(i)) for i in range(len(belief.speed))])
        return belief._replace(speed=speeds, deviation=np.zeros(len(speeds)))

    return replace(fitted, jobs=tuple((job, known(job.id, belief)) for job, belief in fitted.jobs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--candidate", type=Path, help="compare this checkpoint instead of training one")
    options = parser.parse_args()
    case, before = suite_named("contended").case(DRAW, Split.TRAINING), read(SHIPPED)[0]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder) / "log.db", case)
        fitted = fitted_to(Path(folder) / "log.db")
        if options.candidate:
            after = read(options.candidate)[0]
        else:
            began = time.process_time()
            after = tune(fitted, before, Tuning(), Path(folder) / "lesson").weights
            figures["lesson_seconds"] = time.process_time() - began
    for name, world in (("true", really(fitted, case)), ("believed", fitted)):
        change = compared(world, before, after, JUDGING)
        figures[f"{name}_percent"], figures[f"{name}_margin"] = 100 * change.mean, 100 * change.half
        print(f"{name}: {100 * change.mean:+.1f} ± {100 * change.half:.1f} %", flush=True)
    for name, value in figures.items():
        print(f"{name:18} {value:8.2f}")
    if options.json:
        options.json.write_text(json.dumps({"figures": {name: round(v, 2) for name, v in figures.items()}}))


if __name__ == "__main__":
    main()
