"""oras-py's `Registry` behind one door: whatever its methods send goes through `RegistryClient.request`.

oras-py 0.2.43 sends from three places: `do_request`, which retries nothing but 500 and sleeps up to 131 s after any
exception; the auth backends, over the session that they share with it; and `login`, over the `docker` package if that
is installed. The first is overridden here, the second finds another session and no backend, the third is refused. So
the rules hold for methods that a later oras-py adds, too: TLS, retries, where credentials go, what errors show.

airferry's own transfers call none of the stock methods: `put_upload` reads a whole blob into memory, `upload_manifest`
rewrites a manifest, which changes its digest, and one token serves every repository (oras-py #133, #187).
"""

from __future__ import annotations

import hashlib
import json as json_text
import re
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import requests
from oras.provider import Registry

from airferry.errors import IntegrityError, RegistryError, UsageError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_json, split_url
from airferry.oci.digest import digest_of
from airferry.oci.reference import DEFAULT_REGISTRY
from airferry.registry.auth import repository_scope
from airferry.registry.connections import Answer, Request
from airferry.registry.failures import STRANGE_HINT, redacted, status_error

# Docker Hub is called by a name that serves a web page (moby, registry/config.go)
DOCKER_HOST = "registry-1.docker.io"
NOT_FOUND = 404
# oras-py lets its callers set headers, which it sends along wherever a registry points
_OWNED_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "content-length", "transfer-encoding"})
_REPOSITORY = re.compile(r"/v2/(?P<name>.+)/(?:blobs|manifests|tags|referrers)/")
_DIGEST_AT_END = re.compile(r"/(?:blobs|manifests)/(?P<digest>sha256:[0-9a-f]{64})$")
_ACTIONS = {"GET": ("pull",), "HEAD": ("pull",), "DELETE": ("delete", "pull", "push")}
_LOGIN_HINT = "use `airferry login` and `airferry logout`; they keep to Podman's files"


class OrasRegistry(Registry):  # type: ignore[misc]
    """What oras-py can do at one registry, by the rules of `request`, which a subclass provides.

    Statuses that no stock method takes for an answer raise a `RegistryError`; 404 is one, as it says what is missing.
    """

    def __init__(self, registry: str) -> None:
        """Prepare oras-py for a registry; nothing is sent yet."""
        super().__init__(hostname=registry)
        self.registry = registry
        self.session = _Door(self)
        self.auth = _NoBackend()

    @abstractmethod
    def request(
        self,
        request: Request,
        *,
        expected: Collection[int] | None = (200,),
        stream: bool = False,
    ) -> Answer:
        """Send a request by the rules of this client."""

    @abstractmethod
    def url(self, path: str) -> str:
        """Return the URL of a path under `/v2/`."""

    @property
    def host(self) -> str:
        """Where the registry listens."""
        return DOCKER_HOST if self.registry == DEFAULT_REGISTRY else self.registry

    @property
    def prefix(self) -> str:
        """`https` or `http`, as `url` finds it out: stock methods begin each URL with it."""
        return split_url(self.url("")).scheme

    @prefix.setter
    def prefix(self, _stock: str) -> None:
        """Leave it: the stock constructor sets it to what it was told, and asks no server."""

    # -- the door -----------------------------------------------------------------------------------------------

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        stream: bool = False,
    ) -> requests.Response:
        """Send what a stock method asks for, as `request` does, and return what it expects.

        Raises:
            RegistryError: no answer, or one that is neither a success nor 404.
            IntegrityError: what came is not what the digest in the URL says; not for a `stream`.
            UsageError: the URL belongs to another registry, or the body is neither bytes nor JSON.
        """
        target = self._checked(url, method)
        sent = {name: text for name, text in (headers or {}).items() if name.lower() not in _OWNED_HEADERS}
        body = _encoded(data)
        if json is not None:
            body = json_text.dumps(json, allow_nan=False).encode()
            sent.setdefault("Content-Type", "application/json")
        what = f"talk to `{self.registry}`"
        request = Request(
            method,
            target,
            what,
            scopes=self._scopes(method, target),
            headers=sent,
            body=body,
            # a chunk may have arrived although its answer was lost: distribution does not compare Content-Range, so the
            # same bytes would be appended once more
            attempts=1 if method == "PATCH" else None,
        )
        answer = self.request(request, expected=None, stream=stream)
        if answer.status_code >= 400 and answer.status_code != NOT_FOUND:
            answer.close()
            raise _status_error(answer, what)
        if method == "GET" and not stream and answer.status_code == 200:
            _verify(target, digest_of(answer.content))
        return _response(answer, what, read=not stream)

    def _checked(self, url: str, method: str) -> str:
        """Return where a stock method may send. Only the bytes of an upload go where the registry points."""
        try:
            parts = split_url(url)
        except Malformed as error:
            raise RegistryError(
                f"`{self.registry}` leads to something that is not a URL ({error})", hint=STRANGE_HINT
            ) from error
        if parts.netloc == self.registry:
            return parts._replace(netloc=self.host).geturl()
        if parts.netloc != self.host and (method not in ("PUT", "PATCH") or "/manifests/" in parts.path):
            raise UsageError(
                f"this client talks to `{self.registry}`, not to `{parts.netloc.rpartition('@')[2]}`",
                hint="open another client for that registry",
            )
        return url

    def _scopes(self, method: str, url: str) -> tuple[str, ...]:
        """Return the scope that a request needs: credentials are looked up, and tokens kept, by repository."""
        found = _REPOSITORY.match(split_url(url).path)
        return (repository_scope(found["name"], *_ACTIONS.get(method, ("pull", "push"))),) if found else ()

    # -- stock methods that would leave the rules -----------------------------------------------------------------

    def login(self, *_: object, **__: object) -> NoReturn:
        """Refuse: the stock method asks Docker's daemon, or writes the password without trying it.

        Raises:
            UsageError: always.
        """
        raise UsageError("oras-py's `login` is not used", hint=_LOGIN_HINT)

    def logout(self, *_: object, **__: object) -> NoReturn:
        """Refuse: the stock method forgets what it read, and leaves the files.

        Raises:
            UsageError: always.
        """
        raise UsageError("oras-py's `logout` is not used", hint=_LOGIN_HINT)

    def download_blob(self, container: Any, digest: str, outfile: str) -> str:
        """Download a blob to a file, which appears when its digest was verified (the stock method verifies nothing).

        Raises:
            RegistryError: the registry does not give it.
            IntegrityError: it gave something else.
        """
        response = self.get_blob(self.get_container(container), digest, stream=True)
        self._check_200_response(response)
        seen = hashlib.sha256()
        target = Path(outfile)
        files.ensure_directory(target.parent)
        with response, files.atomic_file(target) as stream:
            for block in response.iter_content(64 * 1024):
                seen.update(block)
                stream.write(block)
            _verify(f"/blobs/{digest}", f"sha256:{seen.hexdigest()}")
        return outfile

    def _check_200_response(self, response: requests.Response) -> None:
        """Raise what other errors of registries are; the stock method shows the URL with all that is in it."""
        if response.status_code not in (200, 201, 202):
            response.raise_for_status()
            raise UsageError(
                f"`{self.registry}` answers {response.status_code}, which oras-py does not know", hint=STRANGE_HINT
            )


