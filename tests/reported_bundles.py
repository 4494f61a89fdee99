"""Reports of bundles that no layout backs: of any size, with any names, and with findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from airferry.bundle.manifest import (
    Addition,
    AttemptEntry,
    BundleManifest,
    GroupEntry,
    ImageEntry,
    LayerEntry,
    OverlayEntry,
    PersistentAssets,
    PlatformEntry,
    RehearsalEntry,
    TargetEntry,
    ToolEntry,
)
from airferry.bundle.verify import Bundle, VerifyReport, open_bundle
from airferry.far.report.content import make_report
from airferry.far.report.html import render_html
from airferry.far.report.text import render_text
from airferry.oci.digest import digest_of
from airferry.oci.documents import Index
from airferry.oci.validate import Defect


def synthetic(bundle: Path, manifest: BundleManifest, findings: tuple[Defect, ...] = ()) -> tuple[str, str]:
    """Return page and text for a manifest that no layout backs."""
    opened = open_bundle(bundle)
    made = Bundle(
        opened.store,
        Index(schema_version=2, manifests=[]),
        opened.root,
        manifest,
        opened.manifest_descriptor,
        opened.documents,
    )
    verified = VerifyReport(bundle, opened.root, True, len(manifest.images), 1, 10, 10**9, findings)
    report = make_report(made, verified)
    return render_html(report), render_text(report)


def digest(text: str) -> str:
    return digest_of(text.encode())


def rehearsal(target: str, platform: str) -> RehearsalEntry:
    attempts = [
        AttemptEntry(host="hub.example", port=443, protocol="tcp", place="step.py:3", seen="python"),
        AttemptEntry(host="wandb.example", protocol="dns", process="curl", seen="network", allowed=True),
    ]
    return RehearsalEntry(
        target=target,
        group="image-0",
        platform=platform,
        image=digest(target),
        command=("python", "step.py"),
        reached="started",
        stopped_by="needs a GPU",
        modules=12,
        missing=("absent",),
        attempts=tuple(attempts),
    )


def make_manifest(images: int) -> BundleManifest:
    """Return a manifest of many images, of two platforms each, with shared bases, additions and overlays."""
    entries, groups, steps, targets = [], [], {}, []
    for number in range(images):
        name = f"image-{number}"
        platforms = {}
        for platform in ("linux/amd64", "linux/arm64"):
            layers = [
                LayerEntry(
                    digest=digest(f"{platform} {part}" if part < 5 else f"{platform} {number} {part}"),
                    size_bytes=10**6 * (part + 1),
                    media_type="application/vnd.oci.image.layer.v1.tar+zstd",
                    diff_id=digest(f"diff {part}"),
                    unpacked_bytes=10**7,
                    original_digest=digest(f"original {part}"),
                    from_base=part < 5,
                )
                for part in range(7)
            ]
            platforms[platform] = PlatformEntry(
                digest=digest(f"{name} {platform}"),
                size_bytes=sum(layer.size_bytes for layer in layers),
                unpacked_bytes=10**8,
                config_digest=digest("config"),
                base_digest=digest(f"base {platform}"),
                layers=tuple(layers),
                additions=tuple(
                    Addition(name=f"dist-{index}", version="1.0", file=f"dist_{index}-1.0.whl", sha256="a" * 64)
                    for index in range(12)
                ),
            )
        reference = f"registry.example/{name}:1"
        entries.append(
            ImageEntry(
                name=name,
                role="execution",
                image=reference,
                reference=reference,
                digest=digest(name),
                platforms=platforms,
            )
        )
        step = f"step/{number}"
        steps[step] = reference
        targets.append(TargetEntry(target=f"{step}:default", step_py="x", step_toml="y"))
        groups.append(
            GroupEntry(
                name=name,
                image_names=(name,),
                base_image="nvcr.io/base:1",
                platforms=("linux/amd64",),
                tag=reference,
                selected_image=reference,
                tar="x.tar",
                steps=(step,),
                repo_overlays=(
                    OverlayEntry(
                        repo="repo",
                        url="https://user:secret@git.example/",
                        ref="v1",
                        target="/opt/x",
                        commit="c" * 40,
                    ),
                ),
            )
        )
    return BundleManifest(
        workflow={"name": "ferry"},
        build_stages=(),
        targets=tuple(targets),
        execution_groups=tuple(groups),
        step_execution_images=steps,
        persistent_assets=PersistentAssets(mounts_from_configs=("/data:/data",)),
        images=tuple(entries),
        rehearsals=tuple(rehearsal(f"{step}:default", platform) for step in steps for platform in platforms),
        compression="zstd",
        tool=ToolEntry(airferry="0.1.0", versions={"engine": "1"}),
    )


def poisoned(value: Any, text: str) -> Any:
    """Return a manifest, unchecked, with a text at the end of each that it holds but digests, the keys included."""
    if isinstance(value, BaseModel):
        inner = {name: poisoned(getattr(value, name), text) for name in type(value).model_fields if name != "role"}
        return value.model_copy(update=inner)
    if isinstance(value, dict):
        return {poisoned(key, text): poisoned(item, text) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(poisoned(item, text) for item in value)
    return value + text if isinstance(value, str) and not value.startswith("sha256:") else value
