"""Files that travel with the package: CRDs, manifests, the Go modules of the embedded cluster, images, examples."""

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
