"""Names, addresses, ports and locks of embedded clusters."""

import ipaddress
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl2.embedded import state
from dl2.embedded.errors import ClusterError
from dl2.embedded.state import Network, Registry, cluster_directory, is_locked, locked


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def folder(tmp_path: Path, name: str) -> Path:
    directory = tmp_path / name
    directory.mkdir()
    return directory


@pytest.mark.parametrize("name", ["a", "dl2", "ci-7", "x" * 40])
def test_a_name_becomes_a_folder(tmp_path: Path, name: str) -> None:
    assert cluster_directory(name, tmp_path) == tmp_path / "clusters" / name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "..", "a/b", "x" * 41, "ä"])
def test_what_is_no_name_is_refused_with_the_rule(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClusterError, match="lower-case letters"):
        cluster_directory(name, tmp_path)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DL2_STATE": "/a", "XDG_STATE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_STATE_HOME": "/b", "HOME": "/c"}, "/b/dl2"),
        ({"HOME": "/c"}, "/c/.local/state/dl2"),
    ],
)
def test_where_state_is_kept(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("DL2_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert state.state_root() == Path(expected)


@given(st.integers(0, state.SLOTS - 1), st.integers(0, state.SLOTS - 1))
def test_no_two_slots_share_an_address(one: int, other: int) -> None:
    def ranges(slot: int) -> list[ipaddress.IPv4Network]:
        return [ipaddress.IPv4Network(cidr) for cidr in (Network(slot).service_cidr, Network(slot).pod_cidr)]

    services, pods = ranges(one)
    assert not services.overlaps(pods)
    assert ipaddress.ip_address(Network(one).service_ip) in services
    assert ipaddress.ip_address(Network(one).gateway) in pods
    if one != other:
        assert not any(mine.overlaps(theirs) for mine in ranges(one) for theirs in ranges(other))


def test_two_clusters_get_slots_and_ports_of_their_own(registry: Registry, tmp_path: Path) -> None:
    one, other = folder(tmp_path, "one"), folder(tmp_path, "other")
    assert registry.slot(one) != registry.slot(other)
    ports = [registry.port(cluster, purpose) for cluster in (one, other) for purpose in ("etcd", "api")]
    assert len(set(ports)) == 4


def test_the_answer_for_a_purpose_stays_the_same(registry: Registry, tmp_path: Path) -> None:
    cluster = folder(tmp_path, "one")
    port = registry.port(cluster, "etcd")
    with socket.socket() as listener:  # even while the component itself listens there
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        assert registry.port(cluster, "etcd") == port


def test_a_port_somebody_listens_on_is_passed_over(registry: Registry, tmp_path: Path) -> None:
    one, other = folder(tmp_path, "one"), folder(tmp_path, "other")
    port = registry.port(one, "etcd")
    registry.release(one)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        assert registry.slot(other) == 0, "the slot, and so the preferred ports, were given back"
        assert registry.port(other, "etcd") != port


def test_a_cluster_removed_by_hand_frees_what_it_held(registry: Registry, tmp_path: Path) -> None:
    gone = folder(tmp_path, "gone")
    slot = registry.slot(gone)
    gone.rmdir()
    assert registry.slot(folder(tmp_path, "next")) == slot


def test_many_bookers_at_once_never_share(tmp_path: Path) -> None:
    found: list[int] = []

    def book(number: int) -> None:
        found.append(Registry(tmp_path / "registry").port(folder(tmp_path, f"c{number}"), "etcd"))

    threads = [threading.Thread(target=book, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 12


def test_a_full_machine_says_so(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SLOTS", 1)
    registry.slot(folder(tmp_path, "one"))
    with pytest.raises(ClusterError, match="dl2 cluster down"):
        registry.slot(folder(tmp_path, "two"))


def test_a_lock_holds_until_it_is_left(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        assert is_locked(path)
    assert not is_locked(path)


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    entered = threading.Event()

    def wait_for_it() -> None:
        with locked(path):
            assert path.exists(), "it must hold the file that others will find"
            entered.set()

    waiter = threading.Thread(target=wait_for_it)
    with locked(path):
        waiter.start()
        path.unlink()
    waiter.join(timeout=30)
    assert entered.is_set()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"name": 1')
    with pytest.raises(ClusterError, match=r"cluster\.json is damaged"):
        state.read(tmp_path / "cluster.json", state.ClusterOptions)
