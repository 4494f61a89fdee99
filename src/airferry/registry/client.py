"""The one client that talks to registries: oras-py's `Registry`, with requests, retries, trust and login of airferry.

Follows the OCI distribution-spec v1.1. Redirects are followed here, so that credentials never go to another host;
answers are bounded; what a registry says becomes a `RegistryError` that names method, redacted URL, status and code.
"""

from __future__ import annotations

import functools
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import requests
import urllib3

from airferry.errors import AirferryError, RegistryError, UsageError
from airferry.events import Emit, Warned, silent
from airferry.host.parsing import join_url, split_url
from airferry.oci.reference import is_loopback
from airferry.registry.auth import RegistryAuth
from airferry.registry.connections import Answer, Connections, Request, answers_tls, speaks_tls
from airferry.registry.credentials import Lookup, find_credential
from airferry.registry.failures import (
    MAX_ERROR_BYTES,
    STRANGE_HINT,
    TLS_HINT,
    LeavesTls,
    WrongScheme,
    connection_error,
    following_url,
    is_fatal,
    is_refused,
    leads_to_tls,
    proxy_for,
    redacted,
    status_error,
    wants_tls,
)
from airferry.registry.governor import Governor, RateLimit
from airferry.registry.oras_registry import OrasRegistry
from airferry.registry.retry import TRANSIENT_STATUSES, RetryPolicy, retry_after_s
from airferry.registry.tls import Remedies, make_context

# blobs are redirected once, to storage, or twice where a mirror stands in front; a page that asks to log in, in circles
MAX_REDIRECTS = 5
# twice the 4 MiB that distribution and zot allow a manifest (distribution, registry/handlers/manifests.go)
MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_TOKEN_ANSWER_BYTES = 256 * 1024
# created, accepted (an upload session, mostly), and done: what counts is in the head
TOLD_BY_HEAD = frozenset({201, 202, 204})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# a registry that restarts is back within seconds of a load that runs; one that never answered mostly is not there
REFUSALS_AT_THE_START = 4


GREETING_S = 5.0
CA_WITHOUT_TLS = "`--ca-file` is for TLS, and `--plain-http` does without"


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How registries are reached. `plain_http` None means: on loopback, where the registry speaks no TLS.

    A `ca_file` means TLS, on loopback too, and excludes `plain_http`.

    `limit_rate` is in bytes a second over all connections. `told` is what errors about TLS say to change, where that
    is not the options of a command.
    """

    plain_http: bool | None = None
    ca_file: Path | None = None
    jobs: int = 4
    limit_rate: float | None = None
    connect_timeout_s: float = 20.0
    read_timeout_s: float = 60.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    lookup: Lookup = find_credential
    told: Remedies | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: there is a CA for connections without TLS.
        """
        if self.plain_http and self.ca_file is not None:
            raise UsageError(CA_WITHOUT_TLS, hint="leave one of both out")

    @property
    def remedies(self) -> Remedies:
        """What to type where a registry speaks no TLS, or its CA is not known."""
        instead = "pass `--plain-http` instead of `--ca-file`"
        return self.told or (Remedies(plain_http=instead) if self.ca_file is not None else Remedies())


