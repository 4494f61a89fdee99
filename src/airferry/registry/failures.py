"""What went wrong with a registry, as `RegistryError`: method, redacted URL, status, and the registry's own code.

Nothing that a registry says is trusted: its text is bounded and stripped of what a terminal would obey.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from requests.utils import get_environ_proxies, select_proxy

from airferry.errors import RegistryError
from airferry.host import clock
from airferry.host.parsing import Malformed, join_url, parse_json, split_url, url_host
from airferry.oci.reference import is_loopback
from airferry.registry.tls import Remedies, handshake_hint, wrong_time_hint
from airferry.wording import printable

MAX_ERROR_BYTES = 64 * 1024
MAX_SHOWN_CHARACTERS = 300

_PROXY_LOGIN = "`http://USER:PASSWORD@HOST:PORT`, with special characters percent-encoded"

# for requests that read; a hint says "rerun" only where a rerun without any change can end otherwise
_HINTS = {
    401: "log in with `airferry login` or `podman login`",
    403: "the logged-in user has no permission for this; request it, or log in as another user",
    407: f"put the proxy's login into `HTTP_PROXY`: {_PROXY_LOGIN}, or name the registry's host in `NO_PROXY`",
    404: "check the name; some registries also answer this way without permission",
    412: "a policy of the registry forbids it, as for images with known vulnerabilities; its administrator can lift it",
    413: "the registry or a proxy in front of it limits the size of requests",
    429: "the registry limits requests; rerun later, or with `-j 1`",
    507: "the registry's disk is full: free space there, then rerun",
}
# for requests that write
_WRITE_HINTS = {
    400: "the registry does not take this as it is, and would refuse it again: its log says why",
    405: "the registry is read-only, as a mirror or a pull-through cache is: load into one that takes pushes",
    406: "the registry does not take this media type, and would refuse it again",
    409: "the registry is at odds with another change: if another client pushes the same, rerun when it is done",
    412: "a policy of the registry forbids it; its administrator can lift it",
    413: "the registry or a proxy in front of it limits the size of requests, and smaller parts are not possible: "
    "raise the limit (nginx: `client_max_body_size 0`)",
    501: "the registry does not know this kind of request: check that it is a registry for OCI images",
}
_KIND_HINT = (
    "the registry does not take manifests of this type, and would refuse them again: allow the type there; artifacts "
    "can be left out with `--artifacts skip`"
)
_MEDIA_TYPE_HINT = (
    "the registry does not take this media type, and would refuse it again: zot takes Docker's with "
    '`http.compat: ["docker2s2"]`; Docker twins can be left out with `docker_twin: false` in the plan'
)
_TAG_HINT = (
    "the tag must not move there, and a rerun would be refused too: load under another name (`--map FROM=TO`), or have "
    "the registry's rule for immutable tags lifted"
)
_LOST_HINT = (
    "the registry has lost a part that it took before: check whether it runs garbage collection during the load, or "
    "whether two loads run at once, then rerun"
)
SESSION_HINT = (
    "the registry lost the upload: check whether it restarted, or runs as several without common storage; rerun"
)
DAMAGE_HINT = "the bytes were damaged on their way: check the network and proxies, then rerun"
_SHAPE_HINT = (
    "the registry does not take this repository name, by its depth, length or letters: shorten it with `--flatten`, or "
    "change it with `--map FROM=TO`"
)
_FULL_HINT = (
    "the registry has no room left for this: free space on its disk (garbage collection) or have the quota of the "
    "project raised, then rerun; finished uploads are not repeated"
)
_WRITES = frozenset({"PUT", "POST", "PATCH", "DELETE"})
_IMMUTABLE = re.compile(r"immutable|overwrit|does not allow updating|already exists|locked", re.IGNORECASE)
# Harbor says the first two as 403 and 412, distribution the others as 500: `Err:28` is how Go prints ENOSPC
_FULL = re.compile(
    r"\bquota\b|exceed the configured upper limit|no space left|\bErr:28\b|insufficient storage|disk is full",
    re.IGNORECASE,
)
# what makes names is asked for something that must be there first
_NO_PLACE = re.compile(
    r"(create|unknown|no such|does not exist|not found).*(organi[sz]ation|namespace|project|repository)"
)
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]*)")

_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")
NO_REGISTRY_HINT = "check whether a web page or login form answers instead of the registry"
STRANGE_HINT = (
    "this does not look like an OCI registry, or a proxy changes its answers: check the address and the registry's log"
)
STALE_CACHE_HINT = (
    "if garbage collection ran while the registry did, restart the registry, as its cache still names what is gone, "
    "then rerun"
)
TLS_HINT = (
    "the registry does not know of the TLS proxy in front of it: have the proxy send `X-Forwarded-Proto: https`, or "
    "give the registry its external URL with `https://`; storage that it redirects to must speak TLS too"
)

# what Go, nginx, Apache and Tomcat answer to plain HTTP where they speak TLS, each with status 400
_WANTS_TLS = re.compile(
    rb"HTTP request to an HTTPS server|plain HTTP request was sent to HTTPS port|speaking plain HTTP to an SSL-enabled|"
    rb"combination of host and port requires TLS"
)
_BAD_URLS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidProxyURL,
    urllib3.exceptions.LocationValueError,
)


class TransientRegistryError(RegistryError):
    """A failure that was retried as often as the policy allows, and may be gone later."""


class Unauthorized(RegistryError):
    """The registry, or its token server, wants another login (401)."""


class NotFound(RegistryError):
    """The registry does not have it, or says so to those who may not see it (404)."""


class TooLarge(RegistryError):
    """The registry, or a proxy in front of it, does not take a request of this size (413)."""


_LEAVES: dict[int, type[RegistryError]] = {401: Unauthorized, 404: NotFound, 413: TooLarge}


class LeavesTls(RegistryError):
    """What a registry answered over TLS leads to plain HTTP."""


class WrongScheme(RegistryError):
    """A registry speaks TLS where plain HTTP was sent, or the other way round."""


class NoReferrers(RegistryError):
    """The registry keeps no list of what refers to something, or another thing is in its place."""


class LostSession(TransientRegistryError):
    """The registry does not know an upload session any more, or not as it was left."""


def redacted(url: str) -> str:
    """Return a URL without user, query and fragment: they may hold secrets."""
    try:
        parts = split_url(url)
    except Malformed:
        return "(not a URL)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def following_url(answered: str, location: str, *, what: str) -> str:
    """Return where a registry's answer leads: from the URL that was answered, by its `Location` or `Link`.

    From TLS it never leads to plain HTTP, not even on this machine, where other users may listen.

    Raises:
        RegistryError: that is not a URL, or (`LeavesTls`) plain HTTP after TLS.
    """
    url = redacted(answered)
    try:
        following = join_url(answered, location)
    except Malformed as error:
        raise RegistryError(
            f"cannot {what}: `{url}` leads to something that is not a URL ({error})", url=url, hint=STRANGE_HINT
        ) from error
    before, after = split_url(answered), split_url(following)
    if after.scheme not in ("http", "https") or not after.hostname:
        raise RegistryError(
            f"cannot {what}: `{url}` leads to `{redacted(following)}`, which is not HTTP", url=url, hint=STRANGE_HINT
        )
    if before.scheme == "https" and after.scheme == "http":
        raise LeavesTls(
            f"cannot {what}: `{url}` leads from TLS to plain HTTP at `{redacted(following)}`", hint=TLS_HINT, url=url
        )
    return following


def one_line(text: str) -> str:
    """Return foreign text as one bounded line without control characters."""
    return printable(" ".join(text[: MAX_SHOWN_CHARACTERS * 4].split()), most=MAX_SHOWN_CHARACTERS)


def registry_codes(data: bytes) -> tuple[str, str]:
    """Return the first error code and message of an error document, empty where it is none."""
    try:
        first = parse_json(data)["errors"][0]
        return one_line(str(first.get("code") or "")), one_line(str(first.get("message") or ""))
    except (Malformed, KeyError, IndexError, TypeError, AttributeError):
        return "", ""


def status_error(
    method: str,
    url: str,
    *,
    status: int,
    data: bytes,
    what: str,
    transient: bool,
    retry_after_s: float | None = None,
) -> RegistryError:
    """Return the error for an answer with a status that was not expected."""
    if status == 400 and url.startswith("http://") and _WANTS_TLS.search(data):
        return wants_tls(method, url, what=what)
    code, text = registry_codes(data)
    said = f" `{code}`" if code else ""
    said += f": {text}" if text else ""
    kind = TransientRegistryError if transient else _LEAVES.get(status, RegistryError)
    return kind(
        f"cannot {what}: `{method} {redacted(url)}` was answered with {status}{said}",
        hint=_status_hint(method, redacted(url), status=status, code=code, text=text),
        method=method,
        url=redacted(url),
        status=status,
        code=code or None,
        retry_after_s=retry_after_s,
    )


def leads_to_tls(url: str, led_to: str) -> bool:
    """Tell whether a URL leads to the same over TLS, as what listens on port 80 does (storage has other paths)."""
    try:
        before, after = split_url(url), split_url(led_to)
    except Malformed:
        return False
    schemes = (before.scheme, after.scheme)
    return schemes == ("http", "https") and (before.hostname, before.path) == (after.hostname, after.path)


def wants_tls(method: str, url: str, *, what: str, led_to: str = "") -> WrongScheme:
    """Return the error for plain HTTP that was sent to a registry that speaks TLS, or whose port 80 led there."""
    trouble = f"leads from plain HTTP to TLS at `{redacted(led_to)}`" if led_to else "speaks TLS, not plain HTTP"
    return WrongScheme(
        f"cannot {what}: `{url_host(url)}` {trouble}",
        hint=Remedies().tls,
        method=method,
        url=redacted(url),
    )


def rerun_helps(error: RegistryError) -> bool:
    """Tell whether the same request may succeed later without any change by the operator."""
    return isinstance(error, TransientRegistryError) or (error.status or 0) >= 500


def _status_hint(method: str, url: str, *, status: int, code: str, text: str) -> str:
    """Return what to do about an answer."""
    hint = _HINTS.get(status)
    if method in _WRITES and _FULL.search(f"{code} {text}"):
        return _FULL_HINT
    if method in _WRITES:
        hint = _refused_write(url, status=status, code=code, text=text) or _WRITE_HINTS.get(status) or hint
    if hint is None and status >= 500:
        hint = "the registry failed; check its log, then rerun"
    told = hint or "check the address, and what the registry's log says of this request"
    return told.replace("`airferry login`", f"`airferry login {url_host(url)}`")


def _refused_write(url: str, *, status: int, code: str, text: str) -> str | None:
    """Return what to do about a write that was refused for a reason that the registry tells; None where it does not."""
    found = _PATH.search(url)
    name, kind, reference = found.group("name", "kind", "reference") if found else ("", "", "")
    if status >= 500 or status in (408, 425, 429):
        return None
    if kind == "manifests" and ":" not in reference and (status in (409, 412) or _IMMUTABLE.search(f"{code} {text}")):
        # Harbor 412, Quay 409, ECR 400, Nexus 400, GitLab and ACR 403 and 405, each with words of its own
        return _TAG_HINT
    if code in ("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"):
        return _LOST_HINT
    if code in ("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"):
        return SESSION_HINT
    if code in ("DIGEST_INVALID", "SIZE_INVALID"):
        return DAMAGE_HINT
    if code == "NAME_INVALID":
        return _SHAPE_HINT
    if status == 415:
        return _MEDIA_TYPE_HINT
    if kind == "manifests" and status in (400, 406, 422):
        return _KIND_HINT
    if name and status == 404 and not (code or text):
        proxy = f"{NO_REGISTRY_HINT}, as behind a proxy that lets only known clients through"
        return f"{proxy}; {_place_hint(name, status=404)}"
    if name and status in (401, 403, 404):
        return _place_hint(name, status=status)
    return None


def token_hint(registry: str, text: str) -> str:
    """Return what to do where a token server gives no token: log in, and what its answer says besides."""
    login = f"log in with `airferry login {registry}`"
    if _NO_PLACE.search(text.lower()):
        return f"{login}, and have an administrator create what `--to` names first: {one_line(text)}"
    return login


def _place_hint(name: str, *, status: int) -> str:
    """Return what to do where a repository cannot be written to: registries answer alike if it has to be made first."""
    first = name.partition("/")[0]
    login = (
        "log in with `airferry login` as a user who may push there"
        if status == 401
        else (f"the logged-in user may not push to `{name}`" if status == 403 else f"`{name}` does not exist there")
    )
    return (
        f"{login}; Harbor, ECR and others also answer this way until the project `{first}` or the repository `{name}` "
        "was created: create it, or choose another prefix with `--to`"
    )


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL, None where there is none."""
    if is_loopback(split_url(url).netloc):
        return None
    return select_proxy(url, get_environ_proxies(url, None))


