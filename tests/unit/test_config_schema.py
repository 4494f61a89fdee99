"""The JSON Schema says what the reader accepts, and the shipped files agree with both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from airferry.config import json_schema, load_config, render_schema
from airferry.errors import ConfigurationError
from catalogues import write_airgap

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "docs" / "airgap.schema.json"


def schema_accepts(value: Any) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(value)


def test_the_shipped_schema_is_the_generated_one() -> None:
    """Set AIRFERRY_REGENERATE=1 to write it again."""
    if os.environ.get("AIRFERRY_REGENERATE"):
        SCHEMA.write_text(render_schema())
    assert SCHEMA.read_text() == render_schema()


def test_the_schema_is_valid_and_describes_its_keys() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    image = schema["$defs"]["ExecutionImage"]["properties"]
    assert all(entry.get("description") for name, entry in image.items() if name != "base_image")


def test_a_caller_cannot_spoil_the_schema_for_others() -> None:
    json_schema()["properties"].clear()
    assert json_schema()["properties"]


def test_the_shipped_plan_points_at_the_schema_and_agrees_with_it() -> None:
    path = ROOT / "airgap.yaml"
    first = path.read_text().splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == SCHEMA
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("workflow: {name: a, stages: [b]}", True),
        ("workflow:", True),
        ("x-any: {thing: 1}", True),
        ("compression: gzip", True),
        ("compression: {kind: zstd, level: 9}", True),
        ("step_execution_images: {a: b, c: {execution_image: d}}", True),
        (
            "execution_images: {a: {base_image: b, overlays: ['git+https://h/b@r,/t', {url: u, ref: r, target: /t}]}}",
            True,
        ),
        ("execution_images: {a: {base_image: {bootstrap: {suite: bookworm}}, x-note: n, python: }}", True),
        ("platforms: [linux/arm64]", True),
        ("dependencies: {a: [b], c: }", True),
        ("site: {anything: [1]}", False),
        ("unknown: 1", False),
        ("workflow: {stage: [b]}", False),
        ("compression: lzma", False),
        ("execution_images: {a: {}}", False),
        ("execution_images: {a: {base_image: {bootstrap: {}}}}", False),
        ("execution_images: {a: {base_image: [b]}}", False),
        ("archives: 'yes'", False),
        ("platforms: linux/arm64", False),
        ("site: 1", False),
        ("step_execution_images: {a: {image: d}}", False),
    ],
)
def test_schema_and_reader_agree(tmp_path: Path, text: str, accepted: bool) -> None:
    path = write_airgap(tmp_path, text)
    assert schema_accepts(yaml.safe_load(text)) is accepted
    if accepted:
        load_config(path)
    else:
        with pytest.raises(ConfigurationError):
            load_config(path)
