"""Running the machine's own tools (ip, ctr, buildah, ...) and saying well what they complain of."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dl2.embedded.errors import ClusterError

LAST_LINES = 15


def run(*argv: str | Path, input: str | None = None, timeout: float = 120.0) -> str:
    """What the command prints; raises ClusterError with its complaint when it fails or takes too long."""
    command = [str(argument) for argument in argv]
    try:
        result = subprocess.run(
            command, input=input, capture_output=True, text=True, timeout=timeout, check=False
        )
    except OSError as error:
        raise ClusterError(f"`{command[0]}` cannot be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{shlex.join(command)}` took more than {timeout:g} s") from error
    if result.returncode != 0:
        raise ClusterError(f"`{shlex.join(command)}` failed: {_last(result.stderr or result.stdout)}")
    return result.stdout


def run_logged(
    log: Path, *argv: str | Path, within: Sequence[str] = (), env: Mapping[str, str], timeout: float
) -> None:
    """Runs a long command, by the command line `within`, with its output appended to `log`.

    Raises ClusterError with the last lines when it fails or takes too long.
    """
    command = [str(argument) for argument in argv]
    with log.open("a+") as file:
        print("$", shlex.join(command), file=file, flush=True)
        begin = file.tell()
        try:
            subprocess.run(
                [*within, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                env=os.environ | dict(env),
                check=True,
            )
        except OSError as error:
            raise ClusterError(f"`{command[0]}` cannot be started: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"`{command[0]}` took more than {timeout:g} s", f"read {log}") from error
        except subprocess.CalledProcessError as error:
            file.seek(begin)
            words = _last(file.read())
            raise ClusterError(f"`{command[0]}` failed: {words}", f"the whole output is in {log}") from error


def mounts_below(*folders: Path) -> list[Path]:
    """The mount points at or below `folders`, deepest and latest first: the order to unmount them in."""
    points = [_unescape(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [
        Path(point)
        for point in reversed(points)
        if any(Path(point).is_relative_to(folder) for folder in folders)
    ]


def bind(source: Path, target: Path) -> None:
    """Makes the folder `source` appear at `target` too; both are made where they are missing."""
    source.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    if target not in mounts_below(target):
        run("mount", "--bind", source, target)


def unmount_below(*folders: Path) -> None:
    """Unmounts everything at or below `folders`; what is busy leaves the tree now and the kernel when it
    can.
    """
    for point in mounts_below(*folders):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    if left := mounts_below(*folders):
        raise ClusterError(f"{left[0]} cannot be unmounted")


def _unescape(path: str) -> str:
    return path.encode().decode("unicode_escape") if "\\" in path else path


def _last(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])
