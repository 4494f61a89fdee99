"""A load reads each blob once, hashes it as it is sent, and names all damage before anything stands for it."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from airferry.bundle.receipt import ReceiptBlobs, read_receipt
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.oci.closure import read_closure
from airferry.oci.layout import LayoutStore
from airferry.oci.streams import SizedReader
from oci_images import make_bundle
from scripted_registry import ScriptedRegistry

pytestmark = pytest.mark.usefixtures("unsettled")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one image for two platforms and one artifact; nothing writes into it."""
    folder = tmp_path_factory.mktemp("pristine") / "bundle"
    make_bundle(folder)
    return folder


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "bundle")


def load(registry: ScriptedRegistry, bundle: Path, *more: str) -> int:
    receipt = ["--receipt", "airgap-receipt.yaml"]
    return run(["load", str(bundle), "--to", f"{registry.address}/airgap", "--plain-http", *receipt, *more])


def layers(bundle: Path) -> list[str]:
    """Return the digests of the layers, which no verification of documents reads."""
    opened = open_bundle(bundle)
    found = {}
    for index in opened.images.values():
        for stored in read_closure(opened.store, index).manifests:
            if stored.descriptor.digest != index.digest:
                found.update(dict.fromkeys(layer.digest for layer in stored.manifest.layers))
    return list(found)


def all_blobs(bundle: Path) -> set[str]:
    opened = open_bundle(bundle)
    tops = (*opened.images.values(), *opened.artifacts)
    return {digest for top in tops for digest in read_closure(opened.store, top).blobs}


