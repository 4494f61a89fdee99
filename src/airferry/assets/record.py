"""Recording assets on the near side, and packing them as CNCF ModelPack artifacts (model-spec v1).

Reads the asset's files and writes the journal of hashes, and for a pack, blobs of the bundle. index.json is sealing's.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from airferry.assets.files import FileState, HashJournal, asset_place, changed, hash_files, list_asset
from airferry.assets.manifest import (
    MODELPACK_ARTIFACT,
    MODELPACK_CONFIG,
    MODELPACK_FILEPATH,
    AssetFile,
    AssetLink,
    AssetManifest,
    asset_file_name,
)
from airferry.bundle.tree_paths import decode_path, linked_path, safe_path, too_deep
from airferry.config.assets import ASSET_KINDS, ASSET_NAME
from airferry.errors import BuildError, UsageError
from airferry.events import Emit, silent
from airferry.host import files
from airferry.host.canonical import canonical_json
from airferry.host.progress import Meter
from airferry.host.threads import usable_cores
from airferry.oci.documents import IMAGE_MANIFEST, TITLE, Descriptor, Manifest, descriptor_of
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import blocks
from airferry.oci.tar import END_OF_ARCHIVE, SYMLINK, TarEntry, entry_blocks

PACK_VERSION = 1  # part of every pack's inputs: raise it when the same files give another artifact
RAW_LAYER_BYTES = 16 * 1024 * 1024
MAX_RAW_LAYERS = 500
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".nemo", ".distcp", ".npz", ".h5")
DOCUMENTS = (".md", ".rst", ".pdf")
CODE = (".py", ".sh", ".ipynb")


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """The manifest of an asset and where it was written."""

    manifest: AssetManifest
    path: Path


def record_asset(
    path: Path,
    *,
    name: str | None = None,
    kind: str = "other",
    output: Path | None = None,
    jobs: int | None = None,
    emit: Emit = silent,
) -> RecordOutcome:
    """Write the manifest of an asset, a folder or a file: sizes and SHA-256 of all its files. A rerun resumes.

    It goes to `airgap-asset-<name>.jsonl` in the current folder unless another path is given; the name is the folder's
    by default.

    Raises:
        UsageError: the name is none, or the manifest would lie in the asset.
        HostError: something cannot be read or written.
        BuildError: the asset is empty, or holds what cannot be carried.
        IntegrityError: it changed while it was recorded.
    """
    chosen = name or path.absolute().name.lower()
    target = output or Path(asset_file_name(chosen))
    if path.is_dir() and files.lies_within(target, path):
        raise UsageError(
            f"`{target}` is inside the asset", hint="write the manifest to another place with `--out FILE`"
        )
    place = files.output_file(target)
    manifest = hash_asset(path, name=chosen, kind=kind, jobs=jobs, emit=emit)
    files.write_bytes(place, manifest.to_bytes())
    return RecordOutcome(manifest, target)


def hash_asset(
    path: Path,
    *,
    name: str,
    kind: str = "other",
    journal: Path | None = None,
    jobs: int | None = None,
    emit: Emit = silent,
) -> AssetManifest:
    """Return the manifest of an asset, a folder or a file, hashed on all cores. An interrupted run resumes.

    The journal, in the cache unless given, holds the hash of each file under its path, size, time of change and inode.

    Raises:
        UsageError: the name or the kind is none.
        HostError: something cannot be read.
        BuildError: there is nothing in it, or something that cannot be carried.
        IntegrityError: the asset changed while it was recorded.
    """
    if not ASSET_NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` is not a valid asset name",
            hint="use lower-case letters, digits, `.`, `_` and `-`: `--name NAME`",
        )
    if kind not in ASSET_KINDS:
        raise UsageError(f"unknown asset kind `{kind}`", hint="there are " + ", ".join(f"`{k}`" for k in ASSET_KINDS))
    listing = list_asset(path)
    _check(listing.files, listing.links, listing.others, path)
    known = HashJournal(journal or _journal_path(path))
    fresh = [state for state in listing.files if known.get(state) is None]

    def note(state: FileState, outcome: str | OSError) -> None:
        if isinstance(outcome, OSError):
            raise files.translate_os_error(outcome, doing="read", path=listing.place(state.path)) from outcome
        known.add(state, outcome)

    try:
        hash_files(listing, fresh, note, task=f"record {name}", jobs=jobs or usable_cores(), emit=emit)
    finally:
        known.flush()
    _expect_unchanged(path, listing.files, listing.links)
    known.keep(listing.files)
    recorded = tuple(AssetFile(state.path, state.size_bytes, known.get(state) or "") for state in listing.files)
    return AssetManifest(name, kind, _sorted(recorded), tuple(sorted(listing.links, key=lambda link: _raw(link.path))))


def _sorted(items: Iterable[AssetFile]) -> tuple[AssetFile, ...]:
    return tuple(sorted(items, key=lambda file: _raw(file.path)))


def _raw(path: str) -> bytes:
    return decode_path(path)


def _journal_path(path: Path) -> Path:
    mark = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
    return files.cache_directory() / "assets" / f"{mark}.jsonl"


def _check(found: Sequence[FileState], links: Sequence[AssetLink], others: Sequence[str], path: Path) -> None:
    """Refuse what another machine could not have."""
    if not found:
        raise BuildError(
            f"asset `{path}` contains no files", hint="give the folder that contains the files, or a single file"
        )
    if others:
        raise BuildError(
            f"asset `{path}` holds `{others[0]}`, which is not a regular file, a folder or a link",
            hint="remove sockets, pipes and devices from the folder of the asset",
        )
    if long := [state.path for state in found if not safe_path(_raw(state.path))]:
        raise BuildError(
            f"asset `{path}` contains a path that is too long: `{long[0][:80]}…`",
            hint="shorten the names of its folders: file systems and archives do not accept longer paths",
        )
    places = {state.path for state in found} | {link.path for link in links}
    for place in places:
        if reason := too_deep(_raw(place)):
            raise BuildError(
                f"asset `{path}` contains a path that {reason}: `{place[:80]}…`",
                hint="reduce the depth of its folders",
            )
    folders = {folder for place in places for folder in _folders(place)}
    for link in links:
        leads_to = linked_path(link.path, link.target)
        if leads_to is None:
            raise BuildError(
                f"asset `{path}`: the link `{link.path}` points outside the asset, to `{link.target}`",
                hint="replace the link by its target, or record the folder that contains both",
                path=link.path,
            )
        if leads_to not in places and leads_to not in folders:
            raise BuildError(
                f"asset `{path}`: the link `{link.path}` points to `{link.target}`, which does not exist",
                hint="finish the download, or remove the link",
                path=link.path,
            )


def _folders(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path
    yield "."


def _expect_unchanged(path: Path, found: Sequence[FileState], links: Sequence[AssetLink]) -> None:
    now = list_asset(path)
    before: set[FileState | AssetLink] = {*found, *links}
    after: set[FileState | AssetLink] = {*now.files, *now.links}
    if different := sorted(item.path for item in before ^ after):
        raise changed(different[0])


# --- ModelPack -------------------------------------------------------------------------------------------------------


def pack_asset(
    store: LayoutStore, manifest: AssetManifest, path: Path, *, jobs: int | None = None, emit: Emit = silent
) -> Descriptor:
    """Store an asset as a ModelPack artifact and return the descriptor that index.json is to have. Idempotent.

    Large files become separate raw layers, whose digests are those of the files, so that what is there is not
    written again; all others go into one tar layer for each kind of content. Everything is streamed and compared with
    the manifest.

    Raises:
        IntegrityError: a file is not what the manifest says.
        HostError: a file cannot be read, or the disk is full.
    """
    root = path if path.is_dir() else path.parent
    large = sorted(
        (file for file in manifest.files if file.size_bytes >= RAW_LAYER_BYTES and "%" not in file.path),
        key=lambda file: (-file.size_bytes, file.path),
    )[:MAX_RAW_LAYERS]
    raw = {file.path for file in large}
    meter = Meter(f"pack {manifest.name}", manifest.size_bytes, emit, every_bytes=1)
    layers: list[Descriptor] = []
    for file in _sorted(large):
        layers.append(_raw_layer(store, manifest.kind, file, root))
        meter.advance(file.size_bytes)
    small: dict[str, list[AssetFile]] = {}
    for file in manifest.files:
        if file.path not in raw:
            small.setdefault(content_kind(manifest.kind, file.path), []).append(file)
    if manifest.links:
        small.setdefault(content_kind(manifest.kind, "links"), [])
    for number, (content, members) in enumerate(sorted(small.items())):
        links = manifest.links if number == len(small) - 1 else ()
        layers.append(_tar_layer(store, content, _sorted(members), links, root))
    meter.finish()
    return _put_pack(store, manifest, layers)


def content_kind(kind: str, path: str) -> str:
    """Return the ModelPack word for what a file is: `weight`, `weight.config`, `doc`, `code` or `dataset`."""
    name = path.lower()
    if kind == "dataset":
        return "dataset"
    if name.endswith(DOCUMENTS) or posixpath.basename(name).startswith(("license", "notice", "readme")):
        return "doc"
    if name.endswith(CODE):
        return "code"
    return "weight" if name.endswith(WEIGHTS) else "weight.config"


def _layer_type(content: str, form: str) -> str:
    return f"application/vnd.cncf.model.{content}.v1.{form}"


def _raw_layer(store: LayoutStore, kind: str, file: AssetFile, root: Path) -> Descriptor:
    descriptor = Descriptor(
        media_type=_layer_type(content_kind(kind, file.path), "raw"),
        digest=f"sha256:{file.sha256}",
        size=file.size_bytes,
        annotations={MODELPACK_FILEPATH: file.path, TITLE: file.path},
    )
    if not store.has_blob(descriptor):
        with store.new_blob() as writer:
            for block in _recorded(file, root):
                writer.write(block)
            writer.commit()
    return descriptor


def _tar_layer(
    store: LayoutStore, content: str, members: Sequence[AssetFile], links: Sequence[AssetLink], root: Path
) -> Descriptor:
    """Store small files, and links if any, as one uncompressed tar, sorted and without owners and times."""
    with store.new_blob() as writer:
        for file in members:
            entry = TarEntry(os.fsdecode(_raw(file.path)), size=file.size_bytes)
            for block in entry_blocks(entry, _recorded(file, root)):
                writer.write(block)
        for link in links:
            entry = TarEntry(
                os.fsdecode(_raw(link.path)), type=SYMLINK, mode=0o777, link_name=os.fsdecode(_raw(link.target))
            )
            for block in entry_blocks(entry):
                writer.write(block)
        writer.write(END_OF_ARCHIVE)
        digest, size = writer.commit()
    return Descriptor(
        media_type=_layer_type(content, "tar"),
        digest=digest,
        size=size,
        annotations={MODELPACK_FILEPATH: ".", TITLE: f"{content}.tar"},
    )


def _recorded(file: AssetFile, root: Path) -> Iterator[bytes]:
    """Yield a file's content and raise at its end, before a blob of it is committed, if it differs from what was
    recorded.
    """
    state, size = hashlib.sha256(), 0
    with _opened(asset_place(root, file.path)) as stream:
        for block in blocks(stream):
            state.update(block)
            size += len(block)
            if size > file.size_bytes:
                raise changed(file.path)
            yield block
    if size != file.size_bytes or state.hexdigest() != file.sha256:
        raise changed(file.path)


@contextmanager
def _opened(place: Path) -> Iterator[IO[bytes]]:
    try:
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise files.translate_os_error(error, doing="read", path=place) from error
    with os.fdopen(handle, "rb", buffering=0) as stream:
        yield stream


def _put_pack(store: LayoutStore, manifest: AssetManifest, layers: Sequence[Descriptor]) -> Descriptor:
    config = {
        "descriptor": {"name": manifest.name, "title": manifest.name},
        "config": {},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }
    document = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        artifact_type=MODELPACK_ARTIFACT,
        config=store.put_bytes(canonical_json(config), MODELPACK_CONFIG),
        layers=list(layers),
        annotations={TITLE: manifest.name},
    )
    data = canonical_json(document)
    store.put_bytes(data, IMAGE_MANIFEST)
    return descriptor_of(data, IMAGE_MANIFEST, artifact_type=MODELPACK_ARTIFACT, annotations={TITLE: manifest.name})
