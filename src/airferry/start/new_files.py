"""New files below a folder, all of them or none: nothing that is there is overwritten or left half written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from airferry.errors import HostError, UsageError
from airferry.host import files


def write_new_files(folder: Path, texts: Mapping[str, str], *, last: str, dry_run: bool = False) -> None:
    """Write files below a folder, which is made if it is missing, by their relative paths; `last` comes last.

    They are written whole next to their places first, and then moved there, so that a full disk leaves the folder as
    it was; so does an interruption, and after a kill the file that comes last is missing. With `dry_run`, nothing is
    written but what tells whether that is possible.

    Raises:
        UsageError: a file is in the way by now.
        HostError: the folder cannot be written to, or the disk is full.
    """
    files.expect_writable(folder)
    if dry_run:
        return
    parent = next(path for path in (folder, *folder.parents) if files.is_folder(path))
    below = folder.relative_to(parent)
    with files.scratch_directory(parent) as staged:
        try:
            files.write_texts(staged / below, texts)
        except HostError as error:
            if isinstance(error.__cause__, OSError):
                raise files.translate_os_error(error.__cause__, doing="write below", path=folder) from error
            raise
        begun: list[tuple[Path, Path]] = []
        try:
            for source, place in _moves(staged, parent, last=(below / last).as_posix()):
                if os.path.lexists(place):
                    raise UsageError(f"`{place}` appeared meanwhile, and nothing is overwritten", hint="try again")
                begun.append((source, place))
                files.publish(source, place)
        except BaseException as error:
            # what is still here was not moved: another's may be in its place
            for source, place in reversed(begun):
                if not os.path.lexists(source):
                    files.remove_tree(place)
            if isinstance(error, OSError):
                raise files.translate_os_error(error, doing="write below", path=folder) from error
            raise


def _moves(staged: Path, parent: Path, *, last: str) -> Iterator[tuple[Path, Path]]:
    """Yield what is to be moved where: the topmost of what is missing, `last` at the end."""
    waiting, final = [Path()], None
    while waiting:
        for source in sorted((staged / waiting.pop()).iterdir()):
            name = source.relative_to(staged)
            if source.is_dir() and files.is_folder(parent / name):
                waiting.append(name)
            elif name.as_posix() == last:
                final = source, parent / name
            else:
                yield source, parent / name
    if final is not None:
        yield final