def flip(bundle: Path, digest: str) -> None:
    """Change a blob's last byte; its length stays, so that its size tells nothing."""
    path = LayoutStore.open(bundle).blob_path(digest)
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def sent_manifests(registry: ScriptedRegistry) -> list[str]:
    return [call.path for call in registry.calls if call.method == "PUT" and "/manifests/" in call.path]


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The bytes that were read of each blob, by digest."""
    read: dict[str, int] = {}
    original = SizedReader._read_source

    def counted(self: SizedReader, size: int) -> bytes:
        block = original(self, size)
        read[self.descriptor.digest] = read.get(self.descriptor.digest, 0) + len(block)
        return block

    monkeypatch.setattr(SizedReader, "_read_source", counted)
    return read


@pytest.mark.parametrize("first", [False, True])
def test_each_layer_is_read_once_unless_all_is_to_be_verified_first(
    first: bool, registry: ScriptedRegistry, pristine: Path, read_bytes: dict[str, int]
) -> None:
    wanted = layers(pristine)
    read_bytes.clear()
    assert load(registry, pristine, *(["--verify-first"] if first else [])) == 0
    store = LayoutStore.open(pristine)
    sizes = {digest: store.blob_path(digest).stat().st_size for digest in wanted}
    times = 2 if first else 1
    assert wanted and {digest: read_bytes[digest] for digest in wanted} == {
        digest: times * size for digest, size in sizes.items()
    }
    assert set(registry.blobs) >= set(wanted)


def test_what_the_registry_holds_is_not_read_and_the_receipt_says_so(
    registry: ScriptedRegistry, pristine: Path, read_bytes: dict[str, int]
) -> None:
    everything = all_blobs(pristine)
    assert load(registry, pristine) == 0
    assert read_receipt(Path("airgap-receipt.yaml")).blobs == ReceiptBlobs(hashed=len(everything))
    read_bytes.clear()
    assert load(registry, pristine) == 0
    assert not read_bytes.keys() & set(layers(pristine))
    found = ReceiptBlobs(hashed=0, found=tuple(sorted(everything)))
    assert read_receipt(Path("airgap-receipt.yaml")).blobs == found
    for hashed in ("--verify-first", "--audit=read"):
        assert load(registry, pristine, hashed) == 0
        assert read_receipt(Path("airgap-receipt.yaml")).blobs == ReceiptBlobs(hashed=len(everything)), hashed


def test_a_blob_that_went_missing_there_is_the_only_one_that_is_hashed_again(
    registry: ScriptedRegistry, pristine: Path
) -> None:
    assert load(registry, pristine) == 0
    lost = layers(pristine)[0]
    del registry.blobs[lost]
    assert load(registry, pristine) == 0
    blobs = read_receipt(Path("airgap-receipt.yaml")).blobs
    assert blobs is not None and blobs.hashed == 1
    assert set(blobs.found) == all_blobs(pristine) - {lost}


def test_all_damage_is_named_and_no_manifest_and_no_tag_is_there(
    registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = layers(bundle)[:2]
    assert len(wrong) == 2
    for digest in wrong:
        flip(bundle, digest)
    assert load(registry, bundle, "--json") == 6
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    assert all(f"layer: blob `{digest}` has digest `sha256:" in said for digest in wrong)
    assert "is damaged: " in said and "no manifest was sent, no tag moved" in said
    assert (sent_manifests(registry), registry.manifests, registry.sessions) == ([], {}, {})
    assert not set(wrong) & set(registry.blobs) and not Path("airgap-receipt.yaml").exists()


def test_a_damaged_blob_that_the_registry_holds_whole_is_left_alone(registry: ScriptedRegistry, bundle: Path) -> None:
    assert load(registry, bundle) == 0
    flip(bundle, layers(bundle)[0])
    assert load(registry, bundle) == 0
    assert load(registry, bundle, "--verify-first") == 6


def damaged(bundle: Path, kind: str) -> str:
    digest = layers(bundle)[0]
    path = LayoutStore.open(bundle).blob_path(digest)
    path.chmod(0o644)
    match kind:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "longer":
            path.write_bytes(path.read_bytes() + b"!")
        case "link":
            path.rename(bundle.parent / "elsewhere")
            path.symlink_to(bundle.parent / "elsewhere")
        case "other bytes":
            flip(bundle, digest)
        case "unnamed":
            (path.parent / ("0" * 64)).write_bytes(b"x")
            return "sha256:" + "0" * 64
        case _:
            raise AssertionError(kind)
    return digest


@pytest.mark.parametrize("kind", ["missing", "cut", "longer", "link", "unnamed", "other bytes"])
def test_what_documents_and_sizes_tell_is_known_before_anything_is_sent(
    kind: str, registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = damaged(bundle, kind)
    # what only reading tells is known as early where that is asked for
    more = ["--verify-first"] if kind == "other bytes" else []
    assert load(registry, bundle, *more) == 6
    assert digest in capsys.readouterr().err
    assert registry.blobs == {} and registry.sessions == {} and registry.manifests == {}


def test_a_dry_run_reads_documents_only_and_all_blobs_where_that_is_asked_for(
    registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(bundle, "other bytes")
    assert load(registry, bundle, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["receipt"]["blobs"] is None
    assert load(registry, bundle, "--dry-run", "--verify-first") == 6


class Failing:
    """A file whose reads fail so often as is said."""

    def __init__(self, stream: Any, often: int) -> None:
        self._stream = stream
        self._often = often

    def read(self, size: int) -> bytes:
        if self._often:
            self._often -= 1
            raise OSError(errno.EIO, "Input/output error")
        data: bytes = self._stream.read(size)
        return data


@pytest.mark.parametrize("lasting", [True, False])
def test_a_medium_that_cannot_be_read_is_named_and_nothing_stands_for_it(
    lasting: bool,
    registry: ScriptedRegistry,
    pristine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = layers(pristine)[0]
    original = SizedReader._read_source
    failed: list[str] = []

    def read(self: SizedReader, size: int) -> bytes:
        if self.descriptor.digest == bad and (lasting or not failed):
            failed.append(bad)
            self._stream = Failing(self._stream, 1)  # type: ignore[assignment]
        return original(self, size)

    monkeypatch.setattr(SizedReader, "_read_source", read)
    # what the medium gives the second time is no damage of the bundle: the error is the medium's then
    assert load(registry, pristine) == (6 if lasting else 4)
    said = " ".join(capsys.readouterr().err.split())
    assert f"cannot read blob `{bad}`: Input/output error" in said
    assert ("is damaged: " in said) is lasting
    assert registry.manifests == {} and bad not in registry.blobs


def test_a_receipt_without_the_blobs_is_still_read(registry: ScriptedRegistry, pristine: Path) -> None:
    assert load(registry, pristine, "--json") == 0
    path = Path("airgap-receipt.yaml")
    receipt = read_receipt(path)
    path.write_bytes(json.dumps(receipt.model_dump(mode="json", exclude={"blobs"})).encode())
    assert read_receipt(path) == receipt.model_copy(update={"blobs": None})
