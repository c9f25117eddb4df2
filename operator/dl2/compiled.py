"""The decision core as machine code: `python -m dl2.compiled` has mypyc build it into the cache.

It is used where it was built from exactly the sources at hand, by a Python of the same kind; else, or with
DL2_INTERPRETED set, the same sources are interpreted. Both give the same plans; only the time differs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = "dl2.scheduling"
_SOURCES = Path(__file__).parent / "scheduling"
_SETUP = """\
import sys
from mypyc.build import mypycify
from setuptools import setup
setup(name="dl2-compiled", packages=[], ext_modules=mypycify(sys.argv[3:], opt_level="2"), script_args=[
    "build_ext", "--build-lib", sys.argv[1], "--build-temp", sys.argv[2]])
"""


def cached() -> Path:
    """The folder in the cache that holds, or will hold, what is built from these sources."""
    if not (root := os.environ.get("DL2_CACHE")):
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dl2")
    digest = hashlib.sha256(str(sysconfig.get_config_var("EXT_SUFFIX")).encode())
    for source in sorted(_SOURCES.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return Path(root) / "compiled" / digest.hexdigest()[:16]


def prefer() -> bool:
    """From here on the core is imported as machine code, if it was built. Returns whether it is."""
    if os.environ.get("DL2_INTERPRETED"):
        return False
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
    import_module(PACKAGE).__path__.insert(0, str(folder / PACKAGE.replace(".", "/")))
    return True


def build() -> Path:
    """Compiles what is not in the cache yet. Needs mypy, setuptools, a C compiler and Python's headers.

    Raises CalledProcessError.
    """
    target = cached()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        copy, made = Path(folder, "source"), Path(folder, "made")
        shutil.copytree(_SOURCES, copy / "dl2/scheduling", ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "dl2/__init__.py").touch()
        sources = sorted(str(s.relative_to(copy)) for s in copy.glob("dl2/scheduling/[!_]*.py"))
        script = [sys.executable, "-c", _SETUP, str(made), str(copy / "objects"), *sources]
        subprocess.run(script, cwd=copy, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
        made.rename(target)
    return target


if __name__ == "__main__":
    print(build())
