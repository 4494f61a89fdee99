"""Folders of this host in a new layer: exported Git checkouts at their targets, and the launcher's repository.

Files are read while the layer is written. What the folders hold was settled by the exporter: modes, links
that stay inside, no `.git`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from airferry.errors import BuildError
from airferry.near.assemble.tree import FOLDER_MODE, Content, LayerTree, Node
from airferry.oci.ports import blocks
from airferry.oci.tar import DIRECTORY, REGULAR, SYMLINK


def add_checkout(tree: LayerTree, source: Path, target: str, *, epoch_s: int, owner: str) -> str:
    """Put an exported folder at an absolute path, in place of whatever is there, and return where it landed.

    Raises:
        BuildError: the folder holds something that is neither file, folder nor symlink.
    """
    place = tree.replace_with_folder(target, owner=owner)
    for name, path in _walk(source):
        tree.put_in(place, name, _node(path, epoch_s=epoch_s, owner=owner))
    return place


def _node(path: Path, *, epoch_s: int, owner: str) -> Node:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return Node(SYMLINK, 0o777, mtime_s=epoch_s, link_name=os.fsdecode(path.readlink()), owner=owner)
    if stat.S_ISDIR(found.st_mode):
        return Node(DIRECTORY, FOLDER_MODE, mtime_s=epoch_s, owner=owner)
    if not stat.S_ISREG(found.st_mode):
        raise BuildError(
            f"`{owner}` holds `{path.name}`, which is not a file, folder or link",
            hint="remove it: sockets, pipes and devices cannot go into an image",
        )
    mode = 0o755 if found.st_mode & 0o100 else 0o644
    return Node(REGULAR, mode, mtime_s=epoch_s, content=file_content(path), owner=owner)


def file_content(path: Path) -> Content:
    """Return a file of this host as content that is read later."""

    def read() -> Iterator[bytes]:
        with path.open("rb") as stream:
            yield from blocks(stream)

    name = hashlib.sha256(os.fsencode(path)).hexdigest()
    return Content(path.lstat().st_size, f"path={name}", read)


def _walk(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield each entry below a folder with its relative name, folders before what is in them."""
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted((*folders, *names)):
            path = Path(folder, name)
            yield path.relative_to(source).as_posix(), path
