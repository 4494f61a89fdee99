"""Bundles into real registries: what arrives, under which login, and what other tools read there afterwards."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pytest
from registries import (
    PASSWORD,
    USER,
    RegistryProcess,
    basic_options,
    make_authority,
    run_registry,
    run_token_server,
)

from airferry.bundle.receipt import ReceiptTag, read_receipt, write_receipt
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.errors import ConfigurationError, RegistryError, UsageError
from airferry.far.load import load
from airferry.far.relocate import parse_destination
from airferry.far.rollback import rollback
from airferry.host import files, process
from airferry.host.canonical import canonical_json
from airferry.oci.copy import copy_image
from airferry.oci.documents import IMAGE_MANIFEST, LAYER_TAR, Descriptor, Manifest, descriptor_of, parse_manifest
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Stored
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import Answer, Request
from airferry.registry.credentials import Credential
from airferry.registry.governor import Limits
from airferry.registry.retry import RetryPolicy
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from airferry.registry.uploads import UNCHECKED_FROM_BYTES, Uploader
from nemotron_rules import environment_of_job
from oci_images import REFERENCE, image_defects, make_bundle, put_image
from travelling_catalogue import make_travelling_bundle, write_catalogue

QUICK = RetryPolicy(attempts=4, first_pause_s=0.01, longest_pause_s=0.05)
ANONYMOUS = ClientOptions(retry=QUICK, lookup=lambda registry, repository: None)
LOGGED_IN = ClientOptions(retry=QUICK, lookup=lambda registry, repository: Credential(USER, PASSWORD))


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], Path]
) -> Iterator[RegistryProcess]:
    require_tool("docker-registry")
    with run_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "bundle"
    make_bundle(path)
    return path


def test_a_load_arrives_whole_and_a_second_one_sends_nothing(
    registry: RegistryProcess, sealed: Path, tmp_path: Path
) -> None:
    receipt_path = tmp_path / "airgap-receipt.yaml"
    root = open_bundle(sealed).root
    preview = load(sealed, to=f"{registry.address}/first", receipt=receipt_path, dry_run=True, options=ANONYMOUS)
    assert not receipt_path.exists()
    first = load(sealed, to=f"{registry.address}/first", receipt=receipt_path, root=root, options=ANONYMOUS)
    assert first.pushed.sent_blobs > 0
    assert sorted(preview.pushed.steps, key=str) == sorted(first.pushed.steps, key=str)
    assert sorted(preview.pushed.manifest_steps, key=str) == sorted(first.pushed.manifest_steps, key=str)
    receipt = read_receipt(receipt_path)
    assert receipt.root_verified and receipt.bundle_root == root
    image = receipt.images[0]
    assert image.reference == f"{registry.address}/first/team/trainer:1.0"
    assert image.pinned == f"{registry.address}/first/team/trainer@{image.digest}"
    assert image.previous_digest is None
    before = sorted(sealed.rglob("*"))

    again = load(sealed, to=f"{registry.address}/first", receipt=receipt_path, options=ANONYMOUS)
    assert (again.pushed.sent_bytes, again.pushed.steps, again.pushed.manifests, again.moved_tags) == (0, [], 0, ())
    assert read_receipt(receipt_path).images == receipt.images
    assert sorted(sealed.rglob("*")) == before
    assert registry.sessions() == []


def test_a_load_for_jobs_writes_all_that_jobs_are_submitted_with(
    registry: RegistryProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    make_travelling_bundle(write_catalogue(tmp_path / "code"), tmp_path / "out" / "bundle")
    (tmp_path / "site.yaml").write_text("executors: ['slurm-pyxis:4.0']\nmounts: ['/lustre/data']\n")
    jobs = tmp_path / "jobs"
    arguments = ["load", str(tmp_path / "out"), "--to", f"{registry.address}/jobs", "--jobs", str(jobs)]
    arguments += ["--site", str(tmp_path / "site.yaml")]
    assert run([*arguments, "--dry-run"]) == 0
    assert not jobs.exists()
    capsys.readouterr()
    assert run(arguments) == 0
    config = jobs / "slurm-pyxis/sft/one/tiny.yaml"
    assert capsys.readouterr().out == f"nemotron steps run sft/one -c {config} -b slurm_pyxis_airgap\n"
    receipt = read_receipt(jobs)
    assert receipt.catalogue is not None
    assert receipt.catalogue.pinned.startswith(f"{registry.address}/jobs/airferry-artifacts@sha256:")
    job = environment_of_job(f"nemotron steps run sft/one -c {config}", {"mounts": ["/lustre:/lustre"]})
    assert job["mounts"] == ["/lustre:/lustre"]
    assert (jobs / "slurm-pyxis/env.toml").is_file() and (jobs / "slurm-pyxis/submit.txt").is_file()
    assert run(arguments) == 0, "a second one changes nothing"
    # the registry holds the catalogue under the digest that the receipt pins
    assert run(["overlays", str(jobs), "--out", str(tmp_path / "again"), "--site", str(tmp_path / "site.yaml")]) == 0
    assert (tmp_path / "again/catalogue/README.md").is_symlink()
    (jobs / "catalogue/own.yaml").write_text("a: 1\n")
    capsys.readouterr()
    assert run(arguments) == 2
    assert "was changed since" in " ".join(capsys.readouterr().err.split())


def test_an_artifact_is_listed_as_a_referrer_of_its_image(
    registry: RegistryProcess, sealed: Path, tmp_path: Path
) -> None:
    load(sealed, to=f"{registry.address}/ref", receipt=tmp_path / "r.yaml", options=ANONYMOUS)
    bundle = open_bundle(sealed)
    image = bundle.images[REFERENCE]
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        found = RegistrySource(client, "ref/team/trainer").referrers(image.digest)
    expected = [entry.digest for entry in bundle.artifacts if entry.digest != bundle.manifest_descriptor.digest]
    assert [entry.digest for entry in found] == expected


def test_skopeo_reads_the_same_digests(
    registry: RegistryProcess, sealed: Path, tmp_path: Path, require_tool: Callable[[str], Path]
) -> None:
    skopeo = require_tool("skopeo")
    receipt = load(sealed, to=f"{registry.address}/skopeo", receipt=tmp_path / "r.yaml", options=ANONYMOUS).receipt
    image = receipt.images[0]
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    target = tmp_path / "pulled"
    process.run(
        [
            skopeo,
            "--policy",
            policy,
            "copy",
            "--all",
            "--src-tls-verify=false",
            f"docker://{image.pinned}",
            f"oci:{target}:x",
        ],
        timeout_s=120,
    )
    assert LayoutStore.open(target).resolve("x").digest == image.digest


@pytest.mark.parametrize("kind", ["basic", "token", "tls"])
def test_a_load_logs_in_as_the_registry_asks(
    kind: str, sealed: Path, tmp_path: Path, require_tool: Callable[[str], Path]
) -> None:
    require_tool("docker-registry")
    options, ca_file = LOGGED_IN, None
    if kind == "basic":
        require_tool("htpasswd")
        context = run_registry(tmp_path / "registry", extra=basic_options(tmp_path / "auth"))
    elif kind == "tls":
        tls = make_authority(tmp_path / "ca")
        ca_file = tmp_path / "ca" / "ca.crt"
        context = run_registry(tmp_path / "registry", tls=tls)
        options = ClientOptions(retry=QUICK, ca_file=ca_file)
    else:
        with (
            run_token_server(tmp_path / "tokens") as tokens,
            run_registry(tmp_path / "registry", extra=tokens.options()) as running,
        ):
            check_login(running, sealed, tmp_path, options, "log in")
            assert max(len(scopes) for scopes in tokens.asked) == 2, "a mount asks for its source as well"
            replace_expired_tokens(running)
        return
    with context as running:
        check_login(running, sealed, tmp_path, options, "log in" if kind == "basic" else "--ca-file")


def check_login(running: RegistryProcess, sealed: Path, folder: Path, options: ClientOptions, hint: str) -> None:
    """Load once without what is needed, and twice with it, into two places, so that blobs are mounted."""
    with pytest.raises(RegistryError) as caught:
        load(sealed, to=f"{running.address}/none", receipt=folder / "n.yaml", options=ANONYMOUS)
    assert hint in (caught.value.hint or "")
    assert PASSWORD not in str(caught.value.fields) + caught.value.message
    for number in range(2):
        load(sealed, to=f"{running.address}/p{number}", receipt=folder / f"{number}.yaml", options=options)
    with RegistryClient(running.address, options=options) as client:
        blob = next(iter(open_bundle(sealed).manifest.images[0].platforms.values())).layers[0]
        descriptor = Descriptor(media_type=LAYER_TAR, digest=blob.digest, size=blob.size_bytes)
        assert RegistrySink(client, "elsewhere/x").mount_blob(descriptor, "p0/team/trainer")


def replace_expired_tokens(running: RegistryProcess) -> None:
    """See that a token that expired on the server's side is replaced in the middle of the work."""
    with RegistryClient(running.address, options=LOGGED_IN) as client:
        source = RegistrySource(client, "p0/team/trainer")
        descriptor = source.resolve("1.0")
        stale = {key: type(token)("Bearer stale", token.expires_s) for key, token in client._login._tokens.items()}
        client._login._tokens.update(stale)
        assert source.find("1.0") == descriptor.digest


