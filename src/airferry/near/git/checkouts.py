"""Git checkouts as folders, each written once in a run, however many images it goes into."""

from __future__ import annotations

import hashlib
from pathlib import Path

from airferry.events import Emit
from airferry.host.threads import NamedLocks
from airferry.near.git import driver as git


class Checkouts:
    """Exported checkouts in a folder that lasts as long as the run, not to be changed. Safe to use from threads."""

    def __init__(self, folder: Path, *, cache: Path, emit: Emit) -> None:
        """`folder` takes the trees, `cache` is where their repositories are."""
        self._folder = folder
        self._cache = cache
        self._emit = emit
        self._lock = NamedLocks()

    def has(self, url: str, commit: str) -> bool:
        """Tell whether the folder of a commit already exists."""
        return self._place(url, commit).exists()

    def tree(self, url: str, commit: str) -> Path:
        """Return the folder of a commit, fetched and exported when it is first asked for.

        Raises:
            BuildError: the repository cannot be read, does not have the commit, or it cannot be carried.
        """
        into = self._place(url, commit)
        with self._lock(into.name):
            # it is published as a whole, so that it is there or not
            if not into.exists():
                git.fetch_overlay(url, commit, cache=self._cache, emit=self._emit)
                git.export_overlay(url, commit, cache=self._cache, into=into, emit=self._emit)
        return into

    def _place(self, url: str, commit: str) -> Path:
        return self._folder / hashlib.sha256(f"{commit} {url}".encode()).hexdigest()[:32]
