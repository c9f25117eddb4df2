"""DL2: a Kubernetes operator that shares one training cluster between teams."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dl2")
except PackageNotFoundError:  # an uninstalled checkout
    __version__ = "0+unknown"
