"""One JSON, one meaning: what Go's decoder and others read differently is refused, and named in what is exempt."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_bundle_verify import reseal

from airferry import api
from airferry.bundle.manifest import describe_original
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.errors import AirferryError, IntegrityError
from airferry.far.copy import copy
from airferry.host.canonical import canonical_json
from airferry.oci.closure import read_closure
from airferry.oci.documents import (
    DOCKER_MANIFEST,
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    Descriptor,
    PlatformDocument,
    ambiguities,
    descriptor_of,
)
from airferry.oci.entries import named
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform
from oci_images import make_bundle, put_image, put_index

DIGEST = "sha256:" + "1" * 64
OTHER = "registry.example/team/other:1"
CHILD = f'{{"mediaType":"{IMAGE_MANIFEST}","digest":"{DIGEST}","size":7}}'
MANIFEST = f'{{"schemaVersion":2,"mediaType":"{IMAGE_MANIFEST}","config":{CHILD},"layers":[{CHILD}]}}'
INDEX = f'{{"schemaVersion":2,"mediaType":"{IMAGE_INDEX}","manifests":[{CHILD}]}}'
CONFIG = '{"architecture":"amd64","os":"linux","config":{"Env":[]},"rootfs":{"type":"layers","diff_ids":[]}}'
INLINE = base64.b64encode(b"1234567").decode()


def also(text: str, member: str) -> str:
    """Return an object with one more member."""
    return text[:-1] + f",{member}}}"


@pytest.mark.parametrize(
    ("text", "media_type", "reason"),
    [
        (also(MANIFEST, '"Layers":[]'), IMAGE_MANIFEST, "`Layers`, which some programs read as `layers`"),
        (also(MANIFEST, '"\u017fubject":null'), IMAGE_MANIFEST, "which some programs read as `subject`"),
        (MANIFEST.replace('"layers"', '"LAYERS"'), IMAGE_MANIFEST, "`LAYERS`, which some programs read as `layers`"),
        (also(MANIFEST, '"layers":[]'), IMAGE_MANIFEST, "has the key `layers` twice"),
        (also(MANIFEST, '"x":{"a":1,"a":2}'), IMAGE_MANIFEST, "has the key `a` twice"),
        (MANIFEST.replace('"size":7', '"size":7,"Size":8'), IMAGE_MANIFEST, "`layers.Size`, which some"),
        (also(MANIFEST, f'"manifests":[{CHILD}]'), IMAGE_MANIFEST, "is a manifest that has `manifests` as well"),
        (also(MANIFEST, '"fsLayers":[]'), IMAGE_MANIFEST, "is a manifest that has `fsLayers` as well"),
        (also(INDEX, f'"config":{CHILD}'), IMAGE_INDEX, "is an index that has `config` as well"),
        (also(INDEX, '"layers":[]'), IMAGE_INDEX, "is an index that has `layers` as well"),
        (also(INDEX, '"LayerS":[]'), IMAGE_INDEX, "is an index that has `LayerS` as well"),
        (INDEX.replace('"size":7', '"size":7,"platform":{"OS":"","os":"x"}'), IMAGE_INDEX, "`manifests.platform.OS`"),
        (MANIFEST, DOCKER_MANIFEST, f"says that its media type is `{IMAGE_MANIFEST}`"),
        (INDEX, IMAGE_MANIFEST, f"says that its media type is `{IMAGE_INDEX}`"),
        (MANIFEST.replace('"size":7', f'"size":7,"data":"{INLINE}"'), IMAGE_MANIFEST, "`layers.data` that is not"),
        (CONFIG.replace('"Env":[]', '"Env":[],"env":["A=b"]'), IMAGE_CONFIG, "`config.env`, which some programs read"),
        (also(CONFIG, '"Rootfs":{}'), IMAGE_CONFIG, "`Rootfs`, which some programs read as `rootfs`"),
        (CONFIG.replace('"diff_ids"', '"Diff_IDs":[1],"diff_ids"'), IMAGE_CONFIG, "`rootfs.Diff_IDs`"),
        (also(CONFIG, '"history":[{"Created":"x"}]'), IMAGE_CONFIG, "`history.Created`"),
        ("[" * 900 + "]" * 900, IMAGE_CONFIG, ""),
        ("[" * 100_000, IMAGE_CONFIG, "nested too deeply"),
        ('{"a":[' + "{}," * 600_000 + "{}]}", IMAGE_CONFIG, "more than 500000 values"),
    ],
)  # fmt: skip
def test_what_programs_read_differently(text: str, media_type: str, reason: str) -> None:
    found = ambiguities(text.encode(), media_type)
    assert any(reason in problem for problem in found) if reason else not found


@pytest.mark.parametrize(
    ("text", "media_type"),
    [
        (MANIFEST, IMAGE_MANIFEST),
        (INDEX, IMAGE_INDEX),
        (CONFIG, IMAGE_CONFIG),
        (MANIFEST.replace(f'"mediaType":"{IMAGE_MANIFEST}",', "", 1), DOCKER_MANIFEST),
        (also(MANIFEST, '"annotations":{"Layers":"1","layers":"2","a":"3"},"X":1,"x":2'), IMAGE_MANIFEST),
        (CONFIG.replace('"Env":[]', '"Labels":{"env":"1","Env":"2"},"Hostname":"","x":1,"X":2'), IMAGE_CONFIG),
        ('{"a":1,"a":2}', "application/vnd.cncf.helm.config.v1+json"),
        ('{"a":"' + "," * 600_000 + '"}', IMAGE_CONFIG),
    ],
)
def test_labels_annotations_and_unknown_fields_may_differ_by_case(text: str, media_type: str) -> None:
    assert ambiguities(text.encode(), media_type) == ()


def test_content_within_a_descriptor_is_that_of_its_digest() -> None:
    child = json.dumps({**dumped(descriptor_of(b"1234567", "text/plain")), "data": INLINE})
    assert ambiguities(MANIFEST.replace(CHILD, child).encode(), IMAGE_MANIFEST) == ()


# --- where it counts -------------------------------------------------------------------------------------------------


def put_forged(store: LayoutStore, top: Descriptor, forge: Callable[[str], str]) -> Descriptor:
    """Store another manifest of an image, as someone else's bytes."""
    data = forge(store.read_bytes(top).decode()).encode()
    return store.put_bytes(data, IMAGE_MANIFEST, platform=top.platform)


