"""The operator dies at each of its writes in turn, before or after the write takes effect: the end is the same.

One job lives through what a job can live through: it starts, fails and restarts, is suspended and resumed, and ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dl2.api import names
from dl2.cluster.client import ApiError
from tests.unit.cluster.fake_api import Fault
from tests.unit.controller.life import NAMESPACE, Life, Script, cluster
from tests.unit.controller.objects import template

PODS = ("j-coordinator-0", "j-server-0", "j-worker-0", "j-worker-1")


def dljob(**spec: Any) -> dict[str, Any]:
    body = {
        "runtime": "static",
        "workers": {"min": 1, "max": 4, "initial": 2, "template": template()},
        "servers": {"min": 1, "initial": 1, "template": template()},
        **spec,
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": "DLJob",
        "metadata": {"name": "j", "namespace": NAMESPACE},
        "spec": body,
    }


class Eventful(Life):
    """What happens to the job, one thing after the other, as soon as it can."""

    def __init__(self, script: Script = lambda _n, _what: None) -> None:
        super().__init__(cluster(), script)
        self.api.put(dljob())
        self.plot: list[tuple[Callable[[], bool], Callable[[], None]]] = [
            (self.all_running, lambda: self.end("Failed", "j-worker-1")),
            (lambda: self.all_running() and self.status("attempt") == 1, lambda: self.spec(suspend=True)),
            (lambda: self.state() == "Suspended", lambda: self.spec(suspend=False)),
            (self.all_running, lambda: self.end("Succeeded", "j-worker-0", "j-worker-1")),
        ]

    def status(self, name: str) -> Any:
        return (self.job().get("status") or {}).get(name)

    def all_running(self) -> bool:
        phases = {name: pod["status"]["phase"] for name, pod in self.pods().items() if pod.get("status")}
        return self.state() == "Running" and phases == dict.fromkeys(PODS, "Running")

    def environment(self) -> None:
        super().environment()
        if self.plot and self.plot[0][0]():
            self.plot.pop(0)[1]()

    async def live(self) -> dict[str, Any]:
        await self.until(lambda: not self.plot and self.state() == "Succeeded")
        return self.truth()


async def test_the_plain_life() -> None:
    life = Eventful()
    truth = await life.live()
    status = truth[f"DLJob/{NAMESPACE}/j"]["status"]
    assert (status["state"], status["restarts"], status["attempt"]) == ("Succeeded", 1, 1)
    assert sorted(life.pods()) == ["j-worker-0", "j-worker-1"]
    assert life.processes == 1


FAULTS = {
    "dies before the write takes effect": Fault(happens=False, dies=True),
    "dies after the write has taken effect": Fault(happens=True, dies=True),
    "hears no answer though it has taken effect": Fault(happens=True),
    "hears no answer and it has not": Fault(happens=False),
    "is told to come back later": Fault(error=ApiError(429, "TooManyRequests", "slow down")),
    "is refused by mistake": Fault(error=ApiError(403, "Forbidden", "try again")),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_at_every_write(fault: Fault, subtests: Any) -> None:
    plain = Eventful()
    expected = await plain.live()
    for moment, what in enumerate(plain.writes):
        with subtests.test(f"{moment}: {what}"):
            life = Eventful(lambda n, _what, moment=moment: fault if n == moment else None)
            assert await life.live() == expected
            assert life.processes == (2 if fault.dies and moment < len(life.writes) else 1)
