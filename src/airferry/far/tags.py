"""Tags, the last thing that moves in a load: what they stood for before is noted first, so that they can go back.

What a run noted that was killed while tags moved, the next one reads: it says what they stood for before the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from airferry.bundle.receipt import Receipt, ReceiptTag, locate_receipt, read_receipt
from airferry.errors import RegistryError
from airferry.events import Emit, Notice, Warned, silent
from airferry.far.destinations import DestinationRecords, hold_destination
from airferry.host import files
from airferry.host.records import expect_cache
from airferry.host.threads import parallel_map
from airferry.oci.ports import Stored
from airferry.oci.reference import parse_reference
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.failures import rerun_helps
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.wording import counted, some_of

NOT_REMOVABLE = "it is new, and the registry cannot delete tags"
# a registry behind a cache may show for a moment what a tag stood for before
LOOKS_AFTERWARDS = 3
SHOWN_TAGS = 10


@dataclass(frozen=True, slots=True)
class TagMove:
    """A tag of a repository, what it is to stand for, and what it stood for before the load."""

    reference: str
    repository: str
    tag: str
    stored: Stored
    current: str | None
    previous: str | None
    optional: bool = False

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
    optional: bool = False


def plan_tags(wanted: Iterable[WantedTag], known: Mapping[str, str | None], *, jobs: int) -> list[TagMove]:
    """Ask the registry what each tag stands for, and return what has to move, in the order given.

    `known` is what tags stood for before an earlier run of the same load; it counts where a tag stands for what that
    run set.
    """

    def ask(item: WantedTag) -> TagMove:
        try:
            current = item.sink.source.find(item.tag)
        except RegistryError as error:
            # whether the registry takes an optional one is found out by sending it
            if not item.optional or not item.sink.refuses(error):
                raise
            current = None
        digest = item.stored.descriptor.digest
        previous = known[item.reference] if current == digest and item.reference in known else current
        return TagMove(
            item.reference, item.sink.repository, item.tag, item.stored, current, previous, optional=item.optional
        )

    return parallel_map(ask, list(wanted), jobs=jobs)


def move_tags(
    moves: Iterable[TagMove],
    sinks: Callable[[str], RegistrySink],
    records: DestinationRecords,
    *,
    root: str,
    refused: dict[str, str] | None = None,
) -> dict[str, str | None]:
    """Note what the tags stand for, durably, then move those that need it, but none that others moved meanwhile.

    Returns those, with what they stand for now. Optional ones that the registry refuses go into `refused`, with the
    reason.

    Raises:
        RegistryError: a tag cannot be set; the message says how many are left. A rerun goes on.
    """
    todo = [move for move in moves if move.needed]
    taken: dict[str, str | None] = {}
    if todo:
        # only what is known here: values that came with a receipt never enter the records
        records.keep_tags(root, {move.reference: move.current for move in todo})
    for number, move in enumerate(todo):
        sink = sinks(move.repository)
        try:
            now = sink.source.find(move.tag)
            if now not in (move.current, move.digest):
                taken[move.reference] = now
                continue
            sink.put_manifest(move.stored, reference=move.tag)
        except RegistryError as error:
            if refused is not None and move.optional and sink.refuses(error):
                refused[move.reference] = error.message
                continue
            raise error.reworded(
                f"{error.message}; {number - len(taken) - len(refused or ())} of {len(todo)} tags were moved",
                hint=_goes_on(error),
            ) from error
        files.boundary(f"tag {move.reference}")
    return taken


def _goes_on(error: RegistryError) -> str:
    """Return what to do about a tag that could not be set: a rerun alone helps only against what passes by itself."""
    if rerun_helps(error) or not error.hint:
        return "rerun the same load: it moves the remaining tags"
    return f"{error.hint}; after that, the same load moves the remaining tags"


def moved_by_others(
    moves: Sequence[TagMove], sinks: Callable[[str], RegistrySink], *, jobs: int, retry: RetryPolicy
) -> dict[str, str | None]:
    """Read tags again that a load has set, and return those that stand for something else now, and for what."""

    def look(move: TagMove) -> str | None:
        source = sinks(move.repository).source
        found = source.find(move.tag)
        for attempt in range(LOOKS_AFTERWARDS - 1):
            if found == move.digest:
                break
            retry.pause(attempt)
            found = source.find(move.tag)
        return found

    found = parallel_map(look, moves, jobs=jobs)
    return {move.reference: now for move, now in zip(moves, found, strict=True) if now != move.digest}


def expect_own_tags(taken: Mapping[str, str | None], receipt_path: Path) -> None:
    """Raise that others moved tags while a load set them, if they did.

    Raises:
        RegistryError: they did; `tags` of the error says what each stands for now.
    """
    if not taken:
        return
    shown = [f"`{name}` {f'now stands for `{now}`' if now else 'was removed'}" for name, now in sorted(taken.items())]
    raise RegistryError(
        f"another client moved {counted(len(taken), 'tag')} while this load set them: {some_of(shown, SHOWN_TAGS)}",
        hint="agree on who sets these tags, then rerun this load to set them, or load under another prefix; the images "
        f"are there, and `{receipt_path}` pins them by digest",
        tags=dict(taken),
    )


def tags_in_receipt(receipt: Receipt | None, *, destination: str, root: str) -> dict[str, str | None]:
    """Return what tags stood for before a load, as an earlier receipt of the same load says."""
    if receipt is None or (receipt.registry, receipt.bundle_root) != (destination, root):
        return {}
    return {tag.reference: tag.previous_digest for tag in receipt.tags}


def say_where_from(moves: Iterable[TagMove], own: Mapping[str, str | None], receipt_path: Path, emit: Emit) -> None:
    """Name the tags whose previous value only a receipt has: who can write there may have put it there."""
    foreign = [
        f"`{move.reference}` → {f'`{move.previous}`' if move.previous else 'absent'}"
        for move in moves
        if not move.needed and move.previous != move.current and move.reference not in own
    ]
    if foreign:
        emit(
            Warned(
                f"what {counted(len(foreign), 'tag')} stood for before is taken from the earlier receipt "
                f"`{receipt_path}`, as this user has no record of it: {some_of(foreign, SHOWN_TAGS)}",
                hint="compare them before you use `--rollback`, if others can write to that folder",
            )
        )


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """What a rollback did: references that stand for what they stood for before, and those removed."""

    restored: tuple[str, ...]
    removed: tuple[str, ...]


def rollback(
    receipt_path: Path,
    *,
    to: str | None = None,
    root: str | None = None,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> RollbackResult:
    """Put the tags of a load back as they were. Images and blobs stay. Idempotent.

    A folder stands for the receipt in it; among several, `to` and `root` choose the load that it is of. A tag that
    something else has moved since is left alone. All tags are tried before anything is raised.

    Raises:
        UsageError: several receipts lie in the folder.
        HostError: there is no receipt, it cannot be read, or a load into the same destination is under way.
        IntegrityError: it is not a receipt.
        RegistryError: tags are not as they were before the load; `left` of the error says which, and why.
    """
    receipt = read_receipt(locate_receipt(receipt_path, registry=to, root=root))
    options = receipt.reached_with(options or ClientOptions())
    expect_cache(emit)
    restored: list[str] = []
    removed: list[str] = []
    left: dict[str, str] = {}
    hints: dict[str, None] = {}
    with (
        hold_destination(receipt.registry, purpose=f"roll back `{receipt.registry}`") as records,
        RegistryClient(parse_reference(f"{receipt.registry}/x").registry, options=options, emit=emit) as client,
    ):
        for number, moved in enumerate(receipt.tags):
            try:
                reason = _restore(client, moved, restored, removed)
            except RegistryError as error:
                # a registry that is not reached at all is told once, not for every tag
                if error.status is None and number == 0:
                    raise
                reason = error.message
                hints[error.hint or ""] = None
            if reason:
                left[moved.reference] = reason
            else:
                emit(Notice(f"`{moved.reference}` already has its value from before the load"))
        records.forget_tags(receipt.bundle_root, {tag.reference for tag in receipt.tags} - left.keys())
    if left:
        raise RegistryError(
            f"not all tags are back to their state before the load: {_by_reason(left)}",
            hint="; ".join([*filter(None, hints), *_rollback_hints(left, others=len(receipt.tags) - len(left))]),
            left=left,
        )
    return RollbackResult(tuple(restored), tuple(removed))


def _by_reason(left: Mapping[str, str]) -> str:
    """Return tags with the reason why each is not as it was; a registry mostly has one reason for all."""
    references: dict[str, list[str]] = {}
    for reference, reason in left.items():
        references.setdefault(reason, []).append(f"`{reference}`")
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in references.items())


def _rollback_hints(left: Mapping[str, str], *, others: int) -> Iterator[str]:
    """Yield what to do about tags that are not as they were."""
    if others:
        yield f"{counted(others, 'other tag')} {'is' if others == 1 else 'are'} as before the load"
    if NOT_REMOVABLE in left.values():
        yield "remove the new tags with the registry's own tools if they must go"
    if any(reason.startswith("another client") for reason in left.values()):
        yield "the tags that another client moved stay: agree with its owner on who sets them"


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
