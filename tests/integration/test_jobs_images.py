"""What a real registry says about the images that steps run in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from registries import free_port, run_registry

from airferry.config import Executor
from airferry.host.canonical import canonical_json
from airferry.jobs.images import ask_images
from airferry.oci.copy import copy_image
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, Manifest
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from oci_images import make_image

OPTIONS = ClientOptions(
    connect_timeout_s=2.0,
    retry=RetryPolicy(attempts=2, first_pause_s=0.01, longest_pause_s=0.05),
    lookup=lambda registry, repository: None,
)


def test_images_are_found_with_their_variables_or_it_is_said_why_not(
    tmp_path: Path, require_tool: Callable[[str], Path]
) -> None:
    require_tool("docker-registry")
    store = LayoutStore.create(tmp_path / "layout")
    index, _entry = make_image(store)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["CUDA_VERSION=12.8.0", "EMPTY=", "A=b=c"]},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    plain = store.put_bytes(
        canonical_json(
            Manifest(
                schema_version=2,
                media_type=IMAGE_MANIFEST,
                config=store.put_bytes(canonical_json(config), IMAGE_CONFIG),
                layers=[],
            )
        ),
        IMAGE_MANIFEST,
    )
    with run_registry(tmp_path / "registry") as running:
        with RegistryClient(running.address, options=OPTIONS) as client:
            for image in (index, plain):
                copy_image(store, RegistrySink(client, "a/b"), image)
        name = f"{running.address}/a/b@"
        gone, dead = name + "sha256:" + "0" * 64, f"127.0.0.1:{free_port()}/a/b@{index.digest}"
        pinned = [name + index.digest, name + plain.digest, gone, dead]
        executor = Executor(kind="kubernetes")
        said = ask_images(pinned, executor=executor, platform=parse_platform("linux/arm64"), options=OPTIONS)
    assert said[name + index.digest].found and said[name + index.digest].environment == {}
    assert said[name + plain.digest].environment == {"CUDA_VERSION": "12.8.0", "EMPTY": "", "A": "b=c"}
    assert not said[gone].found and said[gone].problem is None
    assert not said[dead].found and "127.0.0.1" in (said[dead].problem or "")
