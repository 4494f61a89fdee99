"""Assets on the far side: is what was staged complete and unaltered, and unpacking of ModelPack artifacts.

Trusts neither disk nor artifact: nothing is written outside the destination, and what is unpacked appears whole or not
at all.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from airferry.assets.files import FileState, Listing, hash_files, list_asset, readable_reason
from airferry.assets.manifest import (
    ASSET_ARTIFACT,
    ASSET_CONTENT,
    MAX_ASSET_FILES,
    MAX_ASSET_MANIFEST_BYTES,
    MODELPACK_ARTIFACT,
    MODELPACK_FILEPATH,
    AssetFile,
    AssetManifest,
    parse_asset_manifest,
)
from airferry.assets.unpack import TreeUnpacker
from airferry.bundle.artifacts import read_artifact_file
from airferry.bundle.verify import Bundle
from airferry.errors import FindingsError, HostError, IntegrityError, UsageError
from airferry.events import Emit, silent
from airferry.host import files
from airferry.host.canonical import plain_data
from airferry.host.progress import Meter
from airferry.host.threads import usable_cores
from airferry.oci.codecs import inflate
from airferry.oci.documents import Descriptor
from airferry.oci.litter import is_litter
from airferry.oci.ports import Source, blocks
from airferry.oci.streams import BlockReader, verifying
from airferry.oci.tar import TarReader
from airferry.wording import some_of

SHOWN_DIFFERENCES = 5
MAX_KEPT_FINDINGS = 10_000
LITTER = "left by a desktop or file system"
_COMPRESSION: dict[str, Literal["zstd", "gzip", "none"]] = {"tar": "none", "tar+gzip": "gzip", "tar+zstd": "zstd"}
_FORM = re.compile(r"application/vnd\.cncf\.model\.[a-z.]+\.v1\.(raw|tar|tar\+gzip|tar\+zstd)")

Problem = Literal["missing", "extra", "changed", "unreadable"]


@dataclass(frozen=True, slots=True)
class AssetFinding:
    """Something that is not as the manifest says: the path, the kind of trouble, and the trouble itself."""

    path: str
    problem: Problem
    text: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.path}" + (f" ({self.text})" if self.text else "")


@dataclass(frozen=True, slots=True)
class AssetReport:
    """What a verification of an asset saw. `read_bytes` is what was read and hashed."""

    name: str
    path: Path
    digest: str
    files: int
    size_bytes: int
    read_bytes: int
    findings: tuple[AssetFinding, ...]

    @property
    def ok(self) -> bool:
        """Whether the asset is complete and unaltered."""
        return not self.findings

    def to_document(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return plain_data(self, "name", "path", "digest", "ok", "files", "size_bytes", "read_bytes", "findings")  # type: ignore[no-any-return]

    def raise_if_wrong(self) -> None:
        """Do nothing if the asset is complete and unaltered.

        Raises:
            FindingsError: it is not; `report` of it is this report.
        """
        if self.ok:
            return
        shown = some_of([str(item) for item in self.findings], SHOWN_DIFFERENCES, separator="; ")
        hint = "copy these files again from the source, then verify again"
        if all(item.problem == "extra" for item in self.findings):
            hint = "remove these files, then verify again"
        raise FindingsError(
            f"asset `{self.name}` in `{self.path}` differs from what was recorded: {shown}",
            hint=hint,
            report=self,
        )


def compare_asset(
    manifest: AssetManifest, path: Path, *, content: bool = True, jobs: int | None = None, emit: Emit = silent
) -> AssetReport:
    """Compare what is staged at a path with a manifest and return what differs. Each file is read once, on all cores.

    Without `content`, only names and sizes are compared, and nothing is read. A link of the asset may have been
    replaced by a copy of the file that it leads to.

    Raises:
        HostError: the path is not there, or one of its folders cannot be read.
        IntegrityError: a file changed while it was read.
    """
    listing = list_asset(path)
    expected = dict(manifest.by_path)
    staged_links = set(listing.links)
    for link in manifest.links:
        if link not in staged_links and (target := manifest.linked_file(link)) is not None:
            expected[link.path] = AssetFile(link.path, target.size_bytes, target.sha256)
    if not path.is_dir() and len(manifest.files) == 1 and listing.files:
        staged = listing.files[0]
        expected = {staged.path: AssetFile(staged.path, manifest.files[0].size_bytes, manifest.files[0].sha256)}
    found = {state.path: state for state in listing.files}
    findings = _compare_names(manifest, listing, expected, found)
    to_read: list[FileState] = []
    for name in sorted(expected.keys() & found.keys()):
        if found[name].size_bytes == expected[name].size_bytes:
            to_read.append(found[name])
        else:
            text = f"{found[name].size_bytes} bytes, expected {expected[name].size_bytes}"
            findings.append(AssetFinding(name, "changed", text))

    def judge(state: FileState, outcome: str | OSError) -> AssetFinding | None:
        if isinstance(outcome, OSError):
            return AssetFinding(state.path, "unreadable", readable_reason(outcome))
        if outcome != expected[state.path].sha256:
            return AssetFinding(state.path, "changed", f"SHA-256 {outcome}, expected {expected[state.path].sha256}")
        return None

    to_read = to_read if content else []
    task = f"verify {manifest.name}"
    judged = hash_files(listing, to_read, judge, task=task, jobs=jobs or usable_cores(), emit=emit)
    findings += [finding for finding in judged if finding is not None]
    return AssetReport(
        name=manifest.name,
        path=path,
        digest=manifest.digest,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
        read_bytes=sum(state.size_bytes for state in to_read),
        findings=tuple(sorted(findings, key=lambda item: (item.path, item.problem))[:MAX_KEPT_FINDINGS]),
    )


def _compare_names(
    manifest: AssetManifest, listing: Listing, expected: dict[str, AssetFile], found: dict[str, FileState]
) -> list[AssetFinding]:
    findings = [AssetFinding(path, "missing", "") for path in expected.keys() - found.keys()]
    links = {link.path: link for link in listing.links}
    wanted = {link.path: link for link in manifest.links if link.path not in expected}
    for name, link in wanted.items():
        if name not in links:
            findings.append(AssetFinding(name, "missing", f"a link to {link.target}"))
        elif links[name] != link:
            findings.append(AssetFinding(name, "changed", f"points to {links[name].target}, expected {link.target}"))
    known = expected.keys() | wanted.keys()
    litter = {path: is_litter(PurePosixPath(path)) for path in found.keys() - known}
    extra = [*litter, *(links.keys() - known), *listing.others]
    return findings + [AssetFinding(path, "extra", LITTER if litter.get(path) else "") for path in extra]


# --- finding manifests and packs -------------------------------------------------------------------------------------


def read_asset_file(path: Path) -> AssetManifest:
    """Return the manifest that `assets record` wrote to a file.

    Raises:
        HostError: the file cannot be read.
        IntegrityError: it is not an asset manifest.
    """
    return parse_asset_manifest(files.read_bounded(path, limit_bytes=MAX_ASSET_MANIFEST_BYTES), what=f"`{path}`")


def bundle_assets(bundle: Bundle) -> dict[str, AssetManifest]:
    """Return the asset manifests that a bundle carries, by name.

    Raises:
        IntegrityError: one of them is not what its descriptor says, or is not an asset manifest.
    """
    result = {}
    for descriptor in bundle.artifacts:
        if descriptor.artifact_type == ASSET_ARTIFACT:
            data = read_artifact_file(
                bundle.store, descriptor, media_type=ASSET_CONTENT, limit_bytes=MAX_ASSET_MANIFEST_BYTES
            )
            manifest = parse_asset_manifest(data, what=f"artifact `{descriptor.digest}`")
            result[manifest.name] = manifest
    return dict(sorted(result.items()))


def bundle_packs(bundle: Bundle) -> dict[str, Descriptor]:
    """Return the ModelPack artifacts that a bundle carries, by name."""
    titles = {entry.digest: entry.title for entry in bundle.manifest.artifacts}
    return {
        titles.get(descriptor.digest, descriptor.digest): descriptor
        for descriptor in bundle.artifacts
        if descriptor.artifact_type == MODELPACK_ARTIFACT
    }


# --- unpacking -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was unpacked: where to, how many files and links, and their bytes."""

    path: Path
    files: int
    links: int
    size_bytes: int