def connection_error(
    method: str, url: str, *, what: str, error: Exception, remedies: Remedies | None = None
) -> RegistryError:
    """Return the error for a request that got no answer."""
    remedies = remedies or Remedies()
    host = url_host(url)
    fields: dict[str, Any] = {"method": method, "url": redacted(url)}
    proxy = proxy_for(url)
    if proxy is not None and (told := _proxy_trouble(error, proxy, url)) is not None:
        trouble, hint = told
        kind = RegistryError if is_fatal(error) else TransientRegistryError
        return kind(f"cannot {what}: {trouble}", hint=hint, **fields)
    if (wrong_time := wrong_time_hint(_causes(error))) is not None:
        return RegistryError(
            f"cannot {what}: the certificate of `{host}` is not valid at {clock.rfc3339(clock.now_s())}, the time of "
            f"this host ({_tls_reason(error)})",
            hint=wrong_time,
            **fields,
        )
    if is_untrusted(error):
        return RegistryError(
            f"cannot {what}: the certificate of `{host}` is not trusted ({_tls_reason(error)})",
            hint=remedies.ca.replace("HOST", host),
            **fields,
        )
    if speaks_no_tls(error):
        return WrongScheme(
            f"cannot {what}: `{host}` speaks plain HTTP, not TLS",
            hint=f"if intended, {remedies.plain_http.replace('HOST', host)}; passwords are then sent unencrypted",
            **fields,
        )
    if _is_tls(error):
        return RegistryError(
            f"cannot {what}: no TLS connection to `{host}` ({_tls_reason(error)})",
            hint=handshake_hint(_causes(error), host, remedies),
            **fields,
        )
    if _has_cause(error, urllib3.exceptions.NameResolutionError):
        return RegistryError(
            f"cannot {what}: the name of `{host}` cannot be resolved",
            hint=f"check the spelling; `getent hosts {split_url(url).hostname}` tells what this host knows",
            **fields,
        )
    if _is_late(error):
        return TransientRegistryError(
            f"cannot {what}: `{host}` did not answer in time (`{method} {redacted(url)}`)",
            hint="check the network, then rerun; finished transfers are not repeated",
            **fields,
        )
    if is_refused(error):
        return TransientRegistryError(
            f"cannot {what}: `{host}` refuses connections",
            hint="check that the registry is running, and its port",
            **fields,
        )
    through = f" through the proxy `{_shown_proxy(proxy)}`" if proxy is not None else ""
    check = f"check the network{' and the proxy' if proxy is not None else ''}, then rerun"
    return TransientRegistryError(
        f"cannot {what}: the connection to `{host}`{through} broke (`{method} {redacted(url)}`)",
        hint=f"{check}; finished transfers are not repeated",
        **fields,
    )


