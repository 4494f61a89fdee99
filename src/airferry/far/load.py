"""A bundle into a private registry: verified, pushed by digest, audited, tagged last, with a receipt.

Follows the order that keeps a registry whole at every moment: nothing is sent before all documents of the bundle are
verified, no manifest before every blob that was sent was right, and no tag moves before the registry holds all that it
is to stand for. Each blob is read once, and hashed as it is sent. Nothing is written into the bundle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.bundle.manifest import BundleManifest
from airferry.bundle.receipt import Receipt, ReceiptBlobs, ReceiptConnection, read_receipt, write_receipt
from airferry.bundle.verify import Bundle, VerifyReport, expect_outside, find_layout, open_bundle, verify_opened
from airferry.config.submit import submit_command
from airferry.defaults import ARTIFACTS_REPOSITORY, OVERLAYS_FOLDER, PROBE_REPOSITORY
from airferry.errors import RegistryError, UsageError
from airferry.events import Emit, Notice, Warned, silent
from airferry.far.access import expect_access
from airferry.far.destinations import hold_destination
from airferry.far.foreseen import foresee, keep_taken
from airferry.far.push import RegistrySinks, audit, load_transfer, say_left_out, say_untagged
from airferry.far.receipts import left_out, make_receipt, receipt_name
from airferry.far.relocate import Destination, parse_destination
from airferry.far.shipments import ARTIFACT_NAME, artifact_tags, part_skipped, place_images, plan_shipments
from airferry.far.tags import (
    TagMove,
    WantedTag,
    expect_own_tags,
    move_tags,
    moved_by_others,
    plan_tags,
    say_where_from,
    tags_in_receipt,
)
from airferry.host import files
from airferry.host.canonical import plain_data
from airferry.host.progress import stage
from airferry.host.records import expect_cache
from airferry.oci.closure import RefusedShipment, Shipment
from airferry.oci.copy import Transfer
from airferry.oci.copying.report import CopyReport
from airferry.oci.ports import MissingContent
from airferry.oci.reference import Reference
from airferry.oci.streams import DamagedBlob, UnreadableBlob
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.failures import TooLarge, TransientRegistryError, rerun_helps
from airferry.registry.profile import RegistryProfile, keep_learned, read_profile
from airferry.registry.tls import fingerprints
from airferry.registry.uploads import Uploader
from airferry.wording import counted, size_text

OTHER_RECEIPT = "name another file with `--receipt FILE`; without it each load has its own"
MAX_FINGERPRINTS = 8  # a file of all public CAs says nothing about this registry


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """What a load did, or with `dry_run` would do. `tags` are all tags, those that stay where they are too.

    `foreseen` is what a load would meet at the registry, as far as that is known; only a dry run looks ahead.
    `audit` is how the registry's content was read back, `head` or `read`.
    """

    report: VerifyReport
    manifest: BundleManifest
    pushed: CopyReport
    tags: tuple[TagMove, ...]
    receipt: Receipt
    receipt_path: Path
    dry_run: bool
    foreseen: tuple[str, ...] = ()
    audit: str = "head"

    @property
    def moved_tags(self) -> tuple[TagMove, ...]:
        """The tags that moved, or would."""
        return tuple(move for move in self.tags if move.needed)

    @property
    def summary(self) -> str:
        """One line: what was sent, what was there before, and how many tags moved."""
        pushed = self.pushed
        return (
            f"{counted(pushed.sent_blobs, 'blob')} sent ({size_text(pushed.sent_bytes)}), {pushed.mounted_blobs} "
            f"mounted from another repository, {pushed.present_blobs} already present; "
            f"{counted(pushed.manifests, 'manifest')}, "
            f"{len(self.moved_tags)} of {counted(len(self.tags), 'tag')} moved"
            + (f"; {counted(len(self.receipt.left_out), 'part')} left out" if self.receipt.left_out else "")
        )

    @property
    def baked(self) -> bool:
        """Whether an image holds Git checkouts: its steps need a config that does not clone them."""
        return any(group.repo_overlays for group in self.manifest.execution_groups)

    def submit_commands(self, *, template: str | None = None) -> list[str]:
        """Return what submits each target, `EXECUTOR`, `CONFIG` and `PROFILE` being left to fill in.

        A step whose image holds Git checkouts takes the config that `airferry overlays` writes: that drops them from
        `run.env.mounts`, and no override of that key can, as overrides come after the profile and drop its storage too.
        `template` is the site's own command, in place of the bundle's.
        """
        groups = [group for group in self.manifest.execution_groups if group.repo_overlays]
        held = {name for group in groups for name in group.targets or group.steps}
        steps = self.receipt.steps
        with_config = {target.partition(":")[0] for target in self.receipt.targets if ":" in target}
        form = self.receipt.submit if template is None else template
        commands = []
        for target in dict.fromkeys((*self.receipt.targets, *steps)):
            step, _, config = target.partition(":")
            image = steps.get(target) or steps.get(step)
            if image is None or (not config and step in with_config):
                continue
            named, overrides = config or "CONFIG", {"run.env.container_image": image}
            if held & {target, step}:
                named, overrides = f"{OVERLAYS_FOLDER}/EXECUTOR/{step}/{named}.yaml", {}
            commands.append(submit_command(step, config=named, profile="PROFILE", overrides=overrides, template=form))
        return commands

    def to_document(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        pushed = self.pushed
        return {
            "dry_run": self.dry_run,
            "foreseen": list(self.foreseen),
            "audit": self.audit,
            "receipt_path": None if self.dry_run else str(self.receipt_path),
            **plain_data(pushed, "sent_blobs", "sent_bytes", "mounted_blobs", "present_blobs", "manifests"),
            "steps": [plain_data(step, "action", "repository", "digest", "size_bytes") for step in pushed.steps]
            + [
                {"action": "manifest", **plain_data(step, "repository", "digest", "size_bytes")}
                for step in pushed.manifest_steps
            ],
            "tags": [
                {"tag": move.reference, "digest": move.digest, "previous": move.previous, "moved": move.needed}
                for move in self.tags
            ],
            "receipt": self.receipt.model_dump(mode="json"),
        }


def load(
    bundle: Path,
    *,
    to: str | Destination,
    root: str | None = None,
    receipt: Path | None = None,
    dry_run: bool = False,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> LoadOutcome:
    """Verify a bundle, load it into `HOST[:PORT][/PREFIX]`, read back what is there, and write the receipt.

    The bundle's documents are verified first, against `root` if given; its blobs are hashed as they are sent, or all of
    them before one is sent if the destination says `verify_first`. Those that the registry holds are not read. The
    receipt goes to the current folder, under the name
    of destination and root, unless another path is given; nothing is written into the bundle. With `dry_run` the
    registry is only asked, and nothing is written. Idempotent: a second load sends no blob, and an interrupted one
    resumes.

    Raises:
        UsageError: there is no bundle, no destination, or two images would collide.
        HostError: the receipt cannot be written, or another load or a rollback works on the destination.
        IntegrityError: the bundle is damaged, the registry holds something else than it took, or what lies in the
            place of the receipt is not one.
        RegistryError: the registry does not answer, refuses, or lacks something; the message says what is missing. Or
            others moved tags meanwhile; the receipt is written then, too.
    """
    options = options or ClientOptions()
    destination = parse_destination(to) if isinstance(to, str) else to
    layout = find_layout(bundle)
    if receipt is not None:
        expect_outside(receipt, layout)
    opened = open_bundle(bundle, root=root)
    receipt_path = receipt or Path(receipt_name(destination, opened.root))
    expect_outside(receipt_path, layout)
    _try_places(None if dry_run else receipt_path, emit)
    places = place_images(opened, destination)
    earlier = _read_earlier(receipt_path, destination, opened.root, {str(place) for place in places.values()})
    opened.warn_beside(bundle, emit)
    with (
        hold_destination(str(destination), purpose=f"load into `{destination}`") as records,
        RegistryClient(destination.registry, options=options, emit=emit) as client,
    ):
        # an hour of hashing is lost where the login turns out to be missing after it
        expect_access(client, _some_repository(places, destination), push=not dry_run)
        report = _look_at(opened, read_blobs=destination.verify_first, emit=emit)
        shipments, without = part_skipped(plan_shipments(opened, destination, places), destination)
        known = read_profile(destination.registry)
        mounts = known.mounts is not False
        journal = None if dry_run else records.uploads
        uploader = Uploader(client, limits=known.limits(), journal=journal, mounts=mounts)
        sinks = RegistrySinks(client, uploader)
        transfer = load_transfer(opened.documents, sinks, destination, jobs=options.jobs, emit=emit)
        # what tags stand for is asked before anything is sent: who moves one during the hours of a load is then noticed
        own = records.tags_before(opened.root)
        noted = tags_in_receipt(earlier, destination=str(destination), root=opened.root)
        wanted = _wanted_tags(opened, sinks, places, shipments)
        with _naming_the_rest(transfer, shipments, known):
            tags = plan_tags(wanted, {**noted, **own}, jobs=options.jobs)
        say_where_from(tags, own, receipt_path, emit)
        foreseen = _foresee(shipments, destination, known, emit) if dry_run else []
        if dry_run:
            pushed = transfer.preview(shipments)
            without += pushed.refused
        else:
            pushed, known = _push(transfer, opened, shipments, known, uploader, emit)
            there = _less(shipments, pushed.refused)
            unseen = stage("audit", emit, lambda: audit(transfer, there, registry=destination.registry))
            without += [*pushed.refused, *unseen]
        say_left_out(without, destination, emit)
        shipments = _less(shipments, without)
        tags = _of_shipments(tags, _wanted_tags(opened, sinks, places, shipments))
        refused: dict[str, str] = {}
        if not dry_run:
            keep_taken(known, shipments)
            taken = stage("tag", emit, lambda: move_tags(tags, sinks, records, root=opened.root, refused=refused))
        tags, untagged = _part_refused(tags, refused)
        say_untagged(untagged, destination, emit)
        shipments = [item for item in shipments if str(places.get(item.name)) not in refused]
        left = left_out(without, destination, places, untagged=untagged)
        made = make_receipt(opened, destination, places, tags, shipments, verified=root is not None, left=left)
        # a dry run has read none, and knows of none that it is right there
        blobs = None if dry_run else _blobs(shipments, None if destination.verify_first else transfer.hashed())
        made = made.model_copy(update={"connection": _connection(client, options), "blobs": blobs}).after(earlier)
        if not dry_run:
            ours = [move for move in tags if move.reference not in taken]
            write_receipt(made, receipt_path)
            # as late as can be: a tag that another client is about to set is not seen earlier
            taken |= moved_by_others(ours, sinks, jobs=options.jobs, retry=options.retry)
            expect_own_tags(taken, receipt_path)
    texts = tuple(item.text for item in foreseen)
    return LoadOutcome(
        report, opened.manifest, pushed, tuple(tags), made, receipt_path, dry_run, texts, destination.audit
    )


def _some_repository(places: Mapping[str, Reference], destination: Destination) -> str:
    """Return a repository that the load will write to."""
    return next((place.repository for place in places.values()), destination.repository(ARTIFACTS_REPOSITORY))


def _connection(client: RegistryClient, options: ClientOptions) -> ReceiptConnection:
    """Return how the registry was reached."""
    known = fingerprints(options.ca_file) if client.tls and options.ca_file is not None else ()
    return ReceiptConnection(tls=bool(client.tls), ca_fingerprints=known[:MAX_FINGERPRINTS])


def _blobs(shipments: Sequence[Shipment], hashed: Collection[str] | None) -> ReceiptBlobs:
    """Return which blobs of shipments were hashed, all of them if `hashed` is None, and which were found there."""
    wanted = {digest for item in shipments for digest in item.closure.blobs}
    found = sorted(wanted.difference(wanted if hashed is None else hashed))
    return ReceiptBlobs(hashed=len(wanted) - len(found), found=tuple(found))


def _look_at(bundle: Bundle, *, read_blobs: bool, emit: Emit) -> VerifyReport:
    """Verify what is to be sent; without blobs, which are hashed as they are sent, that says nothing yet of the whole.

    Raises:
        IntegrityError: it is damaged.
    """
    name = "verify" if read_blobs else "documents"
    report = stage(name, emit, lambda: verify_opened(bundle, read_blobs=read_blobs, emit=emit))
    report.raise_if_wrong()
    report.warn_of_litter(emit)
    return report


@contextmanager
def _naming_all_damage(bundle: Bundle, emit: Emit) -> Iterator[None]:
    """Name all that is wrong with a bundle of which a blob turned out to be damaged, as a verification does."""
    try:
        yield
    except (DamagedBlob, UnreadableBlob, MissingContent) as error:
        emit(Notice(f"{error.message}; no manifest was sent, no tag moved; all blobs are read now, to name all damage"))
        stage("verify", emit, lambda: verify_opened(bundle, emit=emit)).raise_if_wrong()
        # right now, so it was the medium or the memory; what the error says is all that is known
        raise


def _push(
    transfer: Transfer,
    bundle: Bundle,
    shipments: Sequence[Shipment],
    known: RegistryProfile,
    uploader: Uploader,
    emit: Emit,
) -> tuple[CopyReport, RegistryProfile]:
    """Bring everything to the registry, and return what was done, and the profile that it left."""
    try:
        with _naming_all_damage(bundle, emit), _naming_the_rest(transfer, shipments, known):
            pushed = stage("push", emit, lambda: transfer.send(shipments))
    finally:
        known = keep_learned(known, uploader.limits, mounts=uploader.mounts)
    return pushed, known


def _foresee(
    shipments: Sequence[Shipment], destination: Destination, known: RegistryProfile, emit: Emit
) -> list[Warned]:
    """Warn of what a load would meet, or say how to find that out."""
    foreseen = foresee(shipments, destination, known)
    for warning in foreseen:
        emit(warning)
    if not known.media_types:
        command = f"airferry registry probe {destination.registry}/{destination.repository(PROBE_REPOSITORY)}"
        emit(
            Notice(
                f"not known of `{destination.registry}`: which types, sizes and names it takes; `{command}` or "
                "`--probe` finds out, by pushing small things there"
            )
        )
    return foreseen


def expect_receipt_place(path: Path) -> None:
    """Check that a receipt can be written to a path. Leaves nothing behind.

    Raises:
        UsageError: a folder is there.
        HostError: its folder is not writable, or a pipe or device is there.
    """
    if path.is_dir():
        raise UsageError(f"receipt `{path}` is a folder, expected a file", hint="give a file with `--receipt FILE`")
    files.output_file(path)


def _try_places(receipt_path: Path | None, emit: Emit) -> None:
    """Check that what a load writes on this host can be written: the receipt, if there will be one, and the cache."""
    if receipt_path is not None:
        expect_receipt_place(receipt_path)
    expect_cache(emit)


def _read_earlier(path: Path, destination: Destination, root: str, images: Collection[str]) -> Receipt | None:
    """Return the receipt that lies where this load writes its own, if there is one.

    Raises:
        UsageError: it is of another load: its tags could not be put back without it. That is one into another
            destination, of another bundle, or of the same under other names than `images`.
        IntegrityError: it is not a receipt.
    """
    if not files.is_file(path):
        return None
    earlier = read_receipt(path)
    if earlier.registry != str(destination):
        raise UsageError(
            f"`{path}` is the receipt of a load into `{earlier.registry}`; this load goes to `{destination}`",
            hint=OTHER_RECEIPT,
        )
    if earlier.bundle_root != root:
        raise UsageError(
            f"`{path}` is the receipt of another bundle, `{earlier.bundle_root}`; without it that load could not be "
            f"rolled back; this bundle is `{root}`",
            hint=OTHER_RECEIPT,
        )
    if not {image.reference for image in earlier.images} <= set(images):
        raise UsageError(
            f"`{path}` is the receipt of a load of this bundle under other names; without it that load could not be "
            "rolled back",
            hint=f"pass the same `--map` and `--flatten`, or {OTHER_RECEIPT}",
        )
    return earlier


@contextmanager
def _naming_the_rest(transfer: Transfer, shipments: Sequence[Shipment], known: RegistryProfile) -> Iterator[None]:
    """Add to an error of the registry what is not there yet, and what was known that may have led to it."""
    try:
        yield
    except RegistryError as error:
        unfinished = transfer.unfinished(shipments)
        optional = {item.name for item in shipments if item.optional}
        artifacts = sum(name.startswith(ARTIFACT_NAME) for name in unfinished)
        images = sum(name not in optional and not name.startswith(ARTIFACT_NAME) for name in unfinished)
        counts = [counted(number, noun) for number, noun in ((images, "image"), (artifacts, "artifact")) if number]
        advice = error.hint or ("rerun: finished uploads are not repeated" if rerun_helps(error) else None)
        noted = known.advice() if isinstance(error, TransientRegistryError | TooLarge) else ""
        what = f"not complete there yet: {' and '.join(counts)}" if counts else "manifests are missing"
        raise error.reworded(
            f"{error.message}; no tag was moved; {what}",
            hint="; ".join(part for part in (advice, noted) if part) or None,
            missing=unfinished,
        ) from error


def _less(shipments: Sequence[Shipment], refused: Sequence[RefusedShipment]) -> list[Shipment]:
    """Return the shipments without those that were refused; one artifact may go to several repositories."""
    out = {(one.item.name, one.item.repository) for one in refused}
    return [item for item in shipments if (item.name, item.repository) not in out]


def _of_shipments(tags: Sequence[TagMove], wanted: Sequence[WantedTag]) -> list[TagMove]:
    references = {item.reference for item in wanted}
    return [move for move in tags if move.reference in references]


def _part_refused(
    tags: Sequence[TagMove], refused: Mapping[str, str]
) -> tuple[list[TagMove], list[tuple[TagMove, str]]]:
    """Return the tags without those that the registry refused, and these with its reasons."""
    kept = [move for move in tags if move.reference not in refused]
    return kept, [(move, refused[move.reference]) for move in tags if move.reference in refused]


def _wanted_tags(
    bundle: Bundle, sinks: RegistrySinks, places: Mapping[str, Reference], shipments: Sequence[Shipment]
) -> list[WantedTag]:
    """Return the tags to set."""
    wanted = []
    tags = artifact_tags(bundle, shipments)
    for item in shipments:
        place = places.get(item.name)
        sink = sinks(item.repository)
        for tag in tags.get(item.descriptor.digest, ()) if place is None else [place.tag]:
            if tag is not None:
                wanted.append(WantedTag(f"{sink}:{tag}", sink, tag, item.closure.top, item.optional))
    return wanted
