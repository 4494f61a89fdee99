"""Serving a bundle as a read-only registry, straight from where it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from airferry.bundle.verify import Bundle, open_bundle
from airferry.errors import UsageError
from airferry.events import Emit, Warned, silent
from airferry.far.relocate import Destination
from airferry.far.serve.complaints import Complaints
from airferry.far.serve.current import CurrentBundle, on_hangup
from airferry.far.serve.logins import Logins, Passwords
from airferry.far.serve.server import Listener, Service, Tls, make_app, names_offered


@dataclass(frozen=True, slots=True)
class Serving:
    """A registry that is ready: where it listens, what it offers by tag, with digests. `run` serves."""

    url: str
    root: str
    root_verified: bool
    images: tuple[tuple[str, str], ...]
    service: Service
    reload: Callable[[], None]

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`. SIGHUP calls `reload`: what lies there then is served."""
        with on_hangup(self.reload):
            self.service.run()

    def stop(self) -> None:
        """End it from another thread."""
        self.service.stop()


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a bundle is served. `maps` and `flatten` change names, as those of a `Destination` do.

    Certificate and key turn TLS on; `htpasswd` is a file of users who may pull. With `verify_first`, every blob is
    verified before the first is served.
    """

    maps: Mapping[str, str] = field(default_factory=dict)
    flatten: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    htpasswd: Path | None = None
    verify_first: bool = False

    def tls(self) -> Tls | None:
        """Return the certificate and its key, None where there are none.

        Raises:
            UsageError: one is given without the other.
        """
        if self.tls_certificate is None and self.tls_key is None:
            return None
        if self.tls_certificate is None or self.tls_key is None:
            raise UsageError(
                "a certificate requires its key, and a key its certificate",
                hint="give both `--tls-cert` and `--tls-key`",
            )
        return Tls(self.tls_certificate, self.tls_key)


@contextmanager
def serve(
    bundle: Path,
    *,
    listen: str,
    root: str | None = None,
    options: ServeOptions | None = None,
    emit: Emit = silent,
) -> Iterator[Serving]:
    """Open a bundle as a registry on `HOST:PORT` and give it, ready to `run`. Its names are those that `load` uses.

    Every blob is read and checked before its bytes are served for the first time. Nothing is written.

    Raises:
        UsageError: there is no bundle, the address has another form, or certificate and key do not come together.
        ConfigurationError: certificate, key or password file cannot be used.
        HostError: the port is in use.
        IntegrityError: the root is another, or the bundle is damaged.
    """
    options = options or ServeOptions()
    tls = options.tls()

    def reopen() -> Bundle:
        opened = open_bundle(bundle, root=root)
        opened.warn_beside(bundle, emit)
        return opened

    current = CurrentBundle(reopen, verify_first=options.verify_first, emit=emit)
    complaints = Complaints(emit)
    logins = Logins(Passwords.read(options.htpasswd), complain=complaints.complain) if options.htpasswd else None
    listener = Listener(listen)
    try:
        named = Destination(listener.address, "", options.maps, options.flatten)
        current.offer(named)
        app = make_app(current.repositories, current.blobs, logins=logins, replaced=current.replaced, emit=emit)
        service = Service(app, listener, tls=tls, complaints=complaints)
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
            root=current.bundle.root,
            root_verified=root is not None,
            images=tuple(names_offered(current.repositories.values(), listener.address)),
            service=service,
            reload=current.reload,
        )
    finally:
        if logins is not None:
            logins.close()
        listener.close()
