"""Serving a bundle as a read-only registry, straight from where it lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from airferry.bundle.verify import open_bundle, verify_bundle
from airferry.errors import UsageError
from airferry.events import Emit, Notice, Warned, silent
from airferry.far.relocate import Destination
from airferry.far.serve.offer import CheckedBlobs, read_repositories
from airferry.far.serve.server import Listener, Passwords, Service, Tls, make_app, names_offered


@dataclass(frozen=True, slots=True)
class Serving:
    """A registry that is ready: where it listens, what it offers by tag, with digests. `run` serves."""

    url: str
    root: str
    root_verified: bool
    images: tuple[tuple[str, str], ...]
    service: Service

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`."""
        self.service.run()

    def stop(self) -> None:
        """End it from another thread."""
        self.service.stop()


@contextmanager
def serve(
    bundle: Path,
    *,
    listen: str,
    root: str | None = None,
    maps: Mapping[str, str] | None = None,
    flatten: bool = False,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    htpasswd: Path | None = None,
    verify_first: bool = False,
    emit: Emit = silent,
) -> Iterator[Serving]:
    """Open a bundle as a registry on `HOST:PORT` and give it, ready to `run`. Its names are those that `load` uses.

    Every blob is read and checked before its bytes are served for the first time, with `verify_first` all of them
    before anything is. Nothing is written.

    Raises:
        UsageError: there is no bundle, the address has another form, or certificate and key do not come together.
        ConfigurationError: certificate, key or password file cannot be used.
        HostError: the port is in use.
        IntegrityError: the root is another, or the bundle is damaged.
    """
    if (tls_certificate is None) != (tls_key is None):
        raise UsageError(
            "a certificate requires its key, and a key its certificate", hint="give both `--tls-cert` and `--tls-key`"
        )
    opened = open_bundle(bundle, root=root)
    passwords = Passwords.read(htpasswd) if htpasswd else None
    blobs = CheckedBlobs(opened.store, emit=emit)
    if verify_first:
        verify_bundle(bundle, root=opened.root, emit=emit).raise_if_wrong()
        emit(Notice("verified all blobs before serving"))
    listener = Listener(listen)
    try:
        repositories = read_repositories(opened, Destination(listener.address, ""), maps=maps, flatten=flatten)
        if verify_first:
            for repository in repositories.values():
                for descriptor in repository.blobs.values():
                    blobs.mark_checked(descriptor)
        tls = Tls(tls_certificate, tls_key) if tls_certificate and tls_key else None
        service = Service(make_app(repositories, blobs, passwords=passwords), listener, tls=tls, emit=emit)
        if not listener.is_loopback and tls is None:
            emit(
                Warned(
                    f"`{listener.address}` is served without TLS: anyone on the network path can change what nodes "
                    "pull by tag",
                    hint="give `--tls-cert` and `--tls-key`, or pull by digest",
                )
            )
        yield Serving(
            url=f"{'https' if tls else 'http'}://{listener.address}",
            root=opened.root,
            root_verified=root is not None,
            images=tuple(names_offered(repositories.values(), listener.address)),
            service=service,
        )
    finally:
        listener.close()
