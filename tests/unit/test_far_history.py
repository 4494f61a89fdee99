"""The loads that a folder has receipts of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airferry.bundle.receipt import (
    Receipt,
    ReceiptConnection,
    ReceiptTag,
    find_receipt,
    names_receipt,
    read_receipt,
    write_receipt,
)
from airferry.cli.app import run
from airferry.errors import HostError, UsageError
from airferry.events import Event, Notice

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def put(folder: Path, name: str, *, loaded_at: str, verified: bool = False, tls: bool | None = None) -> None:
    tags = (
        ReceiptTag(reference="hub:5000/a/x:1", digest=ONE, previous_digest=TWO),
        ReceiptTag(reference="hub:5000/a/y:1", digest=ONE, previous_digest=ONE),
        ReceiptTag(reference="hub:5000/a/z:1", digest=ONE),
        ReceiptTag(reference="hub:5000/a/z:2", digest=ONE),
    )
    receipt = Receipt(
        bundle_root=ONE,
        root_verified=verified,
        registry="hub:5000/a",
        connection=None if tls is None else ReceiptConnection(tls=tls),
        loaded_at=loaded_at,
        airferry="0",
        images=(),
        artifact_tags=tags,
    )
    folder.mkdir(exist_ok=True)
    write_receipt(receipt, folder / name)


def test_loads_are_listed_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "airgap-receipt-b.yaml", loaded_at="2026-01-01T00:00:00Z")
    put(tmp_path, "airgap-receipt-a.yaml", loaded_at="2026-03-01T00:00:00Z", verified=True, tls=True)
    put(tmp_path / "jobs", "airgap-receipt-c.yaml", loaded_at="2026-02-01T00:00:00Z", tls=False)
    put(tmp_path, "site.yaml", loaded_at="2026-02-01T00:00:00Z")
    assert run(["history", ".", "jobs"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"2026-01-01T00:00:00Z  hub:5000/a  {ONE}",
        "  0 images, 2 tags new, 1 tag moved, root not verified; airgap-receipt-b.yaml",
        f"2026-02-01T00:00:00Z  hub:5000/a  {ONE}",
        "  0 images, 2 tags new, 1 tag moved, root not verified, plain HTTP; jobs/airgap-receipt-c.yaml",
        f"2026-03-01T00:00:00Z  hub:5000/a  {ONE}",
        "  0 images, 2 tags new, 1 tag moved, root verified, TLS; airgap-receipt-a.yaml",
    ]


def test_a_file_that_is_no_receipt_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["history"]) == 0 and "no receipts here" in capsys.readouterr().err
    (tmp_path / "airgap-receipt-bad.yaml").write_text("a: 1\n")
    put(tmp_path, "airgap-receipt-a.yaml", loaded_at="2026-03-01T00:00:00Z")
    assert run(["history", "--json"]) == 6
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert [one["path"] for one in document["loads"]] == ["airgap-receipt-a.yaml"]
    assert [one["path"] for one in document["unreadable"]] == ["airgap-receipt-bad.yaml"]
    assert "airgap-receipt-bad.yaml" in shown.err
    assert run(["history", "gone"]) == 4


def test_receipts_in_sub_folders_are_named_and_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`load --jobs jobs` leaves the receipt in a sub-folder; one in a folder that was carried over may be forged."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "jobs", "airgap-receipt-a.yaml", loaded_at="2026-03-01T00:00:00Z")
    put(tmp_path / "out", "airgap-receipt-a.yaml", loaded_at="2026-03-01T00:00:00Z")
    (tmp_path / "out" / "bundle").mkdir()
    assert run(["history"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and "airferry history jobs" in shown.err and "out" not in shown.err
    for command in (["load", "--rollback", "."], ["mirrors", "--out", "m"], ["overlays"]):
        assert run(command) in (3, 4)
    with pytest.raises(HostError, match="there is no receipt in") as caught:
        read_receipt(Path())
    assert caught.value.hint == "name the folder that has one: `jobs`"


def test_of_several_loads_into_one_destination_the_latest_that_stands_is_taken(tmp_path: Path) -> None:
    put(tmp_path, "airgap-receipt-a.yaml", loaded_at="2026-01-01T00:00:00Z")
    put(tmp_path, "airgap-receipt-b.yaml", loaded_at="2026-02-01T00:00:00Z", verified=True)
    events: list[Event] = []
    assert find_receipt(tmp_path, emit=events.append).root_verified
    (notice,) = events
    assert isinstance(notice, Notice) and "2 receipts in" in notice.text and "`airgap-receipt-b.yaml`" in notice.text
    newer = read_receipt(tmp_path / "airgap-receipt-b.yaml")
    back = newer.model_copy(update={"rolled_back_at": "2026-02-02T00:00:00Z"})
    write_receipt(back, tmp_path / "airgap-receipt-b.yaml")
    assert not find_receipt(tmp_path).root_verified, "the later one was rolled back"
    write_receipt(newer.model_copy(update={"registry": "other:5000"}), tmp_path / "airgap-receipt-b.yaml")
    with pytest.raises(UsageError, match="there are several receipts"):
        find_receipt(tmp_path)


def test_a_repeated_load_keeps_what_the_first_one_knew(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", loaded_at="2026-01-01T00:00:00Z", verified=True)
    put(tmp_path, "b.yaml", loaded_at="2026-02-01T00:00:00Z")
    first, second = read_receipt(tmp_path / "a.yaml"), read_receipt(tmp_path / "b.yaml")
    merged = second.after(first)
    assert merged.root_verified
    assert (merged.loaded_at, merged.loaded_again_at) == ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
    assert second.after(None) == second and second.after(first.model_copy(update={"bundle_root": TWO})) == second


def test_a_folder_with_a_bundle_in_it_is_no_receipt_whatever_else_it_holds(tmp_path: Path) -> None:
    put(tmp_path / "jobs", "airgap-receipt-a.yaml", loaded_at="2026-01-01T00:00:00Z")
    assert names_receipt(tmp_path / "jobs") and names_receipt(tmp_path / "jobs" / "airgap-receipt-a.yaml")
    (tmp_path / "jobs" / "bundle").mkdir()
    assert not names_receipt(tmp_path / "jobs") and not names_receipt(tmp_path) and not names_receipt(tmp_path / "gone")
