"""Plain data of values, as `--json` prints them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from airferry.assets.staged import AssetFinding, AssetReport
from airferry.engine.preflight import Check
from airferry.host.canonical import plain_data
from airferry.jobs.findings import Finding
from airferry.near.build import BuildOutcome, ImageSummary, Recompressed
from airferry.plan.models import Overlay, PlanWarning


class Model(BaseModel):
    path: Path
    nothing: int | None = None


@dataclass(frozen=True, slots=True)
class Inner:
    z: int
    a: str | None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...]
    named: dict[str, tuple[int, ...]]
    model: Model
    path: Path = field(default=Path("x/y"))

    @property
    def ok(self) -> bool:
        return True


OUTER = Outer(Inner(1, None), (Inner(2, "b"),), {"k": (1, 2)}, Model(path=Path("p")))


def test_all_fields_become_plain_data_in_their_order() -> None:
    text = json.dumps(plain_data(OUTER))
    assert text == (
        '{"inner": {"z": 1, "a": null}, "many": [{"z": 2, "a": "b"}], "named": {"k": [1, 2]}, '
        '"model": {"path": "p", "nothing": null}, "path": "x/y"}'
    )


def test_attributes_may_be_named_properties_among_them() -> None:
    assert json.dumps(plain_data(OUTER, "path", "ok")) == '{"path": "x/y", "ok": true}'


def test_a_model_becomes_what_json_has_and_nothing_else() -> None:
    class Many(BaseModel):
        many: tuple[int, ...]

    assert plain_data(Many(many=(1, 2))) == {"many": [1, 2]}


def test_the_documents_of_commands_keep_their_shape() -> None:
    warning = PlanWarning("imports", "a.py:1", "m", "h", ("t",), ("b.py:2",), certain=False)  # type: ignore[arg-type]
    assert json.dumps(plain_data(warning)) == (
        '{"kind": "imports", "place": "a.py:1", "message": "m", "hint": "h", "targets": ["t"], "also": ["b.py:2"], '
        '"certain": false}'
    )
    assert json.dumps(plain_data(Check("engine", "ok", "d"))) == (
        '{"name": "engine", "status": "ok", "detail": "d", "hint": null}'
    )
    assert json.dumps(plain_data(Overlay("r", "u", "f", "/t"))) == (
        '{"repo": "r", "url": "u", "ref": "f", "target": "/t"}'
    )
    found = Finding("s", "path", "warn", "f", 3, "k", "v", "t", also=("x",))  # type: ignore[arg-type]
    assert json.dumps(plain_data(found)) == (
        '{"step": "s", "kind": "path", "level": "warn", "file": "f", "line": 3, "key": "k", "value": "v", '
        '"text": "t", "fix": null, "also": ["x"], "remedy": "change", "executors": []}'
    )
    asset = AssetReport("n", Path("/a"), "sha256:1", 2, 3, 4, (AssetFinding("p", "extra", "t"),))
    assert json.dumps(asset.to_document()) == (
        '{"name": "n", "path": "/a", "digest": "sha256:1", "ok": false, "files": 2, "size_bytes": 3, "read_bytes": 4, '
        '"findings": [{"path": "p", "problem": "extra", "text": "t"}]}'
    )
    image = ImageSummary("i", "r", "d", ("linux/amd64",), 5, 6)
    built = BuildOutcome(
        Path("o"), Path("o/b"), (image,), 1, None, 7, None, (warning,), recompressed=Recompressed(8, 7, "z")
    )
    assert json.dumps(built.to_document()) == (
        '{"output": "o", "bundle": "o/b", "root": null, "bundle_bytes": 7, "reused": 1, "warnings": '
        + json.dumps([plain_data(warning)])
        + ', "images": [{"name": "i", "reference": "r", "digest": "d", "platforms": ["linux/amd64"], "size_bytes": 5, '
        '"unpacked_bytes": 6}], "left_out": [], '
        '"recompressed": {"fetched_bytes": 8, "carried_bytes": 7, "compression": "z"}}'
    )
