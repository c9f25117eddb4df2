"""Which images there are, what makes one a new one, and what a real node is told, without building or running any."""

import io
import ipaddress
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
import yaml

from dl2 import compiled, resources
from dl2.embedded import cgroups, containers, images, realnode, tunables
from dl2.embedded.errors import ClusterError
from dl2.embedded.network import Fabric, NodeNetwork
from dl2.embedded.system import run, run_logged


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one image `toy`, made from the folder examples/ and the file LICENSE."""
    for name, text in {
        "images/base/Dockerfile": "FROM scratch",
        "examples/toy/run.py": "1",
        "LICENSE": "free",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(resources, "directory", lambda name: tmp_path / name)
    monkeypatch.setitem(images.IMAGES, "toy", images.Image(("examples", "LICENSE", "constraints*.txt")))
    return tmp_path


def fabric(slot: int = 3) -> Fabric:
    return Fabric(Path("/run/net"), f"dl2br{slot}", f"10.{128 + slot}.128.0/17", f"10.{128 + slot}.128.1")


def runtime() -> containers.Runtime:
    return containers.Runtime("real-0", Path("/state/nodes/real-0"), Path("/run/dl2/c/real-0"))


# -- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("examples/toy/run.py", "2"),
        ("examples/toy/more.py", ""),
        ("LICENSE", "mine"),
        ("constraints.txt", "numpy==1"),
        ("images/base/Dockerfile", "FROM debian"),
    ],
)
def test_a_change_of_anything_it_is_made_from_makes_a_new_image(checkout: Path, file: str, text: str) -> None:
    before = images.key("toy")

    (checkout / file).write_text(text)

    assert images.key("toy") != before


@pytest.mark.parametrize(
    "file", ["examples/__pycache__/run.pyc", "examples/toy/.run.py.swp", "README.md", "docs/a.md"]
)
def test_a_change_of_anything_else_does_not(checkout: Path, file: str) -> None:
    before = images.key("toy")

    (checkout / file).parent.mkdir(exist_ok=True)
    (checkout / file).write_text("new")

    assert images.key("toy") == before


def test_a_renamed_file_makes_a_new_image(checkout: Path) -> None:
    before = images.key("toy")

    (checkout / "examples/toy/run.py").rename(checkout / "examples/toy/go.py")

    assert images.key("toy") != before


def test_the_build_context_is_laid_out_as_the_repository(checkout: Path, tmp_path: Path) -> None:
    (checkout / "constraints.txt").write_text("numpy==1")
    (checkout / "examples/__pycache__").mkdir()

    images.copy_sources(images.IMAGES["toy"], tmp_path / "context")

    found = {
        str(path.relative_to(tmp_path / "context"))
        for path in (tmp_path / "context").rglob("*")
        if path.is_file()
    }
    assert found == {"examples/toy/run.py", "LICENSE", "constraints.txt"}


def test_machine_code_is_part_of_it_where_it_was_built(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DL2_CACHE", str(tmp_path / "cache"))
    image = images.Image(("LICENSE", "compiled/*"))
    monkeypatch.setitem(images.IMAGES, "toy", image)
    before = images.key("toy")
    images.copy_sources(image, tmp_path / "without")
    assert images.buildable("toy")

    module = compiled.cached() / "dl2" / "core.so"
    module.parent.mkdir(parents=True)
    module.write_text("machine code")
    images.copy_sources(image, tmp_path / "with")

    assert images.key("toy") != before
    assert [path.name for path in (tmp_path / "without").iterdir()] == ["LICENSE"]
    assert (tmp_path / "with" / "compiled" / module.relative_to(compiled.cached().parent)).is_file()


def test_without_a_source_an_image_cannot_be_built_and_the_mend_is_named(checkout: Path) -> None:
    (checkout / "LICENSE").unlink()

    assert not images.buildable("toy")
    with pytest.raises(ClusterError, match="checkout"):
        images.require_buildable(["toy"])


def test_only_the_newest_archives_of_an_image_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DL2_CACHE", str(tmp_path))
    images.folder().mkdir()
    for age, name in enumerate(("toy-new.tar", "toy-old.tar", "toy-older.tar", "other-older.tar")):
        (images.folder() / name).touch()
        os.utime(images.folder() / name, (1000 - age, 1000 - age))

    images.discard_older("toy")

    assert {path.name for path in images.folder().iterdir()} == {
        "toy-new.tar",
        "toy-old.tar",
        "other-older.tar",
    }


@pytest.mark.parametrize("name", images.IMAGES)
def test_every_image_of_this_repository_can_be_built_and_copies_its_sources_and_only_these(name: str) -> None:
    """What it would only mount is no part of what a cached layer is known by: an older layer would be taken for it."""
    assert images.buildable(name)
    dockerfile = (resources.directory("images") / name / "Dockerfile").read_text()
    copied = " ".join(re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M)).split()

    def holds(whole: str, part: str) -> bool:
        return Path(part).is_relative_to(whole)

    known = [source.replace("/*", "*") for source in images.IMAGES[name].sources]
    assert all(any(holds(whole, source) for whole in known) for source in copied)
    own = f"images/{name}"  # the Dockerfile is there, too
    assert all(source == own or any(holds(whole, source) for whole in copied) for source in known)


def test_the_trainer_pins_everything_and_a_numpy_that_mxnet_can_use() -> None:
    text = (resources.directory("images") / "mxnet-trainer" / "requirements.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]

    assert all("==" in line for line in lines)
    assert "mxnet==1.9.1" in lines
    numpy = next(line for line in lines if line.startswith("numpy==")).removeprefix("numpy==")
    assert tuple(map(int, numpy.split("."))) < (1, 24)


def test_torch_is_not_in_the_operators_image() -> None:
    assert not any(requirement.startswith("torch") for requirement in images.requirements("operator"))


def test_an_archive_tells_its_reference_and_digest(tmp_path: Path) -> None:
    manifest = {
        "digest": "sha256:1234",
        "annotations": {"org.opencontainers.image.ref.name": "localhost/dl2/toy:dev"},
    }
    index = json.dumps({"manifests": [manifest]}).encode()
    with tarfile.open(tmp_path / "toy.tar", "w") as tar:
        member = tarfile.TarInfo("index.json")
        member.size = len(index)
        tar.addfile(member, io.BytesIO(index))

    assert containers.described(tmp_path / "toy.tar") == ("localhost/dl2/toy:dev", "sha256:1234")


# -- nodes ---------------------------------------------------------------------------------------------------------


def test_addresses_of_nodes_and_pods_never_meet() -> None:
    nodes = [fabric().node(index) for index in range(16)]
    ranges = [ipaddress.ip_network(node.pods) for node in nodes]

    whole = ipaddress.ip_network(fabric().pod_cidr)
    assert all(each.subnet_of(whole) for each in ranges)  # type: ignore[arg-type]
    addresses = [node.address for node in nodes] + [fabric().gateway, fabric().dns]
    assert len(set(addresses)) == len(addresses)
    assert len({*ranges, fabric().nodes}) == len(ranges) + 1


def test_interfaces_have_names_that_the_kernel_accepts() -> None:
    assert len(fabric(slot=63).link) < 16
    assert len(fabric().node(15).namespace.name) < 16


def test_containerd_keeps_to_the_nodes_own_folders() -> None:
    network = NodeNetwork(Path("/run/net/real-0"), "10.0.0.10", "10.0.1.0/24")
    text = containers.containerd_configuration(
        runtime(), Path("/usr/lib/cni"), Path("/state/nodes/real-0/cni")
    )
    pods = json.dumps(containers.pod_network(runtime(), network))

    paths = set(re.findall(r'"(/[^"]+)"', text + pods)) - {"/usr/lib/cni"}
    assert paths
    assert all(path.startswith(("/state/nodes/real-0/", "/run/dl2/c/real-0/")) for path in paths)
    assert images.reference("pause") in text


@pytest.mark.parametrize("unified", [True, False])
def test_kubelet_accepts_the_machines_control_groups(unified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "unified", lambda: unified)

    configuration = realnode.kubelet_configuration(runtime(), fabric(), "group", Path("/ca"))

    assert configuration["failCgroupV1"] is unified
    assert configuration["cgroupRoot"] == "/group"
    assert configuration["clusterDNS"] == [fabric().dns]


def test_names_outside_of_the_cluster_do_not_exist_and_those_inside_are_never_shadowed() -> None:
    """In one zone CoreDNS would ask `template` before `kubernetes`, and find nothing at all."""
    inside, outside = realnode.corefile_text(fabric(), Path("/kubeconfig")).split("\n. {")

    assert "kubernetes cluster.local" in inside
    assert "template" not in inside
    assert "NXDOMAIN" in outside


def test_real_nodes_are_in_no_rack_of_simulated_ones() -> None:
    from dl2.embedded import kwok

    simulated = {value for index in range(1000) for value in kwok.labels("kwok", index).values()}
    for index in range(16):
        labels = realnode.node_labels(index)
        assert not simulated & {
            labels["dl2.dev/rack"],
            labels["dl2.dev/block"],
            labels["topology.kubernetes.io/zone"],
        }


def test_the_dns_may_read_what_it_serves_and_nothing_else() -> None:
    role = realnode.DNS_ACCESS[0]
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}  # type: ignore[index]
    assert "secrets" not in yaml.safe_dump(role)


# -- preflight -----------------------------------------------------------------------------------------------------


def test_without_root_a_real_node_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    with pytest.raises(ClusterError, match=r"needs root\. run it with sudo"):
        realnode.preflight()


def test_missing_programs_are_named_by_the_packages_that_bring_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(
        "shutil.which", lambda command: None if command in ("nft", "ctr", "containerd") else command
    )
    monkeypatch.setattr(containers, "cni_folder", lambda: None)

    with pytest.raises(ClusterError, match=r"install .* containerd containernetworking-plugins nftables$"):
        realnode.preflight()


def test_what_a_sandbox_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda command: command)
    monkeypatch.setattr(containers, "cni_folder", lambda: Path("/usr/lib/cni"))
    monkeypatch.setattr(
        realnode, "_try", lambda script: "Operation not permitted" if "bridge" in script else ""
    )

    with pytest.raises(ClusterError, match=r"making a bridge is refused \(Operation not permitted\)"):
        realnode.preflight()


# -- the machine ---------------------------------------------------------------------------------------------------


def test_settings_of_the_machine_come_back_when_the_last_cluster_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tmp_path / "sys"
    for name in tunables.TUNABLES:
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / name).write_text("0\n")
    monkeypatch.setattr(tunables, "runtime_root", lambda: tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()

    tunables.hold(one, settings)
    (settings / "kernel/panic").write_text("10\n")  # a kubelet has started
    tunables.hold(two, settings)
    tunables.hold(one, settings)
    tunables.release(one, str(settings))
    assert (settings / "kernel/panic").read_text() == "10\n"
    tunables.release(two, str(settings))
    assert (settings / "kernel/panic").read_text() == "0\n"
    tunables.release(two, str(settings))


def test_a_cluster_that_vanished_holds_no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = tmp_path / "sys"
    for name in tunables.TUNABLES:
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / name).write_text("0\n")
    monkeypatch.setattr(tunables, "runtime_root", lambda: tmp_path)
    (tmp_path / "here").mkdir()

    tunables.hold(tmp_path / "gone", settings)
    tunables.hold(tmp_path / "here", settings)
    (settings / "vm/overcommit_memory").write_text("1\n")
    tunables.release(tmp_path / "here", str(settings))

    assert (settings / "vm/overcommit_memory").read_text() == "0\n"


def test_control_groups_of_version_2_hand_their_controllers_down(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "cgroup.controllers").write_text("cpu memory\n")

    cgroups.make("node", tmp_path)

    assert (tmp_path / "node" / "cgroup.subtree_control").read_text() == "+memory"  # the last one written


def test_a_failed_command_is_quoted_with_its_complaint() -> None:
    with pytest.raises(ClusterError, match=r"`sh -c 'echo no >&2; exit 3'` failed: no"):
        run("sh", "-c", "echo no >&2; exit 3")


def test_a_failed_build_step_shows_its_own_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run_logged(log, "sh", "-c", "echo fine", env={}, timeout=30)

    with pytest.raises(ClusterError, match=r"`sh` failed: why not") as failure:
        run_logged(log, "sh", "-c", "echo why $X; exit 1", env={"X": "not"}, timeout=30)
    assert str(log) in str(failure.value)
    assert "fine" not in str(failure.value)
