"""Writes the tars of an artifact below one private folder, whatever they say: regular files and links that stay inside.

Links are made last, so that nothing is ever written over or through one. The caller publishes the folder when all of
it is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from airferry.assets.files import asset_place
from airferry.assets.manifest import AssetLink
from airferry.bundle.tree_paths import decode_path, encode_path, linked_path, safe_path, too_deep
from airferry.errors import IntegrityError
from airferry.host import files
from airferry.host.files import MAX_NAME_BYTES, MAX_PATH_BYTES
from airferry.oci.tar import DIRECTORY, SYMLINK, TarEntry, TarReader

MADE_ELSEWHERE = "do not use it: it was changed, or not made by `airferry build`"


class TreeUnpacker:
    """Unpacks one artifact. `what` names it in errors, `whole` what its paths must not point outside."""

    def __init__(
        self, root: Path, *, what: str, whole: str, limit_bytes: int, limit_files: int, durable: bool = True
    ) -> None:
        """Write below `root`, which nothing else writes to. With `durable`, each file is on the disk when it is
        written."""
        self.files = self.size_bytes = 0
        self.links: list[AssetLink] = []
        self._root = root
        self._what, self._whole = what, whole
        self._limit_bytes, self._limit_files = limit_bytes, limit_files
        self._durable = durable

    def trouble(self, raw: bytes, *, link_target: bytes | None = None) -> str | None:
        """Return what is wrong with a path, besides what holds for all artifacts. Subclasses know more."""
        if link_target is not None and linked_path(encode_path(raw), encode_path(link_target)) is None:
            return f"is a link that points outside {self._whole}, to `{encode_path(link_target)[:200]}`"
        return None if safe_path(raw) else f"points outside {self._whole}"

    def path_of(self, entry: TarEntry) -> str:
        """Return the path of an entry: without a leading `/` or `./`, which tars of others have."""
        return entry.path

    def add_tar(self, tar: TarReader, what: str) -> None:
        """Write the files of a tar, and note its links. Its folders are made where something lies in them.

        Raises:
            IntegrityError: it holds something else, a path that leads out, or more than the limits allow.
        """
        for number, entry in enumerate(tar):
            if number >= self._limit_files:
                raise IntegrityError(f"{what} holds more than {self._limit_files} entries", hint=MADE_ELSEWHERE)
            raw = os.fsencode(self.path_of(entry))
            if entry.is_regular:
                self.write(raw, tar.content(), executable=bool(entry.mode & 0o100))
            elif entry.type == SYMLINK:
                target = os.fsencode(entry.link_name)
                self._check(raw, link_target=target)
                self.links.append(AssetLink(encode_path(raw), encode_path(target)))
            elif entry.type != DIRECTORY:
                shown = encode_path(raw)[:200]
                raise IntegrityError(
                    f"{what}: `{shown}` is neither a file, nor a folder, nor a symbolic link", hint=MADE_ELSEWHERE
                )

    def write(self, raw: bytes, content: Iterator[bytes], *, executable: bool = False) -> None:
        """Write one file.

        Raises:
            IntegrityError: its path leads out or is taken, or there is more than the limits allow.
        """
        place = self._check(raw)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            files.make_folders(place.parent, shared=True)
            handle = os.open(place, flags, 0o755 if executable else 0o644)
        except (FileExistsError, NotADirectoryError) as error:
            path = encode_path(raw)
            raise IntegrityError(
                f"{self._what} contains `{path}` twice, or as a file and as a folder", hint=MADE_ELSEWHERE
            ) from error
        with os.fdopen(handle, "wb", buffering=0) as stream:
            # jobs of others read it, whatever the umask of who unpacks it
            files.set_mode(handle, 0o755 if executable else 0o644)
            for block in content:
                self.size_bytes += len(block)
                if self.size_bytes > self._limit_bytes:
                    raise IntegrityError(
                        f"{self._what} unpacks to more than {self._limit_bytes} bytes",
                        hint="if this size is expected, free up more space",
                    )
                stream.write(block)
            if self._durable:
                os.fsync(stream.fileno())
        self.files += 1

    def make_links(self) -> None:
        """Make the links; what lies on the way to one is a real folder.

        Raises:
            IntegrityError: a link lies below another one, or its path is taken.
        """
        for link in self.links:
            place = asset_place(self._root, link.path)
            for folder in reversed(place.relative_to(self._root).parents):
                if (self._root / folder).is_symlink():
                    raise IntegrityError(
                        f"the link `{link.path}` of {self._what} lies below another link", hint=MADE_ELSEWHERE
                    )
            try:
                files.make_folders(place.parent, shared=True)
                place.symlink_to(os.fsdecode(decode_path(link.target)))
            except (FileExistsError, NotADirectoryError) as error:
                raise IntegrityError(
                    f"{self._what} holds `{link.path}` twice, or below a file", hint=MADE_ELSEWHERE
                ) from error

    def _check(self, raw: bytes, *, link_target: bytes | None = None) -> Path:
        if reason := _unwritable(raw, link_target) or self.trouble(raw, link_target=link_target):
            raise IntegrityError(f"{self._what} holds `{encode_path(raw)[:200]}`, which {reason}", hint=MADE_ELSEWHERE)
        if self.files + len(self.links) >= self._limit_files:
            raise IntegrityError(f"{self._what} holds more than {self._limit_files} files", hint=MADE_ELSEWHERE)
        return asset_place(self._root, encode_path(raw))


def _unwritable(raw: bytes, link_target: bytes | None) -> str | None:
    """Return why Linux would refuse a path or a link's target, whatever they lead to; None if it would not."""
    if any(len(part) > MAX_NAME_BYTES for part in raw.split(b"/")):
        return f"has a name of more than {MAX_NAME_BYTES} bytes"
    if reason := too_deep(raw):
        return reason
    if link_target == b"":
        return "is a link without a target"
    if link_target is not None and len(link_target) >= MAX_PATH_BYTES:
        return f"is a link with a target of {MAX_PATH_BYTES} bytes or more"
    return None
