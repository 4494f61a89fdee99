"""Digests, references and platforms: what is accepted, how short forms are completed, and that text round-trips."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from airferry.config import SiteProfile
from airferry.errors import ConfigurationError, IntegrityError, UsageError
from airferry.far.copy import parse_place
from airferry.far.relocate import parse_destination
from airferry.oci.digest import digest_hex, digest_of, is_digest, parse_digest
from airferry.oci.platform import Platform, parse_platform
from airferry.oci.reference import is_loopback, parse_reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
NAME = st.from_regex(r"[a-z0-9]{1,8}\.[a-z]{2,5}|localhost|127\.0\.0\.1|\[::1\]", fullmatch=True)
PORT = st.just("") | st.integers(1, 65535).map(lambda port: f":{port}")
HOST = st.builds(lambda name, port: name + port, NAME, PORT)


@given(data=st.binary(max_size=200))
def test_a_digest_is_that_of_the_bytes(data: bytes) -> None:
    assert digest_hex(parse_digest(digest_of(data))) == hashlib.sha256(data).hexdigest()


@given(text=st.text(max_size=80))
@example(text=DIGEST + "\n")
@example(text=DIGEST.upper())
@example(text="sha512:" + HEX * 2)
@example(text="../../etc/passwd")
@example(text=DIGEST)
def test_nothing_else_is_a_digest(text: str) -> None:
    if is_digest(text):
        assert len(text) == 71
        return
    with pytest.raises(IntegrityError) as caught:
        parse_digest(text)
    assert len(caught.value.message) < 250


@given(
    host=HOST,
    path=st.lists(COMPONENT, min_size=1, max_size=4),
    tag=st.none() | TAG,
    digest=st.none() | st.just(DIGEST),
)
def test_a_full_reference_round_trips(host: str, path: list[str], tag: str | None, digest: str | None) -> None:
    name = f"{host}/{'/'.join(path)}"
    text = name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = parse_reference(text)
    assert (reference.registry, reference.repository) == (host, "/".join(path))
    assert (reference.tag, reference.digest) == (tag if tag or digest else "latest", digest)
    assert parse_reference(str(reference)) == reference
    assert reference.with_digest(DIGEST).target == DIGEST


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("team/app", "docker.io/team/app:latest"),
        ("index.docker.io/python", "docker.io/library/python:latest"),
        ("docker://nvcr.io/nvidia/nemo:25.11", "nvcr.io/nvidia/nemo:25.11"),
        ("localhost/app", "localhost/app:latest"),
        ("host:5000/app", "host:5000/app:latest"),
        (f"host:5000/app@{DIGEST}", f"host:5000/app@{DIGEST}"),
        (f"app:1@{DIGEST}", f"docker.io/library/app:1@{DIGEST}"),
    ],
)
def test_short_forms_are_completed(short: str, full: str) -> None:
    assert str(parse_reference(short)) == full


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:", "A/b", "host:5000/", "host/Upper:1", "a/../b", "a//b", "-a/b", "a:b c", "a@sha256:12", "a" * 300],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


@given(text=st.text(max_size=60))
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/x86_64", Platform("linux", "amd64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm/v7", Platform("linux", "arm", "v7")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/x86_64/v1", Platform("linux", "amd64")),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3")),
    ],
)
def test_platforms_and_their_aliases(text: str, expected: Platform) -> None:
    assert parse_platform(text) == expected
    assert parse_platform(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "linux", "linux/", "linux/amd64/v1/x", "linux amd64", "linux/am;d64"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_platform(text)


def test_variants_match_as_runtimes_match_them() -> None:
    arm64 = Platform("linux", "arm64")
    assert arm64.accepts(Platform("linux", "arm64", "v8"))
    assert Platform("linux", "arm64", "v8").accepts(arm64)
    assert not Platform("linux", "arm", "v6").accepts(Platform("linux", "arm", "v7"))
    assert not arm64.accepts(Platform("linux", "amd64"))
    amd64, first = Platform("linux", "amd64"), Platform("linux", "amd64", "v1")
    assert amd64.accepts(first) and first.accepts(amd64)
    assert not Platform("linux", "amd64", "v3").accepts(amd64)


@pytest.mark.parametrize(
    ("registry", "loopback"),
    [
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("localhost.example.com:5000", False),
        ("127.0.0.1.example.com", False),
        ("10.0.0.1:5000", False),
    ],
)
def test_loopback_hosts(registry: str, loopback: bool) -> None:
    assert is_loopback(registry) is loopback


@pytest.mark.parametrize("host", ["hub.site", "hub.site:5000", "localhost", "hub:5000", "[fd00::1]:5000"])
@pytest.mark.parametrize("login", ["me", "me:s3cret", "me:s3:cret", "$oauthtoken:s3cret"])
@pytest.mark.parametrize("scheme", ["", "docker://", "https://"])
def test_a_login_in_a_reference_is_refused_and_not_repeated(scheme: str, login: str, host: str) -> None:
    text = f"{scheme}{login}@{host}/team/App:1"
    for parse in (parse_reference, parse_destination, parse_place):
        with pytest.raises(UsageError) as caught:
            parse(text)
        said = f"{caught.value.message} {caught.value.hint}"
        assert f"{scheme}***@{host}/team/App:1" in said and "airferry login" in said
        assert login not in said
    with pytest.raises(ValidationError) as refused:
        SiteProfile(registry=text)
    assert "***@" in str(refused.value) and login not in str(refused.value)


@pytest.mark.parametrize("text", ["python:3.12@sha256:12", "hub.site/x:1@sha256", "x@latest", f"x:1@{DIGEST}y"])
def test_what_is_no_digest_is_still_told_as_one(text: str) -> None:
    with pytest.raises(UsageError, match="is not a digest"):
        parse_reference(text)
