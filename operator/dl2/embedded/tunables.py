"""The kernel's settings that every kubelet changes for the whole machine: noted before the first real node starts, put
back when the last one of the machine has ended."""

from pathlib import Path

from dl2.embedded.state import Record, locked, read, runtime_root, write

TUNABLES = (
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


class _Note(Record):
    values: dict[str, str]  # as they were before any real node
    holders: tuple[str, ...]  # the folders of the clusters that have real nodes


def hold(directory: Path, settings: Path = Path("/proc/sys")) -> None:
    """Notes the settings for the cluster in `directory`, unless another cluster has done so."""
    with locked(_path().with_suffix(".lock")):
        note = read(_path(), _Note)
        if note is None:
            note = _Note(values={name: (settings / name).read_text() for name in TUNABLES}, holders=())
        write(_path(), _Note(values=note.values, holders=tuple({*note.holders, str(directory)})))


def release(directory: Path, settings: str = "/proc/sys") -> None:
    """Puts the settings back if no other cluster has real nodes. A teardown hook."""
    with locked(_path().with_suffix(".lock")):
        note = read(_path(), _Note)
        if note is None:
            return
        others = tuple(
            holder for holder in note.holders if holder != str(directory) and Path(holder).is_dir()
        )
        if others:
            write(_path(), _Note(values=note.values, holders=others))
            return
        for name, value in note.values.items():
            file = Path(settings) / name
            if file.read_text() != value:
                file.write_text(value)
        _path().unlink()


def _path() -> Path:
    return runtime_root() / "tunables.json"
