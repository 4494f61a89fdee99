"""A bundle into a private registry: verified, pushed by digest, audited, tagged last, with a receipt.

Follows the order that keeps a registry whole at every moment: nothing is sent before the bundle is verified, and no
tag moves before the registry holds all that it is to stand for. Nothing is written into the bundle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import airferry
from airferry.assets.staged import bundle_packs
from airferry.bundle.manifest import BundleManifest
from airferry.bundle.receipt import (
    LeftOut,
    Receipt,
    ReceiptAsset,
    ReceiptCatalogue,
    ReceiptImage,
    ReceiptTag,
    ReceiptTwin,
    write_receipt,
)
from airferry.bundle.twins import twin_of
from airferry.bundle.verify import Bundle, VerifyReport, find_layout, open_bundle, verify_bundle
from airferry.errors import IntegrityError, RegistryError, UsageError
from airferry.events import Emit, Warned, silent
from airferry.far.push import Pusher, PushResult, Shipment
from airferry.far.relocate import ARTIFACTS_REPOSITORY, Destination, parse_destination, relocate
from airferry.far.tags import TagMove, WantedTag, forget_journal, move_tags, plan_tags
from airferry.host import clock, files
from airferry.host.stages import stage
from airferry.oci.copy import read_closure
from airferry.oci.digest import digest_hex
from airferry.oci.documents import Descriptor, parse_manifest
from airferry.oci.reference import Reference
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.profile import keep_learned, read_profile
from airferry.registry.uploads import Limits, Uploader
from airferry.wording import counted

ARTIFACT_NAME = "artifact "


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load did, or with `dry_run` would do. `tags` are all tags, those that stay where they are too."""

    report: VerifyReport
    manifest: BundleManifest
    pushed: PushResult
    tags: tuple[TagMove, ...]
    receipt: Receipt
    dry_run: bool

    @property
    def moved_tags(self) -> tuple[TagMove, ...]:
        """The tags that moved, or would."""
        return tuple(move for move in self.tags if move.needed)


def load_bundle(
    path: Path,
    *,
    to: str,
    receipt_path: Path,
    root: str | None = None,
    maps: Mapping[str, str] | None = None,
    flatten: bool = False,
    dry_run: bool = False,
    options: ClientOptions | None = None,
    limits: Limits | None = None,
    emit: Emit = silent,
) -> LoadResult:
    """Load a bundle into `to`, `HOST[:PORT][/PREFIX]`, and write the receipt. Idempotent; an interrupted load resumes.

    The bundle is verified first, against `root` if given. With `dry_run` the registry is only asked, and nothing is
    written, the receipt neither. A second load sends no blob.

    Raises:
        UsageError: there is no bundle, no destination, or two images would collide.
        IntegrityError: the bundle is damaged, or the registry holds something else than it took.
        RegistryError: the registry does not answer, refuses, or lacks something; the message says what is missing.
    """
    options = options or ClientOptions()
    destination = parse_destination(to)
    expect_outside(receipt_path, find_layout(path))
    if not dry_run:
        expect_receipt_place(receipt_path)
    report = stage("verify", emit, lambda: verify_bundle(path, root=root, emit=emit))
    report.raise_if_wrong()
    bundle = open_bundle(path, root=report.root)
    places = place_images(bundle, destination, maps=maps, flatten=flatten)
    shipments = plan_shipments(bundle, destination, places)
    work = files.cache_directory() / "loads" / hashlib.sha256(str(destination).encode()).hexdigest()[:16]
    with (
        files.exclusive_lock(work / "lock", purpose=f"load into `{destination}`"),
        RegistryClient(destination.registry, options=options, emit=emit) as client,
    ):
        known = read_profile(destination.registry)
        mounts = known.mounts is not False
        journal = None if dry_run else work / "uploads.json"
        uploader = Uploader(client, limits=limits or known.limits(), journal=journal, mounts=mounts)
        pusher = Pusher(client, uploader, bundle.store, jobs=options.jobs, emit=emit, mounts=mounts)
        if dry_run:
            pushed = pusher.preview(shipments)
        else:
            try:
                pushed = stage("push", emit, lambda: _push(pusher, shipments))
            finally:
                keep_learned(known, uploader.limits, mounts=pusher.mounts)
            refused = _say_refused(pushed, destination, emit)
            shipments = [item for item in shipments if item.name not in refused]
            stage("audit", emit, lambda: pusher.audit(shipments))
        wanted = _wanted_tags(bundle, pusher, places, shipments)
        tags = plan_tags(wanted, receipt_path, root=bundle.root, jobs=options.jobs)
        receipt = _receipt(bundle, destination, places, tags, shipments, verified=root is not None)
        receipt = receipt.model_copy(update={"left_out": _left_out(pushed, places)})
        if not dry_run:
            sinks = {item.sink.repository: item.sink for item in wanted}
            stage("tag", emit, lambda: move_tags(tags, sinks, receipt_path, root=bundle.root))
            write_receipt(receipt, receipt_path)
            forget_journal(receipt_path)
    return LoadResult(report, bundle.manifest, pushed, tuple(tags), receipt, dry_run)


