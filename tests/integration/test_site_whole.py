"""From a plan with `bases: include` to jobs: built, loaded, overlays written, and the checklist run against it all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from registries import run_registry

from airferry.oci.copy import copy_image
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.usecases import load, verify
from airferry.usecases import site as site_usecases
from near_side import REFERENCE, TARGET, make_near_side

ANONYMOUS = ClientOptions(lookup=lambda registry, repository: None)


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
        side.write(
            bases="include",
            site={"executors": ["docker:20.10"], "platform": "linux/amd64"},
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
        made = site_usecases.overlays(receipt, source=side.catalogue, out=out, site=side.config)
        (step,) = made.steps
        assert step.target == "train/run:tiny" and step.cleared[0].endswith(f"@main,{TARGET}")
        checked = {"source": side.catalogue, "receipt": receipt, "site": side.config, "options": ANONYMOUS}
        without = site_usecases.check(**checked)
        assert {finding.kind for finding in without.blocking} == {"git", "image"}
        assert site_usecases.check(**checked, overlays=out).findings == ()
        assert site_usecases.mirrors(receipt, out=tmp_path / "mirrors").images[0].digest == index.digest
    gone = site_usecases.check(**checked, overlays=out)
    assert [finding.kind for finding in gone.blocking] == ["image"] and inside.address in gone.blocking[0].text
