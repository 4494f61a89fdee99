"""A read-only OCI registry straight from a bundle: distribution-spec v1.1, pull, tags list, referrers.

With the modules it is made of, the only importer of the ASGI stack. Nothing is written into the bundle, nothing is
copied out of it, and no blob is served that was not checked.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from weakref import WeakValueDictionary

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from airferry.errors import ConfigurationError, HostError, IntegrityError, UsageError
from airferry.events import Emit, silent
from airferry.far.serve.admission import AdmittingSocket, ClientLimits, raised_descriptor_limit
from airferry.far.serve.answers import (
    VERSION_HEADER,
    ReadOnly,
    answer_condition,
    content_headers,
    error_answer,
    json_answer,
    range_not_satisfiable,
    selected_range,
)
from airferry.far.serve.blob import BlobAnswer
from airferry.far.serve.complaints import Complaints
from airferry.far.serve.logins import Guard, Logins
from airferry.far.serve.offer import CheckedBlob, CheckedBlobs, Repository
from airferry.far.serve.protocol import BACKLOG, QuietServer
from airferry.host.canonical import canonical_json
from airferry.host.parsing import parse_count
from airferry.host.threads import usable_cores
from airferry.oci.digest import is_digest
from airferry.oci.documents import IMAGE_INDEX, Descriptor, Index

MAX_PAGE = 1000
GRACE_S = 5
# blobs that are read and checked at a time; anyio has 40 threads, which everything else shares
MOST_CHECKS = 8

Handler = Callable[[Request, Repository], Awaitable[Response]]


def make_app(
    repositories: Mapping[str, Repository],
    blobs: CheckedBlobs,
    *,
    logins: Logins | None = None,
    replaced: Callable[[], str] = str,
    emit: Emit = silent,
) -> ASGIApp:
    """Return the registry as an ASGI application. `replaced` says why blobs are missing that are not damaged."""

    def route(path: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            repository = repositories.get(request.path_params["name"])
            if repository is None:
                return error_answer(404, "NAME_UNKNOWN", "no such repository in the bundle")
            return await handler(request, repository)

        return Route(path, endpoint, methods=["GET"])

    async def base(_request: Request) -> Response:
        return json_answer({})

    async def catalogue(request: Request) -> Response:
        return _page(request, "repositories", list(repositories), {})

    app = Starlette(
        routes=[
            Route("/v2/", base, methods=["GET"]),
            Route("/v2", base, methods=["GET"]),
            Route("/v2/_catalog", catalogue, methods=["GET"]),
            route("/v2/{name:path}/manifests/{reference}", _manifest),
            route("/v2/{name:path}/blobs/{digest}", _Blobs(blobs, emit, replaced).answer),
            route("/v2/{name:path}/tags/list", _tags),
            route("/v2/{name:path}/referrers/{digest}", _referrers),
        ],
        exception_handlers={HTTPException: _no_such_endpoint},
    )
    app.router.redirect_slashes = False
    return ReadOnly(Guard(app, logins) if logins is not None else app)


async def _manifest(request: Request, repository: Repository) -> Response:
    stored = repository.find(request.path_params["reference"])
    if stored is None:
        return error_answer(404, "MANIFEST_UNKNOWN", "no such manifest in the repository")
    digest = stored.descriptor.digest
    return answer_condition(request.headers, digest) or Response(
        stored.data, headers=content_headers(digest), media_type=stored.descriptor.media_type
    )


class _Blobs:
    """Answers blobs. Checks run on a few threads: those who wait for one hold none, and delay no blob that is known."""

    def __init__(self, blobs: CheckedBlobs, emit: Emit, replaced: Callable[[], str]) -> None:
        self._blobs = blobs
        self._replaced = replaced
        self._emit = emit
        self._checks = asyncio.Semaphore(min(MOST_CHECKS, max(1, usable_cores() - 1)))
        # a lock is there as long as a request holds or awaits it
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def answer(self, request: Request, repository: Repository) -> Response:
        digest = request.path_params["digest"]
        descriptor = repository.blobs.get(digest)
        if descriptor is None:
            code = "BLOB_UNKNOWN" if is_digest(digest) else "DIGEST_INVALID"
            return error_answer(404, code, "no such blob in the repository")
        if (decided := answer_condition(request.headers, digest)) is not None:
            return decided
        try:
            blob = await self._open(descriptor)
        except IntegrityError as error:
            if why := await anyio.to_thread.run_sync(self._replaced):
                return error_answer(503, "UNAVAILABLE", why)
            return error_answer(500, "BLOB_DAMAGED", error.message)
        except HostError as error:
            return error_answer(503, "UNAVAILABLE", error.message)
        return self._send(request, blob)

    def _send(self, request: Request, blob: CheckedBlob) -> Response:
        digest, size = blob.descriptor.digest, blob.descriptor.size
        headers = {**content_headers(digest), "Accept-Ranges": "bytes"}
        part = selected_range(request.method, request.headers, digest, size)
        if part is not None and not part:
            blob.close()
            return range_not_satisfiable(size)
        if request.method == "HEAD":
            blob.close()
            headers["Content-Length"] = str(size)
            return Response(headers=headers, media_type="application/octet-stream")
        if part is None:
            return BlobAnswer(blob, range(size), status=200, headers=headers, emit=self._emit)
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        return BlobAnswer(blob, part, status=206, headers=headers, emit=self._emit)

    async def _open(self, descriptor: Descriptor) -> CheckedBlob:
        if (known := await anyio.to_thread.run_sync(self._blobs.open_known, descriptor)) is not None:
            return known
        turn = self._turns.setdefault(descriptor.digest, asyncio.Lock())
        async with turn, self._checks:
            return await anyio.to_thread.run_sync(self._blobs.open, descriptor)


async def _tags(request: Request, repository: Repository) -> Response:
    return _page(request, "tags", sorted(repository.tags), {"name": repository.name})


async def _referrers(request: Request, repository: Repository) -> Response:
    digest = request.path_params["digest"]
    if not is_digest(digest):
        return error_answer(400, "DIGEST_INVALID", "not a digest, expected `sha256:` and 64 hex digits")
    entries = repository.referrers.get(digest, [])
    headers = {}
    if wanted := request.query_params.get("artifactType"):
        entries = [entry for entry in entries if entry.artifact_type == wanted]
        headers["OCI-Filters-Applied"] = "artifactType"
    index = Index(schema_version=2, media_type=IMAGE_INDEX, manifests=entries)
    return Response(canonical_json(index), headers={**headers, **VERSION_HEADER}, media_type=IMAGE_INDEX)


def _page(request: Request, key: str, names: Sequence[str], document: Mapping[str, Any]) -> Response:
    """Answer a list, narrowed by `n` and `last`, with a link to the rest: distribution-spec, *Listing Tags*."""
    asked = request.query_params.get("n", "")
    if asked and not (asked.isascii() and asked.isdecimal() and len(asked) <= 9):
        return error_answer(400, "PAGINATION_NUMBER_INVALID", "`n` is not a number")
    last = request.query_params.get("last")
    rest = [name for name in names if last is None or name > last]
    count = min(int(asked), MAX_PAGE) if asked else len(rest)
    shown = rest[:count]
    headers = {}
    if shown and len(rest) > len(shown):
        headers["Link"] = f'<{request.url.path}?n={count}&last={quote(shown[-1])}>; rel="next"'
    return json_answer({**document, key: shown}, headers)


async def _no_such_endpoint(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return error_answer(status, "NAME_UNKNOWN" if status == 404 else "UNKNOWN", "no such endpoint")


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate with its chain, and its key: paths of PEM files."""

    certificate: Path
    key: Path


