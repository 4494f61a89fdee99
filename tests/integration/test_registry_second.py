"""A second implementation of the distribution-spec, whose program `AIRFERRY_SECOND_REGISTRY` names.

`scripts/test-second-registry` builds one, CNCF Distribution 3, and runs these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pytest
from registries import PASSWORD, USER, RegistryProcess, basic_options, run_registry

from airferry.bundle.receipt import read_receipt
from airferry.bundle.verify import open_bundle
from airferry.errors import RegistryError
from airferry.far.load import load
from airferry.far.rollback import rollback
from airferry.host import process
from airferry.oci.copy import copy_image
from airferry.oci.digest import digest_of
from airferry.oci.documents import LAYER_TAR
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import Answer, Request
from airferry.registry.credentials import Credential
from airferry.registry.governor import Limits
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.trial import try_registry
from airferry.registry.uploads import UNCHECKED_FROM_BYTES, Uploader, checks_digests
from oci_images import REFERENCE, make_bundle

OPTIONS = ClientOptions(lookup=lambda registry, repository: None)
MIB = 1024 * 1024

pytestmark = pytest.mark.second_registry


@pytest.fixture(scope="module")
def program() -> str:
    """The program; its name has to be given wherever these tests are chosen."""
    return os.environ["AIRFERRY_SECOND_REGISTRY"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, program: str) -> Iterator[RegistryProcess]:
    with run_registry(tmp_path_factory.mktemp("second"), program=program) as running:
        yield running


def test_a_load_arrives_whole_with_referrers_and_a_second_one_sends_nothing(
    registry: RegistryProcess, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "bundle", twins=True)
    bundle = open_bundle(tmp_path / "bundle")
    receipt_path = tmp_path / "r.yaml"
    with RegistryClient(registry.address, options=OPTIONS) as client:
        profile = try_registry(client)
    assert profile.shows_oci_to_enroot and profile.takes_docker_lists
    first = load(tmp_path / "bundle", to=f"{registry.address}/load", receipt=receipt_path, options=OPTIONS)
    assert first.pushed.sent_blobs > 0
    again = load(tmp_path / "bundle", to=f"{registry.address}/load", receipt=receipt_path, options=OPTIONS)
    assert (again.pushed.steps, again.pushed.manifests, again.moved_tags) == ([], 0, ())
    image = bundle.images[REFERENCE]
    target = LayoutStore.create(tmp_path / "pulled")
    with RegistryClient(registry.address, options=OPTIONS) as client:
        source = RegistrySource(client, "load/team/trainer")
        copied = copy_image(source, target, source.resolve("1.0"), reference="x", referrers=True)
    assert copied.digest == image.digest
    expected = [entry.digest for entry in bundle.store.referrers(image.digest)]
    assert [entry.digest for entry in target.referrers(image.digest)] == expected


def test_a_rollback_removes_new_tags_where_the_registry_can(registry: RegistryProcess, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", salt="rolled")
    receipt_path = tmp_path / "r.yaml"
    load(tmp_path / "bundle", to=f"{registry.address}/back", receipt=receipt_path, options=OPTIONS)
    with RegistryClient(registry.address, options=OPTIONS) as client:
        deletes = try_registry(client).deletes_tags
        if deletes:
            result = rollback(receipt_path, options=OPTIONS)
            assert set(result.removed) == {moved.reference for moved in read_receipt(receipt_path).tags}
            assert f"{registry.address}/back/team/trainer:1.0" in result.removed
        else:
            assert not rollback(receipt_path, options=OPTIONS).removed
        found = RegistrySource(client, "back/team/trainer").find("1.0")
        assert (found is None) is deletes


def test_an_upload_goes_on_in_its_session_as_the_probe_says(registry: RegistryProcess, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    layer = store.put_bytes(os.urandom(6 * MIB), LAYER_TAR)
    journal = tmp_path / "uploads.json"
    limits = Limits(chunked_above_bytes=MIB, chunk_bytes=MIB)

    class Gone(BaseException):
        """Stands for the end of the process."""

    def upload(dies_after: int) -> list[int]:
        sent: list[int] = []
        with RegistryClient(registry.address, options=OPTIONS) as client:
            plain = client._send

            def watched(request: Request) -> Answer:
                if request.method == "PATCH":
                    if len(sent) == dies_after:
                        raise Gone
                    sent.append(len(request.body))  # type: ignore[arg-type]
                return plain(request)

            client._send = watched  # type: ignore[method-assign]
            sink = RegistrySink(client, "chunks/x", uploader=Uploader(client, limits=limits, journal=journal))
            sink.put_blob_from(layer, lambda: store.open_blob(layer))
            assert sink.has_blob(layer)
        return sent

    with RegistryClient(registry.address, options=OPTIONS) as client:
        profile = try_registry(client)
    with pytest.raises(Gone):
        upload(4)
    assert json.loads(journal.read_text())
    assert sum(upload(100)) == (2 * MIB if profile.resumes else 6 * MIB)
    assert not journal.exists()


def test_a_large_blob_that_the_registry_hashes_leaves_no_session(registry: RegistryProcess, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    layer = store.put_bytes(os.urandom(UNCHECKED_FROM_BYTES), LAYER_TAR)

    def unchecked() -> AbstractContextManager[IO[bytes]]:
        return store.open_blob_unchecked(layer)

    with RegistryClient(registry.address, options=OPTIONS) as client:
        sink = RegistrySink(client, "unchecked/x")
        assert checks_digests(client, "unchecked/x", sink.source.scopes)
        sink.put_blob_from(layer, lambda: store.open_blob(layer), open_unchecked=unchecked)
        assert sink.has_blob(layer)
    assert [path for path in registry.sessions() if "unchecked" in path.parts] == []


def test_a_password_is_asked_for(tmp_path: Path, program: str) -> None:
    make_bundle(tmp_path / "bundle")
    with run_registry(tmp_path / "r", program=program, extra=basic_options(tmp_path / "users")) as running:
        with pytest.raises(RegistryError):
            load(tmp_path / "bundle", to=running.address, receipt=tmp_path / "n.yaml", options=OPTIONS)
        known = ClientOptions(lookup=lambda registry, repository: Credential(USER, PASSWORD))
        load(tmp_path / "bundle", to=running.address, receipt=tmp_path / "r.yaml", options=known)


def test_skopeo_reads_the_same_digest(
    registry: RegistryProcess, tmp_path: Path, require_tool: Callable[[str], Path]
) -> None:
    require_tool("skopeo")
    make_bundle(tmp_path / "bundle", salt="skopeo")
    result = load(tmp_path / "bundle", to=f"{registry.address}/skopeo", receipt=tmp_path / "r.yaml", options=OPTIONS)
    image = result.receipt.images[0]
    done = process.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{image.reference}"], timeout_s=60
    )
    assert digest_of(done.stdout) == image.digest == open_bundle(tmp_path / "bundle").images[REFERENCE].digest
