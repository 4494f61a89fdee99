"""Catalogues of other organisations: their own layout, names and workspace, and plans without a launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry.config import load_config
from airferry.errors import ConfigurationError
from airferry.near.assemble.launcher import launcher_environment
from airferry.near.describe import describe_plan
from airferry.plan.models import Plan
from airferry.plan.planner import make_plan
from catalogues import airgap, expected_suffix, write_airgap, write_step

STEP = '[step]\nid = "train/tree"\nname = "Train a tree"\n'


def foreign(root: Path, steps: str = "pipelines/steps", **source: Any) -> Path:
    """Write a catalogue in a layout of its own, with one step, and a plan for it next to it."""
    folder = root / "cat" / steps / "train/tree"
    (folder / "config").mkdir(parents=True)
    (folder / "step.py").write_text("import json\n")
    (folder / "step.toml").write_text(STEP)
    (folder / "config/small.yaml").write_text("depth: 2\n")
    document = airgap({"py": "base:1"}, {"train/tree": "py"}, source={"root": "cat", "steps": steps, **source})
    document["workflow"]["stages"] = ["train/tree:small"]
    return write_airgap(root, document)


def change(config: Path, **keys: Any) -> None:
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **keys}, sort_keys=False))


def plan(config: Path, **options: Any) -> Plan:
    return make_plan(load_config(config), **options)


@pytest.mark.parametrize(
    ("steps", "source", "code", "prefix", "module"),
    [
        ("pipelines/steps", {}, "", "pipelines", "pipelines.steps.train.tree.step"),
        ("python/acme/steps", {"package": "acme.steps"}, "/python", "acme", "acme.steps.train.tree.step"),
        ("src/Acme_ML", {}, "/src", "acme-ml", "Acme_ML.train.tree.step"),
        ("steps", {"prefix": "forest"}, "", "forest", "steps.train.tree.step"),
        ("steps", {"workspace": "/opt/acme/"}, "", "steps", "steps.train.tree.step"),
    ],
)
def test_names_and_places_are_the_catalogues_own(
    tmp_path: Path, steps: str, source: dict[str, str], code: str, prefix: str, module: str
) -> None:
    made = plan(foreign(tmp_path, steps, **source))
    workspace = source.get("workspace", "/workspace/catalogue").rstrip("/")
    assert (made.workspace, made.code_folder) == (workspace, workspace + code)
    assert made.launcher is not None and made.launcher.tag == f"{prefix}-launcher-airgap:latest"
    assert made.groups[0].tag == f"{prefix}-execution-py-{expected_suffix('base:1')}:airgap"
    assert made.steps[0].module == module
    assert launcher_environment(workspace, (), code_folder=made.code_folder)["PYTHONPATH"] == workspace + code
    assert "nemotron" not in str(made.to_document()).replace(str(tmp_path), "").lower()


def test_images_of_several_names_have_the_prefix_too(tmp_path: Path) -> None:
    config = foreign(tmp_path, "steps", prefix="forest")
    (tmp_path / "cat/steps/train/tree").rename(tmp_path / "cat/steps/train/oak")
    write_step_here = tmp_path / "cat/steps/train/oak/step.toml"
    write_step_here.write_text(STEP.replace("tree", "oak"))
    for name in ("ash",):
        folder = tmp_path / "cat/steps/train" / name
        folder.mkdir()
        (folder / "step.py").write_text("")
        (folder / "step.toml").write_text(STEP.replace("tree", name))
    change(
        config,
        workflow={"stages": ["train/oak", "train/ash"]},
        step_execution_images={"train/oak": "b", "train/ash": "a"},
        execution_images={"a": {"base_image": "base:1"}, "b": {"base_image": "base:1"}},
    )
    assert plan(config).groups[0].tag == f"forest-a-b-airgap-{expected_suffix('base:1')}:latest"


def test_nemotrons_catalogue_keeps_nemotrons_words(tmp_path: Path) -> None:
    write_step(tmp_path, "sft/a")
    config = write_airgap(tmp_path, airgap({"img": "base:1"}, {"sft/a": "img"}))
    made = plan(config)
    assert made.launcher is not None and made.launcher.tag == "nemotron-customizer-launcher-airgap:latest"
    assert (made.workspace, made.code_folder) == ("/workspace/Nemotron", "/workspace/Nemotron/src")
    assert made.groups[0].tag.startswith("nemotron-execution-img-")
    assert made.config.source.carried_submit is None
    change(config, source={"prefix": "acme"})
    renamed = plan(config)
    assert renamed.launcher is not None and renamed.launcher.tag == "acme-launcher-airgap:latest"


def test_false_leaves_the_launcher_out(tmp_path: Path) -> None:
    config = foreign(tmp_path)
    change(config, launcher_image=False, build_stages=["validate", "build-launcher-image", "save-images"])
    made = plan(config)
    assert made.launcher is None
    assert made.stages == ("validate", "discover-execution-deps", "build-execution-images", "save-images")
    assert "launcher_image" not in made.to_document()
    assert not [line for line in describe_plan(made) if line.startswith("launcher")]
    with pytest.raises(ConfigurationError, match=r"airgap.yaml:\d+: `launcher_image`: `false`: there is no launcher"):
        plan(config, stages=["build-launcher-image"])
    change(config, launcher_image=True)
    with pytest.raises(ConfigurationError, match="`launcher_image`: expected `false`, or a mapping"):
        load_config(config)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"submit": "acme {stp}"}, "`{stp}` is unknown; known are `{step}`, `{config}`"),
        ({"submit": "acme run"}, "`{step}` is missing"),
        ({"submit": "acme '{step}"}, "cannot be split into words"),
        ({"prefix": "Acme"}, "`source.prefix`"),
        ({"prefix": "a__b"}, "`source.prefix`"),
        ({"workspace": "workspace"}, "is not an absolute path"),
    ],
)
def test_wrong_words_are_refused_at_their_line(tmp_path: Path, source: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"airgap.yaml:\d+: `source\.") as caught:
        load_config(foreign(tmp_path, **source))
    assert said in caught.value.message


# --- step ids that the catalogue does not have -----------------------------------------------------------------------


def test_unknown_step_ids_are_warnings_with_line_and_near_match(tmp_path: Path) -> None:
    for step in ("sft/megatron_bridge", "data_prep/sft_packing", "rl/dpo"):
        write_step(tmp_path, step)
    document = airgap(
        {"img": "base:1"}, dict.fromkeys(["sft/megatron_bridge", "sft/megatron_brdge", "byob/mcq"], "img")
    )
    document["workflow"]["stages"] = ["sft/megatron_bridge:tiny"]
    document["dependencies"] = {
        "sft/megatron_brige": ["data_prep/sft_packing:tiny"],
        "rl/dpo": ["data_prep/sft_packing:tniy", "data_prep/rl_prep:tiny"],
    }
    config = write_airgap(tmp_path, document)
    lines = config.read_text().splitlines()
    made = plan(config)
    assert [step.target.spec for step in made.steps] == ["sft/megatron_bridge:tiny"]
    found = {warning.place: warning for warning in made.warnings}
    for text, message, hint, targets in (
        ("  sft/megatron_brige:", "`dependencies` refers to step", "did you mean `sft/megatron_bridge`?", 1),
        ("  sft/megatron_brdge:", "`step_execution_images` refers to step", "did you mean `sft/megatron_bridge`?", 1),
        ("  byob/mcq:", "refers to steps that are not in the catalogue: `byob/mcq`", "source.root", 0),
        ("  - data_prep/sft_packing:tniy", "no config `tniy`", "close matches: `tiny`", 0),
        ("  - data_prep/rl_prep:tiny", "a prerequisite of `rl/dpo`: there is no step", "close matches:", 0),
    ):
        (number,) = [number for number, line in enumerate(lines, 1) if line.startswith(text)]
        warning = found.pop(f"airgap.yaml:{number}")
        assert message in warning.message and hint in warning.hint and len(warning.targets) == targets
    assert not found
    assert any("did you mean" in line for line in describe_plan(made))


def test_a_selected_step_without_an_image_is_told_of_the_entry_that_may_be_meant(tmp_path: Path) -> None:
    write_step(tmp_path, "sft/megatron_bridge")
    document = airgap({"img": "base:1"}, {"sft/megatron_brige": "img"})
    document["workflow"]["stages"] = ["sft/megatron_bridge:tiny"]
    config = write_airgap(tmp_path, document)
    with pytest.raises(ConfigurationError, match=r"airgap.yaml:5: .*`sft/megatron_bridge` has no entry") as caught:
        plan(config)
    assert "or correct `sft/megatron_brige`" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("steps", "package", "near"),
    [
        ("python/acme/steps", "acme.stps", "acme.steps"),
        ("python/acme/steps", "acmee.steps", "acme.steps"),
        ("src/acme", "amce", "acme"),
        ("python/acme/steps", "zebra", None),
    ],
)
def test_a_package_that_is_not_that_of_the_steps_is_refused(
    tmp_path: Path, steps: str, package: str, near: str | None
) -> None:
    with pytest.raises(ConfigurationError, match=rf"airgap.yaml:\d+: `source.package`: `{package}` is not") as caught:
        plan(foreign(tmp_path, steps, package=package))
    hint = f"did you mean `{near}`?" if near else "set the package that Python imports the steps from"
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("steps", "package"),
    [("steps", "minicat.steps"), ("python/lib/steps", "acme.steps"), ("acme/steps", "org.acme.steps")],
)
def test_packages_that_a_build_backend_maps_are_not_refused(tmp_path: Path, steps: str, package: str) -> None:
    assert plan(foreign(tmp_path, steps, package=package)).steps[0].module == f"{package}.train.tree.step"
