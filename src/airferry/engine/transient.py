"""Images that the storage holds for a run alone: what was just built, and what is rehearsed.

An engine names images and layers after their content: removing an image may remove what another process has just made
of the same content and has not named yet. So they are removed when no process works with any.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from airferry.engine.storage import Storage
from airferry.events import Emit
from airferry.host.locks import sharing
from airferry.host.parsing import parse_json

BUILT, REHEARSED = "airferry", "rehearsal"  # what their names begin with


class TransientImages:
    """The transient images of a storage. Safe to use from threads and processes."""

    def __init__(self, storage: Storage, *, emit: Emit) -> None:
        """Nothing is opened yet."""
        self._storage = storage
        self._emit = emit
        self._guard = threading.Lock()
        self._users = 0
        self._shared = ExitStack()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep all transient images while the block runs. They are removed once no process keeps them."""
        with self._guard:
            if self._users == 0:
                lock = self._storage.state / "transient"
                self._shared.enter_context(sharing(lock, clear=self._remove, emit=self._emit))
            self._users += 1
        try:
            yield
        finally:
            with self._guard:
                self._users -= 1
                if self._users == 0:
                    self._shared.close()

    def _remove(self) -> None:
        force = ["--force"] if self._storage.program.kind == "podman" else []
        for name in image_names(self._storage):
            if name.startswith((f"localhost/{BUILT}/", f"localhost/{REHEARSED}:")):
                self._storage.invoke(["rmi", *force, name], check=False)


def image_names(storage: Storage) -> list[str]:
    """Return the names of all images in a storage, without starting its engine."""
    names: list[str] = []
    for kind in ("overlay", "vfs"):
        path = storage.root / f"{kind}-images" / "images.json"
        if path.is_file():
            for entry in parse_json(path.read_bytes() or b"[]") or []:
                names += entry.get("names") or []
    return sorted(names)
