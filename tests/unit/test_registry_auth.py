"""Who is sent which credential, for how long a token counts, and what a token server cannot make of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Container, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from airferry.errors import RegistryError
from airferry.host import clock
from airferry.registry.auth import RegistryAuth, parse_challenges, repository_scope
from airferry.registry.credentials import Credential

REALM = "https://auth.example/token"
BEARER = f'Bearer realm="{REALM}",service="hub",scope="repository:a/b:pull"'
PULL, PUSH = repository_scope("a/b", "pull"), repository_scope("a/b", "pull", "push")
USER = Credential("ferry", "s3cret")
IDENTITY = Credential("", identity_token="identity-secret")


class TokenServer:
    """Notes what it is asked and answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes | None]] = []
        self.looked_up: list[tuple[str, str]] = []
        self.status = 200
        self.content: bytes | None = None
        self.lifetime: Any = 300

    def __call__(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> Any:
        self.asked.append((method, url, headers, body))
        document = {"token": f"token{len(self.asked)}", "expires_in": self.lifetime}
        content = json.dumps(document).encode() if self.content is None else self.content
        return SimpleNamespace(status_code=self.status, content=content, headers={})

    def auth(self, credential: Credential | None = None, *, plain_hosts: Container[str] = ()) -> RegistryAuth:
        def lookup(registry: str, repository: str) -> Credential | None:
            self.looked_up.append((registry, repository))
            return credential

        return RegistryAuth(
            "hub.example", lookup=lookup, request_token=self, takes_plain=lambda host: host in plain_hosts
        )


@pytest.fixture
def server() -> TokenServer:
    return TokenServer()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    moment = [1000.0]
    monkeypatch.setattr(clock, "monotonic_s", lambda: moment[0])
    yield moment


def test_nothing_is_sent_before_a_registry_asks(server: TokenServer) -> None:
    auth = server.auth(USER)
    assert auth.authorization([PULL]) is None
    assert server.asked == [] and server.looked_up == []


def test_basic_credentials_go_as_the_registry_asks_and_only_once(server: TokenServer) -> None:
    auth = server.auth(USER)
    header = auth.respond('Basic realm="hub"', scopes=[PULL], refused=None)
    assert header == "Basic " + base64.b64encode(b"ferry:s3cret").decode()
    assert auth.authorization([PULL]) == header and auth.authorization([]) == header
    assert auth.respond('Basic realm="hub"', scopes=[PULL], refused=header) is None, "refused is refused"
    assert server.asked == []
    assert server.looked_up == [("hub.example", "a/b"), ("hub.example", "")]


@pytest.mark.parametrize("credential", [None, IDENTITY])
def test_without_a_user_there_is_no_basic_login(server: TokenServer, credential: Credential | None) -> None:
    assert server.auth(credential).respond("Basic", scopes=[PULL], refused=None) is None


def test_a_token_is_taken_where_a_registry_offers_both(server: TokenServer) -> None:
    for header in (f'Basic realm="x", {BEARER}', f'{BEARER}, Basic realm="x"'):
        assert (server.auth(USER).respond(header, scopes=[PULL], refused=None) or "").startswith("Bearer token")


def test_a_login_of_no_known_kind_is_told(server: TokenServer) -> None:
    with pytest.raises(RegistryError, match="without a supported authentication scheme") as caught:
        server.auth(USER).respond('Negotiate realm="x"', scopes=[PULL], refused=None)
    assert "`hub.example`" in caught.value.message


def test_a_token_is_asked_for_with_the_scope_service_and_user(server: TokenServer) -> None:
    auth = server.auth(USER)
    assert auth.respond(BEARER, scopes=[PULL, PUSH], refused=None) == "Bearer token1"
    ((method, url, headers, body),) = server.asked
    assert (method, url.partition("?")[0], body) == ("GET", REALM, None)
    assert parse_qsl(urlsplit(url).query) == [("service", "hub"), ("scope", PULL), ("scope", PUSH)]
    assert headers == {"Authorization": USER.basic}
    assert server.looked_up == [("hub.example", "a/b")]


@pytest.mark.parametrize(
    ("header", "scopes", "expected"),
    [
        (f'Bearer realm="{REALM}"', [], REALM),
        (BEARER, [], f"{REALM}?service=hub&scope=repository%3Aa%2Fb%3Apull"),
        (f'Bearer realm="{REALM}?x=1"', [PULL], f"{REALM}?x=1&scope=repository%3Aa%2Fb%3Apull"),
        (f'Bearer realm="{REALM}",service="hub"', [], f"{REALM}?service=hub"),
    ],
)
def test_the_address_of_the_token_server_is_kept(
    server: TokenServer, header: str, scopes: list[str], expected: str
) -> None:
    server.auth().respond(header, scopes=scopes, refused=None)
    assert server.asked == [("GET", expected, {}, None)], "and without a user, none is sent"


def test_an_identity_token_is_posted_and_never_in_an_address(server: TokenServer) -> None:
    server.auth(IDENTITY).respond(BEARER, scopes=[PULL, PUSH], refused=None)
    ((method, url, headers, body),) = server.asked
    assert (method, url) == ("POST", REALM)
    assert headers == {"Content-Type": "application/x-www-form-urlencoded"}
    assert parse_qs((body or b"").decode()) == {
        "service": ["hub"],
        "client_id": ["airferry"],
        "grant_type": ["refresh_token"],
        "refresh_token": ["identity-secret"],
        "scope": [f"{PULL} {PUSH}"],
    }


def test_a_token_counts_for_its_scopes_until_nine_tenths_of_its_time(server: TokenServer, now: list[float]) -> None:
    auth = server.auth(USER)
    assert auth.respond(BEARER, scopes=[PULL], refused=None) == "Bearer token1"
    assert auth.authorization([PULL]) == "Bearer token1"
    assert auth.authorization([PUSH]) == "Bearer token2"
    now[0] += 269.0
    assert auth.authorization([PULL]) == "Bearer token1"
    now[0] += 1.0
    assert auth.authorization([PULL]) == "Bearer token3"
    assert len(server.asked) == 3


def test_a_refused_token_is_not_used_again_and_a_newer_one_is(server: TokenServer) -> None:
    auth = server.auth(USER)
    first = auth.respond(BEARER, scopes=[PULL], refused=None)
    second = auth.respond(BEARER, scopes=[PULL], refused=first)
    assert (first, second) == ("Bearer token1", "Bearer token2")
    assert auth.respond(BEARER, scopes=[PULL], refused=first) == second, "another thread was faster"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [
        (100, 90.0),
        (0.5, 0.45),
        (None, 54.0),
        (0, 54.0),
        (-5, 54.0),
        ("300", 54.0),
        (10**9, 24 * 3600 * 0.9),
        (10**400, 24 * 3600 * 0.9),
        (float("inf"), 24 * 3600 * 0.9),
        (float("nan"), 54.0),
    ],
)
def test_a_token_lives_as_long_as_its_server_says_within_reason(
    server: TokenServer, now: list[float], lifetime: Any, seconds: float
) -> None:
    server.lifetime = lifetime
    auth = server.auth(USER)
    auth.respond(BEARER, scopes=[PULL], refused=None)
    now[0] += seconds - 0.01
    assert auth.authorization([PULL]) == "Bearer token1"
    now[0] += 0.02
    assert auth.authorization([PULL]) == "Bearer token2"


