"""Resource lists, and what a pod reserves of a node, as kube-scheduler counts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dl2.scheduling.quantities import parse_quantity

Raw = Mapping[str, Any]


def parse_quantities(raw: Raw | None) -> dict[str, int]:
    """Resource list -> smallest units. Raises QuantityError naming the resource."""
    return {name: parse_quantity(value, name) for name, value in (raw or {}).items()}


def _largest(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {name: max(a.get(name, 0), b.get(name, 0)) for name in (*a, *b)}


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


def container_requests(container: Raw) -> dict[str, int]:
    resources = container.get("resources") or {}
    # a limit without a request is a request, as the API server defaults it
    return parse_quantities({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


_Needs = Callable[[Raw], Mapping[str, int]]


def _phases(spec: Raw, needs: _Needs) -> dict[str, int]:
    """The larger of a pod's running and its starting phase (KEP-753 sidecar containers).

    Containers add up; an init container needs its own beside the sidecars (restartPolicy Always) started before it.
    """
    running = _sum(needs(c) for c in spec.get("containers") or ())
    sidecars: dict[str, int] = {}
    starting: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        own = needs(container)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum((sidecars, own))
            starting = _largest(starting, sidecars)
        else:
            starting = _largest(starting, _sum((sidecars, own)))
    return _largest(_sum((running, sidecars)), starting)


def _container_views(status: Raw, refused: bool) -> tuple[_Needs, ...]:
    """What a container needs, as asked for, as kubelet has allocated it and as it has it now."""
    kinds = ("initContainerStatuses", "containerStatuses")
    told = {c.get("name"): c for kind in kinds for c in status.get(kind) or ()}
    if not any("allocatedResources" in c or "resources" in c for c in told.values()):
        return (container_requests,)

    def asked(container: Raw) -> Mapping[str, int]:
        return {} if refused else container_requests(container)

    def allocated(container: Raw) -> Mapping[str, int]:
        known = told.get(container.get("name"), {}).get("allocatedResources")
        return asked(container) if known is None else parse_quantities(known)

    def actual(container: Raw) -> Mapping[str, int]:
        known = (told.get(container.get("name"), {}).get("resources") or {}).get("requests")
        return allocated(container) if known is None else parse_quantities(known)

    return asked, allocated, actual


def _pod_level(spec: Raw, status: Raw, refused: bool) -> dict[str, int]:
    """What the pod asks for as a whole (KEP-2837) or, while that is resized, holds of it."""
    asked = parse_quantities((spec.get("resources") or {}).get("requests"))
    if not asked:
        return {}
    overhead = parse_quantities(spec.get("overhead"))  # which what a status tells includes
    told = ((status.get("resources") or {}).get("requests"), status.get("allocatedResources"))
    held = [
        {name: value - overhead.get(name, 0) for name, value in parse_quantities(each).items()}
        for each in told
        if each
    ]
    views = held if refused and held else [asked, *held]
    return {name: max(view.get(name, 0) for view in views) for name in asked}


def pod_requests(spec: Raw, status: Raw | None = None) -> dict[str, int]:
    """What kube-scheduler reserves for a pod: the larger of its running and its starting phase, plus overhead.

    Pod-level requests replace the sum over containers for the resources they name. While a pod is resized in
    place, the largest of what it asks for, what was allocated and what it has counts; what kubelet has found
    infeasible is not asked for any more (KEP-1287).
    """
    status = status or {}
    refused = any(
        c.get("type") == "PodResizePending" and c.get("reason") == "Infeasible"
        for c in status.get("conditions") or ()
    )
    total: dict[str, int] = {}
    for needs in _container_views(status, refused):
        total = _largest(total, _phases(spec, needs))
    total.update(_pod_level(spec, status, refused))
    return _sum((total, parse_quantities(spec.get("overhead"))))
