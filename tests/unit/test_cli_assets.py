"""The commands about assets, as a shell sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airferry.cli.app import run


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "Data"
    folder.mkdir()
    (folder / "a.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return folder


def test_record_then_verify(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["assets", "record", "Data", "--kind", "dataset", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["name"], document["files"], document["size_bytes"]) == ("data", 1, 3)
    assert run(["assets", "verify", document["manifest"], "Data"]) == 0
    assert document["digest"] in capsys.readouterr().err


def test_findings_exit_with_8_and_are_data(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["assets", "record", "Data", "-o", "m.jsonl"]) == 0
    (dataset / "a.jsonl").write_text("[]\n")
    capsys.readouterr()
    assert run(["assets", "verify", "m.jsonl", "Data", "--json"]) == 8
    captured = capsys.readouterr()
    assert [item["problem"] for item in json.loads(captured.out)["findings"]] == ["changed"]
    assert "hint:" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["record", "Data", "--out", "Data/m.jsonl"], 2, "is inside the asset"),
        (["record", "Data", "--name", "Bad Name"], 2, "is not a valid asset name"),
        (["record", "absent"], 4, "cannot read"),
        (["verify", "Data/a.jsonl", "Data"], 6, "not a valid asset manifest"),
        (["verify", "Data", "Data"], 2, "contains no bundle"),
        (["verify", "Data/a.jsonl", "Data", "--root", "sha256:" + "0" * 64], 2, "requires a bundle"),
        (["unpack", "UPPER/case:x:y", "there"], 2, "is neither a bundle nor a reference"),
    ],
)
@pytest.mark.usefixtures("dataset")
def test_what_cannot_be_done_says_why(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["assets", *arguments]) == code
    assert message in capsys.readouterr().err
