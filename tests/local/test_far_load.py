"""A load and its rollback, as they are typed, against a registry: what is written and said, and both ways of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from airferry import api
from airferry.bundle.receipt import ReceiptConnection, ReceiptTag, read_receipt, write_receipt
from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from airferry.errors import RegistryError
from airferry.events import Event, Notice, Warned, silent
from airferry.far.destinations import DestinationRecords, hold_destination
from airferry.far.tags import move_tags
from airferry.host import files
from airferry.host.canonical import canonical_json
from airferry.oci.closure import Closure, read_closure
from airferry.oci.documents import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Index
from airferry.registry.client import ClientOptions
from airferry.registry.credentials import Credential
from airferry.registry.profile import RegistryProfile, write_profile
from airferry.registry.retry import RetryPolicy
from oci_images import make_bundle
from scripted_registry import Call, Exchange, ScriptedRegistry, error_document, sha256, times

ORIGIN_UNKNOWN = "Checked integrity, not origin"
TRAINER = "airgap/team/trainer"


pytestmark = pytest.mark.usefixtures("unsettled")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two bundles of one image, whose bytes differ: an older and a newer delivery. Nothing writes into them."""
    folder = tmp_path_factory.mktemp("bundles")
    for salt in ("", "2"):
        make_bundle(folder / f"bundle{salt}", salt)
    return {"old": folder / "bundle", "new": folder / "bundle2"}


def make_room(receipt: Path, bundle: Path) -> None:
    """Take a receipt of another bundle away: a load does not replace it."""
    if (
        receipt.is_file()
        and receipt.read_text() != "a: 1\n"
        and read_receipt(receipt).bundle_root != open_bundle(bundle).root
    ):
        receipt.unlink()


def load(registry: ScriptedRegistry, bundle: Path, *more: str) -> int:
    if "--receipt" not in more:
        make_room(Path("airgap-receipt.yaml"), bundle)
    receipt = [] if "--receipt" in more else ["--receipt", "airgap-receipt.yaml"]
    return run(["load", str(bundle), "--to", f"{registry.address}/airgap", "--plain-http", *receipt, *more])


def rollback(*more: str) -> int:
    return run(["load", "--rollback", "airgap-receipt.yaml", "--plain-http", *more])


def tag_of(registry: ScriptedRegistry, name: str, tag: str) -> str | None:
    found = registry.manifests.get(f"{name}@{tag}")
    return None if found is None else sha256(found[0])


