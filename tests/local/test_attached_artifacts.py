"""What belongs to a base that is carried as it came: found, pinned, carried, loaded and served, or named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from airferry import api
from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.manifest import BundleManifest, ToolEntry
from airferry.bundle.receipt import read_receipt
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle, verify_bundle
from airferry.config import load_config
from airferry.events import Event, Notice, Warned
from airferry.far.relocate import parse_destination
from airferry.far.serve.offer import read_repositories
from airferry.host.canonical import canonical_json
from airferry.near.bases.attached import BroughtArtifacts, bring_attached, pin_attached, put_attached
from airferry.near.bases.fetch import BaseCache
from airferry.near.bases.originals import bring_originals, put_originals
from airferry.oci.copy import copy_image
from airferry.oci.digest import digest_hex
from airferry.oci.documents import EMPTY_CONFIG, IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Index, Manifest
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.plan.lockfile import Lockfile, read_lockfile, write_lockfile
from airferry.plan.planner import make_plan
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from catalogues import airgap, write_airgap, write_step
from oci_images import put_image, put_index
from scripted_registry import ScriptedRegistry, error_document, sha256

OPTIONS = ClientOptions(
    plain_http=True, lookup=lambda _registry, _repository: None, retry=RetryPolicy(sleep=lambda _seconds: None)
)
BASE = "nvidia/base"

pytestmark = pytest.mark.usefixtures("unsettled")


def signature(digest: str, suffix: str = "sig") -> str:
    return f"sha256-{digest_hex(digest)}.{suffix}"


@dataclass
class Upstream:
    """A base of two platforms in a registry, with what belongs to it."""

    registry: ScriptedRegistry
    folder: Path
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = RegistryClient(self.registry.address, options=OPTIONS)
        self.store = LayoutStore.create(self.folder / "made")
        self.parts = [
            put_image(self.store, [{"a": cpu}], platform=f"linux/{cpu.decode()}")[0] for cpu in (b"amd64", b"arm64")
        ]
        self.index = put_index(self.store, self.parts)
        self.push(self.index, reference="1.0")
        write_step(self.folder, "sft/one")
        self.name = f"{self.registry.address}/{BASE}:1.0"

    def push(self, descriptor: Descriptor, *, reference: str | None = None) -> Descriptor:
        copy_image(self.store, RegistrySink(self.client, BASE), descriptor, reference=reference)
        return descriptor

    def attach(
        self, text: str, subject: Descriptor | None = None, *, tag: str | None = None, kind: str = ""
    ) -> Descriptor:
        """Push an artifact that refers to something, or has a tag of cosign's."""
        contents = [ArtifactFile("note.txt", "text/plain", text.encode())]
        made = put_artifact(self.store, kind or "application/x-note", contents=contents, subject=subject)
        return self.push(made, reference=tag)

    def attach_index(self, subject: Descriptor) -> Descriptor:
        """Push an index of artifacts that refers to something."""
        child = put_artifact(self.store, "application/x-part", contents=[ArtifactFile("a", "text/plain", b"part")])
        index = Index(
            schema_version=2,
            media_type=IMAGE_INDEX,
            artifact_type="application/x-set",
            manifests=[child.annotated(annotations=None)],
            subject=subject,
        )
        return self.push(self.store.put_bytes(canonical_json(index), IMAGE_INDEX))

    def carry(self, choice: str = "include", *, cache: str = "cache", lock: Lockfile | None = None) -> Carried:
        self.events.clear()
        document = airgap({"base": self.name}, {"sft/one": "base"}, bases=choice, platforms=["linux/amd64"])
        plan = make_plan(load_config(write_airgap(self.folder, document)), stages=["build-execution-images"])
        bases = BaseCache(
            self.folder / cache,
            open_registry=lambda reference: RegistrySource(self.client, reference.repository),
            emit=self.events.append,
        )
        base = plan.groups[0].base_image
        if lock is None:
            locked = bases.bring(base, [parse_platform("linux/amd64")], locked=None).locked
            lock = pin_attached(plan, Lockfile(bases={base.key: locked}), bases, jobs=2, emit=self.events.append)
        originals = bring_originals(plan, lock, bases)
        brought = bring_attached(plan, lock, bases, originals=originals, emit=self.events.append)
        return Carried(lock, originals, brought, bases)

    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Warned)]


