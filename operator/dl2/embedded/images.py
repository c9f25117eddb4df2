"""The images of real nodes, built on this machine without a registry: which there are, and where they are kept.

An image is named by a hash of all it is made from, so it is built once, and again after a change:
`<cache>/images/<name>-<hash>.tar`, an OCI archive for `ctr images import`.
"""

import hashlib
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dl2 import compiled, resources
from dl2.embedded.errors import ClusterError

SKIPPED = ("__pycache__", "*.pyc", "*.egg-info", ".*")
KEPT = 2  # archives of one image: this one and the one before it


@dataclass(frozen=True)
class Image:
    """One image: the parts of the repository that its Dockerfile copies, and the Python packages it installs.

    `sources` are paths from the repository's root; one with a `*` may match nothing. `compiled/*` is the decision core's
    machine code, where it was built of these sources.
    """

    sources: tuple[str, ...]
    installs_packages: bool = True


IMAGES = {
    "pause": Image(("images/pause",), installs_packages=False),
    "mxnet-trainer": Image(("images/mxnet-trainer", "runtime", "examples")),
    "operator": Image(
        (
            *("pyproject.toml", "constraints*.txt", "README.md", "LICENSE"),
            *("operator", "crds", "testbed", "images", "manifests", "examples", "runtime", "compiled/*"),
        )
    ),
}
BASE = Image(("images/base",), installs_packages=False)


def reference(name: str) -> str:
    """What pods call the image `name` (imagePullPolicy Never)."""
    return f"localhost/dl2/{name}:dev"


def folder() -> Path:
    """Where archives and the layers they share are kept."""
    return resources.cache() / "images"


def archive(name: str) -> Path:
    """Where the archive of image `name`, as its sources are now, is or will be."""
    return folder() / f"{name}-{key(name)}.tar"


def key(name: str) -> str:
    """A hash of all that image `name` is made from, but for what its requirements leave open."""
    return _hash(BASE) if name == "base" else _hash(IMAGES[name], _hash(BASE))


def buildable(name: str) -> bool:
    """Whether everything image `name` is made from is here; the operator's needs a checkout of the repository."""
    return all(located(source) for source in IMAGES[name].sources if "*" not in source)


def located(source: str) -> list[Path]:
    """The files or folders that `source`, a path from the repository's root, stands for; [] if there are none."""
    head, _, rest = source.partition("/")
    if head in get_args(resources.Resource):
        path = resources.directory(head) / rest  # type: ignore[arg-type]  # checked in the line above
    elif head == "operator":
        path = Path(__file__).parents[2] / rest
        if not (path / "dl2").is_dir() or not (path.parent / "pyproject.toml").is_file():
            return []
    elif head == "compiled":
        path = compiled.cached()
    else:
        return sorted(resources.directory("images").parent.glob(source))
    return [path] if path.exists() else []


def copy_sources(image: Image, target: Path) -> None:
    """Lays out below `target` what the Dockerfile of `image` copies, as in the repository."""
    for source in image.sources:
        for path in located(source):
            place = target / (Path(source).with_name(path.name) if "*" in source else source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, place, ignore=shutil.ignore_patterns(*SKIPPED), dirs_exist_ok=True)
            else:
                shutil.copy2(path, place)


def requirements(name: str) -> list[str]:
    """pip's arguments for all that image `name` installs."""
    if name == "mxnet-trainer":
        return ["-r", str(resources.directory("images") / name / "requirements.txt")]
    root = resources.directory("images").parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    constraints = [argument for path in located("constraints*.txt") for argument in ("-c", str(path))]
    return [*project["dependencies"], *constraints]


def requirements_key(name: str) -> str:
    """A hash of what image `name` installs."""
    digest = hashlib.sha256()
    for argument in requirements(name):
        path = Path(argument)
        digest.update((path.read_bytes() if path.is_file() else argument.encode()) + b"\0")
    return digest.hexdigest()[:16]


def discard_older(name: str) -> None:
    """Removes all but the newest archives of image `name`."""
    archives = sorted(folder().glob(f"{name}-*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in archives[KEPT:]:
        old.unlink()


def require_buildable(names: Iterable[str]) -> None:
    """Raises ClusterError for the first of `names` that cannot be built here."""
    for name in names:
        if not buildable(name):
            raise ClusterError(
                f"the sources of image {reference(name)} are not installed with dl2",
                "run dl2 from a checkout of its repository (pip install -e .)",
            )


def _hash(image: Image, *others: str) -> str:
    digest = hashlib.sha256("\0".join(others).encode())
    for source in image.sources:
        for path in located(source):
            for file in _files(path):
                name = source if file == path else f"{source}/{file.relative_to(path)}"
                digest.update(f"{name}\0{file.stat().st_size}\0{file.stat().st_mode & 0o111}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for child in sorted(path.iterdir()):
        if not any(child.match(pattern) for pattern in SKIPPED):
            yield from _files(child)
