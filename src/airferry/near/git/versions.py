"""The version of a distribution that is built from Git, held against the one that the catalogue's lock names.

Such versions often hold a shortened commit id, whose length depends on the repository and on Git's settings.
"""

from __future__ import annotations

import re
from pathlib import Path

from packaging.version import Version

from airferry.errors import BuildError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_toml
from airferry.near.git.history import History
from airferry.plan.locks.packages import GitSource

MAX_PYPROJECT_BYTES = 1024 * 1024
MIN_ID, MAX_ID = 4, 40
# what computes a version of tags and of the distance to them
_HISTORY_TOOLS = re.compile(
    r"setuptools[-_]scm|hatch[-_]vcs|versioningit|vcs[-_]versioning|setuptools[-_]git[-_]versioning|versioneer|dunamai"
    r"|poetry[-_]dynamic[-_]versioning|uv[-_]dynamic[-_]versioning|flit[-_]scm|\bpbr\b|source *= *[\"']scm|miniver"
)
_BUILD_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


def needs_history(project: Path) -> bool:
    """Tell whether a project's build files name a tool that computes versions of a repository's history and tags."""
    return any(_HISTORY_TOOLS.search(_text(project / name)) for name in _BUILD_FILES)


def has_fixed_version(project: Path) -> bool:
    """Tell whether a project's `pyproject.toml` says its version itself."""
    try:
        declared = parse_toml(_text(project / "pyproject.toml")).get("project", {})
    except Malformed:
        return False
    return isinstance(declared, dict) and isinstance(declared.get("version"), str)


def _text(path: Path) -> str:
    if not path.is_file() or path.is_symlink() or path.stat().st_size > MAX_PYPROJECT_BYTES:
        return ""
    return files.read_bounded(path, limit_bytes=MAX_PYPROJECT_BYTES).decode("utf-8", "replace")


def shortened_id(version: str, commit: str) -> str | None:
    """Return the shortened id of a commit that a version's local part holds (`1.0+a8425c9`, `1.0.dev3+g1a2b3c4`)."""
    found = _spelled_id(version, commit)
    return found[1] if found else None


def _spelled_id(version: str, commit: str) -> tuple[str, str] | None:
    """Return a commit's shortened id as a version's local part spells it, and as Git does.

    A part of digits alone is a number there (PEP 440), so `0012446` is spelled `12446`.
    """
    zeros = len(commit) - len(commit.lstrip("0"))
    local = version.partition("+")[2].lower()
    for part in re.split(r"[._-]", local):
        for spelled in (part, part.removeprefix("g")):
            if MIN_ID <= len(spelled) <= MAX_ID and commit.startswith(spelled):
                return spelled, spelled
        if part.isdigit() and commit.startswith(part, zeros) and zeros + len(part) >= MIN_ID:
            return part, commit[: zeros + len(part)]
    return None


def difference(name: str, wanted: str, got: str, git: GitSource) -> str | None:
    """Compare a built version with the one that is wanted: empty if equal, a note if the same commit is only spelled
    at another length, None if they differ.
    """
    try:
        if Version(wanted) == Version(got):
            return ""
        same_public = Version(wanted).public == Version(got).public
    except ValueError:
        return None
    mine, theirs = _spelled_id(got, git.commit), _spelled_id(wanted, git.commit)
    if not same_public or mine is None or theirs is None:
        return None
    if _without(got, mine[0]) != _without(wanted, theirs[0]):
        return None
    return (
        f"`{name}` is {got} here and {wanted} in the catalogue's lock: the same commit "
        "with an abbreviated id of another length"
    )


def mismatch(
    requirement: str, wanted: str, got: str, git: GitSource, address: str, *, place: str, history: History | None
) -> BuildError:
    """Return the error for a version that is not the one that the lock names."""
    if history is not None and not history.complete:
        why = "; the remote has only part of the history, so versions that count commits are wrong"
        out = "use an address whose repository has the full history"
    elif history is not None and history.tags == 0:
        why = "; the remote has no tags, from which such versions are computed"
        out = "push the tags to that address"
    else:
        why, out = "", "lock the catalogue again (`uv lock`)"
    name = requirement.partition("=")[0]
    return BuildError(
        f"{place + ': ' if place else ''}`{name}` is locked at {wanted}, but `{address}` builds {got}{why}",
        hint=f"{out}, or accept the version that the commit builds: under the image, "
        f"`requirements: {{{name.replace('-', '_')}: "
        f'"{name} @ {address}"}}`',
        wanted=wanted,
        got=got,
        commit=git.commit,
        place=place,
    )


def _without(version: str, commit: str) -> str:
    public, _, local = version.lower().partition("+")
    return f"{public}+{local.replace(commit, '', 1)}"
