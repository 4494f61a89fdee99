"""Parsers of languages, of OCI documents and of what a bundle holds."""

from __future__ import annotations

import gzip
import io
import tarfile
from contextlib import suppress
from pathlib import Path

from table import (
    DIGEST,
    TREE,
    as_json,
    blobs_of,
    bundle,
    checksummed,
    each,
    of_file,
    of_text,
    parser,
)
from worker import Target

from airferry.assets.manifest import AssetFile, AssetLink, AssetManifest, parse_asset_manifest
from airferry.bundle.manifest import read_manifest
from airferry.bundle.receipt import read_receipt
from airferry.bundle.root import parse_root
from airferry.bundle.tree_paths import decode_path, linked_path, safe_path
from airferry.bundle.verify import verify_bundle
from airferry.cli.bundles import parse_maps, parse_size
from airferry.config.document import parse_document
from airferry.config.fields import parse_tag
from airferry.errors import AirferryError
from airferry.far.copy import parse_place
from airferry.far.relocate import parse_destination
from airferry.host import files
from airferry.host.journal import Journal
from airferry.host.parsing import join_url, parse_json, parse_literal, parse_python, parse_toml, split_url
from airferry.jobs.submission import parse_image
from airferry.near.git.addresses import redact
from airferry.oci.archive import ArchiveSource, write_oci_archive
from airferry.oci.codecs import inflate
from airferry.oci.copy import image_shipments
from airferry.oci.digest import parse_digest
from airferry.oci.documents import parse_image_config, parse_index, parse_manifest
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.oci.reference import parse_reference
from airferry.oci.tar import TarReader
from airferry.plan.catalogue import parse_target
from airferry.registry.failures import following_url, redacted
from airferry.registry.uploads import UploadJournal
from airferry.rootfs.layers import collect_facts
from airferry.rootfs.view import RootView
from layer_tars import Item, folder, link, tar_of
from oci_images import REFERENCE, make_image
from travelling_catalogue import receipt_of

# --- languages --------------------------------------------------------------------------------------------------------


@parser("JSON", share=2)
def json_target() -> Target:
    return Target(parse_json, [b'{"a": [1, 2.5, "x\\u00e9", null, true], "b": {"c": []}}', b"[[], {}]"])


@parser("TOML", share=2)
def toml_target() -> Target:
    return Target(
        parse_toml, [b'a = 1\n[b.c]\nd = ["x", 1.5, 2024-01-01T00:00:00Z]\n[[e]]\nf = """x\ny"""\n', b"a.b = {}\n"]
    )


@parser("Python and literals", share=1)
def python_target() -> Target:
    seeds = [
        b"import os, sys\nfrom a.b import (c,\n d)\nx = {'a': [1, 2]}\ndef f(a, *b):\n    return a\n",
        b"('a', 1, [None])",
    ]
    return Target(each(parse_python, of_text(parse_literal)), [b"('a', 1)", *seeds])


@parser("URLs", share=3)
def url_target() -> Target:
    def parse(text: str) -> None:
        redacted(text), redact(text)
        split_url(text)
        join_url("https://h:1/v2/", text)
        following_url("https://h:1/v2/x", text, what="x")

    seeds = [b"https://user:x@registry.example:5000/v2/a/b?c=d#e", b"/v2/x?_state=1", b"https://[::1]:80/", b"//h/x"]
    return Target(of_text(parse), seeds)


@parser("YAML: files of airferry and of steps", share=0.6)
def yaml_target() -> Target:
    path = Path("x.yaml")
    seeds = [
        b"a: &x {b: [1, 2.5, 12:00:00, ~, 'y']}\nc: *x\nd: |\n  text\n",
        b'{"a": ["b", {"c": null}]}',
        b"- 1\n- [2]\n",
    ]
    return Target(
        each(lambda data: parse_document(data, path), lambda data: parse_document(data, path, as_steps_do=True)), seeds
    )


