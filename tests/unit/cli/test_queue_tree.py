"""`dl2 queue tree`: every queue under its parent, with bars and figures; what is broken says so."""

from __future__ import annotations

from typer.testing import CliRunner

from dl2.cli.queue import app


def queue(name: str, parent: str = "", **gpu: str) -> str:
    above = f"parent: {parent}, " if parent else ""
    limits = ", ".join(f'{key}: "{value}"' for key, value in gpu.items())
    return f"""
apiVersion: dl2.dev/v1alpha1
kind: TenantQueue
metadata: {{name: {name}}}
spec: {{{above}namespaceSelector: {{}}, resources: {{nvidia.com/gpu: {{{limits}}}}}}}
"""


def tree(*documents: str, code: int = 0) -> str:
    result = CliRunner().invoke(
        app, ["tree", "-f", "-"], input="\n---\n".join(documents), env={"COLUMNS": "120"}
    )
    assert result.exit_code == code, result.output
    return result.output


RUNNING = """
apiVersion: dl2.dev/v1alpha1
kind: PodGroup
metadata: {name: g, namespace: x}
spec: {queue: child, members: [{name: w, count: 3, requests: {nvidia.com/gpu: "1"}}]}
status:
  conditions: [{type: Admitted, status: "True", reason: A, message: "", lastTransitionTime: 2026-11-23T09:00:00Z}]
  members: [{name: w, admitted: 3}]
"""


def test_children_stand_below_their_parent_with_what_they_use() -> None:
    text = tree(queue("lab", max="6"), queue("child", "lab", min="1"), RUNNING)
    lines = text.splitlines()
    (parent,) = (i for i, line in enumerate(lines) if "lab" in line)
    (child,) = (i for i, line in enumerate(lines) if "child" in line)
    assert parent < child
    assert lines[child].index("child") > lines[parent].index("lab")
    assert "3 used of 6" in lines[parent + 1]
    assert "2 borrowed" in text
    assert "▓" in text


def test_a_circle_is_shown_once_each_with_its_error() -> None:
    text = tree(queue("a", "b"), queue("b", "a"), queue("fine", max="2"))
    assert text.count("spec.parent") == 2
    assert "fine" in text


def test_bad_input_exits_with_2() -> None:
    assert "min" in tree(queue("a", min="many"), code=2)
