"""Where a binary is taken from, what is passed over, and a build from a Go module."""

import os
import threading
from pathlib import Path

import pytest

from dl2 import resources
from dl2.embedded import binaries
from dl2.embedded.binaries import BINARIES, Binaries, cache_key, cache_root, ldflags, pinned
from dl2.embedded.build import GoModule
from dl2.embedded.errors import ClusterError

PROGRAM = "kube-apiserver"
SOURCES = ("variable", "DL2_BINARIES", "KUBEBUILDER_ASSETS", "PATH", "cache")


class Machine:
    """A machine on which kube-apiserver is where a test puts it, and there is no Go."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._monkeypatch = root, monkeypatch
        for name in ("DL2_BINARIES", "KUBEBUILDER_ASSETS", *map(binaries.variable, BINARIES)):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("DL2_CACHE", str(root / "cache-root"))
        self._tools = root / "PATH"  # `sh` for the scripts below, and nothing else: above all no Go
        self._tools.mkdir()
        (self._tools / "sh").symlink_to("/bin/sh")
        monkeypatch.setenv("PATH", str(self._tools))
        self.modules = resources.directory("testbed")

    def put(self, source: str, version: str = "v1.37.2") -> Path:
        key = cache_key(self.modules / "kubernetes", "kubernetes", "go1.26.8")
        folder = cache_root() / key if source == "cache" else self.root / source
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / PROGRAM
        program.write_text(f"#!/bin/sh\necho Kubernetes {version}\n")
        program.chmod(0o755)
        if source == "variable":
            self._monkeypatch.setenv("DL2_KUBE_APISERVER_BINARY", str(program))
        elif source not in ("PATH", "cache"):
            self._monkeypatch.setenv(source, str(folder))
        return program


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("first", range(len(SOURCES)))
def test_the_first_source_that_has_it_wins(machine: Machine, first: int) -> None:
    placed = {source: machine.put(source) for source in SOURCES[first:]}
    assert Binaries().path(PROGRAM) == placed[SOURCES[first]]


@pytest.mark.parametrize("foreign", ["KUBEBUILDER_ASSETS", "PATH"])
@pytest.mark.parametrize("version", ["v1.32.4-dispatcher", "v1.35.9", "v1.39.0", "v2.0.0", "nonsense"])
def test_what_was_installed_for_something_else_is_passed_over(
    machine: Machine, foreign: str, version: str
) -> None:
    machine.put(foreign, version)
    cached = machine.put("cache")
    assert Binaries().path(PROGRAM) == cached


@pytest.mark.parametrize("version", ["v1.36.0", "v1.37.2", "v1.38.1"])
def test_versions_within_a_minor_of_ours_fit(machine: Machine, version: str) -> None:
    found = machine.put("PATH", version)
    machine.put("cache")
    assert Binaries().path(PROGRAM) == found


@pytest.mark.parametrize("source", ["variable", "DL2_BINARIES"])
@pytest.mark.parametrize(
    ("version", "complaint"),
    [("v1.32.4", "is version 1.32, which does not fit"), ("nonsense", "does not tell its version")],
)
def test_what_a_person_named_and_does_not_fit_is_an_error(
    machine: Machine, source: str, version: str, complaint: str
) -> None:
    machine.put(source, version)
    machine.put("cache")
    with pytest.raises(ClusterError, match=complaint) as error:
        Binaries().path(PROGRAM)
    assert "1.36 or newer" in error.value.mend


@pytest.mark.parametrize("missing", ["/nowhere/kube-apiserver", "/etc/passwd", "/tmp"])
def test_a_variable_must_name_a_program(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setenv("DL2_KUBE_APISERVER_BINARY", missing)
    with pytest.raises(ClusterError, match=r"DL2_KUBE_APISERVER_BINARY=.* is not an executable file"):
        Binaries().path(PROGRAM)


def test_with_nothing_anywhere_and_no_go_the_error_says_what_to_install(machine: Machine) -> None:
    with pytest.raises(ClusterError, match="no Go on PATH") as error:
        Binaries().path(PROGRAM)
    assert "DL2_BINARIES" in error.value.mend


def test_an_unknown_binary_is_refused() -> None:
    with pytest.raises(ClusterError, match="it knows: etcd"):
        Binaries().path("dockerd")


def test_every_binary_is_a_tool_of_its_module() -> None:
    for name, binary in BINARIES.items():
        text = (resources.directory("testbed") / binary.module / "go.mod").read_text()
        assert binary.package in text, name


def test_kubernetes_is_stamped_with_the_version_its_module_pins() -> None:
    module = resources.directory("testbed") / "kubernetes"
    version = pinned(module, "k8s.io/kubernetes")
    assert f"-X k8s.io/component-base/version.gitVersion={version}" in ldflags(BINARIES["kubectl"], module)


# -- building --------------------------------------------------------------------------------------


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.marks: list[tuple[int, int]] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def failed(self) -> None:
        pass

    def advance(self, task: str, done: int, total: int) -> None:
        self.marks.append((done, total))


@pytest.fixture(scope="module")
def go_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build cache of these tests: the first of them to compile Go's runtime does so for all."""
    return tmp_path_factory.mktemp("go-build")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go_cache: Path) -> GoModule:
    """A program of two packages that import nothing but the runtime."""
    monkeypatch.setenv("GOCACHE", str(go_cache))
    monkeypatch.setenv("GOFLAGS", "")
    directory = tmp_path / "module"
    (directory / "part").mkdir(parents=True)
    (directory / "go.mod").write_text("module example.org/hello\n\ngo 1.21\n")
    (directory / "part" / "part.go").write_text('package part\n\nfunc Say() { println("v1.2.3") }\n')
    (directory / "main.go").write_text(
        'package main\n\nimport "example.org/hello/part"\n\nfunc main() { part.Say() }\n'
    )
    return GoModule(directory)


