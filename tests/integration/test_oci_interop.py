"""What is written here is read by the tools of others: skopeo, podman, containerd."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containerd import run_containerd

from airferry.host import files, process
from airferry.oci.archive import ArchiveSource, WrittenArchive, write_oci_archive
from airferry.oci.copy import image_shipments
from airferry.oci.documents import LAYER_GZIP, LAYER_ZSTD, Descriptor, parse_index, parse_manifest
from airferry.oci.layers import Compression, LayerChecks, compress_layer, recompress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import host
from oci_images import REFERENCE, image_defects, layout_defects, make_bundle, make_image, put_image

RequireTool = Callable[[str], Path]
TIMEOUT_S = 120


@pytest.fixture
def skopeo(require_tool: RequireTool, tmp_path: Path) -> Callable[..., str]:
    program = require_tool("skopeo")
    policy = tmp_path / "policy.json"
    policy.write_text('{"default":[{"type":"insecureAcceptAnything"}]}')

    def run(*arguments: str | Path) -> str:
        return process.run([program, "--policy", policy, *arguments], timeout_s=TIMEOUT_S).text

    return run


@pytest.fixture
def podman(require_tool: RequireTool, tmp_path: Path) -> Iterator[Callable[..., str]]:
    program = require_tool("podman")
    # podman refuses a run root of more than 50 characters
    storage = Path(tempfile.mkdtemp(prefix="af-", dir="/tmp"))

    own = ["--root", storage / "root", "--runroot", storage / "run", "--storage-driver", "vfs"]

    def run(*arguments: str | Path) -> str:
        return process.run([program, *own, *arguments], timeout_s=TIMEOUT_S).text

    yield run
    files.remove_tree(storage)


@pytest.fixture
def plain_folder() -> Iterator[Path]:
    """Give a folder in lower case: podman 4.3 makes a local name of a layout's path, and refuses capitals in it."""
    folder = Path("/tmp") / f"af-{uuid.uuid4().hex[:12]}"
    folder.mkdir(mode=0o700)
    yield folder
    files.remove_tree(folder)


def native(index: Descriptor, store: LayoutStore) -> Descriptor:
    children = parse_index(store.read_manifest(index).data).manifests
    return next(child for child in children if (value := child.platform_value()) and value.matches_host())


@pytest.fixture
def archive(tmp_path: Path) -> WrittenArchive:
    store = LayoutStore.create(tmp_path / "archived")
    index, _entry = make_image(store)
    return write_oci_archive(
        store, image_shipments(store, native(index, store), reference=REFERENCE), tmp_path / "image.tar"
    )


def test_skopeo_reads_and_copies_a_bundle_and_keeps_its_digests(tmp_path: Path, skopeo: Callable[..., str]) -> None:
    make_bundle(tmp_path / "bundle", twins=True)
    index = LayoutStore.open(tmp_path / "bundle").resolve(REFERENCE)
    raw = skopeo("inspect", "--raw", f"oci:{tmp_path / 'bundle'}:{REFERENCE}")
    assert len(raw.encode()) == index.size
    for architecture in ("amd64", "arm64"):
        seen = json.loads(skopeo("--override-arch", architecture, "inspect", f"oci:{tmp_path / 'bundle'}:{REFERENCE}"))
        assert seen["Architecture"] == architecture
        assert len(seen["Layers"]) == 2
    skopeo("copy", "--all", f"oci:{tmp_path / 'bundle'}:{REFERENCE}", f"oci:{tmp_path / 'copy'}:{REFERENCE}")
    copied = LayoutStore.open(tmp_path / "copy")
    assert copied.resolve(REFERENCE).digest == index.digest
    assert layout_defects(copied) == []


def test_what_skopeo_wrote_is_read_and_recompressed(tmp_path: Path, skopeo: Callable[..., str]) -> None:
    store = LayoutStore.create(tmp_path / "ours")
    index, _entry = make_image(store)
    store.put_manifest(store.read_manifest(index), reference="x:1")
    skopeo("copy", f"oci:{tmp_path / 'ours'}:x:1", f"oci-archive:{tmp_path / 'theirs.tar'}:x:1")
    source = ArchiveSource(tmp_path / "theirs.tar")
    descriptor = source.resolve("x:1")
    assert image_defects(source, descriptor, subject="x") == []
    manifest = parse_manifest(source.read_manifest(descriptor).data)
    target = LayoutStore.create(tmp_path / "target")
    for layer in manifest.layers:
        with source.open_blob(layer) as stream:
            result = recompress_layer(
                stream, layer, checks=LayerChecks(None), compression=Compression("zstd"), into=target
            )
        assert result.descriptor.media_type == LAYER_ZSTD


