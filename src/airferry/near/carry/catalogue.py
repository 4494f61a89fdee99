"""The step catalogue as an artifact of the bundle, so that the far side needs no separate copy.

It holds what Git tracks, as the launcher's image does, and always the files of the targets that are carried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.catalogue import (
    CATALOGUE_ARTIFACT,
    CATALOGUE_CONTENT,
    CATALOGUE_FILE,
    MAX_CATALOGUE_BYTES,
    MAX_CATALOGUE_FILES,
    MAX_CATALOGUE_PACKED_BYTES,
    CataloguePaths,
)
from airferry.bundle.manifest import ArtifactEntry, CatalogueEntry
from airferry.bundle.tree_paths import encode_path
from airferry.errors import ConfigurationError
from airferry.events import Emit, Warned
from airferry.host import clock, files
from airferry.host.files import translate_os_error
from airferry.near.assemble import context
from airferry.near.git.driver import LFS_POINTER, LFS_POINTER_MAX_BYTES
from airferry.oci.codecs import zstd_blocks
from airferry.oci.documents import Descriptor
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import blocks
from airferry.oci.tar import END_OF_ARCHIVE, SYMLINK, TarEntry, entry_blocks
from airferry.plan.models import Plan
from airferry.wording import counted, some_of

ZSTD_LEVEL = 9
NEVER_CARRIED = ("__pycache__", "node_modules")
MAX_NAMED_PATHS = 3


@dataclass(frozen=True, slots=True)
class CatalogueFile:
    """A file or link of the catalogue: its path from the root, and where it is now."""

    path: PurePosixPath
    source: Path


@dataclass(frozen=True, slots=True)
class CarriedCatalogue:
    """The catalogue of a bundle: its entry in the manifest, and its artifact."""

    entry: CatalogueEntry
    artifact: tuple[ArtifactEntry, Descriptor]


def carry_catalogue(plan: Plan, store: LayoutStore, *, scratch: Path, emit: Emit) -> CarriedCatalogue | None:
    """Store the catalogue of a plan. The same bytes for the same files, whatever their times and owners are.

    A catalogue that is too large stays behind, with a warning: the far side then needs its own copy.

    Raises:
        BuildError: a file changed while it was read.
        HostError: a file cannot be read, or the disk is full.
    """
    listed, tracked = catalogue_files(plan, context.plan_configs(plan, scratch), emit=emit)
    files = [(item.path, _size_bytes(item.source), item.source) for item in _allowed(listed, emit)]
    unpacked = sum(size for _path, size, _source in files)
    reason = ""
    if len(files) > MAX_CATALOGUE_FILES:
        reason = f"it has {len(files)} files, more than {MAX_CATALOGUE_FILES}"
    elif unpacked > MAX_CATALOGUE_BYTES:
        reason = f"it has {unpacked} bytes, more than {MAX_CATALOGUE_BYTES}"
    packed = scratch / CATALOGUE_FILE
    if not reason:
        try:
            with packed.open("wb") as stream:
                for block in zstd_blocks(_tar(files), level=ZSTD_LEVEL, threads=1):
                    stream.write(block)
        except OSError as error:
            raise translate_os_error(error, doing="pack", path=plan.source_root) from error
        if (size := packed.stat().st_size) > MAX_CATALOGUE_PACKED_BYTES:
            reason = f"it has {size} bytes when compressed, more than {MAX_CATALOGUE_PACKED_BYTES}"
    if reason:
        emit(
            Warned(
                f"the catalogue `{plan.source_root}` is not added to the bundle: {reason}",
                hint="on the far side, pass a copy of it to `overlays` and `check` with `--source`",
            )
        )
        return None
    if pointers := [path for path, size, file in files if size <= LFS_POINTER_MAX_BYTES and _is_lfs_pointer(file)]:
        emit(
            Warned(
                f"the catalogue holds {counted(len(pointers), 'Git LFS pointer')}, such as `{pointers[0]}`; the files "
                "that they point to are not included",
                hint="run `git lfs pull` in the catalogue, or add the files that steps need to `assets:`",
            )
        )
    content = ArtifactFile(CATALOGUE_FILE, CATALOGUE_CONTENT, packed)
    descriptor = put_artifact(store, CATALOGUE_ARTIFACT, contents=[content])
    source = plan.config.source
    entry = CatalogueEntry(
        digest=descriptor.digest,
        size_bytes=packed.stat().st_size,
        unpacked_bytes=unpacked,
        files=len(files),
        steps=source.steps,
        package=source.steps_package,
        tracked=tracked,
    )
    listed_as = ArtifactEntry(
        title=CATALOGUE_FILE, artifact_type=CATALOGUE_ARTIFACT, digest=descriptor.digest, size_bytes=descriptor.size
    )
    return CarriedCatalogue(entry, (listed_as, descriptor))


def catalogue_files(
    plan: Plan, configs: Mapping[PurePosixPath, Path], *, emit: Emit
) -> tuple[list[CatalogueFile], bool]:
    """Return what the artifact is to hold, sorted by path, and whether it is what Git tracks.

    A source in no Git repository gives what lies in the top folder that holds the steps, without hidden files and
    what tools leave. Files of the plan's targets that the listing lacks are added: an overlay config inherits them.
    """
    root, excluded = plan.source_root, [plan.output_dir]
    try:
        found = {path: CatalogueFile(path, source) for path, source in context.carried(root, excluded)}
    except ConfigurationError:
        found = {}
    tracked = bool(found)
    if not tracked:
        top = PurePosixPath(plan.config.source.steps).parts[0]
        found = {item.path: item for item in _lying_there(root, top, plan.output_dir)}
        emit(
            Warned(
                f"`{root}` is not in a Git repository, so only `{top}` of the catalogue is added to the bundle",
                hint="track the catalogue with Git to add all of it",
            )
        )
    added = []
    own = {item.name for step in plan.steps if step.target.path for item in step.config_files if item.data is not None}
    for item in _needed(plan, configs):
        if item.path not in found:
            found[item.path] = item
            if item.path.as_posix() not in own:
                added.append(item.path.as_posix())
    if added:
        shown = some_of([f"`{path}`" for path in added], MAX_NAMED_PATHS)
        emit(Warned(f"{shown} are added to the bundle because targets need them, although Git does not track them"))
    return sorted(found.values(), key=lambda item: os.fsencode(item.path)), tracked


def _lying_there(root: Path, top: str, output: Path) -> Iterator[CatalogueFile]:
    for folder, names, file_names in os.walk(root / top):
        here = Path(folder)
        names[:] = [
            name
            for name in sorted(names)
            if not name.startswith(".") and name not in NEVER_CARRIED and here / name != output
        ]
        links = [name for name in names if (here / name).is_symlink()]
        for name in sorted([*links, *file_names]):
            path = here / name
            regular = path.is_symlink() or path.is_file()
            if regular and not name.startswith(".") and name not in context.NEVER_IN_LAUNCHER:
                yield CatalogueFile(PurePosixPath(path.relative_to(root).as_posix()), path)


def _needed(plan: Plan, configs: Mapping[PurePosixPath, Path]) -> Iterator[CatalogueFile]:
    """Yield the files of the plan's targets: step, description, and what their configs consist of."""
    for path in dict.fromkeys(path for step in plan.steps for path in (step.step_py, step.step_toml)):
        name = path.relative_to(plan.source_root).as_posix()
        yield CatalogueFile(PurePosixPath(name), files.resolved(path))
    for place, source in configs.items():
        yield CatalogueFile(place, source)


