"""What `verify` ends with: where a bundle came from, as far as that is known, and what comes next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airferry.bundle.verify import open_bundle
from airferry.cli.app import run
from next_steps import next_commands
from travelling_catalogue import make_travelling_bundle, write_catalogue


@pytest.mark.parametrize("given", [True, False])
def test_verify_says_where_a_bundle_came_from_and_what_comes_next(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AIRFERRY_ROOT", "AIRFERRY_TO", "AIRFERRY_SITE", "AIRFERRY_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    carried = make_travelling_bundle(write_catalogue(tmp_path / "code"), tmp_path / "out" / "bundle")
    root = open_bundle(tmp_path / "out").root
    words = ["verify", "out", *(["--root", root] if given else [])]
    assert run(words) == 0
    said = capsys.readouterr().err
    assert "written by airferry 0: 1 target for linux/amd64" in said and carried.entry.digest in said
    assert ("As the bundle claims:" in said) is not given and ("Verified:" in said) is given
    last = ["load", "out", *(["--root", root] if given else []), "--jobs", "jobs"]
    last += [] if given else ["--root", "$ROOT"]
    assert next_commands(said) == [["site", "init"], ["login"], last]
    # what the site's profile says need not be typed; one that is wrong is for the load to tell
    Path("site.yaml").write_text("registry: hub:5000/x\nexecutors: [kubernetes]\n")
    assert run(words) == 0
    assert next_commands(capsys.readouterr().err) == [last]
    Path("site.yaml").write_text("executors: [kubernetes]\n")
    assert run(words) == 0
    assert "--to" in next_commands(capsys.readouterr().err)[0]
    Path("site.yaml").write_text("executors: [x]\n")
    monkeypatch.setenv("AIRFERRY_ROOT", root)
    assert run(["verify", "out"]) == 0
    assert next_commands(capsys.readouterr().err)[-1] == ["load", "out", "--jobs", "jobs"], (
        "the environment has the root"
    )
    assert run(["--quiet", "verify", "out"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["verify", "out", "--json"]) == 0
    captured = capsys.readouterr()
    assert "Next" not in captured.err
    origin = json.loads(captured.out)["origin"]
    assert (origin["airferry"], origin["catalogue"], origin["steps"]) == (
        "0",
        carried.entry.digest,
        "src/nemotron/steps",
    )
