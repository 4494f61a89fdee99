"""What the cache remembers by what went into it, and what becomes of a record that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airferry.errors import IntegrityError
from airferry.host.records import MAX_RECORD_BYTES, Records, as_noted
from airferry.near.assemble.writer import BuiltImage
from airferry.near.bases.layers import noted_layer
from airferry.oci.documents import LAYER_TAR, Descriptor, descriptor_of


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


@pytest.mark.parametrize("read", [BuiltImage.from_json, Descriptor.model_validate, noted_layer])
@pytest.mark.parametrize("note", [{}, {"descriptor": 5, "platform": []}, {"descriptor": {"digest": "x"}}, {"size": {}}])
def test_a_note_that_does_not_fit_counts_as_absent(read: Any, note: dict[str, Any]) -> None:
    """It is on a disk, where it may be changed: then the work is done again, without a traceback."""
    assert as_noted(note, read) is None


def test_a_note_is_read_if_there_is_one() -> None:
    layer = descriptor_of(b"x", LAYER_TAR)
    note = {"descriptor": layer.model_dump(by_alias=True, exclude_none=True), "unpacked_bytes": 5}
    assert as_noted(note, noted_layer) == (layer, 5) and as_noted(None, noted_layer) is None

    def refuse(_note: object) -> None:
        raise IntegrityError("x")

    assert as_noted(note, refuse) is None
