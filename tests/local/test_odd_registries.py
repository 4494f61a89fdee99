"""Registries that refuse or misreport what is optional: artifacts, lists of referrers. What is not optional arrives."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from airferry import api
from airferry.bundle.artifacts import ArtifactFile, put_artifact
from airferry.bundle.receipt import read_receipt
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.config.bases import LayoutBase
from airferry.errors import ConfigurationError, IntegrityError, RegistryError
from airferry.events import Event, Warned
from airferry.host.canonical import canonical_json
from airferry.near.bases.fetch import open_base
from airferry.oci.archive import ArchiveSource
from airferry.oci.digest import digest_hex
from airferry.oci.documents import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Index, descriptor_of
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import Stored
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.retry import RetryPolicy
from airferry.registry.source import RegistrySource, referrers_tag
from oci_images import make_bundle, put_image, put_index
from scripted_registry import Exchange, Fault, ScriptedRegistry, error_document, sha256

OPTIONS = ClientOptions(
    plain_http=True, lookup=lambda _registry, _repository: None, retry=RetryPolicy(sleep=lambda _seconds: None)
)
TRAINER = "airgap/team/trainer"
NAME = "registry.example/team/app:1"


pytestmark = pytest.mark.usefixtures("unsettled")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    make_bundle(folder)
    return folder


def load(registry: ScriptedRegistry, bundle: Path, *more: str) -> int:
    return run(["load", str(bundle), "--to", f"{registry.address}/airgap", "--plain-http", *more])


# --- artifacts that a registry does not take ------------------------------------------------------------------------


def no_artifacts(exchange: Exchange) -> bool:
    """Refuse manifests of types that are not known, as GitLab's registry does."""
    if exchange.call.method != "PUT" or "/manifests/" not in exchange.call.path:
        return False
    body = exchange.read_body()
    if b"artifactType" in body:
        return exchange.answer(400, error_document("MANIFEST_INVALID", "unknown media type"))
    exchange.registry._manifest(exchange, *exchange.call.path.removeprefix("/v2/").split("/manifests/"), body)
    return True


def no_repository(status: int, code: str) -> Fault:
    """Refuse uploads into repositories that nobody has created."""

    def fault(exchange: Exchange) -> bool:
        if exchange.call.method != "POST" or "airferry-artifacts" not in exchange.call.path:
            return False
        exchange.read_body()
        return exchange.answer(status, error_document(code, "create it first"))

    return fault


def no_small_referrers(exchange: Exchange) -> bool:
    """Take artifacts, and lose the list of what refers to an image."""
    if exchange.call.method != "PUT" or "/manifests/sha256-" not in exchange.call.path:
        return False
    exchange.read_body()
    return exchange.answer(201)


REFUSING = {
    "types": no_artifacts,
    "404": no_repository(404, "NAME_UNKNOWN"),
    "403": no_repository(403, "DENIED"),
    "401": no_repository(401, "UNAUTHORIZED"),
    "413": no_repository(413, ""),
    "lists": no_small_referrers,
}


