"""Asset manifests: which files a model, dataset, checkpoint or tokenizer consists of, each with size and SHA-256.

One JSON value a line: a header, then the files, then the symbolic links, each sorted by the bytes of their paths.
Models and their text only; nothing here looks at a disk. Paths are relative to the asset and safe to join: a manifest
that says otherwise is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from airferry.bundle.tree_paths import decode_path, linked_path, safe_path, too_deep
from airferry.config.assets import ASSET_KINDS, ASSET_NAME
from airferry.errors import IntegrityError
from airferry.host.parsing import parse_json
from airferry.oci.digest import digest_of
from airferry.oci.documents import MAX_SIZE

ASSET_SCHEMA_VERSION = 1
ASSET_ARTIFACT = "application/vnd.airferry.asset.v1"
ASSET_CONTENT = "application/vnd.airferry.asset.v1+jsonl"
MODELPACK_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
MODELPACK_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODELPACK_FILEPATH = "org.cncf.model.filepath"
MAX_ASSET_FILES = 1_000_000
# two paths of 4,096 bytes, each byte of them escaped, and what is around them
MAX_ASSET_LINE_BYTES = 32 * 1024
# as many as Linux follows (path_resolution(7))
MAX_LINK_HOPS = 40
MAX_ASSET_MANIFEST_BYTES = 512 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class AssetFile:
    """A regular file: its path as manifests write it, its size, and the hexadecimal SHA-256 of its content."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class AssetLink:
    """A symbolic link within the asset: its path and what it says, both as manifests write them."""

    path: str
    target: str


@dataclass(frozen=True)
class AssetManifest:
    """What an asset consists of. `kind` is `model`, `dataset`, `checkpoint`, `tokenizer` or `other`."""

    name: str
    kind: str
    files: tuple[AssetFile, ...]
    links: tuple[AssetLink, ...] = ()

    @property
    def size_bytes(self) -> int:
        """The bytes of all files together."""
        return sum(file.size_bytes for file in self.files)

    @cached_property
    def by_path(self) -> dict[str, AssetFile]:
        """The files by path."""
        return {file.path: file for file in self.files}

    @cached_property
    def digest(self) -> str:
        """The digest of the manifest's bytes: it names the content of the asset."""
        return digest_of(self.to_bytes())

    def linked_file(self, link: AssetLink) -> AssetFile | None:
        """Return the file that a link leads to, over further links if need be, or None. It is as far as Linux goes."""
        file, hops = self._link_ends[link.path]
        return file if hops <= MAX_LINK_HOPS else None

    @cached_property
    def _link_ends(self) -> dict[str, tuple[AssetFile | None, int]]:
        """The file at the end of each link, by its path, and how many links lead there. Each hop is made once."""
        links = {link.path: link for link in self.links}
        known: dict[str, tuple[AssetFile | None, int]] = {}
        for path in links:
            way: list[str] = []
            here: str | None = path
            # a circle ends where it began, as that is noted as leading nowhere
            while here in links and here not in known:
                known[here] = (None, 0)
                way.append(here)
                here = linked_path(here, links[here].target)
            file, hops = known[here] if here in known else (self.by_path.get(here or ""), 0)
            for number, passed in enumerate(reversed(way), start=1):
                known[passed] = (file, hops + number)
        return known

    def to_bytes(self) -> bytes:
        """Return the manifest's text, the same bytes for the same content."""
        header = {
            "schema_version": ASSET_SCHEMA_VERSION,
            "name": self.name,
            "kind": self.kind,
            "files": len(self.files),
            "links": len(self.links),
            "size_bytes": self.size_bytes,
        }
        lines: list[Any] = [header]
        lines += [["file", file.path, file.size_bytes, file.sha256] for file in sorted(self.files, key=_order)]
        lines += [["link", link.path, link.target] for link in sorted(self.links, key=_order)]
        return b"".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines)


def asset_file_name(name: str) -> str:
    """Return the name of the file that holds an asset's manifest."""
    return f"airgap-asset-{name}.jsonl"


def parse_asset_manifest(data: bytes, *, what: str) -> AssetManifest:
    """Return the manifest that bytes hold.

    Raises:
        IntegrityError: they are no manifest, one of a newer version, or one that names a path outside the asset.
    """
    try:
        return _parse(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(
            f"{what} is not a valid asset manifest: {error}",
            hint="copy the manifest again, or write it with `airferry assets record`",
        ) from error


def _parse(data: bytes) -> AssetManifest:
    lines = _json_lines(data)
    header = next(lines, None)
    if not isinstance(header, dict) or not isinstance(header.get("schema_version"), int):
        raise ValueError("line 1 is not a header")
    if header["schema_version"] > ASSET_SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {header['schema_version']}, this version of airferry supports {ASSET_SCHEMA_VERSION}"
        )
    if not isinstance(header["name"], str) or not ASSET_NAME.fullmatch(header["name"]):
        raise ValueError("its name is not a valid asset name")
    if header["kind"] not in ASSET_KINDS:
        raise ValueError("its kind is not one of " + ", ".join(ASSET_KINDS))
    files: list[AssetFile] = []
    links: list[AssetLink] = []
    for number, line in enumerate(lines, start=2):
        if number - 1 > MAX_ASSET_FILES:
            raise ValueError(f"more than {MAX_ASSET_FILES} files")
        match line:
            case ["file", str() as path, int() as size, str() as sha256] if _is_content(size, sha256):
                files.append(AssetFile(_safe(path), size, sha256))
            case ["link", str() as path, str() as target]:
                links.append(AssetLink(_safe(path), target))
                if linked_path(links[-1].path, links[-1].target) is None:
                    raise ValueError(f"line {number}: the link `{path}` points outside the asset")
            case _:
                raise ValueError(f"line {number} is neither a file nor a link")
    manifest = AssetManifest(header["name"], header["kind"], tuple(files), tuple(links))
    paths = [*(file.path for file in files), *(link.path for link in links)]
    taken = set(paths)
    if len(taken) != len(paths):
        raise ValueError("a path is listed twice")
    # with the lowest of characters between the parts, what is below a path comes right after it
    ordered = sorted(path.replace("/", "\0") for path in paths)
    for above, path in pairwise(ordered):
        if path.startswith(f"{above}\0"):
            raise ValueError(f"`{path.replace(chr(0), '/')}` is below a path that is not a folder")
    if manifest.to_bytes() != data:
        raise ValueError("it is truncated or malformed")
    return manifest


def _is_content(size: int, sha256: str) -> bool:
    return 0 <= size < MAX_SIZE and _SHA256.fullmatch(sha256) is not None


def _json_lines(data: bytes) -> Iterator[Any]:
    position = 0
    while position < len(data):
        end = data.find(b"\n", position, position + MAX_ASSET_LINE_BYTES)
        if end < 0 and len(data) - position >= MAX_ASSET_LINE_BYTES:
            raise ValueError(f"it has a line of more than {MAX_ASSET_LINE_BYTES} bytes")
        if end < 0:
            raise ValueError("its last line is truncated")
        yield parse_json(data[position:end])
        position = end + 1


def _safe(path: str) -> str:
    raw = decode_path(path)
    if reason := too_deep(raw):
        raise ValueError(f"the path `{path[:80]}…` {reason}")
    if not safe_path(raw):
        raise ValueError(f"the path `{path}` points outside the asset")
    return path


def _order(item: AssetFile | AssetLink) -> bytes:
    return decode_path(item.path)
