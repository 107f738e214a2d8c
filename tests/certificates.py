"""A small hospital CA for tests, made by the ``openssl`` program."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_CONFIG = """
[ca]
default_ca = here
[here]
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
default_md = sha256
policy = any
unique_subject = no
[any]
organizationName = optional
commonName = supplied
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[node]
basicConstraints = CA:false
subjectAltName = {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True)
class Issued:
    certificate: Path
    key: Path


class Authority:
    """Issues certificates below one folder."""

    def __init__(self, folder: Path, name: str = "hospital") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed (Debian package openssl)")
        self.folder = folder / name
        self.folder.mkdir()
        (self.folder / "index.txt").touch()
        (self.folder / "serial").write_text("01\n")
        self.certificate = self.folder / "ca.pem"
        self._key = self.folder / "ca.key"
        self._openssl(
            "req", "-x509", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-keyout", self._key, "-out", self.certificate, "-days", "30", "-subj", f"/CN={name} CA",
            "-config", self._config(""), "-extensions", "authority",
        )  # fmt: skip

    def issue(self, name: str, *, days: float = 60, kind: str = "ec") -> Issued:
        """Return a certificate that is valid for so many days from now on; negative: it has expired."""
        issued = Issued(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request = self.folder / f"{name}.csr"
        new_key = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"] if kind == "ec" else ["rsa:2048"]
        config = self._config(f"DNS:{name}.example, DNS:localhost, IP:127.0.0.1")
        self._openssl(
            "req", "-new", "-nodes", "-newkey", *new_key, "-keyout", issued.key, "-out", request,
            "-subj", f"/O=Hospital/CN={name}", "-config", config,
        )  # fmt: skip
        now = datetime.now(UTC)
        end = now + timedelta(days=days)
        start = min(now, end) - timedelta(days=1)
        self._openssl(
            "ca", "-batch", "-notext", "-config", config, "-in", request, "-out", issued.certificate,
            "-cert", self.certificate, "-keyfile", self._key, "-extensions", "node",
            "-startdate", f"{start:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}",
        )  # fmt: skip
        return issued

    def _config(self, names: str) -> Path:
        file = self.folder / "openssl.cnf"
        file.write_text(_CONFIG.format(folder=self.folder, names=names or "DNS:none"))
        return file

    def _openssl(self, *arguments: object) -> None:
        result = subprocess.run(
            ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
        )
        assert result.returncode == 0, result.stderr
