"""The step catalogue on the site: out of the artifact of a bundle or registry, into a folder.

Trusts neither: the whole artifact is compared with its digest before any of it is unpacked, nothing is written outside
the folder, and it appears whole or not at all. A folder that an earlier extraction left is known by its mark.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from airferry.assets.unpack import MADE_ELSEWHERE, TreeUnpacker
from airferry.bundle.catalogue import (
    CATALOGUE_ARTIFACT,
    CATALOGUE_CONTENT,
    CATALOGUE_MARK,
    MAX_CATALOGUE_BYTES,
    MAX_CATALOGUE_FILES,
    MAX_CATALOGUE_PACKED_BYTES,
    CataloguePaths,
)
from airferry.bundle.tree_paths import encode_path
from airferry.errors import HostError, IntegrityError, UsageError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_json
from airferry.host.threads import parallel_map
from airferry.oci.codecs import inflate
from airferry.oci.documents import Descriptor
from airferry.oci.litter import is_litter
from airferry.oci.ports import Source, blocks
from airferry.oci.streams import BlockReader
from airferry.oci.tar import TarEntry, TarReader
from airferry.wording import some_of

MAX_MARK_BYTES = 64 << 20
HEADERS_BYTES = 8192  # what an entry's headers take at most, with the longest allowed path
LEFT_BY_TOOLS = "__pycache__"
SYNC_JOBS = 16


@dataclass(frozen=True, slots=True)
class Extracted:
    """A catalogue that was extracted: where, how many files and links, and whether it was there already."""

    path: Path
    digest: str
    files: int
    reused: bool = False


class _CatalogueUnpacker(TreeUnpacker):
    """Takes paths as they are written, and refuses what the near side would not have packed."""

    def __init__(self, root: Path, *, what: str) -> None:
        super().__init__(
            root,
            what=what,
            whole="the catalogue",
            limit_bytes=min(MAX_CATALOGUE_BYTES, files.free_bytes(root)),
            limit_files=MAX_CATALOGUE_FILES,
            durable=False,
        )
        self._rules = CataloguePaths()

    def trouble(self, raw: bytes, *, link_target: bytes | None = None) -> str | None:
        return self._rules.trouble(raw, link_target=link_target)

    def path_of(self, entry: TarEntry) -> str:
        return entry.name


def extract_artifact(source: Source, descriptor: Descriptor, destination: Path) -> Extracted:
    """Extract a catalogue into a folder that is absent, empty, or the unchanged result of an earlier extraction.

    What an earlier one left is replaced; the same catalogue is left as it is.

    Raises:
        UsageError: the folder holds something else, or files that were changed since.
        IntegrityError: the artifact is damaged, no catalogue, or holds what would leave the folder.
        HostError: the disk is full, or the folder not writable.
    """
    known = expect_ours(destination)
    if known is not None and known["digest"] == descriptor.digest:
        return Extracted(destination, descriptor.digest, len(known["files"]), reused=True)
    try:
        _expect_replaceable(destination)
        files.make_folders(destination.absolute().parent, shared=True)
        with files.scratch_directory(destination.absolute().parent) as scratch:
            root = files.ensure_directory(scratch / "catalogue", shared=True)
            count = unpack_catalogue(source, descriptor, root, scratch=scratch)
            _make_durable(root)
            mark = {"digest": descriptor.digest, "files": dict(_states(root))}
            files.write_text(root / CATALOGUE_MARK, json.dumps(mark, indent=0, sort_keys=True) + "\n")
            if destination.is_dir():
                destination.replace(scratch / "before")
            files.publish(root, destination)
    except OSError as error:
        raise files.translate_os_error(error, doing="extract into", path=destination) from error
    return Extracted(destination, descriptor.digest, count)


def holds_catalogue(folder: Path, digest: str) -> bool:
    """Tell whether a folder is the unchanged extraction of a catalogue."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    known = _mark(folder / CATALOGUE_MARK)
    return known is not None and known["digest"] == digest and _states_now(folder, known["files"]) == known["files"]


