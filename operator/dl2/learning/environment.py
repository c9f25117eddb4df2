"""The simulator as a gymnasium environment, for RL libraries that bring their own algorithm.

An action is what the agent's network would say: its raw outputs for each job, in the order of `info["jobs"]`.
Rows beyond the jobs that are there are padding: features of 0, ignored as actions. Jobs beyond the window get
outputs of 0, which is the plain envelope policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict

from dl2.learning.curriculum import training_case
from dl2.learning.simulator import Simulation
from dl2.learning.suites import Case
from dl2.scaling.agent.features import CLUSTER, FEATURES
from dl2.scaling.agent.network import OUTPUTS
from dl2.scaling.agent.policy import Memory, Sight, act

Seen = dict[str, npt.NDArray[np.float32]]
Said = npt.NDArray[np.float32]
_LARGEST = 4.0


class ScalingEnv(gymnasium.Env[Seen, Said]):
    """One episode is one case run to its end. Reward: minus the job-hours spent in the cluster since the last step,

    so that the undiscounted return is minus the sum of completion times in hours (up to the intervals' ends).
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, window: int = 64, cases: Callable[[int], Case] = training_case) -> None:
        self._window, self._cases = window, cases
        self._simulation: Simulation | None = None
        self._memory = Memory()
        self._sight: Sight | None = None
        self.observation_space: Dict[Any] = Dict(  # type: ignore[assignment]
            {
                "jobs": Box(-_LARGEST, _LARGEST, (window, FEATURES), np.float32),
                "present": Box(0.0, 1.0, (window,), np.float32),
                "cluster": Box(-_LARGEST, _LARGEST, (CLUSTER,), np.float32),
            }
        )
        self.action_space = Box(-_LARGEST, _LARGEST, (window, OUTPUTS), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Seen, dict[str, Any]]:
        """`options={"case": n}` chooses the training draw; else it is drawn."""
        super().reset(seed=seed)
        number = (options or {}).get("case", int(self.np_random.integers(900_000)))
        case = self._cases(int(number))
        self._simulation = Simulation(case.workload, case.settings, case.seed)
        self._memory = Memory()
        return self._look(), self._info()

    def step(self, action: Said) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        simulation, sight = self._simulation, self._sight
        if simulation is None or sight is None or simulation.over:
            raise RuntimeError("the episode is over; call reset first")
        outputs = np.zeros((len(sight.table.jobs), OUTPUTS))
        shown = min(len(sight.table.jobs), self._window)
        outputs[:shown] = action[:shown]
        before = simulation.now
        active = len(sight.observation.jobs)
        simulation.step(act(sight, outputs) if sight.table.jobs else {}, sight.observation)
        hours = (simulation.now - before) / 3600.0
        return self._look(), -active * hours, simulation.over, False, self._info()

    def _look(self) -> Seen:
        assert self._simulation is not None
        self._sight = sight = self._memory.look(self._simulation.observe())
        shown = min(len(sight.table.jobs), self._window)
        jobs = np.zeros((self._window, FEATURES), np.float32)
        jobs[:shown] = sight.features[:shown]
        present = (np.arange(self._window) < shown).astype(np.float32)
        return {"jobs": jobs, "present": present, "cluster": sight.cluster.astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        assert self._sight is not None
        return {"jobs": [job.id for job in self._sight.table.jobs[: self._window]]}
