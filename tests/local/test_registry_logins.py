"""What login and logout say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from airferry.cli.app import run
from airferry.far.access import login_command
from airferry.registry.client import ClientOptions
from quick import Said
from scripted_registry import Exchange, ScriptedRegistry


@pytest.mark.usefixtures("unsettled")
def test_a_login_says_where_it_is_kept_and_a_logout_where_it_was(
    registry: ScriptedRegistry, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "auth.json"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))

    def login(password: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(password))
        # with the prefix that `load --to` takes: a login is for the whole registry
        place = f"{registry.address}/team/nemotron"
        return run(["login", place, "-u", "ferry", "--password-stdin", "--plain-http"])

    assert login("s3cret\n") == 0
    assert list(json.loads(path.read_text())["auths"]) == [registry.address]
    out, err = said()
    assert out == "" and f"{registry.address} as ferry" in err and str(path) in err.replace(" ", "")
    assert "s3cret" not in err
    assert login("\n") == 2 and "the password is empty" in said()[1]
    monkeypatch.setattr("sys.stdin", io.StringIO("x"))
    assert run(["login", registry.address, "-u", "ferry"]) == 2
    assert "`--username NAME --password-stdin`" in said()[1]

    def refuse(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(401, WWW_Authenticate='Basic realm="hub"')

    before = path.read_bytes()
    registry.faults.append(refuse)
    assert login("wrong") == 7
    assert path.read_bytes() == before, "a login that fails changes nothing"
    assert "wrong" not in said()[1].replace("went wrong", "")
    assert run(["logout", f"{registry.address}/team"]) == 0
    assert str(path) in said()[1].replace(" ", "")
    assert json.loads(path.read_text())["auths"] == {}
    assert run(["logout", registry.address]) == 0
    assert f"no credentials stored for {registry.address}" in said()[1]


@pytest.mark.usefixtures("unsettled")
def test_a_login_that_failed_is_repeated_with_what_it_was_typed_with(
    registry: ScriptedRegistry, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(401, WWW_Authenticate='Basic realm="hub"')

    registry.faults.append(refuse)
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong"))
    assert run(["login", registry.address, "-u", "a b", "--password-stdin", "--plain-http"]) == 7
    assert f"`airferry login {registry.address} -u 'a b' --plain-http` again" in " ".join(said()[1].split())


def test_the_command_to_log_in_again_names_the_ca(tmp_path: Path) -> None:
    ca = ClientOptions(ca_file=tmp_path / "c a.pem")
    assert (
        login_command("hub:5000", "-u", "me", options=ca)
        == f"airferry login hub:5000 -u me --ca-file '{tmp_path}/c a.pem'"
    )
    assert login_command("hub:5000", options=ClientOptions()) == "airferry login hub:5000"


@pytest.mark.usefixtures("unsettled")
def test_nobody_is_asked_for_a_password_of_a_registry_that_cannot_be_reached(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: pytest.fail("asked"))
    assert run(["login", "127.0.0.1:1"]) == 7
    assert "cannot reach `127.0.0.1:1`: `127.0.0.1:1` refuses connections" in " ".join(said()[1].split())
