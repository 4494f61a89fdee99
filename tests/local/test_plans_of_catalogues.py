"""Plans of a catalogue that Git is asked about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airferry.cli.app import run
from airferry.events import Event, Warned
from airferry.near import predict as prediction
from airferry.near.git.driver import LFS_POINTER
from airferry.near.git.origin import uncommitted_files
from airferry.near.planning import Selection, read_plan
from airferry.plan.lockfile import Lockfile
from catalogues import airgap, mounting, write_airgap, write_step
from near_side import git
from travelling_catalogue import carry, write_catalogue


def test_a_plan_without_lock_counts_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    overlay = mounting("https://git.example.org/a@main,/opt/a")
    for step in ("a", "b"):
        write_step(tmp_path, step, configs={"tiny": overlay})
    document = airgap({"one": "registry.example/b:1", "two": "registry.example/b:2"}, {"a": "one", "b": "two"})
    document["loader"] = False
    config = write_airgap(tmp_path, {**document, "platforms": ["linux/amd64", "linux/arm64"]})
    assert run(["plan", "--config", str(config)]) == 0
    told = capsys.readouterr().out
    assert "not known  6 of 6 bases, wheels of 6 images, 1 checkout, the catalogue" in told


def test_plan_prints_warnings_and_json_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "run:\n  env:\n    nodes: 1\n    container_image: nvcr.io/nvidia/nemo:26.04\n"
    write_step(tmp_path, "s0", configs={"tiny": config})
    write_airgap(tmp_path, airgap({"img": "nvcr.io/nvidia/nemo:26.02"}, {"s0": "img"}))
    monkeypatch.chdir(tmp_path)
    assert run(["plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warnings: src/nemotron/steps/s0/config/tiny.yaml:4: `container_image` is" in shown
    assert "steps s0:tiny fix try the steps on that base" in shown
    assert run(["plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"][0]["kind"] == "image"


def test_a_step_that_git_does_not_track_yet_is_told_before_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_step(tmp_path, "s0", configs={"tiny": "a: 1\n"})
    config = write_airgap(tmp_path, airgap({"img": "registry.example/b:1"}, {"s0": "img"}))

    def warnings() -> list[dict[str, object]]:
        assert run(["plan", "--json", "--config", str(config)]) == 0
        return [item for item in json.loads(capsys.readouterr().out)["warnings"] if item["kind"] == "untracked"]

    assert warnings() == [], "in no repository the code is taken as it lies"
    git(tmp_path, "init", "--quiet")
    (found,) = warnings()
    assert found["place"] == "src/nemotron/steps/s0/step.py" and found["targets"] == ["s0:tiny"]
    assert found["hint"] == f"`git -C {tmp_path} add src/nemotron/steps/s0`"
    git(tmp_path, "add", "src/nemotron/steps/s0")
    assert warnings() == []


def test_what_differs_from_the_last_commit_is_found_and_no_filter_is_run(tmp_path: Path) -> None:
    root = tmp_path / "catalogue"
    root.mkdir()
    for name in ("kept", "changed", "mode", "gone", "filtered", "a [b]\tc"):
        (root / name).write_text("1")
    assert uncommitted_files(root) == [], "in no repository"
    git(root, "init", "--quiet")
    git(root, "add", ".")
    assert uncommitted_files(root) == [], "without a commit there is nothing to compare with"
    git(root, "commit", "--quiet", "--message", "first")
    assert uncommitted_files(root) == []
    ran = tmp_path / "ran"
    (root / ".gitattributes").write_text("filtered filter=spy\n")
    for name in ("changed", "filtered", "a [b]\tc"):
        (root / name).write_text("2")
    (root / "mode").chmod(0o755)
    (root / "gone").unlink()
    (root / "untracked").write_text("3")
    (root / "new").write_text("4")
    (root / "link").symlink_to("kept")
    git(root, "add", "new", "link")
    git(root, "config", "filter.spy.clean", f"touch {ran}; cat")
    assert uncommitted_files(root) == ["a [b]\tc", "changed", "gone", "link", "mode", "new"]
    assert not ran.exists()


def test_lfs_pointers_of_the_catalogue_are_named(tmp_path: Path) -> None:
    root = write_catalogue(tmp_path / "catalogue", tracked=False)
    events: list[Event] = []
    carry(root, tmp_path / "one", emit=events.append)
    assert not [event for event in events if isinstance(event, Warned) and "LFS" in event.text]
    place = next(path.parent for path in root.rglob("step.py"))
    (place / "weights.bin").write_bytes(LFS_POINTER + b"\noid sha256:1\nsize 9\n")
    carry(root, tmp_path / "two", emit=events.append)
    [warned] = [event for event in events if isinstance(event, Warned) and "LFS" in event.text]
    assert "1 Git LFS pointer," in warned.text and "weights.bin`" in warned.text


def test_a_plan_whose_bundle_would_not_be_read_is_refused_and_says_how_to_split_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFERRY_CACHE", str(tmp_path / "cache"))
    write_step(tmp_path, "s")
    config = write_airgap(tmp_path, airgap({"img": "base:1"}, {"s": "img"}))
    arguments = ["plan", "--config", str(config), "--platform", "linux/amd64"]
    assert run(arguments) == 0
    (tmp_path / "out" / "airgap-plan.yaml").unlink()
    made = read_plan(Selection(config, platforms=("linux/amd64",)))
    least = prediction.Predictor(made, Lockfile(), tmp_path / "cache").predict().manifest_values
    capsys.readouterr()
    monkeypatch.setattr(prediction, "MAX_DOCUMENT_VALUES", least)
    assert run(arguments) == 0
    monkeypatch.setattr(prediction, "MAX_DOCUMENT_VALUES", least - 1)
    (tmp_path / "out" / "airgap-plan.yaml").unlink()
    assert run(arguments) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"at least {least} keys and values, more than the limit of {least - 1} that a far side reads" in said
    assert "split the plan into 2 bundles or more" in said and "`--target STEP,STEP`" in said
    assert not (tmp_path / "out" / "airgap-plan.yaml").exists()
    # only what is sealed is read over there
    assert run([*arguments, "--stage", "build-execution-images"]) == 0
