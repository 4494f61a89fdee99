"""Tags, the last thing that moves in a load: what they stood for before is noted first, so that they can go back.

What a run noted that was killed while tags moved, the next one reads: it says what they stood for before the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from airferry.bundle.receipt import Receipt
from airferry.errors import RegistryError
from airferry.events import Emit, Warned
from airferry.far.destinations import DestinationRecords
from airferry.host import files
from airferry.host.threads import parallel_map
from airferry.oci.ports import Stored
from airferry.registry.failures import rerun_helps
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.wording import counted, some_of

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
