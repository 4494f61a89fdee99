"""Credentials are found where Podman and Docker keep them, and kept there; challenges are read as they come."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.errors import ConfigurationError, HostError, UsageError
from airferry.registry.auth import parse_challenges
from airferry.registry.credentials import (
    Credential,
    credential_files,
    find_credential,
    remove_credential,
    store_credential,
)
from examples import examples
from kept_logins import empty_home, encoded, write


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_home(tmp_path, monkeypatch)


def test_files_are_asked_in_their_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [
        home / ".docker" / "config.json",
        home / ".config" / "containers" / "auth.json",
        home / "run" / "containers" / "auth.json",
    ]
    assert find_credential("host:5000", "a/b") is None
    for path in places:
        write(path, {"auths": {"host:5000": encoded(path.parent.name, "x")}})
        assert find_credential("host:5000", "a/b") == Credential(path.parent.name, "x")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "mine.json"))
    assert find_credential("host:5000", "a/b") is None
    write(home / "mine.json", {"auths": {"host:5000": encoded("mine", "x")}})
    assert find_credential("host:5000", "a/b") == Credential("mine", "x")
    monkeypatch.delenv("REGISTRY_AUTH_FILE")
    for path in places[1:]:
        path.unlink()
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "elsewhere"))
    assert find_credential("host:5000", "a/b") is None


def test_the_longest_name_wins(home: Path) -> None:
    auths = {"host": encoded("h", "1"), "host/a": encoded("a", "2"), "host/a/b": encoded("ab", "3:with:colons")}
    write(home / ".docker" / "config.json", {"auths": auths})
    assert find_credential("host", "a/b") == Credential("ab", "3:with:colons")
    assert find_credential("host", "a/c") == Credential("a", "2")
    assert find_credential("host", "ab") == Credential("h", "1")
    assert find_credential("other", "a/b") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"])
def test_docker_hub_is_found_under_each_of_its_names(home: Path, key: str) -> None:
    write(home / ".docker" / "config.json", {"auths": {key: encoded("u", "p")}})
    assert find_credential("docker.io", "library/python") == Credential("u", "p")


def test_an_identity_token_is_taken_before_a_password(home: Path) -> None:
    entry = {**encoded("00000000-0000", ""), "identitytoken": "refresh"}
    write(home / ".docker" / "config.json", {"auths": {"host": entry}})
    found = find_credential("host", "x")
    assert found is not None and found.identity_token == "refresh"
    assert "refresh" not in repr(found)


def test_login_and_logout_change_podmans_file_and_nothing_else_in_it(home: Path) -> None:
    path = home / "run" / "containers" / "auth.json"
    write(path, {"auths": {"other": encoded("o", "p")}, "credHelpers": {"x": "y"}})
    assert store_credential("host:5000", "user", password="pass:word") == path
    assert path.stat().st_mode & 0o777 == 0o600
    assert find_credential("host:5000", "a/b") == Credential("user", "pass:word")
    write(home / ".docker" / "config.json", {"auths": {"https://host:5000": encoded("d", "p")}})
    assert remove_credential("host:5000") == [path, home / ".docker" / "config.json"]
    assert find_credential("host:5000", "a/b") is None
    assert json.loads(path.read_text()) == {"auths": {"other": encoded("o", "p")}, "credHelpers": {"x": "y"}}
    assert remove_credential("host:5000") == []
    with pytest.raises(UsageError):
        store_credential("host", "a:b", password="x")


def test_a_damaged_file_is_named_and_not_shown(home: Path) -> None:
    path = home / ".docker" / "config.json"
    path.parent.mkdir()
    path.write_text('{"auths": "secret-thing')
    with pytest.raises(ConfigurationError, match=r"config\.json") as caught:
        find_credential("host", "x")
    assert "secret-thing" not in str(caught.value)


def test_challenges_are_read() -> None:
    header = 'Basic realm="a, b", Bearer realm="https://t/x?y=\\"z",service=s , scope="repository:a/b:pull,push"'
    basic, bearer = parse_challenges(header)
    assert (basic.scheme, basic.get("realm")) == ("basic", "a, b")
    assert (bearer.scheme, bearer.get("realm"), bearer.get("service")) == ("bearer", 'https://t/x?y="z', "s")
    assert bearer.get("scope") == "repository:a/b:pull,push"
    assert [challenge.scheme for challenge in parse_challenges("Negotiate")] == ["negotiate"]


@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=300))
@examples(60)
def test_no_challenge_breaks_the_reader(text: str) -> None:
    for challenge in parse_challenges(text):
        assert challenge.scheme == challenge.scheme.lower()


def docker(home: Path, document: object) -> Path:
    write(home / ".docker" / "config.json", document)
    return home / ".docker" / "config.json"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "u", "password": "p"}, Credential("u", "p")),
        ({"username": "u", "password": ""}, Credential("u", "")),
        ({"username": "", "password": "p"}, None),
        ({"username": "u"}, None),
        ({"username": "u", "password": 1}, None),
        ({"username": 1, "password": "p"}, None),
        ({"auth": base64.b64encode(b"u:p\0\0").decode(), "username": "x", "password": "y"}, Credential("u", "p")),
        ({"auth": base64.b64encode(b"u:pX\0").decode()}, Credential("u", "pX")),
        ({"auth": ""}, None),
        ({"auth": 5}, None),
        ({"auth": "%%%"}, None),
        ({"auth": "abc"}, None),
        ({"auth": base64.b64encode(b"\xff\xfe:x").decode()}, None),
        ({"identitytoken": "t"}, Credential("", identity_token="t")),
        ({"identitytoken": "t", "username": "u", "password": "p"}, Credential("u", identity_token="t")),
        ({"identitytoken": "", "username": "u", "password": "p"}, Credential("u", "p")),
        ({"identitytoken": 5}, None),
        ("text", None),
        (None, None),
    ],
)
def test_an_entry_is_read_in_each_of_its_forms(home: Path, entry: object, expected: Credential | None) -> None:
    docker(home, {"auths": {"host": entry}})
    assert find_credential("host", "x") == expected


@pytest.mark.parametrize("document", [{}, {"auths": []}, {"auths": None, "credHelpers": "x", "credsStore": 5}])
def test_a_file_of_another_shape_holds_nothing(home: Path, document: object) -> None:
    docker(home, document)
    assert find_credential("host", "x") is None and remove_credential("host") == []


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("host", True),
        ("https://host", True),
        ("http://host/", True),
        ("https://host/v1/", True),
        ("https://host/v2", True),
        ("https://host/v3", False),
        ("host.other", False),
        ("other/host", False),
    ],
)
def test_a_registry_is_found_and_forgotten_under_each_of_its_names(home: Path, key: str, found: bool) -> None:
    path = docker(home, {"auths": {key: encoded("u", "p"), "kept": encoded("k", "p")}, "other": 1})
    assert (find_credential("host", "x") is not None) is found
    assert remove_credential("host") == ([path] if found else [])
    kept = {"kept"} if found else {"kept", key}
    assert json.loads(path.read_text()).keys() == {"auths", "other"}
    assert json.loads(path.read_text())["auths"].keys() == kept


def test_only_slashes_are_taken_off_a_name(home: Path) -> None:
    docker(home, {"auths": {"https://boX/": encoded("u", "p")}})
    assert find_credential("boX", "x") == Credential("u", "p") and find_credential("bo", "x") is None


def test_an_empty_file_is_one_and_gets_a_login(home: Path) -> None:
    path = home / "run" / "containers" / "auth.json"
    path.parent.mkdir(parents=True)
    path.write_text(" \n")
    path.chmod(0o644)
    assert find_credential("host", "x") is None
    assert store_credential("host", "u", password="p") == path
    assert json.loads(path.read_text()) == {"auths": {"host": encoded("u", "p")}}
    assert path.stat().st_mode & 0o777 == 0o600
    store_credential("host", "other", password="q")
    store_credential("second", "s", password="r")
    assert json.loads(path.read_text()) == {"auths": {"host": encoded("other", "q"), "second": encoded("s", "r")}}


@pytest.mark.parametrize("user", ["", "a:b", ":"])
def test_a_user_name_that_cannot_be_stored_is_refused(home: Path, user: str) -> None:
    with pytest.raises(UsageError, match="cannot be a user name"):
        store_credential("host", user, password="x")
    assert not (home / "run").exists()


def test_logins_go_where_podman_looks_for_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "mine.json"))
    assert store_credential("host", "u", password="p") == home / "mine.json"
    assert remove_credential("host") == [home / "mine.json"]
    monkeypatch.delenv("REGISTRY_AUTH_FILE")
    # as in /tmp, where another user may have put what is found
    (home / "run").mkdir()
    (home / "run").chmod(0o1777)
    assert store_credential("host", "u", password="p") == home / ".config" / "containers" / "auth.json"
    assert home / "run" / "containers" / "auth.json" not in credential_files()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert store_credential("host", "u", password="p") == home / ".config" / "containers" / "auth.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    assert store_credential("host", "u", password="p") == home / "xdg" / "containers" / "auth.json"
    places = credential_files()
    assert places == [
        Path("/run/containers") / str(os.getuid()) / "auth.json",
        home / "xdg" / "containers" / "auth.json",
        home / ".docker" / "config.json",
    ]
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "docker"))
    assert credential_files()[-1] == home / "docker" / "config.json"


@pytest.mark.parametrize("content", ["[]", '"text"', "{", "[" * 100_000])
def test_a_file_that_is_no_object_is_refused_by_name(home: Path, content: str) -> None:
    path = home / ".docker" / "config.json"
    path.parent.mkdir()
    path.write_text(content)
    for act in (lambda: find_credential("host", "x"), lambda: remove_credential("host")):
        with pytest.raises(ConfigurationError, match=r"\.docker/config\.json"):
            act()


def test_a_file_of_more_than_a_mebibyte_is_refused(home: Path) -> None:
    path = docker(home, {"auths": {"host": encoded("u", "p")}})
    text = path.read_text()
    path.write_text(text + " " * (1024 * 1024 - len(text)))
    assert find_credential("host", "x") == Credential("u", "p")
    path.write_text(text + " " * (1024 * 1024 - len(text) + 1))
    with pytest.raises(HostError, match="larger than the limit of 1048576 bytes"):
        find_credential("host", "x")


@pytest.mark.parametrize("name", ["../evil", "a b", "x/y", "a\n"])
def test_a_helper_is_never_a_path(home: Path, name: str) -> None:
    docker(home, {"credHelpers": {"host": name}})
    with pytest.raises(ConfigurationError, match="credential helper"):
        find_credential("host", "x")


def test_the_header_of_a_login_is_as_the_standard_says() -> None:
    assert Credential("Aladdin", "open sesame").basic == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
