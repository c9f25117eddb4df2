"""Which nodes a pod may run on at all: label expressions, taints and tolerations, as kube-scheduler reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from dl2.scheduling.snapshot import Expression, Member, Node, Taint, Term, Toleration

NODE_NAME = "metadata.name"  # the one field a node selector term may match; written like a label here
_REPELLING = ("NoSchedule", "NoExecute")


def _greater(value: str | None, values: Sequence[str]) -> bool:
    return _compare(value, values, lambda left, right: left > right)


def _less(value: str | None, values: Sequence[str]) -> bool:
    return _compare(value, values, lambda left, right: left < right)


def _compare(value: str | None, values: Sequence[str], holds: Callable[[int, int], bool]) -> bool:
    try:
        return value is not None and len(values) == 1 and holds(int(value), int(values[0]))
    except ValueError:
        return False


_OPERATORS: Mapping[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: value is None or value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
    "Gt": _greater,
    "Lt": _less,
}


def holds(expression: Expression, labels: Mapping[str, str]) -> bool:
    """One requirement against labels; an operator nobody knows never holds."""
    operator = _OPERATORS.get(expression.operator)
    return operator is not None and operator(labels.get(expression.key), expression.values)


def matches(term: Term, labels: Mapping[str, str]) -> bool:
    """All requirements hold; the empty term matches everything (a label selector's meaning of empty)."""
    return all(holds(expression, labels) for expression in term)


def tolerates(tolerations: Iterable[Toleration], taint: Taint) -> bool:
    return any(
        (not toleration.effect or toleration.effect == taint.effect)
        and (not toleration.key or toleration.key == taint.key)
        and (toleration.operator == "Exists" or (bool(toleration.key) and toleration.value == taint.value))
        for toleration in tolerations
    )


def usable(node: Node) -> bool:
    """Ready and not cordoned: it counts for capacity, and new pods may go there."""
    return node.ready and not node.unschedulable


def barrier(member: Member, node: Node) -> str:
    """What keeps pods of `member` off `node`, room apart, as in "3 nodes ..."; empty when nothing does."""
    if not usable(node):
        return "cordoned" if node.ready else "not ready"
    labels = node.labels
    if any(labels.get(key) != value for key, value in member.node_selector.items()):
        return "without the labels it selects"
    if member.affinity:
        named = {**labels, NODE_NAME: node.name}
        # An empty node selector term matches no node, unlike an empty label selector.
        if not any(term and matches(term, named) for term in member.affinity):
            return "outside its node affinity"
    for taint in node.taints:
        if taint.effect in _REPELLING and not tolerates(member.tolerations, taint):
            return f"with the taint {taint.key}"
    return ""
