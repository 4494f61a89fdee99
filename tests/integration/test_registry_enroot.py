"""enroot's requests, sent by curl as its `src/docker.sh` sends them, against a real docker-registry 2.8 and our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from registries import PASSWORD, USER, basic_options, run_registry, run_token_server

from airferry.far.load import load
from airferry.host import process
from airferry.oci.digest import digest_of
from airferry.oci.platform import parse_platform
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.credentials import Credential
from airferry.registry.runtimes import pull_as
from airferry.registry.source import RegistrySource
from oci_images import make_bundle

LISTS = "Accept: application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.index.v1+json"
MANIFESTS = "Accept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


class Refused(Exception):
    """`common::curl` of enroot ends the import at a status of 400 or more."""


def curl(url: str, *options: str, ignored: tuple[int, ...] = ()) -> bytes:
    done = process.run(["curl", "-sSL", "-w", "\n%{http_code}", *options, "--", url], timeout_s=30)
    body, _, code = done.stdout.rpartition(b"\n")
    if int(code) >= 400 and int(code) not in ignored:
        raise Refused(f"{code.decode()} {options}")
    return body


def enroot_imports(registry: str, image: str, reference: str, *, arch: str) -> list[bytes]:
    """Return config and layers that an import ends up with, top layer first, as enroot 4 does."""
    url = f"http://{registry}/v2/{image}/manifests/{reference}"
    headers = curl(url, "-I", ignored=(401,)).decode().lower()
    login: list[str] = []
    if "www-authenticate: basic" in headers:
        login = ["-u", f"{USER}:{PASSWORD}"]
        curl(url, "-G", *login)
    elif "www-authenticate: bearer" in headers:
        parts = dict(part.split("=", 1) for part in headers.partition("bearer ")[2].split("\r\n")[0].split(","))
        scope = ["--data-urlencode", f"scope=repository:{image}:pull", "--data-urlencode", "service=ferry"]
        answer = curl(parts["realm"].strip('"'), "-G", "-u", f"{USER}:{PASSWORD}", *scope)
        login = ["-H", f"Authorization: Bearer {json.loads(answer)['token']}"]
    listed: Any = json.loads(curl(url, "-H", LISTS, *login, ignored=(401, 404)))
    fitting = [item for item in listed.get("manifests", []) if item["platform"]["architecture"] == arch]
    chosen = f"http://{registry}/v2/{image}/manifests/{fitting[0]['digest']}" if fitting else url
    manifest = json.loads(curl(chosen, "-H", MANIFESTS, *login))
    wanted = [manifest["config"], *reversed(manifest["layers"])]
    blobs = [curl(f"http://{registry}/v2/{image}/blobs/{item['digest']}", *login) for item in wanted]
    assert [digest_of(blob) for blob in blobs] == [item["digest"] for item in wanted]
    return blobs


@pytest.mark.parametrize("login", ["none", "password", "token"])
def test_enroot_imports_the_twin_from_debians_registry(
    tmp_path: Path, require_tool: Callable[[str], Path], login: str
) -> None:
    require_tool("docker-registry")
    require_tool("curl")
    make_bundle(tmp_path / "bundle", twins=True)
    known = Credential(USER, PASSWORD) if login != "none" else None
    options = ClientOptions(lookup=lambda _registry, _repository: known)
    with ExitStack() as held:
        extra = None
        if login == "password":
            extra = basic_options(tmp_path / "users")
        elif login == "token":
            extra = held.enter_context(run_token_server(tmp_path / "tokens")).options()
        running = held.enter_context(run_registry(tmp_path / "registry", extra=extra))
        client = held.enter_context(RegistryClient(running.address, options=options))
        result = load(tmp_path / "bundle", to=f"{running.address}/site", receipt=tmp_path / "r.yaml", options=options)
        (image,) = result.receipt.images
        assert image.docker_twin is not None and result.receipt.left_out == ()
        source = RegistrySource(client, "site/team/trainer")
        arm = parse_platform("linux/arm64")
        twin = enroot_imports(running.address, "site/team/trainer", image.docker_twin.digest, arch="arm64")
        assert json.loads(twin[0])["architecture"] == "arm64" and len(twin) == 3
        assert pull_as("enroot", source, image.docker_twin.digest, platform=arm).problem is None
        judged = pull_as("enroot", source, image.digest, platform=arm)
        if login == "token":
            assert enroot_imports(running.address, "site/team/trainer", image.digest, arch="arm64") == twin
            assert judged.problem is None, "a 401 is all that enroot asks for before it names what it accepts"
        else:
            with pytest.raises(Refused, match="404"):
                enroot_imports(running.address, "site/team/trainer", image.digest, arch="arm64")
            assert judged.hidden
