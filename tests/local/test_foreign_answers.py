"""What a registry answers, and what others wrote, reaches no traceback and no stderr of Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_registry_faults import LAYER, bearer, options

from airferry.errors import IntegrityError, RegistryError
from airferry.registry.client import RegistryClient
from airferry.registry.credentials import Credential
from airferry.registry.governor import Limits
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.uploads import Uploader
from catalogues import airgap, write_airgap, write_step
from command_lines import run_commands
from failures import failure
from scripted_registry import Exchange, ScriptedRegistry

NO_URLS = ["http://[::1", "http://h:port/x", "http://h:99999/x", "//\u00bd[", "http://[]/"]


@pytest.fixture
def client(registry: ScriptedRegistry) -> Iterator[RegistryClient]:
    with RegistryClient(registry.address, options=options([])) as made:
        yield made


@pytest.mark.parametrize("url", NO_URLS)
def test_a_registry_that_redirects_to_no_url(url: str, registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.faults.append(lambda exchange: exchange.answer(307, Location=url))
    found = failure(lambda: RegistrySource(client, "r/x").find("latest"), RegistryError, 7, registry.address)
    assert "not a URL" in found.message


@pytest.mark.parametrize("url", NO_URLS)
def test_a_registry_whose_upload_goes_to_no_url(url: str, registry: ScriptedRegistry, client: RegistryClient) -> None:
    def answer(exchange: Exchange) -> bool:
        return exchange.call.method == "POST" and exchange.answer(202, Location=url)

    registry.faults.append(answer)
    sink = RegistrySink(client, "r/x", uploader=Uploader(client, limits=Limits()))
    found = failure(lambda: sink.put_blob_from(LAYER, _never), RegistryError, 7, registry.address)
    assert "not a URL" in found.message
    assert sink.mount_blob(LAYER, "r/y") is False


def _never() -> object:
    raise AssertionError("nothing is read before there is a session")


@pytest.mark.parametrize("url", NO_URLS)
def test_a_token_server_at_no_url(url: str, registry: ScriptedRegistry, client: RegistryClient) -> None:
    challenge = bearer(registry).replace(f"http://{registry.address}/token", url)
    registry.faults.append(lambda exchange: exchange.answer(401, WWW_Authenticate=challenge))
    failure(lambda: RegistrySource(client, "r/x").find("latest"), RegistryError, 7, registry.address)


@pytest.mark.parametrize("seconds", ["1" + "0" * 400, "1e999", "-1e999", "NaN", "true", '"x"', "[]"])
def test_a_token_for_any_time(seconds: str, registry: ScriptedRegistry) -> None:
    def answer(exchange: Exchange) -> bool:
        if exchange.call.path == "/token":
            return exchange.answer(200, b'{"token": "good", "expires_in": %s}' % seconds.encode())
        if exchange.call.headers.get("Authorization") != "Bearer good":
            return exchange.answer(401, WWW_Authenticate=bearer(registry))
        return False

    registry.faults.append(answer)
    login = options([], lookup=lambda registry, repository: Credential("user", "secret"))
    with RegistryClient(registry.address, options=login) as client:
        assert RegistrySource(client, "r/x").find("latest") is None


def test_a_length_of_thousands_of_digits(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.faults.append(
        lambda exchange: exchange.call.method == "HEAD" and exchange.answer(200, Content_Length="9" * 5_000)
    )
    failure(lambda: RegistrySink(client, "r/x").has_blob(LAYER), IntegrityError, 6, registry.address)


def test_a_range_of_thousands_of_digits(registry: ScriptedRegistry, client: RegistryClient) -> None:
    registry.faults.append(
        lambda exchange: (
            exchange.call.method == "GET" and exchange.answer(206, Content_Range="bytes " + "9" * 5_000 + "-1/2")
        )
    )

    def work() -> None:
        with RegistrySource(client, "r/x").open_blob_at(LAYER, 5) as stream:
            stream.read()

    failure(work, RegistryError, 7, registry.address)


def test_names_that_are_no_text_end_no_command(tmp_path: Path) -> None:
    commands = [["plan"], ["plan", "--json"], ["verify", "."], ["report", "."]]
    folder = tmp_path / os.fsdecode(b"na\xffme")
    write_step(folder, "sft/tiny")
    write_airgap(folder, airgap({"img": "base:1"}, {"sft/tiny": "img"}))
    preload = "from airferry.api import plan, report, verify"
    codes, ended = run_commands(commands, preload=preload, cwd=folder, capture_output=True)
    assert codes == [0, 0, 2, 2], ended.stderr
    assert b"bug:" not in ended.stderr and b"Traceback" not in ended.stderr


def test_python_says_nothing_of_the_code_of_others() -> None:
    """It warns on stderr, as of `1if`, where nobody told it not to."""
    code = "from airferry.host import parsing as p; p.parse_python(b'a = 1if b else 2'); p.parse_literal('[1,0x1if b]')"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=False)
    assert "Malformed: not a literal" in done.stderr and "Warning" not in done.stderr
