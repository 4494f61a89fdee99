"""Layers as tars from short descriptions, for tests of merged roots."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from airferry.rootfs.layers import LayerFacts, collect_facts
from airferry.rootfs.view import RootView

TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
}


@dataclass(frozen=True)
class Item:
    """An entry of a layer: its path, what it is, and its content or target, or the numbers of a device."""

    path: str
    kind: str = "file"
    value: str | bytes = b""
    mode: int = 0o644


def tar_of(items: Iterable[Item]) -> bytes:
    """Return the tar of a layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item in items:
            entry = tarfile.TarInfo(item.path)
            entry.type, entry.mode = TYPES[item.kind], 0o755 if item.kind == "dir" else item.mode
            data = item.value.encode() if isinstance(item.value, str) else item.value
            if item.kind == "file":
                entry.size = len(data)
            elif item.kind in ("char", "block"):
                entry.devmajor, entry.devminor = map(int, data.split(b":"))
            else:
                entry.linkname = data.decode()
            tar.addfile(entry, io.BytesIO(data) if item.kind == "file" else None)
    return buffer.getvalue()


def facts_of(items: Iterable[Item]) -> LayerFacts:
    """Return the facts of a layer, read in small blocks."""
    return collect_facts(cut(tar_of(items)), what="the layer")


def cut(data: bytes, size: int = 700) -> Iterator[bytes]:
    """Yield data in blocks that no record ends with."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def view_of(*layers: Iterable[Item]) -> RootView:
    """Return the merged root of layers."""
    return RootView([facts_of(layer) for layer in layers])


def folder(path: str) -> Item:
    """Return a folder."""
    return Item(path, "dir")


def link(path: str, target: str) -> Item:
    """Return a symlink."""
    return Item(path, "link", target)
