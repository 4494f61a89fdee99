"""Docker twins: sealed with the bundle, verified with it, loaded next to their images, left out where refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airferry import api
from airferry.bundle.manifest import BundleManifest, TwinEntry
from airferry.bundle.seal import seal
from airferry.bundle.twins import images_text, twin_of, with_twins
from airferry.bundle.verify import open_bundle, verify_bundle
from airferry.config import load_config
from airferry.errors import ConfigurationError
from airferry.far.relocate import parse_destination
from airferry.far.serve.offer import read_repositories
from airferry.oci.documents import DOCKER_MANIFEST_LIST, Descriptor, parse_index
from airferry.oci.layout import LayoutStore
from airferry.oci.reference import parse_reference
from catalogues import airgap, write_airgap, write_step
from oci_images import REFERENCE, make_bundle, make_image

TWIN = REFERENCE + "-docker"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle", twins=True)
    return tmp_path / "bundle"


def texts(path: Path) -> list[str]:
    return [str(finding) for finding in verify_bundle(path).findings]


def reseal(path: Path, *, manifest: dict[str, Any] | None = None, images: dict[str, Descriptor] | None = None) -> None:
    opened = open_bundle(path)
    others = [entry for entry in opened.artifacts if entry.digest != opened.manifest_descriptor.digest]
    changed = BundleManifest.model_validate({**opened.manifest.model_dump(), **(manifest or {})})
    seal(LayoutStore.open(path), images or opened.images, artifacts=others, manifest=changed)


def test_a_twin_lists_the_very_manifests_of_its_image_and_adds_one_small_blob(tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "plain")
    with_twin = make_bundle(tmp_path / "twin", twins=True)
    opened = open_bundle(tmp_path / "twin")
    index, twin = opened.images[REFERENCE], opened.images[TWIN]
    data = opened.store.read_bytes(twin)
    document = json.loads(data)
    assert (twin.media_type, document["mediaType"]) == (DOCKER_MANIFEST_LIST, DOCKER_MANIFEST_LIST)
    assert document["manifests"] == json.loads(opened.store.read_bytes(index))["manifests"]
    assert sorted(document) == ["manifests", "mediaType", "schemaVersion"]
    assert with_twin.root != plain.root and with_twin.size_bytes < plain.size_bytes + 2048
    assert make_bundle(tmp_path / "again", twins=True).root == with_twin.root
    assert opened.manifest.images[0].docker_twin == TwinEntry(reference=TWIN, digest=twin.digest)
    report = verify_bundle(tmp_path / "twin")
    assert report.ok and (report.images, report.twins, report.originals) == (1, 1, 0)
    assert report.images_text == "1 image and 1 Docker twin"
    assert images_text(2, twins=2, originals=1) == "2 images, 2 Docker twins and 1 original base image"
    assert images_text(3, twins=0, originals=0) == "3 images"


def test_a_report_names_twins(bundle: Path) -> None:
    text = api.report(bundle).text
    assert TWIN in text.split() and open_bundle(bundle).images[TWIN].digest in text.split()


def test_what_is_wrong_with_a_twin_is_found(bundle: Path) -> None:
    opened = open_bundle(bundle)
    images = {name: entry for name, entry in opened.images.items() if name != TWIN}
    reseal(bundle, images=images)
    assert texts(bundle) == [f"Docker twin of image `trainer`: `{TWIN}` is in the manifest, not in the layout"]

    make_bundle(bundle, twins=True)
    store = LayoutStore.open(bundle)
    other = store.put_bytes(
        json.dumps(
            {
                **json.loads(opened.store.read_bytes(opened.images[TWIN])),
                "manifests": [
                    entry.model_dump(by_alias=True, exclude_none=True)
                    for entry in parse_index(opened.store.read_bytes(opened.images[TWIN])).manifests[:1]
                ],
            }
        ).encode(),
        DOCKER_MANIFEST_LIST,
    )
    reseal(bundle, images={**images, TWIN: other})
    found = texts(bundle)
    assert len(found) == 2 and all("Docker twin of image `trainer`" in text for text in found)
    assert "the manifest says" in found[0] and "lists different manifests than the image" in found[1]

    make_bundle(bundle, twins=True)
    entry = {**open_bundle(bundle).manifest.images[0].model_dump(), "docker_twin": None}
    reseal(bundle, manifest={"images": [entry]})
    assert texts(bundle) == [f"image `{TWIN}`: is in the layout, not in the manifest"]


def test_the_name_of_a_twin_is_a_tag_and_its_own(tmp_path: Path) -> None:
    assert str(twin_of(parse_reference("a.example/b:" + "c" * 128))).endswith(":" + "c" * 121 + "-docker")
    store = LayoutStore.create(tmp_path)
    index, entry = make_image(store)
    with pytest.raises(ConfigurationError, match="is the name of an image, and of the Docker twin") as caught:
        with_twins(store, [entry], {REFERENCE: index, TWIN: index})
    assert "docker_twin: false" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("site", "written", "expected"),
    [
        (None, None, False),
        (["slurm-pyxis:4.1"], None, True),
        (["slurm-pyxis:3.5"], "auto", True),
        (["kubernetes"], None, False),
        (["slurm-pyxis:4.1"], False, False),
        (None, True, True),
    ],
)
def test_twins_are_made_for_enroot_or_as_written(tmp_path: Path, site: Any, written: Any, expected: bool) -> None:
    write_step(tmp_path, "sft/one")
    more = {**({"site": {"executors": site}} if site else {}), **({} if written is None else {"docker_twin": written})}
    document = airgap({"base": "registry.example/base:1"}, {"sft/one": "base"}, **more)
    assert load_config(write_airgap(tmp_path, document)).effective_docker_twin is expected


def test_serve_offers_twins_under_their_tags(bundle: Path) -> None:
    repository = read_repositories(open_bundle(bundle), parse_destination("localhost:1"))["team/trainer"]
    found = repository.find("1.0-docker")
    assert found is not None and found.descriptor.media_type == DOCKER_MANIFEST_LIST
