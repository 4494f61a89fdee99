"""`assets:` of `airgap.yaml`, with errors at file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.config import load_config
from airferry.errors import ConfigurationError
from catalogues import write_airgap


def test_an_asset_is_read_with_its_path_beside_the_file(tmp_path: Path) -> None:
    text = "assets:\n  nano-8b:\n    kind: model\n    path: models/nano\n    steps: [sft/a]\n    pack: true\n"
    asset = load_config(write_airgap(tmp_path, text)).assets["nano-8b"]
    assert (asset.kind, asset.path, asset.steps, asset.pack) == ("model", tmp_path / "models/nano", ("sft/a",), True)


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        ("  a: {kind: modell, path: x}", 2, "Input should be 'model'"),
        ("  a:\n    path: x\n    stepps: [b]", 4, "did you mean `steps`?"),
        ("  a: {kind: model}", 2, "expected either `path` or `manifest`"),
        ("  a: {path: x, manifest: y}", 2, "expected either `path` or `manifest`"),
        ("  a: {manifest: y, pack: true}", 2, "`pack` needs `path`"),
        ("  'A b': {path: x}", 2, "is not a valid asset name"),
        ("  a: {path: x, target: data}", 2, "is not an absolute path"),
        ("  - a", 1, "expected a mapping"),
    ],
)
def test_what_is_wrong_is_told_at_its_line(tmp_path: Path, body: str, line: int, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(write_airgap(tmp_path, f"assets:\n{body}\n"))
    assert reason in caught.value.message
    assert f"airgap.yaml:{line}: `assets" in caught.value.message
