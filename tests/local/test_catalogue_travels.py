"""The step catalogue goes into the bundle, and comes out of it, of a bundle or of a registry, and nowhere else."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from pathlib import Path

import pytest
import yaml
import zstandard

from airferry import api
from airferry.bundle import catalogue as rules
from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.catalogue import CATALOGUE_ARTIFACT, CATALOGUE_CONTENT, CATALOGUE_MARK
from airferry.bundle.receipt import Receipt, ReceiptCatalogue, write_receipt
from airferry.bundle.verify import open_bundle, verify_bundle
from airferry.cli.app import run
from airferry.defaults import ARTIFACTS_REPOSITORY
from airferry.errors import HostError, IntegrityError, RegistryError, UsageError
from airferry.events import Event, Warned
from airferry.far.serve import serving
from airferry.host import files
from airferry.jobs import extract as extraction
from airferry.jobs.extract import extract_artifact
from airferry.oci.documents import Descriptor, parse_manifest
from airferry.oci.layout import LayoutStore
from travelling_catalogue import (
    DIGEST,
    carry,
    git,
    make_travelling_bundle,
    plan_of,
    receipt_of,
    tree,
    write_catalogue,
)

STEP = "src/nemotron/steps/sft/one"
TRACKED = {
    f"{STEP}/config/default.yaml",
    f"{STEP}/config/tiny.yaml",
    f"{STEP}/run.sh",
    f"{STEP}/step.py",
    f"{STEP}/step.toml",
    "README.md",
    "airgap.yaml",
    "docs/ä page.md",
}


@pytest.fixture(autouse=True)
def own_cache(on_kubernetes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFERRY_SITE", "AIRFERRY_SOURCE", "AIRFERRY_ROOT", "NEMOTRON_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))


def warned(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Warned))


# --- the near side ---------------------------------------------------------------------------------------------------


def test_what_git_tracks_travels_and_comes_out_as_it_was(tmp_path: Path) -> None:
    root, layout = write_catalogue(tmp_path / "code"), tmp_path / "layout"
    events: list[Event] = []
    carried = carry(root, layout, emit=events.append)
    assert carried is not None and not warned(events)
    entry = carried.entry
    assert (entry.files, entry.steps, entry.package, entry.tracked) == (8, "src/nemotron/steps", "nemotron.steps", True)
    store = LayoutStore.open(layout, read_only=True)
    done = extract_artifact(store, carried.artifact[1], tmp_path / "far")
    assert (done.files, done.reused) == (8, False)
    found = tree(tmp_path / "far")
    assert found.pop(CATALOGUE_MARK)
    assert found == {name: state for name, state in tree(root).items() if name in TRACKED}
    assert found[f"{STEP}/run.sh"][0] == "0o755" and found["README.md"] == ("link", "docs/ä page.md")


def test_times_and_umask_do_not_change_the_artifact(tmp_path: Path) -> None:
    root = write_catalogue(tmp_path / "code")
    first = carry(root, tmp_path / "one")
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (1, 1))
            path.chmod(path.stat().st_mode & 0o111 | 0o600)
    assert carry(root, tmp_path / "two") == first


def test_without_git_the_folder_of_the_steps_travels(tmp_path: Path) -> None:
    root = write_catalogue(tmp_path / "code", tracked=False)
    (root / "src/.secret").mkdir()
    (root / "src/.secret/key").write_text("x")
    (root / "src/__pycache__").mkdir()
    (root / "src/__pycache__/x.pyc").write_text("x")
    (root / "src/env.toml").write_text("token = 1\n")
    (root / "src/out").mkdir()
    (root / "src/out/airgap-plan.yaml").write_text("x")
    (root / "src/folder").symlink_to("nemotron")
    events: list[Event] = []
    plan = plan_of(root, paths={"output_dir": "src/out"})
    carried = carry(root, tmp_path / "layout", emit=events.append, plan=plan)
    assert carried is not None and not carried.entry.tracked
    assert "is not in a Git repository, so only `src` of the catalogue is added to the bundle" in warned(events)
    extract_artifact(LayoutStore.open(tmp_path / "layout"), carried.artifact[1], tmp_path / "far")
    expected = {name for name in TRACKED if name.startswith("src/")} | {"src/folder", CATALOGUE_MARK}
    assert set(tree(tmp_path / "far")) == expected


def test_what_a_target_needs_travels_though_git_does_not_track_it(tmp_path: Path) -> None:
    root = write_catalogue(tmp_path / "code")
    git(root, "rm", "--quiet", "--cached", f"{STEP}/config/default.yaml")
    events: list[Event] = []
    carried = carry(root, tmp_path / "layout", emit=events.append)
    assert carried is not None and carried.entry.files == 8 and carried.entry.tracked
    assert f"`{STEP}/config/default.yaml` are added to the bundle because targets need them" in warned(events)


def test_what_the_far_side_would_refuse_stays_here(tmp_path: Path) -> None:
    root = write_catalogue(tmp_path / "code")
    (root / "out_of_it").symlink_to("/etc/passwd")
    (root / "readme.md").write_text("on a disk that tells no case apart, this replaces the other\n")
    git(root, "add", "out_of_it", "readme.md")
    events: list[Event] = []
    carried = carry(root, tmp_path / "layout", emit=events.append)
    assert carried is not None and carried.entry.files == 8
    assert "2 files of the catalogue are not added to the bundle" in warned(events)
    assert "`out_of_it` is a link that points outside the catalogue, to `/etc/passwd`" in warned(events)
    assert "`readme.md` differs from `README.md` only by case or form" in warned(events)


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("MAX_CATALOGUE_FILES", 7, "it has 8 files, more than 7"),
        ("MAX_CATALOGUE_BYTES", 100, "bytes, more than 100"),
        ("MAX_CATALOGUE_PACKED_BYTES", 100, "bytes when compressed, more than 100"),
    ],
)
def test_a_catalogue_that_is_too_large_stays_here_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, reason: str
) -> None:
    root = write_catalogue(tmp_path / "code")
    monkeypatch.setattr(f"airferry.near.carry.catalogue.{limit}", value)
    events: list[Event] = []
    assert carry(root, tmp_path / "layout", emit=events.append) is None
    assert reason in warned(events)


# --- a hostile artifact ----------------------------------------------------------------------------------------------

Entry = tuple[str, bytes, str]


def hostile(store: LayoutStore, *entries: Entry, artifact_type: str = CATALOGUE_ARTIFACT) -> Descriptor:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, link in entries:
            item = tarfile.TarInfo(name)
            item.type, item.linkname = kind, link
            item.size = 1 if kind == tarfile.REGTYPE else 0
            archive.addfile(item, io.BytesIO(b"x"))
    packed = zstandard.ZstdCompressor().compress(buffer.getvalue())
    return put_artifact(store, artifact_type, contents=[ArtifactFile("c.tar.zst", CATALOGUE_CONTENT, packed)])


FILE, LINK, FOLDER = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("../out", FILE, "")], "points outside the catalogue"),
        ([("a/../../out", FILE, "")], "points outside"),
        ([("/out", FILE, "")], "points outside"),
        ([("./a", FILE, "")], "points outside"),
        ([("a//b", FILE, "")], "points outside"),
        ([("a" * 300 + "/" + "b" * 4000, FILE, "")], "name of more than 255 bytes"),
        ([("/".join(["a" * 250] * 17), FILE, "")], "points outside"),
        ([("a" * 256, FILE, "")], "name of more than 255 bytes"),
        ([("l" * 300, LINK, "a")], "name of more than 255 bytes"),
        ([("l", LINK, "")], "a link without a target"),
        ([("l", LINK, "a/" * 2100)], "a target of 4096 bytes or more"),
        ([("l", LINK, "/etc")], "a link that points outside"),
        ([("l", LINK, "..")], "a link that points outside"),
        ([("d/l", LINK, "x/../../../out")], "a link that points outside"),
        ([("l", LINK, "d"), ("l/file", FILE, "")], "twice"),
        ([("l", LINK, "d"), ("l/m", LINK, "x")], "below another link"),
        ([("l", LINK, "."), ("l/l/out", FILE, "")], "twice"),
        ([("a", FILE, ""), ("a", FILE, "")], "listed twice"),
        ([("a", FILE, ""), ("a/b", FILE, "")], "twice"),
        ([("README", FILE, ""), ("readme", FILE, "")], "only by case"),
        ([("Straße", FILE, ""), ("STRASSE", FILE, "")], "only by case"),
        ([("\u00e9", FILE, ""), ("e\u0301", FILE, "")], "by case or form"),
        ([(".git/config", FILE, "")], "Git folder"),
        ([("x/.GIT/hooks/post-checkout", FILE, "")], "Git folder"),
        ([("GIT~1/config", FILE, "")], "Git folder"),
        ([(".git", LINK, "x")], "Git folder"),
        ([(CATALOGUE_MARK, FILE, "")], "airferry reserves"),
        ([("a", FILE, ""), ("b", tarfile.LNKTYPE, "a")], "neither a file"),
        ([("a", tarfile.CHRTYPE, "")], "neither a file"),
        ([("a", tarfile.BLKTYPE, "")], "neither a file"),
        ([("a", tarfile.FIFOTYPE, "")], "neither a file"),
    ],
)
def test_nothing_is_written_outside_and_nothing_left(tmp_path: Path, entries: list[Entry], reason: str) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    place = tmp_path / "deep" / "er"
    with pytest.raises(IntegrityError, match=reason):
        extract_artifact(store, hostile(store, *entries), place / "far")
    assert list(place.iterdir()) == []
    assert not (tmp_path / "deep/out").exists() and not (tmp_path / "out").exists() and not Path("/out").exists()


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("MAX_CATALOGUE_FILES", 2, "more than 2"),
        ("MAX_CATALOGUE_BYTES", 2, "more than 2 bytes"),
        ("MAX_CATALOGUE_PACKED_BYTES", 40, "more than the limit of 40"),
        ("HEADERS_BYTES", -1000, "unpacks to more than"),
    ],
)
def test_counts_and_sizes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, reason: str
) -> None:
    monkeypatch.setattr(extraction, "MAX_CATALOGUE_FILES", 1000)
    monkeypatch.setattr(extraction, limit, value)
    if limit == "HEADERS_BYTES":
        monkeypatch.setattr(extraction, "MAX_CATALOGUE_BYTES", 1_000_000)
    store = LayoutStore.create(tmp_path / "layout")
    descriptor = hostile(store, ("a", FILE, ""), ("b", FILE, ""), ("c", FOLDER, ""), ("d", FILE, ""))
    with pytest.raises(IntegrityError, match=reason):
        extract_artifact(store, descriptor, tmp_path / "far")
    assert not (tmp_path / "far").exists()


def test_folders_alone_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "MAX_CATALOGUE_FILES", 50)
    store = LayoutStore.create(tmp_path / "layout")
    descriptor = hostile(store, *[(f"d{number}", FOLDER, "") for number in range(60)])
    with pytest.raises(IntegrityError, match="more than 50 entries"):
        extract_artifact(store, descriptor, tmp_path / "far")


def test_nothing_is_unpacked_before_all_of_it_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = carry(write_catalogue(tmp_path / "code"), tmp_path / "layout")
    assert carried is not None
    store = LayoutStore.open(tmp_path / "layout")
    layer = parse_manifest(store.read_bytes(carried.artifact[1])).layers[0]
    blob = store.blob_path(layer.digest)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    monkeypatch.setattr(extraction, "inflate", lambda *_, **__: pytest.fail("unpacked what was not verified"))
    with pytest.raises(IntegrityError):
        extract_artifact(store, carried.artifact[1], tmp_path / "far")
    assert not (tmp_path / "far").exists()


def test_what_is_no_catalogue_is_told(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    with pytest.raises(IntegrityError, match="not a catalogue"):
        extract_artifact(store, hostile(store, artifact_type="application/vnd.other"), tmp_path / "far")
    file = ArtifactFile("a", "text/plain", b"x")
    with pytest.raises(IntegrityError, match="must have exactly one layer, of type"):
        extract_artifact(store, put_artifact(store, CATALOGUE_ARTIFACT, contents=[file]), tmp_path / "far")


# --- where it goes ---------------------------------------------------------------------------------------------------


def test_only_an_own_and_unchanged_folder_is_replaced(tmp_path: Path) -> None:
    root, layout, far = write_catalogue(tmp_path / "code"), tmp_path / "layout", tmp_path / "far"
    first = carry(root, layout)
    (root / "docs/ä page.md").write_text("other text\n")
    second = carry(root, layout)
    assert first is not None and second is not None
    store = LayoutStore.open(layout)
    far.mkdir()
    extract_artifact(store, first.artifact[1], far)
    inode = (far / "airgap.yaml").stat().st_ino
    (far / "src/__pycache__").mkdir()
    (far / "src/__pycache__/x.pyc").write_text("made by a run of Python")
    assert extract_artifact(store, first.artifact[1], far).reused
    assert (far / "airgap.yaml").stat().st_ino == inode
    extract_artifact(store, second.artifact[1], far)
    assert (far / "docs/ä page.md").read_text() == "other text\n" and not (far / "src/__pycache__").exists()
    (far / "own.yaml").write_text("a: 1\n")
    (far / "airgap.yaml").write_text("b: 1\n")
    for carried in (first, second):
        with pytest.raises(UsageError, match=r"was changed since airferry extracted it: `airgap[.]yaml`, `own[.]yaml`"):
            extract_artifact(store, carried.artifact[1], far)
    assert (far / "own.yaml").exists()


@pytest.mark.parametrize("kind", ["file", "link", "foreign", "wrong mark"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, kind: str) -> None:
    carried = carry(write_catalogue(tmp_path / "code"), tmp_path / "layout")
    assert carried is not None
    far, elsewhere = tmp_path / "far", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "file":
        far.write_text("x")
    elif kind == "link":
        far.symlink_to(elsewhere)
    else:
        far.mkdir()
        (far / "thesis.tex").write_text("x")
        if kind == "wrong mark":
            (far / CATALOGUE_MARK).write_text("[" * 100_000)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="not a catalogue that airferry extracted"):
        extract_artifact(LayoutStore.open(tmp_path / "layout"), carried.artifact[1], far)
    assert tree(tmp_path) == before


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = carry(write_catalogue(tmp_path / "code"), tmp_path / "layout")
    assert carried is not None
    monkeypatch.setattr(files, "free_bytes", lambda _path: 3)
    with pytest.raises(HostError, match="3 are free"):
        extract_artifact(LayoutStore.open(tmp_path / "layout"), carried.artifact[1], tmp_path / "far")


def test_paths_are_compared_as_disks_do() -> None:
    assert rules.fold("ÄB".encode()) == rules.fold("a\u0308b".encode())
    assert rules.fold(b"\xff") != rules.fold(b"\xfe")


# --- the far side's commands -----------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_travelling_bundle(write_catalogue(tmp_path / "code"), tmp_path / "out" / "bundle")
    return tmp_path / "out"


def put(tmp_path: Path, receipt: Receipt) -> Path:
    path = tmp_path / "jobs" / "airgap-receipt.yaml"
    write_receipt(receipt, path)
    return path


def test_extract_takes_a_bundle(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_bundle(bundle).raise_if_wrong()
    root = open_bundle(bundle).root
    far = tmp_path / "far"
    assert run(["catalogue", "extract", str(bundle), str(far), "--root", root]) == 0
    assert capsys.readouterr().out == f"{far}\n"
    assert run(["catalogue", "extract", str(bundle), str(far), "--json"]) == 0
    assert '"reused": true' in capsys.readouterr().out
    assert run(["catalogue", "extract", str(bundle), str(far), "--root", DIGEST]) == 6
    assert run(["catalogue", "extract", str(bundle), str(bundle)]) == 2
    assert run(["catalogue", "extract", str(tmp_path / "gone"), str(far)]) == 2


def test_overlays_and_check_take_the_catalogue_of_the_bundle(tmp_path: Path, bundle: Path) -> None:
    receipt = put(tmp_path, receipt_of(open_bundle(bundle).root))
    carried = api.CatalogueSource(bundle=bundle)
    made = api.overlays(receipt, catalogue=carried, out=tmp_path / "jobs")
    (step,) = made.steps
    config = yaml.safe_load((tmp_path / "jobs" / str(step.path)).read_text())
    inherited = (tmp_path / "jobs" / str(step.path)).parent / config["defaults"]
    assert inherited.resolve() == (tmp_path / f"jobs/catalogue/{STEP}/config/tiny.yaml").resolve()
    assert inherited.read_text() == "defaults: default.yaml\na: 2\n"
    assert (
        api.overlays(receipt, catalogue=api.CatalogueSource(bundle=bundle), out=tmp_path / "jobs").steps == made.steps
    )
    report = api.check(receipt=receipt, catalogue=carried, ask_registry=False)
    assert {finding.kind for finding in report.blocking} == {"git", "image"}
    assert report.blocking[0].file == f"{STEP}/config/default.yaml"
    assert not any((tmp_path / "cache/scratch").iterdir()), "what was extracted for the check is gone"
    (cloned,) = [finding for finding in report.blocking if finding.kind == "git"]
    assert f"-c {tmp_path}/jobs/kubernetes/sft/one/tiny.yaml, " in str(cloned.fix), "written next to the receipt"
    report = api.check(
        api.JobSelection(overlays=tmp_path / "jobs"), receipt=receipt, catalogue=carried, ask_registry=False
    )
    assert not report.blocking


def test_a_source_that_is_given_wins(tmp_path: Path, bundle: Path) -> None:
    receipt = put(tmp_path, receipt_of(open_bundle(bundle).root))
    source = api.CatalogueSource(tmp_path / "code", bundle)
    (step,) = api.overlays(receipt, catalogue=source, out=tmp_path / "jobs").steps
    assert step.config == str(tmp_path / f"code/{STEP}/config/tiny.yaml")
    assert not (tmp_path / "jobs/catalogue").exists()


def test_steps_folder_and_package_come_from_the_receipt(tmp_path: Path) -> None:
    source = write_catalogue(tmp_path / "code")
    (source / "src/nemotron").rename(source / "recipes")
    held = ReceiptCatalogue(pinned=f"hub.site:5000/airgap/x@{DIGEST}", steps="recipes/steps", package="nemotron.steps")
    receipt = put(tmp_path, receipt_of(DIGEST, catalogue=held))
    (step,) = api.overlays(receipt, catalogue=api.CatalogueSource(source), out=tmp_path / "jobs").steps
    assert step.config == str(source / "recipes/steps/sft/one/config/tiny.yaml")
    assert api.check(receipt=receipt, catalogue=api.CatalogueSource(source), ask_registry=False).steps == (
        "sft/one:tiny",
    )


def test_the_registry_has_it_pinned_by_digest(tmp_path: Path, bundle: Path) -> None:
    opened = open_bundle(bundle)
    entry = opened.manifest.catalogue
    assert entry is not None
    with serving.serve(bundle, listen="127.0.0.1:0") as registry:
        thread = threading.Thread(target=registry.run, daemon=True)
        thread.start()
        try:
            host = registry.url.removeprefix("http://")
            pinned = f"{host}/{ARTIFACTS_REPOSITORY}@{entry.digest}"
            held = ReceiptCatalogue(pinned=pinned, steps=entry.steps, package=entry.package)
            receipt = put(tmp_path, receipt_of(opened.root, catalogue=held))
            made = api.overlays(receipt, out=tmp_path / "jobs")
            assert made.steps and (tmp_path / f"jobs/catalogue/{STEP}/step.py").is_file()
            assert api.extract_catalogue(receipt, tmp_path / "far").files == 8
            report = api.check(api.JobSelection(overlays=tmp_path / "jobs"), receipt=receipt, ask_registry=False)
            assert not report.blocking
        finally:
            registry.stop()
            thread.join(10)
    # what lies there already needs no registry
    assert api.overlays(receipt, out=tmp_path / "jobs").steps == made.steps
    assert not api.check(api.JobSelection(overlays=tmp_path / "jobs"), receipt=receipt, ask_registry=False).blocking
    with pytest.raises(RegistryError) as caught:
        api.overlays(receipt, out=tmp_path / "other")
    assert "give the bundle with `--bundle`" in (caught.value.hint or "")
    with pytest.raises(RegistryError) as caught:
        api.extract_catalogue(receipt, tmp_path / "farther")
    assert "give the bundle instead of the receipt" in (caught.value.hint or "")


def test_nothing_is_written_into_the_bundle(tmp_path: Path, bundle: Path) -> None:
    layout = open_bundle(bundle).store.path
    (tmp_path / "way").symlink_to(layout)
    for folder in (layout / "jobs", layout / "blobs/jobs", tmp_path / "way/jobs"):
        with pytest.raises(UsageError, match="is inside the bundle"):
            api.extract_catalogue(bundle, folder)
        with pytest.raises(UsageError, match="is inside the bundle"):
            api.load(bundle, to="localhost:1/x", receipt=folder / "receipt.yaml")
        with pytest.raises(UsageError, match="is inside the bundle"):
            api.load_for_jobs(bundle, to="localhost:1/x", jobs=api.JobFiles(folder, receipt=tmp_path / "receipt.yaml"))
    assert verify_bundle(bundle).ok


def test_the_current_folder_is_not_replaced(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in (".", str(here)):
        with pytest.raises(UsageError, match="is the current folder") as caught:
            api.extract_catalogue(bundle, Path(name))
        assert f"`{Path(name) / 'catalogue'}`" in (caught.value.hint or "")
    assert api.extract_catalogue(bundle, Path("catalogue")).files == 8


@pytest.mark.parametrize(
    ("steps", "package"),
    [("../steps", "a.b"), ("/etc", "a.b"), ("a/../../b", "a.b"), ("", "a.b"), ("src/steps", "a-b"), ("src/steps", "")],
)
def test_a_receipt_cannot_lead_out_of_the_catalogue(tmp_path: Path, steps: str, package: str) -> None:
    held = ReceiptCatalogue(pinned=f"hub.site:5000/airgap/x@{DIGEST}", steps="src/steps", package="a.b")
    receipt = receipt_of(DIGEST, catalogue=held.model_copy(update={"steps": steps, "package": package}))
    path = put(tmp_path, receipt)
    with pytest.raises(IntegrityError, match=f"catalogue.{'package' if steps == 'src/steps' else 'steps'}"):
        api.overlays(path, catalogue=api.CatalogueSource(tmp_path), out=tmp_path / "jobs")


def test_receipts_of_an_older_airferry_are_read(tmp_path: Path) -> None:
    receipt = put(tmp_path, receipt_of(DIGEST))
    receipt.write_bytes(receipt.read_bytes().replace(b"schema_version: 2", b"schema_version: 1"))
    source = write_catalogue(tmp_path / "code")
    assert api.overlays(receipt, catalogue=api.CatalogueSource(source), out=tmp_path / "jobs").steps
    with pytest.raises(UsageError, match="contains no catalogue"):
        api.overlays(receipt, out=tmp_path / "jobs")


def test_a_catalogue_that_is_nowhere_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = put(tmp_path, receipt_of(DIGEST))
    assert run(["overlays", str(receipt), "--out", str(tmp_path / "made")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the receipt's bundle contains no catalogue" in said and "--source DIR" in said
    assert run(["check"]) == 2
    assert "no catalogue given" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "made").exists()
