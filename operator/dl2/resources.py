"""Files that travel with the package (CRDs, manifests, Go modules, images, examples), and the cache of what is built."""

import os
from pathlib import Path
from typing import Literal

Resource = Literal["crds", "manifests", "testbed", "images", "examples", "runtime"]

_PACKAGED = Path(__file__).parent / "_data"
_CHECKOUT = Path(__file__).parents[2]


def directory(name: Resource) -> Path:
    """The folder `name`, packaged in an installed wheel, else in the checkout this module runs from.

    Raises FileNotFoundError when neither has it.
    """
    for root in (_PACKAGED, _CHECKOUT):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"{name}/ is neither packaged with dl2 nor beside it; reinstall dl2 or run from a checkout"
    )


def cache() -> Path:
    """Where what is built once is filed by its content: DL2_CACHE, else XDG_CACHE_HOME/dl2, else ~/.cache/dl2."""
    if configured := os.environ.get("DL2_CACHE"):
        return Path(configured).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "dl2"