@dataclass
class Carried:
    """What came into the cache, and a bundle of it."""

    lock: Lockfile
    originals: dict[str, Descriptor]
    brought: BroughtArtifacts
    cache: BaseCache

    def names(self) -> list[str]:
        return [item.stored.descriptor.digest for item in self.brought.carried]

    def bundle(self, folder: Path) -> Path:
        store = LayoutStore.create(folder)
        entries = put_originals(self.originals, self.cache.store, store)
        described = put_attached(self.brought.carried, self.cache.store, store)
        manifest = BundleManifest(
            workflow={"stages": []},
            build_stages=(),
            images=tuple(entries),
            artifacts=tuple(entry for entry, _descriptor in described),
            compression="zstd",
            tool=ToolEntry(airferry="0"),
        )
        seal(store, self.originals, artifacts=[descriptor for _entry, descriptor in described], manifest=manifest)
        return folder


@pytest.fixture
def upstream(registry: ScriptedRegistry, tmp_path: Path) -> Upstream:
    return Upstream(registry, tmp_path)


def test_what_belongs_to_a_base_is_carried_loaded_and_served(
    upstream: Upstream, registry: ScriptedRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sbom = upstream.attach("sbom", upstream.index)
    vouched = upstream.attach("signature of the sbom", sbom)
    part = upstream.attach("part", upstream.parts[1])
    listing = upstream.attach_index(upstream.index)
    tags = {signature(upstream.index.digest): upstream.attach("s", tag=signature(upstream.index.digest))}
    tags[signature(upstream.parts[0].digest, "att")] = upstream.attach(
        "a", tag=signature(upstream.parts[0].digest, "att")
    )
    carried = upstream.carry()
    assert upstream.warnings() == [] and carried.brought.left_out == ()
    assert sorted(carried.names()) == sorted(one.digest for one in (sbom, vouched, part, listing, *tags.values()))
    assert [event for event in upstream.events if isinstance(event, Notice) and "comes with 6 artifacts" in event.text]
    folder = carried.bundle(tmp_path / "bundle")
    assert verify_bundle(folder).findings == ()
    opened = open_bundle(folder)
    assert {entry.subject for entry in opened.manifest.artifacts} == {
        upstream.index.digest, sbom.digest, *(one.digest for one in upstream.parts)
    }  # fmt: skip
    # the same lock gives the same root, on another host as well, whatever was signed since
    upstream.attach("later", upstream.index)
    again = upstream.carry(cache="elsewhere", lock=carried.lock)
    assert open_bundle(again.bundle(tmp_path / "again")).root == opened.root

    destination = f"{registry.address}/far"
    api.load(folder, to=destination, options=OPTIONS)
    held = f"far/{BASE}"
    for tag, descriptor in tags.items():
        assert sha256(registry.manifests[f"{held}@{tag}"][0]) == descriptor.digest
    source = RegistrySource(upstream.client, held)
    assert {one.digest for one in source.referrers(upstream.index.digest)} == {sbom.digest, listing.digest}
    assert [one.digest for one in source.referrers(sbom.digest)] == [vouched.digest]
    assert [one.digest for one in source.referrers(upstream.parts[1].digest)] == [part.digest]
    # a rollback removes the tags
    receipt = read_receipt(Path())
    assert {tag.reference.rpartition(":")[2] for tag in receipt.artifact_tags} >= tags.keys()
    api.rollback(Path(), options=OPTIONS)
    assert not any(f"{held}@{tag}" in registry.manifests for tag in tags)
    # it is served, and copied out of the bundle, in the same way
    served = read_repositories(opened, parse_destination(destination))[held]
    assert {tag: served.tags[tag] for tag in tags} == {tag: one.digest for tag, one in tags.items()}
    result = api.copy(f"oci:{folder}:{upstream.name}", f"docker://{registry.address}/out/base:1", options=OPTIONS)
    assert result.left_out == () and all(f"out/base@{tag}" in registry.manifests for tag in tags)
    assert [one.digest for one in RegistrySource(upstream.client, "out/base").referrers(sbom.digest)] == [
        vouched.digest
    ]


def test_what_is_in_the_cache_is_not_asked_for_again(upstream: Upstream, registry: ScriptedRegistry) -> None:
    upstream.attach("sbom", upstream.index)
    carried = upstream.carry()
    registry.calls.clear()
    assert upstream.carry(lock=carried.lock).names() == carried.names()
    assert registry.calls == []


def test_a_lock_keeps_what_it_pins_and_reads_it_back(upstream: Upstream, tmp_path: Path) -> None:
    note = upstream.attach("note", upstream.index)
    tag = signature(upstream.index.digest)
    signed = upstream.attach("s", tag=tag)
    lock = upstream.carry().lock
    (base,) = lock.bases.values()
    assert base.attached == {note.digest: note.digest, tag: signed.digest}
    write_lockfile(lock, tmp_path / "lock.yaml")
    assert read_lockfile(tmp_path / "lock.yaml") == lock
    # a lock that does not say what belongs to the base carries nothing, and says so
    old = Lockfile(bases={key: one.model_copy(update={"attached": None}) for key, one in lock.bases.items()})
    assert upstream.carry(lock=old).names() == []
    (warning,) = upstream.warnings()
    assert "the lock does not say what belongs to base" in warning
    # nothing is asked for where no base is carried
    assert upstream.carry("omit").lock.bases[upstream.name].attached is None


@pytest.mark.parametrize("part", ["manifest", "blob"])
def test_what_its_registry_lost_is_named(part: str, upstream: Upstream, registry: ScriptedRegistry) -> None:
    kept, gone = upstream.attach("kept", upstream.index), upstream.attach("gone", upstream.index)
    lock = upstream.carry().lock
    if part == "manifest":
        del registry.manifests[f"{BASE}@{gone.digest}"]
    else:
        del registry.blobs[upstream.store.read_manifest(gone).manifest.layers[0].digest]
    carried = upstream.carry(cache="fresh", lock=lock)
    assert carried.names() == [kept.digest]
    (left,) = carried.brought.left_out
    assert (left.base, left.name) == (upstream.name, gone.digest)
    assert [gone.digest in text and "is not carried" in text for text in upstream.warnings()] == [True]
    # a new lock does not have what is only listed
    if part == "manifest":
        fresh = upstream.carry(cache="another")
        assert fresh.lock.bases[upstream.name].attached == {kept.digest: kept.digest}
        assert [gone.digest in text and "cannot be carried" in text for text in upstream.warnings()] == [True]


def untyped(upstream: Upstream) -> Descriptor:
    document = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        config=upstream.store.put_bytes(b"{}", EMPTY_CONFIG),
        layers=[],
        subject=upstream.index,
    )
    return upstream.push(upstream.store.put_bytes(canonical_json(document), IMAGE_MANIFEST))