def test_a_build_makes_a_program_and_counts_what_it_compiles(
    module: GoModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOCACHE", str(tmp_path / "nothing-cached-yet"))
    progress = Recorder()
    module.build("example.org/hello", "-s -w", tmp_path / "hello", progress)
    assert os.access(tmp_path / "hello", os.X_OK)
    done = [mark for mark, _ in progress.marks]
    (total,) = {total for _, total in progress.marks}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)
    assert len(set(done)) > 2, "it moves between the ends: the runtime alone is a dozen packages"


def test_a_second_build_knows_what_go_has_cached(module: GoModule, tmp_path: Path) -> None:
    module.build("example.org/hello", "-s -w", tmp_path / "first", Recorder())
    progress = Recorder()
    module.build("example.org/hello", "-s -w", tmp_path / "second", progress)
    # Go does not cache the main package's link.
    assert max(total for _, total in progress.marks) <= 2


def test_builders_of_one_target_wait_for_each_other(module: GoModule, tmp_path: Path) -> None:
    recorders = [Recorder() for _ in range(3)]
    threads = [
        threading.Thread(
            target=module.build, args=("example.org/hello", "-s -w", tmp_path / "hello", recorder)
        )
        for recorder in recorders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=240)
    assert sum(bool(recorder.steps) for recorder in recorders) == 1, "one builds, the others find it built"
    assert (tmp_path / "hello").exists()


def test_a_failed_build_says_what_go_says_and_leaves_nothing(module: GoModule, tmp_path: Path) -> None:
    (module.directory / "part" / "part.go").write_text("package part\n\nfunc Say() { undefined() }\n")
    target = tmp_path / "bin" / "hello"
    target.parent.mkdir()
    with pytest.raises(ClusterError, match="undefined: undefined"):
        module.build("example.org/hello", "-s -w", target, Recorder())
    assert [path.name for path in target.parent.iterdir()] == [".hello.lock"]


def test_the_cache_key_follows_sources_and_go(module: GoModule) -> None:
    key = cache_key(resources.directory("testbed") / "etcd", "etcd", "go1.26.8")
    assert cache_key(resources.directory("testbed") / "etcd", "etcd", "go1.26.9") != key
    assert cache_key(resources.directory("testbed") / "kwok", "kwok", "go1.26.8") != key