def expect_outside(written: Path, layout: Path) -> None:
    """Refuse to write into a bundle: a file that nothing in it names makes it damaged.

    Raises:
        UsageError: the path lies in the layout.
    """
    if written.resolve().is_relative_to(layout.resolve()):
        raise UsageError(
            f"`{written}` is inside the bundle `{layout}`; added files damage a bundle",
            hint="choose a path outside the bundle",
        )


def expect_receipt_place(path: Path) -> None:
    """Check that a receipt can be written to a path. Leaves nothing behind.

    Raises:
        UsageError: a folder is there.
        HostError: its folder is not writable.
    """
    if path.is_dir():
        raise UsageError(f"receipt `{path}` is a folder, expected a file", hint="give a file with `--receipt FILE`")
    files.expect_writable(path.parent)


def expected_receipt(
    bundle: Bundle, *, to: str, maps: Mapping[str, str] | None = None, flatten: bool = False
) -> Receipt:
    """Return the receipt that a load would write, as far as the bundle alone tells: no registry is asked.

    Raises:
        UsageError: no destination, or two images would collide.
        IntegrityError: the bundle is damaged.
    """
    destination = parse_destination(to)
    places = place_images(bundle, destination, maps=maps, flatten=flatten)
    return _receipt(bundle, destination, places, (), plan_shipments(bundle, destination, places), verified=False)


def _push(pusher: Pusher, shipments: Sequence[Shipment]) -> PushResult:
    try:
        return pusher.push(shipments)
    except RegistryError as error:
        unfinished = pusher.unfinished(shipments)
        optional = {item.name for item in shipments if item.optional}
        artifacts = sum(name.startswith(ARTIFACT_NAME) for name in unfinished)
        images = sum(name not in optional and not name.startswith(ARTIFACT_NAME) for name in unfinished)
        counts = [counted(number, noun) for number, noun in ((images, "image"), (artifacts, "artifact")) if number]
        what = f"not complete there yet: {' and '.join(counts)}" if counts else "manifests are missing"
        raise error.reworded(
            f"{error.message}; no tag was moved; {what}",
            hint=error.hint or "rerun: finished uploads are not repeated",
            missing=unfinished,
        ) from error


def place_images(
    bundle: Bundle, destination: Destination, *, maps: Mapping[str, str] | None = None, flatten: bool = False
) -> dict[str, Reference]:
    """Return where each image of a bundle goes; a Docker twin goes to the repository of its image.

    Raises:
        UsageError: two images would take one name, a map fits nothing, or a result is not a reference.
    """
    twins = bundle.twins
    images = [name for name in bundle.images if name not in twins]
    places = relocate(images, destination, maps=maps, flatten=flatten, whole=bundle.originals)
    taken = {str(place): name for name, place in places.items()}
    for name, image in twins.items():
        place = twin_of(places[image.reference])
        if (other := taken.setdefault(str(place), name)) != name:
            raise UsageError(
                f"`{other}` and `{name}` would both become `{place}`",
                hint=f"give one another name: `--map {other}=OTHER/NAME`",
            )
        places[name] = place
    return places


def _say_refused(pushed: PushResult, destination: Destination, emit: Emit) -> set[str]:
    """Warn about the optional shipments that the registry refused, and return their names."""
    if pushed.refused:
        emit(
            Warned(
                f"`{destination.registry}` refuses the Docker twins of its images ({len(pushed.refused)}), so they are "
                f"left out and all else is loaded: {pushed.refused[0].reason}",
                hint="enroot then gets the images themselves; `airferry check` tells whether it can import them",
            )
        )
    return {refused.item.name for refused in pushed.refused}


def _left_out(pushed: PushResult, places: Mapping[str, Reference]) -> tuple[LeftOut, ...]:
    return tuple(
        LeftOut(reference=str(places[one.item.name]), digest=one.item.descriptor.digest, reason=one.reason)
        for one in sorted(pushed.refused, key=lambda one: one.item.name)
    )


def plan_shipments(bundle: Bundle, destination: Destination, places: Mapping[str, Reference]) -> list[Shipment]:
    """Return all that goes to the registry: images, then artifacts, each to where its subject goes.

    Raises:
        IntegrityError: an artifact refers to content that is not in the bundle.
    """
    twins = bundle.twins
    shipments = [
        Shipment(name, places[name].repository, read_closure(bundle.store, descriptor), optional=name in twins)
        for name, descriptor in bundle.images.items()
    ]
    homes: dict[str, list[str]] = {}
    for item in shipments:
        for stored in item.closure.manifests:
            homes.setdefault(stored.descriptor.digest, []).append(item.repository)
    waiting = list(bundle.artifacts)
    while waiting:
        held: list[Descriptor] = []
        for descriptor in waiting:
            closure = read_closure(bundle.store, descriptor)
            subject = parse_manifest(closure.top.data).subject
            if subject is not None and subject.digest not in homes:
                held.append(descriptor)
                continue
            repositories = homes[subject.digest] if subject else [destination.repository(ARTIFACTS_REPOSITORY)]
            for repository in dict.fromkeys(repositories):
                shipments.append(Shipment(f"{ARTIFACT_NAME}{descriptor.digest}", repository, closure))
                homes.setdefault(descriptor.digest, []).append(repository)
        if len(held) == len(waiting):
            raise IntegrityError(f"artifact `{held[0].digest}` refers to content that is not in the bundle")
        waiting = held
    return shipments


