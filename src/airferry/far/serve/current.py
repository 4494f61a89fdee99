"""Which bundle a service offers: the one that it opened, or, when it is told to, the one that lies there now.

A folder that is rebuilt or swapped under a service lacks blobs that its manifests name. That is told from damage by
the root of what lies there.
"""

from __future__ import annotations

import signal
import threading
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from airferry.bundle.verify import Bundle, verify_opened
from airferry.errors import AirferryError
from airferry.events import Emit, Notice, Warned
from airferry.far.relocate import Destination
from airferry.far.serve.offer import CheckedBlobs, Repository, read_repositories
from airferry.oci.digest import digest_of


class CurrentBundle:
    """The bundle that is served, its repositories and blobs. Safe with threads: a request sees the old or the new."""

    def __init__(self, reopen: Callable[[], Bundle], *, verify_first: bool = False, emit: Emit) -> None:
        """Open the bundle, and check all of it with `verify_first`. It has no repositories before `offer`.

        Raises:
            UsageError: there is no bundle.
            IntegrityError: the root is another, or the bundle is damaged.
        """
        self._reopen = reopen
        self._named: Destination | None = None
        self._verify_first = verify_first
        self._emit = emit
        self._turn = threading.Lock()
        self._said: str | None = None
        self.bundle = reopen()
        self.blobs = CheckedBlobs(self.bundle.store, emit=emit)
        self.blobs.mark_checked(self._checked(self.bundle))
        self.repositories: UserDict[str, Repository] = UserDict()

    def offer(self, named: Destination) -> None:
        """Fill the repositories, under the names that a load into the destination would use.

        Raises:
            UsageError: two images would take one name, or a map fits nothing.
            IntegrityError: a manifest is missing or not what its digest says.
        """
        self._named = named
        self.repositories.data = read_repositories(self.bundle, named)

    def reload(self) -> None:
        """Serve what lies there now, if it is a bundle that may be served; say what came of it."""
        if self._named is None:
            return
        with self._turn:
            try:
                fresh = self._reopen()
                repositories = read_repositories(fresh, self._named)
                self.blobs.mark_checked(self._checked(fresh))
            except AirferryError as error:
                self._emit(Warned(f"not reloaded, and served as before: {error.message}", hint=error.hint))
                return
            self.bundle = fresh
            self.blobs.read_from(fresh.store)
            self.repositories.data = repositories
        self._emit(Notice(f"reloaded: serving root {fresh.root}"))

    def replaced(self) -> str:
        """Return that another bundle, or none, lies where the one that is served was; empty if it is still there.

        The first time it is found, that is said to the operator.
        """
        bundle = self.bundle
        try:
            found = digest_of(bundle.store.read_index_bytes())
        except AirferryError:
            found = "none"
        if found == bundle.root:
            return ""
        with self._turn:
            first, self._said = self._said != found, found
        if first:
            what = "has no bundle any more" if found == "none" else f"now holds the bundle with root `{found}`"
            self._emit(
                Warned(
                    f"`{bundle.store.path}` {what}; what is missing of root `{bundle.root}` is answered with 503",
                    hint="send SIGHUP to serve what is there, or put the folder back",
                )
            )
        return "the bundle was replaced while it was served; the operator of this registry has to reload it"

    def _checked(self, bundle: Bundle) -> dict[str, tuple[int, int, int, int, int]]:
        if not self._verify_first:
            return {}
        before = CheckedBlobs(bundle.store).identities()
        verify_opened(bundle, emit=self._emit).raise_if_wrong()
        self._emit(Notice("verified all blobs before serving"))
        return before


@contextmanager
def on_hangup(reload: Callable[[], None]) -> Iterator[None]:
    """Call a function on its own thread whenever SIGHUP comes. Does nothing off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hang_up(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=reload, name="reload", daemon=True).start()

    before = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