# --- OCI --------------------------------------------------------------------------------------------------------------


@parser("OCI manifest", share=2)
def manifest_target() -> Target:
    return Target(parse_manifest, [data for data in blobs_of(bundle(), b"{") if b'"layers"' in data])


@parser("OCI index", share=2)
def index_target() -> Target:
    found = [data for data in blobs_of(bundle(), b"{") if b'"manifests"' in data]
    return Target(parse_index, [*found, (bundle() / "index.json").read_bytes()])


@parser("OCI config", share=2)
def config_target() -> Target:
    return Target(parse_image_config, [data for data in blobs_of(bundle(), b"{") if b'"rootfs"' in data])


@parser("references, digests, platforms, tags", share=3)
def names_target() -> Target:
    text_parsers = (parse_reference, parse_digest, parse_platform, parse_tag, parse_root, parse_image, parse_target)
    parsers = [of_text(parse) for parse in text_parsers]

    def parse(data: bytes) -> None:
        # a text is one of these at most
        fine = 0
        for one in parsers:
            with suppress(AirferryError, ValueError):
                one(data)
                fine += 1
        if not fine:
            raise ValueError("nothing takes it")

    seeds = [
        b"registry.example:5000/a/b:tag@" + DIGEST.encode(),
        b"linux/arm64/v8",
        DIGEST.encode(),
        b"sft/x:tiny",
        b"1.0",
    ]
    return Target(parse, seeds, also=(ValueError,))


@parser("destinations, places, maps, rates of the command line")
def place_target() -> Target:
    def parse(text: str) -> None:
        for one in (
            parse_destination,
            parse_place,
            lambda text: parse_maps([text]),
            lambda text: parse_size(text, option="--limit-rate"),
        ):
            with suppress(AirferryError):
                one(text)

    seeds = [
        b"registry.example:5000/a/b",
        b"oci:folder:name",
        b"docker://h/a:1",
        b"a/b=c/d",
        b"20M",
        b"oci-archive:x.tar",
    ]
    return Target(of_text(parse), seeds)


@parser("layout", share=0.3)
def layout_target() -> Target:
    path = files.ensure_directory(Path.cwd() / "layout")
    for name in ("oci-layout", "index.json"):
        (path / name).write_bytes((bundle() / name).read_bytes())

    def parse(data: bytes) -> None:
        place = "oci-layout" if data[:20].count(b"imageLayout") else "index.json"
        (path / place).write_bytes(data)
        try:
            LayoutStore.open(path, read_only=True).read_index()
        finally:
            (path / place).write_bytes((bundle() / place).read_bytes())

    return Target(parse, [(bundle() / name).read_bytes() for name in ("index.json", "oci-layout")])


@parser("layer tars", share=2)
def tar_target() -> Target:
    def parse(data: bytes) -> None:
        for seeks in (False, True):
            reader = TarReader(io.BytesIO(data), what="x", seeks=seeks)
            for number, _entry in enumerate(reader):
                if number % 2:
                    b"".join(reader.content())
        collect_facts([data], what="x")

    gnu = io.BytesIO()
    with tarfile.open(fileobj=gnu, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("n" * 200))
    return Target(parse, [tar_of(TREE), gnu.getvalue()], repair=checksummed)


@parser("merged root of layers")
def view_target() -> Target:
    base = collect_facts(
        [tar_of([folder("usr"), Item("usr/a", value="1"), link("x", "usr"), folder("d"), Item("d/e")])], what="x"
    )

    def parse(data: bytes) -> None:
        view = RootView([base, collect_facts([data], what="x")])
        for path, _entry in view.walk():
            view.is_dir(path)
            with suppress(AirferryError):
                view.resolve(path)

    upper = [
        Item(".wh.x"),
        Item("d/.wh..wh..opq"),
        link("usr", "d"),
        folder("a"),
        Item("a/b"),
        Item("q", "hard", "a/b"),
    ]
    return Target(parse, [tar_of(upper), tar_of([Item("n")])], repair=checksummed)


