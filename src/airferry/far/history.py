"""The loads that a folder has receipts of: when, into which registry, of which bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.bundle.receipt import Receipt, read_receipt, receipt_folders_below, receipts_in
from airferry.errors import AirferryError, IntegrityError
from airferry.host.canonical import plain_data


@dataclass(frozen=True, slots=True)
class PastLoad:
    """A load, as its receipt has it. `tls` is None where an older airferry did not record it.

    `loaded_at` is when it was loaded first, `loaded_again_at` last, if more than once.

    `new_tags` are tags that the load set first, `moved_tags` those that stood for something else before.
    """

    path: Path
    loaded_at: str
    registry: str
    root: str
    root_verified: bool
    tls: bool | None
    images: int
    new_tags: int
    moved_tags: int
    loaded_again_at: str | None = None
    rolled_back_at: str | None = None

    def to_document(self) -> dict[str, Any]:
        """Return the load as plain data."""
        return dict(plain_data(self))


@dataclass(frozen=True, slots=True)
class LoadHistory:
    """All loads, oldest first, and the files with a receipt's name that are none, with the reason.

    `below` are direct sub-folders with receipts, looked for where the folders themselves have none.
    """

    loads: tuple[PastLoad, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()
    below: tuple[Path, ...] = ()

    def raise_if_unreadable(self) -> None:
        """Do nothing if every file was read.

        Raises:
            IntegrityError: a file with a receipt's name is not one.
        """
        if self.unreadable:
            raise IntegrityError(
                "\n".join(f"`{path}`: {reason}" for path, reason in self.unreadable),
                hint="what it says of a load is lost; restore it from a copy, or move it away",
            )

    def to_document(self) -> dict[str, Any]:
        """Return the history as plain data."""
        return {
            "loads": [one.to_document() for one in self.loads],
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }


def history(folders: Sequence[Path]) -> LoadHistory:
    """Return the loads whose receipts lie in some folders. What is not a receipt does not hide the others.

    Raises:
        HostError: a folder cannot be read.
    """
    loads: list[PastLoad] = []
    unreadable: list[tuple[Path, str]] = []
    for path in dict.fromkeys(path for folder in folders for path in receipts_in(folder)):
        try:
            loads.append(_past_load(path, read_receipt(path)))
        except AirferryError as error:
            unreadable.append((path, error.message))
    below = () if loads or unreadable else tuple(path for folder in folders for path in receipt_folders_below(folder))
    return LoadHistory(tuple(sorted(loads, key=lambda one: (one.loaded_at, one.path))), tuple(unreadable), below)


def _past_load(path: Path, receipt: Receipt) -> PastLoad:
    before = [tag.previous_digest for tag in receipt.tags if tag.previous_digest != tag.digest]
    return PastLoad(
        path=path,
        loaded_at=receipt.loaded_at,
        registry=receipt.registry,
        root=receipt.bundle_root,
        root_verified=receipt.root_verified,
        tls=None if receipt.connection is None else receipt.connection.tls,
        images=len(receipt.images),
        new_tags=sum(digest is None for digest in before),
        moved_tags=sum(digest is not None for digest in before),
        loaded_again_at=receipt.loaded_again_at,
        rolled_back_at=receipt.rolled_back_at,
    )
