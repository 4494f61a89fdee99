"""The loader by hand, as the page says it: from the root alone to code that runs, whatever else lies on the medium."""

from __future__ import annotations

import hashlib
import io
import platform
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from airferry.bundle.artifacts import TOOL_ARTIFACT, TOOL_CONTENT, ArtifactFile, put_artifact
from airferry.bundle.manifest import ArtifactEntry, BundleManifest, LoaderEntry, ToolEntry
from airferry.bundle.seal import seal
from airferry.host import process
from airferry.host.installation import shipped
from airferry.near.carry.loader import FOLDER, LOADER_FILE
from airferry.oci.layout import LayoutStore
from by_hand import unpack_loader
from oci_images import REFERENCE, make_image

HERE = f"cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}"
HOSTILE = 'import sys; print("HOSTILE", file=sys.stderr); sys.exit(3)'
TIMEOUT_S = 60


def wheel(code: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("airferry/cli.py", f"def main():\n    {code}\n")
        archive.writestr("airferry/__init__.py", "")
    return made.getvalue()


def loader_tar(path: Path, code: str, *, environment: str = HERE) -> None:
    """Write a loader as a build does, around a program of one line."""
    members = {
        "install": (shipped("containerfiles") / "install-airferry.sh").read_bytes(),
        f"environments/{environment}": b"airferry.whl\n",
        "wheels/airferry.whl": wheel(code),
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(members.items()))
    with tarfile.open(path, "w") as tar:
        for name, data in {**members, "SHA256SUMS": sums.encode()}.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


class Medium:
    """A folder with `out/bundle` in it, which is also where the commands are typed."""

    def __init__(self, folder: Path, *, environment: str = HERE) -> None:
        self.folder = folder
        self.bundle = folder / "out" / "bundle"
        store = LayoutStore.create(self.bundle)
        index, image = make_image(store)
        loader_tar(folder / "loader.tar", "print('the loader')", environment=environment)
        content = ArtifactFile(LOADER_FILE, TOOL_CONTENT, folder / "loader.tar")
        descriptor = put_artifact(store, TOOL_ARTIFACT, contents=[content])
        (layer,) = store.read_manifest(descriptor).manifest.layers
        self.manifest, self.archive = store.blob_path(descriptor.digest), store.blob_path(layer.digest)
        entry = ArtifactEntry(
            title=LOADER_FILE, artifact_type=TOOL_ARTIFACT, digest=descriptor.digest, size_bytes=descriptor.size
        )
        loader = LoaderEntry(
            archive=f"bundle/blobs/sha256/{self.archive.name}",
            digest=layer.digest,
            size_bytes=layer.size,
            environments=(environment,),
        )
        made = BundleManifest(
            workflow={},
            build_stages=(),
            images=(image,),
            artifacts=(entry,),
            loader=loader,
            compression="zstd",
            tool=ToolEntry(airferry="0.1.0"),
        )
        self.root = seal(store, {REFERENCE: index}, artifacts=[descriptor], manifest=made).root
        (folder / "out" / "airgap-manifest.yaml").write_bytes(made.with_root(self.root).to_yaml())

    def install(self, *, root: str = "") -> tuple[int, str]:
        """Type what the page says, and return its exit status and all that it showed."""
        done = process.run(
            ["sh", "-c", unpack_loader(root or self.root)],
            timeout_s=TIMEOUT_S,
            cwd=self.folder,
            environment={"PYTHON": sys.executable},
            check=False,
        )
        return done.returncode, "\n".join([done.text, *done.tail])


@pytest.fixture
def medium(tmp_path: Path) -> Medium:
    return Medium(tmp_path)


def test_the_loader_is_found_from_the_root_whatever_the_copy_of_the_manifest_says(medium: Medium) -> None:
    hostile = medium.bundle / "blobs" / "sha256" / ("f" * 64)
    loader_tar(hostile, HOSTILE)
    digest = hashlib.sha256(hostile.read_bytes()).hexdigest()
    planted = hostile.rename(hostile.with_name(digest))
    copy = medium.folder / "out" / "airgap-manifest.yaml"
    copy.write_text(copy.read_text().replace(medium.archive.name, planted.name))
    status, shown = medium.install()
    assert status == 0 and "the loader" in shown and "HOSTILE" not in shown


@pytest.mark.parametrize("part", ["index", "manifest", "archive", "root", "gone", "none"])
def test_nothing_runs_where_a_link_of_the_chain_is_another(medium: Medium, part: str) -> None:
    root = medium.root
    planted = medium.folder / FOLDER / "install"
    planted.parent.mkdir()
    planted.write_text("echo HOSTILE\n")
    if part == "index":
        path = medium.bundle / "index.json"
        path.write_text(path.read_text() + "\n")
    elif part == "manifest":
        medium.manifest.write_text(medium.manifest.read_text() + "\n")
    elif part == "archive":
        loader_tar(medium.archive, HOSTILE)
    elif part == "root":
        root = "sha256:" + "0" * 64
    elif part == "gone":
        medium.archive.unlink()
    else:
        store = LayoutStore.open(medium.bundle)
        store.write_index([entry for entry in store.read_index().manifests if entry.artifact_type != TOOL_ARTIFACT])
        root = store.root()
    status, shown = medium.install(root=root)
    assert status != 0 and "STOP: " in shown and "HOSTILE" not in shown
    assert not (medium.folder / "airferry").exists()


def test_modules_in_the_current_folder_are_not_imported(medium: Medium) -> None:
    for name in ("zipfile", "json", "shutil", "asyncio", "dataclasses", "struct", "airferry"):
        (medium.folder / f"{name}.py").write_text(HOSTILE)
    status, shown = medium.install()
    assert status == 0 and "the loader" in shown and "HOSTILE" not in shown


def test_files_that_lay_where_it_is_unpacked_are_not_used(tmp_path: Path) -> None:
    medium = Medium(tmp_path, environment="cp399-none")
    for name, data in ((f"environments/{HERE}", b"evil.whl\n"), ("wheels/evil.whl", wheel(HOSTILE))):
        path = tmp_path / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    status, shown = medium.install()
    assert status == 4 and "no Python fits" in shown and "HOSTILE" not in shown


def test_nothing_is_written_through_a_link_in_the_target(medium: Medium) -> None:
    mine = medium.folder / "mine"
    mine.write_text("mine")
    programs = medium.folder / "airferry" / "bin"
    programs.mkdir(parents=True)
    for name in ("airferry.py", "airferry.new", "airferry"):
        (programs / name).symlink_to(mine)
    status, shown = medium.install()
    assert status == 0 and "the loader" in shown and mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["a $(touch HOSTILE) `touch HOSTILE` $HOME", 'it\'s "so" \\ ;#&', "-n", "-"])