@pytest.mark.parametrize("name", REFUSING)
def test_artifacts_that_are_refused_do_not_keep_images_from_arriving(
    name: str, registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.faults.append(REFUSING[name])
    assert load(registry, bundle, "--json") == 0
    captured = capsys.readouterr()
    warning = " ".join(captured.err.split())
    assert "images and tags are loaded without" in warning and "`--artifacts require` fails instead" in warning
    opened = open_bundle(bundle)
    (index,) = opened.images.values()
    assert sha256(registry.manifests[f"{TRAINER}@1.0"][0]) == index.digest
    receipt = read_receipt(Path())
    out = {one.digest for one in receipt.left_out}
    assert out and out <= {entry.digest for entry in opened.artifacts}
    assert (out == {entry.digest for entry in opened.artifacts}) is (name == "types")
    # what is left out is under no other heading of the receipt
    assert not out & {reference.partition("@")[2] for reference in receipt.artifacts}
    assert all(one.reference == f"{one.reference.partition('@')[0]}@{one.digest}" for one in receipt.left_out)
    assert json.loads(captured.out)["receipt"]["left_out"] == [one.model_dump() for one in receipt.left_out]
    # a second load says the same, and moves nothing
    assert load(registry, bundle) == 0
    assert f"{len(out)} part" in capsys.readouterr().err
    # the tags go back as they were
    assert run(["load", "--rollback", ".", "--plain-http"]) == 0
    assert f"{TRAINER}@1.0" not in registry.manifests


@pytest.mark.parametrize("name", REFUSING)
def test_artifacts_that_are_required_end_the_load_before_any_tag_moves(
    name: str, registry: ScriptedRegistry, bundle: Path
) -> None:
    registry.faults.append(REFUSING[name])
    assert load(registry, bundle, "--artifacts", "require") == 7
    assert f"{TRAINER}@1.0" not in registry.manifests and not list(Path().glob("airgap-receipt*"))


@pytest.mark.parametrize("dry_run", [True, False])
def test_artifacts_that_are_skipped_are_not_sent_and_listed(
    dry_run: bool, registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundle, "--artifacts", "skip", "--json", *(["--dry-run"] if dry_run else [])) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    artifacts = {entry.digest for entry in open_bundle(bundle).artifacts}
    assert {one["digest"] for one in document["receipt"]["left_out"]} == artifacts
    assert not artifacts & {step["digest"] for step in document["steps"]}
    assert not any("airferry-artifacts" in key for key in registry.manifests) and "does not take" not in captured.err
    assert (f"{TRAINER}@1.0" in registry.manifests) is not dry_run


def test_an_unknown_choice_about_artifacts_is_refused(registry: ScriptedRegistry, bundle: Path) -> None:
    assert load(registry, bundle, "--artifacts", "maybe") == 2
    assert registry.calls == []


def test_a_dry_run_goes_on_where_only_artifacts_may_not_be_asked_for(registry: ScriptedRegistry, bundle: Path) -> None:
    registry.faults.append(lambda exchange: "airferry-artifacts" in exchange.call.path and exchange.answer(403))
    assert load(registry, bundle, "--dry-run") == 0
    assert load(registry, bundle, "--dry-run", "--artifacts", "require") == 7


LOST = [(400, "MANIFEST_BLOB_UNKNOWN"), (400, "DIGEST_INVALID"), (404, "MANIFEST_UNKNOWN"), (500, "UNKNOWN")]


@pytest.mark.parametrize(("status", "code"), LOST)
def test_content_that_got_lost_is_no_refusal_of_an_artifact(
    status: int, code: str, registry: ScriptedRegistry, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(exchange: Exchange) -> bool:
        if exchange.call.method != "PUT" or "airferry-artifacts/manifests" not in exchange.call.path:
            return False
        exchange.read_body()
        return exchange.answer(status, error_document(code))

    registry.faults.append(fault)
    with pytest.raises(RegistryError, match="no tag was moved"):
        api.load(bundle, to=f"{registry.address}/airgap", options=OPTIONS)


def no_tags(where: str, status: int, code: str = "") -> Fault:
    """Refuse to let a tag stand for what was taken."""

    def fault(exchange: Exchange) -> bool:
        repository, _, reference = exchange.call.path.removeprefix("/v2/").partition("/manifests/")
        is_tag = exchange.call.method == "PUT" and reference and not reference.startswith("sha256")
        if not is_tag or where not in f"{repository}:{reference}":
            return False
        exchange.read_body()
        return exchange.answer(status, error_document(code))

    return fault


TAGS_REFUSED = [(400, "TAG_INVALID"), (403, "DENIED"), (409, ""), (412, "PRECONDITION")]


@pytest.mark.parametrize(("status", "code"), TAGS_REFUSED)
def test_a_refused_tag_of_an_artifact_does_not_end_the_load(
    status: int, code: str, registry: ScriptedRegistry, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.faults.append(no_tags("airferry-artifacts", status, code))
    assert load(registry, bundle, "--json") == 0
    captured = capsys.readouterr()
    receipt = read_receipt(Path())
    # what the tags were to stand for is there
    assert receipt.left_out and receipt.artifact_tags == ()
    for left in receipt.left_out:
        assert "/airferry-artifacts:" in left.reference and str(status) in left.reason
        assert f"{left.reference.rpartition(':')[0]}@{left.digest}" in receipt.artifacts
        assert f"airgap/airferry-artifacts@{left.digest}" in registry.manifests
    assert json.loads(captured.out)["receipt"]["left_out"] == [one.model_dump() for one in receipt.left_out]
    assert "without the tag, which it refuses" in " ".join(captured.err.split())
    assert f"{TRAINER}@1.0" in registry.manifests
    # another load says so again, and a rollback puts back what was set
    assert load(registry, bundle) == 0
    assert run(["load", "--rollback", ".", "--plain-http"]) == 0
    assert f"{TRAINER}@1.0" not in registry.manifests
    # where artifacts are required it ends the load, as does a refused tag of an image
    registry.faults[:] = [no_tags(f"{TRAINER}:1.0", status, code)]
    assert load(registry, bundle) == 7
    registry.faults[:] = [no_tags("airferry-artifacts", status, code)]
    assert load(registry, bundle, "--artifacts", "require") == 7


def test_a_docker_twin_without_its_tag_is_left_out(registry: ScriptedRegistry, tmp_path: Path) -> None:
    make_bundle(tmp_path / "twins", twins=True)
    registry.faults.append(no_tags(f"{TRAINER}:1.0-docker", 409))
    assert load(registry, tmp_path / "twins") == 0
    receipt = read_receipt(Path())
    assert [left.reference.partition("/")[2] for left in receipt.left_out] == [f"{TRAINER}:1.0-docker"]
    assert [image.docker_twin for image in receipt.images] == [None]


# --- lists of referrers -----------------------------------------------------------------------------------------------


def referrers_api(status: int, data: bytes, content_type: str = IMAGE_INDEX) -> Fault:
    return lambda exchange: (
        "/referrers/" in exchange.call.path and exchange.answer(status, data, Content_Type=content_type)
    )


NULL = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":null}'
UNUSABLE: list[tuple[int, bytes]] = [
    *((status, b"") for status in (400, 401, 403, 404, 405, 406, 410, 501)),
    (200, NULL),
    (200, b"<html>log in</html>"),
    (200, b"{}"),
    (200, b"[]"),
]


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore.create(tmp_path / "store")


def put_app(store: LayoutStore) -> Descriptor:
    """Store an image of one platform under a name."""
    child, _results = put_image(store, [{"a": b"1"}])
    store.put_manifest(store.read_manifest(child), reference=NAME)
    return child


def put_note(store: LayoutStore, subject: Descriptor, text: str = "note") -> Descriptor:
    """Store an artifact that refers to something, and list it."""
    contents = [ArtifactFile("note.txt", "text/plain", text.encode())]
    artifact = put_artifact(store, "application/x-note", contents=contents, subject=subject)
    store.put_manifest(store.read_manifest(artifact))
    return artifact


def copied(source: str, destination: str, **more: Any) -> tuple[Descriptor, list[str]]:
    """Copy, and return what was copied and the warnings."""
    events: list[Event] = []
    result = api.copy(source, destination, options=OPTIONS, emit=events.append, **more)
    return result.descriptor, [event.text for event in events if isinstance(event, Warned)]


def listed(registry: ScriptedRegistry, repository: str, digest: str) -> list[str]:
    with RegistryClient(registry.address, options=OPTIONS) as client:
        return [entry.digest for entry in RegistrySource(client, repository).referrers(digest)]


@pytest.mark.parametrize(("status", "data"), UNUSABLE)
def test_a_referrers_api_that_gives_no_list_is_not_there(
    status: int, data: bytes, registry: ScriptedRegistry, store: LayoutStore
) -> None:
    app = put_app(store)
    note = put_note(store, app)
    registry.faults.append(referrers_api(status, data))
    place = f"docker://{registry.address}/r/app:1"
    assert copied(f"oci:{store.path}:{NAME}", place)[1] == []
    # the list under the tag is whole, so that nothing is unknown
    assert listed(registry, "r/app", app.digest) == [note.digest]
    got = LayoutStore.create(store.path.parent / "got")
    assert copied(place, f"oci:{got.path}:x")[1] == []
    assert [entry.digest for entry in got.referrers(app.digest)] == [note.digest]
    with RegistryClient(registry.address, options=OPTIONS) as client:
        assert not RegistrySource(client, "r/app").has_referrers_api(app.digest)


@pytest.mark.parametrize(("status", "data"), UNUSABLE)
def test_referrers_that_may_exist_are_said_to_be_unknown(
    status: int, data: bytes, registry: ScriptedRegistry, store: LayoutStore
) -> None:
    app = put_app(store)
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)
    registry.faults.append(referrers_api(status, data))
    _app, warnings = copied(place, f"oci:{store.path.parent / 'got'}:x")
    assert [f"the referrers of `{app.digest}`" in text for text in warnings] == (
        [] if status in (404, 405, 501) else [True]
    )
    assert copied(place, f"oci:{store.path.parent / 'got'}:x", referrers=False)[1] == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("login", ["granted", "unknown"])
def test_a_referrers_api_that_refuses_after_the_login_is_not_there(
    login: str, status: int, registry: ScriptedRegistry, store: LayoutStore
) -> None:
    app = put_app(store)
    note = put_note(store, app)
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)

    def asks(exchange: Exchange) -> bool:
        if exchange.call.path == "/token":
            return exchange.answer(200, json.dumps({"token": f"t{exchange.call.number}"}).encode())
        if "/referrers/" not in exchange.call.path:
            return False
        if "Authorization" in exchange.call.headers:
            return exchange.answer(status)
        scheme = "Negotiate" if login == "unknown" else f'Bearer realm="http://{registry.address}/token"'
        return exchange.answer(401, WWW_Authenticate=scheme)

    registry.faults.append(asks)
    # the list under the tag is whole
    assert listed(registry, "r/app", app.digest) == [note.digest]
    got = LayoutStore.create(store.path.parent / "got")
    assert copied(place, f"oci:{got.path}:x")[1] == []
    assert [entry.digest for entry in got.referrers(app.digest)] == [note.digest]


@pytest.mark.parametrize("by", ["api", "tag"])
def test_an_entry_of_a_list_that_is_no_descriptor_hides_no_other_referrer(
    by: str, registry: ScriptedRegistry, store: LayoutStore
) -> None:
    app = put_app(store)
    note = put_note(store, app)
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)
    key = f"r/app@{referrers_tag(app.digest)}"
    document = json.loads(registry.manifests[key][0])
    document["manifests"].insert(0, {"digest": "sha512:" + "a" * 128})
    data = json.dumps(document).encode()
    if by == "api":
        registry.faults.append(referrers_api(200, data))
    else:
        registry.manifests[key] = (data, IMAGE_INDEX)
    got = LayoutStore.create(store.path.parent / "got")
    _app, (warning,) = copied(place, f"oci:{got.path}:x")
    assert "entry number 1 of their list" in warning
    assert [entry.digest for entry in got.referrers(app.digest)] == [note.digest]
    # a list under a tag that is rewritten would lose it
    put_note(store, app, "another")
    registry.faults.clear()
    _app, warnings = copied(f"oci:{store.path}:{NAME}", place)
    assert [("would be lost" in text) for text in warnings] == ([True] if by == "tag" else [])
    assert by == "api" or registry.manifests[key][0] == data


