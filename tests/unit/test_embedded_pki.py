"""Certificates: what they say, and whether TLS believes it."""

import ssl
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from dl2.embedded.pki import KeyPair, Pki, write_kubeconfig


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def subject(pair: KeyPair) -> tuple[str, list[str]]:
    """User and groups, as Kubernetes reads them from a client certificate."""
    name = x509.load_pem_x509_certificate(pair.certificate.read_bytes()).subject
    (user,) = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    groups = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(user.value), [str(group.value) for group in groups]


def handshake(authority: Path, server: KeyPair, host: str, client: KeyPair | None) -> None:
    """A TLS handshake in memory, both sides checking the other; raises ssl.SSLError where one refuses."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.certificate, server.key)
    serving.load_verify_locations(authority)
    serving.verify_mode = ssl.CERT_REQUIRED
    asking = ssl.create_default_context(cafile=str(authority))
    if client is not None:
        asking.load_cert_chain(client.certificate, client.key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        asking.wrap_bio(down, up, server_hostname=host),
        serving.wrap_bio(up, down, server_side=True),
    ]
    while sides:
        for side in list(sides):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sides.remove(side)


@pytest.mark.parametrize("host", ["kubernetes.default.svc", "localhost", "127.0.0.1", "10.128.0.1"])
def test_a_server_is_believed_under_each_of_its_names(pki: Pki, host: str) -> None:
    server = pki.server(
        "api", "kube-apiserver", ("kubernetes.default.svc", "localhost", "127.0.0.1", "10.128.0.1")
    )
    handshake(pki.ca, server, host, pki.client("admin", "admin"))


@pytest.mark.parametrize("host", ["example.org", "127.0.0.2"])
def test_a_server_is_not_believed_under_another_name(pki: Pki, host: str) -> None:
    server = pki.server("api", "kube-apiserver", ("localhost", "127.0.0.1"))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pki.ca, server, host, pki.client("admin", "admin"))


def test_a_client_of_another_authority_is_refused(pki: Pki, tmp_path: Path) -> None:
    stranger = Pki(tmp_path / "other").client("admin", "admin")
    with pytest.raises(ssl.SSLError):
        handshake(pki.ca, pki.server("api", "api", ("localhost",)), "localhost", stranger)


def test_a_client_certificate_does_not_serve(pki: Pki) -> None:
    with pytest.raises(ssl.SSLError):
        handshake(pki.ca, pki.client("admin", "localhost"), "localhost", pki.client("admin", "localhost"))


@pytest.mark.parametrize(
    ("user", "groups"),
    [
        ("dl2-admin", ["system:masters"]),
        ("system:node:real-0", ["system:nodes"]),
        ("system:kube-scheduler", []),
        ("alice", ["team-a", "team-b"]),
    ],
)
def test_a_client_is_the_user_and_groups_asked_for(pki: Pki, user: str, groups: list[str]) -> None:
    assert subject(pki.client("someone", user, groups)) == (user, groups)


def test_asking_again_keeps_what_components_have_loaded(pki: Pki) -> None:
    def files() -> dict[Path, bytes]:
        pki.client("kwok", "kwok", ("system:masters",))
        pki.server("kwok", "kwok", ("localhost",))
        pki.peer("kwok", "kwok", ("localhost",))
        pki.service_account_keys()
        return {path: path.read_bytes() for path in pki.directory.iterdir()}

    assert files() == files()


def test_a_changed_host_gets_a_new_certificate(pki: Pki) -> None:
    before = pki.server("api", "api", ("localhost",)).certificate.read_bytes()
    after = pki.server("api", "api", ("localhost", "10.0.0.1"))
    assert after.certificate.read_bytes() != before
    handshake(pki.ca, after, "10.0.0.1", pki.client("admin", "admin"))


def test_keys_are_for_their_owner_only(pki: Pki, tmp_path: Path) -> None:
    admin = pki.client("admin", "admin")
    private, _ = pki.service_account_keys()
    kubeconfig = write_kubeconfig(
        tmp_path / "kubeconfig",
        server="https://127.0.0.1:1",
        ca=pki.ca,
        user="admin",
        login=admin,
        context="c",
    )
    for secret in (pki.ca_key, admin.key, private, kubeconfig):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600, secret


def test_a_kubeconfig_names_one_server_user_and_context(pki: Pki, tmp_path: Path) -> None:
    path = write_kubeconfig(
        tmp_path / "kubeconfig",
        server="https://127.0.0.1:20000",
        ca=pki.ca,
        user="alice",
        login=pki.client("alice", "alice"),
        context="dl2-tests",
    )
    config = yaml.safe_load(path.read_text())
    assert config["current-context"] == "dl2-tests"
    assert [context["context"] for context in config["contexts"]] == [
        {"cluster": "dl2-tests", "user": "alice"}
    ]
    assert [cluster["cluster"]["server"] for cluster in config["clusters"]] == ["https://127.0.0.1:20000"]
