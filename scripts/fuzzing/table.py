"""The table of parsers, and what its entries are made of."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from worker import Target

from airferry.errors import AirferryError
from layer_tars import Item, folder, link
from oci_images import make_bundle

MARKERS = {"python_version": "3.12", "python_full_version": "3.12.1", "sys_platform": "linux", "os_name": "posix"}
DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Parser:
    """A row of the table."""

    name: str
    make: Callable[[], Target]
    share: float


PARSERS: list[Parser] = []


def parser(name: str, *, share: float = 1.0) -> Callable[[Callable[[], Target]], Callable[[], Target]]:
    """Enter what makes a target into the table."""

    def enter(make: Callable[[], Target]) -> Callable[[], Target]:
        PARSERS.append(Parser(name, make, share))
        return make

    return enter


def of_text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """Let a parser of text take bytes, those that are no text too, as arguments and file names come."""
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


def of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Let a reader of a file take bytes."""
    path = Path.cwd() / name
    path.parent.mkdir(parents=True, exist_ok=True)

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return parse


def each(*parses: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Give a case to several parsers; it is refused if one of them refuses it."""

    def parse(data: bytes) -> None:
        refused: AirferryError | ValueError | None = None
        for one in parses:
            try:
                one(data)
            except (AirferryError, ValueError) as error:
                refused = error
        if refused is not None:
            raise refused

    return parse


@functools.cache
def bundle() -> Path:
    """A small bundle."""
    path = Path.cwd().parent / "bundle"
    make_bundle(path, twins=True)
    return path


def blobs_of(path: Path, *starts: bytes) -> list[bytes]:
    """Return the small blobs of a layout that begin so."""
    found = [blob.read_bytes() for blob in sorted((path / "blobs/sha256").iterdir())]
    return [data for data in found if data.startswith(starts or b"") and len(data) < 20_000]


def as_json(document: bytes) -> bytes:
    """Return a YAML document as JSON, which is YAML too, and can be changed by its structure."""
    return json.dumps(yaml.safe_load(document), default=str).encode()


def checksummed(data: bytes) -> bytes:
    """Correct the checksums of what looks like headers of a tar, so that changes get past them."""
    fixed = bytearray(data)
    for at in range(0, len(fixed) - 511, 512):
        header = fixed[at : at + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(fixed)


TREE = [
    folder("usr/"),
    Item("usr/a", value=b"x" * 600),
    link("b", "usr/a"),
    Item("c", "hard", "usr/a"),
    Item("é" * 120 + "/d", value=b"y"),
    Item(".wh.x"),
]


def named(names: Sequence[str]) -> list[Parser]:
    """Return the parsers whose names contain one of these texts; all of them for none."""
    return [row for row in PARSERS if not names or any(name.lower() in row.name.lower() for name in names)]
