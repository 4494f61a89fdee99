"""The way back from a load: its tags get the values that they had before it. Images and blobs stay."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airferry.bundle.receipt import (
    Receipt,
    ReceiptTag,
    locate_receipt,
    read_receipt,
    receipts_in,
    write_receipt,
)
from airferry.errors import AirferryError, HostError, RegistryError
from airferry.events import Emit, Notice, Warned, silent
from airferry.far.destinations import DestinationRecords, hold_destination
from airferry.host import clock
from airferry.host.canonical import plain_data
from airferry.host.records import expect_cache
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.profile import read_profile
from airferry.registry.sink import RegistrySink
from airferry.wording import counted, shell_line


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """What a rollback did to tags, or with `dry_run` would do, by their references.

    `restored` have their values from before the load again, `removed` were not there before it, `unchanged` needed
    nothing. `kept` are new ones that stay, as the registry cannot delete tags: nothing pointed to them before the load.
    """

    restored: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    dry_run: bool = False

    def to_document(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return dict(plain_data(self))


@dataclass(slots=True)
class _Rollback:
    """A rollback under way."""

    receipt: Receipt
    client: RegistryClient
    records: DestinationRecords
    dry_run: bool
    deletes: bool | None
    """Whether the registry deletes tags, as far as that is known; only a dry run goes by it."""
    restored: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    by_later_loads: dict[str, str] = field(default_factory=dict)
    by_others: list[str] = field(default_factory=list)
    hints: dict[str, None] = field(default_factory=dict)

    def run(self) -> None:
        """Try each tag, and note what became of it."""
        for number, moved in enumerate(self.receipt.tags):
            try:
                self._restore(moved)
            except RegistryError as error:
                # a registry that is not reached at all is told once, not for every tag
                if error.status is None and number == 0:
                    raise
                self.left[moved.reference] = error.message
                self.hints[error.hint or ""] = None

    def _restore(self, moved: ReceiptTag) -> None:
        """Put one tag back, or say why it is not as it was."""
        reference = parse_reference(moved.reference)
        if reference.tag is None:
            return
        sink = RegistrySink(self.client, reference.repository)
        current = sink.source.find(reference.tag)
        if current == moved.previous_digest:
            self.unchanged.append(moved.reference)
        elif current != moved.digest:
            self.left[moved.reference] = self._moved_since(moved, current)
        elif moved.previous_digest is None:
            gone = self.deletes is not False if self.dry_run else sink.delete_tag(reference.tag)
            (self.removed if gone else self.kept).append(moved.reference)
        else:
            before = sink.source.read_manifest(sink.source.resolve(moved.previous_digest))
            if not self.dry_run:
                sink.put_manifest(before, reference=reference.tag)
            self.restored.append(moved.reference)

    def _moved_since(self, moved: ReceiptTag, current: str | None) -> str:
        """Say who moved a tag after the load: a later load of this user, as the cache has it, or somebody else."""
        root = self.records.moved_from(moved.reference, moved.digest, but=self.receipt.bundle_root)
        if root is not None and current is not None:
            self.by_later_loads[moved.reference] = current
            return f"a later load of yours, of root `{root}`, has moved it since; it points to `{current}` now"
        self.by_others.append(moved.reference)
        return f"another client has moved it since, to `{current}`" if current else "another client has removed it"


def rollback(
    receipt_path: Path,
    *,
    to: str | None = None,
    root: str | None = None,
    dry_run: bool = False,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> RollbackResult:
    """Put the tags of a load back as they were. Images and blobs stay. Idempotent.

    A folder stands for the receipt in it; among several, `to` and `root` choose the load that it is of. A tag that
    something else has moved since is left alone. A new tag that the registry cannot delete stays, and is named: what
    was there before the load is back all the same. All tags are tried before anything is raised. With `dry_run` the
    registry is only asked.

    Raises:
        UsageError: several receipts lie in the folder.
        HostError: there is no receipt, it cannot be read, or a load into the same destination is under way.
        IntegrityError: it is not a receipt.
        RegistryError: tags are not as they were before the load; `left` of the error says which, and why.
    """
    place = locate_receipt(receipt_path, registry=to, root=root)
    receipt = read_receipt(place)
    options = receipt.reached_with(options or ClientOptions())
    expect_cache(emit)
    with (
        hold_destination(receipt.registry, purpose=f"roll back `{receipt.registry}`") as records,
        RegistryClient(parse_reference(f"{receipt.registry}/x").registry, options=options, emit=emit) as client,
    ):
        done = _Rollback(receipt, client, records, dry_run, read_profile(client.registry).deletes_tags)
        done.run()
        if not dry_run:
            records.forget_tags(receipt.bundle_root, {*done.restored, *done.removed, *done.unchanged})
            _mark(place, done, emit)
    for reference in done.unchanged:
        emit(Notice(f"`{reference}` already has its value from before the load"))
    _say_kept(receipt, done.kept, emit)
    if dry_run and done.removed and done.deletes is None:
        emit(Notice("whether this registry can delete tags is not known; if it cannot, new tags stay, and are named"))
    if done.left:
        # a result says that where there is one
        for verb, references in (("restore", done.restored), ("remove", done.removed)):
            for reference in references:
                emit(Notice(f"would {verb} `{reference}`" if dry_run else f"{verb}d `{reference}`"))
        lines = "\n".join(f"`{reference}`: {reason}" for reference, reason in done.left.items())
        hints = [*filter(None, done.hints), *_hints(done, place)]
        raise RegistryError(
            "not all tags " + ("would be" if dry_run else "are") + f" back to their state before the load:\n{lines}",
            hint="; ".join(hints) or None,
            left=done.left,
        )
    return RollbackResult(
        tuple(done.restored), tuple(done.removed), tuple(done.unchanged), tuple(done.kept), dry_run=dry_run
    )


def _mark(place: Path, done: _Rollback, emit: Emit) -> None:
    """Note in the receipt that its tags are back, if they are, and if this is not only said again."""
    moved, first = bool(done.restored or done.removed), done.receipt.rolled_back_at is None
    if done.left or not (moved or (first and done.unchanged)):
        return
    try:
        write_receipt(done.receipt.model_copy(update={"rolled_back_at": clock.rfc3339(clock.now_s())}), place)
    except HostError as error:
        # what was asked for is done; a receipt on read-only storage is as good for that
        emit(Warned(f"the rollback is not noted in the receipt: {error.message}", hint=error.hint))


def _say_kept(receipt: Receipt, kept: Collection[str], emit: Emit) -> None:
    """Name new tags that stay. A job can be given an image by its tag; artifacts are found by digest."""
    artifacts = {tag.reference for tag in receipt.artifact_tags}
    images = [reference for reference in kept if reference not in artifacts]
    others = [reference for reference in kept if reference in artifacts]
    if images:
        emit(Warned(_kept_text(images, "new image tag"), hint="remove with the registry's own tools what must go"))
    if others:
        emit(Notice(_kept_text(others, "new artifact tag") + "\nno job uses them"))


def _kept_text(references: list[str], noun: str) -> str:
    verb = "stays" if len(references) == 1 else "stay"
    return f"{counted(len(references), noun)} {verb}, as the registry cannot delete tags:\n" + "\n".join(
        f"`{reference}`" for reference in references
    )


def _hints(done: _Rollback, place: Path) -> Iterator[str]:
    """Yield what to do about tags that are not as they were. `place` is the receipt's."""
    if not done.dry_run and (as_before := len(done.restored) + len(done.removed) + len(done.unchanged)):
        yield f"{counted(as_before, 'other tag')} {'is' if as_before == 1 else 'are'} as before the load"
    if done.by_later_loads:
        later = _latest_receipt(place.parent, done)
        command = f": `{shell_line(['airferry', 'load', '--rollback', later])}`" if later is not None else ""
        yield f"roll back the later load first{command}; then run this rollback again"
    if done.by_others:
        yield "the tags that another client moved stay: agree with its owner on who sets them"


def _latest_receipt(folder: Path, done: _Rollback) -> Path | None:
    """Return the receipt in a folder of the latest load that set what tags point to now, which later loads moved."""
    found: list[tuple[str, Path]] = []
    # what cannot be read here is only missing in a hint
    with suppress(AirferryError):
        for path in receipts_in(folder):
            with suppress(AirferryError):
                other = read_receipt(path)
                values = {(tag.reference, tag.digest) for tag in other.tags}
                same = other.bundle_root == done.receipt.bundle_root
                if other.registry == done.receipt.registry and not same and values & set(done.by_later_loads.items()):
                    found.append((other.last_loaded_at, path))
    return max(found)[1] if found else None