def gitlab(exchange: Exchange) -> bool:
    """Take `sha256-HEX` for the digest, whatever was stored under that tag."""
    name, _, tag = exchange.call.path.removeprefix("/v2/").partition("/manifests/sha256-")
    if not tag or "." in tag or exchange.call.method not in ("GET", "HEAD"):
        return False
    data, kind = exchange.registry.manifests[f"{name}@sha256:{tag}"]
    return exchange.answer(200, data, Content_Type=kind, Docker_Content_Digest=f"sha256:{tag}")


def test_a_tag_that_answers_with_the_subject_itself_is_no_list(registry: ScriptedRegistry, store: LayoutStore) -> None:
    app = put_app(store)
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)
    registry.faults.append(gitlab)
    assert copied(place, f"oci:{store.path.parent / 'got'}:x")[1] == []
    assert listed(registry, "r/app", app.digest) == []
    # a referrer that such a registry cannot list is said, and the image is copied
    note = put_note(store, app)
    _app, (warning,) = copied(f"oci:{store.path}:{NAME}", f"docker://{registry.address}/r/app:2")
    assert note.digest in warning and "did not store the list of referrers" in warning
    assert f"r/app@{app.digest}" in registry.manifests and "r/app@2" in registry.manifests


def test_something_else_under_the_tag_is_kept_and_said(registry: ScriptedRegistry, store: LayoutStore) -> None:
    app, other = put_app(store), put_image(store, [{"b": b"2"}])[0]
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)
    copied(f"oci:{store.path}:{NAME}", f"docker://{registry.address}/r/app:{referrers_tag(other.digest)}")
    registry.manifests[f"r/app@{referrers_tag(app.digest)}"] = (b'{"config":1}', IMAGE_MANIFEST)
    _app, (warning,) = copied(place, f"oci:{store.path.parent / 'got'}:x")
    assert "is something else" in warning
    put_note(store, app)
    _app, (warning,) = copied(f"oci:{store.path}:{NAME}", place)
    assert "was not copied" in warning
    assert registry.manifests[f"r/app@{referrers_tag(app.digest)}"][0] == b'{"config":1}'


