"""The working copy that a folder lies in: where it begins, where it was cloned from, and at which commit.

Asks Git alone: nothing is fetched, and no program that the repository's own configuration names is run.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from airferry.host import process
from airferry.near.git.addresses import redact

QUERY_S = 30.0
COMPARED_BYTES = 1024 * 1024
MAX_ASKED = 500
SHA256_DIGITS = 64
LINKED_COMMIT = "160000"
UNFILTERED = ("unspecified", "unset")
FILTERING = ("filter", "text", "eol", "ident", "working-tree-encoding")


@dataclass(frozen=True, slots=True)
class WorkingCopy:
    """A Git working copy; without a remote `origin` or without a commit, these are None. The remote has no password."""

    top: Path
    remote: str | None
    commit: str | None


def find_working_copy(folder: Path) -> WorkingCopy | None:
    """Return the working copy that a folder lies in; None without one, or without Git."""
    if process.find_program("git") is None:
        return None
    top = _ask(folder, "rev-parse", "--show-toplevel")
    if not top:
        return None
    remote = _ask(folder, "config", "--get", "remote.origin.url")
    return WorkingCopy(Path(top), redact(remote) if remote else None, _ask(folder, "rev-parse", "--verify", "HEAD"))


def uncommitted_files(folder: Path) -> list[str]:
    """Return the tracked files below a folder that differ from its last commit, sorted; none where that is unknown.

    Git would compare a working tree by filters that the repository's own configuration names, programs all of them. So
    it is asked for its index alone; contents are compared here, and files that have a filter are left out.
    """
    if process.find_program("git") is None or _ask(folder, "rev-parse", "--verify", "HEAD") is None:
        return []
    changed = set(_parts(_ask(folder, "diff-index", "--cached", "--relative", "--name-only", "-z", "HEAD")))
    touched = []
    for entry in _parts(_ask(folder, "ls-files", "--stage", "-z")):
        head, _, name = entry.partition("\t")
        mode, blob = head.split()[:2]
        if mode != LINKED_COMMIT and name not in changed and _differs(folder / name, mode, blob):
            touched.append(name)
    asked = touched[:MAX_ASKED]
    said = _parts(_ask(folder, "check-attr", "-z", *FILTERING, "--", *asked)) if asked else []
    filtered = {name for name, value in zip(said[::3], said[2::3], strict=False) if value not in UNFILTERED}
    return sorted({*changed, *touched} - filtered)


def _parts(text: str | None) -> list[str]:
    return [part for part in (text or "").split("\0") if part]


def _differs(path: Path, mode: str, blob: str) -> bool:
    """Tell whether a file is not what the index names, byte by byte. One that is gone differs."""
    state = hashlib.new("sha256" if len(blob) == SHA256_DIGITS else "sha1", usedforsecurity=False)
    try:
        if path.is_symlink():
            target = os.fsencode(path.readlink())
            state.update(b"blob %d\0" % len(target) + target)
            return mode != "120000" or state.hexdigest() != blob
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            state.update(b"blob %d\0" % found.st_size)
            while block := stream.read(COMPARED_BYTES):
                state.update(block)
    except OSError:
        return True
    return mode != ("100755" if found.st_mode & 0o100 else "100644") or state.hexdigest() != blob


def _ask(folder: Path, *words: str) -> str | None:
    argv: list[str | Path] = ["git", "-C", folder, "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *words]
    done = process.run(argv, timeout_s=QUERY_S, environment={"GIT_ALLOW_PROTOCOL": ""}, check=False)
    return done.text.strip() or None if done.returncode == 0 else None