class RegistryClient(OrasRegistry):
    """A client of one registry host. Safe to use from as many threads as `options.jobs` says.

    `request` is the one door: the methods of oras-py's `Registry` come through it as well.
    """

    def __init__(
        self,
        registry: str,
        *,
        options: ClientOptions | None = None,
        emit: Emit = silent,
        insecure: bool = False,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        With `insecure` any certificate will do, and plain HTTP where no TLS is spoken; such a client reads only.

        Raises:
            ConfigurationError: a certificate that is configured for the registry cannot be read.
        """
        self.options = options or ClientOptions()
        self.insecure = insecure
        super().__init__(registry)
        self.emit = emit
        self.governor = Governor(self.options.jobs)
        self.rate = RateLimit(self.options.limit_rate, sleep=self.options.retry.sleep)
        self._scheme: str | None = None
        self._scheme_lock = threading.Lock()
        self._scheme_error: RegistryError | None = None
        self._answered = False
        self._said_unreachable = False
        self._connections = Connections(
            context=self._make_context(registry),
            # a copy within one registry holds two connections a job, one that reads and one that writes
            most=2 * self.options.jobs + 2,
            verify=not insecure,
        )
        self._login = RegistryAuth(
            registry,
            lookup=self.options.lookup,
            request_token=self._request_token,
            takes_plain=lambda host: (
                self._find_scheme(self.host) == "http" and (self.options.plain_http is True or is_loopback(host))
            ),
        )

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._connections.close()

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- requests -----------------------------------------------------------------------------------------------

    def url(self, path: str) -> str:
        """Return the URL of a path under `/v2/`, over TLS or not, which is found out once.

        Raises:
            RegistryError: plain HTTP was asked for where it must not be, or the registry cannot be reached.
        """
        return f"{self._find_scheme(self.host)}://{self.host}/v2/{path}"

    @property
    def tls(self) -> bool | None:
        """Whether the registry is reached over TLS, None as long as it was not asked for anything."""
        return None if self._scheme is None else self._scheme == "https"

    def request(
        self,
        request: Request,
        *,
        expected: Collection[int] | None = (200,),
        stream: bool = False,
        limit_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """Send a request, as often as it and the retry policy say, and return an answer with an expected status.

        With `expected` None any status that is not transient is returned. The answer's content is read and bounded,
        unless `stream`. The login goes only to the registry's own host.

        Raises:
            RegistryError: no answer, another status, or more than `limit_bytes`.
        """
        if self.insecure and request.method not in ("GET", "HEAD"):
            raise RegistryError(
                f"cannot {request.what}: nothing is sent to `{self.registry}` over a connection for pulls",
                hint="report this bug with the output of `--debug`",
            )
        if "://" not in request.url:
            request = replace(request, url=self.url(request.url))
        self._check_scheme(request)
        tries = min(request.attempts or self.options.retry.attempts, self.options.retry.attempts)
        for attempt in range(tries):
            last = attempt + 1 == tries
            try:
                response = self._follow(request) if request.anonymous else self._authorised(request)
                if response.status_code in TOLD_BY_HEAD:
                    _pass_over_content(response)
                elif not stream or response.status_code >= 400:
                    limit = limit_bytes if response.status_code < 400 else MAX_ERROR_BYTES
                    _read_content(response, limit, what=request.what, truncate=response.status_code >= 400)
            # not urllib3's own retries: they cannot rewind a body that streams, and do not know which statuses a caller
            # takes for an answer
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                if not self._answered and not is_refused(error) and self._wants_tls(request.url):
                    raise self._over_tls(wants_tls(request.method, request.url, what=request.what)) from error
                if last or is_fatal(error) or self._is_nobody(error, attempt):
                    raise self._no_answer(request.method, request.url, what=request.what, error=error) from error
                self._say_unreachable(error)
                self.options.retry.pause(attempt)
                continue
            self._answered = True
            status = response.status_code
            if status in TRANSIENT_STATUSES and (expected is None or status not in expected):
                if not last:
                    self.options.retry.pause(attempt, asked_s=retry_after_s(response.headers))
                    continue
            elif expected is None or status in expected:
                self._expect_tls_session(request, response)
                return response
            response.close()
            led_to = response.headers.get("Location") or response.url
            if leads_to_tls(request.url, led_to):
                raise self._over_tls(wants_tls(request.method, request.url, what=request.what, led_to=led_to))
            if status == 400 and not response.content and self._wants_tls(request.url):
                raise self._over_tls(wants_tls(request.method, request.url, what=request.what))
            refused = status_error(
                request.method,
                request.url,
                status=status,
                data=response.content,
                what=request.what,
                transient=status in TRANSIENT_STATUSES,
                retry_after_s=retry_after_s(response.headers),
            )
            raise self._over_tls(refused) if isinstance(refused, WrongScheme) else refused
        raise AssertionError("a retry policy allows one attempt at least")

    # -- the parts of a request ---------------------------------------------------------------------------------

    def _authorised(self, request: Request) -> Answer:
        """Send once; after a 401 once more, with what its challenge asks for."""
        own = self._is_own(request.url)
        header = self._login.authorization(request.scopes) if own else None
        # twice: a token that was kept may have been revoked, and the challenge that comes with its refusal may ask for
        # another scheme than the one that was remembered
        for _ in range(2):
            response = self._follow(request, authorization=header)
            asked = response.headers.get("WWW-Authenticate", "")
            if response.status_code != 401 or not own or not asked:
                return response
            # read to its end, so that its connection is free: the token server may be the registry itself
            _read_content(response, MAX_ERROR_BYTES, what=request.what, truncate=True)
            response.close()
            fresh = self._login.respond(asked, scopes=request.scopes, refused=header)
            if fresh is None:
                return response
            header = fresh
        return self._follow(request, authorization=header)

    def _follow(self, request: Request, *, authorization: str | None = None) -> Answer:
        """Send, and follow redirects: without the login to another host, never from TLS to plain HTTP."""
        headers = {**request.headers, "Authorization": authorization} if authorization else dict(request.headers)
        current = request.url
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(replace(request, url=current, headers=headers))
            target = response.headers.get("Location", "")
            # 301 to 303 may turn anything else into a GET without its body (RFC 9110, section 15.4)
            bodiless = request.method in ("GET", "HEAD")
            if response.status_code not in REDIRECTS or not target or not (bodiless or response.status_code >= 307):
                return response
            response.close()
            following = following_url(current, target, what=request.what)
            before, after = split_url(current), split_url(following)
            # the login is for the registry alone, and storage that finds its signature in the URL refuses another login
            # next to it (Azure/acr #217)
            if (before.scheme, before.netloc) != (after.scheme, after.netloc):
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            current = following
        url = redacted(request.url)
        raise RegistryError(
            f"cannot {request.what}: `{url}` redirects more than {MAX_REDIRECTS} times", url=url, hint=STRANGE_HINT
        )

    def _send(self, request: Request) -> Answer:
        timeout = (self.options.connect_timeout_s, request.read_timeout_s or self.options.read_timeout_s)
        return self._connections.send(request.method, request.url, request.headers, request.body, timeout)

    def _make_context(self, registry: str) -> Callable[[], ssl.SSLContext] | None:
        """Return what gives the TLS context: made now, so that errors in it show, unless none may be needed."""
        if self.options.plain_http:
            return None
        make = functools.partial(make_context, registry, ca_file=self.options.ca_file, verify=not self.insecure)
        if is_loopback(registry):
            return make
        context = make()
        return lambda: context

    def _is_own(self, url: str) -> bool:
        """Tell whether a URL is the registry's own host, where its credentials may go."""
        parts = split_url(url)
        same = parts.netloc == self.host or (parts.scheme == "https" and parts.netloc == f"{self.host}:443")
        return same and parts.scheme == self._find_scheme(self.host)

    def _check_scheme(self, request: Request) -> None:
        """Refuse plain HTTP that was not requested, as in a journal of uploads that somebody else wrote into."""
        parts = split_url(request.url)
        if parts.scheme != "http" or self.options.plain_http or self._is_own(request.url):
            return
        over_tls = self._find_scheme(self.host) == "https"
        if over_tls or not is_loopback(parts.netloc):
            url, before = redacted(request.url), "from TLS " if over_tls else ""
            raise LeavesTls(
                f"cannot {request.what}: `{self.registry}` points {before}to plain HTTP at `{url}`",
                hint=TLS_HINT,
                url=url,
            )

    def end_session(self, url: str, *, what: str, scopes: Sequence[str]) -> None:
        """End an upload session, so that the registry need not keep its bytes; what it answers does not matter.

        One whose address cannot be reached is ended on the registry's own host, as far as that knows it.
        """
        for address in (url, self._at_home(url)):
            if address is not None:
                with suppress(AirferryError):
                    # twice, as one that stays open takes the registry's disk until somebody looks
                    self.request(Request("DELETE", address, what, scopes=scopes, attempts=2), expected=None)
                    return

    def _expect_tls_session(self, request: Request, response: Answer) -> None:
        """Check that an upload goes on over TLS where it began over it; else end it where it began, and refuse it."""
        # of other answers nobody follows the `Location`, so that a finished upload does not fail for it
        location = response.headers.get("Location", "")
        if request.method not in ("GET", "POST", "PATCH") or response.status_code not in (202, 204) or not location:
            return
        try:
            following_url(response.url, location, what=request.what)
        except LeavesTls:
            response.close()
            home = self._at_home(join_url(response.url, location))
            if home is not None:
                self.end_session(home, what=request.what, scopes=request.scopes)
            raise
        except RegistryError:
            # no URL at all: whoever follows it says so
            return

    def _at_home(self, url: str) -> str | None:
        """Return the address of an upload session on the registry's own host; None where it is that, or no session."""
        parts = split_url(url)
        # a manifest or a blob that a `Location` names is never deleted
        if "/blobs/uploads/" not in parts.path or self._is_own(url):
            return None
        return parts._replace(scheme=self._find_scheme(self.host), netloc=self.host).geturl()

    def _request_token(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> Answer:
        # not by `request`, which would log in to the token server; and no redirect is followed with a password
        what = f"get a token for `{self.registry}`"
        request = Request(method, url, what, headers=headers, body=body)
        for attempt in range(self.options.retry.attempts):
            try:
                response = self._send(request)
                _read_content(response, MAX_TOKEN_ANSWER_BYTES, what=what, truncate=False)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                if attempt + 1 == self.options.retry.attempts or is_fatal(error):
                    raise self._no_answer(method, url, what=what, error=error) from error
                self.options.retry.pause(attempt)
                continue
            if response.status_code not in TRANSIENT_STATUSES or attempt + 1 == self.options.retry.attempts:
                return response
            self.options.retry.pause(attempt, asked_s=retry_after_s(response.headers))
        raise AssertionError("a retry policy allows one attempt at least")

    def _find_scheme(self, host: str) -> str:
        if self._scheme is not None:
            return self._scheme
        before = self._scheme_error
        with self._scheme_lock:
            if self._scheme is None:
                # threads that waited for a try that failed would each try as long, one after the other
                if (error := self._scheme_error) is not None and error is not before:
                    raise error.reworded(error.message) from error
                try:
                    self._scheme = self._detect_scheme(host)
                except RegistryError as failed:
                    self._scheme_error = failed
                    raise
            return self._scheme

    def _is_nobody(self, error: Exception, attempt: int) -> bool:
        """Tell whether a registry that never answered has refused often enough."""
        return not self._answered and attempt + 1 >= REFUSALS_AT_THE_START and is_refused(error)

    def _over_tls(self, error: WrongScheme) -> WrongScheme:
        """Say what to type for TLS, which depends on where plain HTTP was said."""
        return error.reworded(error.message, hint=self.options.remedies.tls)

    def _no_answer(self, method: str, url: str, *, what: str, error: Exception) -> RegistryError:
        return connection_error(method, url, what=what, error=error, remedies=self.options.remedies)

    def _wants_tls(self, url: str) -> bool:
        """Tell whether plain HTTP got no answer as the registry speaks TLS: it is greeted once more, without login."""
        if not url.startswith("http://") or not self._is_own(url) or proxy_for(url):
            return False
        return answers_tls(self.host, timeout_s=min(GREETING_S, self.options.connect_timeout_s))

    def _say_unreachable(self, error: Exception) -> None:
        """Say once, if nothing has answered yet, that this is tried again: pauses would look like work otherwise."""
        if self._answered or self._said_unreachable:
            return
        self._said_unreachable = True
        what = "refuses connections" if is_refused(error) else "does not answer"
        self.emit(Warned(f"`{self.registry}` {what}; trying again"))

    def _detect_scheme(self, host: str) -> str:
        """Return `http` where it was asked for, and on loopback where no TLS is spoken; else `https`."""
        if self.options.plain_http is not None:
            return "http" if self.options.plain_http else "https"
        if self.insecure:
            with suppress(OSError):
                return "https" if speaks_tls(host, timeout_s=self.options.connect_timeout_s) else "http"
            return "http"
        if self.options.ca_file is not None:
            return "https"
        # never http after https failed: whoever cuts the connection off would be sent the login in the clear
        if not is_loopback(host):
            return "https"
        for attempt in range(self.options.retry.attempts):
            try:
                return "https" if speaks_tls(host, timeout_s=self.options.connect_timeout_s) else "http"
            except OSError as error:
                last = attempt + 1 == self.options.retry.attempts
                if last or is_fatal(error) or self._is_nobody(error, attempt):
                    url = f"https://{host}/v2/"
                    raise self._no_answer("GET", url, what=f"reach `{host}`", error=error) from error
                self._say_unreachable(error)
                self.options.retry.pause(attempt)
        raise AssertionError("a retry policy allows one attempt at least")


def _read_content(response: Answer, limit_bytes: int, *, what: str, truncate: bool) -> None:
    """Read an answer's content, never more than the limit, and keep it as `response.content`."""
    data = bytearray()
    while block := response.raw.read(64 * 1024, decode_content=True):
        data += block
        if len(data) > limit_bytes:
            response.close()
            if not truncate:
                raise RegistryError(
                    f"cannot {what}: `{redacted(response.url)}` answers with more than {limit_bytes} bytes",
                    url=redacted(response.url),
                    status=response.status_code,
                    hint=STRANGE_HINT,
                )
            break
    response.content = bytes(data[:limit_bytes])


def _pass_over_content(response: Answer) -> None:
    """Read an answer whose head says it all: where its end is lost, what it says was done all the same.

    An upload session whose address has come would otherwise be begun again, and stay open.
    """
    try:
        _read_content(response, MAX_ERROR_BYTES, what="read an answer", truncate=True)
    except (urllib3.exceptions.HTTPError, OSError):
        response.close()


class Clients(Protocol):
    """Returns the client of a registry host, the same one each time; with `insecure` one that reads only."""

    def __call__(self, registry: str, *, insecure: bool = False) -> RegistryClient: ...


@contextmanager
def open_clients(options: ClientOptions, *, emit: Emit = silent) -> Iterator[Clients]:
    """Give the clients of all registries; they are closed at the end."""
    clients: dict[tuple[str, bool], RegistryClient] = {}
    lock = threading.Lock()

    def client(registry: str, *, insecure: bool = False) -> RegistryClient:
        key = (registry, insecure)
        with lock:
            if key not in clients:
                clients[key] = RegistryClient(registry, options=options, emit=emit, insecure=insecure)
            return clients[key]

    try:
        yield client
    finally:
        for opened in clients.values():
            opened.close()
