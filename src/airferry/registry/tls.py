"""Trust and client certificates of a registry: the system's CAs, a file, and `certs.d` of Podman and Docker.

See containers-certs.d(5): `*.crt` are CAs, `NAME.cert` with `NAME.key` is a client certificate.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from pathlib import Path

import certifi

from airferry.errors import ConfigurationError
from airferry.host import files
from airferry.oci.digest import digest_of


def certificate_folders(registry: str) -> list[Path]:
    """Return the folders that may hold certificates for a registry host, existing or not."""
    home = files.home_directory()
    config = os.environ.get("XDG_CONFIG_HOME")
    own = Path(config) if config else home / ".config" if home is not None else None
    roots = (
        *([own / "containers" / "certs.d"] if own is not None else []),
        Path("/etc/containers/certs.d"),
        Path("/etc/docker/certs.d"),
    )
    return [root / registry for root in roots]


def make_context(registry: str, *, ca_file: Path | None = None, verify: bool = True) -> ssl.SSLContext:
    """Return the TLS context for a registry: what the system and certifi trust, and what is configured for it.

    Without `verify` every certificate is accepted.

    Raises:
        ConfigurationError: a certificate or key cannot be read.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # the system's authorities are missing in a slim container, certifi's lack what a site added: both
    authorities: list[Path] = [Path(certifi.where())]
    authorities += [Path(os.environ[name]) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name)]
    authorities += [ca_file] if ca_file is not None else []
    for folder in certificate_folders(registry):
        entries = _entries(folder)
        authorities += [path for path in entries if path.suffix == ".crt"]
        for path in (entry for entry in entries if entry.suffix == ".cert"):
            _load_client_certificate(context, path)
    for path in authorities:
        _load_authority(context, path)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def fingerprints(ca_file: Path) -> tuple[str, ...]:
    """Return the SHA-256 digests of the certificates in a file, as `openssl x509 -fingerprint -sha256` shows them.

    Raises:
        ConfigurationError: the file cannot be read, or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load_authority(context, ca_file)
    return tuple(sorted({digest_of(certificate) for certificate in context.get_ca_certs(binary_form=True)}))


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _load_authority(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(cafile=None if path.is_dir() else path, capath=path if path.is_dir() else None)
    except OSError as error:
        raise ConfigurationError(f"`{path}` cannot be read as CA certificates") from error


def _load_client_certificate(context: ssl.SSLContext, path: Path) -> None:
    key = path.with_suffix(".key")
    try:
        # an empty password: OpenSSL would ask for one at the terminal, in the middle of a run
        context.load_cert_chain(path, key, password=lambda: "")
    except OSError as error:
        raise ConfigurationError(
            f"client certificate `{path}` with key `{key}` cannot be read", hint="the key must exist and be unencrypted"
        ) from error
