"""From a carried folder to submit commands by what is printed alone, at a registry behind TLS with a password."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registries import PASSWORD, USER, basic_options, make_authority, run_registry

from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from next_steps import next_commands
from travelling_catalogue import make_travelling_bundle, write_catalogue

Followed = Callable[[list[str]], list[list[str]]]


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a bundle arrived in, for a user who has logged in nowhere."""
    make_travelling_bundle(write_catalogue(tmp_path / "code"), tmp_path / "far" / "out" / "bundle")
    for name in ("AIRFERRY_SITE", "AIRFERRY_SOURCE", "AIRFERRY_ROOT", "AIRFERRY_TO", "NEMOTRON_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    # where logins are kept; not REGISTRY_AUTH_FILE, which docker-registry takes for a part of its configuration
    for name in ("HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "far")
    return tmp_path / "far"


@pytest.fixture
def registry(tmp_path: Path, require_tool: Callable[[str], Path]) -> Iterator[str]:
    for name in ("docker-registry", "htpasswd", "openssl"):
        require_tool(name)
    tls, password = make_authority(tmp_path / "ca"), basic_options(tmp_path / "auth")
    with run_registry(tmp_path / "registry", extra=password, tls={**tls}) as running:
        yield running.address


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Followed:
    """Return what runs a command, which has to succeed, and gives the commands that it prints as the next ones."""

    def followed(words: list[str]) -> list[list[str]]:
        monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD))
        code = run(words)
        said = capsys.readouterr().err
        assert code == 0, said
        return next_commands(said)

    return followed


def test_a_profile_first(far: Path, registry: str, tmp_path: Path, follow: Followed) -> None:
    root = open_bundle(far / "out").root
    init, login, load = follow(["verify", "out", "--root", root])
    # what a terminal would ask for
    answers = ["--executor", "kubernetes", "--registry", f"{registry}/airgap", "--ca-file", str(tmp_path / "ca/ca.crt")]
    assert follow([*init, *answers]) == [login]
    assert follow([*login, "--username", USER, "--password-stdin"]) == []
    assert load == ["load", "out", "--root", root, "--jobs", "jobs"]
    assert follow([*load, "--dry-run"]) == [load]
    (check,) = follow(load)
    shown = follow(check)
    assert [Path(path).is_file() for _cat, path in shown] == [True, True, True]
    # a registry that has no artifacts, and so no catalogue
    bare = [*load[:-1], "bare", "--to", f"{registry}/bare", "--artifacts", "skip"]
    (check,) = follow(bare)
    assert follow(check) and check[-2:] == ["--source", "bare/catalogue"]
    # and from any folder where nothing is typed but the receipt's
    assert follow(["overlays", "jobs"]) == [["check", "jobs", "--overlays", "airgap-overlays"]]


def test_a_load_first(far: Path, registry: str, tmp_path: Path, follow: Followed) -> None:
    reach = ["--ca-file", str(tmp_path / "ca/ca.crt")]
    follow(["login", registry, *reach, "--username", USER, "--password-stdin"])
    init, overlays = follow(["load", "out", "--to", f"{registry}/airgap", *reach])
    (login,) = follow([*init, "--executor", "kubernetes"])
    assert login == ["login"], "the profile has the registry and its CA now"
    (check,) = follow(overlays)
    assert follow(check) and "--ca-file" not in check
    (far / "site.yaml").write_text("executors: [kubernetes]\n")
    (check,) = follow(["overlays", *reach])
    assert follow(check) and check[-2:] == reach
    # a profile without the CA, and none typed: what is left to fill in is said
    (check,) = follow(["overlays"])
    assert check[-2:] == ["--ca-file", "CA.pem"]
