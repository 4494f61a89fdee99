"""The step catalogue where a command of the far side needs it: a copy there, or what travelled with the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from airferry.bundle.artifacts import COPY_AGAIN
from airferry.bundle.receipt import Receipt, find_receipt, names_receipt
from airferry.bundle.verify import Bundle, expect_outside, open_bundle
from airferry.defaults import CATALOGUE_FOLDER
from airferry.errors import IntegrityError, RegistryError, UsageError
from airferry.events import Emit, silent
from airferry.host import files, locks
from airferry.jobs.extract import Extracted, expect_ours, extract_artifact, holds_catalogue, unpack_catalogue
from airferry.jobs.profile import FoundSite, warn_of_another_site
from airferry.oci.documents import Descriptor
from airferry.oci.ports import Source
from airferry.oci.reference import parse_reference
from airferry.plan.catalogue import Catalogue, catalogue_at
from airferry.registry.client import ClientOptions, open_clients
from airferry.registry.source import RegistrySource

ELSEWHERE = "give the bundle with `--bundle`, or a copy of the catalogue with `--source`"


@dataclass(frozen=True, slots=True)
class CatalogueSource:
    """Where the catalogue is taken from: `source`, a copy of it, else the bundle, else the registry of the receipt.

    `steps` is the folder of its steps, where neither bundle nor receipt says it and the copy leaves it open. `root` is
    the digest that bundle and receipt must be of.
    """

    source: Path | None = None
    bundle: Path | None = None
    steps: str | None = None
    root: str | None = None

    def find(self, receipt: Path | None, *, options: ClientOptions | None = None, emit: Emit = silent) -> Whereabouts:
        """Open what is named, and return where the catalogue may be taken from.

        Raises:
            UsageError: there is no such bundle.
            IntegrityError: it is not a receipt, or one of another bundle than `root` or `bundle` names.
        """
        opened = open_bundle(self.bundle, root=self.root) if self.bundle is not None else None
        if opened is not None and self.bundle is not None:
            opened.warn_beside(self.bundle, emit)
        root = opened.root if opened else self.root
        held = find_receipt(receipt, root=root, emit=emit) if receipt is not None else None
        if held is not None:
            options = held.reached_with(options or ClientOptions())
        return Whereabouts(self.source, self.steps, opened, held, options, emit)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a command may take the catalogue from, the first that there is: `source`, bundle, or registry.

    `steps` and `package` say where its steps are, if neither bundle nor receipt does.
    """

    source: Path | None = None
    steps: str | None = None
    bundle: Bundle | None = None
    receipt: Receipt | None = None
    options: ClientOptions | None = None
    emit: Emit = silent

    def at(self, root: Path) -> Catalogue:
        """Return the catalogue at a folder, its steps where it is known that they are."""
        named = _named(self.bundle, self.receipt)
        if self.steps is None and named is not None:
            return catalogue_at(root, steps=named.steps, package=named.package)
        # neither says it where the bundle carries no catalogue, or the registry took none: then the copy tells
        known = {target.partition(":")[0] for target in self.receipt.steps} if self.receipt is not None else set()
        return catalogue_at(root, steps=self.steps, holding=known)

    def expect(self, out: Path) -> None:
        """Raise what `kept_in` would, as far as that is known without fetching anything."""
        if self.source is not None:
            self.at(self.source)
            return
        with _opened(self):
            expect_ours(out / CATALOGUE_FOLDER)

    def kept_in(self, out: Path) -> Catalogue:
        """Return the catalogue for files that refer to it: `source`, else `catalogue` below `out`, extracted there.

        Raises:
            UsageError: there is none, or something else lies in that folder.
            IntegrityError: what travelled is damaged or hostile.
            RegistryError: the registry does not hand it over.
        """
        if self.source is not None:
            return self.at(self.source)
        if self._lies_in(out / CATALOGUE_FOLDER):
            return self.at(out / CATALOGUE_FOLDER)
        with _opened(self) as (source, descriptor):
            return self.at(extract_artifact(source, descriptor, out / CATALOGUE_FOLDER).path)

    @contextmanager
    def open(self, *, beside: Path | None = None) -> Iterator[Catalogue]:
        """Give the catalogue for reading: `source`, else what `kept_in(beside)` left, else extracted for this block.

        Raises:
            AirferryError: as `kept_in` raises.
        """
        if self.source is not None:
            yield self.at(self.source)
            return
        if beside is not None and self._lies_in(beside / CATALOGUE_FOLDER):
            yield self.at(beside / CATALOGUE_FOLDER)
            return
        with (
            _opened(self) as (source, descriptor),
            locks.own_scratch(files.cache_directory() / "scratch") as scratch,
        ):
            root = files.ensure_directory(scratch / CATALOGUE_FOLDER)
            unpack_catalogue(source, descriptor, root, scratch=scratch)
            yield self.at(root)

    def _lies_in(self, folder: Path) -> bool:
        """Tell whether a folder is, unchanged, the catalogue that would be fetched: then no registry is asked."""
        named = _named(self.bundle, self.receipt)
        return named is not None and holds_catalogue(folder, named.digest)


