"""Registries and proxies as others' bug reports describe them: a load arrives whole, or says what is to be done."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airferry import api
from airferry.errors import RegistryError
from airferry.events import Warned
from airferry.registry.client import ClientOptions
from airferry.registry.credentials import Credential
from airferry.registry.retry import RetryPolicy
from oci_images import REFERENCE, make_bundle
from scripted_registry import Exchange, Fault, ScriptedRegistry, error_document, run_scripted, sha256

OPTIONS = ClientOptions(
    plain_http=True,
    lookup=lambda _registry, _repository: None,
    retry=RetryPolicy(attempts=3, sleep=lambda _seconds: None),
)
pytestmark = pytest.mark.usefixtures("unsettled")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reported") / "bundle"
    make_bundle(path, twins=True)
    return path


def load(bundle: Path, registry: ScriptedRegistry, **more: Any) -> tuple[api.LoadOutcome, list[str]]:
    events: list[Any] = []
    to = api.parse_destination(f"{registry.address}/site", artifacts=more.pop("artifacts", "try"))
    receipt = bundle.parent / f"receipt-{registry.address}.yaml"
    outcome = api.load(bundle, to=to, receipt=receipt, options=OPTIONS, emit=events.append, **more)
    return outcome, [event.text for event in events if isinstance(event, Warned)]


def answers(matches: Callable[[Exchange], bool], status: int, code: str = "DENIED", text: str = "") -> Fault:
    def fault(exchange: Exchange) -> bool:
        if not matches(exchange):
            return False
        exchange.read_body()
        return exchange.answer(status, error_document(code, text))

    return fault


def puts_referrer(exchange: Exchange) -> bool:
    """Match the PUT of a manifest that has a subject; its body can be read again."""
    if exchange.call.method != "PUT" or "/manifests/" not in exchange.call.path:
        return False
    body = exchange.read_body()

    def read_again() -> bytes:
        del exchange.read_body
        return body

    exchange.read_body = read_again  # type: ignore[method-assign]
    return b'"subject"' in body


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 500])
def test_a_mount_that_is_refused_is_an_upload(bundle: Path, registry: ScriptedRegistry, status: int) -> None:
    # containerd#14086, oras#1892: who may push here need not be allowed to read there
    registry.faults.append(answers(lambda exchange: "mount" in exchange.call.query, status))
    outcome, warned = load(bundle, registry, artifacts="require")
    assert warned == [] and outcome.receipt.left_out == () and outcome.pushed.mounted_blobs == 0
    assert sum("mount" in call.query for call in registry.calls) <= 4, "it is asked once, not for each blob"


@pytest.mark.parametrize(
    ("status", "code"), [(404, "MANIFEST_UNKNOWN"), (404, "NOT_FOUND"), (400, "MANIFEST_BLOB_UNKNOWN")]
)
def test_a_referrer_that_is_refused_as_if_a_part_was_missing_is_left_out(
    bundle: Path, registry: ScriptedRegistry, status: int, code: str
) -> None:
    # docker/hub-feedback#2307, oras#666
    registry.faults.append(answers(puts_referrer, status, code))
    outcome, warned = load(bundle, registry)
    assert len(outcome.receipt.left_out) == 1
    assert "does not take 1 artifact" in warned[0] and len(outcome.moved_tags) == 3
    with pytest.raises(RegistryError, match=code):
        load(bundle, registry, artifacts="require")


def test_a_part_that_is_really_missing_is_no_refusal(bundle: Path, registry: ScriptedRegistry) -> None:
    def loses(exchange: Exchange) -> bool:
        if not puts_referrer(exchange):
            return False
        registry.blobs.clear()
        exchange.read_body()
        return exchange.answer(400, error_document("MANIFEST_BLOB_UNKNOWN"))

    registry.faults.append(loses)
    with pytest.raises(RegistryError, match="MANIFEST_BLOB_UNKNOWN") as caught:
        load(bundle, registry)
    assert "has lost a part" in (caught.value.hint or "")


def cache_outlives(registry: ScriptedRegistry, *, forgets: bool) -> Fault:
    """Answer for blobs that are gone, as distribution's cache does after `garbage-collect`: with a promise."""
    sizes = {digest: len(data) for digest, data in registry.blobs.items()}
    gone = set(sizes)

    def fault(exchange: Exchange) -> bool:
        found = re.search(r"/blobs/(sha256:[0-9a-f]+)$", exchange.call.path)
        stored = exchange.call.query.get("digest", [""])[0]
        if exchange.call.method == "PUT" and stored in gone and forgets:
            gone.discard(stored)
        if found is None or found[1] not in gone or exchange.call.method not in ("GET", "HEAD"):
            return False
        if exchange.call.method == "HEAD":
            return exchange.answer(200, Content_Length=str(sizes[found[1]]))
        exchange.answer(206, Content_Length="1", Content_Range=f"bytes 0-0/{sizes[found[1]]}")
        exchange.close_connection = True
        return True

    return fault


