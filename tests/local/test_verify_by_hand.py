"""The whole output folder by hand, from the root alone: what the shell commands of the page see, `verify` sees too."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airferry.bundle.beside import NOT_SEARCHED, TOO_MANY
from airferry.bundle.manifest import BundleManifest, GroupEntry, LauncherEntry, SavedImage
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle
from airferry.errors import IntegrityError
from airferry.events import Event, Warned
from airferry.far.report.by_hand import commands_by_hand
from airferry.far.verify import verify
from airferry.host import process
from airferry.host.yaml import to_yaml
from airferry.oci.layout import LayoutStore
from by_hand import check_folder
from oci_images import REFERENCE, make_bundle

SHELLS = [[shell] for shell in ("dash", "bash") if shutil.which(shell)]
if shutil.which("busybox"):
    SHELLS.append(["busybox", "sh"])
TIMEOUT_S = 60
SOUND = "the bundle is what the root names"
REQUIREMENTS, ARCHIVE = "requirements-trainer.txt", "archives/trainer.tar"
Attack = Callable[[Path], object]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A medium with an output folder of a twin, an archive and copies, as a build leaves it."""
    out = tmp_path_factory.mktemp("medium") / "out"
    make_bundle(out / "bundle", twins=True)
    (out / "archives").mkdir()
    (out / ARCHIVE).write_bytes(b"archive")
    opened = open_bundle(out)
    (image,) = opened.manifest.images
    saved = SavedImage(
        role="execution",
        name="trainer",
        image=REFERENCE,
        reference=REFERENCE,
        digest=image.digest,
        tar=ARCHIVE,
        sha256=hashlib.sha256(b"archive").hexdigest(),
    )
    group = GroupEntry(
        name="trainer",
        image_names=("trainer",),
        base_image="base:1",
        platforms=("linux/amd64",),
        tag=REFERENCE,
        selected_image=REFERENCE,
        tar=ARCHIVE,
        steps=(),
    )
    launcher = LauncherEntry(base_image="base:1", platforms=("linux/amd64",), tag="launcher", tar="launcher.tar")
    manifest: BundleManifest = opened.manifest.model_copy(
        update={"saved_images": (saved,), "execution_groups": (group,), "launcher_image": launcher}
    )
    others = [item for item in opened.artifacts if item.digest != opened.manifest_descriptor.digest]
    root = seal(LayoutStore.open(out / "bundle"), opened.images, artifacts=others, manifest=manifest).root
    (out / "airgap-manifest.yaml").write_bytes(manifest.with_root(root).to_yaml())
    (out / REQUIREMENTS).write_text("tiny==1\n")
    return out


@pytest.fixture
def out(sealed: Path, tmp_path: Path) -> Path:
    shutil.copytree(sealed, tmp_path / "out")
    return tmp_path / "out"


def by_hand(out: Path, root: str, *, shell: list[str] | None = None) -> tuple[int, str]:
    """Type what the page says next to the output folder, and return its exit status and all that it showed."""
    programs = out.parent / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("sha256sum", "sed"):
        if not (programs / name).exists():
            (programs / name).symlink_to(shutil.which(name) or name)
    argv = [shutil.which((shell or ["sh"])[0]) or "sh", *(shell or [])[1:], "-euc", check_folder(root)]
    only_these = {"PATH": str(programs), "POSIXLY_CORRECT": "1"}
    done = process.run(argv, timeout_s=TIMEOUT_S, cwd=out.parent, environment=only_these, check=False)
    assert done.tail == ()
    return done.returncode, done.text


def blobs(out: Path) -> list[Path]:
    return sorted((out / "bundle" / "blobs" / "sha256").iterdir())


def layer(out: Path) -> Path:
    return max(blobs(out), key=lambda path: path.stat().st_size)


def document(out: Path) -> Path:
    """An image index: what names others."""
    (image,) = [descriptor for name, descriptor in open_bundle(out).images.items() if name == REFERENCE]
    return out / "bundle" / "blobs" / "sha256" / image.digest[7:]


def append(path: Path, data: bytes = b"\n") -> None:
    path.write_bytes(path.read_bytes() + data)


