"""The commands about registries against real ones: copies between all kinds of places, logins, probes, rollbacks."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registries import PASSWORD, USER, RegistryProcess, basic_options, make_authority, run_registry

from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.errors import UsageError
from airferry.far.copy import FilePlace, copy, parse_place
from airferry.oci.archive import ArchiveSource
from airferry.oci.documents import parse_index
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.governor import CHUNK_BYTES
from airferry.registry.profile import profile_path, read_profile
from airferry.registry.source import RegistrySource
from oci_images import REFERENCE, image_defects, make_bundle

ANONYMOUS = ClientOptions(lookup=lambda registry, repository: None)


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


@pytest.fixture(autouse=True)
def own_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # not by REGISTRY_AUTH_FILE, which docker-registry takes for an option of its own
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run" / "containers" / "auth.json"


def airferry(*words: object) -> int:
    return run([str(word) for word in words])


def test_an_image_goes_round_all_kinds_of_places_unchanged(
    registry: RegistryProcess, sealed: Path, tmp_path: Path
) -> None:
    bundle = open_bundle(sealed)
    image = bundle.images[REFERENCE]
    attached = [entry.digest for entry in bundle.store.referrers(image.digest)]
    assert attached
    places = [
        f"oci:{sealed}:{REFERENCE}",
        f"docker://{registry.address}/round/one:v1",
        f"oci-archive:{tmp_path}/round.tar:a/b:1",
        f"docker://{registry.address}/round/two:v2",
        f"docker://{registry.address}/round/three:v3",
        f"oci-archive:{tmp_path}/again.tar:c",
        f"oci:{tmp_path}/layout:d",
    ]
    for source, destination in itertools.pairwise(places):
        result = copy(source, destination, options=ANONYMOUS)
        assert result.descriptor.digest == image.digest
        assert result.destination == destination
    store = LayoutStore.open(tmp_path / "layout", read_only=True)
    assert [entry.digest for entry in store.referrers(image.digest)] == attached
    children = parse_index(store.read_manifest(store.resolve("d")).data).manifests
    for child in children:
        store.read_manifest(child)
    assert [entry.digest for entry in ArchiveSource(tmp_path / "again.tar").referrers(image.digest)] == attached
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        for name in ("two", "three"):
            found = RegistrySource(client, f"round/{name}").referrers(image.digest)
            assert [entry.digest for entry in found] == attached


KINDS = ("layout", "archive", "registry")


@pytest.mark.parametrize("origin", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_every_kind_of_place_goes_to_every_other_with_what_refers_to_it(
    origin: str, target: str, registry: RegistryProcess, sealed: Path, tmp_path: Path
) -> None:
    def place(kind: str, name: str) -> str:
        return {
            "layout": f"oci:{tmp_path}/{name}:x",
            "archive": f"oci-archive:{tmp_path}/{name}.tar:x",
            "registry": f"docker://{registry.address}/nine/{origin}-{target}-{name}:x",
        }[kind]

    places = [f"oci:{sealed}:{REFERENCE}", place(origin, "from"), place(target, "to"), place("layout", "seen")]
    for one, other in itertools.pairwise(places):
        assert airferry("copy", one, other) == 0
    bundle = open_bundle(sealed)
    image = bundle.images[REFERENCE]
    seen = LayoutStore.open(tmp_path / "seen", read_only=True)
    assert seen.resolve("x").digest == image.digest
    assert image_defects(seen, seen.resolve("x"), subject="seen") == []
    attached = [entry.digest for entry in bundle.store.referrers(image.digest)]
    assert [entry.digest for entry in seen.referrers(image.digest)] == attached != []


def test_blobs_are_mounted_within_one_registry(registry: RegistryProcess, sealed: Path) -> None:
    origin = f"docker://{registry.address}/mount/one:v1"
    copy(f"oci:{sealed}:{REFERENCE}", origin, options=ANONYMOUS)
    before = sum(path.stat().st_size for path in registry.storage.rglob("data"))
    sessions = (registry.log).read_text().count("PATCH")
    result = copy(origin, f"docker://{registry.address}/mount/two:v1", options=ANONYMOUS)
    assert sum(path.stat().st_size for path in registry.storage.rglob("data")) == before
    assert registry.log.read_text().count("PATCH") == sessions
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        assert RegistrySource(client, "mount/two").find("v1") == result.descriptor.digest


def test_a_copy_can_be_narrowed_and_leave_referrers_behind(
    registry: RegistryProcess, sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"oci:{sealed}:{REFERENCE}"
    target = f"oci-archive:{tmp_path}/one.tar"
    assert airferry("copy", source, target, "--platform", "linux/arm64", "--no-referrers", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    archive = ArchiveSource(tmp_path / "one.tar")
    assert document["destination"] == f"{target}:{REFERENCE}", "it keeps its name"
    top = archive.resolve(REFERENCE)
    assert document["digest"] == top.digest != open_bundle(sealed).images[REFERENCE].digest
    platforms = [child.platform_value() for child in parse_index(archive.read_manifest(top).data).manifests]
    assert [str(platform) for platform in platforms] == ["linux/arm64"]
    assert len(archive.index.manifests) == 1
    assert airferry("copy", source, f"docker://{registry.address}/n/x:1", "--platform", "linux/s390x") == 5


def test_an_archive_that_cannot_be_finished_leaves_the_old_one(sealed: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", salt="damaged")
    store = open_bundle(tmp_path / "bundle").store
    image = open_bundle(tmp_path / "bundle").images[REFERENCE]
    child = parse_index(store.read_manifest(image).data).manifests[-1]
    layer = json.loads(store.read_manifest(child).data)["layers"][-1]["digest"]
    path = store.blob_path(layer)
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    (tmp_path / "kept.tar").write_bytes(b"old")
    assert airferry("copy", f"oci:{tmp_path}/bundle:{REFERENCE}", f"oci-archive:{tmp_path}/kept.tar:x") == 6
    assert (tmp_path / "kept.tar").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle", "kept.tar"]


def test_a_copy_by_digest_sets_no_tag(registry: RegistryProcess, sealed: Path) -> None:
    digest = open_bundle(sealed).images[REFERENCE].digest
    place = f"docker://{registry.address}/bydigest/x"
    copy(f"oci:{sealed}:{REFERENCE}", f"{place}@{digest}", options=ANONYMOUS)
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        assert RegistrySource(client, "bydigest/x").find(digest) == digest
        assert RegistrySource(client, "bydigest/x").find("latest") is None
    other = "sha256:" + "0" * 64
    with pytest.raises(UsageError, match="the image is"):
        copy(f"oci:{sealed}:{REFERENCE}", f"{place}@{other}", options=ANONYMOUS)


@pytest.mark.parametrize("text", ["", "oci:", "oci-archive::x", "dir:/x", "registry.example/x:1", "docker://"])
def test_what_names_no_place_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_place(text)


def test_a_name_may_have_a_port_and_a_tag() -> None:
    assert parse_place("oci:/tmp/x:host:5000/a/b:1") == FilePlace(Path("/tmp/x"), "host:5000/a/b:1", False)
    assert str(parse_place("oci-archive:/tmp/x.tar")) == "oci-archive:/tmp/x.tar"


def test_login_tries_the_password_keeps_it_for_podman_and_logout_removes_it(
    tmp_path: Path,
    sealed: Path,
    own_credentials: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    require_tool: Callable[[str], Path],
) -> None:
    require_tool("docker-registry")
    require_tool("htpasswd")
    with run_registry(tmp_path / "registry", extra=basic_options(tmp_path / "users")) as running:
        login = ["login", running.address, "--username", USER, "--password-stdin"]
        target = f"docker://{running.address}/x/y:1"
        monkeypatch.setattr(sys, "stdin", io.StringIO("wrong\n"))
        assert airferry(*login) == 7
        assert not own_credentials.exists()
        assert airferry("copy", f"oci:{sealed}:{REFERENCE}", target) == 7
        monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
        assert airferry(*login) == 0
        assert own_credentials.stat().st_mode & 0o777 == 0o600
        assert airferry("copy", f"oci:{sealed}:{REFERENCE}", target) == 0
        assert airferry("logout", running.address) == 0
        assert airferry("copy", f"oci:{sealed}:{REFERENCE}", target) == 7
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        assert airferry("login", running.address) == 2, "no terminal to prompt on"
    shown = capsys.readouterr()
    assert PASSWORD not in shown.out + shown.err


def test_a_probe_finds_out_what_debians_registry_does_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], require_tool: Callable[[str], Path]
) -> None:
    require_tool("docker-registry")
    with run_registry(tmp_path / "registry") as running:
        assert airferry("registry", "probe", running.address, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert {True} == set(found.pop("media_types").values()) == set(found.pop("artifact_types").values())
        left = found.pop("left")
        assert left.pop("repositories") and not any(left.values()), "it removes what is in them"
        assert {key: value for key, value in found.items() if key not in ("probed_at", "registry")} == {
            "schema_version": 1,
            "mounts": True,
            "chunks": True,
            "largest_request_bytes": None,
            "smallest_chunk_bytes": None,
            "largest_chunk_bytes": CHUNK_BYTES,
            "largest_upload_bytes": None,
            "largest_tried_bytes": CHUNK_BYTES,
            "deepest_name": 8,
            "deepest_tried": 8,
            "resumes": True,
            "survives_breaks": False,
            "referrers": False,
            "shows_oci_to_enroot": False,
            "takes_docker_lists": True,
            "deletes_tags": False,
            "deletes_manifests": True,
            "deletes_blobs": True,
        }
        assert len(running.sessions()) == 1, "2.8 removes none that broke within a request"
        assert read_profile(running.address).mounts is True
        assert airferry("registry", "probe", f"{running.address}/team/try") == 0
        captured = capsys.readouterr()
        assert "build with `docker_twin: true`" in captured.err
        shown = captured.out
        assert "referrers  no" in shown and "largest_request_bytes  no limit seen" in shown


def test_a_damaged_profile_counts_as_none(registry: RegistryProcess) -> None:
    path = profile_path(registry.address)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{")
    assert read_profile(registry.address).chunks is None
    path.write_text(json.dumps({"registry": "another", "chunks": False}))
    assert read_profile(registry.address).chunks is None


def test_load_rolls_back_by_receipt(registry: RegistryProcess, sealed: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "newer", salt="2")
    to = f"{registry.address}/cli-back"
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    assert airferry("load", sealed, "--to", to, "--receipt", one) == 0
    assert airferry("load", tmp_path / "newer", "--to", to, "--receipt", two) == 0
    assert airferry("load", "--rollback", two, tmp_path / "newer") == 2
    assert airferry("load", sealed) == (2 if "AIRFERRY_TO" not in os.environ else 0)
    assert airferry("load", "--rollback", two) == 0
    with RegistryClient(registry.address, options=ANONYMOUS) as client:
        tag = RegistrySource(client, "cli-back/team/trainer").find("1.0")
    assert tag == open_bundle(sealed).images[REFERENCE].digest
    assert airferry("load", "--rollback", one) == 0, "new tags that docker-registry 2.8 cannot remove are only named"


def test_login_over_tls_with_a_private_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_tool: Callable[[str], Path]
) -> None:
    require_tool("docker-registry")
    tls = make_authority(tmp_path / "ca")
    with run_registry(tmp_path / "registry", tls=tls, extra=basic_options(tmp_path / "users")) as running:
        login = ["login", running.address, "-u", USER, "--password-stdin"]
        monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD))
        assert airferry(*login) == 7
        monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD))
        assert airferry(*login, "--ca-file", tmp_path / "ca" / "ca.crt") == 0
