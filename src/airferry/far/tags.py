"""Tags, the last thing that moves in a load: what they stood for before is noted first, so that they can go back.

The journal lies next to the receipt, never in the bundle. A run that was killed while tags moved leaves it; the next
run reads in it what the tags stood for before the first one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from airferry.bundle.receipt import Receipt, ReceiptTag, read_receipt
from airferry.errors import RegistryError
from airferry.events import Emit, Notice, silent
from airferry.host import files
from airferry.host.parsing import Malformed, parse_json
from airferry.host.threads import parallel_map
from airferry.oci.ports import Stored
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.failures import rerun_helps
from airferry.registry.sink import RegistrySink
from airferry.wording import counted

NOT_REMOVABLE = "it is new, and the registry cannot delete tags"
MAX_TAG_JOURNAL_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TagMove:
    """A tag of a repository, what it is to stand for, and what it stood for before the load."""

    reference: str
    repository: str
    tag: str
    stored: Stored
    current: str | None
    previous: str | None

    @property
    def digest(self) -> str:
        """The digest that the tag is to stand for."""
        return self.stored.descriptor.digest

    @property
    def needed(self) -> bool:
        """Whether the tag stands for something else now."""
        return self.current != self.digest


@dataclass(frozen=True, slots=True)
class WantedTag:
    """A tag that a load is to set."""

    reference: str
    sink: RegistrySink
    tag: str
    stored: Stored


def journal_path(receipt_path: Path) -> Path:
    """Return where the journal of tags lies while they move."""
    return receipt_path.with_name(receipt_path.name + ".pending")


def plan_tags(wanted: Iterable[WantedTag], receipt_path: Path, *, root: str, jobs: int) -> list[TagMove]:
    """Ask the registry what each tag stands for, and return what has to move, in the order given.

    What a tag stood for before comes from the journal or the receipt of an earlier run of the same load, if the tag
    stands now for what that run set.
    """
    known = {**_from_receipt(receipt_path, root), **_from_journal(journal_path(receipt_path), root)}

    def ask(item: WantedTag) -> TagMove:
        current = item.sink.source.find(item.tag)
        digest = item.stored.descriptor.digest
        previous = known[item.reference] if current == digest and item.reference in known else current
        return TagMove(item.reference, item.sink.repository, item.tag, item.stored, current, previous)

    return parallel_map(ask, list(wanted), jobs=jobs)


def move_tags(moves: Iterable[TagMove], sinks: Callable[[str], RegistrySink], receipt_path: Path, *, root: str) -> int:
    """Note what the tags stood for, durably, then move those that need it; return how many moved.

    Raises:
        RegistryError: a tag cannot be set; the message says how many are left. A rerun goes on.
    """
    todo = [move for move in moves if move.needed]
    if not todo:
        return 0
    document = {"root": root, "tags": {move.reference: move.previous for move in moves}}
    files.write_bytes(journal_path(receipt_path), json.dumps(document, indent=1, sort_keys=True).encode())
    for number, move in enumerate(todo):
        try:
            sinks(move.repository).put_manifest(move.stored, reference=move.tag)
        except RegistryError as error:
            raise error.reworded(
                f"{error.message}; {number} of {len(todo)} tags were moved",
                hint=_goes_on(error),
            ) from error
        files.boundary(f"tag {move.reference}")
    return len(todo)


def _goes_on(error: RegistryError) -> str:
    """Return what to do about a tag that could not be set: a rerun alone helps only against what passes by itself."""
    if rerun_helps(error) or not error.hint:
        return "rerun the same load: it moves the remaining tags"
    return f"{error.hint}; after that, the same load moves the remaining tags"


def forget_journal(receipt_path: Path) -> None:
    """Remove the journal of tags, once the receipt holds what it held. Idempotent."""
    journal_path(receipt_path).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """What a rollback did: references that stand for what they stood for before, and those removed."""

    restored: tuple[str, ...]
    removed: tuple[str, ...]


def rollback(receipt_path: Path, *, options: ClientOptions | None = None, emit: Emit = silent) -> RollbackResult:
    """Put the tags of a load back as they were. Images and blobs stay. Idempotent.

    A tag that something else has moved since is left alone. All tags are tried before anything is raised.

    Raises:
        HostError: the receipt cannot be read.
        IntegrityError: it is not a receipt.
        RegistryError: tags are not as they were before the load; `left` of the error says which, and why.
    """
    receipt = read_receipt(receipt_path)
    restored: list[str] = []
    removed: list[str] = []
    left: dict[str, str] = {}
    with RegistryClient(parse_reference(f"{receipt.registry}/x").registry, options=options, emit=emit) as client:
        for moved in receipt.tags:
            try:
                reason = _restore(client, moved, restored, removed)
            except RegistryError as error:
                reason = error.message
            if reason:
                left[moved.reference] = reason
            else:
                emit(Notice(f"`{moved.reference}` already has its value from before the load"))
    if left:
        raise RegistryError(
            "not all tags are back to their state before the load: "
            + "; ".join(f"`{reference}`: {reason}" for reference, reason in left.items()),
            hint=_rollback_hint(left, others=len(receipt.tags) - len(left)),
            left=left,
        )
    return RollbackResult(tuple(restored), tuple(removed))


def _rollback_hint(left: Mapping[str, str], *, others: int) -> str | None:
    """Return what to do about tags that are not as they were; None where there is nothing to say."""
    parts = [f"{counted(others, 'other tag')} {'is' if others == 1 else 'are'} as before the load"] if others else []
    if NOT_REMOVABLE in left.values():
        parts.append("remove the new tags with the registry's own tools if they must go")
    return "; ".join(parts) or None


def _restore(client: RegistryClient, moved: ReceiptTag, restored: list[str], removed: list[str]) -> str:
    """Put one tag back, and return why not if it is not as it was."""
    reference = parse_reference(moved.reference)
    if reference.tag is None:
        return ""
    sink = RegistrySink(client, reference.repository)
    current = sink.source.find(reference.tag)
    if current == moved.previous_digest:
        return ""
    if current != moved.digest:
        return f"another client has moved it since, to `{current}`" if current else "another client has removed it"
    if moved.previous_digest is None:
        if not sink.delete_tag(reference.tag):
            return NOT_REMOVABLE
        removed.append(moved.reference)
        return ""
    before = sink.source.read_manifest(sink.source.resolve(moved.previous_digest))
    sink.put_manifest(before, reference=reference.tag)
    restored.append(moved.reference)
    return ""


def _from_receipt(path: Path, root: str) -> dict[str, str | None]:
    receipt: Receipt | None = None
    if path.is_file():
        receipt = read_receipt(path)
    if receipt is None or receipt.bundle_root != root:
        return {}
    return {moved.reference: moved.previous_digest for moved in receipt.tags}


def _from_journal(path: Path, root: str) -> dict[str, str | None]:
    if not path.is_file():
        return {}
    with suppress(Malformed):
        document = parse_json(files.read_bounded(path, limit_bytes=MAX_TAG_JOURNAL_BYTES))
        if isinstance(document, dict) and document.get("root") == root and isinstance(document.get("tags"), dict):
            tags: dict[str, str | None] = document["tags"]
            return tags
    return {}
