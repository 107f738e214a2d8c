"""TLS for both directions: contexts to the profile of PS3.15 B.12, certificates read once and checked as a whole.

The acceptor reads the files and hands their contents to its children, so that a child that starts in the middle of a
rotation serves the same certificate as the others, and none needs to be able to read the key again.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ctnode.config import Config, Target, Tls, Web
from ctnode.words import ConfigError

# RFC 9325 4.2 for TLS 1.2; the suites of TLS 1.3 are all allowed. DHE is left out: RFC 9325 asks for nothing but ECDHE.
CIPHERS: Final = "ECDHE+AESGCM"
WARN_DAYS: Final = 30
_DAY_S: Final = 86400.0
_PEM_END: Final = "-----END CERTIFICATE-----"
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17


@dataclass(frozen=True, slots=True)
class Material:
    """What the files of ``[tls]`` hold; read and checked."""

    certificate: str
    key: str
    ca: str
    require_client_certificate: bool

    def as_json(self) -> dict[str, object]:
        """Return the fields, for the way to a child."""
        return {
            "certificate": self.certificate,
            "key": self.key,
            "ca": self.ca,
            "require_client_certificate": self.require_client_certificate,
        }

    def days_left(self) -> float:
        """Return the days until the first certificate of the chain expires; negative if it has."""
        return min(map(_not_after_s, _certificates(self.certificate))) / _DAY_S - time.time() / _DAY_S

    def server_context(self) -> ssl.SSLContext:
        """Return a context for accepted connections.

        Raises
        ------
        ConfigError
            If the certificate, its key or the authorities cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _harden(context)
        # Each connection proves itself anew: no session outlives a certificate that was taken back.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        _present(context, self.certificate, self.key, "tls.certificate")
        if self.ca or self.require_client_certificate:
            _trust(context, self.ca, "tls.ca")
            context.verify_mode = ssl.CERT_REQUIRED if self.require_client_certificate else ssl.CERT_OPTIONAL
        return context


def read_material(tls: Tls) -> Material:
    """Read the files of ``[tls]``, and check that they fit together.

    Raises
    ------
    ConfigError
        If one cannot be read or they do not belong together.
    """
    certificate = _read(tls.certificate, "tls.certificate")
    material = Material(
        certificate=certificate,
        key=_read(tls.key, "tls.key") if tls.key else certificate,
        ca=_read(tls.ca, "tls.ca") if tls.ca else "",
        require_client_certificate=tls.require_client_certificate,
    )
    material.server_context()
    material.days_left()
    if tls.ca and not material.ca.strip():
        raise ConfigError(f"tls.ca: {tls.ca} is empty")
    return material


def page_context(web: Web) -> ssl.SSLContext:
    """Return a context for the connections of the page.

    Raises
    ------
    ConfigError
        If its certificate or key cannot be used.
    """
    certificate = _read(web.certificate, "web.certificate")
    key = _read(web.key, "web.key") if web.key else certificate
    return Material(certificate, key, "", require_client_certificate=False).server_context()


def certificate_files(config: Config) -> Iterator[tuple[str, str]]:
    """Yield all files of certificates and authorities beside those of ``[tls]``, by what they are called."""
    yield from ((name, file) for name, file in (
        ("tls.ca", config.tls.ca), ("web.certificate", config.web.certificate),
        ("audit.certificate", config.audit.certificate), ("audit.ca", config.audit.ca),
    ) if file)  # fmt: skip
    for target in config.targets:
        for what, file in (("certificate", target.certificate), ("ca", target.ca)):
            if file:
                yield f"{what} of target {target.name}", file
    for channel in config.notify:
        if channel.ca:
            yield f"ca of channel {channel.name}", channel.ca


def days_left(file: str, what: str) -> float:
    """Return the days until the first certificate in a file expires; negative if it has.

    Raises
    ------
    ConfigError
        If it cannot be read or holds none.
    """
    ends = [_not_after_s(one) for one in _certificates(_read(file, what))]
    if not ends:
        raise ConfigError(f"{what}: {file} holds no certificate")
    return min(ends) / _DAY_S - time.time() / _DAY_S


def check_tls(config: Config) -> None:
    """Check all files that the configuration names for TLS.

    Raises
    ------
    ConfigError
        If one cannot be used.
    """
    if config.tls.certificate:
        read_material(config.tls)
    for target in config.targets:
        if target.tls:
            client_context(target)
    if config.web.enabled and config.web.certificate:
        page_context(config.web)


