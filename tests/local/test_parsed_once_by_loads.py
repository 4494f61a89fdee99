"""A load parses each document of a bundle once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from airferry.bundle.verify import open_bundle
from airferry.far.load import load
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, INDEX_TYPES, Descriptor
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Stored
from airferry.registry.client import ClientOptions
from airferry.registry.retry import RetryPolicy
from counted_parses import count_parses
from oci_images import make_bundle
from scripted_registry import run_scripted

OPTIONS = ClientOptions(
    plain_http=True, retry=RetryPolicy(attempts=2, sleep=lambda _: None), lookup=lambda registry, repository: None
)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return count_parses(monkeypatch)


def documents_of(bundle: Path) -> set[str]:
    """Return the digests of all JSON documents of a bundle."""
    opened = open_bundle(bundle)
    found = {opened.root}
    for entry in opened.index.manifests:
        for stored in _manifests(opened.store, entry):
            found.add(stored.descriptor.digest)
            if stored.descriptor.media_type == IMAGE_MANIFEST and stored.manifest.config.media_type == IMAGE_CONFIG:
                found.add(stored.manifest.config.digest)
    return found


def _manifests(store: LayoutStore, entry: Descriptor) -> Iterator[Stored]:
    stored = store.read_manifest(entry)
    yield stored
    if entry.media_type in INDEX_TYPES:
        for child in stored.index.manifests:
            yield store.read_manifest(child)


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_load_parses_each_document_of_the_bundle_once(
    again: bool, twins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed: Counter[str]
) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    make_bundle(tmp_path / "bundle", twins=twins)
    own = documents_of(tmp_path / "bundle")
    with run_scripted() as registry:

        def load_it() -> None:
            load(tmp_path / "bundle", to=registry.address, receipt=tmp_path / "r.yaml", options=OPTIONS)

        if again:
            load_it()
        parsed.clear()
        load_it()
    assert {digest: parsed[digest] for digest in own} == dict.fromkeys(own, 1)