def ambiguous(upstream: Upstream) -> Descriptor:
    made = upstream.attach("note", upstream.index)
    document = json.loads(upstream.store.read_manifest(made).data)
    data = json.dumps({**document, "Layers": []}).encode()
    return upstream.push(upstream.store.put_bytes(data, IMAGE_MANIFEST))


STAYS: dict[str, tuple[Callable[[Upstream], Descriptor], str]] = {
    "untyped": (untyped, "states no type"),
    "ambiguous": (ambiguous, "Layers"),
    "own": (
        lambda upstream: upstream.attach("x", upstream.index, kind="application/vnd.airferry.manifest.v1"),
        "that of a part of bundles",
    ),
    "pack": (
        lambda upstream: upstream.attach("x", upstream.index, kind="application/vnd.cncf.model.manifest.v1+json"),
        "that of a part of bundles",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_a_bundle_cannot_hold_is_named(name: str, upstream: Upstream, tmp_path: Path) -> None:
    make, reason = STAYS[name]
    stays = make(upstream)
    carried = upstream.carry()
    assert [(left.name, reason in left.reason) for left in carried.brought.left_out] == [(stays.digest, True)]
    assert verify_bundle(carried.bundle(tmp_path / "bundle")).findings == ()


def test_what_belongs_to_an_index_that_is_narrowed_is_named(upstream: Upstream, tmp_path: Path) -> None:
    whole, part = upstream.attach("whole", upstream.index), upstream.attach("part", upstream.parts[0])
    other = upstream.attach("other", upstream.parts[1])
    carried = upstream.carry("platforms")
    assert carried.names() == [part.digest]
    assert {left.name for left in carried.brought.left_out} == {whole.digest, other.digest}
    assert all("which is not carried" in left.reason for left in carried.brought.left_out)
    assert verify_bundle(carried.bundle(tmp_path / "bundle")).findings == ()


def test_one_artifact_under_two_tags_is_carried_once(
    upstream: Upstream, registry: ScriptedRegistry, tmp_path: Path
) -> None:
    tags = [signature(upstream.index.digest), signature(upstream.parts[0].digest)]
    for tag in tags:
        upstream.attach("the same", tag=tag)
    folder = upstream.carry().bundle(tmp_path / "bundle")
    assert verify_bundle(folder).findings == ()
    api.load(folder, to=f"{registry.address}/far", options=OPTIONS)
    assert all(f"far/{BASE}@{tag}" in registry.manifests for tag in tags)


def test_a_registry_that_hides_signatures_is_named(upstream: Upstream, registry: ScriptedRegistry) -> None:
    upstream.attach("note", upstream.index)
    hidden = (".sig", ".att", ".sbom")
    registry.faults.append(
        lambda exchange: exchange.call.path.endswith(hidden) and exchange.answer(403, error_document("DENIED"))
    )
    upstream.carry()
    assert ["other tags with signatures is unknown" in text for text in upstream.warnings()] == [True]
