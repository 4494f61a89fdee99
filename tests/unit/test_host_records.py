"""What the cache remembers by what went into it, and what becomes of a record that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.host.records import MAX_RECORD_BYTES, Records


def test_a_record_is_found_by_its_key_alone(tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    assert records.recall({"a": 1}) is None
    records.remember({"a": 1, "b": [2]}, {"file": "x"})
    records.remember({"a": 1, "b": [2]}, {"file": "y"})
    assert Records(tmp_path / "records").recall({"b": [2], "a": 1}) == {"file": "y"}
    assert records.recall({"a": 1, "b": [3]}) is None


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"file": ', b"\xff", b"[" * 50_000, b" " * (MAX_RECORD_BYTES + 1)])
def test_a_damaged_record_counts_as_absent(damage: bytes, tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.remember({"a": 1}, {"file": "x"})
    (path,) = tmp_path.iterdir()
    path.chmod(0o644)
    path.write_bytes(damage)
    assert records.recall({"a": 1}) is None