def artifact_tag(bundle: Bundle, item: Shipment) -> str | None:
    """Return the tag of an artifact that refers to nothing, so that no garbage collection takes it; else None."""
    if not item.repository.endswith(ARTIFACTS_REPOSITORY):
        return None
    if item.descriptor.digest == bundle.manifest_descriptor.digest:
        return f"bundle-{digest_hex(bundle.root)[:16]}"
    for name, descriptor in bundle_packs(bundle).items():
        if descriptor.digest == item.descriptor.digest:
            return f"model-{name}"
    return f"artifact-{digest_hex(item.descriptor.digest)[:16]}"


def _wanted_tags(
    bundle: Bundle, pusher: Pusher, places: Mapping[str, Reference], shipments: Sequence[Shipment]
) -> list[WantedTag]:
    """Return the tags to set."""
    wanted = []
    for item in shipments:
        place = places.get(item.name)
        sink = pusher.sink(item.repository)
        tag = place.tag if place is not None else artifact_tag(bundle, item)
        if tag is not None:
            wanted.append(WantedTag(f"{sink}:{tag}", sink, tag, item.closure.top))
    return wanted


def _receipt(
    bundle: Bundle,
    destination: Destination,
    places: Mapping[str, Reference],
    tags: Sequence[TagMove],
    shipments: Sequence[Shipment],
    *,
    verified: bool,
) -> Receipt:
    previous = {move.reference: move.previous for move in tags}
    of_images = {str(place) for place in places.values()}
    groups = {group.name: group for group in bundle.manifest.execution_groups}
    twins = {
        item.name: ReceiptTwin(
            reference=str(places[item.name]),
            digest=item.descriptor.digest,
            previous_digest=previous.get(str(places[item.name])),
            pinned=str(places[item.name].with_digest(item.descriptor.digest)),
        )
        for item in shipments
        if item.optional
    }
    images: list[ReceiptImage] = []
    by_name: dict[str, str] = {}
    for entry in bundle.manifest.images:
        place = places[entry.reference]
        pinned = str(place.with_digest(entry.digest))
        before = previous.get(str(place))
        images.append(
            ReceiptImage(
                name=entry.name,
                role=entry.role,
                image=entry.image,
                reference=str(place),
                pinned=pinned,
                digest=entry.digest,
                previous_digest=before,
                platforms=tuple(entry.platforms),
                overlays=groups[entry.name].repo_overlays if entry.name in groups else (),
                env=groups[entry.name].env if entry.name in groups else {},
                distributions=groups[entry.name].distributions if entry.name in groups else {},
                docker_twin=twins.get(entry.docker_twin.reference) if entry.docker_twin else None,
            )
        )
        for name in (entry.image, entry.reference, entry.name):
            by_name.setdefault(name, pinned)
    artifacts = {
        f"{destination.registry}/{item.repository}@{item.descriptor.digest}"
        for item in shipments
        if item.name not in places
    }
    return Receipt(
        bundle_root=bundle.root,
        root_verified=verified,
        registry=str(destination),
        loaded_at=clock.rfc3339(clock.now_s()),
        airferry=airferry.__version__,
        images=tuple(images),
        steps={
            step: _pinned_image(by_name, step, image) for step, image in bundle.manifest.step_execution_images.items()
        },
        targets=tuple(dict.fromkeys(entry.target for entry in bundle.manifest.targets)),
        submit=bundle.manifest.submit,
        catalogue=_catalogue(bundle, destination, shipments),
        assets=tuple(
            ReceiptAsset(name=entry.name, kind=entry.kind, steps=entry.steps, target=entry.target)
            for entry in bundle.manifest.persistent_assets.assets
        ),
        artifacts=tuple(sorted(artifacts)),
        artifact_tags=tuple(
            ReceiptTag(reference=move.reference, digest=move.digest, previous_digest=move.previous)
            for move in sorted(tags, key=lambda move: move.reference)
            if move.reference not in of_images
        ),
    )


def _catalogue(bundle: Bundle, destination: Destination, shipments: Sequence[Shipment]) -> ReceiptCatalogue | None:
    if (entry := bundle.manifest.catalogue) is None:
        return None
    for item in shipments:
        if item.descriptor.digest == entry.digest:
            pinned = f"{destination.registry}/{item.repository}@{entry.digest}"
            return ReceiptCatalogue(pinned=pinned, steps=entry.steps, package=entry.package)
    return None


def _pinned_image(by_name: Mapping[str, str], step: str, image: str) -> str:
    if image not in by_name:
        raise IntegrityError(f"the manifest runs step `{step}` in image `{image}`, which is not in the bundle")
    return by_name[image]
