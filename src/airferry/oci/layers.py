"""The layer pipeline: read, verify, inflate, observe, recompress, hash, in stages that overlap and hold no layer.

Works on streams only: no layer is ever held in memory or unpacked to a folder. A layer's diff_id (the digest of its
uncompressed tar) is the same on both sides of it (image-spec, *config.md*, "Layer DiffID").
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any, Literal

import zstandard

from airferry.errors import IntegrityError
from airferry.events import Emit, silent
from airferry.host.progress import Meter
from airferry.host.threads import Pipeline, usable_cores
from airferry.oci.codecs import (
    DEFAULT_GZIP_LEVEL,
    DEFAULT_ZSTD_LEVEL,
    ZSTD_JOB_BYTES,
    exact_blocks,
    gzip_blocks,
    inflate,
    zstd_blocks,
    zstd_memory_bytes,
)
from airferry.oci.documents import (
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_TAR,
    FOREIGN_LAYERS,
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    Descriptor,
)
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import blocks
from airferry.oci.streams import verifying

CompressionKind = Literal["zstd", "gzip", "none"]
Observer = Callable[[bytes], None]

MEDIA_TYPES: dict[CompressionKind, str] = {"zstd": LAYER_ZSTD, "gzip": LAYER_GZIP, "none": LAYER_TAR}
KINDS: dict[str, CompressionKind] = {
    LAYER_ZSTD: "zstd",
    LAYER_GZIP: "gzip",
    DOCKER_LAYER_GZIP: "gzip",
    LAYER_TAR: "none",
    DOCKER_LAYER_TAR: "none",
}
KINDS |= {foreign: KINDS[plain] for foreign, plain in FOREIGN_LAYERS.items()}
DEFAULT_LIMIT_BYTES = 1 << 40
MAX_THREADS = 8
PACKING_NICENESS = 5
_LEVELS = {"zstd": DEFAULT_ZSTD_LEVEL, "gzip": DEFAULT_GZIP_LEVEL}


def _default_threads() -> int:
    return min(usable_cores(), MAX_THREADS)


@dataclass(frozen=True, slots=True)
class Compression:
    """How layers are compressed. `preserve` keeps the blobs of a base; `level` None is the kind's default.

    With `long`, zstd looks for matches in the last 128 MiB. The bytes that come out depend on kind, level and `long`,
    never on the number of threads. With `steps_back` these let the threads of other layers that inflate go first, where
    more layers are read at a time than there are cores for.
    """

    kind: Literal["zstd", "gzip", "none", "preserve"] = "zstd"
    level: int | None = None
    long: bool = False
    threads: int = field(default_factory=_default_threads)
    steps_back: bool = False

    def matching(self, media_types: Iterable[str]) -> Compression:
        """Return what new layers on top of layers of these types get, so that all have one compression.

        Raises:
            IntegrityError: `preserve` is asked for layers of several kinds.
        """
        if self.kind != "preserve":
            return self
        kinds = {layer_kind(media_type) for media_type in media_types}
        if len(kinds) > 1:
            raise IntegrityError(
                "the layers of the base have different compressions, which some importers misread: "
                + ", ".join(sorted(kinds)),
                hint="use `compression: zstd` or `gzip` instead of `preserve`",
            )
        return replace(self, kind=kinds.pop() if kinds else "zstd")

    @property
    def text(self) -> str:
        """How it is named to people, such as `zstd 3`; the level is said where the kind has one."""
        level = _LEVELS.get(self.kind) if self.level is None else self.level
        return self.kind + (f" {level}" if level is not None else "") + (", long" if self.long else "")

    def to_key(self) -> dict[str, Any]:
        """Return what decides which bytes a compressed layer has, as plain data for keys of caches and journals.

        The library counts too, and its mode.
        """
        key = {
            "kind": self.kind,
            "level": _LEVELS.get(self.kind) if self.level is None else self.level,
            "encoder": self._encoder(),
        }
        return key | {"long": True} if self.long else key

    @property
    def memory_bytes(self) -> int:
        """About how much memory compressing takes."""
        if self.kind != "zstd":
            return 0
        level = DEFAULT_ZSTD_LEVEL if self.level is None else self.level
        return zstd_memory_bytes(level=level, threads=max(1, self.threads), long=self.long)

    def _encoder(self) -> str:
        if self.kind == "zstd":
            version = ".".join(str(part) for part in zstandard.ZSTD_VERSION)
            return f"zstd {version}, zstandard {zstandard.__version__}, threads, jobs of {ZSTD_JOB_BYTES}"
        return f"zlib {zlib.ZLIB_RUNTIME_VERSION}, blocks" if self.kind == "gzip" else self.kind


@dataclass(frozen=True, slots=True)
class LayerChecks:
    """What a layer is held against beyond its descriptor: its `diff_id` where that is known, and its unpacked size."""

    diff_id: str | None
    limit_bytes: int = DEFAULT_LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class LayerResult:
    """A layer that a store holds now. `original` is the layer it was made from, if it came as a blob."""

    descriptor: Descriptor
    diff_id: str
    unpacked_bytes: int
    original: Descriptor | None = None


def layer_kind(media_type: str) -> CompressionKind:
    """Return how layers of a media type are compressed.

    Raises:
        IntegrityError: it is not a layer type of OCI or Docker that can be carried.
    """
    kind = KINDS.get(media_type)
    if kind is None:
        raise IntegrityError(
            f"`{media_type}` is not a layer type that airferry supports",
            hint="layers are tar, gzip or zstd; encrypted layers cannot be carried",
        )
    return kind


def recompress_layer(
    stream: IO[bytes],
    descriptor: Descriptor,
    *,
    checks: LayerChecks,
    compression: Compression,
    into: LayoutStore,
    observers: Iterable[Observer] = (),
    emit: Emit = silent,
) -> LayerResult:
    """Carry a layer from a stream into a store in the wanted compression, and check all of it on the way.

    The compressed bytes are checked against the descriptor, the uncompressed ones as `checks` says. A layer that has
    the wanted compression already keeps its bytes, and is checked all the same; a store that holds it is not written.
    The store changes only when everything was right.

    Raises:
        IntegrityError: digest, size, compression, diff_id or unpacked size are not what was declared.
    """
    kind = layer_kind(descriptor.media_type)
    what = f"layer `{descriptor.digest}`"
    keep = compression.kind in ("preserve", kind)
    with into.new_blob() as writer, Pipeline() as pipeline:
        tally = _Tally(what, observers, checks.limit_bytes)
        progress = Meter(what, descriptor.size, emit)
        packed = progress.watch(blocks(verifying(stream, descriptor, what=what)))
        if keep:
            packed = _tee(packed, None if into.has_blob(descriptor) else writer.write)
        unpacked = pipeline.stage(inflate(pipeline.stage(packed), kind, what=what))
        counted = tally.watch(unpacked)
        if keep:
            for _block in counted:
                pass
        else:
            for block in pipeline.stage(_compress(pipeline.stage(counted), compression)):
                writer.write(block)
        _check_diff_id(tally, checks.diff_id, what=what, descriptor=descriptor)
        progress.finish()
        if keep:
            result = Descriptor(media_type=MEDIA_TYPES[kind], digest=descriptor.digest, size=descriptor.size)
            if not into.has_blob(descriptor):
                writer.commit()
        else:
            digest, size = writer.commit()
            result = Descriptor(media_type=_media_type(compression), digest=digest, size=size)
        return LayerResult(result, tally.digest(), tally.total, descriptor)


def inspect_layer(
    stream: IO[bytes],
    descriptor: Descriptor,
    *,
    checks: LayerChecks,
    observers: Iterable[Observer] = (),
    emit: Emit = silent,
) -> LayerResult:
    """Read a layer once, check it as `recompress_layer` does, let observers see it, and store nothing.

    Raises:
        IntegrityError: digest, size, compression, diff_id or unpacked size are not what was declared.
    """
    kind = layer_kind(descriptor.media_type)
    what = f"layer `{descriptor.digest}`"
    with Pipeline() as pipeline:
        tally = _Tally(what, observers, checks.limit_bytes)
        progress = Meter(what, descriptor.size, emit)
        packed = pipeline.stage(progress.watch(blocks(verifying(stream, descriptor, what=what))))
        for _block in tally.watch(pipeline.stage(inflate(packed, kind, what=what))):
            pass
        _check_diff_id(tally, checks.diff_id, what=what, descriptor=descriptor)
        progress.finish()
    kept = Descriptor(media_type=MEDIA_TYPES[kind], digest=descriptor.digest, size=descriptor.size)
    return LayerResult(kept, tally.digest(), tally.total, descriptor)


def compress_layer(
    stream: IO[bytes] | Generator[bytes, None, None],
    *,
    compression: Compression,
    into: LayoutStore,
    observers: Iterable[Observer] = (),
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
) -> LayerResult:
    """Store an uncompressed tar, from a stream or a generator of blocks, as a layer.

    `compression` must be settled: where `preserve` was asked for, give `compression.matching(…)`.

    Raises:
        IntegrityError: the layer is larger than `limit_bytes`.
    """
    source = exact_blocks(stream) if isinstance(stream, Generator) else blocks(stream)
    with into.new_blob() as writer, Pipeline() as pipeline:
        tally = _Tally("the new layer", observers, limit_bytes)
        counted = tally.watch(pipeline.stage(source))
        for block in pipeline.stage(_compress(pipeline.stage(counted), compression)):
            writer.write(block)
        digest, size = writer.commit()
        descriptor = Descriptor(media_type=_media_type(compression), digest=digest, size=size)
        return LayerResult(descriptor, tally.digest(), tally.total)


def _media_type(compression: Compression) -> str:
    if compression.kind == "preserve":
        raise ValueError("`preserve` says nothing about a new layer: settle it with `Compression.matching`")
    return MEDIA_TYPES[compression.kind]


def _compress(source: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    _media_type(compression)
    packed = _packed(source, compression)
    return _stepping_back(packed) if compression.steps_back else packed


def _stepping_back(packed: Iterator[bytes]) -> Iterator[bytes]:
    # of this thread and those that zstd starts from it: Linux keeps niceness for each thread (nice(2)). A layer is
    # inflated by one thread, and with a fair share of busy cores the largest layer would take half as long again
    thread = threading.get_native_id()
    # from what it has: under `nice airferry`, an ordinary user may not go back to less
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + PACKING_NICENESS)
    yield from packed


def _packed(source: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    threads = max(1, compression.threads)
    if compression.kind == "zstd":
        level = DEFAULT_ZSTD_LEVEL if compression.level is None else compression.level
        return zstd_blocks(source, level=level, threads=threads, long=compression.long)
    if compression.kind == "gzip":
        level = DEFAULT_GZIP_LEVEL if compression.level is None else compression.level
        return gzip_blocks(source, level=level, threads=threads)
    return iter(source)


def _tee(source: Iterable[bytes], write: Callable[[bytes], int] | None) -> Iterator[bytes]:
    for block in source:
        if write is not None:
            write(block)
        yield block


class _Tally:
    """Digest and size of the uncompressed bytes, with observers and a limit."""

    def __init__(self, what: str, observers: Iterable[Observer], limit_bytes: int) -> None:
        self._what = what
        self._observers = tuple(observers)
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self.total = 0

    def watch(self, source: Iterable[bytes]) -> Iterator[bytes]:
        for block in source:
            self.total += len(block)
            if self.total > self._limit_bytes:
                raise IntegrityError(
                    f"{self._what} unpacks to more than the limit of {self._limit_bytes} bytes",
                    hint="if the layer is expected to be that large, raise `limits.layer_bytes` in airgap.yaml",
                )
            self._hash.update(block)
            for observer in self._observers:
                observer(block)
            yield block

    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _check_diff_id(tally: _Tally, diff_id: str | None, *, what: str, descriptor: Descriptor) -> None:
    if diff_id is not None and tally.digest() != diff_id:
        raise IntegrityError(
            f"{what} has diff_id `{tally.digest()}`, its image's config says `{diff_id}`",
            digest=descriptor.digest,
            diff_id=diff_id,
            observed=tally.digest(),
        )
