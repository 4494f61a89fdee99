"""Authentication at one registry: the challenge, basic credentials, and bearer tokens by scope and expiry.

Follows RFC 7235 and the token flow of distribution ("Token Authentication Specification"). A credential goes to the
registry that it is kept for, and to the token server that this registry names, over TLS unless on loopback or where
plain HTTP was asked for. Nothing of it shows in errors.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from airferry.errors import RegistryError
from airferry.host import clock
from airferry.host.parsing import Malformed, parse_json, split_url
from airferry.registry.connections import Answer
from airferry.registry.credentials import Credential, Lookup
from airferry.registry.failures import STRANGE_HINT, Unauthorized, redacted, registry_codes, token_hint

MAX_CHALLENGE_CHARACTERS = 8192
MAX_TOKEN_CHARACTERS = 64 * 1024
# what the specification gives a token that does not say how long it lives
DEFAULT_LIFETIME_S = 60.0
LONGEST_LIFETIME_S = 24 * 3600.0
CLIENT_ID = "airferry"

# a comma parts challenges as well as their parameters (RFC 9110, section 11.6.1): a scheme is a word that another one
# with `=` follows, or that stands alone
_SCHEME = re.compile(
    r"(?:^|,)\s*(?P<scheme>[A-Za-z][A-Za-z0-9-]*)\s+(?=[A-Za-z0-9_-]+\s*=)|^\s*(?P<bare>[A-Za-z]+)\s*$"
)
# a word is looked at from its start only: 8 KiB of one letter took a second
_PARAMETER = re.compile(r'(?<![A-Za-z0-9_-])([A-Za-z0-9_-]++)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN = re.compile(r"[\x21-\x7e]+")

TokenRequest = Callable[[str, str, dict[str, str], bytes | None], Answer]


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for: a scheme, `basic` or `bearer`, and its parameters."""

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """Return a parameter, empty where it is missing."""
        return dict(self.parameters).get(name, "")


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    expires_s: float


def repository_scope(repository: str, *actions: str) -> str:
    """Return the scope string for actions on a repository."""
    return f"repository:{repository}:{','.join(actions)}"


def parse_challenges(text: str) -> list[Challenge]:
    """Return the challenges of a `WWW-Authenticate` header; what cannot be read is left out."""
    text = text[:MAX_CHALLENGE_CHARACTERS]
    marks = list(_SCHEME.finditer(text))
    found = []
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
        scheme = (mark.group("scheme") or mark.group("bare")).lower()
        parameters = []
        for name, quoted, plain in _PARAMETER.findall(text[mark.end() : end]):
            parameters.append((name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted else plain))
        found.append(Challenge(scheme, tuple(parameters)))
    return found


