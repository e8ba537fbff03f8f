"""What tests of sources share: a certificate, and an API server and a service account."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.sources.clusters import NODE, Account, Pauses


@dataclass(frozen=True, slots=True)
class Certificate:
    """For 127.0.0.1 and the node's name; its own authority."""

    file: Path
    key: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    directory = tmp_path_factory.mktemp("tls")
    made = Certificate(directory / "tls.crt", directory / "tls.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", f"subjectAltName=IP:127.0.0.1,DNS:{NODE}"),
            *("-out", made.file, "-keyout", made.key),
        ],
        check=True,
        capture_output=True,
    )
    return made


@pytest.fixture
def account(tmp_path: Path, certificate: Certificate) -> Account:
    """A mounted service account with the token "first"."""
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    (directory / "ca.crt").write_bytes(certificate.file.read_bytes())
    made = Account(directory)
    made.rotate("first")
    return made


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()
