"""The registry that `serve` offers, asked as an ASGI application: what it answers, and what it never hands out."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from starlette.datastructures import Headers
from starlette.types import ASGIApp

from airferry import api
from airferry.bundle.artifacts import REQUIREMENTS_ARTIFACT
from airferry.bundle.verify import open_bundle
from airferry.errors import ConfigurationError, IntegrityError, UsageError
from airferry.events import Event, Notice, Warned
from airferry.far.relocate import parse_destination
from airferry.far.serve.answers import selected_range
from airferry.far.serve.blob import BlobAnswer
from airferry.far.serve.current import CurrentBundle, on_hangup
from airferry.far.serve.logins import LoginLimits, Logins, Passwords
from airferry.far.serve.offer import CheckedBlobs, Repository, read_repositories
from airferry.far.serve.protocol import BrokenOff
from airferry.far.serve.server import Listener, make_app
from airferry.oci.digest import digest_of
from airferry.oci.documents import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor
from oci_images import make_bundle

NAME = "team/trainer"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.document["errors"][0]["code"])


def ask(app: ASGIApp, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    """Send one request to an application, without a server."""
    bare, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": bare,
        "raw_path": bare.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 5000),
    }
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], got, b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "bundle"
    make_bundle(path)
    return path


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    shutil.copytree(sealed, tmp_path / "bundle")
    return tmp_path / "bundle"


def repositories_of(path: Path) -> dict[str, Repository]:
    return read_repositories(open_bundle(path), parse_destination("127.0.0.1:5000"))


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def app(bundle: Path, events: list[Event]) -> ASGIApp:
    opened = open_bundle(bundle)
    return make_app(repositories_of(bundle), CheckedBlobs(opened.store, emit=events.append))


def layer_of(path: Path) -> Descriptor:
    """Return the largest blob of the image."""
    return max(repositories_of(path)[NAME].blobs.values(), key=lambda descriptor: descriptor.size)


def test_the_base_says_that_this_is_a_registry(app: ASGIApp) -> None:
    answer = ask(app, "/v2/")
    assert answer.status == 200 and answer.document == {}
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


def test_a_manifest_comes_by_tag_and_by_digest_as_its_original_bytes(app: ASGIApp, bundle: Path) -> None:
    index = open_bundle(bundle).images["registry.example/team/trainer:1.0"]
    by_tag = ask(app, f"/v2/{NAME}/manifests/1.0")
    assert by_tag.status == 200
    assert by_tag.headers["content-type"] == IMAGE_INDEX
    assert by_tag.headers["docker-content-digest"] == index.digest == digest_of(by_tag.body)
    child = by_tag.document["manifests"][0]["digest"]
    by_digest = ask(app, f"/v2/{NAME}/manifests/{child}")
    assert by_digest.headers["content-type"] == IMAGE_MANIFEST and digest_of(by_digest.body) == child


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/team/trainer/manifests/2.0", 404, "MANIFEST_UNKNOWN"),
        ("/v2/team/trainer/manifests/..%2f..%2findex.json", 404, "MANIFEST_UNKNOWN"),
        ("/v2/other/manifests/1.0", 404, "NAME_UNKNOWN"),
        ("/v2/team/trainer/blobs/sha256:" + "0" * 64, 404, "BLOB_UNKNOWN"),
        ("/v2/team/trainer/blobs/sha256:../../oci-layout", 404, "NAME_UNKNOWN"),
        ("/v2/team/trainer/blobs/x", 404, "DIGEST_INVALID"),
        ("/v2/team/trainer/tags/list?n=-1", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/team/trainer/referrers/x", 400, "DIGEST_INVALID"),
        ("/", 404, "NAME_UNKNOWN"),
        ("/v2/team/trainer/index.json", 404, "NAME_UNKNOWN"),
    ],
)
def test_what_is_not_there_is_answered_in_the_registry_s_own_words(
    app: ASGIApp, path: str, status: int, code: str
) -> None:
    answer = ask(app, path)
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path", ["/v2/", f"/v2/{NAME}/manifests/1.0", f"/v2/{NAME}/blobs/uploads/", f"/v2/{NAME}/blobs/uploads/1?x=y", "/x"]
)
def test_nothing_can_be_written_wherever_it_is_sent(app: ASGIApp, method: str, path: str) -> None:
    answer = ask(app, path, method=method)
    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
    assert "read-only" in answer.document["errors"][0]["message"]


def test_a_blob_comes_whole_in_part_and_as_headers(app: ASGIApp, bundle: Path) -> None:
    layer = layer_of(bundle)
    data = open_bundle(bundle).store.read_bytes(layer)
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    whole = ask(app, path)
    assert whole.body == data and whole.headers["docker-content-digest"] == layer.digest
    head = ask(app, path, method="HEAD")
    assert head.body == b"" and head.headers["content-length"] == str(layer.size)
    part = ask(app, path, headers={"Range": "bytes=3-9"})
    assert part.status == 206 and part.body == data[3:10]
    assert part.headers["content-range"] == f"bytes 3-9/{layer.size}" and part.headers["content-length"] == "7"
    rest = ask(app, path, headers={"Range": f"bytes={layer.size - 4}-"})
    assert rest.body == data[-4:]


SIZE = 100


DIGEST = "sha256:" + "a" * 64


MANY_DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("header", "selected"),
    [
        ("bytes=0-0", range(0, 1)),
        ("bytes=5-", range(5, 100)),
        ("bytes=-5", range(95, 100)),
        ("bytes=-500", range(0, 100)),
        ("BYTES = 90-500", range(90, 100)),
        (f"bytes=7-{MANY_DIGITS}", range(7, 100)),
        ("bytes= , 2-3 ,", range(2, 4)),
        ("bytes=100-200, 5-9", range(5, 10)),
        # no byte of it is there: 416
        ("bytes=100-", range(0)),
        ("bytes=-0", range(0)),
        (f"bytes={MANY_DIGITS}-", range(0)),
        ("bytes=100-200,300-", range(0)),
        # not valid, another unit, several parts: as if it were not there
        *((header, None) for header in ("bytes=", "bytes=-", "bytes=9-3", "bytes=x-y", "bytes=1-2-3", "bytes=+1-2")),
        *(
            (header, None)
            for header in ("items=0-3", "0-3", "bytes 0-3", "bytes=0-1,5-6", "bytes=0-1,7-3", "bytes=-\xb2")
        ),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_range_selects_what_the_rfc_says(header: str, selected: range | None) -> None:
    found = selected_range("GET", Headers({"range": header}), DIGEST, SIZE)
    assert found == selected and (found is None) == (selected is None)


@pytest.mark.parametrize(
    ("method", "condition", "size", "selected"),
    [
        ("HEAD", None, SIZE, None),
        ("GET", f'"{DIGEST}"', SIZE, range(1, 3)),
        ("GET", f'W/"{DIGEST}"', SIZE, None),
        ("GET", "Sat, 28 Nov 2026 00:00:00 GMT", SIZE, None),
        ("GET", None, 0, None),
    ],
)
def test_a_range_is_ignored_where_it_has_no_meaning(
    method: str, condition: str | None, size: int, selected: range | None
) -> None:
    headers = {"range": "bytes=1-2"} | ({"if-range": condition} if condition else {})
    assert selected_range(method, Headers(headers), DIGEST, size) == selected


def test_a_range_beyond_the_blob_is_not_satisfiable(app: ASGIApp, bundle: Path) -> None:
    layer = layer_of(bundle)
    answer = ask(app, f"/v2/{NAME}/blobs/{layer.digest}", headers={"Range": f"bytes={layer.size}-"})
    assert (answer.status, answer.code, answer.headers["content-range"]) == (
        416,
        "RANGE_INVALID",
        f"bytes */{layer.size}",
    )


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_what_the_client_holds_is_not_sent_again(app: ASGIApp, bundle: Path, kind: str) -> None:
    blob = layer_of(bundle).digest
    digest = blob if kind == "blobs" else open_bundle(bundle).images["registry.example/team/trainer:1.0"].digest
    path = f"/v2/{NAME}/{kind}/{digest}"
    for held in (f'"{digest}"', f'W/"{digest}"', f'"other", "{digest}"', "*"):
        for method in ("GET", "HEAD"):
            answer = ask(app, path, method=method, headers={"If-None-Match": held, "Range": "bytes=0-1"})
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", f'"{digest}"'), held
            assert "content-length" not in answer.headers
    for other in ('"other"', digest, "", f'"{digest}'):
        assert ask(app, path, headers={"If-None-Match": other}).status == 200, other
    assert ask(app, path, headers={"If-Match": f'"x", "{digest}"'}).status == 200
    assert ask(app, path, headers={"If-Match": "*"}).status == 200
    assert ask(app, path, headers={"If-Match": f'W/"{digest}"'}).status == 412


def test_each_blob_is_checked_once_and_that_is_said(app: ASGIApp, bundle: Path, events: list[Event]) -> None:
    path = f"/v2/{NAME}/blobs/{layer_of(bundle).digest}"
    for _time in range(3):
        assert ask(app, path).status == 200
    said = [event.text for event in events if isinstance(event, Notice)]
    assert len(said) == 1 and "verified" in said[0]


@pytest.mark.parametrize("before", [True, False], ids=["after it was served", "before it was served"])
def test_a_damaged_blob_is_never_served(app: ASGIApp, bundle: Path, events: list[Event], before: bool) -> None:
    layer = layer_of(bundle)
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    if before:
        assert ask(app, path).status == 200
    file = open_bundle(bundle).store.blob_path(layer.digest)
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    answer = ask(app, path)
    assert (answer.status, answer.code) == (500, "BLOB_DAMAGED")
    assert any(isinstance(event, Warned) and layer.digest in event.text for event in events)


def test_a_blob_that_changed_in_place_is_never_served_even_if_its_time_was_set_back(app: ASGIApp, bundle: Path) -> None:
    layer = layer_of(bundle)
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    assert ask(app, path).status == 200
    change_in_place(open_bundle(bundle).store.blob_path(layer.digest))
    for method in ("GET", "HEAD"):
        assert ask(app, path, method=method).status == 500


def change_in_place(file: Path) -> None:
    """Write another byte into a file; inode, size and time of change stay."""
    before = file.stat()
    with file.open("r+b") as stream:
        byte = stream.read(1)[0]
        stream.seek(0)
        stream.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    same = ("st_ino", "st_size", "st_mtime_ns")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]


def test_a_damaged_blob_is_read_once_and_served_when_it_is_repaired(
    app: ASGIApp, bundle: Path, events: list[Event]
) -> None:
    layer = layer_of(bundle)
    file = open_bundle(bundle).store.blob_path(layer.digest)
    data = file.read_bytes()
    file.write_bytes(bytes(len(data)))
    path = f"/v2/{NAME}/blobs/{layer.digest}"
    assert [ask(app, path).code for _time in range(3)] == ["BLOB_DAMAGED"] * 3
    assert len([event for event in events if isinstance(event, Warned)]) == 1
    file.write_bytes(data)
    assert ask(app, path).body == data


def test_what_changed_while_everything_was_verified_first_is_checked_again(bundle: Path) -> None:
    layer = layer_of(bundle)
    blobs = CheckedBlobs(open_bundle(bundle).store, settle_s=0.01)
    before = blobs.identities()
    change_in_place(open_bundle(bundle).store.blob_path(layer.digest))
    blobs.mark_checked(before)
    with pytest.raises(IntegrityError):
        blobs.open(layer)


@pytest.mark.parametrize("change", ["write", "truncate", "replace"])
def test_a_blob_that_changes_on_its_way_never_arrives_whole(
    bundle: Path, events: list[Event], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(bundle)
    store = open_bundle(bundle).store
    file = store.blob_path(layer.digest)
    monkeypatch.setattr("airferry.far.serve.blob.READ_CHUNK_BYTES", layer.size // 4)
    blob = CheckedBlobs(store).open(layer)
    answer = BlobAnswer(blob, range(layer.size), status=200, headers={}, emit=events.append)
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 2:
            if change == "write":
                change_in_place(file)
            elif change == "truncate":
                os.truncate(file, layer.size // 2)
            else:
                file.unlink()
                file.write_bytes(bytes(layer.size))

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    with pytest.raises(BrokenOff):
        asyncio.run(answer({"type": "http", "extensions": {}}, receive, send))
    assert len(b"".join(sent)) < layer.size
    assert any(isinstance(event, Warned) and "while it was served" in event.text for event in events)
    with pytest.raises(ValueError, match="closed"):
        blob.stream.fileno()


def test_a_blob_that_became_a_link_is_never_served(app: ASGIApp, bundle: Path, tmp_path: Path) -> None:
    layer = layer_of(bundle)
    file = open_bundle(bundle).store.blob_path(layer.digest)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert ask(app, f"/v2/{NAME}/blobs/{layer.digest}").code == "BLOB_DAMAGED"


def test_tags_are_listed_in_pages(bundle: Path) -> None:
    repositories = repositories_of(bundle)
    repository = repositories[NAME]
    repository.tags.update(dict.fromkeys(("a", "b", "c"), repository.tags["1.0"]))
    app = make_app(repositories, CheckedBlobs(open_bundle(bundle).store))
    seen, path = [], f"/v2/{NAME}/tags/list?n=3"
    while path:
        answer = ask(app, path)
        assert answer.document["name"] == NAME
        seen.append(answer.document["tags"])
        path = answer.headers.get("link", "").partition(">")[0].lstrip("<")
    assert seen == [["1.0", "a", "b"], ["c"]]
    assert ask(app, f"/v2/{NAME}/tags/list?n=0").document["tags"] == []
    assert ask(app, f"/v2/{NAME}/tags/list").document["tags"] == ["1.0", "a", "b", "c"]


def test_repositories_are_listed(app: ASGIApp) -> None:
    assert ask(app, "/v2/_catalog").document == {"repositories": ["airferry-artifacts", NAME]}


def test_referrers_are_found_and_filtered(app: ASGIApp, bundle: Path) -> None:
    index = open_bundle(bundle).images["registry.example/team/trainer:1.0"]
    answer = ask(app, f"/v2/{NAME}/referrers/{index.digest}")
    entry = answer.document["manifests"][0]
    assert answer.headers["content-type"] == IMAGE_INDEX and entry["artifactType"] == REQUIREMENTS_ARTIFACT
    assert ask(app, f"/v2/{NAME}/manifests/{entry['digest']}").status == 200
    kept = ask(app, f"/v2/{NAME}/referrers/{index.digest}?artifactType={REQUIREMENTS_ARTIFACT}")
    assert len(kept.document["manifests"]) == 1
    other = ask(app, f"/v2/{NAME}/referrers/{index.digest}?artifactType=other/type")
    assert other.document["manifests"] == [] and other.headers["oci-filters-applied"] == "artifactType"
    assert ask(app, f"/v2/{NAME}/referrers/sha256:{'0' * 64}").document["manifests"] == []


@pytest.fixture
def guarded(bundle: Path, tmp_path: Path) -> ASGIApp:
    hashed = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
    (tmp_path / "users").write_text(f"# who may pull\nferry:{hashed}\n")
    opened = open_bundle(bundle)
    logins = Logins(Passwords.read(tmp_path / "users"), limits=LoginLimits(wrong_s=0, blocked_s=0))
    return make_app(repositories_of(bundle), CheckedBlobs(opened.store), logins=logins)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_the_right_password_opens_and_again(guarded: ASGIApp) -> None:
    for _time in range(2):
        assert ask(guarded, f"/v2/{NAME}/manifests/1.0", headers=basic("ferry", "open sesame")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("ferry", "wrong"),
        basic("nobody", "open sesame"),
        basic("ferry", "open sesame" + "x" * 80),
        {"Authorization": "Basic !!"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
        {"Authorization": "Bearer abc"},
    ],
)
def test_anything_else_is_asked_for_a_password(guarded: ASGIApp, headers: dict[str, str]) -> None:
    answer = ask(guarded, f"/v2/{NAME}/manifests/1.0", headers=headers)
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert answer.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("line", ["ferry:{SHA}abc=", "ferry:$apr1$x$y", "ferry", ":$2y$05$abc"])
def test_a_password_file_of_another_kind_is_refused_at_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "users").write_text(f"\n{line}\n")
    with pytest.raises(ConfigurationError, match="users:2: expected a user and a bcrypt hash") as caught:
        Passwords.read(tmp_path / "users")
    assert "htpasswd -B" in str(caught.value.hint)


def test_an_empty_password_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("# nobody\n")
    with pytest.raises(ConfigurationError, match="contains no user"):
        Passwords.read(tmp_path / "users")


@pytest.mark.parametrize("address", ["5000", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        Listener(address)


def test_another_root_and_no_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(IntegrityError, match="expected"),
        api.serve(bundle, listen="127.0.0.1:0", root="sha256:" + "0" * 64),
    ):
        pass
    with pytest.raises(UsageError, match="contains no bundle"), api.serve(tmp_path / "x", listen="127.0.0.1:0"):
        pass


def test_verify_first_finds_damage_before_anything_is_served(bundle: Path) -> None:
    file = open_bundle(bundle).store.blob_path(layer_of(bundle).digest)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with (
        pytest.raises(IntegrityError, match="is damaged"),
        api.serve(bundle, listen="127.0.0.1:0", options=api.ServeOptions(verify_first=True)),
    ):
        pass


def swap(path: Path, salt: str) -> None:
    shutil.rmtree(path)
    make_bundle(path, salt)


def current_bundle(path: Path, events: list[Event], root: str | None = None) -> tuple[CurrentBundle, ASGIApp]:
    current = CurrentBundle(lambda: open_bundle(path, root=root), emit=events.append)
    current.offer(parse_destination("127.0.0.1:5000"))
    return current, make_app(current.repositories, current.blobs, replaced=current.replaced)


def test_a_bundle_that_was_replaced_is_said_once_answered_with_503_and_reloaded_when_asked(
    bundle: Path, events: list[Event]
) -> None:
    current, app = current_bundle(bundle, events)
    old, root = layer_of(bundle), open_bundle(bundle).root
    swap(bundle, "other")
    new = layer_of(bundle)
    assert old.digest != new.digest
    answers = [ask(app, f"/v2/{NAME}/blobs/{old.digest}") for _ in range(3)]
    assert {(answer.status, answer.code) for answer in answers} == {(503, "UNAVAILABLE")}
    (said,) = [event for event in events if isinstance(event, Warned)]
    assert f"now holds the bundle with root `{open_bundle(bundle).root}`" in said.text and f"`{root}`" in said.text
    assert "SIGHUP" in (said.hint or "")
    assert ask(app, f"/v2/{NAME}/blobs/{new.digest}").status == 404, "nothing of it is served unasked"
    current.reload()
    assert ask(app, f"/v2/{NAME}/blobs/{new.digest}").status == 200
    assert ask(app, f"/v2/{NAME}/blobs/{old.digest}").status == 404
    assert isinstance(events[-2], Notice) and events[-2].text == f"reloaded: serving root {open_bundle(bundle).root}"
    change_in_place(bundle / "blobs/sha256" / new.digest.partition(":")[2])
    assert ask(app, f"/v2/{NAME}/blobs/{new.digest}").status == 500, "damage is damage"


def test_what_may_not_be_served_is_not_loaded_in_place_of_what_is(bundle: Path, events: list[Event]) -> None:
    current, app = current_bundle(bundle, events, root=open_bundle(bundle).root)
    digest = layer_of(bundle).digest
    swap(bundle, "other")
    current.reload()
    (said,) = [event for event in events if isinstance(event, Warned)]
    assert said.text.startswith("not reloaded, and served as before: ") and "has root" in said.text
    assert ask(app, f"/v2/{NAME}/tags/list").status == 200
    shutil.rmtree(bundle)
    current.reload()
    assert ask(app, f"/v2/{NAME}/blobs/{digest}").status == 503
    assert "has no bundle any more" in [event for event in events if isinstance(event, Warned)][-1].text


def test_sighup_reloads_while_it_is_served_and_no_longer() -> None:
    before, called = signal.getsignal(signal.SIGHUP), threading.Event()
    with on_hangup(called.set):
        os.kill(os.getpid(), signal.SIGHUP)
        assert called.wait(10)
    assert signal.getsignal(signal.SIGHUP) == before
