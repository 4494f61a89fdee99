"""Docker twins at a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airferry import api
from airferry.bundle.manifest import BundleManifest
from airferry.bundle.receipt import ReceiptTwin, read_receipt
from airferry.bundle.seal import seal
from airferry.bundle.verify import open_bundle
from airferry.config import Executor
from airferry.errors import RegistryError, UsageError
from airferry.events import Event, Warned
from airferry.far.load import LoadOutcome, load
from airferry.far.relocate import parse_destination
from airferry.jobs.submission import image_for, reference_for
from airferry.oci.documents import DOCKER_MANIFEST_LIST, Descriptor
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions
from airferry.registry.retry import RetryPolicy
from oci_images import REFERENCE, make_bundle
from scripted_registry import Exchange, ScriptedRegistry, error_document, run_scripted

OPTIONS = ClientOptions(
    plain_http=True,
    retry=RetryPolicy(attempts=1, sleep=lambda _seconds: None),
    lookup=lambda _registry, _repository: None,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle", twins=True)
    return tmp_path / "bundle"


def reseal(path: Path, *, manifest: dict[str, Any] | None = None, images: dict[str, Descriptor] | None = None) -> None:
    opened = open_bundle(path)
    others = [entry for entry in opened.artifacts if entry.digest != opened.manifest_descriptor.digest]
    changed = BundleManifest.model_validate({**opened.manifest.model_dump(), **(manifest or {})})
    seal(LayoutStore.open(path), images or opened.images, artifacts=others, manifest=changed)


def loaded(
    bundle: Path, registry: ScriptedRegistry, tmp_path: Path, *, maps: dict[str, str] | None = None, **more: Any
) -> LoadOutcome:
    to = parse_destination(f"{registry.address}/site", maps=maps)
    return load(bundle, to=to, receipt=tmp_path / "receipt.yaml", options=OPTIONS, **more)


def test_a_load_brings_the_twin_to_the_repository_of_its_image_and_pins_it_for_enroot(
    bundle: Path, tmp_path: Path
) -> None:
    with run_scripted() as registry:
        planned = loaded(bundle, registry, tmp_path, dry_run=True)
        result = loaded(bundle, registry, tmp_path, maps={REFERENCE: "other/name:9"})
        again = loaded(bundle, registry, tmp_path, maps={REFERENCE: "other/name:9"})
        assert registry.manifests["site/other/name@9-docker"][1] == DOCKER_MANIFEST_LIST
        sent = sorted((step.digest) for step in result.pushed.manifest_steps)
        assert len(set(sent)) == len(sent) and sent == sorted(step.digest for step in planned.pushed.manifest_steps)
        assert (again.pushed.steps, again.pushed.manifests, again.moved_tags) == ([], 0, ())
        (image,) = result.receipt.images
        twin = image.docker_twin
        assert isinstance(twin, ReceiptTwin) and twin.reference == f"{registry.address}/site/other/name:9-docker"
        assert twin in read_receipt(tmp_path / "receipt.yaml").tags and result.receipt.left_out == ()
        slurm, docker = Executor.model_validate("slurm-pyxis:4.1"), Executor.model_validate("docker:27")
        pinned = f"{registry.address}#site/other/name:{twin.digest}"
        assert image_for("slurm-pyxis", reference_for(slurm, image)) == pinned
        old = Executor.model_validate("slurm-pyxis:3.3")
        assert str(reference_for(old, image)) == twin.reference
        assert str(reference_for(docker, image)) == image.pinned
        api.rollback(tmp_path / "receipt.yaml", options=OPTIONS)
        assert "site/other/name@9-docker" not in registry.manifests


def refusing(status: int, kind: str = DOCKER_MANIFEST_LIST) -> Any:
    def fault(exchange: Exchange) -> bool:
        if exchange.call.method != "PUT" or exchange.call.headers.get("Content-Type") != kind:
            return False
        exchange.read_body()
        return exchange.answer(status, error_document("MANIFEST_INVALID", "no such kind here"))

    return fault


def test_a_registry_that_refuses_twins_gets_the_rest_with_a_warning(bundle: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    with run_scripted([refusing(415)]) as registry:
        result = loaded(bundle, registry, tmp_path, emit=events.append)
        (warning,) = [event for event in events if isinstance(event, Warned)]
        assert "refuses the Docker twins of its images (1)" in warning.text and "no such kind here" in warning.text
        assert "site/team/trainer@1.0" in registry.manifests
        receipt = read_receipt(tmp_path / "receipt.yaml")
        assert receipt.images[0].docker_twin is None
        assert [one.reference for one in receipt.left_out] == [f"{registry.address}/site/team/trainer:1.0-docker"]
        assert "415" in receipt.left_out[0].reason
        assert not [move for move in result.tags if move.reference.endswith("-docker")]
        slurm = Executor.model_validate("slurm-pyxis:4.1")
        assert str(reference_for(slurm, receipt.images[0])) == receipt.images[0].pinned


@pytest.mark.parametrize("fault", [refusing(404), refusing(415, "application/vnd.oci.image.index.v1+json")])
def test_other_failures_still_end_the_load(bundle: Path, tmp_path: Path, fault: Any) -> None:
    with run_scripted([fault]) as registry, pytest.raises(RegistryError, match="no tag was moved"):
        loaded(bundle, registry, tmp_path)


def test_a_load_that_fails_leads_with_the_cause_and_counts_what_is_missing(bundle: Path, tmp_path: Path) -> None:
    def full(exchange: Exchange) -> bool:
        if exchange.call.method != "PUT":
            return False
        exchange.read_body()
        return exchange.answer(507, error_document("UNKNOWN", "disk full"))

    with run_scripted([full]) as registry, pytest.raises(RegistryError) as caught:
        load(bundle, to=f"{registry.address}/site", receipt=tmp_path / "receipt.yaml", options=OPTIONS)
    cause, _, rest = caught.value.message.partition("; ")
    assert cause.startswith("cannot upload blob ") and cause.endswith("was answered with 507 `UNKNOWN`: disk full")
    assert rest == "no tag was moved; not complete there yet: 1 image and 2 artifacts"


def test_a_twin_and_an_image_under_one_name_are_refused(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    index = opened.images[REFERENCE]
    entry = opened.manifest.images[0]
    other = entry.model_copy(update={"reference": "registry.example/team/x:1.0-docker", "docker_twin": None})
    reseal(
        bundle,
        manifest={"images": [entry.model_dump(), other.model_dump()]},
        images={**opened.images, "registry.example/team/x:1.0-docker": index},
    )
    with run_scripted() as registry, pytest.raises(UsageError, match="would both become"):
        loaded(bundle, registry, tmp_path, maps={"registry.example/team/x": "team/trainer"})
