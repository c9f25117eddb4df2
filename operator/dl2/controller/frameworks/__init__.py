"""Job frameworks: how a DLJob becomes a PodGroup and pods. Plug-ins register under the entry point `dl2.frameworks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

import structlog

from dl2.api import DLJob
from dl2.controller.settings import PodSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Role:
    """One role of a job: `count` wanted pods of which `min_count` must start together, each made from `template`."""

    name: str
    count: int
    min_count: int
    template: Mapping[str, Any]  # a PodTemplateSpec


class Framework(Protocol):
    """What a framework plug-in provides. All of it is pure: objects in, objects out."""

    name: str
    restarts_together: bool  # a lost pod restarts the whole job (True), or only itself (False)

    def roles(self, job: DLJob) -> tuple[Role, ...]: ...

    def pod(
        self, job: DLJob, role: Role, index: int, shape: Mapping[str, int], settings: PodSettings
    ) -> dict[str, Any]:
        """The pod `index` of a role, without the labels, gate and owner that every pod of a job gets."""
        ...

    def service(self, job: DLJob) -> dict[str, Any]: ...

    def secret(self, job: DLJob) -> str | None:
        """The name of the Secret that its pods share, unique to this very job: the operator fills in a random `token`.

        None: they need none.
        """
        ...


@cache
def frameworks() -> Mapping[str, type[Framework]]:
    """Framework name -> class, from the entry points. One that cannot be imported is left out and logged."""
    found: dict[str, type[Framework]] = {}
    for point in entry_points(group="dl2.frameworks"):
        try:
            found[point.name] = point.load()
        except Exception:  # a broken plug-in must not stop the others
            log.exception("framework plug-in cannot be loaded", framework=point.name)
    return found


def framework_of(job: DLJob) -> Framework:
    """Raises LookupError that names the registered ones."""
    factory = frameworks().get(job.spec.framework)
    if factory is None:
        known = ", ".join(sorted(frameworks())) or "none"
        raise LookupError(
            f"spec.framework: {job.spec.framework!r} is not registered (registered: {known}); "
            "use one of them or install its plug-in (entry point dl2.frameworks)"
        )
    return _for_runtime(factory, job.spec.runtime)


def _for_runtime(factory: type[Framework], runtime: str) -> Framework:
    return factory(runtime)  # type: ignore[call-arg]