def tls_fault(error: OSError) -> str:
    """Return why a handshake failed, in a few words without anything of the peer's."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, ssl.SSLError):
        return str(error.reason or type(error).__name__).lower().replace("_", " ")
    return error.strerror or str(error)


def client_context(target: Target) -> ssl.SSLContext:
    """Return a context for calling a target.

    Raises
    ------
    ConfigError
        If its files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if target.ca:
        _trust(context, _read(target.ca, "targets.ca"), "targets.ca")
    else:
        # Only https without an authority of its own: a public one signed it.
        context.load_default_certs()
    if target.certificate:
        certificate = _read(target.certificate, "targets.certificate")
        key = _read(target.key, "targets.key") if target.key else certificate
        _present(context, certificate, key, "targets.certificate")
    return context


def tls_words(connection: ssl.SSLSocket) -> str:
    """Return version, cipher suite, and until when the certificate of the other side is valid, where it showed one."""
    cipher = connection.cipher()
    words = [connection.version() or "", cipher[0] if cipher else ""]
    until = (connection.getpeercert() or {}).get("notAfter")
    if isinstance(until, str):
        day = datetime.fromtimestamp(ssl.cert_time_to_seconds(until), UTC)
        words.append(f"certificate until {day:%Y-%m-%d}")
    return " ".join(word for word in words if word)


def peer_names(connection: ssl.SSLSocket) -> frozenset[str]:
    """Return what a peer's verified certificate may be called in ``[[peers]]``; empty without one."""
    encoded = connection.getpeercert(binary_form=True)
    if not encoded:
        return frozenset()
    return frozenset(_names(connection.getpeercert() or {})) | {f"sha256:{hashlib.sha256(encoded).hexdigest()}"}


_SHORT: Final[Mapping[str, str]] = {
    "commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C",
    "localityName": "L", "stateOrProvinceName": "ST", "domainComponent": "DC", "userId": "UID",
    "serialNumber": "serialNumber",
}  # fmt: skip


def _names(certificate: Mapping[str, Any]) -> Iterator[str]:
    parts = [(_SHORT.get(kind, kind), value) for names in certificate.get("subject", ()) for kind, value in names]
    yield from (value for kind, value in parts if kind == "CN")
    # The most specific part first, as RFC 4514 writes it.
    yield ",".join(f"{kind}={value}" for kind, value in reversed(parts))
    yield from (value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS")


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


def _read(path: str, key: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: {path} is no PEM file") from None


def _present(context: ssl.SSLContext, certificate: str, key: str, name: str) -> None:
    # OpenSSL takes files only. A memory file keeps the key from ever lying on a disk.
    descriptor = os.memfd_create("ctnode-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "w", encoding="ascii", closefd=False) as file:
            file.write(certificate + "\n" + (key if key != certificate else ""))
        # A key with a passphrase gets an empty one instead of a question at a terminal that nobody reads.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    except ssl.SSLError as error:
        why = "the key is of another certificate" if error.reason == "KEY_VALUES_MISMATCH" else "no certificate and key"
        raise ConfigError(
            f"{name}: {why}", hint="PEM files: the certificate with its chain, its key unencrypted"
        ) from None
    finally:
        os.close(descriptor)


def _trust(context: ssl.SSLContext, authorities: str, name: str) -> None:
    try:
        context.load_verify_locations(cadata=authorities)
        if not context.cert_store_stats()["x509"]:
            raise ValueError
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"{name}: holds no certificate", hint="a PEM file of one or more certificates") from None


def _certificates(text: str) -> Iterator[bytes]:
    for part in text.split(_PEM_END)[:-1]:
        start = part.rfind("-----BEGIN CERTIFICATE-----")
        try:
            yield ssl.PEM_cert_to_DER_cert(part[start:].strip() + "\n" + _PEM_END)
        except ValueError:
            raise ConfigError("tls.certificate: holds no certificate") from None


def _not_after_s(encoded: bytes) -> float:
    """Return when a certificate expires (RFC 5280 4.1): the second time of its fourth field after the version."""
    try:
        kind, content, _rest = _take(encoded)
        kind, fields, _rest = _take(content)
        kind, _content, after = _take(fields)
        if kind == _VERSION:
            kind, _content, after = _take(after)
        for _field in ("signature", "issuer"):
            _kind, _content, after = _take(after)
        _kind, validity, _rest = _take(after)
        _kind, _not_before, after = _take(validity)
        kind, text, _rest = _take(after)
        return (
            datetime.strptime(text.decode("ascii"), "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ")
            .replace(tzinfo=UTC)
            .timestamp()
        )
    except (IndexError, ValueError):
        raise ConfigError("tls.certificate: a certificate cannot be read") from None


def _take(data: bytes) -> tuple[int, bytes, bytes]:
    """Return tag, content and rest of the first element of DER (X.690 8.1)."""
    kind, length, start = data[0], data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    return kind, data[start : start + length], data[start + length :]