@dataclass(frozen=True, slots=True)
class _Named:
    digest: str
    steps: str
    package: str


def _named(bundle: Bundle | None, receipt: Receipt | None) -> _Named | None:
    if bundle is not None and (entry := bundle.manifest.catalogue) is not None:
        return _Named(entry.digest, entry.steps, entry.package)
    if receipt is not None and (held := receipt.catalogue) is not None:
        return _Named(parse_reference(held.pinned).digest or "", held.steps, held.package)
    return None


def extract_catalogue(
    source: Path,
    destination: Path,
    *,
    root: str | None = None,
    site: FoundSite | None = None,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> Extracted:
    """Extract the catalogue of a bundle, or of the load that a receipt names, into an absent or empty folder.

    What an earlier extraction left there is replaced if it is unchanged. A warning says where the `site` that the
    options are from does not fit the receipt.

    Raises:
        UsageError: there is no bundle, no catalogue in it, or the folder holds something else.
        IntegrityError: the bundle is another than `root` names, or the catalogue is damaged or hostile.
        RegistryError: the registry does not hand it over.
        HostError: the disk is full, or the folder not writable.
    """
    if names_receipt(source):
        if root is not None:
            raise UsageError("`--root` requires a bundle, but a receipt was given", hint="name the bundle")
        held = find_receipt(source, emit=emit)
        warn_of_another_site(site, held, emit=emit)
        places = Whereabouts(receipt=held, options=held.reached_with(options or ClientOptions()), emit=emit)
    else:
        bundle = open_bundle(source, root=root)
        bundle.warn_beside(source, emit)
        expect_outside(destination, bundle.store.path)
        places = Whereabouts(bundle=bundle, options=options, emit=emit)
    with _opened(places, elsewhere="give the bundle instead of the receipt") as (opened, descriptor):
        return extract_artifact(opened, descriptor, destination)


@contextmanager
def _opened(places: Whereabouts, *, elsewhere: str = ELSEWHERE) -> Iterator[tuple[Source, Descriptor]]:
    bundle, receipt = places.bundle, places.receipt
    named = _named(bundle, receipt)
    if named is None:
        if bundle is None and receipt is None:
            raise UsageError("no catalogue given, and no bundle or receipt to take it from", hint=ELSEWHERE)
        if bundle is None:
            raise UsageError(
                "the receipt's bundle contains no catalogue, or its load left it out of the registry",
                hint="give the bundle with `--bundle`, or a copy with `--source DIR`, such as the folder "
                f"`{CATALOGUE_FOLDER}` that `load --jobs` wrote; the launcher image has one in its working directory",
            )
        raise UsageError(
            "this bundle contains no catalogue: it was too large, or the bundle was made by an older airferry",
            hint="give a copy of it with `--source DIR`; the launcher image has one in its working directory",
        )
    if bundle is not None and bundle.manifest.catalogue is not None:
        for descriptor in bundle.artifacts:
            if descriptor.digest == named.digest:
                yield bundle.store, descriptor
                return
        raise IntegrityError(
            f"the bundle's manifest names the catalogue `{named.digest}`, which is not in the bundle", hint=COPY_AGAIN
        )
    assert receipt is not None
    assert receipt.catalogue is not None
    with ExitStack() as stack:
        reference = parse_reference(receipt.catalogue.pinned)
        try:
            clients = stack.enter_context(open_clients(places.options or ClientOptions(), emit=places.emit))
            registry = RegistrySource(clients(reference.registry), reference.repository)
            descriptor = registry.resolve(reference.target)
        except RegistryError as error:
            hint = f"{error.hint}; or {elsewhere}" if error.hint else elsewhere
            raise error.reworded(error.message, hint=hint) from error
        yield registry, descriptor
