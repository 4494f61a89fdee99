"""Reading a layer of a base as one unit of work: inflated, checked, looked at, recompressed where that is asked for.

What goes in and what comes out lies in the cache under its digest; the layer's bytes may also come by the way, while
they are fetched. Locks and records are kept by its caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from airferry.host.workers.work import Work, WorkContext
from airferry.oci.documents import Descriptor
from airferry.oci.layers import Compression, LayerChecks, LayerResult, inspect_layer, recompress_layer
from airferry.oci.layout import LayoutStore, open_regular
from airferry.oci.streams import BlockStream, HashedBefore, sized
from airferry.rootfs.layers import FactsCache, UnreadLayer, layer_observer


@dataclass(frozen=True, slots=True)
class FactsWanted:
    """The folder where the facts of a layer are to be kept, and how many entries it may have."""

    folder: Path
    max_entries: int


@dataclass(frozen=True, slots=True)
class LayerReading:
    """What is to be done with a layer that lies in a layout of ours, or is on its way there.

    `into` is the layout that gets it in the wanted compression, None where it is only read. `file` is the layer where
    it comes from, if that is a file; its digest is checked by what brings it.
    """

    descriptor: Descriptor
    diff_id: str
    store: Path
    limit_bytes: int
    compression: Compression
    into: Path | None = None
    facts: FactsWanted | None = None
    file: Path | None = None

    def work(self, *, threads: int | None, comes_by: bool) -> Work:
        """Return it as a unit of work, which takes that many threads for compression."""
        arguments: dict[str, Any] = {
            "layer": _document(self.descriptor),
            "diff_id": self.diff_id,
            "place": {
                "store": str(self.store.absolute()),
                "file": None if self.file is None else str(self.file.absolute()),
            },
            "limit_bytes": self.limit_bytes,
            "packing": None,
            "facts": None,
        }
        memory_bytes = 0
        if self.into is not None:
            how = replace(self.compression, threads=threads or self.compression.threads)
            memory_bytes = how.memory_bytes
            arguments["packing"] = {
                "into": str(self.into.absolute()),
                "kind": how.kind,
                "level": how.level,
                "long": how.long,
                "threads": how.threads,
                "steps_back": threads is not None,
            }
        if self.facts is not None:
            folder = str(self.facts.folder.absolute())
            arguments["facts"] = {"folder": folder, "max_entries": self.facts.max_entries}
        what = f"layer `{self.descriptor.digest}`"
        function = f"{__name__}:{read_layer.__name__}"
        return Work(function, arguments, what, self.descriptor.size, comes_by, memory_bytes)

    def result(self, answer: Mapping[str, Any]) -> LayerResult:
        """Return what came of it."""
        made = Descriptor.model_validate(answer["descriptor"])
        return LayerResult(made, self.diff_id, answer["unpacked_bytes"], self.descriptor)


def read_layer(
    context: WorkContext,
    *,
    layer: dict[str, Any],
    diff_id: str,
    place: dict[str, Any],
    limit_bytes: int,
    packing: dict[str, Any] | None,
    facts: dict[str, Any] | None,
) -> dict[str, Any]:
    """Read a layer as a `LayerReading` says. Facts are kept once all of the layer is found to be right.

    Raises:
        IntegrityError: the layer is not what its descriptor or its base's config says.
    """
    descriptor = Descriptor.model_validate(layer)
    checks = LayerChecks(diff_id, limit_bytes)
    with ExitStack() as stack:
        if place["file"] is not None:
            # not hashed here: that it is the right layer shows by its diff_id
            raw = stack.enter_context(open_regular(Path(place["file"]), what=f"blob `{descriptor.digest}`"))
            stream = sized(raw, descriptor)
        elif context.blocks is None:
            stream = stack.enter_context(LayoutStore.open(Path(place["store"]), read_only=True).open_blob(descriptor))
        else:
            # these blocks come out of a reader that has hashed them, the last one only if all were right: a second hash
            # here would find nothing that the first has not found
            stream = cast(IO[bytes], HashedBefore(cast(IO[bytes], BlockStream(context.blocks)), descriptor))
        observer = None
        if facts is not None:
            what = f"layer `{descriptor.digest}`"
            observer = stack.enter_context(
                layer_observer(what=what, max_entries=facts["max_entries"], workers=context.workers)
            )
        observers = [] if observer is None else [observer]
        if packing is None:
            read = inspect_layer(stream, descriptor, checks=checks, observers=observers, emit=context.emit)
        else:
            how = {name: packing[name] for name in ("kind", "level", "long", "threads", "steps_back")}
            read = recompress_layer(
                stream,
                descriptor,
                checks=checks,
                compression=Compression(**how),
                into=LayoutStore.open(Path(packing["into"])),
                observers=observers,
                emit=context.emit,
            )
        answer = {"descriptor": _document(read.descriptor), "unpacked_bytes": read.unpacked_bytes, "unread": None}
        if observer is not None and facts is not None:
            try:
                FactsCache(Path(facts["folder"])).keep(diff_id, observer.result()[1])
            except UnreadLayer as unread:
                # an engine may take it, and what was recompressed is right all the same
                answer["unread"] = [unread.message, unread.hint]
    return answer


def _document(descriptor: Descriptor) -> dict[str, Any]:
    return descriptor.model_dump(by_alias=True, exclude_none=True)