# --- an index as a referrer -------------------------------------------------------------------------------------------


def put_index_referrer(store: LayoutStore, subject: Descriptor, *, kind: str | None) -> Descriptor:
    """Store and list an index of artifacts that refers to something."""
    child = put_artifact(store, "application/x-part", contents=[ArtifactFile("a", "text/plain", b"part")])
    bare = Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size)
    index = Index(
        schema_version=2,
        media_type=IMAGE_INDEX,
        artifact_type=kind,
        manifests=[child.annotated(annotations=None)],
        subject=bare,
    )
    data = canonical_json(index)
    stored = Stored(descriptor_of(data, IMAGE_INDEX), data)
    store.put_manifest(stored)
    return stored.descriptor


@pytest.mark.parametrize("kind", ["application/x-set", None])
@pytest.mark.parametrize("marked", [True, False])
def test_an_index_as_a_referrer_is_carried_everywhere(
    kind: str | None, marked: bool, registry: ScriptedRegistry, store: LayoutStore
) -> None:
    app = put_app(store)
    sbom = put_index_referrer(store, app, kind=kind)
    if not marked:
        entries = [
            entry if entry.digest != sbom.digest else sbom.annotated(artifact_type=kind)
            for entry in store.read_index().manifests
        ]
        store.write_index(entries)
    folder = store.path.parent
    ways = [f"oci:{folder}/one", f"docker://{registry.address}/r/app", f"docker://{registry.address}/s/app"]
    ways += [f"oci-archive:{folder}/two.tar", f"oci:{folder}/three"]
    before = f"oci:{store.path}:{NAME}"
    for way in ways:
        copy, warnings = copied(before, f"{way}:x")
        assert (copy.digest, warnings) == (app.digest, [])
        before = f"{way}:x"
    for source in (
        LayoutStore.open(folder / "one"),
        ArchiveSource(folder / "two.tar"),
        LayoutStore.open(folder / "three"),
    ):
        assert [entry.digest for entry in source.referrers(app.digest)] == [sbom.digest]
        assert source.read_manifest(sbom).index.manifests
        assert source.resolve("").digest == app.digest, "a referrer is no image to choose from"
    assert run(["verify", str(folder / "one")]) == 0
    for repository in ("r/app", "s/app"):
        assert listed(registry, repository, app.digest) == [sbom.digest]
        entry = json.loads(registry.manifests[f"{repository}@{referrers_tag(app.digest)}"][0])["manifests"][0]
        assert entry.get("artifactType") == kind and entry["mediaType"] == IMAGE_INDEX