def plant(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.parent / "../moved")
    path.symlink_to(os.path.relpath(path.parent / "../moved", path.parent))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def test_the_page_and_the_report_have_the_very_commands_that_ship() -> None:
    root = "sha256:" + "0" * 64
    assert check_folder(root) == commands_by_hand(root, "out") + "\n"


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_a_sound_folder_is_sound_by_hand_too(out: Path, shell: list[str]) -> None:
    root = open_bundle(out).root
    for name in ("airgap-plan.yaml", ".hidden", "two  words.txt"):
        plant(out / name)
    status, shown = by_hand(out, root, shell=shell)
    assert status == 0 and shown.splitlines()[-1].startswith(SOUND)
    assert sorted(shown.splitlines()[:-1]) == [
        f"- out/{name}: not covered by the root" for name in (".hidden", "airgap-plan.yaml", "two  words.txt")
    ]
    append(out / ARCHIVE)
    status, shown = by_hand(out, root, shell=shell)
    assert status == 1 and f"- out/{ARCHIVE}: changed" in shown and "STOP" in shown


def test_nothing_is_said_of_a_folder_that_holds_what_a_build_leaves(out: Path) -> None:
    status, shown = by_hand(out, open_bundle(out).root)
    assert status == 0 and len(shown.splitlines()) == 1
    shutil.rmtree(out / "archives")
    for path in out.iterdir():
        if path.is_file():
            path.unlink()
    assert by_hand(out, open_bundle(out).root)[0] == 0, "the bundle alone is enough"


DAMAGE: dict[str, Attack] = {
    "a layer changed": lambda out: append(layer(out)),
    "a layer gone": lambda out: layer(out).unlink(),
    "a layer is a folder": lambda out: make_folder(layer(out)),
    "a layer is a link": lambda out: link(layer(out)),
    "a document changed": lambda out: append(document(out)),
    "a document gone": lambda out: document(out).unlink(),
    "two blobs swapped": lambda out: swap(*blobs(out)[:2]),
    "all blobs behind a link": lambda out: link(out / "bundle" / "blobs"),
    "oci-layout changed": lambda out: append(out / "bundle" / "oci-layout", b"{"),
    "the manifest in the bundle gone": lambda out: open_bundle(out).store.blob_path(manifest_digest(out)).unlink(),
}
STRAYS: tuple[Attack, ...] = (
    lambda out: plant(layer(out).with_name(hashlib.sha256(b"x").hexdigest())),
    lambda out: plant(layer(out).with_name(".x")),
    lambda out: plant(layer(out).with_name(layer(out).name.upper())),
    lambda out: plant(layer(out).with_name(f"{blobs(out)[0].name} {blobs(out)[1].name}")),
    lambda out: plant(layer(out).with_name("0\\c")),
    lambda out: plant(layer(out).with_name(f"x\n{SOUND}\x1b[2J")),
    lambda out: layer(out).with_name("0" * 64).mkdir(),
    lambda out: plant(out / "bundle" / "INDEX.JSON"),
    lambda out: plant(out / "bundle" / "..x"),
    lambda out: plant(out / "bundle" / "blobs" / "sha512" / "0"),
    lambda out: plant(out / "bundle" / "bundle"),
)
BESIDE: dict[str, Attack] = {
    "an archive changed": lambda out: append(out / ARCHIVE),
    "an archive is a link": lambda out: link(out / ARCHIVE),
    "an archive is a folder": lambda out: make_folder(out / ARCHIVE),
    "requirements changed": lambda out: append(out / REQUIREMENTS),
    "requirements are a link": lambda out: link(out / REQUIREMENTS),
    "requirements swapped with an archive": lambda out: swap(out / REQUIREMENTS, out / ARCHIVE),
    "the manifest changed": lambda out: append(out / "airgap-manifest.yaml", b"# load evil.tar\n"),
    "the manifest names another root": lambda out: (out / "airgap-manifest.yaml").write_bytes(
        to_yaml(open_bundle(out).manifest.with_root("sha256:" + "0" * 64))
    ),
}
ADDED: tuple[Attack, ...] = (
    lambda out: plant(out / "oci-layout"),
    lambda out: plant(out / "Index.json"),
    lambda out: shutil.copytree(out / "bundle", out / "Bundle"),
    lambda out: shutil.copytree(out / "bundle", out / "a" / "b" / "layout"),
    lambda out: (out / "x").symlink_to("bundle"),
    lambda out: plant(out / "launcher.tar"),
    lambda out: plant(out / "repo-overlays-trainer.json"),
    lambda out: plant(out / "Requirements-trainer.TXT"),
    lambda out: plant(out / "archives" / "trainer.tar "),
    lambda out: plant(out / "archives" / "trainer\u200b.tar"),
    lambda out: plant(out / "ARCHIVES"),
    lambda out: shutil.copytree(out / "bundle", out / "airgap-plan.yaml"),
)


def manifest_digest(out: Path) -> str:
    opened = open_bundle(out)
    return opened.store.read_manifest(opened.manifest_descriptor).manifest.layers[0].digest