@parser("gzip and zstd streams", share=2)
def codec_target() -> Target:
    import zstandard

    def parse(data: bytes) -> None:
        kind = "zstd" if data[:1] == b"\x28" else "gzip"
        size = 0
        # one byte inflates to a thousand and more: what reads a layer never holds it, nor does this
        for block in inflate(iter([data[:100], data[100:]]), kind, what="x"):
            size += len(block)
            if size > 64 << 20:
                return

    text = b"some text that is long enough to be worth it " * 30
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    return Target(parse, [gzip.compress(text), gzip.compress(text) * 2, frame, frame + frame])


@parser("OCI archive", share=0.5)
def archive_target() -> Target:
    store = LayoutStore.create(Path.cwd() / "store")
    index, _entry = make_image(store)
    path = Path.cwd() / "made.tar"
    write_oci_archive(store, image_shipments(store, index, reference=REFERENCE), path)

    def read(path: Path) -> None:
        source = ArchiveSource(path)
        for entry in source.index.manifests:
            with suppress(AirferryError):
                stored = source.read_manifest(entry)
                source.referrers(stored.descriptor.digest)

    return Target(of_file("x.tar", read), [path.read_bytes()], repair=checksummed)


# --- the bundle -------------------------------------------------------------------------------------------------------


@parser("bundle manifest", share=0.8)
def bundle_manifest_target() -> Target:
    (document,) = blobs_of(bundle(), b"schema_version", b"archives", b"artifacts", b"assets", b"build_")
    return Target(read_manifest, [document, as_json(document)])


@parser("receipt")
def receipt_target() -> Target:
    document = receipt_of(DIGEST).to_yaml()
    return Target(of_file("airgap-receipt.yaml", read_receipt), [document, as_json(document)])


@parser("asset manifest", share=2)
def asset_target() -> Target:
    made = AssetManifest(
        name="m",
        kind="model",
        files=(AssetFile("a/b", 3, "0" * 64), AssetFile("c", 0, "1" * 64)),
        links=(AssetLink("d", "a/b"), AssetLink("e", "d")),
    )

    def parse(data: bytes) -> None:
        manifest = parse_asset_manifest(data, what="x")
        for item in manifest.links:
            manifest.linked_file(item)

    return Target(parse, [made.to_bytes()])


@parser("paths of trees", share=2)
def tree_path_target() -> Target:
    def parse(data: bytes) -> None:
        safe_path(data)
        text = data.decode("utf-8", "surrogateescape")
        linked_path(text, text)
        decode_path(text)

    return Target(parse, [b"a/b", b"../x", b"a%2fb", b"/abs", "ä".encode()], also=(ValueError,))


@parser("journal of a build and of uploads", share=0.5)
def journal_target() -> Target:
    def journal(path: Path) -> None:
        Journal(path)

    seeds = [
        b'{"k": {"repository": "r/x", "digest": "%s", "location": "https://h/x", "offset": 5}}' % DIGEST.encode(),
        b"{}",
    ]
    return Target(each(of_file("u.json", UploadJournal), of_file("airgap-build-state.yaml", journal)), seeds)


@parser("a whole bundle's blobs, verified", share=0.05)
def verify_target() -> Target:
    import shutil

    path = Path.cwd() / "verified"
    shutil.copytree(bundle(), path)
    names = sorted(blob.name for blob in (path / "blobs/sha256").iterdir())

    def parse(data: bytes) -> None:
        blob = path / "blobs/sha256" / names[data[0] % len(names) if data else 0]
        before = blob.read_bytes()
        blob.write_bytes(data[1:])
        try:
            verify_bundle(path).raise_if_wrong()
        finally:
            blob.write_bytes(before)

    seeds = [bytes([number]) + (path / "blobs/sha256" / name).read_bytes() for number, name in enumerate(names)]
    return Target(parse, seeds, prefix=1)