def unpack_pack(source: Source, descriptor: Descriptor, destination: Path, *, emit: Emit = silent) -> Unpacked:
    """Unpack a ModelPack artifact into a folder that is absent or empty. Atomic: it appears whole or not at all.

    Only regular files, folders and links that stay inside are made, whatever the artifact says; every blob is
    verified.

    Raises:
        UsageError: the destination is not empty.
        IntegrityError: the artifact is not a ModelPack, is damaged, or would write outside the destination.
        HostError: the disk is full, or the destination not writable.
    """
    if destination.is_symlink() or (destination.exists() and (not destination.is_dir() or any(destination.iterdir()))):
        raise UsageError(f"`{destination}` already exists", hint="name a folder that does not exist or is empty")
    manifest = source.read_manifest(descriptor).manifest
    if manifest.artifact_type != MODELPACK_ARTIFACT:
        raise IntegrityError(
            f"artifact `{descriptor.digest}` is of type `{manifest.artifact_type}`, not a ModelPack",
            hint="name an artifact that was packed with `pack: true`",
        )
    total, free = sum(layer.size for layer in manifest.layers), files.free_bytes(destination.parent)
    if total > free:
        raise HostError(
            f"`{destination}` needs {total} bytes, {free} are free", hint="free up space, or choose another destination"
        )
    try:
        with files.scratch_directory(destination.parent) as scratch:
            unpacker = TreeUnpacker(
                files.ensure_directory(scratch / "asset", shared=True),
                what="the artifact",
                whole="the asset",
                limit_bytes=free,
                limit_files=MAX_ASSET_FILES,
            )
            meter = Meter(f"unpack {destination.name}", total, emit, every_bytes=1)
            for layer in manifest.layers:
                _add_layer(unpacker, source, layer)
                meter.advance(layer.size)
            unpacker.make_links()
            if destination.is_dir():
                destination.rmdir()
            files.publish(scratch / "asset", destination)
    except OSError as error:
        raise files.translate_os_error(error, doing="unpack into", path=destination) from error
    return Unpacked(destination, unpacker.files, len(unpacker.links), unpacker.size_bytes)


def _add_layer(unpacker: TreeUnpacker, source: Source, layer: Descriptor) -> None:
    what = f"layer `{layer.digest}`"
    form = _FORM.fullmatch(layer.media_type)
    if form is None:
        raise IntegrityError(
            f"{what} has the type `{layer.media_type}`, which is not a ModelPack type",
            hint="do not use it: it was changed, or not made by `airferry build`",
        )
    with source.open_blob(layer) as stream:
        content = blocks(verifying(stream, layer))
        if form[1] == "raw":
            name = (layer.annotations or {}).get(MODELPACK_FILEPATH, "")
            unpacker.write(name.encode("utf-8", "surrogatepass"), content)
            return
        with io.BufferedReader(BlockReader(inflate(content, _COMPRESSION[form[1]], what=what))) as unpacked:
            unpacker.add_tar(TarReader(unpacked, what=what), what)
