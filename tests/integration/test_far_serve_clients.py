"""`airferry serve` as others see it: skopeo, podman, buildah, our own client, many at a time, with TLS."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from registries import PASSWORD, USER, basic_options, make_authority

from airferry.bundle.manifest import BundleManifest, ToolEntry, describe_image, describe_platform
from airferry.bundle.seal import seal
from airferry.bundle.verify import Bundle, open_bundle
from airferry.host import files, process
from airferry.oci.digest import digest_of
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.source import RegistrySource
from oci_images import REFERENCE, make_bundle, put_image, put_index

RequireTool = Callable[[str], Path]
TIMEOUT_S = 120
STARTS_WITHIN_S = 30
NAME = "team/trainer"
TAG = f"{NAME}:1.0"
LARGE_BYTES = 48 << 20


@dataclass
class Served:
    """A registry that runs: its address, its process, what it said."""

    address: str
    pid: int
    log: Path

    def resident_mib(self) -> float:
        """Return the memory that it holds now."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@contextmanager
def serving(bundle: Path, folder: Path, *options: str | Path) -> Iterator[Served]:
    """Run `airferry serve` on a free port until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    argv = [sys.executable, "-c", "from airferry.cli import main; main()", "serve", bundle]
    child = process.start([*argv, "--listen", "127.0.0.1:0", *options], log=log)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not (found := re.search(r"at https?://(127\.0\.0\.1:\d+),", log.read_text())):
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield Served(found[1], child.pid, log)
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(timeout=20) == 0, log.read_text()
    finally:
        process.end_process_group(child)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("served") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(bundle.store.path, tmp_path_factory.mktemp("serve"), "--root", bundle.root) as found:
        yield found


@pytest.fixture
def storage() -> Iterator[list[str | Path]]:
    """Give options for container storage of its own; podman refuses a run root of more than 50 characters."""
    folder = Path(tempfile.mkdtemp(prefix="af-", dir="/tmp"))
    yield ["--root", folder / "root", "--runroot", folder / "run", "--storage-driver", "vfs"]
    files.remove_tree(folder)


def references(bundle: Bundle, served: Served) -> list[str]:
    """Return the image by tag and by digest."""
    return [f"{served.address}/{TAG}", f"{served.address}/{NAME}@{bundle.images[REFERENCE].digest}"]


def test_skopeo_copies_by_tag_and_by_digest(
    bundle: Bundle, served: Served, require_tool: RequireTool, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default":[{"type":"insecureAcceptAnything"}]}')
    for number, reference in enumerate(references(bundle, served)):
        argv = [require_tool("skopeo"), "--policy", policy, "copy", "--all", "--src-tls-verify=false"]
        into = tmp_path / str(number)
        process.run([*argv, f"docker://{reference}", f"oci:{into}:x"], timeout_s=TIMEOUT_S)
        assert LayoutStore.open(into).resolve("x").digest == bundle.images[REFERENCE].digest


@pytest.mark.parametrize("program", ["podman", "buildah"])
def test_podman_and_buildah_pull_by_tag_and_by_digest(
    bundle: Bundle, served: Served, require_tool: RequireTool, storage: list[str | Path], program: str
) -> None:
    for reference in references(bundle, served):
        argv = [require_tool(program), *storage, "pull", "--quiet", "--tls-verify=false", reference]
        image = process.run(argv, timeout_s=TIMEOUT_S).text.strip()
        layers = bundle.manifest.images[0].platforms["linux/amd64"]
        assert image.removeprefix("sha256:") == layers.config_digest.removeprefix("sha256:")


def test_our_own_client_finds_referrers(bundle: Bundle, served: Served) -> None:
    with RegistryClient(served.address, options=ClientOptions()) as client:
        source = RegistrySource(client, NAME)
        (entry,) = source.referrers(bundle.images[REFERENCE].digest)
        assert entry.digest == bundle.manifest.artifacts[0].digest
        assert source.read_manifest(source.resolve("1.0")).descriptor.digest == bundle.images[REFERENCE].digest


def test_what_was_verified_is_said(bundle: Bundle, served: Served) -> None:
    layer = bundle.manifest.images[0].platforms["linux/arm64"].layers[1]
    get(served.address, f"/v2/{NAME}/blobs/{layer.digest}")
    said = served.log.read_text()
    assert f"verified {layer.digest}" in said and "(as expected)" in said
    assert f"{served.address}/{TAG}  {bundle.images[REFERENCE].digest}" in said


def test_a_range_comes_over_the_wire(bundle: Bundle, served: Served) -> None:
    layer = bundle.manifest.images[0].platforms["linux/amd64"].layers[0]
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    whole = get(served.address, path)
    assert digest_of(whole) == layer.digest
    assert get(served.address, path, {"Range": "bytes=7-"}) == whole[7:]


def get(address: str, path: str, headers: dict[str, str] | None = None) -> bytes:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        assert answer.status in (200, 206), answer.read()
        return answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Make a bundle of one image with a layer of 48 MiB."""
    path = tmp_path_factory.mktemp("large") / "bundle"
    store = LayoutStore.create(path)
    child, results = put_image(store, [{"large": os.urandom(LARGE_BYTES)}], kind="none")
    index = put_index(store, [child])
    platforms = {"linux/amd64": describe_platform(store, child, layers=results)}
    entry = describe_image(
        index, name="large", role="execution", image=REFERENCE, reference=REFERENCE, platforms=platforms
    )
    manifest = BundleManifest(
        workflow={}, build_stages=(), images=(entry,), compression="none", tool=ToolEntry(airferry="0.1.0")
    )
    seal(store, {REFERENCE: index}, manifest=manifest)
    return open_bundle(path)


