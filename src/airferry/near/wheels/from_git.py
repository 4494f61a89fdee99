"""Projects in Git that are built into wheels, with as much of their history as their version takes.

A shallow checkout is tried first, unless the project's build files name a tool that counts commits or reads tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import parse_wheel_filename

from airferry.errors import BuildError
from airferry.events import Emit
from airferry.host import files
from airferry.near.git import driver
from airferry.near.git.addresses import redact
from airferry.near.git.history import History, fetch_history, write_checkout
from airferry.near.git.versions import difference, has_fixed_version, mismatch, needs_history, shortened_id
from airferry.near.wheels.compile import BuildSource
from airferry.near.wheels.isolated import SourceBuilder
from airferry.plan.locks.packages import GitSource


@dataclass
class GitProject:
    """A distribution that is built from a commit. `wanted` is the version that it must have, `place` who says so."""

    name: str
    git: GitSource
    wanted: str | None
    place: str
    cache: Path
    emit: Emit
    _history: History | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        """The commit's address, without credentials."""
        return git_address(self.git)

    def fetch(self) -> None:
        """Bring the commit and its submodules into the cache.

        Raises:
            BuildError: the repository cannot be read or does not have the commit.
        """
        with self._naming():
            driver.fetch_overlay(self.git.url, self.git.commit, cache=self.cache, emit=self.emit)

    def check_out(self, into: Path) -> Mapping[Path, str]:
        """Write the fetched commit as a checkout; return what of the host must be seen where, to run Git in it.

        Raises:
            BuildError: it has no such folder as the source names.
        """
        short = shortened_id(self.wanted, self.git.commit) if self.wanted else None
        repository = write_checkout(
            self.git.url, self.git.commit, cache=self.cache, into=into, abbreviation=len(short) if short else None
        )
        project = self.project(into)
        if not files.lies_within(project, into) or not project.is_dir():
            raise BuildError(
                f"`{self.address}` has no folder `{self.git.subdirectory}`",
                commit=self.git.commit,
                hint="correct `subdirectory=` in the catalogue's lock, or the commit",
            )
        return {repository: str(repository)}

    def project(self, checkout: Path) -> Path:
        """Return the folder of the project in a checkout."""
        return checkout / (self.git.subdirectory or "")

    def source(self, checkout: Path, shown: Mapping[Path, str]) -> BuildSource:
        """Return the project in a checkout as builds take it; `shown` is what `check_out` says."""
        return BuildSource(checkout, self.git.subdirectory or "", shown)

    def build(self, builder: SourceBuilder, *, scratch: Path, environment: Mapping[str, str]) -> Path:
        """Build the fetched commit on this host, and return the wheel, which lies in `scratch`.

        Raises:
            DoesNotBuild: it does not build.
            BuildError: it cannot be checked out, or what the build asks for cannot be had.
            HostError: the host does not allow to confine the build.
        """
        tree = scratch / "tree"
        shown = self.check_out(tree)
        project = self.project(tree)
        if needs_history(project) or (self.wanted is None and not has_fixed_version(project)):
            self._fetch_history()
            shown = self.check_out(tree)
        for attempt in ("first", "second"):
            made = builder.build(
                self.source(tree, shown),
                scratch=files.ensure_directory(scratch / attempt),
                environment=environment,
            )
            if self._history is not None or self._difference(_version(made)) is not None:
                break
            self._fetch_history()
            shown = self.check_out(tree)
        return made

    def check(self, version: str) -> str:
        """Hold a built version against the one that is wanted; return a note for an operator, mostly empty.

        Raises:
            BuildError: it is another version.
        """
        note = self._difference(version)
        if note is None:
            assert self.wanted is not None
            raise mismatch(
                self.name, self.wanted, version, self.git, self.address, place=self.place, history=self._history
            )
        return note

    def _difference(self, version: str) -> str | None:
        return difference(self.name, self.wanted, version, self.git) if self.wanted else ""

    def _fetch_history(self) -> None:
        with self._naming():
            self._history = fetch_history(self.git.url, self.git.commit, cache=self.cache, emit=self.emit)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Put the place in the lock before the message of a commit that cannot be had."""
        try:
            yield
        except BuildError as error:
            if not self.place:
                raise
            raise error.at(self.place) from error


def git_address(git: GitSource) -> str:
    """Return a Git source in one line, without credentials."""
    tail = f"#subdirectory={git.subdirectory}" if git.subdirectory else ""
    return f"git+{redact(git.url)}@{git.commit}{tail}"


def _version(wheel: Path) -> str:
    return str(parse_wheel_filename(wheel.name)[1])
