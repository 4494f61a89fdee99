"""The output folder holds what the plan holds: what is gone goes, what was edited stays, `verify` names the rest."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from airferry.bundle.artifacts import OWN_ARTIFACTS, ArtifactFile, put_artifact
from airferry.bundle.beside import LOCK_COPY, MAX_NAMED_FILES
from airferry.bundle.manifest import MANIFEST_FILE, ArtifactEntry, BundleManifest, SavedImage
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle, verify_bundle
from airferry.cli.app import run
from airferry.errors import IntegrityError
from airferry.events import Event, Notice, Warned
from airferry.host.journal import Journal
from airferry.near.output_folder import OutputFolder
from airferry.oci.layout import LayoutStore
from oci_images import REFERENCE, make_bundle

HELD = {"sha256:" + "1" * 64}


def build(folder: Path, files: dict[str, bytes], *, held: set[str] | None = None, **images: Any) -> list[Event]:
    """Write files as a build does, and settle as it does after sealing."""
    events: list[Event] = []
    journal = Journal(folder / "airgap-build-state.yaml")
    output = OutputFolder(folder, journal, emit=events.append)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        output.write(name, data, images=images.get(name.partition(".")[0], ()))
    journal.forget_except(output.settle(held or set()))
    return events


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.name != "airgap-build-state.yaml")


def test_what_no_image_needs_any_more_goes_and_nothing_else(tmp_path: Path) -> None:
    build(tmp_path, {"requirements-a.txt": b"a", "requirements-b.txt": b"b", "archives/b.tar": b"tar"})
    (tmp_path / "mine.txt").write_text("the operator's own")
    (tmp_path / "requirements-c.txt").write_text("looks like ours, and no build wrote it")
    events = build(tmp_path, {"requirements-a.txt": b"a2"})
    assert names(tmp_path) == ["mine.txt", "requirements-a.txt", "requirements-c.txt"]
    assert [event.text for event in events if isinstance(event, Notice)] == [
        f"removed `{tmp_path / name}`, which is no longer part of the bundle"
        for name in ("archives/b.tar", "requirements-b.txt")
    ]
    assert build(tmp_path, {"requirements-a.txt": b"a2"}) == []


@pytest.mark.parametrize("edited", [b"B", b"longer"])
def test_what_was_edited_is_named_and_kept_until_it_goes(tmp_path: Path, edited: bytes) -> None:
    build(tmp_path, {"repo-overlays-b.json": b"b"})
    (tmp_path / "repo-overlays-b.json").write_bytes(edited)
    for _ in range(2):
        (event,) = build(tmp_path, {"requirements-a.txt": b"a"})
        assert isinstance(event, Warned) and "repo-overlays-b.json" in event.text
        assert (tmp_path / "repo-overlays-b.json").read_bytes() == edited
    (tmp_path / "repo-overlays-b.json").unlink()
    assert build(tmp_path, {"requirements-a.txt": b"a"}) == []


def test_a_link_in_the_place_of_a_file_is_neither_followed_nor_removed(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    build(out, {"b.tar": b"tar", "sub/c.tar": b"tar"})
    for name in ("b.tar", "c.tar"):
        (elsewhere / name).write_bytes(b"tar")
    (out / "b.tar").unlink()
    (out / "b.tar").symlink_to(elsewhere / "b.tar")
    shutil.rmtree(out / "sub")
    (out / "sub").symlink_to(elsewhere)
    events = build(out, {"a.txt": b"a"})
    assert all(isinstance(event, Warned) for event in events) and len(events) == 2
    assert names(elsewhere) == ["b.tar", "c.tar"] and (out / "b.tar").is_symlink()


def test_a_journal_that_names_files_outside_removes_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"v")
    journal = Journal(out / "airgap-build-state.yaml")
    result = {"sha256": hashlib.sha256(b"v").hexdigest(), "size_bytes": 1}
    for name in ("../victim", str(victim)):
        journal.record(f"file {name}", {"name": name}, result)
    build(out, {"a.txt": b"a"})
    assert victim.exists()


def test_a_rehearsal_stays_while_all_its_images_do(tmp_path: Path) -> None:
    build(tmp_path, {"report.json": b"{}"}, held=HELD, report=HELD)
    assert build(tmp_path, {"a.txt": b"a"}, held=HELD) == []
    assert "report.json" in names(tmp_path)
    build(tmp_path, {"a.txt": b"a"}, held={"sha256:" + "2" * 64})
    assert "report.json" not in names(tmp_path)


def test_a_report_that_is_out_of_date_goes_though_its_images_stay(tmp_path: Path) -> None:
    build(tmp_path, {"report.json": b"{}"}, held=HELD, report=HELD)
    folder = OutputFolder(tmp_path, Journal(tmp_path / "airgap-build-state.yaml"), emit=lambda _event: None)
    folder.drop("report.json")
    assert not any("report.json" in action for action in folder.settle(HELD))
    assert "report.json" not in names(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with two archives, one of them in a folder of its own."""
    folder = tmp_path / "out"
    make_bundle(folder / "bundle")
    opened = open_bundle(folder / "bundle")
    saved = []
    for name in ("one.tar", "archives/two.tar"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
        saved.append(entry(name, hashlib.sha256(name.encode()).hexdigest()))
    reseal(folder, saved)
    (folder / "requirements-trainer.txt").write_text("tiny==1\n")
    assert opened.images
    return folder


def entry(tar: str, sha256: str) -> SavedImage:
    digest = "sha256:" + "0" * 64
    return SavedImage(role="execution", name="t", image="t", reference=REFERENCE, digest=digest, tar=tar, sha256=sha256)


def carry(folder: Path, *contents: ArtifactFile) -> None:
    """Seal again, with artifacts of one file each."""
    opened = open_bundle(folder / "bundle")
    store = LayoutStore.open(folder / "bundle")
    kept = [item for item in opened.artifacts if item.digest != opened.manifest_descriptor.digest]
    added = [put_artifact(store, f"{OWN_ARTIFACTS}test.v1", contents=[item]) for item in contents]
    entries = [
        ArtifactEntry(
            title=item.title,
            artifact_type=f"{OWN_ARTIFACTS}test.v1",
            digest=descriptor.digest,
            size_bytes=descriptor.size,
        )
        for item, descriptor in zip(contents, added, strict=True)
    ]
    manifest = opened.manifest.model_copy(update={"artifacts": (*opened.manifest.artifacts, *entries)})
    sealed = seal(store, opened.images, artifacts=[*kept, *added], manifest=manifest)
    (folder / MANIFEST_FILE).write_bytes(manifest.with_root(sealed.root).to_yaml())


def reseal(folder: Path, saved: list[SavedImage]) -> None:
    opened = open_bundle(folder / "bundle")
    others = [item for item in opened.artifacts if item.digest != opened.manifest_descriptor.digest]
    manifest: BundleManifest = opened.manifest.model_copy(update={"saved_images": tuple(saved)})
    sealed = seal(LayoutStore.open(folder / "bundle"), opened.images, artifacts=others, manifest=manifest)
    (folder / MANIFEST_FILE).write_bytes(manifest.with_root(sealed.root).to_yaml())


def test_a_folder_that_holds_what_the_bundle_holds_is_not_worth_a_word(out: Path) -> None:
    for name in (
        "airgap-plan.yaml",
        "airgap.lock.yaml",
        "airgap-build-state.yaml",
        ".airferry.lock",
        "bundle.sigstore.json",
        "bundle.sig",
        "index.json.asc",
    ):
        (out / name).write_text("x")
    report = verify_bundle(out, beside=True)
    assert report.ok and report.beside == ()


def test_what_else_lies_there_is_named_and_is_no_finding(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    (out / "old").mkdir()
    (out / "old" / "deep.tar").write_text("not looked at")
    (out / "archives" / "stale.tar").write_text("of an image that is gone")
    (out / "airgap-receipt.yaml").write_text("of a load")
    (out / "airgap-overlays").mkdir()
    (out / "folder.sig").mkdir()
    (out / "one.tar").unlink()
    report = verify_bundle(out, beside=True)
    assert report.ok
    assert report.beside == (
        "archive `one.tar` is missing; the bundle is complete without it",
        "`airgap-overlays/` is not part of the bundle; use it only if it was made here",
        "`airgap-receipt.yaml` is not part of the bundle; use it only if it was made here",
        "`archives/stale.tar` is not part of the bundle",
        "`folder.sig/` is not part of the bundle",
        "`notes.txt` is not part of the bundle",
        "`old/` is not part of the bundle",
    )
    assert verify_bundle(out / "bundle", beside=True).beside == (), "the bundle alone has no folder around it"
    assert verify_bundle(out).beside == ()
    for number in range(MAX_NAMED_FILES + 5):
        (out / f"x{number}").touch()
    assert len(verify_bundle(out, beside=True).beside) == MAX_NAMED_FILES


def test_the_near_side_may_change_what_it_works_with_after_a_build(out: Path) -> None:
    lock = ArtifactFile(LOCK_COPY, "text/plain", b"locked")
    report = ArtifactFile("airgap-rehearsal.json", "text/plain", b"without times")
    carry(out, lock, report)
    for item in (lock, report):
        (out / item.title).write_text("later")
    found = verify_bundle(out, beside=True)
    assert found.ok and found.beside == (f"`{LOCK_COPY}` differs from the copy in the bundle, which counts",)


def test_an_archive_that_is_not_what_the_manifest_says_is_an_integrity_error(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "archives" / "two.tar").write_bytes(b"something else")
    (out / "notes.txt").write_text("mine")
    assert run(["verify", str(out)]) == 6
    shown = capsys.readouterr()
    assert "archive `archives/two.tar`: has SHA-256" in shown.out
    assert "note: `notes.txt` is not part of the bundle" in shown.err
    said = " ".join(shown.err.split())
    assert f"`{out / 'bundle'}` is complete, but files next to it are not what its root covers: 1 finding" in said
    assert "use none of these files" in shown.err and "is damaged" not in shown.err
    assert run(["verify", str(out), "--json"]) == 6
    document = json.loads(capsys.readouterr().out)
    assert document["beside"] == ["`notes.txt` is not part of the bundle"] and not document["ok"]
    assert verify_bundle(out).ok, "a load does not depend on archives"


def test_a_hostile_manifest_leads_nowhere(out: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    (out / "link.tar").symlink_to(secret)
    (out / "way").symlink_to(tmp_path)
    wrong = "f" * 64
    reseal(out, [entry(tar, wrong) for tar in ("../secret", str(secret), "link.tar", "way/secret")])
    report = verify_bundle(out, beside=True)
    with pytest.raises(IntegrityError, match="is damaged"):
        report.raise_if_wrong()
    texts = [str(finding) for finding in report.findings]
    assert len(texts) == 5 and not any(hashlib.sha256(b"s").hexdigest() in text for text in texts)
    assert sum("points outside the output folder" in text for text in texts) == 2
    assert sum("links are not followed" in text for text in texts) == 3
