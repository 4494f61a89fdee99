"""Litter of file managers in what is carried."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from airferry.bundle.verify import verify_bundle
from airferry.cli.app import run
from airferry.far.verify import verify
from airferry.jobs.extract import extract_artifact, holds_catalogue
from airferry.oci.layout import LayoutStore
from oci_images import make_bundle
from scripted_registry import ScriptedRegistry
from travelling_catalogue import carry, write_catalogue

LITTER = (
    ".DS_Store",
    "store.json",
    "lost+found/",
    "blobs/Thumbs.db",
    "blobs/sha256/._" + "a" * 64,
    "blobs/sha256/@eaDir/",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def scatter(bundle: Path) -> None:
    for name in LITTER:
        if name.endswith("/"):
            (bundle / name).mkdir()
            (bundle / name / "inner").write_text("x")
        else:
            (bundle / name).write_text("x")


@pytest.mark.parametrize("check", [verify_bundle, verify])
def test_litter_is_no_damage_and_goes_as_it_is_told(bundle: Path, check: object) -> None:
    scatter(bundle)
    report = verify(bundle) if check is verify else verify_bundle(bundle)
    assert report.ok and len(report.litter) == len(LITTER)
    assert report.to_document()["litter"] == list(report.litter)
    assert "`store.json` was left there by hauler" in report.litter[2]
    for line in report.litter:
        subprocess.run(shlex.split(line.rpartition(": ")[2].strip("`")), check=True)
    assert verify(bundle).litter == ()


def test_a_load_warns_and_goes_on(
    bundle: Path,
    registry: ScriptedRegistry,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIRFERRY_ROOT", raising=False)
    scatter(bundle)
    assert run(["verify", str(bundle)]) == 0
    assert capsys.readouterr().err.count("litter:") == len(LITTER)
    root = verify(bundle).root
    assert run(["load", str(bundle), "--to", f"{registry.address}/airgap", "--plain-http", "--root", root]) == 0
    assert "`.DS_Store` was left there by macOS" in capsys.readouterr().err


def test_an_extracted_catalogue_with_litter_is_unchanged_and_can_hold_links_to_themselves(tmp_path: Path) -> None:
    root = write_catalogue(tmp_path / "catalogue")
    (root / "src" / "me").symlink_to("me")
    subprocess.run(["git", "-C", root, "add", "--all", "--force"], check=True)
    carried = carry(root, tmp_path / "layout")
    assert carried is not None
    store = LayoutStore.open(tmp_path / "layout")
    made = extract_artifact(store, carried.artifact[1], tmp_path / "out")
    assert (made.path / "src" / "me").readlink() == Path("me")
    (made.path / ".DS_Store").write_text("x")
    (made.path / "src" / "@eaDir").mkdir()
    (made.path / "src" / "@eaDir" / "thumb").write_text("x")
    assert holds_catalogue(made.path, made.digest)
    assert extract_artifact(store, carried.artifact[1], tmp_path / "out").reused
    (made.path / "src" / "other").write_text("x")
    assert not holds_catalogue(made.path, made.digest)