def is_fatal(error: Exception) -> bool:
    """Tell whether a request that got no answer would get none the next time either: names and TLS."""
    if _is_tls(error) or _has_cause(error, urllib3.exceptions.NameResolutionError) or isinstance(error, _BAD_URLS):
        return True
    # a proxy's 4xx: it wants a login, or does not connect to this host
    return 400 <= (_tunnel_status(error) or 0) < 500


def _tunnel_status(error: Exception) -> int | None:
    """Return what a proxy answered where it was to connect; None where it was not asked, or did so."""
    found = (_TUNNEL.search(str(cause)) for cause in _causes(error) if isinstance(cause, OSError))
    return next((int(match[1]) for match in found if match is not None), None)


def _shown_proxy(proxy: str) -> str:
    return redacted(proxy if "://" in proxy else f"http://{proxy}")


def _proxy_trouble(error: Exception, proxy: str, url: str) -> tuple[str, str] | None:
    """Return what is wrong with the proxy on the way to a host, and what to do; None where that is not known."""
    shown = _shown_proxy(proxy)
    host, variable = url_host(url), f"{split_url(url).scheme.upper()}_PROXY"
    around = f"or name `{host}` in `NO_PROXY` if it can be reached without"
    if isinstance(error, requests.exceptions.InvalidSchema) and proxy.lower().startswith("socks"):
        return (
            f"`{shown}` is a SOCKS proxy, for which the package `PySocks` is missing",
            f"install it next to airferry (`pip install PySocks`), use an HTTP proxy (`{variable}`), {around}",
        )
    if isinstance(error, _BAD_URLS):
        return (
            "the proxy that is set for this host is not a URL",
            f"set `{variable}`, or `ALL_PROXY`, to `http://HOST:PORT`, {around}",
        )
    if _has_cause(error, urllib3.exceptions.NameResolutionError):
        return f"the name of the proxy `{shown}` cannot be resolved", f"check `{variable}`, {around}"
    status = _tunnel_status(error)
    if status == 407:
        refused = "refuses the login that it was given" if "@" in proxy else "wants a login"
        return (
            f"the proxy `{shown}` {refused} (407)",
            f"put it into `{variable}`: {_PROXY_LOGIN}, {around}",
        )
    if status is not None and status < 500:
        return f"the proxy `{shown}` refuses to connect to `{host}` ({status})", f"have it allow that host, {around}"
    if any("proxy appears to only use HTTP and not HTTPS" in str(cause) for cause in _causes(error)):
        plain = shown.replace("https://", "http://", 1)
        return f"the proxy `{shown}` speaks plain HTTP, not TLS", f"set `{variable}={plain}`, {around}"
    if isinstance(error, requests.exceptions.ProxyError | urllib3.exceptions.ProxyError):
        how = f"cannot connect to `{host}` ({status})" if status is not None else "cannot be reached"
        return f"the proxy `{shown}` {how}", f"check `{variable}`, {around}"
    return None