# --- strange entries --------------------------------------------------------------------------------------------------


def test_an_entry_that_cannot_be_read_does_not_keep_its_neighbours_from_being_copied(store: LayoutStore) -> None:
    app = put_app(store)
    note = put_note(store, app)
    absent = descriptor_of(b"not here", IMAGE_MANIFEST)
    text = store.put_bytes(b"no manifest", IMAGE_MANIFEST)
    store.write_index([*store.read_index().manifests, absent, text])
    got = LayoutStore.create(store.path.parent / "got")
    _app, warnings = copied(f"oci:{store.path}:{NAME}", f"oci:{got.path}:x")
    assert [entry.digest for entry in got.referrers(app.digest)] == [note.digest]
    assert {digest for digest in (absent.digest, text.digest) if any(digest in said for said in warnings)} == {
        absent.digest,
        text.digest,
    }
    with pytest.raises(IntegrityError):
        api.copy(f"oci:{store.path}:{absent.digest}", f"oci:{got.path}:y", options=OPTIONS)


STRANGE: list[Any] = [
    {"mediaType": IMAGE_MANIFEST, "digest": "sha512:" + "a" * 128, "size": 3},
    {"mediaType": IMAGE_MANIFEST, "digest": "sha256:" + "a" * 64, "size": -1},
    {"digest": "sha256:" + "a" * 64, "size": 1},
    {"annotations": {"\ud800": 1}},
    [],
    None,
    "\x1b[31m",
]


