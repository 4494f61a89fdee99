"""Assets: recorded, verified, packed, unpacked; what is hostile or changes meanwhile is told."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.assets import record as building
from airferry.assets.files import FileState, Listing, hash_files
from airferry.assets.manifest import (
    MODELPACK_ARTIFACT,
    MODELPACK_FILEPATH,
    AssetFile,
    AssetLink,
    AssetManifest,
    parse_asset_manifest,
)
from airferry.assets.record import content_kind, hash_asset, pack_asset
from airferry.assets.staged import compare_asset, unpack_pack
from airferry.bundle.tree_paths import decode_path, encode_path, linked_path
from airferry.errors import AirferryError, BuildError, FindingsError, HostError, IntegrityError, UsageError
from airferry.events import Event, Progress
from airferry.host import files
from airferry.oci.digest import digest_hex
from airferry.oci.documents import Descriptor, parse_manifest
from airferry.oci.layout import LayoutStore
from oci_images import put_model_pack

SHA = "a" * 64


def model(root: Path) -> Path:
    """A folder as model hubs leave it: shards, configs, a cache with links."""
    folder = root / "model"
    (folder / "blobs").mkdir(parents=True)
    (folder / "snapshots" / "main").mkdir(parents=True)
    (folder / "blobs" / "w1").write_bytes(os.urandom(70_000))
    (folder / "config.json").write_text('{"layers": 2}')
    (folder / "README.md").write_text("a model")
    (folder / "empty").touch()
    (folder / "snapshots" / "main" / "model.safetensors").symlink_to("../../blobs/w1")
    (folder / os.fsdecode(b"b\xffd\nname %")).write_text("odd")
    return folder


def recorded(folder: Path, **more: object) -> AssetManifest:
    return hash_asset(folder, name="nano", kind="model", **more)  # type: ignore[arg-type]


# --- paths and manifests ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=60))
def test_any_path_survives_and_stays_on_one_printable_line(raw: bytes) -> None:
    text = encode_path(raw)
    assert decode_path(text) == raw
    assert len(text.splitlines()) <= 1
    text.encode("utf-8")


@given(st.text(max_size=40))
def test_only_one_spelling_of_a_path_is_taken(text: str) -> None:
    try:
        assert encode_path(decode_path(text)) == text
    except ValueError:
        assert encode_path(text.encode("utf-8", "surrogatepass")) != text


def test_a_manifest_is_the_same_bytes_whatever_the_order() -> None:
    one, two = AssetFile("b", 1, SHA), AssetFile("a", 2, SHA)
    first = AssetManifest("n", "model", (one, two)).to_bytes()
    assert first == AssetManifest("n", "model", (two, one)).to_bytes()
    parsed = parse_asset_manifest(first, what="it")
    assert parsed.files == (two, one)
    assert json.loads(first.splitlines()[0])["size_bytes"] == 3


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([["file", "../up", 1, SHA]], "points outside"),
        ([["file", "/etc/passwd", 1, SHA]], "points outside"),
        ([["file", "a//b", 1, SHA]], "points outside"),
        ([["file", "a%00b", 1, SHA]], "points outside"),
        ([["file", "a%41", 1, SHA]], "is not a valid path"),
        ([["file", "a", -1, SHA]], "neither a file nor a link"),
        ([["file", "a", 1, "A" * 64]], "neither a file nor a link"),
        ([["file", "a", 1, SHA], ["file", "a", 1, SHA]], "listed twice"),
        ([["file", "a", 1, SHA], ["file", "a/b", 1, SHA]], "is below a path"),
        ([["file", "a/b", 1, SHA], ["link", "a", "c"]], "is below a path"),
        ([["link", "a", "../b"]], "points outside"),
        ([["link", "a", "/b"]], "points outside"),
        ([["link", "a", "b/../../c"]], "points outside"),
        (["file"], "neither"),
    ],
)
def test_a_manifest_that_lies_about_paths_is_refused(lines: list[object], reason: str) -> None:
    header = {"schema_version": 1, "name": "n", "kind": "model", "files": 1, "links": 0, "size_bytes": 1}
    data = "".join(json.dumps(line) + "\n" for line in [header, *lines]).encode()
    with pytest.raises(IntegrityError, match=reason):
        parse_asset_manifest(data, what="it")


@pytest.mark.parametrize("cut", range(0, 300, 7))
def test_a_manifest_that_is_cut_short_is_refused(cut: int) -> None:
    files_of = tuple(AssetFile(f"f{number}", number, SHA) for number in range(5))
    data = AssetManifest("n", "model", files_of).to_bytes()
    with pytest.raises(IntegrityError):
        parse_asset_manifest(data[: len(data) - 1 - cut], what="it")


def test_a_manifest_of_a_newer_airferry_is_refused_by_number() -> None:
    with pytest.raises(IntegrityError, match="schema_version 2, this version of airferry supports 1"):
        parse_asset_manifest(b'{"schema_version":2}\n', what="it")


@pytest.mark.parametrize(
    ("path", "target", "leads_to"),
    [("a", "b", "b"), ("d/a", "../b", "b"), ("d/a", "./x/y", "d/x/y"), ("a", "..", None), ("a", "/b", None)],
)
def test_links_are_followed_one_hop(path: str, target: str, leads_to: str | None) -> None:
    assert linked_path(path, target) == leads_to


# --- recording -------------------------------------------------------------------------------------------------------


def test_a_recorded_asset_verifies_and_says_what_coreutils_says(tmp_path: Path) -> None:
    folder = model(tmp_path)
    manifest = recorded(folder)
    assert [file.path for file in manifest.files] == [
        "README.md",
        "blobs/w1",
        "b%FFd%0Aname %25",
        "config.json",
        "empty",
    ]
    assert manifest.by_path["blobs/w1"].sha256 == hashlib.sha256((folder / "blobs" / "w1").read_bytes()).hexdigest()
    assert manifest.links == (AssetLink("snapshots/main/model.safetensors", "../../blobs/w1"),)
    assert parse_asset_manifest(manifest.to_bytes(), what="it") == manifest
    report = compare_asset(manifest, folder)
    assert report.ok
    assert report.read_bytes == manifest.size_bytes


def test_a_single_file_is_an_asset_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("{}\n")
    manifest = hash_asset(path, name="data", kind="dataset")
    assert [file.path for file in manifest.files] == ["data.jsonl"]
    moved = path.rename(tmp_path / "renamed")
    assert compare_asset(manifest, moved).ok
    moved.write_text("[]\n")
    assert [item.problem for item in compare_asset(manifest, moved).findings] == ["changed"]


def test_an_interrupted_record_reads_only_what_is_left(tmp_path: Path) -> None:
    folder, journal = model(tmp_path), tmp_path / "journal"
    recorded(folder, journal=journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    seen: list[Event] = []
    first = recorded(folder, journal=journal, emit=seen.append)
    known = sum(json.loads(line)[1] for line in lines[:2])
    assert [event.total for event in seen if isinstance(event, Progress)] == [first.size_bytes - known]
    seen.clear()
    assert recorded(folder, journal=journal, emit=seen.append) == first
    assert [event.total for event in seen if isinstance(event, Progress)] == [0]


def test_what_was_hashed_before_an_error_is_not_hashed_again(tmp_path: Path) -> None:
    folder, journal = tmp_path / "asset", tmp_path / "journal"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}").write_bytes(b"x" * (4 - number))

    def unreadable(listing: Listing, states: Sequence[FileState], judge: Any, **more: Any) -> Any:
        hash_files(listing, states[:3], judge, **more)
        judge(states[3], OSError(errno.EIO, "Input/output error"))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(HostError, match="Input/output error"):
        patch.setattr(building, "hash_files", unreadable)
        recorded(folder, journal=journal)
    assert len(journal.read_text().splitlines()) == 3


def test_a_touched_file_is_read_again_and_the_journal_forgets_what_is_gone(tmp_path: Path) -> None:
    folder, journal = model(tmp_path), tmp_path / "journal"
    recorded(folder, journal=journal)
    (folder / "config.json").write_text('{"layers": 3}')
    (folder / "empty").unlink()
    manifest = recorded(folder, journal=journal)
    assert manifest.by_path["config.json"].sha256 == hashlib.sha256(b'{"layers": 3}').hexdigest()
    assert sorted(json.loads(line)[0] for line in journal.read_text().splitlines()) == sorted(manifest.by_path)


@pytest.mark.parametrize("change", ["append", "add", "remove"])
def test_an_asset_that_changes_while_it_is_recorded_is_an_error(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "asset"
    folder.mkdir()
    (folder / "last").write_text("x")
    with (folder / "large").open("wb") as stream:
        stream.truncate(80 << 20)

    def disturb(event: Event) -> None:
        if isinstance(event, Progress) and event.done < (event.total or 0):
            if change == "append":
                with (folder / "large").open("ab") as stream:
                    stream.write(b"more")
            elif change == "add":
                (folder / "added").write_text("x")
            else:
                (folder / "last").unlink(missing_ok=True)

    with pytest.raises(AirferryError, match=r"changed while it was read|cannot read") as caught:
        recorded(folder, jobs=1, emit=disturb)
    assert caught.value.exit_code in (4, 6)
    assert change == "remove" or caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("target", "reason"), [("/etc/hostname", "points outside"), ("../x", "points outside"), ("gone", "does not exist")]
)
def test_links_that_cannot_travel_are_refused(tmp_path: Path, target: str, reason: str) -> None:
    folder = model(tmp_path)
    (folder / "link").symlink_to(target)
    with pytest.raises(BuildError, match=reason) as caught:
        recorded(folder)
    assert caught.value.hint


def test_pipes_empty_folders_and_bad_words_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path)
    os.mkfifo(folder / "pipe")
    with pytest.raises(BuildError, match="`pipe`, which is not a regular file"):
        recorded(folder)
    (tmp_path / "void").mkdir()
    with pytest.raises(BuildError, match="contains no files"):
        recorded(tmp_path / "void")
    with pytest.raises(HostError, match="cannot read"):
        recorded(tmp_path / "absent")
    with pytest.raises(UsageError, match="not a valid asset name"):
        hash_asset(folder, name="No Name")
    with pytest.raises(UsageError, match="unknown asset kind"):
        hash_asset(folder, name="n", kind="thing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_told_by_both_sides(tmp_path: Path) -> None:
    folder = model(tmp_path)
    manifest = recorded(folder)
    (folder / "config.json").chmod(0)
    report = compare_asset(manifest, folder)
    assert [(item.path, item.problem) for item in report.findings] == [("config.json", "unreadable")]
    (folder / "other").write_text("x")
    (folder / "other").chmod(0)
    with pytest.raises(HostError, match="other"):
        recorded(folder)


# --- verifying -------------------------------------------------------------------------------------------------------


def test_every_kind_of_trouble_is_found_and_nothing_else(tmp_path: Path) -> None:
    folder = model(tmp_path)
    manifest = recorded(folder)
    content = bytearray((folder / "blobs" / "w1").read_bytes())
    content[-1] ^= 1
    (folder / "blobs" / "w1").write_bytes(content)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").unlink()
    (folder / "added").write_text("x")
    report = compare_asset(manifest, folder)
    assert [(item.path, item.problem) for item in report.findings] == [
        ("README.md", "missing"),
        ("added", "extra"),
        ("blobs/w1", "changed"),
        ("config.json", "changed"),
    ]
    assert json.dumps(report.to_document())
    with pytest.raises(FindingsError, match=r"missing: README\.md; extra: added"):
        report.raise_if_wrong()


def test_a_link_may_have_become_a_copy_of_its_file_but_of_no_other(tmp_path: Path) -> None:
    folder = model(tmp_path)
    manifest = recorded(folder)
    link = folder / "snapshots" / "main" / "model.safetensors"
    content = link.read_bytes()
    link.unlink()
    link.write_bytes(content)
    assert compare_asset(manifest, folder).ok
    link.write_bytes(content[:-1] + b"?")
    assert [item.problem for item in compare_asset(manifest, folder).findings] == ["changed"]
    link.unlink()
    link.symlink_to("../../config.json")
    assert not compare_asset(manifest, folder).ok


# --- packing and unpacking -------------------------------------------------------------------------------------------


def test_a_packed_asset_unpacks_to_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "RAW_LAYER_BYTES", 50_000)
    folder = model(tmp_path)
    manifest = recorded(folder)
    store = LayoutStore.create(tmp_path / "layout")
    descriptor = pack_asset(store, manifest, folder)
    again = LayoutStore.create(tmp_path / "again")
    assert pack_asset(again, manifest, folder) == descriptor
    document = parse_manifest(store.read_bytes(descriptor))
    assert document.artifact_type == descriptor.artifact_type == MODELPACK_ARTIFACT
    raw = document.layers[0]
    assert raw.media_type == "application/vnd.cncf.model.weight.config.v1.raw"
    assert raw.digest == "sha256:" + manifest.by_path["blobs/w1"].sha256
    assert raw.annotations and raw.annotations[MODELPACK_FILEPATH] == "blobs/w1"
    assert {layer.media_type.rpartition(".")[2] for layer in document.layers[1:]} == {"tar"}
    config = json.loads(store.read_bytes(document.config))
    assert config["modelfs"]["diffIds"] == [layer.digest for layer in document.layers]
    done = unpack_pack(store, descriptor, tmp_path / "there")
    assert (done.files, done.links, done.size_bytes) == (5, 1, manifest.size_bytes)
    assert compare_asset(manifest, tmp_path / "there").ok
    assert (tmp_path / "there" / "snapshots" / "main" / "model.safetensors").is_symlink()


def test_a_pack_of_a_changed_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    folder = model(tmp_path)
    manifest = recorded(folder)
    (folder / "config.json").write_text('{"layers": 9}')
    store = LayoutStore.create(tmp_path / "layout")
    with pytest.raises(IntegrityError, match=r"config.json. changed"):
        pack_asset(store, manifest, folder)
    assert len(store.stored_digests()) == 1, "the documents' layer, which is whole"
    assert not list(store.path.rglob(files.TEMPORARY_PREFIX + "*"))


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        ("model", "m/a.safetensors", "weight"),
        ("model", "config.json", "weight.config"),
        ("model", "LICENSE", "doc"),
        ("checkpoint", "modeling.py", "code"),
        ("dataset", "a.py", "dataset"),
    ],
)
def test_files_are_called_what_modelpack_calls_them(kind: str, path: str, expected: str) -> None:
    assert content_kind(kind, path) == expected


def tar_layer(store: LayoutStore, *entries: tuple[str, bytes, str]) -> Descriptor:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, link in entries:
            item = tarfile.TarInfo(name)
            item.type, item.linkname = kind, link
            item.size = 1 if kind == tarfile.REGTYPE else 0
            archive.addfile(item, io.BytesIO(b"x"))
    return store.put_bytes(buffer.getvalue(), "application/vnd.cncf.model.weight.v1.tar")


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("../out", tarfile.REGTYPE, "")], "points outside"),
        ([("a/../../out", tarfile.REGTYPE, "")], "points outside"),
        ([("l", tarfile.SYMTYPE, "..")], "points outside"),
        ([("l", tarfile.SYMTYPE, "/etc")], "points outside"),
        ([("d/l", tarfile.SYMTYPE, "x/../../../out")], "points outside"),
        ([("l", tarfile.SYMTYPE, "d"), ("l/file", tarfile.REGTYPE, "")], "twice"),
        ([("l", tarfile.SYMTYPE, "d"), ("l/m", tarfile.SYMTYPE, "x")], "below another link"),
        ([("a", tarfile.REGTYPE, ""), ("a", tarfile.REGTYPE, "")], "twice"),
        ([("a", tarfile.REGTYPE, ""), ("a/b", tarfile.REGTYPE, "")], "twice"),
        ([("a", tarfile.REGTYPE, ""), ("b", tarfile.LNKTYPE, "a")], "is neither a file"),
        ([("a", tarfile.CHRTYPE, "")], "is neither a file"),
        ([("a", tarfile.FIFOTYPE, "")], "is neither a file"),
    ],
)
def test_no_artifact_writes_outside_or_leaves_anything(
    tmp_path: Path, entries: list[tuple[str, bytes, str]], reason: str
) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    descriptor = put_model_pack(store, [tar_layer(store, *entries)])
    place = tmp_path / "deep" / "er"
    with pytest.raises(IntegrityError, match=reason):
        unpack_pack(store, descriptor, place / "asset")
    assert list(place.iterdir()) == []
    assert not (tmp_path / "out").exists() and not (tmp_path / "deep" / "out").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "", "a/./b"])
def test_no_raw_layer_writes_outside(tmp_path: Path, name: str) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    layer = store.put_bytes(b"x", "application/vnd.cncf.model.weight.v1.raw", annotations={MODELPACK_FILEPATH: name})
    with pytest.raises(IntegrityError, match="points outside"):
        unpack_pack(store, put_model_pack(store, [layer]), tmp_path / "asset")
    assert not (tmp_path / "asset").exists()


def test_damage_other_artifacts_and_occupied_places_are_told(tmp_path: Path) -> None:
    folder = model(tmp_path)
    store = LayoutStore.create(tmp_path / "layout")
    descriptor = pack_asset(store, recorded(folder), folder)
    with pytest.raises(UsageError, match="already exists"):
        unpack_pack(store, descriptor, folder)
    layer = parse_manifest(store.read_bytes(descriptor)).layers[0]
    blob = store.path / "blobs" / "sha256" / digest_hex(layer.digest)
    data = bytearray(blob.read_bytes())
    data[600] ^= 1
    blob.write_bytes(data)
    with pytest.raises(IntegrityError):
        unpack_pack(store, descriptor, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    other = put_model_pack(store, [store.put_bytes(b"x", "application/vnd.oci.image.layer.v1.tar")])
    with pytest.raises(IntegrityError, match="not a ModelPack type"):
        unpack_pack(store, other, tmp_path / "there")


def test_no_temporary_stays_beside_the_destination(tmp_path: Path) -> None:
    folder = model(tmp_path)
    store = LayoutStore.create(tmp_path / "layout")
    (tmp_path / "far" / "asset").mkdir(parents=True)
    unpack_pack(store, pack_asset(store, recorded(folder), folder), tmp_path / "far" / "asset")
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["asset"]
    assert not list((tmp_path / "far").rglob(files.TEMPORARY_PREFIX + "*"))
