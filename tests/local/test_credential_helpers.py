"""Logins that programs keep: credential helpers of Docker."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.errors import RegistryError
from airferry.registry.credentials import (
    Credential,
    find_credential,
)
from kept_logins import empty_home, encoded, write


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_home(tmp_path, monkeypatch)


def helper(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"docker-credential-{name}"
    path.write_text(f'#!/bin/sh\n[ "$*" = get ] || exit 9\nread server\n{script}\n')
    path.chmod(0o755)


def test_credential_helpers_are_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    helper(home / "bin", "one", """echo '{"Username":"of '$server'","Secret":"s"}'""")
    helper(home / "bin", "id", """echo '{"Username":"<token>","Secret":"s"}'""")
    helper(home / "bin", "none", "echo credentials not found in native keychain; exit 1")
    helper(home / "bin", "broken", 'echo \'{"Secret": "do-not-show"\'')
    helpers = {"host": "one", "id": "id", "none": "none", "broken": "broken", "gone": "gone"}
    write(home / ".docker" / "config.json", {"credHelpers": helpers, "credsStore": "absent"})
    assert find_credential("host", "x") == Credential("of host", "s")
    assert find_credential("id", "x") == Credential("", identity_token="s")
    assert find_credential("none", "x") is None
    assert find_credential("unknown", "x") is None, "a store for all that is not installed stops nobody"
    with pytest.raises(RegistryError, match="was not found"):
        find_credential("gone", "x")
    with pytest.raises(RegistryError, match="an invalid answer") as caught:
        find_credential("broken", "x")
    assert "do-not-show" not in str(caught.value) and caught.value.__cause__ is None


def test_a_store_is_asked_for_an_entry_that_is_empty(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    helper(home / "bin", "store", """echo '{"Username":"'$server'","Secret":"s"}'""")
    write(home / ".docker" / "config.json", {"auths": {"https://host/v2/": {}}, "credsStore": "store"})
    assert find_credential("host", "x") == Credential("https://host/v2/", "s")


def docker(home: Path, document: object) -> Path:
    write(home / ".docker" / "config.json", document)
    return home / ".docker" / "config.json"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo locked >&2; exit 1", "failed with exit code 1"),
        ('echo \'{"Username": "u"}\'', "an invalid answer"),
        ("echo '[]'", "an invalid answer"),
        ("true", "an invalid answer"),
    ],
)
def test_a_helper_that_fails_is_told_unless_it_is_a_store_for_all(
    home: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    helper(home / "bin", "bad", script)
    docker(home, {"credHelpers": {"https://host/": "bad"}})
    with pytest.raises(RegistryError, match=expected) as caught:
        find_credential("host", "x")
    assert "`docker-credential-bad`" in caught.value.message and "`host`" in caught.value.message
    docker(home, {"auths": {"host": {}}, "credsStore": "bad"})
    with pytest.raises(RegistryError, match=expected):
        find_credential("host", "x")
    docker(home, {"credsStore": "bad"})
    if "exit" in script:
        assert find_credential("host", "x") is None, "nothing says that it holds this registry"


@pytest.mark.parametrize("said", ["echo 'Credentials NOT FOUND'", "echo 'not found' >&2"])
def test_a_helper_that_holds_nothing_may_say_so_on_either_stream(
    home: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    helper(home / "bin", "none", f"{said}; exit 1")
    docker(home, {"credHelpers": {"host": "none"}})
    assert find_credential("host", "x") is None


def test_a_store_that_is_asked_for_all_gives_what_it_has(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    helper(home / "bin", "store", """echo '{"Username":"'$server'","Secret":5}'""")
    docker(home, {"auths": {"host": encoded("u", "p")}, "credsStore": "store", "credHelpers": {"x": 5, "y": ""}})
    assert find_credential("other", "a/b") == Credential("other", "5")
    assert find_credential("host", "a/b") == Credential("u", "p"), "what is in the file needs no helper"
    assert find_credential("x", "a") == Credential("x", "5") and find_credential("y", "a") == Credential("y", "5")
