"""What a bundle holds and why, as a document that a security officer can read and sign. Content only, no layout.

Everything comes from the manifest inside the bundle and from a verification of it; nothing here depends on a clock or
on this machine, so the same bundle gives the same report. What others wrote is shown with unprintable characters
replaced; escaping for a format is up to the writer of that format.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from airferry.bundle.manifest import Addition, BundleManifest, GroupEntry, ImageEntry, OverlayEntry
from airferry.bundle.verify import Bundle, VerifyReport
from airferry.far.report.by_hand import commands_by_hand
from airferry.far.report.document import (
    Bar,
    Block,
    Cell,
    Paragraph,
    Picture,
    Report,
    Section,
    cell,
    code,
    shown,
    table,
    whole,
)
from airferry.oci.documents import TITLE
from airferry.wording import counted, size_text


def make_report(bundle: Bundle, verified: VerifyReport) -> Report:
    """Return the report of a bundle and of the verification that it has just gone through."""
    manifest = bundle.manifest
    sections = (
        _summary(bundle, verified),
        _by_hand(bundle),
        _images(manifest),
        _additions(manifest),
        _layers(manifest),
        _sources(manifest),
        _artifacts(bundle),
        _rehearsal(manifest),
        _checks(verified),
        _outside(manifest),
        _signatures(bundle),
    )
    name = manifest.workflow.get("name")
    return Report(f"Bundle “{shown(str(name))}”" if name else "Bundle", bundle.root, sections)


def _summary(bundle: Bundle, verified: VerifyReport) -> Section:
    manifest = bundle.manifest
    platforms = sorted({platform for image in manifest.images for platform in image.platforms})
    separate = sum(entry.size_bytes for image in manifest.images for entry in image.platforms.values())
    origin = (
        "was compared with the digest from a separate channel, and is the same"
        if verified.root_verified
        else "was NOT compared with a digest from a separate channel: integrity was checked, origin was not"
    )
    rows = [
        [cell("Root"), whole(bundle.root)],
        [cell("The root"), cell(origin)],
        [cell("Verification"), cell(_verdict(verified))],
        [cell("Images"), cell(f"{verified.images_text}, for {', '.join(platforms) or 'no platform'}")],
        [cell("Artifacts"), cell(len(manifest.artifacts) + 1)],
        [cell("Bytes in the bundle"), cell(f"{size_text(verified.size_bytes)} in {verified.blobs} blobs")],
        [cell("Bytes if every image stood alone"), cell(size_text(separate))],
        [cell("Compression of layers"), cell(manifest.compression)],
        [cell("Built by"), cell(f"airferry {manifest.tool.airferry}, {_versions(manifest)}")],
    ]
    text = (
        "This document lists what the bundle holds, why it is in there, and where it came from. One digest, the root, "
        "names all of it: a signature of the root covers every byte listed here."
    )
    return Section("summary", "Summary", (Paragraph(text), *table("The bundle at a glance", ("What", "Value"), rows)))


def _verdict(verified: VerifyReport) -> str:
    if verified.ok:
        return "nothing is wrong"
    found = counted(len(verified.findings), "finding")
    if verified.only_beside:
        return f"{found} about files next to the bundle: use none of them; the bundle is complete"
    return f"{found}: do not load this bundle"


def _versions(manifest: BundleManifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(manifest.tool.versions.items())) or "no encoder"


def _by_hand(bundle: Bundle) -> Section:
    archives = [
        [code(saved.tar), whole(saved.reference), whole(saved.sha256)]
        for saved in bundle.manifest.saved_images
        if saved.tar is not None
    ]
    caption = "Archives next to the bundle"
    blocks: list[Block] = [
        Paragraph(
            "Without any tool of ours, in the folder that holds `bundle`. The commands go from the root to index.json, "
            "to what that names, and to the files next to the bundle; they list what is missing, changed or added."
        ),
        Paragraph(commands_by_hand(bundle.root, "."), code=True),
        Paragraph("With airferry, the same and more:"),
        Paragraph(f"airferry verify . --root {bundle.root}", code=True),
        *(table(caption, ("File", "Image", "SHA-256"), archives) if archives else ()),
    ]
    return Section("by-hand", "How to verify it by hand", tuple(blocks))


def _images(manifest: BundleManifest) -> Section:
    steps: dict[str, list[str]] = {}
    for step, image in manifest.step_execution_images.items():
        steps.setdefault(image, []).append(step)
    targets = {
        step: sorted(t.target for t in manifest.targets if _step_of(t.target) == step) for step in _steps(manifest)
    }
    rows = [
        [
            cell(image.name),
            cell(image.role),
            cell(_why(image, steps)),
            whole(image.reference),
            cell(", ".join(image.platforms)),
            cell(size_text(sum(entry.size_bytes for entry in image.platforms.values()))),
            whole(image.digest),
        ]
        for image in manifest.images
    ]
    columns = ("Image", "Role", "Why it is in here", "Reference", "Platforms", "Bytes", "Digest")
    per_step = [
        [cell(step), cell(", ".join(targets.get(step, []))), cell(image)]
        for step, image in manifest.step_execution_images.items()
    ]
    blocks = table("Images and the steps that need them", columns, rows)
    blocks += table("Steps and the image that each runs in", ("Step", "Targets", "Image"), per_step)
    twins = [
        [cell(image.name), whole(image.docker_twin.reference), whole(image.docker_twin.digest)]
        for image in manifest.images
        if image.docker_twin is not None
    ]
    if twins:
        caption = "Docker manifest lists of the same images, for enroot; they add no content"
        blocks += table(caption, ("Image", "Reference", "Digest"), twins)
    return Section("images", "What is in the bundle, and why", tuple(blocks))


def _steps(manifest: BundleManifest) -> Iterable[str]:
    return manifest.step_execution_images


def _step_of(target: str) -> str:
    return target.partition(":")[0]


def _why(image: ImageEntry, steps: dict[str, list[str]]) -> str:
    if image.role == "launcher":
        return "carries the steps' repository, from which steps are submitted"
    if image.role == "base":
        return "an original that other images are built on, carried as it came"
    needed = {*steps.get(image.image, []), *steps.get(image.reference, []), *steps.get(image.name, [])}
    return "needed by " + ", ".join(sorted(needed)) if needed else "no step names it"


def _additions(manifest: BundleManifest) -> Section:
    groups = {group.name: group for group in manifest.execution_groups}
    files: dict[Addition, list[str]] = {}
    rows = []
    for image in manifest.images:
        for platform, entry in image.platforms.items():
            for addition in entry.additions:
                files.setdefault(addition, []).append(image.name)
            names = ", ".join(f"{item.name} {item.version}" for item in entry.additions)
            rows.append(
                [
                    cell(image.name),
                    cell(platform),
                    cell(_base(manifest, image, groups.get(image.name))),
                    whole(entry.base_digest),
                    cell(names or "nothing"),
                    cell(", ".join(_overlay_text(item) for item in _overlays(groups.get(image.name))) or "nothing"),
                ]
            )
    columns = ("Image", "Platform", "Base", "Digest of the base", "Python distributions added", "Checkouts added")
    blocks = table("What was added to each base", columns, rows)
    blocks += table(
        "Files of the Python distributions that were added, each listed once",
        ("Distribution", "Version", "File", "SHA-256", "Images"),
        [
            [cell(item.name), cell(item.version), code(item.file), whole(item.sha256), cell(len(set(images)))]
            for item, images in sorted(files.items(), key=lambda pair: (pair[0].name, pair[0].version, pair[0].file))
        ],
    )
    return Section("additions", "What was added to each base", tuple(blocks))


def _overlays(group: GroupEntry | None) -> Sequence[OverlayEntry]:
    return group.repo_overlays if group else ()


def _overlay_text(overlay: OverlayEntry) -> str:
    return f"{overlay.repo} at {(overlay.commit or overlay.ref)[:12]} as {overlay.target}"


def _base(manifest: BundleManifest, image: ImageEntry, group: GroupEntry | None) -> str:
    base: Any = group.base_image if group else None
    if image.role == "launcher" and manifest.launcher_image:
        base = manifest.launcher_image.base_image
    if base is None or isinstance(base, str):
        return base or ""
    made = base.get("bootstrap")
    if isinstance(made, dict):
        return f"Debian {made.get('suite')} with {', '.join(map(str, made.get('packages') or ())) or 'nothing more'}"
    return json.dumps(base, sort_keys=True)


def _layers(manifest: BundleManifest) -> Section:
    uses: Counter[str] = Counter()
    sizes: dict[str, tuple[int, str | None, bool]] = {}
    for image in manifest.images:
        for entry in image.platforms.values():
            for layer in entry.layers:
                uses[layer.digest] += 1
                sizes[layer.digest] = (layer.size_bytes, layer.original_digest, layer.from_base)
    ranked = sorted((digest for digest in uses if uses[digest] > 1), key=lambda digest: (-sizes[digest][0], digest))
    numbers = {digest: number for number, digest in enumerate(ranked, start=1)}
    bars = tuple(
        Bar(
            shown(f"{image.name} {platform}"),
            tuple((layer.digest, layer.size_bytes, numbers.get(layer.digest)) for layer in entry.layers),
        )
        for image in manifest.images
        for platform, entry in image.platforms.items()
    )
    shared_bytes = sum(sizes[digest][0] for digest in numbers)
    saved = sum((uses[digest] - 1) * sizes[digest][0] for digest in numbers)
    description = "One bar for each image and platform, its layers to scale. " + layers_text(
        len(numbers), len(sizes) - len(numbers), size=size_text(shared_bytes), saved=size_text(saved)
    )
    rows = [
        [
            cell(f"shared {numbers[digest]}" if digest in numbers else "own"),
            cell(size_text(size)),
            cell(uses[digest]),
            cell("base" if from_base else "added"),
            whole(digest),
            whole(original),
        ]
        for digest, (size, original, from_base) in sorted(
            sizes.items(), key=lambda pair: (numbers.get(pair[0], len(numbers) + 1), -pair[1][0], pair[0])
        )
    ]
    columns = ("Layer", "Bytes", "Uses", "Comes from", "Digest", "Digest before recompression")
    blocks: list[Block] = [Picture("Shared and own layers of each image", description, bars)] if bars else []
    return Section("layers", "Sizes and layers", (*blocks, *table("Every layer, once", columns, rows)))


def _sources(manifest: BundleManifest) -> Section:
    commits = {
        (item.url, item.ref, item.commit, item.target): item
        for group in manifest.execution_groups
        for item in group.repo_overlays
    }
    for item in manifest.persistent_assets.baked_repo_overlays:
        commits.setdefault((item.url, item.ref, item.commit, item.target), item)
    rows = [
        [
            cell(item.repo),
            whole(_without_credentials(item.url)),
            cell(item.ref),
            whole(item.commit),
            code(item.target),
        ]
        for item in commits.values()
    ]
    blocks = table("Git checkouts", ("Repository", "Address", "Ref", "Commit", "Place in the image"), rows)
    groups = {group.name: group for group in manifest.execution_groups}
    bases = sorted(
        {
            (
                _base(manifest, image, groups.get(image.name)),
                platform,
                entry.base_digest or "",
            )
            for image in manifest.images
            if image.role != "base"
            for platform, entry in image.platforms.items()
        }
    )
    blocks += table(
        "Base images",
        ("Base", "Platform", "Digest"),
        [[cell(base), cell(platform), whole(digest)] for base, platform, digest in bases],
    )
    blocks += table(
        "Locks that were followed", ("File", "SHA-256"), [[cell(x.path), whole(x.sha256)] for x in manifest.locks]
    )
    return Section("sources", "Where it came from", tuple(blocks))


def _without_credentials(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _artifacts(bundle: Bundle) -> Section:
    rows = [
        [
            cell(item.title),
            code(item.artifact_type),
            cell("an image" if item.subject else "the bundle"),
            whole(item.digest),
        ]
        for item in bundle.manifest.artifacts
    ]
    own = bundle.manifest_descriptor
    title = (own.annotations or {}).get(TITLE, "the manifest")
    rows.append([cell(title), code(own.artifact_type), cell("the bundle"), whole(own.digest)])
    columns = ("Title", "Type", "Belongs to", "Digest")
    return Section("artifacts", "Artifacts", tuple(table("What the bundle contains besides images", columns, rows)))


def _rehearsal(manifest: BundleManifest) -> Section:
    """Return how far each step came in a network that leads nowhere, and what it reached for."""
    if not manifest.rehearsals:
        text = "No step was rehearsed. Nothing here tells whether the steps run without a network."
        return Section("rehearsal", "Rehearsal", (Paragraph(text),))
    undeclared = sum(not attempt.allowed for entry in manifest.rehearsals for attempt in entry.attempts)
    text = (
        "Each step was run in its image where no network leads out, until it ended or needed a GPU, data or weights. "
        f"Attempts to reach outside that the plan does not declare: {undeclared or 'none'}."
    )
    rows = [
        [
            cell(entry.target),
            cell(entry.platform),
            cell(entry.reached),
            cell(": ".join(part for part in (entry.stopped_by, entry.text) if part)),
            cell(f"{entry.modules} modules" + (f", not: {', '.join(entry.missing)}" if entry.missing else "")),
        ]
        for entry in manifest.rehearsals
    ]
    columns = ("Step", "Platform", "Reached", "What ended it", "Imported")
    attempts = [
        [
            cell(entry.target),
            cell(entry.platform),
            code(attempt.where),
            cell(attempt.protocol),
            cell(attempt.place or attempt.process or attempt.library),
            cell("declared" if attempt.allowed else "not declared"),
        ]
        for entry in manifest.rehearsals
        for attempt in entry.attempts
    ]
    reached = ("Step", "Platform", "Host", "Protocol", "By", "In the plan")
    blocks = [*table("How far each step came", columns, rows), *table("Attempts to reach outside", reached, attempts)]
    return Section("rehearsal", "Rehearsal", (Paragraph(text), *blocks))


def _checks(verified: VerifyReport) -> Section:
    text = (
        f"All {verified.blobs} blobs ({size_text(verified.size_bytes)}) were read and compared with their digests; "
        "every image was walked for each of its platforms; layout and manifest were compared both ways. "
    )
    if verified.only_beside:
        text += "The bundle is complete. What follows is wrong with files next to it: use none of them."
    else:
        text += "Nothing is wrong." if verified.ok else "The findings below were made. Do not load this bundle."
    blocks: list[Block] = [Paragraph(text)]
    if verified.findings:
        findings = enumerate(verified.findings, start=1)
        blocks += table("Findings", ("No.", "Finding"), [[cell(no), cell(finding)] for no, finding in findings])
    return Section("checks", "Checks", tuple(blocks))


def _outside(manifest: BundleManifest) -> Section:
    blocks: list[Block] = [Paragraph(shown(manifest.persistent_assets.policy) + ".")]
    rows = [
        [
            cell(item.name),
            cell(item.kind),
            cell(", ".join(item.steps)),
            cell(f"{counted(item.files, 'file')}, {size_text(item.size_bytes)}"),
            cell("carried in the bundle as a pack" if item.pack else "stays on storage, listed in the bundle"),
        ]
        for item in manifest.persistent_assets.assets
    ]
    blocks += table("Assets", ("Asset", "Kind", "Steps", "Extent", "Where"), rows)
    mounts = [
        [cell(number), code(mount)] for number, mount in enumerate(manifest.persistent_assets.mounts_from_configs, 1)
    ]
    blocks += table("Mounts that the steps' configs ask for", ("No.", "Mount"), mounts)
    return Section("outside", "What stays outside", tuple(blocks))


def _signatures(bundle: Bundle) -> Section:
    rows = [[Cell(role), Cell(" "), Cell(" "), Cell(" ")] for role in ("Prepared by", "Checked by", "Approved by")]
    text = f"The undersigned accept the bundle with root digest {bundle.root}."
    columns = ("Role", "Name", "Date", "Signature")
    return Section("signatures", "Signatures", (Paragraph(text), *table("Signatures", columns, rows)))


def layers_text(shared: int, alone: int, *, size: str, saved: str) -> str:
    """Return how many layers several bars share, what that saves, and how many belong to one bar."""
    if shared == 0:
        text = "No layer is shared by several bars."
    elif shared == 1:
        text = f"1 layer is shared by several bars: dark, numbered; it is stored once ({size}), which saves {saved}."
    else:
        text = (
            f"{shared} layers are shared by several bars: dark, with the same number in each; they are stored once "
            f"({size}), which saves {saved}."
        )
    if alone == 0:
        return text
    verb = "belongs" if alone == 1 else "belong"
    return f"{text} {counted(alone, 'layer')} {verb} to one bar alone: light, without a number."