def is_refused(error: Exception) -> bool:
    """Tell whether nothing listens at the address."""
    return _has_cause(error, ConnectionRefusedError)


def _is_late(error: Exception) -> bool:
    # urllib3 counts connections that could not be made among the late ones
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return False
    late = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)
    return isinstance(error, late) or _has_cause(error, TimeoutError)


def _is_tls(error: Exception) -> bool:
    return isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError)


def is_untrusted(error: Exception) -> bool:
    """Tell whether a certificate could not be verified."""
    return _has_cause(error, ssl.SSLCertVerificationError)


def speaks_no_tls(error: Exception) -> bool:
    """Tell whether the other side answered a TLS greeting with something that is not TLS."""
    reasons = {str(getattr(cause, "reason", "")) for cause in _causes(error) if isinstance(cause, ssl.SSLError)}
    return bool(reasons & {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"})


def _tls_reason(error: Exception) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return one_line(cause.verify_message)
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return one_line(str(cause.reason).replace("_", " ").lower())
    return "no reason given"


def _has_cause(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it was raised from: requests and urllib3 wrap what sockets raise several times."""
    todo: list[BaseException] = [error]
    seen: set[int] = set()
    while todo:
        current = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        linked = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        todo.extend(item for item in linked if isinstance(item, BaseException))
