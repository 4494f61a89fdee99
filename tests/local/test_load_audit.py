"""What a load reads back before tags move: manifests and sizes, or every byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airferry.bundle.receipt import read_receipt
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.oci.closure import read_closure
from oci_images import make_bundle
from scripted_registry import Exchange, Fault, ScriptedRegistry, error_document

TAG = "airgap/team/trainer@1.0"

pytestmark = pytest.mark.usefixtures("unsettled")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    make_bundle(folder)
    return folder


def blobs(bundle: Path, *, artifacts: bool) -> dict[str, int]:
    """Return the blobs of images, or of artifacts alone, with their sizes."""
    opened = open_bundle(bundle)
    found: list[dict[str, int]] = []
    for entries in (opened.images.values(), opened.artifacts):
        closures = [read_closure(opened.documents, entry) for entry in entries]
        found.append({digest: blob.size for one in closures for digest, blob in one.blobs.items()})
    images, others = found
    return {digest: size for digest, size in others.items() if digest not in images} if artifacts else images


def load(registry: ScriptedRegistry, bundle: Path, *more: str) -> int:
    return run(["load", str(bundle), "--to", f"{registry.address}/airgap", "--plain-http", *more])


def test_every_blob_is_read_once_and_again_by_the_next_load(
    registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundle, "--json") == 0
    assert json.loads(capsys.readouterr().out)["audit"] == "head"
    assert registry.count("GET", "/blobs/sha256:") == 0
    every = {**blobs(bundle, artifacts=False), **blobs(bundle, artifacts=True)}
    for _ in range(2):
        registry.calls.clear()
        assert load(registry, bundle, "--json", "--audit", "read") == 0
        assert json.loads(capsys.readouterr().out)["audit"] == "read"
        read = [
            call.path.rpartition("/")[2] for call in registry.calls if call.method == "GET" and "/blobs/" in call.path
        ]
        assert sorted(read) == sorted(every)
    registry.calls.clear()
    assert load(registry, bundle, "--audit", "read", "--dry-run") == 0
    assert registry.count("GET", "/blobs/sha256:") == 0


def rot(registry: ScriptedRegistry, digest: str, data: bytes) -> None:
    """Damage a blob once it is stored, as a disk does; the registry does not notice."""

    def fault(_exchange: Exchange) -> bool:
        if digest in registry.blobs:
            registry.blobs[digest] = data
        return False

    registry.faults.append(fault)


@pytest.mark.parametrize("artifacts", [False, True])
@pytest.mark.parametrize("kind", ["changed", "cut"])
def test_storage_that_rots_is_found_by_reading_alone(
    kind: str, artifacts: bool, registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest, size = max(blobs(bundle, artifacts=artifacts).items(), key=lambda item: item[1])
    rot(registry, digest, b"x" * (size if kind == "changed" else size - 1))
    if kind == "changed":
        # a HEAD shows nothing of it
        assert load(registry, bundle) == 0
        registry.manifests.clear()
    assert load(registry, bundle, "--audit", "read") == 6
    assert TAG not in registry.manifests
    text = " ".join(capsys.readouterr().err.split())
    assert digest in text and "the storage of the registry is damaged" in text


def lost(digest: str) -> Fault:
    """Promise a blob from a cache and have it no more."""
    return lambda exchange: (
        exchange.call.method == "GET"
        and exchange.call.path.endswith(digest)
        and exchange.answer(404, error_document("BLOB_UNKNOWN"))
    )


def test_what_a_cache_promises_is_found_missing_by_reading(
    registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = next(iter(blobs(bundle, artifacts=False)))
    registry.faults.append(lost(digest))
    assert load(registry, bundle, "--audit", "read") == 7
    assert TAG not in registry.manifests
    text = " ".join(capsys.readouterr().err.split())
    assert f"has lost content that it accepted: blob `{digest}`" in text
    # what only an artifact needs is left out
    digest = next(iter(blobs(bundle, artifacts=True)))
    registry.faults[:] = [lost(digest)]
    assert load(registry, bundle, "--audit", "read") == 0
    (left, *_rest) = read_receipt(Path()).left_out
    assert digest in left.reason and TAG in registry.manifests


def test_an_unknown_audit_is_refused(registry: ScriptedRegistry, bundle: Path) -> None:
    assert load(registry, bundle, "--audit", "twice") == 2
    assert registry.calls == []
