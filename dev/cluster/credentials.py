"""Certificates and kubeconfig files for a control plane."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
from typing import TYPE_CHECKING

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

if TYPE_CHECKING:
    from pathlib import Path

LIFE = dt.timedelta(days=365)
SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Authority:
    """A certificate authority in a folder: ca.crt, and NAME.crt and NAME.key of each issued certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("tuning-dev-ca")
        authority = x509.BasicConstraints(ca=True, path_length=None)
        builder = self._unsigned(self._name, self._key.public_key()).add_extension(authority, critical=True)
        self._save("ca", self._key, builder.sign(self._key, hashes.SHA256()))

    def issue(self, name: str, common_name: str, group: str = "", addresses: tuple[str, ...] = ()) -> None:
        """Issue a client certificate, or with addresses a server certificate for them and SERVER_NAMES."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._unsigned(_name(common_name, group), key.public_key())
        if addresses:
            alternatives: list[x509.GeneralName] = [x509.DNSName(server) for server in SERVER_NAMES]
            alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        self._save(name, key, builder.sign(self._key, hashes.SHA256()))

    def _unsigned(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + LIFE)
        )

    def _save(self, name: str, key: Key, certificate: x509.Certificate) -> None:
        write_key(self._folder / f"{name}.key", key)
        (self._folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def write_key(path: Path, key: Key) -> None:
    """Write a private key as PEM, readable only by its owner."""
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def service_account_keys(folder: Path) -> None:
    """Write sa.key and sa.pub: RSA keys, so that tokens are signed with RS256 as in most clusters."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    write_key(folder / "sa.key", key)
    (folder / "sa.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def kubeconfig(server: str, name: str, certificates: Path, user: str) -> str:
    """Return a self-contained kubeconfig: certificates and keys are embedded."""

    def encoded(file: str) -> str:
        return base64.b64encode((certificates / file).read_bytes()).decode()

    cluster = {"server": server, "certificate-authority-data": encoded("ca.crt")}
    credentials = {
        "client-certificate-data": encoded(f"{user}.crt"),
        "client-key-data": encoded(f"{user}.key"),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    }
    return yaml.safe_dump(config, sort_keys=False)


def server_of(path: Path) -> str:
    """Return the API server's address from a kubeconfig's first cluster."""
    server: str = yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"]
    return server


def _name(common_name: str, group: str = "") -> x509.Name:
    parts = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, group)] if group else []
    return x509.Name([*parts, x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