class Listener:
    """A socket that is bound already, so that the caller knows the address before anything is served."""

    def __init__(self, address: str) -> None:
        """Bind `HOST:PORT`; port 0 takes a free one.

        Raises:
            UsageError: the address has another form.
            HostError: the port is in use, or not ours to use.
        """
        host, colon, port = address.rpartition(":")
        if not colon or (number := parse_count(port)) is None or number > 65535:
            raise UsageError(
                f"`{address}` is not an address, expected `HOST:PORT`", hint="for example `127.0.0.1:5000`"
            )
        bare = host.strip("[]")
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        try:
            self.socket = AdmittingSocket(socket.create_server((bare, number), family=family, backlog=BACKLOG))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise HostError(
                f"cannot listen on `{address}`: {reason}",
                hint="choose another with `--listen HOST:PORT`; port 0 takes a free one",
            ) from error
        bound = self.socket.getsockname()
        self.is_loopback = bare in ("127.0.0.1", "::1", "localhost")
        # an address that stands for all of a host's is none that another host can pull from
        name = socket.gethostname() if bare in ("", "0.0.0.0", "::") else bare
        self.address = f"[{name}]:{bound[1]}" if ":" in name else f"{name}:{bound[1]}"

    def close(self) -> None:
        """Give the port back. Idempotent."""
        self.socket.close()


class Service:
    """A registry on a listener. `run` serves until the process is told to end, or `stop` is called."""

    def __init__(
        self,
        app: ASGIApp,
        listener: Listener,
        *,
        tls: Tls | None = None,
        limits: ClientLimits | None = None,
        complaints: Complaints | None = None,
    ) -> None:
        """Prepare the server.

        Raises:
            ConfigurationError: certificate and key cannot be read or do not belong together.
        """
        self._listener = listener
        config = uvicorn.Config(
            app,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            assert tls is not None
            raise ConfigurationError(
                f"certificate `{tls.certificate}` and key `{tls.key}` cannot be used: {error.strerror or error}",
                hint="both are PEM files, the certificate with its chain, the key without a password",
            ) from error
        self._complaints = complaints or Complaints(silent)
        self._server = QuietServer(config, limits or ClientLimits(), self._complaints.complain)

    def run(self) -> None:
        """Serve; returns after SIGINT, SIGTERM or `stop`, when what is under way has ended or 5 s have passed."""
        # a signal before the event loop runs leaves uvicorn's coroutine behind, which Python then writes to stderr
        warnings.filterwarnings("ignore", "coroutine 'Server.serve' was never awaited", RuntimeWarning)
        wanted = self._server.limits
        try:
            with self._complaints.listening(), raised_descriptor_limit(wanted.connections) as descriptors:
                self._server.limits = wanted.within(descriptors)
                if self._server.limits != wanted:
                    self._complaints.complain(
                        f"serves at most {self._server.limits.connections} connections at a time, as this process may "
                        f"open only {descriptors} files: `ulimit -n` sets that"
                    )
                self._server.run(sockets=[self._listener.socket])
        finally:
            self._listener.close()

    def stop(self) -> None:
        """End the service from another thread."""
        self._server.should_exit = True


def names_offered(repositories: Iterable[Repository], address: str) -> list[tuple[str, str]]:
    """Return what can be pulled from an address by tag, with digests, sorted."""
    return sorted(
        (f"{address}/{repository.name}:{tag}", digest)
        for repository in repositories
        for tag, digest in repository.tags.items()
    )