def test_blobs_that_a_cache_promises_after_a_garbage_collection_are_sent_again(
    bundle: Path, registry: ScriptedRegistry
) -> None:
    # distribution#3743, #4569, #2966
    load(bundle, registry)
    before = dict(registry.blobs)
    registry.faults.append(cache_outlives(registry, forgets=True))
    registry.blobs.clear()
    registry.manifests.clear()
    outcome, _warned = load(bundle, registry)
    assert before.items() <= registry.blobs.items()
    # what one repository was sent again, another one may find there
    assert outcome.pushed.sent_blobs >= len(before)


def test_manifests_go_as_blobs_too_where_a_cache_names_what_is_gone(bundle: Path, registry: ScriptedRegistry) -> None:
    load(bundle, registry)
    registry.faults.append(cache_outlives(registry, forgets=True))
    registry.blobs.clear()
    registry.manifests.clear()
    load(bundle, registry)
    digests = {key.rpartition("@")[2] for key in registry.manifests if "team/trainer@sha256:" in key}
    assert digests and digests - set(registry.blobs) <= _referrer_lists(registry)


def _referrer_lists(registry: ScriptedRegistry) -> set[str]:
    return {sha256(data) for key, (data, _kind) in registry.manifests.items() if "@sha256-" in key}


def test_a_copy_that_a_registry_accepts_and_loses_is_no_success(bundle: Path, registry: ScriptedRegistry) -> None:
    def loses(exchange: Exchange) -> bool:
        if not puts_tag(exchange):
            return False
        return exchange.answer(201, Docker_Content_Digest=sha256(exchange.read_body()))

    registry.faults.append(loses)
    with pytest.raises(RegistryError, match="accepted the image, and has lost it") as caught:
        api.copy(f"oci:{bundle}:{REFERENCE}", f"docker://{registry.address}/copy/trainer:1.0", options=OPTIONS)
    assert "restart the registry" in (caught.value.hint or "")


def test_a_cache_that_goes_on_promising_is_an_error_with_the_way_out(bundle: Path, registry: ScriptedRegistry) -> None:
    load(bundle, registry)
    registry.faults.append(cache_outlives(registry, forgets=False))
    registry.manifests.clear()
    with pytest.raises(RegistryError, match="cannot give it; no tag was moved") as caught:
        load(bundle, registry)
    assert "restart the registry" in (caught.value.hint or "")


def test_a_load_that_finds_all_there_reads_no_blob(bundle: Path, registry: ScriptedRegistry) -> None:
    load(bundle, registry)
    registry.calls.clear()
    outcome, _warned = load(bundle, registry)
    assert outcome.pushed.present_blobs and registry.count("GET", "/blobs/") == 0


def test_a_registry_that_names_no_digest_is_loaded(bundle: Path, registry: ScriptedRegistry) -> None:
    # go-containerregistry#1749, containerd#3238, distribution#3848
    def stripped(exchange: Exchange) -> bool:
        whole = exchange.answer

        def answer(status: int, data: bytes = b"", **headers: str) -> bool:
            headers.pop("Docker_Content_Digest", None)
            return whole(status, data, **headers)

        exchange.answer = answer  # type: ignore[method-assign]
        return False

    registry.faults.append(stripped)
    assert len(load(bundle, registry)[0].moved_tags) == 3
    assert load(bundle, registry)[0].moved_tags == ()


def test_tags_that_must_not_move_do_not_stop_a_load_that_moves_none(bundle: Path, registry: ScriptedRegistry) -> None:
    # kots#5940, buildkit#3776
    load(bundle, registry)
    registry.faults.append(answers(lambda exchange: exchange.call.method == "PUT", 409, "TAG_EXISTS"))
    assert load(bundle, registry)[0].moved_tags == ()