def test_an_untrusted_certificate_and_a_dead_registry_are_one_clear_error(sealed: Path, tmp_path: Path) -> None:
    with run_registry(tmp_path / "registry", tls=make_authority(tmp_path / "ca")) as running:
        address = running.address
        with pytest.raises(RegistryError, match=r"certificate of .* is not trusted"):
            load(sealed, to=address, receipt=tmp_path / "r.yaml", options=ANONYMOUS)
    with pytest.raises(RegistryError, match="refuses connections"):
        load(sealed, to=address, receipt=tmp_path / "r.yaml", options=ANONYMOUS)
    assert not (tmp_path / "r.yaml").exists()


def test_certificates_are_found_in_certs_d(sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with run_registry(tmp_path / "registry", tls=make_authority(tmp_path / "ca")) as running:
        folder = tmp_path / "config" / "containers" / "certs.d" / running.address
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "ca" / "ca.crt", folder)
        load(sealed, to=running.address, receipt=tmp_path / "r.yaml", options=ANONYMOUS)


def test_a_client_certificate_is_found_in_certs_d(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    tls = {**make_authority(tmp_path / "ca"), "clientcas": [str(tmp_path / "ca" / "ca.crt")]}
    with run_registry(tmp_path / "registry", tls=tls) as running:
        folder = tmp_path / "config" / "containers" / "certs.d" / running.address
        folder.mkdir(parents=True)
        shutil.copy(tmp_path / "ca" / "ca.crt", folder)
        with pytest.raises(RegistryError, match=r"no TLS connection to .*alert"):
            load(sealed, to=running.address, receipt=tmp_path / "n.yaml", options=ANONYMOUS)
        shutil.copy(tmp_path / "ca" / "host.crt", folder / "client.cert")
        with pytest.raises(ConfigurationError, match="client certificate"):
            load(sealed, to=running.address, receipt=tmp_path / "n.yaml", options=ANONYMOUS)
        shutil.copy(tmp_path / "ca" / "host.key", folder / "client.key")
        load(sealed, to=running.address, receipt=tmp_path / "r.yaml", options=ANONYMOUS)


def test_a_large_blob_goes_over_tls_as_it_does_without(tmp_path: Path, require_tool: Callable[[str], Path]) -> None:
    require_tool("docker-registry")
    store = LayoutStore.create(tmp_path / "layout")
    image, _ = put_image(store, [{"big": os.urandom(UNCHECKED_FROM_BYTES)}], kind="none")
    with run_registry(tmp_path / "registry", tls=make_authority(tmp_path / "ca")) as running:
        options = ClientOptions(
            retry=QUICK, ca_file=tmp_path / "ca" / "ca.crt", lookup=lambda registry, repository: None
        )
        with RegistryClient(running.address, options=options) as client:
            for repository, limits in (("whole/x", None), ("chunks/x", Limits(1 << 20, 1 << 20))):
                sink = RegistrySink(client, repository, uploader=Uploader(client, limits=limits))
                copy_image(store, sink, image, reference="1")
                pulled = LayoutStore.create(tmp_path / repository)
                copy_image(sink.source, pulled, sink.source.resolve("1"), reference="1")
                assert pulled.resolve("1").digest == image.digest
                assert image_defects(pulled, pulled.resolve("1"), subject="pulled") == []


def test_rollback_puts_tags_back_and_removes_new_ones_or_says_so(
    registry: RegistryProcess, sealed: Path, tmp_path: Path
) -> None:
    destination = f"{registry.address}/back"
    load(sealed, to=destination, receipt=tmp_path / "one.yaml", options=ANONYMOUS)
    make_bundle(tmp_path / "newer", salt="2")
    newer = load(tmp_path / "newer", to=destination, receipt=tmp_path / "two.yaml", options=ANONYMOUS)
    old = read_receipt(tmp_path / "one.yaml").images[0]
    assert newer.receipt.images[0].previous_digest == old.digest
    repeated = load(tmp_path / "newer", to=destination, receipt=tmp_path / "two.yaml", options=ANONYMOUS)
    assert repeated.receipt.images[0].previous_digest == old.digest, "a second load keeps what was before the first"
    # docker-registry 2.8 cannot remove a tag alone
    back = rollback(tmp_path / "two.yaml", options=ANONYMOUS)
    (marker,) = newer.receipt.artifact_tags
    assert (back.restored, back.removed, back.kept) == ((old.reference,), (), (marker.reference,))
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        assert RegistrySource(client, "back/team/trainer").find("1.0") == old.digest
    assert set(rollback(tmp_path / "one.yaml", options=ANONYMOUS).kept) == {
        old.reference,
        *(moved.reference for moved in read_receipt(tmp_path / "one.yaml").artifact_tags),
    }


def test_rollback_puts_tags_of_artifacts_back_as_well(registry: RegistryProcess, sealed: Path, tmp_path: Path) -> None:
    destination = f"{registry.address}/kept"
    one = load(sealed, to=destination, receipt=tmp_path / "one.yaml", options=ANONYMOUS).receipt.artifact_tags[0]
    make_bundle(tmp_path / "newer", salt="3")
    newer = load(tmp_path / "newer", to=destination, receipt=tmp_path / "two.yaml", options=ANONYMOUS)
    two = newer.receipt.artifact_tags[0]
    # as a model's tag moves from one load to the next
    repository, tag = two.reference.removeprefix(f"{registry.address}/").split(":")
    moved = ReceiptTag(reference=two.reference, digest=two.digest, previous_digest=one.digest)
    write_receipt(newer.receipt.model_copy(update={"images": (), "artifact_tags": (moved,)}), tmp_path / "three.yaml")
    assert rollback(tmp_path / "three.yaml", options=ANONYMOUS).restored == (two.reference,)
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        assert RegistrySource(client, repository).find(tag) == one.digest
    assert rollback(tmp_path / "three.yaml", options=ANONYMOUS).restored == ()


def test_a_dry_run_prints_all_that_would_go_there_with_its_size(
    registry: RegistryProcess, sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = tmp_path / "r.yaml"
    command = ["--quiet", "load", str(sealed), "--to", f"{registry.address}/dry", "--receipt", str(receipt)]
    assert run([*command, "--dry-run"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert run([*command, "--dry-run", "--json"]) == 0
    would = json.loads(capsys.readouterr().out)
    assert run([*command, "--json"]) == 0
    did = json.loads(capsys.readouterr().out)
    steps = {(step["action"], f"{step['repository']}@{step['digest']}") for step in did["steps"]}
    assert {(line[0], line[1]) for line in lines if line[0] in ("send", "mount", "manifest")} == steps
    assert {action for action, _place in steps} >= {"send", "manifest"}
    assert sorted(would["steps"], key=str) == sorted(did["steps"], key=str)
    tags = {tag["tag"]: tag["digest"] for tag in did["tags"] if tag["moved"]}
    assert {line[1]: line[2] for line in lines if line[0] == "tag"} == tags != {}
    assert lines[-1][0].startswith("would send ")


def test_a_kill_while_tags_move_keeps_what_they_stood_for(
    registry: RegistryProcess, sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = f"{registry.address}/killed"
    load(sealed, to=destination, receipt=tmp_path / "one.yaml", options=ANONYMOUS)
    make_bundle(tmp_path / "newer", salt="2")

    def kill(what: str) -> None:
        if what.startswith("tag ") and what.endswith("team/trainer:1.0"):
            raise KeyboardInterrupt

    receipt_path = tmp_path / "two.yaml"
    with monkeypatch.context() as patch:
        patch.setattr(files, "boundary", kill)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path / "newer", to=destination, receipt=receipt_path, options=ANONYMOUS)
    assert not receipt_path.exists()
    # between the two runs the same bundle goes elsewhere, into the same folder
    load(tmp_path / "newer", to=f"{registry.address}/elsewhere", receipt=tmp_path / "other.yaml", options=ANONYMOUS)
    load(tmp_path / "newer", to=destination, receipt=receipt_path, options=ANONYMOUS)
    before = read_receipt(tmp_path / "one.yaml").images[0].digest
    assert read_receipt(receipt_path).images[0].previous_digest == before


class Cut(Exception):
    """Stands for the end of a process in the middle of an upload."""


def test_a_killed_upload_in_chunks_goes_on_where_it_was_acknowledged(registry: RegistryProcess, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    with store.new_blob() as writer:
        for number in range(40):
            writer.write(bytes([number]) * 256 * 1024)
        digest, size = writer.commit()
    layer = Descriptor(media_type=LAYER_TAR, digest=digest, size=size)
    limits = Limits(chunked_above_bytes=1024 * 1024, chunk_bytes=1024 * 1024)
    journal = tmp_path / "uploads.json"

    class Dying:
        """A stream that ends the process after 70 % of the blob."""

        def __init__(self, stream: object) -> None:
            self.stream, self.left = stream, size * 7 // 10

        def read(self, count: int) -> bytes:
            self.left -= count
            if self.left < 0:
                os._exit(9)
            data: bytes = self.stream.read(count)  # type: ignore[attr-defined]
            return data

    child = os.fork()
    if child == 0:
        from contextlib import contextmanager

        @contextmanager
        def dying():  # type: ignore[no-untyped-def]
            with store.open_blob(layer) as stream:
                yield Dying(stream)

        client = RegistryClient(registry.address, options=ANONYMOUS)
        uploader = Uploader(client, limits=limits, journal=journal)
        uploader.upload("chunks/x", ("repository:chunks/x:pull,push",), descriptor=layer, source=dying)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    entry = next(iter(json.loads(journal.read_text()).values()))
    assert journal.stat().st_mode & 0o777 == 0o600
    assert entry["offset"] >= size // 2

    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        sent: list[str] = []
        plain = client._send

        def watched(request: Request) -> Answer:
            sent.append(request.method)
            return plain(request)

        client._send = watched  # type: ignore[method-assign]
        sink = RegistrySink(client, "chunks/x", uploader=Uploader(client, limits=limits, journal=journal))
        sink.put_blob_from(layer, lambda: store.open_blob(layer))
        assert sink.has_blob(layer)
    # 2.8 kills a session whose PATCH broke: then the upload starts over, and leaves no session behind
    assert sent.count("PATCH") in (
        size // limits.chunk_bytes - entry["offset"] // limits.chunk_bytes,
        size // limits.chunk_bytes,
    )
    assert not journal.exists()
    assert registry.sessions() == []


def test_a_large_blob_is_hashed_by_the_registry_which_is_left_clean(registry: RegistryProcess, tmp_path: Path) -> None:
    store = LayoutStore.create(tmp_path / "layout")
    image, _ = put_image(store, [{"big": os.urandom(UNCHECKED_FROM_BYTES)}], kind="none")
    opened: list[str] = []

    def noting(descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        opened.append(descriptor.digest)
        return LayoutStore.open_blob_unchecked(store, descriptor)

    store.open_blob_unchecked = noting  # type: ignore[method-assign]
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        copy_image(store, RegistrySink(client, "unchecked/x"), image, reference="1")
        layer = parse_manifest(store.read_manifest(image).data).layers[0]
        assert opened == [layer.digest]
        with RegistrySource(client, "unchecked/x").open_blob(layer) as stream:
            assert len(stream.read()) == layer.size
    assert [path for path in registry.sessions() if "unchecked" in path.parts] == []


def test_two_loads_of_one_place_at_once_exclude_each_other(
    registry: RegistryProcess, sealed: Path, tmp_path: Path
) -> None:
    results: list[object] = []

    def work(number: int) -> None:
        try:
            load(sealed, to=f"{registry.address}/race", receipt=tmp_path / f"{number}.yaml", options=ANONYMOUS)
            results.append(None)
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None in results
    assert all(item is None or "another airferry process" in str(item) for item in results)


def test_maps_apply_and_collisions_are_refused_before_anything_is_sent(
    registry: RegistryProcess, sealed: Path, tmp_path: Path
) -> None:
    result = load(
        sealed,
        to=parse_destination(f"{registry.address}/maps", maps={REFERENCE: "new/name:v2"}),
        receipt=tmp_path / "r.yaml",
        options=ANONYMOUS,
    )
    assert result.receipt.images[0].reference == f"{registry.address}/maps/new/name:v2"
    with pytest.raises(UsageError, match="matches no image"):
        to = parse_destination(registry.address, maps={"x": "y"})
        load(sealed, to=to, receipt=tmp_path / "s.yaml", options=ANONYMOUS)


def test_an_image_is_pulled_as_it_was_pushed(registry: RegistryProcess, tmp_path: Path) -> None:
    from airferry.oci.copy import copy_image

    make_bundle(tmp_path / "bundle", salt="pull")
    bundle = open_bundle(tmp_path / "bundle")
    image = bundle.images[REFERENCE]
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        sink = RegistrySink(client, "copies/x")
        copy_image(bundle.store, sink, image, reference="v1", referrers=True)
        target = LayoutStore.create(tmp_path / "pulled")
        source = RegistrySource(client, "copies/x")
        copied = copy_image(source, target, source.resolve("v1"), reference="x:1", referrers=True)
        assert copied.digest == image.digest
        assert [r.digest for r in target.referrers(image.digest)] == [
            r.digest for r in bundle.store.referrers(image.digest)
        ]
        data = canonical_json(
            Manifest(schema_version=2, config=Descriptor(media_type="a/b", digest=image.digest, size=1), layers=[])
        )
        with pytest.raises(RegistryError, match="store manifest"):
            sink.put_manifest(Stored(descriptor_of(data, IMAGE_MANIFEST), data), reference="broken")
        assert source.find("broken") is None