class RegistryAuth:
    """The `Authorization` headers for one registry host. Safe to use from threads."""

    def __init__(
        self, registry: str, *, lookup: Lookup, request_token: TokenRequest, takes_plain: Callable[[str], bool]
    ) -> None:
        """Hold what is needed to log in. `request_token(method, url, headers, body)` sends to a token server.

        `takes_plain(host)` tells whether that server may be reached over plain HTTP.
        """
        self.registry = registry
        self._lookup = lookup
        self._request_token = request_token
        self._takes_plain = takes_plain
        self._lock = threading.RLock()
        self._challenge: Challenge | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._credentials: dict[str, Credential | None] = {}

    def authorization(self, scopes: Sequence[str]) -> str | None:
        """Return the header for a request with these scopes, or None while the registry has asked for nothing.

        Raises:
            RegistryError: the token server does not answer, refuses, or gives no token.
        """
        # held while a token is fetched: the other threads need the same one, and token servers limit requests
        with self._lock:
            if self._challenge is None:
                return None
            return self._header(self._challenge, tuple(scopes))

    def respond(self, header: str, *, scopes: Sequence[str], refused: str | None) -> str | None:
        """Return the header that answers a 401 with this `WWW-Authenticate`, or None if there is nothing new to try.

        `refused` is the header that the request carried; a token that was refused is not used again.

        Raises:
            RegistryError: the challenge cannot be met, or the token server gives no token.
        """
        # reversed, so that the first of a kind counts; bearer first, as a token is worth less to who steals it
        challenges = {challenge.scheme: challenge for challenge in reversed(parse_challenges(header))}
        challenge = challenges.get("bearer") or challenges.get("basic")
        if challenge is None:
            raise Unauthorized(
                f"`{self.registry}` answers 401 without a supported authentication scheme (basic, bearer)",
                registry=self.registry,
                status=401,
                hint=STRANGE_HINT,
            )
        with self._lock:
            self._challenge = challenge
            key = tuple(scopes)
            known = self._tokens.get(key)
            # else another thread has fetched a new one since this request was sent
            if known is not None and known.header == refused:
                del self._tokens[key]
            fresh = self._header(challenge, key)
            return fresh if fresh != refused else None

    def _header(self, challenge: Challenge, scopes: tuple[str, ...]) -> str | None:
        credential = self._credential(scopes)
        if challenge.scheme == "basic":
            return credential.basic if credential is not None and credential.username else None
        token = self._tokens.get(scopes)
        if token is None or clock.monotonic_s() >= token.expires_s:
            token = self._fetch(challenge, scopes, credential)
            self._tokens[scopes] = token
        return token.header

    def _credential(self, scopes: tuple[str, ...]) -> Credential | None:
        repository = scopes[0].split(":")[1] if scopes else ""
        if repository not in self._credentials:
            self._credentials[repository] = self._lookup(self.registry, repository)
        return self._credentials[repository]

    def _fetch(self, challenge: Challenge, scopes: tuple[str, ...], credential: Credential | None) -> _Token:
        realm = challenge.get("realm")
        self._check_realm(realm)
        # all that is needed is asked for at once: pushing takes `pull` as well (harbor #5777), and clients whose first
        # token is for pulling alone fail to push to Quay (helm #32156); oras-py keeps the first one for good (#187),
        # and for every repository (#133)
        wanted = list(scopes)
        if not wanted and challenge.get("scope"):
            wanted = [challenge.get("scope")]
        fields = [("service", challenge.get("service"))] if challenge.get("service") else []
        # a password goes by GET, as every token server takes it so; an identity token is only taken by POST
        if credential is not None and credential.identity_token:
            form = [*fields, ("client_id", CLIENT_ID), ("grant_type", "refresh_token")]
            form += [("refresh_token", credential.identity_token), ("scope", " ".join(wanted))]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._request_token("POST", realm, headers, urlencode(form).encode())
        else:
            query = urlencode([*fields, *(("scope", scope) for scope in wanted)])
            headers = {"Authorization": credential.basic} if credential is not None else {}
            separator = "&" if split_url(realm).query else "?"
            response = self._request_token("GET", f"{realm}{separator}{query}" if query else realm, headers, None)
        return self._read_token(realm, response, anonymous=credential is None)

    def _check_realm(self, realm: str) -> None:
        try:
            parts = split_url(realm)
        except Malformed as error:
            raise RegistryError(
                f"`{self.registry}` names a token server that is not a URL: {error}",
                registry=self.registry,
                hint="correct the realm in the registry's configuration",
            ) from error
        host = parts.netloc
        safe = parts.scheme == "https" or (parts.scheme == "http" and self._takes_plain(host))
        if not safe or not host or "@" in host:
            raise RegistryError(
                f"`{self.registry}` names the token server `{redacted(realm)}`, which must not receive credentials",
                hint="a token server must be reached over https, except on localhost or with `--plain-http`; behind a "
                "TLS proxy, have it send `X-Forwarded-Proto: https`, or set the realm in the registry's configuration",
                registry=self.registry,
            )

    def _read_token(self, realm: str, response: Answer, *, anonymous: bool) -> _Token:
        server = redacted(realm)
        if response.status_code in (400, 401, 403):
            who = "anonymous access" if anonymous else "the credentials"
            code, text = registry_codes(response.content)
            raise RegistryError(
                f"token server `{server}` refuses {who} for `{self.registry}` with {response.status_code}"
                + (f" `{code}`" if code else "")
                + (f": {text}" if text else ""),
                hint=token_hint(self.registry, text),
                status=response.status_code,
                url=server,
            )
        if response.status_code != 200:
            raise RegistryError(
                f"token server `{server}` answers {response.status_code}",
                status=response.status_code,
                url=server,
                hint="the token server failed: check its log, then rerun",
            )
        try:
            document: Any = parse_json(response.content)
            token = document.get("token") or document.get("access_token")
            lifetime = document.get("expires_in")
        except (Malformed, AttributeError):
            # the answer may hold a token: the parser's message is not passed on
            raise RegistryError(
                f"token server `{server}` answers without a token", url=server, hint=STRANGE_HINT
            ) from None
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
            raise RegistryError(
                f"token server `{server}` answers without a usable token", url=server, hint=STRANGE_HINT
            )
        # capped before it becomes a float, which a number of 400 digits cannot
        known = isinstance(lifetime, int | float) and lifetime > 0
        seconds = float(min(lifetime, LONGEST_LIFETIME_S)) if known else DEFAULT_LIFETIME_S
        # not in its last tenth: the server began to count before its answer came
        return _Token(f"Bearer {token}", clock.monotonic_s() + seconds * 0.9)
