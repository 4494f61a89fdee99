"""Rewriting the tar of a container's changes so that the same changes give the same bytes.

Streams only; the order of the entries, which the tools that write such tars sort, is kept.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import IO

from airferry.errors import BuildError
from airferry.oci.tar import END_OF_ARCHIVE, HARD_LINK, TarEntry, TarReader, entry_blocks, plain_path

RUN_LAYER_LEFTOVERS = (
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
    "run/*",
    "proc",
    "proc/*",
    "sys",
    "sys/*",
    "dev",
    "dev/*",
    "tmp/*",
    "var/tmp/*",
)


def normalise_layer(
    stream: IO[bytes], *, epoch_s: int, drop: Sequence[str] = RUN_LAYER_LEFTOVERS
) -> Generator[bytes, None, None]:
    """Yield a tar stream rewritten deterministically, in blocks.

    Times after `epoch_s` become `epoch_s` (what `SOURCE_DATE_EPOCH` means), fractions of seconds, atime, ctime, user
    and group names go. Modes, owners, links, devices, extended attributes and whiteouts stay. Entries whose path
    (without leading `/`) matches a pattern of `drop` are left out; `*` in a pattern matches `/` too.

    Raises:
        IntegrityError: the stream is not a whole tar.
        BuildError: a kept hard link points at an entry that was dropped.
    """
    dropped = _matcher(drop)
    reader = TarReader(stream, what="the tar of the container's changes")
    for entry in reader:
        if dropped(entry.path):
            continue
        if entry.type == HARD_LINK and dropped(plain_path(entry.link_name)):
            raise BuildError(
                f"`{entry.path}` is a hard link to `{entry.link_name}`, which is excluded from layers",
                hint="copy the file instead of linking it",
            )
        yield from entry_blocks(_normalised(entry, epoch_s), reader.content())
    yield END_OF_ARCHIVE


def _normalised(entry: TarEntry, epoch_s: int) -> TarEntry:
    return replace(entry, mtime_s=max(0, min(entry.mtime_s, epoch_s)))


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    if not patterns:
        return lambda path: False
    matches = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match
    return lambda path: matches(path) is not None