def add_raw(store: LayoutStore, *entries: Any) -> None:
    document = json.loads(store.read_index_bytes())
    document["manifests"] = [*entries, *document["manifests"]]
    (store.path / "index.json").write_text(json.dumps(document))


@pytest.mark.parametrize("entry", STRANGE, ids=range(len(STRANGE)))
def test_an_entry_that_is_no_descriptor_does_not_keep_its_neighbours_from_being_copied(
    entry: Any, store: LayoutStore, tmp_path: Path
) -> None:
    app = put_app(store)
    note = put_note(store, app)
    add_raw(store, entry)
    got = LayoutStore.create(tmp_path / "got")
    copy, (warning,) = copied(f"oci:{store.path}:{NAME}", f"oci:{got.path}:x")
    assert copy.digest == app.digest and "entry number 1 of layout" in warning
    assert [one.digest for one in got.referrers(app.digest)] == [note.digest]
    # the only image needs no name, a base is found, and what is asked for in vain may be the entry
    assert copied(f"oci:{store.path}", f"oci:{got.path}:y", referrers=False) == (copy, [])
    base = LayoutBase(path=store.path, reference=NAME, written="base")
    source, name, _kind = open_base(base, open_registry=lambda _reference: pytest.fail("no registry"))
    assert source.resolve(name).digest == app.digest
    with pytest.raises(ConfigurationError) as caught:
        api.copy(f"oci:{store.path}:other", f"oci:{got.path}:z", options=OPTIONS)
    assert "not read: entry number 1" in str(caught.value.hint)
    # a layout that is written to keeps it
    copied(f"oci:{got.path}:x", f"oci:{store.path}:again")
    assert json.loads(store.read_index_bytes())["manifests"][-1] == entry
    assert store.resolve("again").digest == app.digest


def test_an_archive_with_an_entry_that_is_no_descriptor_is_read(store: LayoutStore, tmp_path: Path) -> None:
    app = put_app(store)
    add_raw(store, *STRANGE)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(store.path, arcname=".")
    copy, warnings = copied(f"oci-archive:{tmp_path}/a.tar:{NAME}", f"oci:{tmp_path}/got:x")
    assert copy.digest == app.digest
    # a few are named
    assert len(warnings) == 6 and warnings[-1].startswith("2 more entries of archive")


def test_an_index_that_is_none_is_refused_whole(store: LayoutStore, tmp_path: Path) -> None:
    put_app(store)
    for text in (
        "{}",
        '{"manifests":[]}',
        '{"schemaVersion":2,"manifests":{}}',
        '{"schemaVersion":"x","manifests":[1]}',
    ):
        (store.path / "index.json").write_text(text)
        with pytest.raises(IntegrityError, match=r"index\.json"):
            api.copy(f"oci:{store.path}:{NAME}", f"oci:{tmp_path}/got:x", options=OPTIONS)


def test_a_bundle_with_an_entry_that_is_no_descriptor_is_damaged(bundle: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    add_raw(LayoutStore.open(broken), STRANGE[0])
    assert run(["verify", str(broken)]) == 6
    assert run(["load", str(broken), "--to", "localhost:1/x"]) == 6


# --- referrers that are gone ------------------------------------------------------------------------------------------

GONE = [(404, "MANIFEST_UNKNOWN"), (404, ""), (403, "DENIED"), (410, "")]


@pytest.mark.parametrize("kind", ["manifest", "blob"])
@pytest.mark.parametrize(("status", "code"), GONE)
def test_a_referrer_that_is_listed_and_gone_is_named_and_the_rest_arrives(
    status: int, code: str, kind: str, registry: ScriptedRegistry, store: LayoutStore, tmp_path: Path
) -> None:
    app = put_app(store)
    note, gone = put_note(store, app), put_note(store, app, "gone")
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)
    digest = gone.digest if kind == "manifest" else store.read_manifest(gone).manifest.layers[0].digest
    registry.blobs.pop(digest, None)
    registry.faults.append(
        lambda exchange: (
            exchange.call.method == "GET"
            and exchange.call.path.startswith("/v2/r/")
            and exchange.call.path.endswith(digest)
            and exchange.answer(status, error_document(code))
        )
    )
    for way in (f"docker://{registry.address}/s/app:1", f"oci:{tmp_path}/got:x", f"oci-archive:{tmp_path}/got.tar:x"):
        events: list[Event] = []
        result = api.copy(place, way, options=OPTIONS, emit=events.append)
        (left,) = result.left_out
        assert left.name == gone.digest and str(status) in left.reason and result.unknown == ()
        assert [gone.digest in event.text for event in events if isinstance(event, Warned)] == [True]
    assert listed(registry, "s/app", app.digest) == [note.digest] and "s/app@1" in registry.manifests
    for source in (LayoutStore.open(tmp_path / "got"), ArchiveSource(tmp_path / "got.tar")):
        assert [one.digest for one in source.referrers(app.digest)] == [note.digest]