def unpack_catalogue(source: Source, descriptor: Descriptor, root: Path, *, scratch: Path) -> int:
    """Unpack a catalogue into an empty folder, once all of it is verified, and return how many files there are.

    Raises:
        IntegrityError: as `extract_artifact` says.
        HostError: the disk is full.
    """
    what = f"the catalogue `{descriptor.digest}`"
    manifest = source.read_manifest(descriptor).manifest
    if manifest.artifact_type != CATALOGUE_ARTIFACT:
        raise IntegrityError(
            f"artifact `{descriptor.digest}` is of type `{manifest.artifact_type}`, not a catalogue",
            hint=MADE_ELSEWHERE,
        )
    if len(manifest.layers) != 1 or manifest.layers[0].media_type != CATALOGUE_CONTENT:
        types = ", ".join(f"`{layer.media_type}`" for layer in manifest.layers) or "none"
        raise IntegrityError(
            f"{what} must have exactly one layer, of type `{CATALOGUE_CONTENT}`; it has {types}", hint=MADE_ELSEWHERE
        )
    layer = manifest.layers[0]
    if layer.size > MAX_CATALOGUE_PACKED_BYTES:
        raise IntegrityError(
            f"{what} has {layer.size} bytes, more than the limit of {MAX_CATALOGUE_PACKED_BYTES}", hint=MADE_ELSEWHERE
        )
    if layer.size > (free := files.free_bytes(scratch)):
        raise HostError(f"`{scratch}` needs {layer.size} bytes for {what}, {free} are free", hint="free space")
    packed = scratch / "catalogue.tar.zst"
    with source.open_blob(layer) as stream, packed.open("wb") as copy:
        for block in blocks(stream):
            copy.write(block)
    unpacker = _CatalogueUnpacker(root, what=what)
    with packed.open("rb") as stream:
        plain = _bounded(inflate(blocks(stream), "zstd", what=what), what)
        with io.BufferedReader(BlockReader(plain)) as unpacked:
            unpacker.add_tar(TarReader(unpacked, what=what), what)
    unpacker.make_links()
    packed.unlink()
    return unpacker.files + len(unpacker.links)


def _make_durable(root: Path) -> None:
    """Bring all files to the disk: one after the other as they are written takes five times as long."""

    def sync(path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    paths = [Path(here) / name for here, _names, file_names in os.walk(root) for name in file_names]
    parallel_map(sync, [path for path in paths if not path.is_symlink()], jobs=SYNC_JOBS)


def _bounded(content: Iterator[bytes], what: str) -> Iterator[bytes]:
    """Yield blocks, and raise where there are more than files within the limits, and their headers, can take."""
    limit = MAX_CATALOGUE_BYTES + MAX_CATALOGUE_FILES * HEADERS_BYTES
    total = 0
    for block in content:
        total += len(block)
        if total > limit:
            raise IntegrityError(f"{what} unpacks to more than {limit} bytes", hint=MADE_ELSEWHERE)
        yield block


def expect_ours(destination: Path) -> dict[str, Any] | None:
    """Return the mark of an earlier extraction that is unchanged since; None where the folder is absent or empty.

    Raises:
        UsageError: something else is there, or files were changed since.
    """
    if not destination.is_symlink():
        if not destination.exists():
            return None
        if destination.is_dir():
            if not any(destination.iterdir()):
                return None
            if (known := _mark(destination / CATALOGUE_MARK)) is not None:
                _expect_unchanged(destination, known["files"])
                return known
    raise UsageError(
        f"`{destination}` is there, and not a catalogue that airferry extracted",
        hint="name a folder that does not exist or is empty",
    )


def _expect_replaceable(destination: Path) -> None:
    """Refuse a folder that no other can take the place of: the current one, and the top of a mounted file system."""
    if not destination.is_dir():
        return
    what = "the current folder" if destination.samefile(Path()) else "a mount point" if destination.is_mount() else None
    if what is not None:
        raise UsageError(
            f"`{destination}` is {what}, and the catalogue takes the whole place of its folder",
            hint=f"name a folder in it: `{destination / 'catalogue'}`",
        )


def _mark(path: Path) -> dict[str, Any] | None:
    if path.is_symlink() or not path.is_file():
        return None
    with suppress(Malformed):
        known = parse_json(files.read_bounded(path, limit_bytes=MAX_MARK_BYTES))
        if isinstance(known, dict) and isinstance(known.get("files"), dict) and isinstance(known.get("digest"), str):
            return known
    return None


def _expect_unchanged(folder: Path, known: dict[str, str]) -> None:
    now = _states_now(folder, known)
    changed = sorted({path for path, state in {*now.items()} ^ {*known.items()}})
    if changed:
        shown = some_of([f"`{path}`" for path in changed], 3)
        raise UsageError(
            f"`{folder}` was changed since airferry extracted it: {shown}",
            hint="name another folder, or use this one with `--source`",
        )


def _states_now(folder: Path, known: Collection[str]) -> dict[str, str]:
    """Return what an extracted catalogue holds, but for the litter that came to it since."""
    return {path: state for path, state in _states(folder) if path in known or not is_litter(PurePosixPath(path))}


def _states(root: Path) -> Iterator[tuple[str, str]]:
    """Yield each file and link of an extracted catalogue with what it holds; byte code of Python does not count."""
    for folder, names, file_names in os.walk(root):
        here = Path(folder)
        links = [name for name in names if (here / name).is_symlink()]
        names[:] = [name for name in names if name != LEFT_BY_TOOLS]
        for name in (*links, *file_names):
            path = here / name
            key = encode_path(os.fsencode(path.relative_to(root)))
            if path.is_symlink():
                yield key, "-> " + encode_path(os.fsencode(path.readlink()))
            elif key != CATALOGUE_MARK:
                with path.open("rb") as stream:
                    yield key, hashlib.file_digest(stream, "sha256").hexdigest()
