"""A catalogue in Git, its plan, and a bundle that carries it: what the far side's commands take it from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from airferry.api import LoadOutcome
from airferry.bundle.manifest import BundleManifest, GroupEntry, TargetEntry, ToolEntry
from airferry.bundle.receipt import Receipt, ReceiptCatalogue, ReceiptImage
from airferry.bundle.seal import seal
from airferry.bundle.verify import VerifyReport
from airferry.config import load_config
from airferry.events import Emit, silent
from airferry.near.carry.catalogue import CarriedCatalogue, carry_catalogue
from airferry.oci.copying.report import CopyReport
from airferry.oci.layout import LayoutStore
from airferry.plan.models import Plan
from airferry.plan.planner import make_plan
from catalogues import write_airgap, write_step
from oci_images import REFERENCE, make_image

URL, REF, TARGET = "https://github.com/NVIDIA/Bridge.git", "0123abc", "/opt/Bridge"
BASE = f"run: {{env: {{nodes: 1, mounts: ['${{auto_mount:git+{URL}@{REF},{TARGET}}}']}}}}\na: 1\n"
PLAN = {
    "workflow": {"stages": ["sft/one:tiny"]},
    "step_execution_images": {"sft/one": "trainer"},
    "execution_images": {"trainer": {"base_image": "base:1"}},
    "platforms": ["linux/amd64"],
}
DIGEST = "sha256:" + "d" * 64


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=ferry", "-c", "user.email=ferry@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def write_catalogue(root: Path, *, tracked: bool = True) -> Path:
    """Write a catalogue of one step whose config inherits another, with what Git holds besides, and its airgap.yaml."""
    write_step(
        root, "sft/one", configs={"default": BASE, "tiny": "defaults: default.yaml\na: 2\n"}, source="import json\n"
    )
    (root / "src/nemotron/steps/sft/one/run.sh").write_text("#!/bin/sh\n")
    (root / "src/nemotron/steps/sft/one/run.sh").chmod(0o755)
    (root / "docs").mkdir()
    (root / "docs/ä page.md").write_text("text\n")
    (root / "README.md").symlink_to("docs/ä page.md")
    write_airgap(root, PLAN)
    if tracked:
        git(root, "init", "--quiet", "--initial-branch", "main")
        git(root, "add", "--all", "--force")
    (root / ".env").write_text("TOKEN=1\n")
    (root / "notes.txt").write_text("untracked\n")
    return root


def plan_of(root: Path, **changes: Any) -> Plan:
    return make_plan(load_config(write_airgap(root, {**PLAN, **changes})))


def carry(root: Path, layout: Path, *, emit: Emit = silent, plan: Plan | None = None) -> CarriedCatalogue | None:
    scratch = layout.parent / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return carry_catalogue(plan or plan_of(root), LayoutStore.create(layout), scratch=scratch, emit=emit)


def make_travelling_bundle(root: Path, path: Path) -> CarriedCatalogue:
    """Seal a bundle of one image and the catalogue at `root`."""
    carried = carry(root, path)
    assert carried is not None
    store = LayoutStore.open(path)
    index, image = make_image(store)
    overlay = {"repo": "Bridge", "url": URL, "ref": REF, "target": TARGET, "commit": "0" * 40}
    group = {
        "name": image.name,
        "image_names": ["trainer"],
        "base_image": "base:1",
        "platforms": ["linux/amd64"],
        "tag": REFERENCE,
        "selected_image": REFERENCE,
        "tar": "trainer.tar",
        "steps": ["sft/one"],
        "targets": ["sft/one:tiny"],
        "repo_overlays": [overlay],
    }
    manifest = BundleManifest(
        workflow={"stages": ["sft/one:tiny"]},
        build_stages=("validate",),
        targets=(TargetEntry(target="sft/one:tiny", step_py="step.py", step_toml="step.toml"),),
        execution_groups=(GroupEntry.model_validate(group),),
        step_execution_images={"sft/one": REFERENCE},
        images=(image,),
        artifacts=(carried.artifact[0],),
        catalogue=carried.entry,
        compression="zstd",
        tool=ToolEntry(airferry="0"),
    )
    seal(store, {REFERENCE: index}, artifacts=[carried.artifact[1]], manifest=manifest)
    return carried


def receipt_of(root: str, *, catalogue: ReceiptCatalogue | None = None, **more: Any) -> Receipt:
    """Return the receipt of a load of such a bundle."""
    pinned = f"hub.site:5000/airgap/trainer@{DIGEST}"
    overlay = {"repo": "Bridge", "url": URL, "ref": REF, "target": TARGET, "commit": "0" * 40}
    image = ReceiptImage(
        name="trainer",
        role="execution",
        image="trainer:airgap",
        reference="hub.site:5000/airgap/trainer:airgap",
        pinned=pinned,
        digest=DIGEST,
        platforms=("linux/amd64",),
        overlays=(overlay,),  # type: ignore[arg-type]
    )
    return Receipt(
        bundle_root=root,
        root_verified=True,
        registry="hub.site:5000/airgap",
        loaded_at="2026-01-01T00:00:00Z",
        airferry="0",
        images=(image,),
        steps={"sft/one": pinned},
        targets=("sft/one:tiny",),
        catalogue=catalogue,
        **more,
    )


def tree(folder: Path) -> dict[str, tuple[str, str]]:
    """Return what lies below a folder: mode or link, and content."""
    found = {}
    for here, names, file_names in os.walk(folder):
        for name in (*file_names, *(name for name in names if (Path(here) / name).is_symlink())):
            path = Path(here) / name
            key = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[key] = ("link", os.fspath(path.readlink()))
            else:
                found[key] = (oct(path.stat().st_mode & 0o777), path.read_text(encoding="latin-1"))
    return found


def outcome_of(receipt: Receipt, *, baked: bool, by_target: bool = True) -> LoadOutcome:
    """Return what a load of one execution image ends with, with or without a checkout in the image."""
    overlay: dict[str, Any] = {"repo": "Bridge", "url": URL, "ref": REF, "target": TARGET}
    group = GroupEntry(
        name="trainer-1",
        image_names=("trainer",),
        base_image="base:1",
        platforms=("linux/amd64",),
        tag="trainer:airgap",
        selected_image="trainer:airgap",
        tar="trainer.tar",
        steps=("sft/one",),
        targets=("sft/one:tiny",) if by_target else (),
        repo_overlays=(overlay,) if baked else (),  # type: ignore[arg-type]
    )
    manifest = BundleManifest(
        workflow={},
        build_stages=(),
        execution_groups=(group,),
        compression="zstd",
        tool=ToolEntry(airferry="0"),
    )
    report = VerifyReport(Path("out"), DIGEST, True, 1, 1, 1, 1, ())
    return LoadOutcome(report, manifest, CopyReport(), (), receipt, Path("airgap-receipt.yaml"), False)