def closures(path: Path) -> list[Closure]:
    bundle = open_bundle(path)
    return [read_closure(bundle.store, entry) for entry in (*bundle.images.values(), *bundle.artifacts)]


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return what went to stdout as it is, and to stderr with its line breaks taken out."""
    captured = capsys.readouterr()
    return captured.out, " ".join(captured.err.split())


@pytest.mark.parametrize("given", [True, False])
def test_the_receipt_says_whether_the_root_was_compared(
    given: bool, registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = open_bundle(bundles["old"]).root
    assert load(registry, bundles["old"], *(["--root", root] if given else [])) == 0
    receipt = read_receipt(Path("airgap-receipt.yaml"))
    assert (receipt.bundle_root, receipt.root_verified) == (root, given)
    assert (ORIGIN_UNKNOWN in said(capsys)[1]) is not given


@pytest.mark.parametrize("given", [True, False])
def test_the_report_of_a_verification_says_whether_the_root_was_compared(
    given: bool, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = open_bundle(bundles["old"]).root
    arguments = ["verify", str(bundles["old"]), *(["--root", root] if given else [])]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["root"], document["root_verified"]) == (root, given)
    assert run(arguments) == 0
    out, err = said(capsys)
    assert out == "", "what was found wrong is the data, and nothing was"
    assert f"root {root}" in err and "1 image" in err and "2 artifacts; " in err
    assert ("(as expected)" in err) is given and (ORIGIN_UNKNOWN in err) is not given


def test_the_root_of_another_bundle_is_refused_and_nothing_is_asked(
    registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    assert load(registry, bundles["old"], "--root", open_bundle(bundles["new"]).root) == 6
    assert registry.calls == [] and not Path("airgap-receipt.yaml").exists()


def test_a_load_says_what_it_did_and_a_second_one_sends_nothing(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"]) == 0
    first = said(capsys)[1]
    assert "0 mounted from another repository, 0 already present" in first
    assert "2 of 2 tags moved" in first and "wrote airgap-receipt.yaml" in first
    assert load(registry, bundles["old"], "--json") == 0
    second = json.loads(said(capsys)[0])
    assert (second["sent_blobs"], second["sent_bytes"], second["dry_run"]) == (0, 0, False)
    assert second["present_blobs"] > 0 and {tag["moved"] for tag in second["tags"]} == {False}
    assert second["receipt_path"] == "airgap-receipt.yaml"


def test_a_dry_run_writes_nothing_anywhere_and_says_what_would_move(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"], "--dry-run") == 0
    out, _err = said(capsys)
    bundle = open_bundle(bundles["old"])
    (index,) = bundle.images.values()
    lines = out.splitlines()
    assert f"tag  {registry.address}/{TRAINER}:1.0  {index.digest}" in lines
    sends = [line.split()[1] for line in lines if line.startswith("send  ")]
    blobs = {blob.digest for closure in closures(bundles["old"]) for blob in closure.blobs.values()}
    assert {name.partition("@")[2] for name in sends} == blobs
    assert lines[-1].startswith("would send ")
    assert load(registry, bundles["old"], "--dry-run", "--json") == 0
    document = json.loads(said(capsys)[0])
    assert (document["dry_run"], document["receipt_path"]) == (True, None)
    assert {call.method for call in registry.calls} <= {"GET", "HEAD"}
    assert not registry.manifests and not registry.blobs and not Path("airgap-receipt.yaml").exists()


def test_a_rollback_puts_back_what_a_tag_stood_for_and_removes_what_is_new(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"]) == 0
    before = tag_of(registry, TRAINER, "1.0")
    assert load(registry, bundles["new"]) == 0
    after = tag_of(registry, TRAINER, "1.0")
    assert before is not None and after not in (before, None)
    receipt = read_receipt(Path("airgap-receipt.yaml"))
    assert [(tag.digest, tag.previous_digest) for tag in receipt.tags if tag.reference.endswith(":1.0")] == [
        (after, before)
    ]
    said(capsys)
    assert rollback("--json") == 0
    document = json.loads(said(capsys)[0])
    assert document["restored"] == [f"{registry.address}/{TRAINER}:1.0"]
    assert len(document["removed"]) == 1 and "airferry-artifacts:bundle-" in document["removed"][0]
    assert tag_of(registry, TRAINER, "1.0") == before
    assert rollback() == 0, "a rollback can be repeated"
    out, err = said(capsys)
    assert out == "" and "all tags are back to their state before the load" in err
    assert tag_of(registry, TRAINER, "1.0") == before


def test_a_rollback_lists_each_tag_on_a_line(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"]) == 0 and load(registry, bundles["new"]) == 0
    artifact = read_receipt(Path("airgap-receipt.yaml")).artifact_tags[0].reference
    said(capsys)
    assert rollback() == 0
    assert said(capsys)[0].splitlines() == [f"restored  {registry.address}/{TRAINER}:1.0", f"removed  {artifact}"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_rollback_leaves_a_tag_alone_that_others_moved_since(
    gone: bool, registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"]) == 0 and load(registry, bundles["new"]) == 0
    theirs = (b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}', "index")
    if gone:
        del registry.manifests[f"{TRAINER}@1.0"]
    else:
        registry.manifests[f"{TRAINER}@1.0"] = theirs
    moved = tag_of(registry, TRAINER, "1.0")
    puts = registry.count("PUT", "manifests")
    said(capsys)
    assert rollback() == 7
    err = said(capsys)[1]
    assert "not all tags are back to their state before the load" in err and "1 other tag is as before the load" in err
    expected = "another client has removed it" if gone else f"another client has moved it since, to `{moved}`"
    assert f"`{registry.address}/{TRAINER}:1.0`: {expected}" in err
    assert tag_of(registry, TRAINER, "1.0") == moved, "another's tag stays what they made it"
    assert registry.count("PUT", "manifests") == puts
    assert not [key for key in registry.manifests if "@bundle-" in key and key.endswith(newest_bundle_tag())]


def newest_bundle_tag() -> str:
    return read_receipt(Path("airgap-receipt.yaml")).artifact_tags[0].reference.rpartition(":")[2]


def test_a_rollback_where_tags_cannot_be_removed_says_so_and_restores_the_rest(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"]) == 0
    before = tag_of(registry, TRAINER, "1.0")
    assert load(registry, bundles["new"]) == 0

    def refuse(exchange: Exchange) -> bool:
        return exchange.call.method == "DELETE" and exchange.answer(405, error_document("UNSUPPORTED"))

    registry.faults.append(refuse)
    said(capsys)
    artifact = read_receipt(Path("airgap-receipt.yaml")).artifact_tags[0].reference
    assert rollback() == 0, "what was there before is back"
    out, err = said(capsys)
    assert out == f"restored  {registry.address}/{TRAINER}:1.0\n"
    assert f"1 new artifact tag stays, as the registry cannot delete tags: `{artifact}`" in err
    assert "all other tags are back to their state before the load" in err and "already has its value" not in err
    assert tag_of(registry, TRAINER, "1.0") == before
    assert rollback("--json") == 0
    assert json.loads(said(capsys)[0]) == {
        "restored": [],
        "removed": [],
        "unchanged": [f"{registry.address}/{TRAINER}:1.0"],
        "kept": [artifact],
        "dry_run": False,
    }


def test_new_image_tags_that_stay_are_named_one_per_line(
    registry: ScriptedRegistry, with_twin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, with_twin) == 0
    registry.faults.append(lambda ex: ex.call.method == "DELETE" and ex.answer(405, error_document("UNSUPPORTED")))
    capsys.readouterr()
    assert rollback() == 0
    lines = capsys.readouterr().err.splitlines()
    shown = [line.strip() for line in lines]
    assert "2 new image tags stay, as the registry cannot delete tags:" in lines[0]
    for tag in read_receipt(Path("airgap-receipt.yaml")).tags:
        assert f"`{tag.reference}`" in shown
    assert any("registry's own tools" in line for line in shown)
    assert "no tag was there before the load, so none has to go back" in shown
    assert read_receipt(Path("airgap-receipt.yaml")).rolled_back_at is None, "nothing was put back"


def test_a_dry_rollback_says_what_it_would_do_and_changes_nothing(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"]) == 0 and load(registry, bundles["new"]) == 0
    before, record = dict(registry.manifests), Script(registry, bundles["new"]).noted()
    artifact = read_receipt(Path("airgap-receipt.yaml")).artifact_tags[0].reference
    calls = len(registry.calls)
    said(capsys)
    assert rollback("--dry-run") == 0
    out, err = said(capsys)
    assert out.splitlines() == [f"would restore  {registry.address}/{TRAINER}:1.0", f"would remove  {artifact}"]
    assert "all tags would be back to their state before the load; nothing was changed" in err
    assert "whether this registry can delete tags is not known" in err
    write_profile(RegistryProfile(registry=registry.address, deletes_tags=False))
    assert rollback("--dry-run", "--json") == 0
    document = json.loads(said(capsys)[0])
    assert (document["removed"], document["kept"], document["dry_run"]) == ([], [artifact], True)
    assert {call.method for call in registry.calls[calls:]} <= {"GET", "HEAD"} and registry.manifests == before
    assert Script(registry, bundles["new"]).noted() == record


def test_a_rollback_names_the_later_load_of_the_same_user_that_moved_a_tag(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"], "--receipt", "airgap-receipt.yaml") == 0
    assert load(registry, bundles["new"], "--receipt", "airgap-receipt-new.yaml") == 0
    said(capsys)
    assert rollback() == 7
    err = said(capsys)[1]
    assert f"a later load of yours, of root `{open_bundle(bundles['new']).root}`, has moved it since" in err
    assert "another client" not in err and "roll back the later load first" in err
    assert "airferry load --rollback airgap-receipt-new.yaml" in err
    assert run(["load", "--rollback", "airgap-receipt-new.yaml", "--plain-http"]) == 0
    assert rollback() == 0, "as the hint says"
    assert tag_of(registry, TRAINER, "1.0") is None


class Script:
    """What a load against a registry that breaks off leaves, and what a second one makes of it."""

    def __init__(self, registry: ScriptedRegistry, bundle: Path) -> None:
        self.registry = registry
        self.bundle = bundle
        self.receipt = Path("airgap-receipt.yaml")
        self.to = f"{registry.address}/airgap"
        self.artifacts = "try"

    @property
    def records(self) -> DestinationRecords:
        folder = files.cache_directory() / "loads" / hashlib.sha256(self.to.encode()).hexdigest()[:16]
        return DestinationRecords(self.to, folder)

    def noted(self) -> dict[str, str | None]:
        return self.records.tags_before(open_bundle(self.bundle).root)

    def load(self, events: list[Event] | None = None) -> None:
        retry = RetryPolicy(attempts=1, sleep=lambda _seconds: None)
        options = ClientOptions(plain_http=True, retry=retry, lookup=lambda _registry, _repository: None, jobs=2)
        emit = silent if events is None else events.append
        to = api.parse_destination(self.to, artifacts=self.artifacts)
        make_room(self.receipt, self.bundle)
        api.load(self.bundle, to=to, receipt=self.receipt, options=options, emit=emit)


def test_tags_move_last_and_what_they_stood_for_is_noted_before(
    registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    assert load(registry, bundles["old"]) == 0
    before = tag_of(registry, TRAINER, "1.0")
    script = Script(registry, bundles["new"])
    script.artifacts = "require"
    noted: list[dict[str, str | None]] = []

    def is_tag(call: Call) -> bool:
        return call.method == "PUT" and "/manifests/" in call.path and "/manifests/sha256" not in call.path

    def fail(exchange: Exchange) -> bool:
        if not is_tag(exchange.call) or "bundle-" not in exchange.call.path:
            return False
        noted.append(script.records.tags_before(open_bundle(script.bundle).root))
        exchange.read_body()
        return exchange.answer(403, error_document("DENIED"))

    registry.calls.clear()
    registry.faults.append(fail)
    with pytest.raises(RegistryError, match="1 of 2 tags were moved") as caught:
        script.load()
    assert "the same load moves the remaining tags" in (caught.value.hint or "")
    tags = [call.number for call in registry.calls if is_tag(call)]
    others = [call.number for call in registry.calls if call.method in ("PUT", "PATCH", "POST") and not is_tag(call)]
    assert max(others) < min(tags), "no tag moves before all that it stands for is there"
    assert noted[0][f"{registry.address}/{TRAINER}:1.0"] == before
    assert not script.receipt.exists(), "no receipt yet"

    registry.faults.clear()
    script.load()
    receipt = read_receipt(script.receipt)
    previous = {tag.reference: tag.previous_digest for tag in receipt.tags}
    assert previous[f"{registry.address}/{TRAINER}:1.0"] == before, "as before the first of the two runs"
    assert previous[receipt.artifact_tags[0].reference] is None
    script.receipt = Path("elsewhere.yaml")
    script.load()
    assert read_receipt(script.receipt).tags == receipt.tags, "a third run takes it from the record"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"root": "another", "tags": {}}',
        b'{"tags": 1}',
        b"[" * 100_000,
        b'{"root": "ROOT"}',
        b'{"destination": "elsewhere:5000", "root": "ROOT", "tags": {"REF": "sha256:EVIL"}}',
        b'{"destination": "HERE", "root": "ROOT", "tags": {"REF": "latest"}}',
        b'{"destination": "HERE", "root": "ROOT", "tags": {"REF": 1}}',
    ],
)
def test_a_record_of_something_else_counts_for_nothing(
    content: bytes, registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    script = Script(registry, bundles["old"])
    root = open_bundle(bundles["old"]).root
    script.load()
    reference = read_receipt(script.receipt).images[0].reference
    script.receipt.unlink()
    path = script.records.folder / f"tags-{root.partition(':')[2]}.json"
    assert path.is_file()
    for mark, text in (("ROOT", root), ("HERE", script.to), ("REF", reference), ("EVIL", "e" * 64)):
        content = content.replace(mark.encode(), text.encode())
    path.write_bytes(content)
    script.load()
    image = read_receipt(script.receipt).images[0]
    assert image.previous_digest == image.digest, "what it stood for when this load found it"


def test_a_tag_that_others_moved_between_two_runs_is_taken_as_they_left_it(
    registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    """A journal speaks of a tag only while it stands for what that run set."""
    script = Script(registry, bundles["new"])
    script.load()
    theirs = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    registry.manifests[f"{TRAINER}@1.0"] = (theirs, "application/vnd.oci.image.index.v1+json")
    script.load()
    previous = {tag.reference: tag.previous_digest for tag in read_receipt(script.receipt).tags}
    assert previous[f"{registry.address}/{TRAINER}:1.0"] == sha256(theirs)


@pytest.fixture(scope="module")
def with_twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("twins") / "bundle"
    make_bundle(path, twins=True)
    return path


def test_the_closing_words_of_a_rollback_fit_what_is_left(
    registry: ScriptedRegistry, with_twin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three tags are new. Another client moves one of them, then all."""
    theirs = (b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}', "index")

    def closing() -> str:
        said(capsys)
        assert rollback() == 7
        return said(capsys)[1].partition("hint: ")[2]

    assert load(registry, with_twin) == 0
    registry.manifests[f"{TRAINER}@1.0"] = theirs
    assert closing().startswith("2 other tags are as before the load")
    assert not [key for key in registry.manifests if key.endswith(("-docker", "@1.0")) and key != f"{TRAINER}@1.0"]

    registry.manifests.clear()
    assert load(registry, with_twin) == 0
    for tag in read_receipt(Path("airgap-receipt.yaml")).tags:
        name, _, version = tag.reference.partition("/")[2].rpartition(":")
        registry.manifests[f"{name}@{version}"] = theirs
    assert closing() == "the tags that another client moved stay: agree with its owner on who sets them"