@pytest.mark.parametrize(
    ("realm", "allowed"),
    [
        ("https://auth.example/token", True),
        ("https://plain.example/token", True),
        ("http://auth.example/token", False),
        ("http://plain.example/token", True),
        ("http://127.0.0.1:5001/token", False),
        ("ftp://plain.example/token", False),
        ("file:///etc/passwd", False),
        ("//plain.example/token", False),
        ("https:///token", False),
        ("http:///token", False),
        ("https://me@auth.example/token", False),
        ("http://me@plain.example/token", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("credential", [USER, IDENTITY, None])
def test_credentials_go_to_no_token_server_that_is_not_safe(
    server: TokenServer, realm: str, allowed: bool, credential: Credential | None
) -> None:
    auth = server.auth(credential, plain_hosts=("plain.example", ""))
    header = f'Bearer realm="{realm}",service="hub"'
    if allowed:
        assert auth.respond(header, scopes=[PULL], refused=None) == "Bearer token1"
    else:
        with pytest.raises(RegistryError, match="which must not receive credentials") as caught:
            auth.respond(header, scopes=[PULL], refused=None)
        assert "must be reached over https" in (caught.value.hint or "")
        assert server.asked == []


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize(("credential", "who"), [(USER, "the credentials"), (None, "anonymous access")])
def test_a_refusal_says_who_was_refused_and_what_to_do(
    server: TokenServer, status: int, credential: Credential | None, who: str
) -> None:
    server.status = status
    server.content = b'{"errors": [{"code": "DENIED", "message": "not you"}]}'
    with pytest.raises(RegistryError) as caught:
        server.auth(credential).respond(BEARER, scopes=[PULL], refused=None)
    assert caught.value.message == (
        f"token server `{REALM}` refuses {who} for `hub.example` with {status} `DENIED`: not you"
    )
    assert caught.value.hint == "log in with `airferry login hub.example`"
    server.content = b"<html>"
    with pytest.raises(RegistryError) as caught:
        server.auth(credential).respond(BEARER, scopes=[PULL], refused=None)
    assert caught.value.message == f"token server `{REALM}` refuses {who} for `hub.example` with {status}"


@pytest.mark.parametrize("status", [204, 302, 404, 500])
def test_any_other_answer_is_no_token(server: TokenServer, status: int) -> None:
    server.status = status
    with pytest.raises(RegistryError, match=f"answers {status}"):
        server.auth(USER).respond(BEARER, scopes=[PULL], refused=None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"{}",
        b'{"token": 1}',
        b'{"token": ""}',
        b'{"token": "a b"}',
        b'{"token": "a\\r\\nX: y"}',
        b'{"token": "\xc3\xa4"}',
        b'{"token": "%s"}' % (b"x" * 65_537),
        b'{"secret": "do-not-show',
    ],
)
def test_an_answer_without_a_usable_token_is_told_and_not_shown(server: TokenServer, content: bytes) -> None:
    server.content = content
    with pytest.raises(RegistryError, match=r"answers without a token|without a usable token") as caught:
        server.auth(USER).respond(BEARER, scopes=[PULL], refused=None)
    assert "do-not-show" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["token", "access_token"])
def test_a_token_has_two_names_and_may_be_long(server: TokenServer, name: str) -> None:
    server.content = json.dumps({name: "x" * 65_536}).encode()
    assert server.auth(USER).respond(BEARER, scopes=[PULL], refused=None) == "Bearer " + "x" * 65_536


def test_credentials_are_looked_up_once_for_each_repository(server: TokenServer) -> None:
    auth = server.auth(USER)
    auth.respond(BEARER, scopes=[PULL], refused=None)
    auth.authorization([PUSH])
    auth.authorization([repository_scope("c", "pull")])
    auth.authorization([])
    assert server.looked_up == [("hub.example", "a/b"), ("hub.example", "c"), ("hub.example", "")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('BASIC realm="a b"', [("basic", {"realm": "a b"})]),
        ('Bearer Realm=x , service="a\\"b"', [("bearer", {"realm": "x", "service": 'a"b'})]),
        ('Basic realm="a", Bearer realm="b"', [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        (
            "Digest nonce=1, Basic realm=2, Bearer realm=3",
            [("digest", {"nonce": "1"}), ("basic", {"realm": "2"}), ("bearer", {"realm": "3"})],
        ),
        ("Bearer " + "x=1," * 3000 + 'realm="late"', [("bearer", {"x": "1"})]),
    ],
)
def test_challenges_are_told_apart(text: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    found = [(challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(text)]
    assert found == expected
    assert all(challenge.get("nowhere") == "" for challenge in parse_challenges(text))


def test_the_first_challenge_of_a_scheme_counts(server: TokenServer) -> None:
    header = f'Bearer realm="{REALM}/first", Bearer realm="{REALM}/second"'
    server.auth().respond(header, scopes=[], refused=None)
    assert server.asked[0][1] == f"{REALM}/first"


def test_scopes_are_written_as_registries_read_them() -> None:
    assert (PULL, PUSH) == ("repository:a/b:pull", "repository:a/b:pull,push")
    assert "s3cret" not in repr(USER) and "identity-secret" not in repr(IDENTITY)


@pytest.mark.parametrize("word", ["p", "p=", 'p="', "p ", "p,", ", p", "=", " "])
def test_a_long_challenge_takes_no_time(word: str) -> None:
    began = time.process_time()
    parse_challenges('Bearer realm="https://t/x",' + word * 9_000)
    assert time.process_time() - began < 0.4
