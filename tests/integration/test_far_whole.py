"""From a plan with `bases: include` to jobs: built, loaded, overlays written, and the checklist run against it all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from registries import run_registry

from airferry import api
from airferry.api import load, unpack_asset, verify
from airferry.bundle.receipt import Receipt, read_receipt, write_receipt
from airferry.errors import IntegrityError
from airferry.oci.copy import copy_image
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from near_side import REFERENCE, TARGET, make_near_side

ANONYMOUS = ClientOptions(lookup=lambda registry, repository: None)


def write_asset(folder: Path) -> dict[str, bytes]:
    """Write a model with a large file, a small one, and names that are hard to carry; return what is in it."""
    folder.mkdir(parents=True)
    content = {"model.safetensors": os.urandom(17 << 20), "config.json": b"{}", "a\nb.txt": b"x"}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return content


def replace(receipt: Receipt, path: Path) -> Path:
    """Write the receipt as if it were of another bundle and return its path."""
    write_receipt(receipt.model_copy(update={"bundle_root": "sha256:" + "0" * 64}), path)
    return path


def test_a_plan_becomes_jobs_that_nothing_blocks(
    near_base: Path,
    near_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    require_tool: Callable[[str], Path],
) -> None:
    require_tool("docker-registry")
    side = make_near_side(tmp_path / "near", near_base)
    monkeypatch.setenv("AIRFERRY_CACHE", str(near_cache))
    for name, value in side.environment.items():
        monkeypatch.setenv(name, value)
    store = LayoutStore.open(near_base, read_only=True)
    with run_registry(tmp_path / "outside") as outside:
        with RegistryClient(outside.address, options=ANONYMOUS) as client:
            index = copy_image(store, RegistrySink(client, "team/base"), store.resolve(REFERENCE), reference="1")
        base = f"{outside.address}/team/base:1"
        image = {**side.document["execution_images"]["py"], "base_image": base}
        weights = write_asset(side.catalogue / "models" / "base")
        storage = tmp_path / "storage"
        storage.mkdir()
        site = {"executors": ["docker:20.10"], "platform": "linux/amd64", "mounts": [f"{storage}:/models:ro"]}
        side.write(
            bases="include",
            assets={"base": {"kind": "model", "path": "models/base", "target": "/models/base", "pack": True}},
            site=site,
            launcher_image={**side.document["launcher_image"], "base_image": base},
            execution_images={"py": image},
        )
        built = side.build()
    assert built.manifest is not None and built.manifest.compression == "gzip", "Docker 20.10 reads no zstd"
    (original,) = (entry for entry in built.manifest.images if entry.role == "base")
    assert (original.image, original.digest) == (base, index.digest)
    assert set(original.platforms) == {"linux/amd64", "linux/arm64"}
    assert [entry.image for entry in built.manifest.saved_images if entry.role == "base"] == [base]
    assert verify(built.output, root=built.root).ok
    again = side.build()
    assert (again.root, again.reused) == (built.root, len(built.images)), "the registry outside is gone by now"

    with run_registry(tmp_path / "inside") as inside:
        receipt = tmp_path / "receipt.yaml"
        load(built.output, to=f"{inside.address}/airgap", root=built.root, receipt=receipt, options=ANONYMOUS)
        with RegistryClient(inside.address, options=ANONYMOUS) as client:
            assert RegistrySource(client, "airgap/team/base").find("1") == index.digest
        out = tmp_path / "overlays"
        made = api.overlays(receipt, catalogue=api.CatalogueSource(side.catalogue), out=out, site=side.config)
        (step,) = made.steps
        assert step.target == "train/run:tiny" and step.cleared[0].endswith(f"@main,{TARGET}")
        plain, overlaid = api.JobSelection(side.config), api.JobSelection(side.config, overlays=out)
        copied = api.CatalogueSource(side.catalogue)
        carried = api.CatalogueSource(side.catalogue, built.output)
        without = api.check(plain, receipt=receipt, catalogue=copied, options=ANONYMOUS)
        assert {finding.kind for finding in without.blocking} == {"git", "image"}
        assert api.check(overlaid, receipt=receipt, catalogue=copied, options=ANONYMOUS).findings == ()
        assert api.mirrors(receipt, out=tmp_path / "mirrors").images[0].digest == index.digest
        (missing,) = api.check(overlaid, receipt=receipt, catalogue=carried, options=ANONYMOUS).blocking
        assert (missing.kind, missing.text) == ("asset", f"the model `base` is not there (`{storage}/base` here)")
        (asset,) = built.manifest.persistent_assets.assets
        place = f"{inside.address}/airgap/airferry-artifacts@{asset.pack}"
        assert unpack_asset(place, storage / "base", options=ANONYMOUS).files == len(weights)
        assert {path.name: path.read_bytes() for path in (storage / "base").iterdir()} == weights
        staged = api.check(overlaid, receipt=receipt, catalogue=carried, hash_assets=True, options=ANONYMOUS)
        assert staged.findings == ()
        one = next(path for path in sorted((storage / "base").iterdir()) if path.name.isprintable())
        one.write_bytes(bytes(one.stat().st_size))
        (changed,) = api.check(
            overlaid, receipt=receipt, catalogue=carried, hash_assets=True, options=ANONYMOUS
        ).blocking
        assert changed.kind == "asset" and f"changed: {one.name}" in changed.text, changed.text
        by_size = api.check(overlaid, receipt=receipt, catalogue=carried, options=ANONYMOUS)
        assert by_size.findings == (), "names and sizes are right"
        with pytest.raises(IntegrityError, match="is of bundle"):
            other = replace(read_receipt(receipt), tmp_path / "other.yaml")
            api.check(overlaid, receipt=other, catalogue=carried, options=ANONYMOUS)
    gone = api.check(overlaid, receipt=receipt, catalogue=copied, options=ANONYMOUS)
    assert [finding.kind for finding in gone.blocking] == ["image"] and inside.address in gone.blocking[0].text