def test_a_rollback_says_of_each_tag_what_it_did_and_logs_in_as_a_load_does(
    registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    user = Credential("ferry", "s3cret")
    events: list[Event] = []
    Script(registry, bundles["old"]).load()
    Script(registry, bundles["new"]).load()

    def guarded(exchange: Exchange) -> bool:
        if exchange.headers.get("Authorization") == user.basic:
            return False
        exchange.read_body()
        return exchange.answer(401, WWW_Authenticate='Basic realm="hub"')

    registry.faults.append(guarded)
    options = ClientOptions(plain_http=True, lookup=lambda _registry, _repository: user)
    result = api.rollback(Path("airgap-receipt.yaml"), options=options, emit=events.append)
    tags = read_receipt(Path("airgap-receipt.yaml")).tags
    assert {*result.restored, *result.removed} == {tag.reference for tag in tags}
    assert not [event for event in events if isinstance(event, Notice)], "no tag that moved is said to have stayed"
    again = api.rollback(Path("airgap-receipt.yaml"), options=options, emit=events.append)
    assert (again.restored, again.removed, {*again.unchanged}) == ((), (), {tag.reference for tag in tags})
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert notices == [f"`{tag.reference}` already has its value from before the load" for tag in tags]


def test_no_tag_to_move_leaves_no_record_and_a_reference_without_a_tag_is_nothing_to_put_back(
    registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    path = Path("airgap-receipt.yaml")
    with hold_destination("localhost:1", purpose="test") as records:
        assert move_tags([], {}, records, root="sha256:" + "0" * 64) == {}
        assert [one.name for one in records.folder.iterdir()] == ["lock"]
    Script(registry, bundles["old"]).load()
    receipt = read_receipt(path)
    pinned = ReceiptTag(reference=receipt.images[0].pinned, digest=receipt.images[0].digest)
    write_receipt(receipt.model_copy(update={"artifact_tags": (pinned,)}), path)
    result = api.rollback(path, options=ClientOptions(plain_http=True))
    assert result.removed == (f"{registry.address}/{TRAINER}:1.0",) and result.restored == ()


# --- several loads at once, and several destinations -----------------------------------------------------------------


def receipts() -> list[str]:
    return sorted(path.name for path in Path().glob("airgap-receipt*"))


def test_receipts_have_the_name_of_their_load_and_a_rollback_finds_them(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two bundles into one destination, one of them into a second one, and with another rule for names."""
    host, port = registry.address.split(":")
    roots = {name: open_bundle(path).root for name, path in bundles.items()}
    arguments = {
        f"airgap-receipt-{host}_{port}+a+b-{roots['old'][7:23]}.yaml": ("old", "a/b"),
        f"airgap-receipt-{host}_{port}+a+b-{roots['new'][7:23]}.yaml": ("new", "a/b"),
        f"airgap-receipt-{host}_{port}-{roots['new'][7:23]}.yaml": ("new", ""),
    }
    for name, prefix in arguments.values():
        assert run(["load", str(bundles[name]), "--to", f"{registry.address}/{prefix}", "--plain-http"]) == 0
    assert receipts() == sorted(arguments)
    assert run(["load", str(bundles["new"]), "--to", registry.address, "--plain-http", "--flatten"]) == 0
    (flat,) = {*receipts()} - {*arguments}
    assert flat.startswith(f"airgap-receipt-{host}_{port}-{roots['new'][7:23]}-")
    said(capsys)
    assert run(["load", "--rollback", ".", "--plain-http"]) == 2
    err = said(capsys)[1]
    assert "there are several receipts in `.`" in err and all(name in err for name in arguments)
    choice = ["--to", f"{registry.address}/a/b", "--root", roots["new"]]
    assert run(["load", "--rollback", ".", "--plain-http", *choice, "--json"]) == 0
    assert json.loads(said(capsys)[0])["restored"] == [f"{registry.address}/a/b/team/trainer:1.0"]
    assert run(["load", "--rollback", "airgap-receipt.yaml"]) == 4
    assert f"hint: this folder has `{receipts()[0]}`" in said(capsys)[1]
    assert run(["load", "--rollback", ".", "--to", "other:5000"]) == 4
    assert "no receipt in `.` is of this destination and root" in said(capsys)[1]
    for name in receipts()[1:]:
        Path(name).unlink()
    assert run(["load", "--rollback", ".", "--plain-http", "--to", "other:5000"]) in (0, 7), "the only one is meant"


def test_a_receipt_never_takes_the_place_of_one_of_another_destination(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"]) == 0
    before = Path("airgap-receipt.yaml").read_bytes()
    calls = len(registry.calls)
    arguments = ["load", str(bundles["old"]), "--to", f"{registry.address}/other", "--plain-http"]
    assert run([*arguments, "--receipt", "airgap-receipt.yaml"]) == 2
    assert f"is the receipt of a load into `{registry.address}/airgap`" in said(capsys)[1]
    Path("airgap-receipt.yaml").write_text("a: 1\n")
    assert load(registry, bundles["old"]) == 6, "what is not a receipt is no place for one"
    assert len(registry.calls) == calls, "both are known before anything is asked"
    Path("airgap-receipt.yaml").write_bytes(before)
    calls = len(registry.calls)
    newer = ["load", str(bundles["new"]), "--to", f"{registry.address}/airgap", "--plain-http"]
    assert run([*newer, "--receipt", "airgap-receipt.yaml"]) == 2
    err = said(capsys)[1]
    assert f"is the receipt of another bundle, `{open_bundle(bundles['old']).root}`" in err
    assert "name another file with `--receipt FILE`" in err
    assert load(registry, bundles["old"], "--flatten") == 2, "the same bundle under other names has other tags"
    assert "of this bundle under other names" in said(capsys)[1]
    assert len(registry.calls) == calls and Path("airgap-receipt.yaml").read_bytes() == before
    assert load(registry, bundles["old"]) == 0, "the same load again may replace it"


def test_a_repeated_load_keeps_what_the_first_one_knew_and_a_rollback_leaves_a_trace(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, path = open_bundle(bundles["old"]).root, Path("airgap-receipt.yaml")
    assert load(registry, bundles["old"], "--root", root) == 0
    first = read_receipt(path)
    assert (first.loaded_again_at, first.rolled_back_at) == (None, None)
    said(capsys)
    assert load(registry, bundles["old"]) == 0
    err = said(capsys)[1]
    assert ORIGIN_UNKNOWN not in err and "an earlier load compared this root" in err
    again = read_receipt(path)
    assert again.root_verified and again.loaded_at == first.loaded_at and again.tags == first.tags
    assert again.loaded_again_at is not None and not again.rolled_back
    assert rollback("--dry-run") == 0 and read_receipt(path) == again
    assert rollback() == 0
    back = read_receipt(path)
    assert back.rolled_back and back.model_copy(update={"rolled_back_at": None}) == again
    assert rollback() == 0 and read_receipt(path) == back, "nothing was put back the second time"
    said(capsys)
    assert run(["history"]) == 0
    assert f"loaded again {back.loaded_again_at}, rolled back {back.rolled_back_at}" in said(capsys)[0]


def test_a_load_that_was_cut_off_between_tags_goes_back_whole_whatever_was_loaded_meanwhile(
    registry: ScriptedRegistry, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between tags; then the same bundle goes elsewhere, from the same folder; then the rerun, from another."""
    Script(registry, bundles["old"]).load()
    before = tag_of(registry, TRAINER, "1.0")
    script = Script(registry, bundles["new"])
    Path("airgap-receipt.yaml").unlink()

    def kill(what: str) -> None:
        if what.startswith("tag "):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "boundary", kill)
        with pytest.raises(KeyboardInterrupt):
            script.load()
    other = Script(registry, bundles["new"])
    other.to = f"{registry.address}/elsewhere"
    other.load()
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "second")
    script.load()
    api.rollback(script.receipt, options=ClientOptions(plain_http=True))
    assert tag_of(registry, TRAINER, "1.0") == before


def test_what_somebody_else_put_into_the_folder_of_the_receipt_says_nothing_in_silence(
    registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    """A journal next to the receipt is not read; a receipt is, where this user has no record, and that is said."""
    script = Script(registry, bundles["old"])
    script.load()
    receipt = read_receipt(script.receipt)
    evil = "sha256:" + "e" * 64
    forged = receipt.model_copy(
        update={"images": tuple(one.model_copy(update={"previous_digest": evil}) for one in receipt.images)}
    )
    write_receipt(forged, script.receipt)
    journal = {"root": receipt.bundle_root, "tags": {receipt.images[0].reference: evil}}
    Path("airgap-receipt.yaml.pending").write_text(json.dumps(journal))
    events: list[Event] = []
    script.load(events)
    assert read_receipt(script.receipt).tags == receipt.tags, "this user's own record counts"
    assert not [event for event in events if isinstance(event, Warned)]
    files.remove_tree(script.records.folder)
    write_receipt(forged, script.receipt)
    script.load(events)
    (warned,) = [event for event in events if isinstance(event, Warned)]
    assert "2 tags stood for before is taken from the earlier receipt `airgap-receipt.yaml`" in warned.text
    assert f"`{receipt.images[0].reference}` → `{evil}`" in warned.text and "--rollback" in (warned.hint or "")
    assert script.records.tags_before(receipt.bundle_root) == {}, "and never becomes a record"


def test_a_load_and_a_rollback_do_not_cross_at_one_destination(
    registry: ScriptedRegistry, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(registry, bundles["old"]) == 0
    here = f"{registry.address}/airgap"
    said(capsys)
    with hold_destination(here, purpose="test"):
        assert rollback() == load(registry, bundles["old"]) == 4
        err = said(capsys)[1]
        assert f"hint: wait until it finishes, then roll back `{here}`" in err
        assert f"hint: wait until it finishes, then load into `{here}`" in err
        arguments = ["load", str(bundles["old"]), "--to", f"{registry.address}/other", "--plain-http"]
        assert run(arguments) == 0, "another destination is not concerned"
    assert tag_of(registry, TRAINER, "1.0") is not None
    assert rollback() == 0 and tag_of(registry, TRAINER, "1.0") is None


OTHERS = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'


@pytest.mark.parametrize("when", ["before", "after"])
def test_two_who_load_different_bundles_under_the_same_tags_are_told(
    when: str, registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    """Somebody moves a tag while the load uploads, or after the load set it."""
    assert load(registry, bundles["old"]) == 0
    theirs = (OTHERS, "application/vnd.oci.image.index.v1+json")

    def take(exchange: Exchange) -> bool:
        first = when == "before" and exchange.call.method in ("PATCH", "PUT")
        last = when == "after" and "bundle-" in exchange.call.path and exchange.call.method == "PUT"
        if first or last:
            registry.manifests[f"{TRAINER}@1.0"] = theirs
        return False

    registry.faults.append(take)
    script = Script(registry, bundles["new"])
    with pytest.raises(RegistryError) as caught:
        script.load()
    taken = f"another client moved 1 tag while this load set them: `{registry.address}/{TRAINER}:1.0` now stands for"
    assert f"{taken} `{sha256(OTHERS)}`" in caught.value.message
    assert "agree on who sets these tags, then rerun this load" in (caught.value.hint or "")
    assert tag_of(registry, TRAINER, "1.0") == sha256(OTHERS), "it is not set over theirs"
    assert read_receipt(Path("airgap-receipt.yaml")).bundle_root == open_bundle(bundles["new"]).root
    registry.faults.clear()
    script.load()
    (image,) = read_receipt(Path("airgap-receipt.yaml")).images
    assert tag_of(registry, TRAINER, "1.0") == image.digest, "who runs it again means it"
    assert image.previous_digest == sha256(OTHERS)


def test_a_400_for_a_manifest_that_passes_is_no_refusal(registry: ScriptedRegistry, bundles: dict[str, Path]) -> None:
    """docker-registry 2.8 answers this while another client sends it the same content."""

    def refuse(exchange: Exchange) -> bool:
        exchange.read_body()
        return exchange.answer(400, error_document("DIGEST_INVALID"))

    def is_manifest(call: Call) -> bool:
        return call.method == "PUT" and "/manifests/" in call.path

    paused: list[float] = []
    options = ClientOptions(plain_http=True, retry=RetryPolicy(sleep=paused.append), jobs=1)
    registry.faults.append(times(2, is_manifest, refuse))
    api.load(bundles["old"], to=f"{registry.address}/airgap", options=options)
    assert len(paused) == 2
    registry.faults[:] = [times(100, is_manifest, refuse)]
    registry.calls.clear()
    with pytest.raises(RegistryError, match="answered with 400 `DIGEST_INVALID`"):
        api.load(bundles["new"], to=f"{registry.address}/airgap", options=options)
    assert registry.count("PUT", "/manifests/") == 4, "one that lasts is known soon"


def test_a_referrer_that_another_client_wrote_over_is_listed_again_next_to_theirs(
    registry: ScriptedRegistry, bundles: dict[str, Path]
) -> None:
    """Without a referrers API, the list is a tag that is read, extended and written: the last writer wins."""
    theirs = Descriptor(media_type=IMAGE_MANIFEST, digest="sha256:" + "a" * 64, size=2)
    data = canonical_json(Index(schema_version=2, media_type=IMAGE_INDEX, manifests=[theirs]))

    def overwrite(exchange: Exchange) -> bool:
        exchange.read_body()
        registry.manifests[exchange.call.path.removeprefix("/v2/").replace("/manifests/", "@")] = (data, IMAGE_INDEX)
        return exchange.answer(201)

    def lists(call: Call) -> bool:
        return call.method == "PUT" and "/manifests/sha256-" in call.path

    registry.faults.append(times(1, lists, overwrite))
    options = ClientOptions(plain_http=True, retry=RetryPolicy(sleep=lambda _seconds: None))
    outcome = api.load(bundles["old"], to=f"{registry.address}/airgap", options=options)
    assert outcome.receipt.left_out == ()
    (listed,) = [json.loads(found[0]) for key, found in registry.manifests.items() if "@sha256-" in key]
    digests = {entry["digest"] for entry in listed["manifests"]}
    assert theirs.digest in digests and len(digests) == 2


def test_a_registry_is_asked_before_anything_is_verified(
    registry: ScriptedRegistry,
    bundles: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def verified(*_: object, **__: object) -> None:
        raise AssertionError("the bundle was verified first")

    def refuse(exchange: Exchange) -> bool:
        return exchange.call.method == "POST" and exchange.answer(403, error_document("DENIED"))

    with monkeypatch.context() as patched:
        patched.setattr("airferry.far.load.verify_opened", verified)
        registry.faults.append(refuse)
        assert load(registry, bundles["old"]) == 7
        said = " ".join(capsys.readouterr().err.split())
        assert f"error: cannot push to `{registry.address}/{TRAINER}`: " in said and "403 `DENIED`" in said
        assert "; nothing was verified or sent" in said and "may not push to" in said
        assert [call.method for call in registry.calls if call.method not in ("GET", "HEAD")] == ["POST"]
        assert run(["load", str(bundles["old"]), "--to", "127.0.0.1:1/x", "--dry-run"]) == 7
        assert "`: `127.0.0.1:1` refuses connections; nothing was" in " ".join(capsys.readouterr().err.split())
    registry.faults[:] = [lambda exchange: exchange.call.method == "POST" and exchange.answer(401)]
    assert load(registry, bundles["old"]) == 7
    said = " ".join(capsys.readouterr().err.split())
    expected = f"`{registry.address}` asks for a login that may push to `{TRAINER}` (401); nothing was verified or sent"
    assert f"error: {expected} hint: log in with `airferry login {registry.address} --plain-http`" in said
    registry.faults.clear()
    registry.calls.clear()
    assert load(registry, bundles["old"]) == 0
    methods = [call.method for call in registry.calls if "/blobs/uploads/" in call.path]
    assert methods[:2] == ["POST", "DELETE"], "the session that asks is ended"


def test_the_receipt_says_how_the_registry_was_reached(registry: ScriptedRegistry, bundles: dict[str, Path]) -> None:
    assert load(registry, bundles["old"]) == 0
    assert read_receipt(Path("airgap-receipt.yaml")).connection == ReceiptConnection(tls=False)
