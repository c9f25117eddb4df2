"""The cluster's certificates: one authority a folder, and the keys it signs. Made with `cryptography`."""

import base64
import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_FOR = datetime.timedelta(days=3650)  # a test cluster must not die of old age
BACKDATED = datetime.timedelta(hours=1)  # tolerates a clock that was set back


@dataclass(frozen=True)
class KeyPair:
    """PEM files of a certificate and of its private key (mode 0600)."""

    certificate: Path
    key: Path


class Pki:
    """A certificate authority in `directory`, made on first use; every method returns existing files where
    they fit.
    """

    def __init__(self, directory: Path, common_name: str = "dl2-cluster-ca") -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._authority = KeyPair(directory / "ca.crt", directory / "ca.key")
        if not self._authority.certificate.exists():
            self._make_authority(common_name)

    @property
    def ca(self) -> Path:
        """The certificate of the authority."""
        return self._authority.certificate

    @property
    def ca_key(self) -> Path:
        """The private key of the authority."""
        return self._authority.key

    def client(self, name: str, common_name: str, organizations: Sequence[str] = ()) -> KeyPair:
        """A client certificate: to Kubernetes the user `common_name` in the groups `organizations`."""
        return self._issue(f"{name}-client", common_name, organizations, (), ExtendedKeyUsageOID.CLIENT_AUTH)

    def server(
        self, name: str, common_name: str, hosts: Sequence[str], organizations: Sequence[str] = ()
    ) -> KeyPair:
        """A serving certificate for `hosts`, DNS names or IP addresses; issued anew when they change."""
        return self._issue(
            f"{name}-serving", common_name, organizations, hosts, ExtendedKeyUsageOID.SERVER_AUTH
        )

    def peer(self, name: str, common_name: str, hosts: Sequence[str]) -> KeyPair:
        """A certificate that both serves `hosts` and identifies a client, as etcd peers want it."""
        return self._issue(
            f"{name}-peer",
            common_name,
            (),
            hosts,
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        )

    def service_account_keys(self) -> tuple[Path, Path]:
        """The key that signs service-account tokens, and its public half: (sa.key, sa.pub)."""
        private, public = self.directory / "sa.key", self.directory / "sa.pub"
        if not (private.exists() and public.exists()):
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            _write_secret(private, _private_pem(key))
            public.write_bytes(
                key.public_key().public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            )
        return private, public

    def _make_authority(self, common_name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = (
            _builder(subject, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signing=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        # The certificate is written last: where it exists, its key does.
        _write_secret(self._authority.key, _private_pem(key))
        self._authority.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _issue(
        self,
        name: str,
        common_name: str,
        organizations: Sequence[str],
        hosts: Sequence[str],
        *usages: x509.ObjectIdentifier,
    ) -> KeyPair:
        pair = KeyPair(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in organizations]
            + [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        )
        names = _alternative_names(hosts)
        if _fits(pair, subject, names):
            return pair
        authority_key = serialization.load_pem_private_key(self._authority.key.read_bytes(), password=None)
        authority = x509.load_pem_x509_certificate(self._authority.certificate.read_bytes())
        assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, authority.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signing=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        _write_secret(pair.key, _private_pem(key))
        certificate = builder.sign(authority_key, hashes.SHA256())
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return pair


def write_kubeconfig(
    path: Path, *, server: str, ca: Path, user: str, login: KeyPair | str, context: str
) -> Path:
    """A kubeconfig at `path` (mode 0600) for one user of one cluster, with all certificates inside the
    file. `login`: a certificate with its key, or a token.
    """
    known_by = (
        {"token": login}
        if isinstance(login, str)
        else {"client-certificate-data": _base64(login.certificate), "client-key-data": _base64(login.key)}
    )
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "clusters": [
            {"name": context, "cluster": {"server": server, "certificate-authority-data": _base64(ca)}}
        ],
        "users": [{"name": user, "user": known_by}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": user}}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_secret(path, yaml.safe_dump(document, sort_keys=False).encode())
    return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + VALID_FOR)
    )


def _usage(signing: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signing,
        crl_sign=signing,
        key_encipherment=not signing,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName | None:
    if not hosts:
        return None
    return x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _fits(pair: KeyPair, subject: x509.Name, names: x509.SubjectAlternativeName | None) -> bool:
    """Whether the files exist and already say what is asked for."""
    if not (pair.certificate.exists() and pair.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    try:
        existing = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        existing = None
    return certificate.subject == subject and existing == names


def _private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_secret(path: Path, content: bytes) -> None:
    """Writes a file that only its owner may read, from its first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