def test_the_installed_program_starts_whatever_its_folder_is_called(tmp_path: Path, name: str) -> None:
    loader_tar(tmp_path / "loader.tar", "print('the loader')")
    process.run(["tar", "-xf", "loader.tar"], timeout_s=TIMEOUT_S, cwd=tmp_path)
    (tmp_path / "python").symlink_to(sys.executable)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / FOLDER).mkdir(parents=True)
    for place in ({}, {"CDPATH": str(elsewhere)}):
        done = process.run(
            ["sh", f"{FOLDER}/install", name],
            timeout_s=TIMEOUT_S,
            cwd=tmp_path,
            environment={"PYTHON": "./python", **place},
        )
        assert "the loader" in done.text
    # from another folder, too
    started = process.run([tmp_path / name / "bin" / "airferry"], timeout_s=TIMEOUT_S, cwd=elsewhere)
    assert "the loader" in started.text and not list(tmp_path.glob("HOSTILE"))


def test_a_folder_with_a_line_feed_in_its_name_is_refused(tmp_path: Path) -> None:
    loader_tar(tmp_path / "loader.tar", "print('the loader')")
    process.run(["tar", "-xf", "loader.tar"], timeout_s=TIMEOUT_S, cwd=tmp_path)
    done = process.run(["sh", f"{FOLDER}/install", "a\nb"], timeout_s=TIMEOUT_S, cwd=tmp_path, check=False)
    assert done.returncode == 4 and "line feed" in "\n".join(done.tail)
