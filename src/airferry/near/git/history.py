"""Checkouts that builds take their version from: a commit's files with a `.git` that knows its history and tags.

What is exported for images has neither. The history stays in the cache's repository, which the checkout borrows from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from airferry.errors import BuildError
from airferry.events import Emit, silent
from airferry.host import files
from airferry.near.git import driver as git
from airferry.near.git.addresses import redact, remote_address
from airferry.near.git.commands import DamagedRepository, WorkTree, run_git, try_git

TAGS = "refs/tags/*"
_RAW_ATTRIBUTES = "* -text -eol -ident -filter -working-tree-encoding\n"


@dataclass(frozen=True, slots=True)
class History:
    """The fetched history of a commit. `complete` is False where the remote itself has only a part of it."""

    complete: bool
    tags: int


def fetch_history(url: str, commit: str, *, cache: Path, emit: Emit = silent) -> History:
    """Bring the history of a fetched commit, and all tags, into the cache. Idempotent; needs no network twice.

    Raises:
        BuildError: the repository cannot be read or does not have the commit.
    """
    with git.locked_repository(url, cache, emit=emit) as repository:
        done = repository / "airferry-history" / commit
        if not done.exists():
            shallow = (repository / "shallow").is_file()
            remote, pin = remote_address(url), f"+{commit}:refs/airferry/{commit}"
            argv = [
                *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"),
                *(["--unshallow"] if shallow else []),
                *("--", remote, f"+{TAGS}:{TAGS}"),
            ]
            try:
                run_git([*argv, pin], url=url, repository=repository, emit=emit, doing="fetch from")
            except DamagedRepository:
                raise
            except BuildError:
                # a server that answers no request for a bare commit
                heads = "+refs/heads/*:refs/heads/*"
                argv.append(heads)
                run_git(argv, url=url, repository=repository, emit=emit, doing="fetch from")
            files.ensure_directory(done.parent)
            files.write_text(done, "")
        tags = run_git(["tag", "--list"], url=url, repository=repository).text.splitlines()
        return History(not _is_cut(repository, url, commit), len(tags))


def write_checkout(url: str, commit: str, *, cache: Path, into: Path, abbreviation: int | None) -> Path:
    """Write a fetched commit with its submodules and a `.git` at `into`; return the repository that it borrows from.

    `abbreviation` is the length of shortened commit ids there (`core.abbrev`), Git's default without it. The caller who
    runs Git in it must see the returned folder at the same path.

    Raises:
        BuildError: the commit was not fetched, or holds a symlink that points outside the tree.
    """
    git.export_overlay(url, commit, cache=cache, into=into)
    run_git(["init", "--quiet", "--template=", str(into)], url=url)
    own = into / ".git"
    with git.locked_repository(url, cache) as repository:
        files.write_text(files.ensure_directory(own / "objects" / "info") / "alternates", f"{repository / 'objects'}\n")
        files.write_text(files.ensure_directory(own / "info") / "attributes", _RAW_ATTRIBUTES)
        argv = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/tags"]
        files.write_text(own / "packed-refs", run_git(argv, url=url, repository=repository).text)
        if (repository / "shallow").is_file():
            shutil.copyfile(repository / "shallow", own / "shallow")
        files.write_text(own / "HEAD", f"{commit}\n")
        settings = {"remote.origin.url": redact(url), "gc.auto": "0"}
        if abbreviation is not None:
            settings["core.abbrev"] = str(abbreviation)
        for name, value in settings.items():
            run_git(["config", name, value], url=url, repository=own)
        checkout = WorkTree(into)
        run_git(["read-tree", commit], url=url, repository=own, checkout=checkout)
        # so that tools which compare times alone do not call the checkout changed
        try_git(["update-index", "-q", "--refresh"], url=url, repository=own, checkout=checkout)
        return repository


def _is_cut(repository: Path, url: str, commit: str) -> bool:
    """Tell whether a commit's history ends in one whose parents are not there."""
    boundary = repository / "shallow"
    if not boundary.is_file():
        return False
    cut = set(boundary.read_text(encoding="ascii").split())
    listing = run_git(["rev-list", commit], url=url, repository=repository).text.split()
    return not cut.isdisjoint(listing)
