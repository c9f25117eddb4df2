"""The decision core as machine code: `dl2 compile` has mypyc build it into the cache.

The program `dl2` uses it where it was built from exactly the sources at hand, by a Python of the same kind; else, or
with DL2_INTERPRETED set, the same sources are interpreted. Both decide the same; only the time differs, and that
machine code refuses values of other types than those written down.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from dl2 import resources

_HERE = Path(__file__).parent
MODULES = "scheduling/[!_]*.py"
_SETUP = """\
import sys
from mypyc.build import mypycify
from setuptools import setup
library, objects, *files = sys.argv[1:]
modules = mypycify(["--config-file=", *files], opt_level="2", target_dir=objects)
setup(name="dl2", packages=[], ext_modules=modules,
      script_args=["build_ext", "--build-lib", library, "--build-temp", objects])
"""


def sources() -> list[Path]:
    return sorted(_HERE.glob(MODULES))


def cached() -> Path:
    """The folder in the cache that holds, or will hold, what is built from these sources."""
    digest = hashlib.sha256(str(sysconfig.get_config_var("EXT_SUFFIX")).encode())
    for source in sources():
        digest.update(f"{source.relative_to(_HERE)}\0".encode() + source.read_bytes())
    return resources.cache() / "compiled" / digest.hexdigest()[:16]


class _Finder(MetaPathFinder):
    """Finds modules by name in `files`, before anybody else looks for them."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return spec_from_file_location(fullname, file) if file else None


def in_use() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def prefer() -> bool:
    """From here on the core is imported as machine code, if it was built and nothing of it is imported yet.

    Returns whether it is.
    """
    if os.environ.get("DL2_INTERPRETED") or any(name.startswith("dl2.scheduling.") for name in sys.modules):
        return in_use()
    try:
        folder = cached()
        (shared,) = folder.glob("*__mypyc.*")
        name = shared.name.partition(".")[0]
        spec = spec_from_file_location(name, shared)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except (OSError, RuntimeError, ValueError, ImportError):  # not built, or no home to look in
        return False
    files = {_name(file.relative_to(folder)): file for file in folder.glob("dl2/*/*")}
    sys.meta_path.insert(0, _Finder(files))
    return True


def _name(file: Path) -> str:
    return ".".join((*file.parent.parts, file.name.partition(".")[0]))


def build() -> Path:
    """Compiles what is not in the cache yet. Needs mypy, setuptools, a C compiler and Python's headers.

    Raises CalledProcessError.
    """
    target = cached()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made, objects = Path(folder, "made"), Path(folder, "objects")
        files = [str(source.relative_to(_HERE.parent)) for source in sources()]
        environment = {**os.environ, "DL2_INTERPRETED": "1", "MYPY_CACHE_DIR": str(Path(folder, "mypy"))}
        command = [sys.executable, "-c", _SETUP, str(made), str(objects), *files]
        subprocess.run(command, cwd=_HERE.parent, env=environment, check=True, stdout=subprocess.DEVNULL)
        made.rename(target)
    return target