class _Door(requests.Session):
    """The session that oras-py is given. It has no connections: what is sent comes back to `do_request`."""

    def __init__(self, registry: OrasRegistry) -> None:
        super().__init__()
        self._registry = registry
        # nothing of ~/.netrc, of *_PROXY or of REQUESTS_CA_BUNDLE is added here: connections look after those
        self.trust_env = False
        self.adapters.clear()

    def send(self, request: requests.PreparedRequest, **settings: Any) -> requests.Response:
        """Hand a request over; time-outs, certificates and redirects are not the caller's to choose."""
        return self._registry.do_request(
            request.url or "",
            request.method or "GET",
            data=request.body,
            headers=dict(request.headers),
            stream=bool(settings.get("stream")),
        )


class _NoBackend:
    """Takes the place of oras-py's auth backends: `request` logs in when the registry asks for it."""

    def load_configs(self, container: object, configs: Iterable[str] | None = None) -> None:
        """Do nothing, unless a file is named: then its credentials would silently not be used.

        Raises:
            UsageError: a file is named.
        """
        if configs:
            raise UsageError(
                "credentials are not read from a file that a call names",
                hint="name it in the environment variable `REGISTRY_AUTH_FILE`",
            )


class _Response(requests.Response):
    """An answer as oras-py expects it, which shows no secret of a URL and no header of a login."""

    def __init__(self, answer: Answer, what: str) -> None:
        super().__init__()
        self._answer = answer
        self._what = what

    def json(self, **_settings: Any) -> Any:
        """Return the object that the answer holds; the stock method raises other errors, and bounds nothing.

        Raises:
            RegistryError: it holds none.
        """
        try:
            document = parse_json(self.content)
        except Malformed as error:
            raise RegistryError(
                f"cannot {self._what}: `{self.url}` answers without JSON: {error}", hint=STRANGE_HINT
            ) from error
        if not isinstance(document, dict):
            raise RegistryError(
                f"cannot {self._what}: `{self.url}` answers with JSON that is not an object", hint=STRANGE_HINT
            )
        return document

    def raise_for_status(self) -> None:
        """Raise a `RegistryError` where requests raises its own error, which shows the URL."""
        if self.status_code >= 400:
            raise _status_error(self._answer, self._what)


def _response(answer: Answer, what: str, *, read: bool) -> requests.Response:
    response = _Response(answer, what)
    response.status_code = answer.status_code
    response.url = redacted(answer.url)
    response.request = requests.Request(answer.method, response.url).prepare()
    response.headers.update(answer.headers)
    response.raw = answer.raw
    if read:
        response._content = answer.content
    return response


def _status_error(answer: Answer, what: str) -> Exception:
    return status_error(
        answer.method, answer.url, status=answer.status_code, data=answer.content, what=what, transient=False
    )


def _verify(url: str, digest: str) -> None:
    wanted = _DIGEST_AT_END.search(split_url(url).path)
    if wanted is not None and wanted["digest"] != digest:
        raise IntegrityError(
            f"`{wanted['digest']}` was requested, but `{digest}` was returned",
            digest=wanted["digest"],
            hint=STRANGE_HINT,
        )


def _encoded(data: Any) -> bytes | None:
    if data is None or isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return data.encode()
    raise UsageError("bodies are sent as bytes, so that each attempt sends the same", hint="pass `bytes`, or a `str`")
