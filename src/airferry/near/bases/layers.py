"""The layers of bases on their way into bundles: each read once, checked, recompressed, and kept for later bundles.

What a layer becomes depends on its uncompressed content and the encoder alone, so the cache is keyed by these. Bundles
get hard links; where cache and bundle are on different file systems nothing is kept, so that nothing is stored twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from airferry.config import CompressionChoice
from airferry.errors import IntegrityError
from airferry.events import Emit, silent
from airferry.host import files
from airferry.host.locks import Thing, making
from airferry.host.records import Records, as_noted
from airferry.host.workers.work import IN_PLACE, Running, Workers
from airferry.near.bases.reading import FactsWanted, LayerReading
from airferry.oci.copy import copy_blob
from airferry.oci.documents import Descriptor
from airferry.oci.layers import (
    DEFAULT_LIMIT_BYTES,
    MEDIA_TYPES,
    Compression,
    LayerResult,
    layer_kind,
)
from airferry.oci.layout import LayoutStore
from airferry.rootfs.layers import UnreadLayer

# What a layer keeps busy while nothing else runs, measured: it inflates at 0.4 to 0.5 GB/s on one core, is hashed twice
# by half of another, and compressed by two. More layers at a time slow the largest down, which ends last.
READING_CORES = 3
PACKING_CORES = 4


class BaseLayers:
    """Carries layers from the cache of bases into bundles. Safe to use from threads and processes."""

    def __init__(
        self,
        bases: LayoutStore,
        cache: Path,
        *,
        compression: Compression,
        output: Path,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        workers: Workers = IN_PLACE,
        emit: Emit = silent,
    ) -> None:
        """`bases` holds the layers as they came, `output` is where bundles will be, `cache` what is kept for later."""
        self.workers = workers
        self._bases = bases
        self._records = Records(cache / "layers" / "records")
        self._linkable = _same_file_system(cache, output)
        self._kept = LayoutStore.create(cache / "layers", private=True) if self._linkable else None
        self.compression = compression
        self._limit_bytes = limit_bytes
        self.emit = emit
        self._cache = cache
        self._read_now: set[str] = set()

    def carry(self, descriptor: Descriptor, diff_id: str, *, into: LayoutStore) -> LayerResult:
        """Bring a layer into a bundle in the wanted compression, and return what it is there.

        A layer that this or an earlier run has read is not inflated again: it is hashed once and linked.

        Raises:
            IntegrityError: the layer is not what the base's manifest or config says.
        """
        with self._making(descriptor):
            if self._stays(descriptor):
                result = self._checked(descriptor, diff_id)
                self._link(self._bases, into, descriptor)
                return result
            if self._kept is None:
                return self._recompress(descriptor, diff_id, into=into)
            result = self._known(descriptor, diff_id) or self._recompress(descriptor, diff_id, into=self._kept)
            try:
                self._link(self._kept, into, result.descriptor)
            except IntegrityError:
                # the cache is damaged, the base it was made from need not be; the new blob takes the place of the old
                result = self._recompress(descriptor, diff_id, into=self._kept)
                self._link(self._kept, into, result.descriptor)
            return result

    @contextmanager
    def observing(
        self,
        descriptor: Descriptor,
        diff_id: str,
        facts: FactsWanted | None,
        *,
        comes_by: bool = False,
        file: Path | None = None,
    ) -> Iterator[Running]:
        """Begin to look at a layer's uncompressed bytes; what has to be done to carry it is done in the same pass.

        A layer on its way into the cache is read from the `file` that it comes from, or `comes_by`, and what is given
        takes its bytes; otherwise it is read from the cache. Its result, which has to be asked for, is a `LayerResult`.

        Raises:
            IntegrityError: the layer is not what the base's manifest or config says.
            UnreadLayer: not all of it can be read here, and an engine may take it.
        """
        with self._making(descriptor):
            unchanged = self._stays(descriptor) or self._kept is None or self._known(descriptor, diff_id) is not None
            into = None if unchanged else self._kept
            asked = self._asked(descriptor, diff_id, into=into, facts=facts, file=file)
            with self._reading(asked, comes_by=comes_by) as reading:
                yield reading

    @property
    def at_once(self) -> int:
        """How many layers are worth being read at a time."""
        return self.workers.at_once(READING_CORES if self.compression.kind == "preserve" else PACKING_CORES)

    def expected(self, descriptor: Descriptor, diff_id: str) -> tuple[Descriptor, bool]:
        """Return what a layer will be in a bundle, and whether it will be a link, which takes no extra space.

        A layer that is not recompressed yet is assumed to become no smaller.
        """
        if self._stays(descriptor):
            return descriptor, self._linkable
        known = self._known(descriptor, diff_id)
        return (descriptor, False) if known is None else (known.descriptor, True)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _making(self, descriptor: Descriptor) -> AbstractContextManager[None]:
        """Hold what a layer becomes: it is made once for all bundles of this user."""
        name = f"{descriptor.digest} {self.compression.text}"
        doing = f"reading layer `{descriptor.digest}`"
        return making(self._cache, Thing.LAYER, name, doing=doing, emit=self.emit)

    def _link(self, store: LayoutStore, into: LayoutStore, descriptor: Descriptor) -> None:
        copy_blob(store, into, descriptor, link=True, verified=descriptor.digest in self._read_now)

    def _stays(self, descriptor: Descriptor) -> bool:
        return self.compression.kind in ("preserve", layer_kind(descriptor.media_type))

    def _checked(self, descriptor: Descriptor, diff_id: str) -> LayerResult:
        """Return a layer that keeps its bytes; its diff_id is checked once, and that is noted."""
        note = self._records.recall(_blob_key(descriptor))
        known = as_noted(note, lambda note: (note["diff_id"], int(note["unpacked_bytes"])))
        if known is not None and known[0] == diff_id:
            return _unchanged(descriptor, diff_id, known[1])
        with self._reading(self._asked(descriptor, diff_id)) as reading:
            return reading.result()

    def _recompress(self, descriptor: Descriptor, diff_id: str, *, into: LayoutStore) -> LayerResult:
        with self._reading(self._asked(descriptor, diff_id, into=into)) as reading:
            return reading.result()

    def _asked(
        self,
        descriptor: Descriptor,
        diff_id: str,
        *,
        into: LayoutStore | None = None,
        facts: FactsWanted | None = None,
        file: Path | None = None,
    ) -> LayerReading:
        """Return what is to be done with a layer, which is recompressed into a store if one is given."""
        return LayerReading(
            descriptor,
            diff_id,
            store=self._bases.path,
            limit_bytes=self._limit_bytes,
            compression=self.compression,
            into=None if into is None else into.path,
            facts=facts,
            file=file,
        )

    @contextmanager
    def _reading(self, asked: LayerReading, *, comes_by: bool = False) -> Iterator[_Reading]:
        work = asked.work(threads=self.workers.threads, comes_by=comes_by)
        with self.workers.begin(work, emit=self.emit) as running:
            yield _Reading(self, asked, running)

    def note(self, asked: LayerReading, result: LayerResult) -> None:
        """Remember what came of reading a layer."""
        self._records.remember(
            _blob_key(asked.descriptor), {"diff_id": result.diff_id, "unpacked_bytes": result.unpacked_bytes}
        )
        if asked.into is None:
            self._read_now.add(asked.descriptor.digest)
        elif self._kept is not None and asked.into == self._kept.path:
            self._read_now.add(result.descriptor.digest)
            self._records.remember(
                self._packed_key(asked.diff_id),
                {
                    "descriptor": result.descriptor.model_dump(by_alias=True, exclude_none=True),
                    "unpacked_bytes": result.unpacked_bytes,
                },
            )

    def _known(self, descriptor: Descriptor, diff_id: str) -> LayerResult | None:
        """Return the layer as an earlier pass has recompressed it, if that is still there."""
        known = as_noted(self._records.recall(self._packed_key(diff_id)), noted_layer)
        if known is None or self._kept is None or not self._kept.has_blob(known[0]):
            return None
        return LayerResult(known[0], diff_id, known[1], descriptor)

    def _packed_key(self, diff_id: str) -> dict[str, Any]:
        return {"diff_id": diff_id, **self.compression.to_key()}


class _Reading:
    """A layer that is being read: what is to be remembered of it is, once it was right."""

    def __init__(self, layers: BaseLayers, asked: LayerReading, running: Running) -> None:
        self._layers = layers
        self._asked = asked
        self._running = running

    def write(self, data: bytes) -> None:
        self._running.write(data)

    def result(self) -> LayerResult:
        answer = self._running.result()
        result = self._asked.result(answer)
        self._layers.note(self._asked, result)
        if answer["unread"] is not None:
            message, hint = answer["unread"]
            raise UnreadLayer(message, hint=hint)
        return result


def compression_of(choice: CompressionChoice) -> Compression:
    """Return how layers are compressed, as a configuration says it."""
    return Compression(choice.kind, choice.level, choice.long)


def _blob_key(descriptor: Descriptor) -> dict[str, Any]:
    return {"blob": descriptor.digest}


def _unchanged(descriptor: Descriptor, diff_id: str, unpacked_bytes: int) -> LayerResult:
    media_type = MEDIA_TYPES[layer_kind(descriptor.media_type)]
    kept = Descriptor(media_type=media_type, digest=descriptor.digest, size=descriptor.size)
    return LayerResult(kept, diff_id, unpacked_bytes, descriptor)


def _same_file_system(cache: Path, output: Path) -> bool:
    there = output
    while not there.exists():
        there = there.parent
    return files.ensure_directory(cache).stat().st_dev == there.stat().st_dev


def noted_layer(note: Mapping[str, Any]) -> tuple[Descriptor, int]:
    """Return the descriptor and the unpacked size of a layer that an earlier run made; see `as_noted`."""
    return Descriptor.model_validate(note["descriptor"]), int(note["unpacked_bytes"])
