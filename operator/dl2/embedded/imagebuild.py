"""Building images: Debian by mmdebstrap, Python packages by the machine's own pip, Dockerfiles by buildah.

Packages are fetched outside, by clients that the machine has configured, and built into the images without a network.
"""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dl2.embedded import images
from dl2.embedded.state import locked
from dl2.embedded.system import run, run_logged
from dl2.embedded.waiting import Progress, Silent

SUITE = "bookworm"
PYTHON = "3.11"  # of that suite
GLIBC = 36  # its minor version: wheels for this one and older ones run
UNUSED = ("doc", "man", "locale", "info")
# A build that is killed leaves neither mounts nor processes behind: both end with their namespaces.
CONTAINED = (
    "setpriv",
    "--pdeathsig=KILL",
    "unshare",
    "--mount",
    "--pid",
    "--mount-proc",
    "--fork",
    "--kill-child",
    "--",
)
BUILD_TOOLS = ("pip", "hatchling")
TIMEOUT = 1800.0
# Inside the build, pip itself is one of the files brought along.
OFFLINE = {
    "PIP": "python3 /context/pip.whl/pip",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/context/wheels",
}


def ensure(names: Iterable[str], progress: Progress | None = None) -> list[Path]:
    """The archives of the images `names`, in this order, each built if it is missing. Raises ClusterError.

    Two callers wait for each other. What an interrupted build left is cleared by the next one.
    """
    names = list(names)
    images.require_buildable(names)
    images.folder().mkdir(parents=True, exist_ok=True)
    archives = {name: images.archive(name) for name in names}
    with locked(images.folder() / ".lock"):
        missing = [name for name in names if not archives[name].exists()]
        if missing:
            for leftover in images.folder().glob("scratch-*"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(dir=images.folder(), prefix="scratch-") as scratch:
                builder = _Builder(images.folder(), Path(scratch), progress or Silent())
                builder.build({name: archives[name] for name in missing})
    return list(archives.values())


class _Builder:
    """Builds in `folder`, whose lock the caller holds; `scratch` is empty, and goes when the build is over."""

    def __init__(self, folder: Path, scratch: Path, progress: Progress) -> None:
        self._folder, self._scratch = folder, scratch
        self._progress = progress
        self._log = folder / "build.log"

    def build(self, archives: dict[str, Path]) -> None:
        self._log.write_text("")
        self._buildah("rm", "--all")
        task, done = "Building images", 0
        self._progress.step(f"Building the images {', '.join(archives)} (packages come from your mirrors)")
        self._progress.advance(task, done, len(archives) + 1)
        with ThreadPoolExecutor(max_workers=2) as pool:
            wheels = {
                name: pool.submit(self._fetch_wheels, name, self._scratch / name)
                for name in archives
                if images.IMAGES[name].installs_packages
            }
            self._make_base()
            for name, archive in archives.items():
                done += 1
                self._progress.advance(task, done, len(archives) + 1)
                self._make(name, archive, self._scratch / name, wheels.get(name))
        self._progress.advance(task, len(archives) + 1, len(archives) + 1)

    def _make_base(self) -> None:
        """The image that all others start from; it is kept in buildah's storage."""
        if self._buildah_out("images", "--quiet", "--filter", f"reference={_base()}"):
            return
        context = self._scratch / "base"
        images.copy_sources(images.BASE, context)
        context /= "images/base"
        packages = ",".join((context / "packages.txt").read_text().split())
        leave_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNUSED]
        self._run(
            "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={packages}", *leave_out,
            "--aptopt=Acquire::Languages none",
            '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
            SUITE, context / "rootfs.tar",
        )  # fmt: skip
        self._buildah("bud", "--isolation", "chroot", "--tag", _base(), context)

    def _fetch_wheels(self, name: str, context: Path) -> None:
        """Lays out in `context` what image `name` installs, built for the image's Python rather than ours.

        What was downloaded is kept until the requirements change.
        """
        kept = self._folder / f"wheels-{name}-{images.requirements_key(name)}"
        if not kept.exists():
            for older in self._folder.glob(f"wheels-{name}-*"):
                shutil.rmtree(older)
            self._download(name, self._scratch / kept.name).replace(kept)
        shutil.copytree(kept, context / "wheels", copy_function=os.link)
        next((context / "wheels").glob("pip-*.whl")).rename(context / "pip.whl")

    def _download(self, name: str, target: Path) -> Path:
        machine = platform.machine()
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)]
        platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
        self._run(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--dest", target, "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON),
            *(f"--platform={tag}" for tag in platforms),
            *(*images.requirements(name), *BUILD_TOOLS),
            log=self._folder / f"download-{name}.log",
        )
        return target

    def _make(self, name: str, archive: Path, context: Path, wheels: "Future[None] | None") -> None:
        """Builds image `name` and writes its archive, whole or not at all."""
        images.copy_sources(images.IMAGES[name], context)
        if wheels:
            wheels.result()
        arguments = {"BASE": _base(), **(OFFLINE if wheels else {})}
        self._buildah(
            "bud", "--isolation", "chroot", "--layers", "--file", context / "images" / name / "Dockerfile",
            *(f"--build-arg={key}={value}" for key, value in arguments.items()),
            "--tag", images.reference(name), context,
        )  # fmt: skip
        partial = archive.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        self._buildah("push", images.reference(name), f"oci-archive:{partial}:{images.reference(name)}")
        partial.replace(archive)
        images.discard_older(name)
        self._buildah("rmi", "--prune")

    def _storage(self) -> tuple[str, ...]:
        # What must not outlive a reboot does not outlive the build.
        return (
            "buildah", f"--root={self._folder / 'layers'}", f"--runroot={self._scratch / 'run'}",
            "--storage-driver=overlay",
        )  # fmt: skip

    def _buildah(self, *arguments: str | Path) -> None:
        self._run(*self._storage(), *arguments)

    def _buildah_out(self, *arguments: str) -> str:
        return run(*CONTAINED, *self._storage(), *arguments).strip()

    def _run(self, *argv: str | Path, log: Path | None = None) -> None:
        environment = {"TMPDIR": str(self._scratch), "PYTHONWARNINGS": "ignore"}
        run_logged(log or self._log, *argv, within=CONTAINED, env=environment, timeout=TIMEOUT)


def _base() -> str:
    return f"localhost/dl2/base:{images.key('base')}"
