"""The working copy that a folder lies in: where it begins, where it was cloned from, and at which commit.

Asks Git alone: nothing is fetched, and no program that the repository's own configuration names is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airferry.host import process
from airferry.near.git.addresses import redact

QUERY_S = 30.0


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


def _ask(folder: Path, *words: str) -> str | None:
    argv: list[str | Path] = ["git", "-C", folder, "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *words]
    done = process.run(argv, timeout_s=QUERY_S, environment={"GIT_ALLOW_PROTOCOL": ""}, check=False)
    return done.text.strip() or None if done.returncode == 0 else None