@pytest.mark.alone
def test_64_parallel_pulls_hold_no_memory(large: Bundle, tmp_path: Path) -> None:
    layer = large.manifest.images[0].platforms["linux/amd64"].layers[0]
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    data = large.store.blob_path(layer.digest).read_bytes()
    whole: list[bool] = []

    def pull(address: str) -> None:
        connection = http.client.HTTPConnection(address, timeout=120)
        connection.request("GET", path)
        answer = connection.getresponse()
        position, same = 0, True
        while block := answer.read(1 << 18):
            same = same and block == data[position : position + len(block)]
            position += len(block)
        connection.close()
        whole.append(same and position == len(data))

    with serving(large.store.path, tmp_path) as served:
        pull(served.address)
        before = served.resident_mib()
        threads = [threading.Thread(target=pull, args=(served.address,)) for _ in range(64)]
        for thread in threads:
            thread.start()
        peak = before
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, served.resident_mib())
            time.sleep(0.02)
        assert whole == [True] * 65
        assert peak - before < LARGE_BYTES / 2**20, f"{before:.0f} MiB grew to {peak:.0f} MiB"
        assert served.log.read_text().count(f"verified {layer.digest}") == 1


def test_clients_that_leave_early_leave_nothing_behind(large: Bundle, tmp_path: Path) -> None:
    layer = large.manifest.images[0].platforms["linux/amd64"].layers[0]
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    with serving(large.store.path, tmp_path) as served:
        assert digest_of(get(served.address, path)) == layer.digest
        opened = len(list(Path(f"/proc/{served.pid}/fd").iterdir()))
        for _time in range(20):
            connection = http.client.HTTPConnection(served.address, timeout=60)
            connection.request("GET", path)
            connection.getresponse().read(1000)
            connection.close()
        assert digest_of(get(served.address, path)) == layer.digest
        deadline = time.monotonic() + 20
        while len(list(Path(f"/proc/{served.pid}/fd").iterdir())) > opened and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(list(Path(f"/proc/{served.pid}/fd").iterdir())) <= opened
        assert "bug" not in served.log.read_text() and "Traceback" not in served.log.read_text()


def test_tls_and_a_password(bundle: Bundle, require_tool: RequireTool, tmp_path: Path) -> None:
    require_tool("htpasswd")
    tls = make_authority(tmp_path / "ca")
    basic_options(tmp_path / "users")
    options = ["--tls-cert", tls["certificate"], "--tls-key", tls["key"], "--htpasswd", tmp_path / "users/htpasswd"]
    with serving(bundle.store.path, tmp_path, *options) as served:
        certificates = tmp_path / "certificates"
        certificates.mkdir()
        (certificates / "ca.crt").write_bytes((tmp_path / "ca/ca.crt").read_bytes())
        argv = [require_tool("skopeo"), "inspect", "--raw", "--cert-dir", certificates]
        image = f"docker://{served.address}/{TAG}"
        accepted = process.run([*argv, "--creds", f"{USER}:{PASSWORD}", image], timeout_s=TIMEOUT_S)
        assert digest_of(accepted.stdout) == bundle.images[REFERENCE].digest
        for wrong in (["--creds", f"{USER}:wrong"], ["--no-creds"]):
            refused = process.run([*argv, *wrong, image], timeout_s=TIMEOUT_S, check=False)
            assert refused.returncode != 0
            assert (
                "unauthorized" in " ".join(refused.tail).lower() or "authentication" in " ".join(refused.tail).lower()
            )
        layer = bundle.manifest.images[0].platforms["linux/amd64"].layers[0]
        copy = [require_tool("skopeo"), "--insecure-policy", "copy", "--src-cert-dir", certificates]
        process.run([*copy, "--src-creds", f"{USER}:{PASSWORD}", image, f"oci:{tmp_path / 'x'}:x"], timeout_s=TIMEOUT_S)
        assert (tmp_path / "x/blobs/sha256" / layer.digest.partition(":")[2]).is_file()


def test_json_names_what_is_served(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle.store.path, tmp_path, "--json") as served:
        line = next(line for line in served.log.read_text().splitlines() if line.startswith("{"))
        document = json.loads(line)
        assert document["url"] == f"http://{served.address}" and document["root"] == bundle.root
        assert {"reference": f"{served.address}/{TAG}", "digest": bundle.images[REFERENCE].digest} in document["images"]