def test_a_copy_to_a_tag_that_must_not_move_and_need_not_is_done(
    bundle: Path, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "other", "2")
    place = f"docker://{registry.address}/copy/trainer:1.0"
    api.copy(f"oci:{bundle}:{REFERENCE}", place, options=OPTIONS)
    registry.faults.append(answers(puts_tag, 409))
    api.copy(f"oci:{bundle}:{REFERENCE}", place, options=OPTIONS)
    with pytest.raises(RegistryError, match="409"):
        api.copy(f"oci:{tmp_path / 'other'}:{REFERENCE}", place, options=OPTIONS)


def puts_tag(exchange: Exchange) -> bool:
    return exchange.call.method == "PUT" and exchange.call.path.endswith("/manifests/1.0")


def test_who_may_read_without_a_login_is_asked_for_one_to_push(bundle: Path, registry: ScriptedRegistry) -> None:
    # docker/cli#745
    def guarded(exchange: Exchange) -> bool:
        if exchange.call.method in ("GET", "HEAD") or "Authorization" in exchange.call.headers:
            return False
        exchange.read_body()
        return exchange.answer(401, WWW_Authenticate='Basic realm="push"')

    registry.faults.append(guarded)
    with pytest.raises(RegistryError) as caught:
        load(bundle, registry)
    assert "airferry login" in (caught.value.hint or "")
    user = api.ClientOptions(
        plain_http=True, lookup=lambda _registry, _repository: Credential("user", "password"), retry=OPTIONS.retry
    )
    receipt = bundle.parent / "receipt-guarded.yaml"
    assert api.load(bundle, to=f"{registry.address}/site", receipt=receipt, options=user).moved_tags


def test_a_token_server_that_wants_an_organization_first_says_so(bundle: Path, registry: ScriptedRegistry) -> None:
    # oc-mirror#441: Quay makes none by itself
    def quay(exchange: Exchange) -> bool:
        if exchange.call.path == "/token":
            return exchange.answer(400, error_document("UNSUPPORTED", "Cannot create organization"))
        exchange.read_body()
        realm = f"http://{registry.address}/token"
        return exchange.answer(401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"')

    registry.faults.append(quay)
    with pytest.raises(RegistryError, match="Cannot create organization") as caught:
        load(bundle, registry)
    assert "create what `--to` names first" in (caught.value.hint or "")


def test_manifests_that_only_a_tag_shows_are_named_as_that(bundle: Path, registry: ScriptedRegistry) -> None:
    # artifact-keeper#1681
    def tagged_only(exchange: Exchange) -> bool:
        found = re.fullmatch(r"/v2/(.+)/manifests/(sha256:[0-9a-f]+)", exchange.call.path)
        if found is None or exchange.call.method not in ("GET", "HEAD"):
            return False
        tagged = [
            sha256(data)
            for key, (data, _kind) in registry.manifests.items()
            if key.startswith(f"{found[1]}@") and "@sha256:" not in key
        ]
        if found[2] in tagged:
            return False
        return exchange.answer(404, error_document("MANIFEST_UNKNOWN"))

    registry.faults.append(tagged_only)
    with pytest.raises(RegistryError, match="has lost content") as caught:
        load(bundle, registry)
    assert "only as long as a tag names them" in (caught.value.hint or "")


def test_a_tag_that_must_not_move_is_said_and_the_rest_can_go_on(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")

    def immutable(exchange: Exchange) -> bool:
        if exchange.call.method != "PUT" or not exchange.call.path.endswith("/team/trainer/manifests/1.0"):
            return False
        exchange.read_body()
        return exchange.answer(412, error_document("PRECONDITION", "tag is immutable"))

    def loaded(address: str) -> None:
        api.load(tmp_path / "bundle", to=f"{address}/site", receipt=tmp_path / "receipt.yaml", options=OPTIONS)

    with run_scripted([immutable]) as registry:
        with pytest.raises(RegistryError, match="0 of 2 tags were moved") as caught:
            loaded(registry.address)
        assert "must not move" in (caught.value.hint or "")
        assert (caught.value.hint or "").endswith("after that, the same load moves the remaining tags")
        registry.faults.clear()
        loaded(registry.address)
        assert "site/team/trainer@1.0" in registry.manifests
