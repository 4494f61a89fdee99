"""Trust and client certificates of a registry: the system's CAs, a file, and `certs.d` of Podman and Docker.

Also what to do where a registry is not reached over TLS as it should be.

See containers-certs.d(5): `*.crt` are CAs, `NAME.cert` with `NAME.key` is a client certificate.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import certifi

from airferry.errors import ConfigurationError
from airferry.host import files
from airferry.oci.digest import digest_of

# of a certificate and of a list of revoked ones (openssl/x509_vfy.h)
_NOT_YET_VALID, _EXPIRED = frozenset({9, 11}), frozenset({10, 12})
# of OpenSSL's words for a handshake that failed (openssl/sslerr.h)
_NO_COMMON_VERSION = re.compile(r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|VERSION_TOO_LOW|WRONG_SSL_VERSION")
_WANTS_CERTIFICATE = re.compile(r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|BAD_CERTIFICATE|UNKNOWN_CA")


@dataclass(frozen=True, slots=True)
class Remedies:
    """What to type where a registry speaks no TLS, or its CA is not known; `HOST` stands for the registry.

    The defaults are for commands that take the options; others are configured by files.
    """

    tls: str = "leave out `--plain-http`; if the CA is private, pass it with `--ca-file FILE`"
    plain_http: str = "pass `--plain-http`"
    ca: str = "pass its CA with `--ca-file FILE`, or install it as `~/.config/containers/certs.d/HOST/ca.crt`"


BY_FILES = Remedies(
    plain_http='put `[[registry]]` with `location = "HOST"` and `insecure = true` into a file of '
    "`~/.config/containers/registries.conf.d/`",
    ca="install its CA as `~/.config/containers/certs.d/HOST/ca.crt`",
)
BY_RECEIPT = Remedies(
    tls="it spoke plain HTTP when the receipt was written: pass `--tls`, and if the CA is private `--ca-file FILE`; "
    "then run the load again for a new receipt"
)
CA_OF_RECEIPT = Remedies(
    ca="the load was given a CA for it: run this in the folder with the `site.yaml` that names it, or pass "
    "`--ca-file FILE`, or install it as `~/.config/containers/certs.d/HOST/ca.crt`"
)


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


def certificate_text(ca_file: Path) -> str:
    """Return the certificates of a file as PEM, and nothing else that may stand in it.

    Raises:
        ConfigurationError: the file cannot be read, or holds no certificate.
    """
    return "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in _certificates(ca_file))


def fingerprints(ca_file: Path) -> tuple[str, ...]:
    """Return the SHA-256 digests of the certificates in a file, as `openssl x509 -fingerprint -sha256` shows them.

    Raises:
        ConfigurationError: the file cannot be read, or holds no certificate.
    """
    return tuple(sorted({digest_of(certificate) for certificate in _certificates(ca_file)}))


def _certificates(ca_file: Path) -> list[bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load_authority(context, ca_file)
    return context.get_ca_certs(binary_form=True)


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _load_authority(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(cafile=None if path.is_dir() else path, capath=path if path.is_dir() else None)
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigurationError(
            f"cannot read the CA certificates `{path}`: {error.strerror}", hint=files.os_error_hint(error, path)
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"`{path}` cannot be read as CA certificates",
            hint="give a readable PEM file; `openssl x509 -inform DER -in FILE -out ca.pem` converts a DER one",
        ) from error


def _load_client_certificate(context: ssl.SSLContext, path: Path) -> None:
    key = path.with_suffix(".key")
    try:
        # an empty password: OpenSSL would ask for one at the terminal, in the middle of a run
        context.load_cert_chain(path, key, password=lambda: "")
    except OSError as error:
        raise ConfigurationError(
            f"client certificate `{path}` with key `{key}` cannot be read", hint="the key must exist and be unencrypted"
        ) from error


def wrong_time_hint(causes: Iterable[BaseException]) -> str | None:
    """Return what to do about a certificate that is refused for the time alone; None for other errors."""
    codes = {cause.verify_code for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)}
    if codes & _NOT_YET_VALID:
        return "set this host's clock: certificates are made before they are used"
    if codes & _EXPIRED:
        return "set this host's clock if that time is wrong; else the registry needs a new certificate"
    return None


def handshake_hint(causes: Iterable[BaseException], host: str, remedies: Remedies) -> str:
    """Return what to do where a server that was asked for TLS ends the handshake."""
    said = " ".join(str(getattr(cause, "reason", "")) for cause in causes if isinstance(cause, ssl.SSLError))
    if _NO_COMMON_VERSION.search(said):
        return f"`{host}` must offer TLS 1.2 or later: have it enabled there"
    if _WANTS_CERTIFICATE.search(said):
        folder = f"~/.config/containers/certs.d/{host}"
        return f"if `{host}` asks for a client certificate, install it as `{folder}/client.cert` and `client.key`"
    return (
        f"check the port, and that a server with TLS listens there; if `{host}` is meant to speak plain HTTP, "
        f"{remedies.plain_http.replace('HOST', host)}"
    )
