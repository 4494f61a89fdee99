"""Real registries on loopback for tests: Debian's docker-registry, plain, with a password, with tokens, with TLS."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from airferry.host import process

USER, PASSWORD = "ferryman", "s3cret-of-the-ferry"
STARTS_WITHIN_S = 20.0


@dataclass(slots=True)
class RegistryProcess:
    """A registry that runs: its host and port, its storage, and its log."""

    address: str
    storage: Path
    log: Path

    def sessions(self) -> list[Path]:
        """Return the upload sessions that the registry keeps; what it forgets of one it ended does not count."""
        return sorted(path.parent for path in self.storage.rglob("_uploads/*/startedat"))


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def run_registry(
    folder: Path,
    *,
    extra: dict[str, object] | None = None,
    tls: dict[str, object] | None = None,
    program: str = "docker-registry",
    host: str = "127.0.0.1",
) -> Iterator[RegistryProcess]:
    """Run a docker-registry, or another program of its kind, with its storage in a folder until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    storage = folder / "storage"
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": f"{host}:{port}", **({"tls": tls} if tls else {})},
        **(extra or {}),
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    child = process.start([program, "serve", path], log=folder / "log")
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                socket.create_connection((host.strip("[]"), port), timeout=1).close()
                break
            except OSError:
                assert child.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.02)
        yield RegistryProcess(f"{host}:{port}", storage, folder / "log")
    finally:
        process.end_process_group(child)


def basic_options(folder: Path) -> dict[str, object]:
    """Return the registry's options for a password file with the one user."""
    folder.mkdir(parents=True, exist_ok=True)
    line = process.run(["htpasswd", "-nbB", USER, PASSWORD], timeout_s=30).text.strip()
    (folder / "htpasswd").write_text(line + "\n")
    return {"auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}}


def make_authority(folder: Path) -> dict[str, str]:
    """Write a private CA (`ca.crt`) and a certificate for 127.0.0.1 under it; return the registry's `tls` options."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    # such a key is made at once, which one of RSA is not
    new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    _openssl(folder, f"req -x509 {new} -days 2 -subj /CN=private-CA -keyout ca.key -out ca.crt -sha256")
    _openssl(folder, f"req {new} -subj /CN=host -keyout host.key -out host.csr")
    _openssl(
        folder, "x509 -req -in host.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out host.crt"
    )
    return {"certificate": str(folder / "host.crt"), "key": str(folder / "host.key")}


@dataclass
class TokenServer:
    """A token server as registries want it: signs what is asked for, for the one user, for a short time."""

    folder: Path
    lifetime_s: int = 60
    asked: list[list[str]] = field(default_factory=list)
    address: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _openssl(
            self.folder,
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=issuer -keyout issuer.key -out issuer.crt -sha256",
        )
        der = _openssl(self.folder, "x509 -in issuer.crt -outform DER")
        self._chain = base64.b64encode(der).decode()

    def options(self) -> dict[str, object]:
        """Return the registry's options that send clients here."""
        return {
            "auth": {
                "token": {
                    "realm": f"http://{self.address}/token",
                    "service": "ferry",
                    "issuer": "issuer",
                    "rootcertbundle": str(self.folder / "issuer.crt"),
                }
            }
        }

    def sign(self, scopes: list[str]) -> str:
        """Return a token for the scopes."""
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {
            "iss": "issuer",
            "sub": USER,
            "aud": "ferry",
            "exp": now + self.lifetime_s,
            "nbf": now - 5,
            "iat": now,
            "jti": str(time.time_ns()),
            "access": access,
        }
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self._chain]}
        text = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = _openssl(self.folder, "dgst -sha256 -sign issuer.key", stdin=text)
        return (text + b"." + _base64url(signature)).decode()


@contextmanager
def run_token_server(folder: Path, *, lifetime_s: int = 60) -> Iterator[TokenServer]:
    """Run a token server on loopback until the block ends."""
    tokens = TokenServer(folder, lifetime_s)
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
            tokens.asked.append(scopes)
            good = self.headers.get("Authorization") == expected
            document = {"token": tokens.sign(scopes), "expires_in": tokens.lifetime_s} if good else {"errors": []}
            data = json.dumps(document).encode()
            self.send_response(200 if good else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tokens.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield tokens
    finally:
        server.shutdown()
        server.server_close()


def _openssl(folder: Path, arguments: str, *, stdin: bytes | None = None) -> bytes:
    return process.run(
        ["openssl", *arguments.split()], timeout_s=60, cwd=folder, streams=process.Streams(stdin=stdin)
    ).stdout


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