def with_two_lists(text: str) -> str:
    return also(text, f'"Layers":[{CHILD}]')


def image_of(store: LayoutStore, *, forged: bool = True, content: bytes = b"1") -> Descriptor:
    top, _layers = put_image(store, [{"a": content}])
    return put_forged(store, top, with_two_lists) if forged else top


def add_entry(path: Path, entry: Descriptor, name: str = OTHER) -> None:
    store = LayoutStore.open(path)
    store.write_index([*store.read_index().manifests, named(entry, name)])


def test_a_bundle_with_an_image_of_two_meanings_is_not_whole(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    image = image_of(LayoutStore.open(tmp_path / "bundle"))
    add_entry(tmp_path / "bundle", image)
    findings = [str(finding) for finding in api.verify(tmp_path / "bundle").findings]
    text = f"manifest `{image.digest}` has the key `Layers`, which some programs read as `layers`"
    assert f"image `{OTHER}`: {text}" in findings


def test_an_image_layout_of_another_tool_is_held_to_the_same(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    add_entry(tmp_path / "layout", image_of(store))
    assert any("has the key `Layers`" in str(finding) for finding in api.verify(tmp_path / "layout").findings)


def test_an_original_is_exempt_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bundle"
    make_bundle(path)
    store = LayoutStore.open(path)
    index = put_index(store, [image_of(store)])
    reseal_with_original(path, index)
    report = api.verify(path)
    assert report.ok, report.findings
    (exempt,) = report.exempt
    assert "has the key `Layers`, which some programs read as `layers`" in str(exempt)
    assert report.to_document()["exempt"] == [str(exempt)]
    assert run(["verify", str(path)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "carried as it came, programs may read it differently" in said
    assert "`Layers`" in said


def test_an_original_may_list_indexes(tmp_path: Path) -> None:
    """Bundles are not nested, but what they carry as it came may be."""
    path = tmp_path / "bundle"
    make_bundle(path)
    store = LayoutStore.open(path)
    child, _results = put_image(store, [{"own": b"x"}])
    reseal_with_original(path, put_index(store, [put_index(store, [child])]))
    report = api.verify(path)
    assert report.ok, report.findings


def reseal_with_original(path: Path, index: Descriptor) -> None:
    """Seal a bundle again with one more image, as `bases: include` carries it."""
    entry = describe_original(LayoutStore.open(path), index, reference=OTHER)
    add_entry(path, index)
    reseal(path, lambda manifest: manifest.model_copy(update={"images": (*manifest.images, entry)}))


@pytest.mark.parametrize("member", ['"Manifests":[]', '"manifests":[]', '"layers":[]'])
def test_index_json_has_one_meaning(member: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle/index.json"
    path.write_text(also(path.read_text(), member))
    with pytest.raises(IntegrityError, match=r"index\.json` (has|is)"):
        open_bundle(tmp_path / "bundle")


def test_no_entry_of_two_meanings_is_written_into_index_json(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle/index.json"
    path.write_text(path.read_text().replace('"size":', '"Size":1,"size":', 1))
    store = LayoutStore.open(tmp_path / "bundle")
    with pytest.raises(IntegrityError, match=r"index\.json` has the key `manifests\.Size`"):
        store.write_index(store.read_index().manifests)


@pytest.mark.parametrize("to", ["oci:{}/there:x", "oci-archive:{}/there.tar:x"])
def test_a_copy_takes_nothing_of_two_meanings(to: str, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "here")
    add_entry(tmp_path / "here", image_of(store))
    with pytest.raises(IntegrityError, match="has the key `Layers`") as caught:
        copy(f"oci:{tmp_path}/here", to.format(tmp_path))
    assert "rebuilt" in str(caught.value.hint)
    assert not list(tmp_path.glob("there*"))


def test_a_copy_looks_at_configs_and_at_what_refers_to_an_image(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "here")
    config = CONFIG.replace('"Env":[]', '"Env":[],"env":["A=b"]').encode()
    manifest = json.loads(MANIFEST)
    manifest["config"] = dumped(store.put_bytes(config, IMAGE_CONFIG))
    manifest["layers"] = []
    add_entry(tmp_path / "here", store.put_bytes(canonical_json(manifest), IMAGE_MANIFEST))
    with pytest.raises(IntegrityError, match=r"config\.env"):
        copy(f"oci:{tmp_path}/here", f"oci:{tmp_path}/there")

    other = LayoutStore.create(tmp_path / "other")
    image = image_of(other, forged=False)
    add_entry(tmp_path / "other", image)
    text = also(json.dumps({**manifest, "subject": dumped(image)}), '"Subject":null')
    other.put_bytes(config, IMAGE_CONFIG)
    referrer = other.put_bytes(text.encode(), IMAGE_MANIFEST)
    other.put_manifest(other.read_manifest(referrer))
    with pytest.raises(IntegrityError, match="`Subject`"):
        copy(f"oci:{tmp_path}/other:{OTHER}", f"oci:{tmp_path}/there")


def dumped(descriptor: Descriptor) -> dict[str, Any]:
    return descriptor.model_dump(by_alias=True, exclude_none=True)


def test_nothing_of_two_meanings_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    make_bundle(path)
    before = (path / "index.json").read_bytes()
    store = LayoutStore.open(path)
    image = image_of(store)
    with pytest.raises(IntegrityError, match="has the key `Layers`"):
        seal(store, {OTHER: image}, manifest=open_bundle(path).manifest)
    assert (path / "index.json").read_bytes() == before


def test_an_index_of_two_meanings_is_not_narrowed(tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "here")
    children = [
        image_of(store, forged=False, content=name.encode()).annotated(
            platform=PlatformDocument(os="linux", architecture=name)
        )
        for name in ("amd64", "arm64")
    ]
    index = put_index(store, children)
    forged = store.put_bytes(also(store.read_bytes(index).decode(), '"Manifests":[]').encode(), IMAGE_INDEX)
    with pytest.raises(AirferryError, match="`Manifests`"):
        read_closure(store, forged, platforms=[Platform("linux", "arm64")])
