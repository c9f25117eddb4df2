"""The control groups of a real node: one group per node, in every hierarchy of cgroup v1 or in the one of
v2.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dl2.embedded.errors import ClusterError
from dl2.embedded.waiting import wait_until

MOUNT = Path("/sys/fs/cgroup")
CPUSET = ("cpuset.cpus", "cpuset.mems")


def unified(mount: Path = MOUNT) -> bool:
    """Whether the machine has cgroup v2 alone."""
    return (mount / "cgroup.controllers").exists()


def hierarchies(mount: Path = MOUNT) -> list[Path]:
    """Where a node's group must exist: v2's only tree, or every v1 controller's."""
    found = [mount] if unified(mount) else _mounted("cgroup")
    if not found:
        raise ClusterError("no control groups are mounted", "mount cgroup2 at /sys/fs/cgroup")
    return found


def make(name: str, mount: Path = MOUNT) -> None:
    """Makes the group `name` with every controller a kubelet looks for; does nothing where it is there."""
    for hierarchy in hierarchies(mount):
        group = hierarchy / name
        if unified(mount):
            _enable_controllers(hierarchy)
        group.mkdir(exist_ok=True)
        if unified(mount):
            _enable_controllers(group)
            continue
        for file in CPUSET:  # a new v1 group may use no processor and no memory, and nothing could run in it
            if (group / file).exists() and not (group / file).read_text().strip():
                (group / file).write_text((hierarchy / file).read_text())


def remove(name: str) -> None:
    """Ends every process in the group `name` and removes it. Raises ClusterError where one cannot be
    ended.
    """
    # Beside v1's controllers a machine may have an empty v2 tree, where runc makes its groups too.
    groups = [group for hierarchy in _mounted("cgroup", "cgroup2") if (group := hierarchy / name).is_dir()]
    wait_until(lambda: not _kill(groups), f"the end of all processes in control group {name}", timeout=20)
    wait_until(lambda: _rmdir(groups), f"the removal of control group {name}", timeout=20)


def _mounted(*kinds: str) -> list[Path]:
    """The mount points of file systems of these kinds ("cgroup" is v1, "cgroup2" is v2)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4]) for line in lines if line.partition(" - ")[2].split()[0] in kinds]


def _enable_controllers(group: Path) -> None:
    for controller in (group / "cgroup.controllers").read_text().split():
        with suppress(OSError):  # a controller that a kubelet needs and that stays off, it names itself
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _tree(group: Path) -> Iterator[Path]:
    """`group` and all groups below it, the deepest first."""
    for folder, _, _ in os.walk(group, topdown=False):
        yield Path(folder)


def _kill(groups: list[Path]) -> set[int]:
    """Kills what is in `groups`; returns the processes that were found there."""
    found: set[int] = set()
    for group in groups:
        for folder in _tree(group):
            with suppress(OSError):
                found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _rmdir(groups: list[Path]) -> bool | str:
    for group in groups:
        for folder in _tree(group):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:  # the kernel still takes leave of a process
                return str(error)
    return True