def test_a_referrer_that_is_something_else_is_named_and_the_rest_arrives(
    registry: ScriptedRegistry, store: LayoutStore, tmp_path: Path
) -> None:
    app = put_app(store)
    note = put_note(store, app)
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)
    old = Descriptor(media_type="application/vnd.oci.artifact.manifest.v1+json", digest=sha256(b"old"), size=3)
    text = descriptor_of(b'{"schemaVersion":2}', IMAGE_MANIFEST)
    registry.manifests[f"r/app@{text.digest}"] = (b'{"schemaVersion":2}', IMAGE_MANIFEST)
    entries = [note.annotated(annotations=None), old, text]
    data = canonical_json(Index(schema_version=2, media_type=IMAGE_INDEX, manifests=entries))
    registry.manifests[f"r/app@{referrers_tag(app.digest)}"] = (data, IMAGE_INDEX)
    result = api.copy(place, f"oci:{tmp_path}/got:x", options=OPTIONS)
    assert {left.name: left.reason.partition(": ")[0] for left in result.left_out} == {
        old.digest: f"it has the media type `{old.media_type}`, which is neither a manifest's nor an index's",
        text.digest: f"manifest `{text.digest}` is not valid",
    }
    assert [one.digest for one in LayoutStore.open(tmp_path / "got").referrers(app.digest)] == [note.digest]


