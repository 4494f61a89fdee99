"""What a probe finds out of types, sizes and names, and what a dry run says of it before anything is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airferry import api
from airferry.bundle.artifacts import LOCK_ARTIFACT, REQUIREMENTS_ARTIFACT
from airferry.cli.app import run
from airferry.errors import RegistryError
from airferry.events import Event, Notice, Warned
from airferry.far.bundle_facts import has_twins, shipments_of
from airferry.far.registries import ProbeOutcome
from airferry.host import clock
from airferry.oci.documents import (
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    EMPTY_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_GZIP,
    LAYER_ZSTD,
)
from airferry.registry.client import ClientOptions
from airferry.registry.profile import RegistryProfile, read_profile, write_profile
from airferry.registry.retry import RetryPolicy
from airferry.registry.trials.kinds import PROBE_ARTIFACT
from next_steps import next_commands
from oci_images import make_bundle
from scripted_registry import Exchange, Fault, ScriptedRegistry, error_document, sha256

MIB = 1024 * 1024
OPTIONS = ClientOptions(
    plain_http=True,
    lookup=lambda _registry, _repository: None,
    retry=RetryPolicy(attempts=2, sleep=lambda _seconds: None),
)
pytestmark = pytest.mark.usefixtures("unsettled")


def refuse_manifests(holds: Callable[[str, dict[str, Any]], bool], status: int = 400) -> Fault:
    """Refuse manifests by their media type and content, as allow-lists do."""

    def fault(exchange: Exchange) -> bool:
        call = exchange.call
        if call.method != "PUT" or "/manifests/" not in call.path:
            return False
        body = exchange.read_body()
        if holds(call.headers["Content-Type"], json.loads(body)):
            return exchange.answer(status, error_document("MANIFEST_INVALID"))

        def read_again() -> bytes:
            del exchange.read_body
            return body

        exchange.read_body = read_again  # type: ignore[method-assign]
        return False

    return fault


def at_most(size: int, methods: tuple[str, ...] = ("PATCH", "PUT")) -> Fault:
    def fault(exchange: Exchange) -> bool:
        call = exchange.call
        if call.method not in methods or int(call.headers.get("Content-Length", "0")) <= size:
            return False
        exchange.read_body()
        return exchange.answer(413)

    return fault


def no_chunks(exchange: Exchange) -> bool:
    if exchange.call.method != "PATCH":
        return False
    exchange.read_body()
    return exchange.answer(405)


def names_of(parts: int, status: int = 404) -> Fault:
    def fault(exchange: Exchange) -> bool:
        found = re.match(r"/v2/(.+)/(?:blobs|manifests|tags|referrers)/", exchange.call.path)
        if found is None or found[1].count("/") < parts:
            return False
        exchange.read_body()
        return exchange.answer(status, error_document("NAME_INVALID"))

    return fault


def has_zstd(_kind: str, document: dict[str, Any]) -> bool:
    return any(layer["mediaType"] == LAYER_ZSTD for layer in document.get("layers", ()))


def is_artifact(_kind: str, document: dict[str, Any]) -> bool:
    return document.get("artifactType", "").startswith("application/vnd.")


def probe(registry: ScriptedRegistry, largest: int = MIB) -> RegistryProfile:
    return api.probe_registry(f"{registry.address}/x", largest_bytes=largest, options=OPTIONS).profile


# --- types -----------------------------------------------------------------------------------------------------------


def test_a_registry_that_takes_all_is_left_as_it_was(registry: ScriptedRegistry) -> None:
    profile = probe(registry)
    assert set(profile.media_types.values()) == set(profile.artifact_types.values()) == {True}
    assert {LOCK_ARTIFACT, REQUIREMENTS_ARTIFACT, PROBE_ARTIFACT} < set(profile.artifact_types)
    assert {name for name in registry.manifests if "sha256:" in name} == set() and registry.sessions == {}


@pytest.mark.parametrize(
    ("holds", "status", "refused"),
    [
        (lambda kind, _document: kind == IMAGE_INDEX, 400, {IMAGE_INDEX}),
        (lambda kind, _document: "docker" in kind, 415, {DOCKER_MANIFEST, DOCKER_MANIFEST_LIST}),
        (lambda kind, _document: kind == DOCKER_MANIFEST_LIST, 404, {DOCKER_MANIFEST_LIST}),
        (has_zstd, 422, {LAYER_ZSTD}),
    ],
)
def test_what_is_refused_is_said_of_that_type_alone(
    registry: ScriptedRegistry,
    holds: Callable[[str, dict[str, Any]], bool],
    status: int,
    refused: set[str],
) -> None:
    registry.faults.append(refuse_manifests(holds, status))
    profile = probe(registry)
    assert {name for name, taken in profile.media_types.items() if taken is False} == refused
    assert {name for name, taken in profile.media_types.items() if taken} == set(profile.media_types) - refused
    assert set(profile.artifact_types.values()) == {True}


def test_a_registry_without_artifacts_is_probed_all_the_same(registry: ScriptedRegistry) -> None:
    registry.faults.append(refuse_manifests(is_artifact))
    profile = probe(registry)
    assert set(profile.artifact_types.values()) == {False} and profile.media_types[EMPTY_CONFIG] is False
    assert profile.media_types[IMAGE_MANIFEST] is profile.media_types[LAYER_GZIP] is True
    assert profile.deletes_tags and profile.deletes_manifests and profile.shows_oci_to_enroot is not None


def test_a_type_that_makes_a_registry_fail_is_unknown_and_the_rest_is_known(registry: ScriptedRegistry) -> None:
    registry.faults.append(refuse_manifests(lambda _kind, document: document.get("artifactType") == LOCK_ARTIFACT, 500))
    profile = probe(registry)
    assert profile.artifact_types[LOCK_ARTIFACT] is None
    assert profile.artifact_types[REQUIREMENTS_ARTIFACT] is profile.artifact_types[PROBE_ARTIFACT] is True


def test_a_registry_that_takes_no_manifest_at_all_still_tells_its_sizes(registry: ScriptedRegistry) -> None:
    registry.faults.append(refuse_manifests(lambda _kind, _document: True))
    profile = probe(registry)
    assert True not in profile.media_types.values() and profile.deletes_tags is None
    assert profile.largest_chunk_bytes == MIB


# --- sizes and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "chunk", "whole", "limit"),
    [
        (None, MIB, 2 * MIB, None),
        (at_most(MIB), MIB, MIB, MIB),
        (at_most(MIB - 1), MIB // 2, None, MIB // 2),
        (at_most(MIB // 2, ("PUT",)), MIB, MIB // 2, MIB // 2),
        (no_chunks, None, 2 * MIB, None),
        (at_most(1000), None, None, 256 * 1024),
    ],
)
def test_the_largest_request_that_came_through_is_told_and_what_was_tried(
    registry: ScriptedRegistry,
    fault: Fault | None,
    chunk: int | None,
    whole: int | None,
    limit: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airferry.registry.trial.CHUNK_BYTES", MIB)
    registry.faults += [fault] if fault is not None else []
    profile = probe(registry, 2 * MIB)
    assert (profile.largest_chunk_bytes, profile.largest_upload_bytes) == (chunk, whole)
    assert (profile.largest_request_bytes, profile.largest_tried_bytes) == (limit, 2 * MIB)
    sent = sum(int(call.headers.get("Content-Length", "0")) for call in registry.calls if "/uploads/" in call.path)
    assert sent < 8 * MIB and registry.sessions == {}


def test_a_connection_that_breaks_on_a_chunk_leaves_that_unknown_alone(registry: ScriptedRegistry) -> None:
    registry.faults.append(lambda exchange: exchange.call.method == "PATCH" and exchange.reset())
    profile = probe(registry)
    assert (profile.chunks, profile.largest_chunk_bytes, profile.largest_upload_bytes) == (None, None, MIB)
    assert profile.media_types[IMAGE_MANIFEST]


def test_an_upload_that_is_stored_under_a_digest_that_is_not_its_own_is_removed(registry: ScriptedRegistry) -> None:
    def believes(exchange: Exchange) -> bool:
        if exchange.call.method != "PUT" or "/uploads/" not in exchange.call.path:
            return False
        registry.blobs[exchange.call.query["digest"][0]] = exchange.read_body()
        return exchange.answer(201)

    def removes(exchange: Exchange) -> bool:
        if exchange.call.method != "DELETE" or "/blobs/sha256:" not in exchange.call.path:
            return False
        registry.blobs.pop(exchange.call.path.rpartition("/")[2], None)
        return exchange.answer(202)

    registry.faults += [no_chunks, believes, removes]
    assert probe(registry).largest_upload_bytes == MIB
    assert all(len(data) < MIB for data in registry.blobs.values())


@pytest.mark.parametrize(("most", "told"), [(1, 1), (2, 2), (5, 5), (7, 6), (99, 8)])
@pytest.mark.parametrize("status", [400, 404])
def test_the_deepest_name_is_found_without_leaving_a_session(
    registry: ScriptedRegistry, most: int, told: int, status: int
) -> None:
    registry.faults.append(names_of(most, status))
    profile = probe(registry)
    assert (profile.deepest_name, profile.deepest_tried, profile.limits_names) == (told, 8, told < 8)
    assert profile.mounts is (None if most == 1 else False) and registry.sessions == {}


@pytest.mark.parametrize("given", ["1K", "2G", "0", "much"])
def test_sizes_that_cannot_be_tried_are_refused_before_anything_is_sent(
    registry: ScriptedRegistry, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["registry", "probe", registry.address, "--plain-http", "--largest", given]) == 2
    assert "expected bytes" in (said := capsys.readouterr().err) or "out of range" in said
    assert registry.calls == []


# --- what a dry run says ---------------------------------------------------------------------------------------------


def dry_run(tmp_path: Path, registry: ScriptedRegistry, **changes: Any) -> tuple[list[Warned], api.LoadOutcome]:
    """Load for show, with a profile that knows this, and return the warnings."""
    if not (tmp_path / "bundle").exists():
        make_bundle(tmp_path / "bundle", twins=True)
    choice = changes.pop("artifacts", "try")
    profile = RegistryProfile(registry=registry.address, probed_at=clock.rfc3339(clock.now_s()), **changes)
    write_profile(profile)
    events: list[Any] = []
    to = api.parse_destination(f"{registry.address}/a/b", artifacts=choice)
    outcome = api.load(tmp_path / "bundle", to=to, dry_run=True, options=OPTIONS, emit=events.append)
    warned = [event for event in events if isinstance(event, Warned)]
    assert outcome.foreseen == outcome.to_document()["foreseen"] or list(outcome.foreseen) == [
        event.text for event in warned
    ]
    assert {call.method for call in registry.calls} <= {"GET", "HEAD"}, "a dry run writes nothing"
    return warned, outcome


def test_a_dry_run_names_what_a_registry_refuses_of_this_bundle(tmp_path: Path, registry: ScriptedRegistry) -> None:
    (warned, _twin), _outcome = dry_run(tmp_path, registry, media_types={LAYER_ZSTD: False, "text/x-other": False})
    assert LAYER_ZSTD in warned.text and "the load would fail" in warned.text and "text/x-other" not in warned.text
    assert "compression: gzip" in (warned.hint or "")
    (warned,), _outcome = dry_run(tmp_path, registry, media_types={IMAGE_INDEX: False})
    assert IMAGE_INDEX in warned.text and "takes lists of images" in (warned.hint or "")


@pytest.mark.parametrize("shows", [True, False])
def test_a_dry_run_says_that_twins_would_be_left_out(tmp_path: Path, registry: ScriptedRegistry, shows: bool) -> None:
    types = {DOCKER_MANIFEST_LIST: False}
    (warned,), _outcome = dry_run(tmp_path, registry, media_types=types, shows_oci_to_enroot=shows)
    assert "would leave out 1 Docker twin" in warned.text
    assert ("cannot import" in (warned.hint or "")) is not shows


@pytest.mark.parametrize("choice", ["try", "require", "skip"])
def test_a_dry_run_says_what_becomes_of_artifacts(tmp_path: Path, registry: ScriptedRegistry, choice: str) -> None:
    kinds = {REQUIREMENTS_ARTIFACT: False, PROBE_ARTIFACT: True}
    warned, _outcome = dry_run(tmp_path, registry, artifact_types=kinds, artifacts=choice)
    if choice == "skip":
        assert warned == []
        return
    assert REQUIREMENTS_ARTIFACT in warned[0].text
    assert ("would leave out 1 artifact" in warned[0].text) is (choice == "try")
    assert ("would fail for 1 artifact" in warned[0].text) is (choice == "require")


def test_types_that_were_not_tried_are_judged_by_the_one_that_nobody_knows(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    (warned,), _outcome = dry_run(tmp_path, registry, artifact_types={PROBE_ARTIFACT: False})
    assert "would leave out 2 artifacts" in warned.text


def test_a_dry_run_names_repositories_that_are_too_deep(tmp_path: Path, registry: ScriptedRegistry) -> None:
    (warned,), _outcome = dry_run(tmp_path, registry, deepest_name=3, deepest_tried=8)
    assert "takes names of 3 parts" in warned.text and "`a/b/team/trainer`" in warned.text
    assert "--flatten" in (warned.hint or "")
    assert dry_run(tmp_path, registry, deepest_name=8, deepest_tried=8)[0] == []


@pytest.mark.parametrize("chunks", [True, False])
def test_a_dry_run_says_how_large_blobs_would_go(
    tmp_path: Path, registry: ScriptedRegistry, chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airferry.far.foreseen.size_text", lambda size: f"{size} B")
    known = RegistryProfile(registry=registry.address).model_copy(
        update={"largest_request_bytes": 10, "chunks": chunks, "probed_at": clock.rfc3339(clock.now_s())}
    )
    monkeypatch.setattr("airferry.far.load.read_profile", lambda _registry: known)
    (warned,), _outcome = dry_run(tmp_path, registry)
    assert ("would go in chunks" in warned.text) is chunks and ("would fail" in warned.text) is not chunks


def test_a_dry_run_that_knows_nothing_says_what_finds_out_and_asks_nothing_more(
    tmp_path: Path, registry: ScriptedRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "bundle")
    events: list[Any] = []
    to = f"{registry.address}/a"
    api.load(tmp_path / "bundle", to=to, dry_run=True, options=OPTIONS, emit=events.append)
    (notice,) = [event.text for event in events if isinstance(event, Notice) and "not known of" in event.text]
    assert f"airferry registry probe {to}/airferry-probe" in notice
    assert {call.method for call in registry.calls} <= {"GET", "HEAD"}


def test_a_probe_that_is_allowed_comes_first_and_stays_below_the_prefix(
    tmp_path: Path, registry: ScriptedRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "bundle")
    registry.faults.append(refuse_manifests(is_artifact))
    arguments = ["load", str(tmp_path / "bundle"), "--to", f"{registry.address}/a", "--plain-http", "--probe"]
    assert run(arguments) == 2 and registry.calls == []
    assert "`--probe` requires `--dry-run`" in capsys.readouterr().err
    assert run([*arguments, "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["foreseen"][0].endswith("the load would leave out 2 artifacts")
    written = {call.path for call in registry.calls if call.method not in ("GET", "HEAD")}
    assert written and all(path.startswith("/v2/a/airferry-probe/") for path in written)


# --- facts age -------------------------------------------------------------------------------------------------------


def test_refusals_are_forgotten_after_a_day_and_by_a_load_that_shows_otherwise(
    tmp_path: Path, registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "bundle")
    profile = RegistryProfile(
        registry=registry.address,
        probed_at=clock.rfc3339(clock.now_s()),
        media_types={LAYER_ZSTD: False, DOCKER_MANIFEST: False, IMAGE_MANIFEST: True},
        artifact_types={REQUIREMENTS_ARTIFACT: False, LOCK_ARTIFACT: False},
        deepest_name=2,
        deepest_tried=8,
    )
    write_profile(profile)
    receipt = tmp_path / "receipt.yaml"
    api.load(tmp_path / "bundle", to=f"{registry.address}/a/b", receipt=receipt, options=OPTIONS)
    known = read_profile(registry.address)
    assert known.media_types == {LAYER_ZSTD: None, DOCKER_MANIFEST: False, IMAGE_MANIFEST: True}
    assert known.artifact_types == {REQUIREMENTS_ARTIFACT: None, LOCK_ARTIFACT: False}
    assert known.deepest_name is None
    write_profile(profile)
    later = clock.now_s() + 25 * 3600
    monkeypatch.setattr(clock, "now_s", lambda: later)
    known = read_profile(registry.address)
    assert known.media_types == {LAYER_ZSTD: None, DOCKER_MANIFEST: None, IMAGE_MANIFEST: True}
    assert set(known.artifact_types.values()) == {None} and not known.limits_names


# --- what stays ------------------------------------------------------------------------------------------------------


def no_deletions(exchange: Exchange) -> bool:
    """Remove no manifest, blob or tag, as registries do by default; upload sessions are ended all the same."""
    is_session = "/uploads/" in exchange.call.path
    return exchange.call.method == "DELETE" and not is_session and exchange.answer(405)


def repositories(registry: ScriptedRegistry) -> set[str]:
    names = (re.match(r"/v2/(.+)/(?:blobs|manifests)/", call.path) for call in registry.calls if call.method != "HEAD")
    return {found[1] for found in names if found}


def outcome(registry: ScriptedRegistry, events: list[Event]) -> api.ProbeOutcome:
    return api.probe_registry(registry.address, largest_bytes=MIB, options=OPTIONS, emit=events.append)


def test_what_a_probe_cannot_remove_is_named_with_the_way_out(registry: ScriptedRegistry) -> None:
    registry.faults.append(no_deletions)
    events: list[Event] = []
    first = outcome(registry, events)
    (text,) = [event.text for event in events if isinstance(event, Notice)]
    assert "`airferry-probe`" in text and "garbage collection" in text and "1 tag that it does not remove" in text
    left = first.to_document()["left"]
    assert left["tags"] == ["airferry-probe"]
    stored = {key.partition("@")[2] for key in registry.manifests}
    assert {*left["manifests"], *left["tags"]} == stored
    assert all(entry.partition("@")[2] in registry.blobs for entry in left["blobs"])
    # whatever is probed how often, it is in the same repositories, under the same tag
    assert repositories(registry) == set(left["repositories"])
    assert all(name.split("/")[0] == "airferry-probe" for name in left["repositories"])
    second = outcome(registry, events)
    assert second.left.repositories == first.left.repositories
    assert [key for key in registry.manifests if "sha256:" not in key] == ["airferry-probe@airferry-probe"]
    # once the registry removes something, what an earlier probe left under the tag goes too
    registry.faults.clear()
    earlier = sha256(registry.manifests["airferry-probe@airferry-probe"][0])
    third = outcome(registry, events)
    assert (third.left.manifests, third.left.blobs, third.left.tags) == ([], [], [])
    assert f"airferry-probe@{earlier}" not in registry.manifests
    assert "airferry-probe@airferry-probe" not in registry.manifests


def test_a_tag_that_never_moves_ends_no_probe(registry: ScriptedRegistry) -> None:
    registry.faults.append(no_deletions)
    outcome(registry, [])
    held = registry.manifests["airferry-probe@airferry-probe"]
    registry.faults.append(
        lambda exchange: (
            exchange.call.method == "PUT"
            and exchange.call.path.endswith("/manifests/airferry-probe")
            and bool(exchange.read_body())
            and exchange.answer(409)
        )
    )
    assert outcome(registry, []).profile.deletes_tags is False
    assert registry.manifests["airferry-probe@airferry-probe"] == held


def test_a_probe_that_fails_removes_what_it_put_there(registry: ScriptedRegistry) -> None:
    registry.faults.append(lambda exchange: "/referrers/" in exchange.call.path and exchange.answer(500))
    events: list[Event] = []
    with pytest.raises(RegistryError):
        outcome(registry, events)
    assert registry.manifests == {} and registry.sessions == {}
    (text,) = [event.text for event in events if isinstance(event, Notice)]
    assert "empty: `airferry-probe`" in text


def test_the_facts_are_told_for_a_bundle_and_the_registry_of_the_site_is_the_default(
    tmp_path: Path, registry: ScriptedRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_bundle(tmp_path / "out" / "bundle")
    words = ["registry", "probe", "--bundle", "out", "--largest", "1M"]
    assert run(words) == 2, "no registry is named"
    to = f"{registry.address}/airgap"
    (tmp_path / "site.yaml").write_text(f"registry: {to}\n")
    capsys.readouterr()
    assert run(words) == 0
    captured = capsys.readouterr()
    lines = dict(line.split("  ")[::2] for line in captured.out.splitlines())
    assert "here: in 1 of " in lines[IMAGE_INDEX] and "here: nothing in this bundle" in lines[LAYER_GZIP]
    assert "here: 1 image, no Docker twins" in lines["shows_oci_to_enroot"]
    assert "here: the deepest name has 3 parts" in lines["deepest_name"]
    assert "takes all of this bundle" in captured.err
    assert next_commands(captured.err) == [["load", "out", "--root", "$ROOT"]]
    assert any("airgap/airferry-probe" in call.path for call in registry.calls)
    # what the registry refuses is told for the bundle; the registry is typed as for a load
    registry.faults.append(refuse_manifests(is_artifact))
    assert run([*words, f"{to}/airferry-probe", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (foreseen,) = document["bundle"]["foreseen"]
    assert "would leave out" in foreseen and document["bundle"]["facts"]["deletes_tags"]
    assert run([*words, to]) == 0
    captured = capsys.readouterr()
    assert "warning:" in captured.err and "would leave out" in captured.err and "takes all" not in captured.err
    assert next_commands(captured.err) == [["load", "out", "--to", to, "--root", "$ROOT"]]
    assert run(["registry", "probe", "--largest", "1M"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"`{registry.address}` refuses {EMPTY_CONFIG}, " in said and "`--bundle BUNDLE` says" in said


def test_a_registry_that_cannot_be_pushed_to_keeps_nothing_of_a_probe(registry: ScriptedRegistry) -> None:
    def refuse(exchange: Exchange) -> bool:
        return exchange.call.method == "POST" and exchange.answer(403, error_document("DENIED"))

    registry.faults.append(refuse)
    told: list[Event] = []
    with pytest.raises(RegistryError, match="push to"):
        api.probe_registry(f"{registry.address}/x", options=OPTIONS, emit=told.append)
    assert not [event for event in told if isinstance(event, Notice)]


def test_twins_that_a_bundle_has_are_not_asked_for_again(tmp_path: Path) -> None:
    profile = RegistryProfile(registry="hub.site:5000", shows_oci_to_enroot=False, takes_docker_lists=True)
    destination = api.parse_destination("hub.site:5000/airgap")
    said = []
    for twins in (False, True):
        make_bundle(tmp_path / str(twins), twins=twins)
        found = has_twins(shipments_of(tmp_path / str(twins), destination))
        said.append(ProbeOutcome(profile, tmp_path, has_twins=found).advice_for_enroot or "")
    assert "build with `docker_twin: true`" in said[0]
    assert "it gets the Docker twins of this bundle" in said[1]
