"""What one layer of a base holds, collected while its bytes pass by once: entries, whiteouts, facts of some files.

Nothing is unpacked. What no engine could unpack, or would unpack outside of the root, is refused; what engines take
and cannot be read here is an `UnreadLayer`, once all else in the layer is found harmless. Facts are kept in the cache
under the layer's diff_id, so that a layer is looked at once, whatever images share it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import zstandard

from airferry.errors import HostError, IntegrityError
from airferry.host import files
from airferry.host.files import MAX_NAME_BYTES, MAX_PATH_BYTES
from airferry.host.parsing import parse_json
from airferry.host.threads import Consumer
from airferry.host.workers.work import IN_PLACE, Workers
from airferry.oci.digest import digest_hex
from airferry.oci.ports import BLOCK_BYTES, blocks
from airferry.oci.streams import BlockStream
from airferry.oci.tar import BLOCK, CHARACTER, DIRECTORY, REGULAR, SYMLINK, TarEntry, TarReader
from airferry.rootfs.files import MAX_KEPT_BYTES, FileFacts, read_source, reader_for
from airferry.rootfs.sources import SourceReader

FACTS_SCHEMA_VERSION = 4
MAX_LAYER_ENTRIES = 2_000_000
# of folders, names and targets of links: two million entries of 4 KiB paths, which compress well, would be 16 GiB
MAX_LAYER_NAMES_CHARACTERS = 256 << 20
MAX_CACHE_BYTES = 1 << 30
MAX_FACTS_BYTES = 1 << 30
CACHE_SUFFIX = ".json.zst"
# blocks: sources of Python take longer than all else in a layer, and they lie together
OBSERVER_DEPTH = 64
OPAQUE = ".wh..wh..opq"
DEVICE_TYPES = (CHARACTER, BLOCK)
# where nanoseconds of int64 end, in 2262: engines set times outside to 1970
MAX_MTIME_S = ((1 << 63) - 1) // 10**9


class UnreadLayer(IntegrityError):
    """A layer of which not all could be read here, and that an engine may take all the same; no more is wrong."""


class Entry(NamedTuple):
    """A file, folder, link or device of a root. `type` is as tar writes it; `has_xattrs` says that there are some."""

    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_s: int
    link_name: str
    has_xattrs: bool
    facts: FileFacts | None = None


@dataclass(slots=True)
class LayerFacts:
    """The entries of a layer in its order: number of the folder in `folders`, name, entry. The root has no name."""

    folders: list[str] = field(default_factory=lambda: [""])
    entries: list[tuple[int, str, Entry]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """Return the facts in the form of the cache."""
        rows: list[list[Any]] = []
        for folder, name, entry in self.entries:
            row = [folder, name, entry.type.decode("latin-1"), *entry[1:8]]
            if entry.facts is not None:
                row.append(entry.facts.to_row())
            rows.append(row)
        document = {"schema_version": FACTS_SCHEMA_VERSION, "folders": self.folders, "entries": rows}
        return zstandard.compress(json.dumps(document, separators=(",", ":")).encode(), 3)

    @classmethod
    def from_bytes(cls, data: bytes) -> LayerFacts | None:
        """Return the facts that `to_bytes` wrote, or None where the bytes are others."""
        try:
            document = parse_json(_unpacked(data), max_values=None)
            if document["schema_version"] != FACTS_SCHEMA_VERSION:
                return None
            return cls(document["folders"], [_entry_of(row) for row in document["entries"]])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, zstandard.ZstdError):
            return None


def _unpacked(data: bytes) -> bytes:
    # in blocks: a read of all that there may be takes the memory for it before anything is read
    reader = zstandard.ZstdDecompressor().stream_reader(data)
    text = bytearray()
    while block := reader.read(BLOCK_BYTES):
        text += block
        if len(text) > MAX_FACTS_BYTES:
            raise ValueError(f"more than {MAX_FACTS_BYTES} bytes of facts")
    return bytes(text)


def _entry_of(row: list[Any]) -> tuple[int, str, Entry]:
    facts = FileFacts.from_row(row[10]) if len(row) > 10 else None
    return row[0], row[1], Entry._make((row[2].encode("latin-1"), *row[3:10], facts))


def collect_facts(
    source: Iterable[bytes], *, what: str, max_entries: int = MAX_LAYER_ENTRIES, workers: Workers = IN_PLACE
) -> LayerFacts:
    """Return the facts of a layer from the blocks of its uncompressed tar. `workers` look at sources if there are many.

    Raises:
        UnreadLayer: it has what engines may take and is not read here; all else in it is as it should be.
        IntegrityError: it is not a tar archive, or a path climbs or is too long, or there are too many.
    """
    facts = LayerFacts()
    with SourceReader(workers, what=what) as sources:
        _collect_entries(source, into=facts, sources=sources, what=what, max_entries=max_entries)
        for position, known in sources.results():
            folder, name, entry = facts.entries[position]
            facts.entries[position] = (folder, name, entry._replace(facts=known))
    return facts


def _collect_entries(
    source: Iterable[bytes], *, into: LayerFacts, sources: SourceReader, what: str, max_entries: int
) -> None:
    folders, entries = into.folders, into.entries
    numbers = {"": 0}
    kept_bytes = named = 0
    reader = TarReader(cast(IO[bytes], BlockStream(iter(source))), what=what, seeks=True, tolerant=True)
    for entry in reader:
        raw = entry.name
        # as engines do: `/x` and `./x` are `x`, and `/` is the root (Kaniko, Bazel and distroless write such names)
        folder, _, name = raw.strip("/").rpartition("/")
        if name in (".", "..") or "\0" in raw or len(name) > MAX_NAME_BYTES // 4:
            folder, name = _checked_name(what, raw, folder, name)
        number = numbers.get(folder)
        if number is None:
            number = numbers[folder] = _number_folder(_clean_folder(what, raw, folder), folders, numbers)
            named += len(folder) + len(folders[number])
        folder = folders[number]
        if not name and raw.startswith("/") and entry.type != DIRECTORY:
            raise _refused(what, raw, "is the root, but not a folder")
        named += len(name) + _link_characters(what, entry)
        if named > MAX_LAYER_NAMES_CHARACTERS:
            raise IntegrityError(f"{what} has more than {MAX_LAYER_NAMES_CHARACTERS} characters of names, the limit")
        if entry.type in DEVICE_TYPES:
            _check_device(what, entry, folder)
        if len(entries) >= max_entries:
            raise IntegrityError(
                f"{what} has more than {max_entries} entries",
                hint="if the layer is expected to be that large, raise `limits.layer_entries` in airgap.yaml",
            )
        known: FileFacts | None = None
        if entry.is_regular and entry.size:
            read = reader_for(folder, name, entry.size)
            if read is read_source:
                sources.take(len(entries), b"".join(reader.content()))
            elif read is not None:
                known = read(reader.content())
                if known is not None:
                    kept_bytes += len(known.content or b"") + len(known.imports)
                    if kept_bytes > MAX_KEPT_BYTES:
                        raise IntegrityError(f"{what} has more than {MAX_KEPT_BYTES} bytes of package metadata")
        entries.append(
            (
                number,
                name,
                Entry(
                    b"0" if entry.is_regular else entry.type,
                    entry.mode,
                    entry.uid,
                    entry.gid,
                    entry.size,
                    entry.mtime_s if 0 <= entry.mtime_s <= MAX_MTIME_S else 0,
                    entry.link_name,
                    bool(entry.xattrs),
                    known,
                ),
            )
        )
    if reader.not_read:
        raise UnreadLayer(
            reader.not_read, hint="a container engine may take it: `builder: auto` and `--probe auto` let it try"
        )


def folder_facts(folder: Path, *, at: str) -> LayerFacts:
    """Return the facts of a folder on this machine as a layer that puts it at a path, in place of what is there."""
    facts = LayerFacts()
    waiting = [(folder, "/".join(part for part in at.split("/") if part))]
    number = 0
    facts.entries.append((0, "", Entry(DIRECTORY, 0o755, 0, 0, 0, 0, "", False)))
    while waiting:
        here, place = waiting.pop()
        facts.folders.append(place)
        number += 1
        if here == folder:
            facts.entries.append((number, OPAQUE, Entry(REGULAR, 0o644, 0, 0, 0, 0, "", False)))
        try:
            with os.scandir(here) as children:
                for child in sorted(children, key=lambda item: item.name):
                    facts.entries.append((number, child.name, _entry_on_disk(child, place)))
                    if child.is_dir(follow_symlinks=False):
                        waiting.append((here / child.name, f"{place}/{child.name}" if place else child.name))
        except OSError as error:
            raise files.translate_os_error(error, doing="read", path=here) from error
    return facts


def _entry_on_disk(child: os.DirEntry[str], place: str) -> Entry:
    status = child.stat(follow_symlinks=False)
    mode, mtime_s = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    if child.is_dir(follow_symlinks=False):
        return Entry(DIRECTORY, mode, 0, 0, 0, mtime_s, "", False)
    if child.is_symlink():
        return Entry(SYMLINK, mode, 0, 0, 0, mtime_s, str(Path(child.path).readlink()), False)
    known: FileFacts | None = None
    if child.is_file(follow_symlinks=False) and status.st_size:
        read = reader_for(place, child.name, status.st_size)
        if read is not None:
            with Path(child.path).open("rb") as stream:
                known = read(blocks(stream))
    return Entry(REGULAR, mode, 0, 0, status.st_size, mtime_s, "", False, known)


def _refused(what: str, name: str, why: str) -> IntegrityError:
    shown = name if len(name) <= 200 else name[:200] + "…"
    return IntegrityError(
        f"{what}: the entry `{shown}` {why}",
        hint="no image builder writes such a layer; get the base from another source",
    )


def _link_characters(what: str, entry: TarEntry) -> int:
    if len(entry.link_name) > MAX_PATH_BYTES:
        raise _refused(what, entry.name, f"is a link to a path of more than {MAX_PATH_BYTES} bytes")
    return len(entry.link_name)


def _number_folder(clean: str, folders: list[str], numbers: dict[str, int]) -> int:
    if clean not in numbers:
        numbers[clean] = len(folders)
        folders.append(clean)
    return numbers[clean]


def _check_device(what: str, entry: TarEntry, folder: str) -> None:
    """Refuse a device node, but for the character devices that the `/dev` of a userland is made with."""
    if entry.type == CHARACTER and entry.device == (0, 0):
        why = "is a whiteout of overlayfs, which images must not contain (image-spec, *layer.md*, Whiteouts)"
    elif entry.type == CHARACTER and folder.split("/")[0] == "dev":
        return
    else:
        kind = "block" if entry.type == BLOCK else "character"
        why = f"is a {kind} device ({entry.device[0]}:{entry.device[1]}) that is not allowed there"
    raise IntegrityError(
        f"{what}: the entry `{entry.name[:200]}` {why}",
        hint="build the base without it; if it is required, `builder: buildah` with `--probe run` accepts it",
    )


def _checked_name(what: str, raw: str, folder: str, name: str) -> tuple[str, str]:
    """Return the folder and name of an entry whose name is a special one, or long."""
    if "\0" in raw:
        raise _refused(what, raw, "has a zero byte in its name")
    if name == ".":
        folder, _, name = "/".join(part for part in raw.split("/") if part not in ("", ".")).rpartition("/")
    if name == "..":
        raise _refused(what, raw, "points to another folder")
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise _refused(what, raw, f"has a name of more than {MAX_NAME_BYTES} bytes")
    return folder, name


def _clean_folder(what: str, raw: str, folder: str) -> str:
    if len(folder) > MAX_PATH_BYTES or len(folder.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise _refused(what, raw, f"has a path of more than {MAX_PATH_BYTES} bytes")
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    for part in parts:
        if part == "..":
            raise _refused(what, raw, "leads upwards")
        if len(part.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
            raise _refused(what, raw, f"has a name of more than {MAX_NAME_BYTES} bytes")
    return "/".join(parts)


def layer_observer(
    *, what: str, max_entries: int = MAX_LAYER_ENTRIES, workers: Workers = IN_PLACE
) -> Consumer[tuple[LayerFacts, bytes]]:
    """Return an observer for the layer pipeline that collects the facts of the layer that passes it.

    Use it as a context manager around the pipeline; `result()` gives the facts once the layer has passed, and the same
    in the form of the cache. Keep them (`FactsCache.keep`) only under a diff_id that the pipeline has checked.
    """

    def collect(source: Iterator[bytes]) -> tuple[LayerFacts, bytes]:
        facts = collect_facts(source, what=what, max_entries=max_entries, workers=workers)
        return facts, facts.to_bytes()

    return Consumer(collect, depth=OBSERVER_DEPTH)


class FactsCache:
    """Facts of layers on disk, by diff_id, bounded in bytes: those not used for longest go first."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def find(self, diff_id: str) -> LayerFacts | None:
        """Return the facts of a layer, or None where they are not here or were written by another version."""
        path = self._path(diff_id)
        try:
            data = files.read_bounded(path, limit_bytes=MAX_FACTS_BYTES)
        except HostError:
            return None
        facts = LayerFacts.from_bytes(data)
        if facts is not None:
            with suppress(OSError):
                os.utime(path)
        return facts

    def keep(self, diff_id: str, data: bytes) -> None:
        """Keep the facts of a layer whose diff_id was verified, in the form of the cache."""
        files.write_bytes(self._path(diff_id), data)
        self._shrink()

    def _path(self, diff_id: str) -> Path:
        return self._folder / f"{digest_hex(diff_id)}{CACHE_SUFFIX}"

    def _shrink(self) -> None:
        found = []
        for path in self._folder.glob(f"*{CACHE_SUFFIX}"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _time, size, _path in found)
        for _time, size, path in sorted(found)[:-1]:
            if total <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
