"""Certificates for a server that speaks TLS, made by the openssl command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
SERVER = "subjectAltName=DNS:localhost,IP:127.0.0.1"
USAGE = "keyUsage=critical,digitalSignature,keyCertSign,cRLSign"
"""Python 3.13 asks for it."""


@dataclass(frozen=True)
class Certificates:
    """Files in PEM form: who signs, and a certificate with its key that it signed."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make an authority, and a certificate of it for 127.0.0.1 that clients may show too."""
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    signer = ["-CA", str(made.authority), "-CAkey", str(folder / "ca.key")]
    sign("nimburion test authority", made.authority, folder / "ca.key")
    sign("localhost", made.certificate, made.key, *signer, "-addext", SERVER)
    return made


def sign(name: str, certificate: Path, key: Path, *more: str) -> None:
    """Make a key and a certificate for it; without a signer it signs itself."""
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", "req", "-x509", "-days", "2", *KEY, *files, "-subj", f"/CN={name}"]
    command += ["-addext", USAGE, *more]
    subprocess.run(command, check=True, capture_output=True)