def _allowed(found: Sequence[CatalogueFile], emit: Emit) -> Iterator[CatalogueFile]:
    """Yield the files that the far side unpacks; what it would refuse is left here, with a warning."""
    rules = CataloguePaths()
    left: list[str] = []
    for item in found:
        target = os.fsencode(item.source.readlink()) if item.source.is_symlink() else None
        if reason := rules.trouble(os.fsencode(item.path), link_target=target):
            left.append(f"`{encode_path(os.fsencode(item.path))}` {reason}")
        else:
            yield item
    if left:
        named = some_of(left, MAX_NAMED_PATHS, separator="; ")
        emit(Warned(f"{counted(len(left), 'file')} of the catalogue are not added to the bundle: {named}"))


def _is_lfs_pointer(source: Path) -> bool:
    if source.is_symlink():
        return False
    with source.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def _size_bytes(source: Path) -> int:
    return 0 if source.is_symlink() else source.stat().st_size


def _tar(found: Sequence[tuple[PurePosixPath, int, Path]]) -> Iterator[bytes]:
    epoch_s = clock.source_date_epoch_s()
    for path, size, source in found:
        name = os.fsdecode(os.fsencode(path))
        if source.is_symlink():
            target = os.fsdecode(source.readlink())
            yield from entry_blocks(TarEntry(name, type=SYMLINK, mode=0o777, link_name=target, mtime_s=epoch_s))
            continue
        mode = 0o755 if source.stat().st_mode & 0o100 else 0o644
        with source.open("rb") as stream:
            entry = TarEntry(name, size=size, mode=mode, mtime_s=epoch_s)
            yield from entry_blocks(entry, blocks(stream), what=str(source))
    yield END_OF_ARCHIVE
