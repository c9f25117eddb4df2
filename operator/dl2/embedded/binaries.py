"""Where the cluster's binaries come from: a variable, PATH, the cache, or a build of unmodified upstream
sources.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dl2 import resources
from dl2.embedded.build import GoModule, go_installed
from dl2.embedded.errors import ClusterError
from dl2.embedded.waiting import Progress, Silent

Version = tuple[int, int]


@dataclass(frozen=True)
class Binary:
    """One program of the cluster: how it is built, and which versions of it the cluster is known to run
    with.
    """

    module: str  # folder below testbed/
    package: str
    ask: tuple[str, ...]  # prints the version
    oldest: Version
    below: Version | None = None  # the first version known not to fit

    def fits(self, version: Version) -> bool:
        return self.oldest <= version and (self.below is None or version < self.below)

    def range(self) -> str:
        below = f" and below {_show(self.below)}" if self.below else ""
        return f"{_show(self.oldest)} or newer{below}"


def _kubernetes(name: str, *ask: str) -> Binary:
    # One minor of skew at most: the components and their flags are tried together at the version of testbed/.
    return Binary("kubernetes", f"k8s.io/kubernetes/cmd/{name}", ask or ("--version",), (1, 36), (1, 39))


BINARIES: dict[str, Binary] = {
    "etcd": Binary("etcd", "go.etcd.io/etcd/server/v3", ("--version",), (3, 5), (4, 0)),
    "kube-apiserver": _kubernetes("kube-apiserver"),
    "kube-scheduler": _kubernetes("kube-scheduler"),
    "kube-controller-manager": _kubernetes("kube-controller-manager"),
    "kubectl": _kubernetes("kubectl", "version", "--client"),
    "kwok": Binary("kwok", "sigs.k8s.io/kwok/cmd/kwok", ("--version",), (0, 7)),
    "kubelet": _kubernetes("kubelet"),
    "kube-proxy": _kubernetes("kube-proxy"),
    "coredns": Binary("coredns", "github.com/coredns/coredns", ("-version",), (1, 11)),
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl", "kwok")


def variable(name: str) -> str:
    """The variable that names the binary `name`: DL2_KUBE_APISERVER_BINARY for kube-apiserver."""
    return f"DL2_{name.upper().replace('-', '_')}_BINARY"


class Binaries:
    """Finds each binary once, in this order:

    1. its own variable (`DL2_KUBE_APISERVER_BINARY`), then the folders DL2_BINARIES and KUBEBUILDER_ASSETS;
    2. PATH; 3. the cache; 4. a build from testbed/ into the cache.

    What DL2_* variables name must fit, or ClusterError says so; what KUBEBUILDER_ASSETS and PATH hold is
    passed over where its version does not fit, since both are often set for something else.
    """

    def __init__(self, progress: Progress | None = None, modules: Path | None = None) -> None:
        self._progress = progress or Silent()
        self._modules = modules
        self._found: dict[str, Path] = {}

    def path(self, name: str) -> Path:
        """The binary `name` of BINARIES, built where need be."""
        if name not in BINARIES:
            raise ClusterError(f"the cluster knows no binary {name!r}", "it knows: " + ", ".join(BINARIES))
        if name not in self._found:
            self._found[name] = self._given(name) or self._on_path(name) or self._cached_or_built(name)
        return self._found[name]

    def _given(self, name: str) -> Path | None:
        if named := os.environ.get(variable(name)):
            return _demand(name, Path(named).expanduser().absolute(), f"{variable(name)}={named}")
        for source in ("DL2_BINARIES", "KUBEBUILDER_ASSETS"):
            folder = os.environ.get(source)
            candidate = Path(folder or "").expanduser().absolute() / name
            if not folder or not candidate.exists():
                continue
            if source == "DL2_BINARIES":
                return _demand(name, candidate, f"{source}={folder}")
            if _suits(name, candidate):
                return candidate
        return None

    def _on_path(self, name: str) -> Path | None:
        found = shutil.which(name)
        return Path(found) if found and _suits(name, Path(found)) else None

    def _cached_or_built(self, name: str) -> Path:
        binary = BINARIES[name]
        module = GoModule((self._modules or resources.directory("testbed")) / binary.module)
        if not go_installed():
            # Without Go nothing can be built, but what any Go built from these very sources is as good.
            matches = sorted(cache_root().glob(f"{cache_key(module.directory, binary.module, '*')}/{name}"))
            if matches:
                return matches[-1]
        target = cache_root() / cache_key(module.directory, binary.module, module.version()) / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            module.build(binary.package, ldflags(binary, module.directory), target, self._progress)
        return target


def cache_root() -> Path:
    """The folder of built binaries."""
    return resources.cache() / "bin"


def cache_key(module: Path, name: str, go_version: str) -> str:
    """Names what a build depends on: the pinned sources and flags, the Go release, the target."""
    digest = hashlib.sha256()
    for file in ("go.mod", "go.sum"):
        digest.update((module / file).read_bytes() + b"\0")
    digest.update(
        "\n".join(f"{b.package} {ldflags(b, module)}" for b in BINARIES.values() if b.module == name).encode()
    )
    system, machine = platform.system().lower(), platform.machine()
    return f"{name}-{digest.hexdigest()[:16]}-{go_version}-{system}-{machine}"


def ldflags(binary: Binary, module: Path) -> str:
    """Strips debugging tables, and stamps Kubernetes' version where its own build scripts would."""
    flags = ["-s", "-w"]
    if binary.module == "kubernetes":
        version = pinned(module, "k8s.io/kubernetes")
        major, minor, _ = version.removeprefix("v").split(".", 2)
        stamps = {
            "k8s.io/component-base/version.gitVersion": version,
            "k8s.io/client-go/pkg/version.gitVersion": version,
            "k8s.io/component-base/version.gitMajor": major,
            "k8s.io/component-base/version.gitMinor": minor,
        }
        flags += [f"-X {name}={value}" for name, value in stamps.items()]
    return " ".join(flags)


def pinned(module: Path, dependency: str) -> str:
    """The version of `dependency` that the go.mod in `module` requires."""
    match = re.search(
        rf"^\s*(?:require\s+)?{re.escape(dependency)}\s+(v\S+)", (module / "go.mod").read_text(), re.M
    )
    if match is None:
        raise ClusterError(
            f"{module / 'go.mod'} does not require {dependency}", "restore it from the repository"
        )
    return match[1]


@cache
def version_of(path: Path, ask: tuple[str, ...]) -> Version | None:
    """The major and minor version that the program at `path` prints; None where it prints none."""
    try:
        result = subprocess.run([path, *ask], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"v?(\d+)\.(\d+)\.\d+", result.stdout + result.stderr)
    return (int(match[1]), int(match[2])) if match else None


def _suits(name: str, path: Path) -> bool:
    version = version_of(path, BINARIES[name].ask)
    return version is not None and BINARIES[name].fits(version)


def _demand(name: str, path: Path, source: str) -> Path:
    """`path`, which a person named by `source`: to pass it over silently would be worse than to fail."""
    binary = BINARIES[name]
    mend = f"name a {name} {binary.range()}, or unset the variable"
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ClusterError(f"{source}: {path} is not an executable file", mend)
    version = version_of(path, binary.ask)
    if version is None:
        raise ClusterError(f"{source}: {path} does not tell its version as {name} does", mend)
    if not binary.fits(version):
        raise ClusterError(f"{source}: {path} is version {_show(version)}, which does not fit", mend)
    return path


def _show(version: Version) -> str:
    return ".".join(map(str, version))