def test_a_zstd_layer_and_a_gzip_layer_are_unpacked_by_others(
    plain_folder: Path, tmp_path: Path, podman: Callable[..., str]
) -> None:
    store = LayoutStore.create(plain_folder / "layout")
    for kind in ("zstd", "gzip"):
        content = {"hello.txt": kind.encode() * 900_000}
        child, _results = put_image(store, [content], platform=str(host()), kind=kind)
        store.put_manifest(store.read_manifest(child.annotated(platform=None)), reference=f"localhost/{kind}:1")
        podman("pull", "-q", f"oci:{store.path}:localhost/{kind}:1")
        (image,) = json.loads(podman("image", "inspect", parse_manifest(store.read_bytes(child)).config.digest[7:]))
        assert image["Digest"] == child.digest
        podman("image", "save", "--format", "oci-archive", "-o", tmp_path / f"{kind}.tar", image["Id"])
        saved = ArchiveSource(tmp_path / f"{kind}.tar")
        layer = parse_manifest(saved.read_manifest(saved.index.manifests[0]).data).layers[0]
        with saved.open_blob(layer) as stream:
            result = recompress_layer(
                stream, layer, checks=LayerChecks(None), compression=Compression("none"), into=store
            )
        assert content["hello.txt"] in store.read_bytes(result.descriptor, limit_bytes=1 << 26)


def test_podman_pulls_from_a_bundle(plain_folder: Path, podman: Callable[..., str]) -> None:
    make_bundle(plain_folder / "bundle", twins=True)
    identifier = podman("pull", "-q", f"oci:{plain_folder / 'bundle'}:{REFERENCE}").strip()
    (image,) = json.loads(podman("image", "inspect", identifier))
    assert image["Architecture"] == host().architecture
    assert len(image["RootFS"]["Layers"]) == 2


def test_podman_loads_an_archive_under_its_name(podman: Callable[..., str], archive: WrittenArchive) -> None:
    assert REFERENCE in podman("load", "-q", "-i", archive.path)
    (image,) = json.loads(podman("image", "inspect", REFERENCE))
    assert len(image["RootFS"]["Layers"]) == 2


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_skopeo_reads_an_archive_in_both_forms(
    tmp_path: Path, skopeo: Callable[..., str], archive: WrittenArchive, transport: str
) -> None:
    seen = json.loads(skopeo("inspect", "--config", f"{transport}:{archive.path}:{REFERENCE}"))
    assert seen["architecture"] == host().architecture
    skopeo("copy", f"{transport}:{archive.path}:{REFERENCE}", f"oci:{tmp_path / 'copy'}:{REFERENCE}")
    copied = LayoutStore.open(tmp_path / "copy")
    assert image_defects(copied, copied.resolve(REFERENCE), subject="copy") == []
    config = parse_manifest(copied.read_manifest(copied.resolve(REFERENCE)).data).config
    assert json.loads(copied.read_bytes(config))["rootfs"] == seen["rootfs"]


def test_containerd_imports_an_archive_of_all_platforms(
    require_tool: RequireTool, tmp_path: Path, plain_folder: Path
) -> None:
    for name in ("ctr", "containerd"):
        require_tool(name)
    store = LayoutStore.create(tmp_path / "layout")
    index, _entry = make_image(store)
    path = write_oci_archive(store, image_shipments(store, index, reference=REFERENCE), tmp_path / "image.tar").path
    with run_containerd(plain_folder / "containerd") as ctr:
        process.run([*ctr, "images", "import", "--all-platforms", "--no-unpack", path], timeout_s=TIMEOUT_S)
        listed = process.run([*ctr, "images", "list"], timeout_s=TIMEOUT_S).text
    line = next(line for line in listed.splitlines() if line.startswith(REFERENCE))
    assert index.digest in line
    assert "linux/amd64,linux/arm64" in line


def test_gzip_decompresses_what_is_packed_in_parallel(require_tool: RequireTool, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    content = os.urandom(300_000) * 12
    tar = tmp_path / "content"
    tar.write_bytes(content)
    with tar.open("rb") as stream:
        result = compress_layer(stream, compression=Compression("gzip", threads=3), into=store)
    assert result.descriptor.media_type == LAYER_GZIP
    plain = process.run([require_tool("gzip"), "-dc", store.blob_path(result.descriptor.digest)], timeout_s=TIMEOUT_S)
    assert plain.stdout == content
