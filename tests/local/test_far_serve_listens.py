"""Where `serve` listens."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from airferry import api
from airferry.cli import app as program
from airferry.errors import ConfigurationError, HostError, UsageError
from oci_images import make_bundle


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "bundle"
    make_bundle(path)
    return path


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    shutil.copytree(sealed, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_port_in_use_is_an_error_of_the_environment(
    bundle: Path, taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.run(["serve", str(bundle), "--listen", taken]) == HostError.exit_code
    error = capsys.readouterr().err
    assert f"cannot listen on `{taken}`" in error and "in use" in error and "--listen" in error


def test_wrong_certificates_are_refused_and_the_port_given_back(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    both = api.ServeOptions(tls_certificate=tmp_path / "x.pem", tls_key=tmp_path / "x.pem")
    with (
        pytest.raises(ConfigurationError, match="cannot be used"),
        api.serve(bundle, listen="127.0.0.1:0", options=both),
    ):
        pass
    with (
        pytest.raises(UsageError, match="a certificate requires its key"),
        api.serve(bundle, listen="127.0.0.1:0", options=api.ServeOptions(tls_key=tmp_path / "x.pem")),
    ):
        pass


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_all_addresses_are_offered_under_the_hosts_name(
    bundle: Path, listen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airferry.far.serve.server.socket.gethostname", lambda: "near.site")
    try:
        opened = api.serve(bundle, listen=listen)
        with opened as serving:
            port = serving.url.rpartition(":")[2]
            assert serving.url == f"http://near.site:{port}"
            assert all(name.startswith(f"near.site:{port}/") for name, _digest in serving.images)
    except HostError:
        pytest.skip("this host has no IPv6")
