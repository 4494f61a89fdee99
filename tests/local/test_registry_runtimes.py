"""Registries are asked as each runtime asks, and what hides an image from one of them is found."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airferry.bundle.twins import put_twin
from airferry.config import Executor
from airferry.jobs.images import ask_images
from airferry.oci.copy import copy_image
from airferry.oci.documents import DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.credentials import Credential
from airferry.registry.retry import RetryPolicy
from airferry.registry.runtimes import Runtime, pull_as
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.trial import try_registry
from oci_images import make_image, put_image, put_index, put_manifest
from scripted_registry import Exchange, ScriptedRegistry, error_document, run_scripted

QUICK = RetryPolicy(attempts=1, sleep=lambda _seconds: None)
OPTIONS = ClientOptions(
    plain_http=True, retry=QUICK, lookup=lambda _registry, _repository: Credential("user", "word-to-pass")
)
RUNTIMES: tuple[Runtime, ...] = ("enroot", "containerd", "podman", "docker")
BASIC = "Basic " + base64.b64encode(b"user:word-to-pass").decode()


def hide_indexes(exchange: Exchange) -> bool:
    """Answer as docker-registry 2.8 does: OCI documents are there for those alone who name their type."""
    if "/manifests/" not in exchange.call.path or exchange.call.method not in ("GET", "HEAD"):
        return False
    registry = exchange.registry
    key = exchange.call.path.removeprefix("/v2/").replace("/manifests/", "@")
    held = registry.manifests.get(key)
    if held is None or held[1] not in (IMAGE_INDEX, IMAGE_MANIFEST):
        return False
    if held[1] in exchange.call.headers.get("Accept", ""):
        return False
    return exchange.answer(404, error_document("MANIFEST_UNKNOWN", "OCI index found, but accept header"))


def asks_for_password(exchange: Exchange) -> bool:
    if exchange.call.headers.get("Authorization") == BASIC:
        return False
    return exchange.answer(401, WWW_Authenticate='Basic realm="here"')


def asks_for_token(exchange: Exchange) -> bool:
    if exchange.call.path == "/token":
        return exchange.answer(200, b'{"token": "abc"}')
    if exchange.call.headers.get("Authorization") == "Bearer abc":
        return False
    realm = f"http://{exchange.registry.address}/token"
    return exchange.answer(401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"')


@contextmanager
def holding(
    tmp_path: Path, *faults: Callable[[Exchange], bool], kind: str = "gzip"
) -> Iterator[tuple[ScriptedRegistry, RegistrySource, str, str]]:
    """Give a registry that holds an image for two platforms and its twin: their digests come last."""
    store = LayoutStore.create(tmp_path / "layout")
    if kind == "zstd":
        index, _entry = make_image(store)
    else:
        index = put_index(store, [put_image(store, [{"a": b"1"}], platform=p, kind=kind)[0] for p in PLATFORMS])
    with run_scripted() as registry, RegistryClient(registry.address, options=OPTIONS) as client:
        sink = RegistrySink(client, "team/image")
        twin = put_twin(store, index)
        for descriptor in (index, twin):
            copy_image(store, sink, descriptor)
        registry.faults += faults
        registry.calls.clear()
        yield registry, RegistrySource(client, "team/image"), index.digest, twin.digest


PLATFORMS = ("linux/amd64", "linux/arm64")
ARM = parse_platform("linux/arm64")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_pulls_from_a_registry_that_hides_nothing(tmp_path: Path, runtime: Runtime) -> None:
    with holding(tmp_path) as (_registry, source, index, twin):
        for digest in (index, twin):
            answer = pull_as(runtime, source, digest, platform=ARM)
            assert answer.problem is None and answer.manifest is not None
        assert pull_as(runtime, source, "sha256:" + "0" * 64).missing


def test_enroot_alone_is_shown_no_index_and_is_shown_the_twin(tmp_path: Path) -> None:
    with holding(tmp_path, hide_indexes) as (registry, source, index, twin):
        hidden = pull_as("enroot", source, index, platform=ARM)
        assert hidden.hidden and not hidden.missing
        assert "answers 404 to `HEAD …/manifests/" in (hidden.problem or "")
        assert "names no media type" in (hidden.problem or "")
        for runtime in RUNTIMES[1:]:
            assert pull_as(runtime, source, index, platform=ARM).problem is None
        registry.calls.clear()
        answer = pull_as("enroot", source, twin, platform=ARM)
        assert answer.problem is None
        asked = [(call.method, call.headers["Accept"], "Authorization" in call.headers) for call in registry.calls]
        lists = f"{DOCKER_MANIFEST_LIST}, {IMAGE_INDEX}"
        manifests = f"application/vnd.docker.distribution.manifest.v2+json, {IMAGE_MANIFEST}"
        assert asked == [("HEAD", "*/*", False), ("GET", lists, False), ("GET", manifests, False)]


def test_a_password_brings_a_second_request_without_a_type_and_a_token_does_not(tmp_path: Path) -> None:
    with holding(tmp_path, asks_for_password, hide_indexes) as (registry, source, index, twin):
        hidden = pull_as("enroot", source, index)
        assert hidden.hidden and "`GET …/manifests/" in (hidden.problem or "")
        assert [call.method for call in registry.calls[:2]] == ["HEAD", "GET"]
        assert pull_as("enroot", source, twin).problem is None
    with holding(tmp_path, asks_for_token, hide_indexes) as (_registry, source, index, _twin):
        assert pull_as("enroot", source, index, platform=ARM).problem is None


def test_enroot_before_lists_takes_a_docker_manifest_alone(tmp_path: Path) -> None:
    with holding(tmp_path, hide_indexes) as (_registry, source, _index, twin):
        assert pull_as("enroot", source, twin, version=(3, 4, 0)).problem is not None
        for version in ((3, 4), (3, 4, 1), (3, 5), (4, 1, 2), ()):
            assert pull_as("enroot", source, twin, version=version).problem is None


def test_another_platform_and_mixed_layers_are_said(tmp_path: Path) -> None:
    with holding(tmp_path) as (_registry, source, index, _twin):
        answer = pull_as("enroot", source, index, platform=parse_platform("linux/ppc64le"))
        assert "finds no image for `linux/ppc64le`" in (answer.problem or "")
    store = LayoutStore.create(tmp_path / "mixed")
    first = put_image(store, [{"a": b"1"}], kind="zstd")[1]
    second = put_image(store, [{"b": b"2"}], kind="gzip")[1]
    mixed = put_manifest(store, [*first, *second])
    with run_scripted() as registry, RegistryClient(registry.address, options=OPTIONS) as client:
        copy_image(store, RegistrySink(client, "team/image"), mixed)
        source = RegistrySource(client, "team/image")
        assert "up to 4.1.2" in (pull_as("enroot", source, mixed.digest, version=(4, 1, 2)).problem or "")
        assert pull_as("enroot", source, mixed.digest, version=(4, 2)).problem is None
        assert registry.count("PUT") > 0


@pytest.mark.parametrize(
    ("executor", "problem"),
    [("slurm-pyxis:3.5", "cannot read"), ("docker:20.10", "cannot read"), ("slurm-pyxis:4.0", None), ("podman", None)],
)
def test_layers_that_an_executor_cannot_read_are_a_problem(tmp_path: Path, executor: str, problem: Any) -> None:
    with holding(tmp_path, kind="zstd") as (registry, _source, index, _twin):
        name = f"{registry.address}/team/image@{index}"
        chosen = Executor.model_validate(executor)
        said = ask_images([name], executor=chosen, platform=None, options=OPTIONS)[name]
        assert said.found and (problem in (said.problem or "") if problem else said.problem is None)
        assert (said.fix is not None) == (problem is not None)


@pytest.mark.parametrize(("hides", "refuses"), [(False, False), (True, False), (False, True)])
def test_a_probe_tells_what_enroot_finds(hides: bool, refuses: bool) -> None:
    def refuse(exchange: Exchange) -> bool:
        kind = exchange.call.headers.get("Content-Type", "")
        if not (exchange.call.method == "PUT" and "docker" in kind):
            return False
        exchange.read_body()
        return exchange.answer(415, error_document("MANIFEST_INVALID"))

    faults = ([hide_indexes] if hides else []) + ([refuse] if refuses else [])
    with run_scripted(list(faults)) as registry, RegistryClient(registry.address, options=OPTIONS) as client:
        profile = try_registry(client, "try")
        assert (profile.shows_oci_to_enroot, profile.takes_docker_lists) == (not hides, not refuses)
        assert not [key for key in registry.manifests if "@sha256" in key], "what was stored is removed"
