"""What a trial says of a registry, each fact both ways: one thing is taken from a registry that can do all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airferry import api
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.events import Notice, Warned
from airferry.registry import trial
from airferry.registry.profile import read_profile
from oci_images import make_bundle
from scripted_registry import Call, Exchange, ScriptedRegistry, error_document, run_scripted

FACTS = {
    "mounts",
    "chunks",
    "resumes",
    "survives_breaks",
    "referrers",
    "shows_oci_to_enroot",
    "takes_docker_lists",
    "deletes_tags",
    "deletes_manifests",
    "deletes_blobs",
}
EMPTY = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRegistry]:
    # this registry has done its work when it answers
    monkeypatch.setattr(trial, "SETTLE_PAUSE_S", 0.0)
    with run_scripted() as running:
        running.mounts = True
        running.faults.append(referrers_api)
        yield running


def referrers_api(exchange: Exchange) -> bool:
    if "/referrers/" not in exchange.call.path:
        return False
    return exchange.answer(200, EMPTY, Content_Type="application/vnd.oci.image.index.v1+json")


def refuse(matches: Callable[[Call], bool], status: int) -> Callable[[Exchange], bool]:
    def fault(exchange: Exchange) -> bool:
        if not matches(exchange.call):
            return False
        exchange.read_body()
        return exchange.answer(status, error_document("UNSUPPORTED"))

    return fault


def deletes(what: str) -> Callable[[Call], bool]:
    return lambda call: call.method == "DELETE" and what in call.path and "/uploads/" not in call.path


def is_tag(call: Call) -> bool:
    return deletes("/manifests/")(call) and "/manifests/sha256:" not in call.path


def is_digest(call: Call) -> bool:
    return deletes("/manifests/sha256:")(call)


def puts_docker_list(call: Call) -> bool:
    return call.method == "PUT" and "manifest.list" in call.headers.get("Content-Type", "")


def asks_without_types(call: Call) -> bool:
    accepted = call.headers.get("Accept", "*/*")
    return call.method in ("GET", "HEAD") and "/manifests/" in call.path and "oci.image.index" not in accepted


@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        (None, set()),
        (refuse(lambda call: "/referrers/" in call.path, 404), {"referrers"}),
        (refuse(is_tag, 405), {"deletes_tags"}),
        (refuse(is_digest, 405), {"deletes_manifests"}),
        (refuse(deletes("/blobs/"), 405), {"deletes_blobs"}),
        (refuse(puts_docker_list, 415), {"takes_docker_lists"}),
        (refuse(asks_without_types, 404), {"shows_oci_to_enroot"}),
    ],
)
def test_what_a_registry_cannot_do_is_said_and_kept_and_nothing_else(
    registry: ScriptedRegistry,
    fault: Callable[[Exchange], bool] | None,
    lost: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if fault is not None:
        registry.faults.insert(0, fault)
    assert run(["registry", "probe", f"{registry.address}/x", "--plain-http", "--largest", "1M", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {name for name in FACTS if document[name] is False} == lost
    assert {name for name in FACTS if document[name] is True} == FACTS - lost
    kept = read_profile(registry.address).model_dump(mode="json")
    assert {name: kept[name] for name in FACTS} == {name: document[name] for name in FACTS}
    assert run(["registry", "probe", f"{registry.address}/x", "--plain-http", "--largest", "1M"]) == 0
    captured = capsys.readouterr()
    lines = dict(line.split("  ")[:2] for line in captured.out.splitlines())
    assert all(len(line.split("  ")) == 3 for line in captured.out.splitlines()), "each fact says what it means"
    assert {name: lines[name] for name in FACTS} == {name: "no" if name in lost else "yes" for name in FACTS}
    assert ("enroot" in captured.err) is bool(lost & {"shows_oci_to_enroot"})


def test_a_registry_without_mounts_is_told(registry: ScriptedRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    registry.mounts = False
    assert run(["registry", "probe", f"{registry.address}/x", "--plain-http", "--largest", "1M", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {name for name in FACTS if document[name] is not True} == {"mounts"}


# --- serving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_serving_says_whether_the_root_was_compared_and_all_was_verified(
    tmp_path: Path, given: bool, first: bool
) -> None:
    make_bundle(tmp_path / "bundle")
    root = open_bundle(tmp_path / "bundle").root
    events: list[Any] = []
    options = api.ServeOptions(verify_first=first)
    with api.serve(
        tmp_path / "bundle",
        listen="127.0.0.1:0",
        root=root if given else None,
        options=options,
        emit=events.append,
    ) as serving:
        assert (serving.root, serving.root_verified) == (root, given)
        assert serving.url.startswith("http://127.0.0.1:")
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert any("verified all blobs" in text for text in notices) is first
    assert not [event for event in events if isinstance(event, Warned)], "loopback needs no TLS"
