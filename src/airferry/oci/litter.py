"""What desktops, file systems, storage appliances and other tools leave in folders that they pass through.

Named by what left it, and never read: it is neither a part of what travels nor damage to it.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from airferry.wording import obeyed, shell_word

# names as they are written, but for case
_FILES = {
    ".ds_store": "macOS",
    ".localized": "macOS",
    "thumbs.db": "Windows",
    "ehthumbs.db": "Windows",
    "desktop.ini": "Windows",
    ".directory": "KDE",
}
_FOLDERS = {
    "lost+found": "the file system",
    "@eadir": "Synology",
    "@recycle": "QNAP",
    ".snapshot": "the file server",
    ".spotlight-v100": "macOS",
    ".fseventsd": "macOS",
    ".trashes": "macOS",
    ".temporaryitems": "macOS",
    "system volume information": "Windows",
    "$recycle.bin": "Windows",
}
# what tools write next to an index.json that they open
_IN_LAYOUTS = {"store.json": "hauler"}


def litter_source(name: str, *, is_folder: bool, in_layout: bool = False) -> str | None:
    """Return what leaves regular files, or folders, of a name behind, or None. Links never count.

    With `in_layout`, what other tools add to the top of an image layout counts as well. A name that a terminal would
    obey never counts.
    """
    if obeyed(name):
        return None
    folded = name.casefold()
    if is_folder:
        return _FOLDERS.get(folded)
    if name.startswith("._"):
        return "macOS"
    if name.startswith(".nfs"):
        return "NFS"
    return _FILES.get(folded) or (_IN_LAYOUTS.get(folded) if in_layout else None)


def is_litter(path: PurePosixPath) -> bool:
    """Tell whether a file at a path is litter, or lies in a folder that is."""
    folders = (litter_source(name, is_folder=True) for name in path.parts[:-1])
    return any(folders) or litter_source(path.name, is_folder=False) is not None


def entry_litter_source(entry: os.DirEntry[str], *, in_layout: bool = False) -> str | None:
    """Return the same of what lies in a folder."""
    is_folder = entry.is_dir(follow_symlinks=False)
    if not is_folder and not entry.is_file(follow_symlinks=False):
        return None
    return litter_source(entry.name, is_folder=is_folder, in_layout=in_layout)


def litter_text(place: str, path: str, source: str, *, is_folder: bool) -> str:
    """Return a line that names litter at a place in what it is not part of, and how to remove it."""
    command = f"rm {'-r ' if is_folder else ''}-- {shell_word(path)}"
    return f"`{place}` was left there by {source} and is part of nothing; remove it: `{command}`"