def expect_damage(out: Path, root: str) -> list[str]:
    """See that both ways say that the bundle is not what the root names; return the lines of the hand way."""
    status, shown = by_hand(out, root)
    assert status == 1 and shown.splitlines()[-1] == "STOP: use nothing of it"
    assert SOUND not in shown and "\x1b" not in shown
    return shown.splitlines()[:-1]


@pytest.mark.parametrize("attack", DAMAGE)
def test_damage_to_the_bundle_is_seen_by_both(out: Path, attack: str) -> None:
    root = open_bundle(out).root
    DAMAGE[attack](out)
    assert expect_damage(out, root)
    try:
        report = verify(out, root=root)
    except IntegrityError:
        return
    assert report.findings and not report.only_beside


def test_each_file_that_was_added_to_a_bundle_is_seen_by_both(out: Path) -> None:
    root = open_bundle(out).root
    for attack in STRAYS:
        attack(out)
    assert len(expect_damage(out, root)) == len(STRAYS)
    assert len(verify(out, root=root).findings) == len(STRAYS)


@pytest.mark.parametrize("attack", BESIDE)
def test_damage_next_to_the_bundle_is_seen_by_both(out: Path, attack: str) -> None:
    root = open_bundle(out).root
    BESIDE[attack](out)
    assert expect_damage(out, root)
    assert verify(out, root=root).only_beside


def test_what_is_taken_for_a_part_is_not_covered_by_hand_and_a_finding(out: Path) -> None:
    root = open_bundle(out).root
    for attack in ADDED:
        attack(out)
    status, shown = by_hand(out, root)
    said = [line for line in shown.splitlines() if "not covered by the root" in line or "unusual characters" in line]
    assert status == 0 and len(said) == len(ADDED), shown
    report = verify(out, root=root)
    assert report.only_beside and len(report.findings) == len(ADDED), report.findings
    assert report.path == out / "bundle" and report.root_verified and report.beside == ()


@pytest.mark.parametrize("kind", ["file", "link to nothing", "link to a file"])
def test_what_has_the_name_of_a_folder_of_parts_is_said(out: Path, kind: str) -> None:
    root = open_bundle(out).root
    folder = out / Path(ARCHIVE).parent
    shutil.rmtree(folder)
    plant(out.parent / "elsewhere")
    if kind == "file":
        plant(folder)
    else:
        folder.symlink_to(out.parent / ("elsewhere" if kind.endswith("file") else "nowhere"))
    status, shown = by_hand(out, root)
    assert f"- {folder.relative_to(out.parent)}: not covered by the root" in shown, (status, shown)
    said = verify(out, root=root)
    assert any(folder.name in str(found) for found in (*said.findings, *said.beside))


def test_a_command_that_acts_on_the_bundle_alone_warns_of_what_lies_next_to_it(out: Path) -> None:
    opened = open_bundle(out)
    events: list[Event] = []
    append(out / ARCHIVE)
    opened.warn_beside(out, events.append)
    assert events == [], "archives are not read"
    append(out / REQUIREMENTS)
    for name in ("oci-layout", "launcher.tar"):
        plant(out / name)
    opened.warn_beside(out / "bundle", events.append)
    opened.warn_beside(out, events.append)
    (event,) = events
    assert isinstance(event, Warned) and "use none of these files" in (event.hint or "")
    assert all(name in event.text for name in (REQUIREMENTS, "oci-layout", "launcher.tar"))


def test_what_cannot_be_looked_into_is_said_and_is_no_finding(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(out / "lost+found" / "x")
    plant(out / "notes.txt")
    listed = os.scandir

    def refusing(path: Path | int) -> Any:
        if isinstance(path, Path) and path.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr("airferry.bundle.beside.os.scandir", refusing)
    report = verify(out)
    assert report.ok and "`lost+found/` cannot be looked into: Permission denied" in report.beside
    monkeypatch.setattr("airferry.bundle.beside.MAX_SEEN_FILES", 8)
    for number in range(9):
        plant(out / "data" / str(number))
    report = verify(out)
    assert report.ok and NOT_SEARCHED in report.beside
    monkeypatch.setattr("airferry.bundle.beside.MAX_SEEN_FILES", 4)
    report = verify(out)
    assert report.only_beside and TOO_MANY in report.findings[0].text


def test_another_root_stops_it_before_anything_is_read(out: Path) -> None:
    status, shown = by_hand(out, "sha256:" + "0" * 64)
    assert (status, shown) == (1, "STOP: index.json is not what the root names\n")
