"""Building a binary from its Go module in testbed/, into the cache."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dl2.embedded.errors import ClusterError
from dl2.embedded.state import locked
from dl2.embedded.waiting import Progress

INSTALL_GO = "install Go (https://go.dev/dl), or name ready binaries with DL2_BINARIES=<folder>"


class GoModule:
    """One module of testbed/: a go.mod that pins upstream sources, and no code of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def version(self) -> str:
        """The Go release that builds this module, such as "go1.26.8"; raises ClusterError without one."""
        return self._go("env", "GOVERSION").strip()

    def build(self, package: str, ldflags: str, target: Path, progress: Progress) -> None:
        """Builds the main package `package` to `target`; raises ClusterError with the compiler's words.

        Two builders of one target wait for each other, and a reader of it sees a whole file or none.
        """
        with locked(target.with_name(f".{target.name}.lock")):
            if target.exists():
                return
            task = f"Building {target.name}"
            progress.step(f"{task} from its sources (once; then it is in the cache)")
            flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", f"-ldflags={ldflags}"]
            stale = self._stale_packages(package, flags)
            progress.advance(task, 0, len(stale) + 1)
            scratch = target.with_name(f".{target.name}.building")
            shutil.rmtree(scratch, ignore_errors=True)  # of a builder that was killed
            try:
                output = scratch / target.name
                self._compile(["build", "-v", *flags, "-o", str(output), package], stale, task, progress)
                os.replace(output, target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            progress.advance(task, len(stale) + 1, len(stale) + 1)

    def _stale_packages(self, package: str, flags: Sequence[str]) -> set[str]:
        """The packages that the build has to compile: all but those in Go's build cache. Fetches missing
        modules.
        """
        listing = self._go("list", *flags, "-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}", package)
        return set(listing.split())

    def _compile(self, arguments: Sequence[str], stale: set[str], task: str, progress: Progress) -> None:
        messages: list[str] = []
        done = 0
        with subprocess.Popen(
            [_go_command(), *arguments],
            cwd=self.directory,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:  # `go build -v` prints the name of each package it compiles
                    if line.strip() in stale:
                        done += 1
                        progress.advance(task, done, len(stale) + 1)
                    else:
                        messages.append(line)
            except BaseException:
                process.terminate()
                raise
        if process.returncode != 0:
            raise _failure(self.directory, arguments, "".join(messages))

    def _go(self, *arguments: str) -> str:
        result = subprocess.run(
            [_go_command(), *arguments],
            cwd=self.directory,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise _failure(self.directory, arguments, result.stderr)
        return result.stdout


def go_installed() -> bool:
    return shutil.which("go") is not None


def _go_command() -> str:
    command = shutil.which("go")
    if command is None:
        raise ClusterError("there is no Go on PATH to build the cluster's binaries with", INSTALL_GO)
    return command


def _environment() -> dict[str, str]:
    return os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}


def _failure(directory: Path, arguments: Sequence[str], words: str) -> ClusterError:
    last = "\n".join(words.strip().splitlines()[-15:])
    return ClusterError(
        f"`go {arguments[0]}` failed in {directory}:\n{last}",
        "Mend what Go says (GOPROXY? free disk space?), or name ready binaries with DL2_BINARIES=<folder>",
    )
