"""Originals in a bundle: carried untouched, loaded, and pulled by their own names once their registry is gone."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containerd import run_containerd
from registries import PASSWORD, USER, basic_options, make_authority, run_registry

from airferry.bundle.artifacts import put_artifact
from airferry.bundle.manifest import BundleManifest, ToolEntry
from airferry.bundle.receipt import Receipt, ReceiptConnection, ReceiptImage
from airferry.bundle.seal import seal
from airferry.bundle.verify import verify_bundle
from airferry.config import load_config
from airferry.errors import BuildError
from airferry.events import silent
from airferry.far.load import load
from airferry.host import files, process
from airferry.jobs.mirrors import NodeCa, make_mirrors
from airferry.near.bases.fetch import BaseCache
from airferry.near.bases.originals import bring_originals, put_originals
from airferry.oci.copy import copy_image
from airferry.oci.documents import Descriptor, PlatformDocument, parse_index
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.plan.lockfile import Lockfile
from airferry.plan.planner import make_plan
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.credentials import Credential
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.tls import fingerprints
from catalogues import airgap, write_airgap, write_step
from oci_images import put_image, put_index

ANONYMOUS = ClientOptions(lookup=lambda registry, repository: None)
AMD64 = parse_platform("linux/amd64")
TIMEOUT_S = 120
NVIDIA = "nvcr.io/nvidia/base:1.0"


def upstream_image(store: LayoutStore) -> Descriptor:
    """Store an index of two platforms with an attestation, as BuildKit makes them, layers in gzip and in zstd."""
    children = [
        put_image(store, [{"etc/base": b"base" * 500}], platform="linux/amd64", kind="gzip")[0],
        put_image(store, [{"etc/base": b"other" * 500}], platform="linux/arm64")[0],
    ]
    attested = put_artifact(store, "application/vnd.in-toto+json", contents=[])
    children.append(
        Descriptor(
            media_type=attested.media_type,
            digest=attested.digest,
            size=attested.size,
            platform=PlatformDocument(os="unknown", architecture="unknown"),
        )
    )
    return put_index(store, children)


def children(index: bytes) -> list[str]:
    return [entry.digest for entry in parse_index(index).manifests]


class Carried:
    """A base that was in a registry, and, that registry gone, is in another under the same name and digest."""

    def __init__(self, name: str, index: Descriptor, receipt: Receipt) -> None:
        self.name, self.index, self.receipt = name, index, receipt


def carry(folder: Path, choice: str, *, private: str, upstream: Path) -> Carried:
    with run_registry(upstream) as registry, RegistryClient(registry.address, options=ANONYMOUS) as client:
        store = LayoutStore.create(folder / "made")
        index = upstream_image(store)
        copy_image(store, RegistrySink(client, "nvidia/base"), index, reference="1.0")
        name = f"{registry.address}/nvidia/base:1.0"
        write_step(folder, "sft/one")
        document = airgap({"base": name}, {"sft/one": "base"}, bases=choice, platforms=["linux/amd64"])
        plan = make_plan(load_config(write_airgap(folder, document)), stages=["build-execution-images"])
        cache = BaseCache(
            folder / "cache",
            open_registry=lambda reference: RegistrySource(client, reference.repository),
            emit=silent,
        )
        base = plan.groups[0].base_image
        locked = cache.bring(base, [AMD64], locked=None).locked
        lock = Lockfile(bases={base.key: locked})
        originals = bring_originals(plan, lock, cache)
    assert bring_originals(plan, lock, cache) == originals, "what is in the cache is not fetched again"
    bundle = LayoutStore.create(folder / "bundle")
    entries = put_originals(originals, cache.store, bundle)
    manifest = BundleManifest(
        workflow={"stages": []},
        build_stages=(),
        images=tuple(entries),
        compression="zstd",
        tool=ToolEntry(airferry="0"),
    )
    sealed = seal(bundle, originals, manifest=manifest)
    report = verify_bundle(folder / "bundle", root=sealed.root)
    assert report.findings == ()
    (blob,) = [layer.digest for layer in entries[0].platforms["linux/amd64"].layers]
    bundle.blob_path(blob).unlink()
    assert any(
        "missing" in str(finding) or "no such" in str(finding).lower()
        for finding in verify_bundle(folder / "bundle").findings
    )
    put_originals(originals, cache.store, bundle)
    loaded = load(folder / "bundle", to=f"{private}/airgap", receipt=folder / "receipt.yaml", options=ANONYMOUS)
    return Carried(name, index, loaded.receipt)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], Path]) -> Iterator[str]:
    require_tool("docker-registry")
    with run_registry(tmp_path_factory.mktemp("private")) as running:
        yield running.address


@pytest.fixture
def runtime_folder() -> Iterator[Path]:
    # podman refuses a run root of more than 50 characters
    folder = Path(tempfile.mkdtemp(prefix="af-", dir="/tmp"))
    yield folder
    files.remove_tree(folder)


def test_podman_pulls_by_the_original_name_and_gets_the_original_digest(
    tmp_path: Path, private: str, runtime_folder: Path, require_tool: Callable[[str], Path]
) -> None:
    podman = require_tool("podman")
    carried = carry(tmp_path, "include", private=private, upstream=tmp_path / "upstream")
    (image,) = carried.receipt.images
    assert (image.role, image.image, image.digest) == ("base", carried.name, carried.index.digest)
    assert image.reference == f"{private}/airgap/nvidia/base:1.0"
    assert set(image.platforms) == {"linux/amd64", "linux/arm64"}
    made = make_mirrors(carried.receipt)
    conf = tmp_path / "registries.conf"
    conf.write_text(made.files["containers/registries.conf.d/50-airferry.conf"])
    own = ["--root", runtime_folder / "root", "--runroot", runtime_folder / "run", "--storage-driver", "vfs"]
    environment = {"CONTAINERS_REGISTRIES_CONF": str(conf)}
    for name in (carried.name, f"{carried.name.rpartition(':')[0]}@{carried.index.digest}"):
        pulled = process.run([podman, *own, "pull", "-q", name], timeout_s=TIMEOUT_S, environment=environment)
        digests = process.run(
            [podman, *own, "image", "inspect", "--format", "{{.RepoDigests}}", pulled.text.strip()],
            timeout_s=TIMEOUT_S,
            environment=environment,
        ).text
        assert carried.index.digest in digests
    with pytest.raises(BuildError):
        process.run([podman, *own, "pull", "-q", carried.name], timeout_s=TIMEOUT_S)


def test_only_what_the_platforms_need_keeps_the_digests_of_its_parts(tmp_path: Path, private: str) -> None:
    carried = carry(tmp_path, "platforms", private=f"{private}/narrow", upstream=tmp_path / "upstream")
    (image,) = carried.receipt.images
    assert image.platforms == ("linux/amd64",) and image.digest != carried.index.digest
    original = LayoutStore.open(tmp_path / "made")
    with RegistryClient(private, options=ANONYMOUS) as client:
        source = RegistrySource(client, "narrow/airgap/nvidia/base")
        (child,) = children(source.read_manifest(source.resolve("1.0")).data)
    assert child in children(original.read_bytes(carried.index))


def test_containerd_fetches_by_the_original_name(
    tmp_path: Path, private: str, runtime_folder: Path, require_tool: Callable[[str], Path]
) -> None:
    for name in ("ctr", "containerd"):
        require_tool(name)
    carried = carry(tmp_path, "include", private=f"{private}/c", upstream=tmp_path / "upstream")
    hosts = tmp_path / "hosts"
    for name, text in make_mirrors(carried.receipt).files.items():
        files.write_text(hosts / name, text)
    with run_containerd(runtime_folder) as ctr:
        certificates = hosts / "containerd" / "certs.d"
        process.run(
            [*ctr, "content", "fetch", "--all-platforms", "--hosts-dir", certificates, carried.name],
            timeout_s=TIMEOUT_S,
        )
        listed = process.run([*ctr, "images", "list"], timeout_s=TIMEOUT_S).text
    assert carried.index.digest in next(line for line in listed.splitlines() if line.startswith(carried.name))


def test_nodes_that_did_as_they_were_told_pull_from_a_registry_with_tls_and_a_password(
    tmp_path: Path, runtime_folder: Path, require_tool: Callable[[str], Path]
) -> None:
    """The commands of `INSTALL.txt`, run as they are but for the folders below /etc, which are the test's."""
    for name in ("ctr", "containerd", "docker-registry", "htpasswd"):
        require_tool(name)
    tls, password = make_authority(tmp_path / "ca"), basic_options(tmp_path / "auth")
    certificate = tmp_path / "ca" / "ca.crt"
    with run_registry(tmp_path / "registry", extra=password, tls=tls) as running:
        options = ClientOptions(ca_file=certificate, lookup=lambda _registry, _repository: Credential(USER, PASSWORD))
        store = LayoutStore.create(tmp_path / "made")
        index = upstream_image(store)
        with RegistryClient(running.address, options=options) as client:
            copy_image(store, RegistrySink(client, "airgap/nvidia/base"), index, reference="1.0")
        place = f"{running.address}/airgap/nvidia/base:1.0"
        base = ReceiptImage(
            name="base",
            role="base",
            image=NVIDIA,
            reference=place,
            pinned=f"{place}@{index.digest}",
            digest=index.digest,
        )
        receipt = Receipt(
            bundle_root=index.digest,
            root_verified=True,
            registry=f"{running.address}/airgap",
            connection=ReceiptConnection(tls=True, ca_fingerprints=fingerprints(certificate)),
            loaded_at="2026-01-01T00:00:00Z",
            airferry="0",
            images=(base,),
        )
        etc, mirrors = tmp_path / "etc", tmp_path / "mirrors"
        made = make_mirrors(receipt, ca=NodeCa(certificate=certificate))
        (said,) = made.notes
        assert "means each node itself" in said, "nothing else"
        files.write_texts(mirrors, {name: text.replace("/etc/", f"{etc}/") for name, text in made.files.items()})
        files.ensure_directory(etc / "containerd")
        told = [step for step in made.steps(["kubernetes"]) if not step.purpose.startswith(("CRI-O", "OpenShift"))]
        commands = [step.command.replace("/etc/", f"{etc}/") for step in told]
        stubs = ['sudo() { "$@"; }', 'kubectl() { case "$1" in create | apply) cat ;; esac; }']
        run = [line for line in commands if not line.startswith("read ") and "config dump" not in line]
        script = "\n".join(["set -euo pipefail", *stubs, *run])
        environment = {"REGISTRY_USER": USER, "REGISTRY_PASSWORD": PASSWORD}
        secret = process.run(["bash", "-c", script], timeout_s=TIMEOUT_S, cwd=mirrors, environment=environment).text
        held = json.loads(secret)
        assert base64.b64decode(held["auths"][running.address]["auth"]).decode() == f"{USER}:{PASSWORD}"
        with run_containerd(runtime_folder) as ctr:
            fetch = [*ctr, "content", "fetch", "--all-platforms", "--hosts-dir", etc / "containerd" / "certs.d", NVIDIA]
            process.run(fetch, timeout_s=TIMEOUT_S)
            assert index.digest in process.run([*ctr, "images", "list"], timeout_s=TIMEOUT_S).text
