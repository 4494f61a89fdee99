"""Facts about bases that are read, not run: their merged trees, and what their Pythons are like.

A layer is read once for both: its facts are collected in the same pass that recompresses it, and kept in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from airferry.errors import HostError
from airferry.host.locks import Thing, making
from airferry.host.threads import NamedLocks, parallel_map
from airferry.host.workers.work import Running
from airferry.near.assemble.direct import Known, NotKnown
from airferry.near.bases.fetch import BaseImage
from airferry.near.bases.layers import BaseLayers
from airferry.near.bases.reading import FactsWanted
from airferry.near.probe.answers import ProbeResult
from airferry.near.probe.static import static_probe
from airferry.oci.documents import Descriptor
from airferry.oci.platform import Platform
from airferry.rootfs.layers import MAX_LAYER_ENTRIES, FactsCache, LayerFacts, UnreadLayer
from airferry.rootfs.python import StaticallyUnknown
from airferry.rootfs.view import RootView


class Knowledge:
    """Looks at bases whose layers are in the cache. Safe to use from threads and processes."""

    def __init__(self, layers: BaseLayers, cache: Path, *, max_entries: int = MAX_LAYER_ENTRIES) -> None:
        """`layers` reads them, `cache` keeps the facts."""
        self.layers = layers
        self._facts = FactsCache(cache / "facts")
        self._wanted = FactsWanted(cache / "facts", max_entries)
        self._max_entries = max_entries
        self._cache = cache
        self._lock = NamedLocks()
        self._views: dict[str, RootView] = {}
        self._learnt: dict[str, LayerFacts] = {}
        self._unread: dict[str, UnreadLayer] = {}

    def has_view(self, base: BaseImage) -> bool:
        """Tell whether the merged root of a base is known already."""
        return base.manifest.digest in self._views

    def view(self, base: BaseImage) -> RootView:
        """Return the merged root of a base; layers that were not read yet are read once.

        Raises:
            UnreadLayer: a layer cannot be read here, and an engine may take it.
            IntegrityError: a layer is not what the manifest or config says, or holds what cannot be unpacked.
        """
        digest = base.manifest.digest
        with self._lock(digest):
            if digest not in self._views:
                if digest in self._unread:
                    raise self._unread[digest]
                layers = list(zip(base.layers, base.config.rootfs.diff_ids, strict=True))
                # the largest first, so that none of them is left to one worker at the end
                order = sorted(range(len(layers)), key=lambda number: -layers[number][0].size)
                read = parallel_map(lambda number: self._facts_or_not(*layers[number]), order, jobs=self.layers.at_once)
                found = [one for _number, one in sorted(zip(order, read, strict=True), key=lambda pair: pair[0])]
                facts = [one for one in found if isinstance(one, LayerFacts)]
                # raised when all layers were looked at, as an engine is to get none that must not be unpacked
                for one in found:
                    if isinstance(one, UnreadLayer):
                        self._unread[digest] = one
                        raise one
                self._views[digest] = RootView(facts, max_entries=self._max_entries)
            return self._views[digest]

    def read(self, base: BaseImage) -> None:
        """Read a base for later questions. What an engine has to be asked about is said when it is asked.

        Raises:
            IntegrityError: see `view`.
        """
        with suppress(UnreadLayer):
            self.view(base)

    def probe(
        self,
        base: BaseImage,
        platform: Platform,
        *,
        python: str | None,
        modules: Iterable[str] = (),
        variables: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
    ) -> ProbeResult:
        """Return what the base's interpreter would answer, with some of its folders replaced by some of this host, and
        variables over those of the base's config.

        Raises:
            StaticallyUnknown: it cannot be told without running it.
            BuildError: the base has no such interpreter.
            IntegrityError: see `view`.
        """
        try:
            view = self.view(base)
        except UnreadLayer as unread:
            raise StaticallyUnknown(unread.message) from unread
        return static_probe(
            view.mounted(mounts) if mounts else view,
            base.config,
            modules=modules,
            python=python,
            platform=platform,
            variables=variables,
        )

    def look(self, base: BaseImage, platform: Platform, python: str | None, needs_python: bool) -> Known:
        """Return a base's tree, and its interpreter where that is needed.

        Raises:
            NotKnown: the interpreter cannot be told without running it, or a layer cannot be read here.
            IntegrityError: see `view`.
        """
        try:
            if not needs_python:
                return Known(self.view(base))
            return Known(self.view(base), self.probe(base, platform, python=python).python)
        except StaticallyUnknown as unknown:
            raise NotKnown(unknown.reason) from unknown
        except UnreadLayer as unread:
            raise NotKnown(unread.message) from unread

    @property
    def at_once(self) -> int:
        """How many layers are worth being read at a time."""
        return self.layers.at_once

    @contextmanager
    def learning(self, descriptor: Descriptor, diff_id: str, file: Path | None) -> Iterator[_Learning | None]:
        """Begin to do with a layer that is on its way into the cache what `view` would do with it later: read it, once.

        It is read from the file that it comes from, where there is one and work goes on by itself; else what is given
        takes its bytes. None is given where all of the layer is known.

        Raises:
            IntegrityError: see `view`.
        """
        with self._reading(descriptor, diff_id):
            if (known := self._facts.find(diff_id)) is not None:
                self._learnt[diff_id] = known
                yield None
                return
            own = file if self.layers.workers.are_apart else None
            fed = own is None
            with self.layers.observing(descriptor, diff_id, self._wanted, comes_by=fed, file=own) as running:
                yield _Learning(running, lambda: self._learn(diff_id), running.write if fed else None)

    def _learn(self, diff_id: str) -> None:
        # now, while other layers are still read: once all are, nothing else would be left to do meanwhile
        if (found := self._facts.find(diff_id)) is not None:
            self._learnt[diff_id] = found

    def _facts_or_not(self, descriptor: Descriptor, diff_id: str) -> LayerFacts | UnreadLayer:
        try:
            return self._layer_facts(descriptor, diff_id)
        except UnreadLayer as unread:
            return unread

    def _layer_facts(self, descriptor: Descriptor, diff_id: str) -> LayerFacts:
        with self._reading(descriptor, diff_id):
            known = self._learnt.pop(diff_id, None) or self._facts.find(diff_id)
            return self._read(descriptor, diff_id) if known is None else known

    def _reading(self, descriptor: Descriptor, diff_id: str) -> AbstractContextManager[None]:
        """Hold the facts of a layer: it is read for them once for all plans of this user."""
        doing = f"reading layer `{descriptor.digest}`"
        return making(self._cache, Thing.LAYER_FACTS, diff_id, doing=doing, emit=self.layers.emit)

    def _read(self, descriptor: Descriptor, diff_id: str) -> LayerFacts:
        with self.layers.observing(descriptor, diff_id, self._wanted) as running:
            running.result()
        found = self._facts.find(diff_id)
        if found is None:
            raise HostError(
                f"what layer `{descriptor.digest}` holds was noted in the cache, and is not there any more",
                hint="rerun; if this happens again, choose another folder with `AIRFERRY_CACHE`",
            )
        return found


class _Learning:
    """A layer that is read while it is fetched."""

    def __init__(self, running: Running, learn: Callable[[], None], feed: Callable[[bytes], None] | None) -> None:
        self.feed = feed
        self._running = running
        self._learn = learn

    def result(self) -> Any:
        result = self._running.result()
        self._learn()
        return result