def test_what_a_copy_leaves_behind_is_in_its_json(
    registry: ScriptedRegistry, store: LayoutStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = put_note(store, put_app(store))
    store.remove_blob(gone.digest)
    assert run(["copy", "--json", f"oci:{store.path}:{NAME}", f"oci:{tmp_path}/got:x"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [left["name"] for left in document["left_out"]] == [gone.digest] and document["unknown"] == []
    assert "is missing" in document["left_out"][0]["reason"] and "was not copied" in captured.err


@pytest.mark.parametrize("kind", ["manifest", "blob"])
def test_a_referrer_that_is_damaged_or_not_to_be_had_now_ends_the_copy(
    kind: str, registry: ScriptedRegistry, store: LayoutStore
) -> None:
    app = put_app(store)
    note = put_note(store, app)
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)
    digest = note.digest if kind == "manifest" else store.read_manifest(note).manifest.layers[0].digest
    answers = [(200, b"something else"), (503, b"")]
    for status, data in answers:
        registry.faults[:] = [
            lambda exchange, status=status, data=data: (  # type: ignore[misc]
                exchange.call.method == "GET"
                and exchange.call.path.endswith(digest)
                and exchange.answer(status, data, Content_Type=IMAGE_MANIFEST)
            )
        ]
        with pytest.raises(IntegrityError if status == 200 else RegistryError):
            api.copy(place, f"oci:{store.path.parent}/got-{status}:x", options=OPTIONS)


def test_a_part_of_the_image_that_is_gone_ends_the_copy(registry: ScriptedRegistry, store: LayoutStore) -> None:
    app = put_app(store)
    place = f"docker://{registry.address}/r/app:1"
    copied(f"oci:{store.path}:{NAME}", place)
    registry.blobs.pop(store.read_manifest(app).manifest.layers[0].digest)
    with pytest.raises(RegistryError, match="404"):
        api.copy(place, f"oci:{store.path.parent}/got:x", options=OPTIONS)


def test_what_belongs_to_an_index_is_named_where_only_a_platform_of_it_is_copied(
    store: LayoutStore, tmp_path: Path
) -> None:
    children = [put_image(store, [{"a": b"1"}], platform=f"linux/{cpu}")[0] for cpu in ("amd64", "arm64")]
    index = put_index(store, children)
    store.put_manifest(store.read_manifest(index), reference=NAME)
    whole, part = put_note(store, index), put_note(store, children[0])
    tag = f"sha256-{digest_hex(index.digest)}.sig"
    named(store, put_note(store, children[1], "signature"), tag)
    got = LayoutStore.create(tmp_path / "got")
    result = api.copy(f"oci:{store.path}:{NAME}", f"oci:{got.path}:x", platforms=["linux/amd64"], options=OPTIONS)
    assert [left.name for left in result.left_out] == [whole.digest, tag]
    assert all("changes the digest" in left.reason for left in result.left_out)
    assert [one.digest for one in got.referrers(children[0].digest)] == [part.digest]


# --- cosign's tags ----------------------------------------------------------------------------------------------------


@pytest.fixture
def signed(registry: ScriptedRegistry, store: LayoutStore) -> tuple[str, Descriptor, list[str]]:
    """An image of one platform in a registry, with cosign's tags of the index and of its part; and these tags."""
    child, _results = put_image(store, [{"a": b"1"}])
    index = put_index(store, [child])
    store.put_manifest(store.read_manifest(index), reference=NAME)
    place = f"docker://{registry.address}/r/app"
    copied(f"oci:{store.path}:{NAME}", f"{place}:1")
    tags = [f"sha256-{digest_hex(index.digest)}.{suffix}" for suffix in ("sig", "att")]
    tags.append(f"sha256-{digest_hex(child.digest)}.sbom")
    for tag in tags:
        note = put_artifact(store, "application/x-cosign", contents=[ArtifactFile("s", "text/plain", tag.encode())])
        copied(f"oci:{store.path}:{named(store, note, tag)}", f"{place}:{tag}", referrers=False)
    return f"{place}:1", index, sorted(tags)


def named(store: LayoutStore, descriptor: Descriptor, name: str) -> str:
    store.put_manifest(store.read_manifest(descriptor.annotated(artifact_type=None, annotations=None)), reference=name)
    return name


def test_cosigns_tags_are_carried_between_registries_and_layouts(
    registry: ScriptedRegistry, signed: tuple[str, Descriptor, list[str]], tmp_path: Path
) -> None:
    place, index, tags = signed
    first, second = (f"docker://{registry.address}/{name}/app:2" for name in "st")
    layout = f"oci:{tmp_path}/got"
    assert copied(place, first)[1] == []
    assert copied(first, f"{layout}:app")[1] == []
    got = LayoutStore.open(tmp_path / "got")
    assert got.resolve("").digest == index.digest, "a signature is no image to choose from"
    assert run(["verify", f"{tmp_path}/got"]) == 0
    assert copied(f"{layout}:app", second)[1] == []
    for name in ("s/app", "t/app"):
        assert sorted(key.partition("@")[2] for key in registry.manifests if key.startswith(f"{name}@sha256-")) == tags
        for tag in tags:
            assert registry.manifests[f"{name}@{tag}"] == registry.manifests[f"r/app@{tag}"]
    assert copied(place, f"docker://{registry.address}/u/app:2", referrers=False)[1] == []
    assert not any(key.startswith("u/app@sha256-") for key in registry.manifests)


def test_cosigns_tags_that_are_not_carried_are_said(
    registry: ScriptedRegistry, signed: tuple[str, Descriptor, list[str]], tmp_path: Path
) -> None:
    place, index, tags = signed
    _copy, warnings = copied(place, f"oci-archive:{tmp_path}/got.tar:app")
    assert [tag for tag in tags if any(f"`{tag}`" in text for text in warnings)] == tags

    def refuse(exchange: Exchange) -> bool:
        if exchange.call.method != "PUT" or not exchange.call.path.endswith((".sig", ".att", ".sbom")):
            return False
        exchange.read_body()
        return exchange.answer(400, error_document("TAG_INVALID"))

    # what a registry refuses of them, or keeps from being seen, leaves the image as it is
    registry.faults.append(refuse)
    _copy, warnings = copied(place, f"docker://{registry.address}/w/app:1")
    assert f"w/app@{index.digest}" in registry.manifests and "w/app@1" in registry.manifests
    assert all(any(tag in text for text in warnings) for tag in tags)
    signatures = (".sig", ".att", ".sbom")
    registry.faults[:] = [lambda exchange: exchange.call.path.endswith(signatures) and exchange.answer(403)]
    _copy, (warning,) = copied(place, f"docker://{registry.address}/x/app:1")
    assert "other tags with signatures is unknown: it answers with 403" in warning
