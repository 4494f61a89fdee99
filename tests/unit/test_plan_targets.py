"""Targets: found, expanded with what they depend on, and checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.config import load_config
from airferry.errors import AirferryError, ConfigurationError, UsageError
from airferry.plan.catalogue import parse_target
from airferry.plan.models import Plan
from airferry.plan.planner import make_plan, normalise_stages
from catalogues import STEPS, airgap, write_airgap, write_step


def plan(root: Path, document: dict[str, object], **options: object) -> Plan:
    return make_plan(load_config(write_airgap(root, document)), **options)  # type: ignore[arg-type]


def failure(root: Path, document: dict[str, object], **options: object) -> AirferryError:
    with pytest.raises(ConfigurationError) as caught:
        plan(root, document, **options)
    assert caught.value.exit_code == 3
    return caught.value


def simple(root: Path, *steps: str, **more: object) -> dict[str, object]:
    for step in steps:
        write_step(root, step)
    return airgap({"img": "base:1"}, dict.fromkeys(steps, "img"), **more)


def test_prerequisites_come_first_depth_first_and_once(tmp_path: Path) -> None:
    document = simple(tmp_path, "a/one", "b/two", "c/three", "d/four")
    document["workflow"] = {"stages": ["d/four:tiny", "b/two:tiny", "a/one"]}
    document["dependencies"] = {
        "d/four": ["b/two:tiny", "c/three"],
        "b/two": ["a/one:tiny"],
        "c/three": ["a/one:tiny"],
    }
    found = plan(tmp_path, document)
    assert [step.target.spec for step in found.steps] == ["a/one:tiny", "b/two:tiny", "c/three", "d/four:tiny", "a/one"]
    assert found.groups[0].steps == ("a/one", "b/two", "c/three", "d/four")


def test_dependencies_may_stand_below_the_workflow(tmp_path: Path) -> None:
    document = simple(tmp_path, "a", "b")
    document["workflow"] = {"stages": ["b:tiny"], "dependencies": {"b": ["a:tiny"]}}
    assert [step.target.spec for step in plan(tmp_path, document).steps] == ["a:tiny", "b:tiny"]


def test_targets_of_the_command_line_replace_the_files_and_take_commas(tmp_path: Path) -> None:
    document = simple(tmp_path, "a", "b", "c")
    found = plan(tmp_path, document, targets=["c:tiny, a", "b:default"])
    assert [step.target.spec for step in found.steps] == ["c:tiny", "a", "b:default"]
    assert found.workflow_stages == ("c:tiny", "a", "b:default")


def test_a_cycle_is_told_with_its_path_and_line(tmp_path: Path) -> None:
    document = simple(tmp_path, "a", "b", "c")
    document["workflow"] = {"stages": ["a:tiny"]}
    document["dependencies"] = {"a": ["b:tiny"], "b": ["c:tiny"], "c": ["b:tiny"]}
    error = failure(tmp_path, document)
    assert "`b:tiny` → `c:tiny` → `b:tiny`" in error.message
    assert "`dependencies.c[0]`" in error.message


def test_a_step_that_does_not_exist_is_told_with_the_nearest_names(tmp_path: Path) -> None:
    document = simple(tmp_path, "sft/megatron", "eval/model")
    document["workflow"] = {"stages": ["sft/megatorn:tiny"]}
    error = failure(tmp_path, document)
    assert f"{tmp_path}/airgap.yaml:3: `workflow.stages[0]`: there is no step `sft/megatorn`" in error.message
    assert error.hint is not None and "`sft/megatron`" in error.hint


def test_a_missing_config_is_told_with_the_nearest_names(tmp_path: Path) -> None:
    document = simple(tmp_path, "a")
    error = failure(tmp_path, document, targets=["a:tniy"])
    assert "has no config `tniy`" in error.message
    assert error.hint is not None and "`tiny`" in error.hint
    assert "path" in error.hint and "catalogue of the bundle" not in error.hint, "that is for the far side"


@pytest.mark.parametrize("name", ["step.py", "step.toml"])
def test_a_step_without_its_files_is_refused(tmp_path: Path, name: str) -> None:
    document = simple(tmp_path, "a")
    (tmp_path / "src/nemotron/steps/a" / name).unlink()
    assert f"has no `{name}`" in failure(tmp_path, document).message


def test_a_step_that_says_it_is_another_is_refused(tmp_path: Path) -> None:
    document = simple(tmp_path)
    write_step(tmp_path, "a", toml_id="b")
    document |= airgap({"img": "base:1"}, {"a": "img"})
    assert "`step.id` is `b`, expected `a`" in failure(tmp_path, document).message


def test_a_step_toml_that_is_none_is_refused_at_its_line(tmp_path: Path) -> None:
    document = simple(tmp_path, "a")
    (tmp_path / "src/nemotron/steps/a/step.toml").write_text("[step]\nid = \n")
    assert "step.toml:2: not valid TOML" in failure(tmp_path, document).message


@pytest.mark.parametrize("text", ["", ":tiny", "../etc", "a/../b", "/a", "a:../b", "a b"])
def test_targets_cannot_leave_the_catalogue(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a target"):
        parse_target(text)


def test_a_plan_of_nothing_is_refused(tmp_path: Path) -> None:
    document = simple(tmp_path, "a")
    document["workflow"] = {"name": "empty"}
    assert "no steps selected" in failure(tmp_path, document).message


def test_stages_bring_what_they_need() -> None:
    everything = normalise_stages([])
    assert normalise_stages(["save-images"]) == everything
    assert normalise_stages(["discover-execution-deps"]) == ("validate", "discover-execution-deps")
    assert normalise_stages(["build-launcher-image"]) == ("build-launcher-image",)
    assert normalise_stages(["build-execution-images", "validate"]) == (
        "validate",
        "discover-execution-deps",
        "build-execution-images",
    )
    with pytest.raises(UsageError, match="unknown stage `sve`"):
        normalise_stages(["sve"])


def test_only_what_stages_need_is_planned(tmp_path: Path) -> None:
    document = simple(tmp_path, "a")
    launcher_only = plan(tmp_path, {**document, "workflow": {}}, stages=["build-launcher-image"])
    assert launcher_only.launcher is not None and not launcher_only.steps
    validated = plan(tmp_path, {"workflow": {"stages": ["a:tiny"]}}, stages=["validate"])
    assert validated.steps and not validated.groups and validated.launcher is None


def test_the_catalogue_is_found_above_the_file_or_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    document = simple(repository, "a")
    (repository / "uv.lock").write_text("version = 1\n")
    deep = repository / "deploy" / "airgap"
    found = plan(deep, document)
    assert found.source_root == repository
    assert found.output_dir == deep / "out"
    assert found.lock_path == repository / "uv.lock"

    elsewhere = tmp_path / "elsewhere"
    monkeypatch.chdir(tmp_path)
    told = "no steps folder `src/nemotron/steps` at or above "
    assert failure(elsewhere, document).message == f"{told}`{elsewhere}`"
    monkeypatch.chdir(elsewhere)
    assert failure(elsewhere, document).message == f"{told}`{elsewhere}`"
    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    message = failure(elsewhere, document).message
    assert message == f"{told}`{elsewhere}`, nor at or above `{tmp_path}/third`"
    monkeypatch.chdir(repository / "src")
    assert plan(elsewhere, document).source_root == repository
    monkeypatch.chdir(tmp_path)
    assert plan(elsewhere, document, source_dir=repository).source_root == repository
    named = plan(elsewhere, {**document, "source": {"root": "../repository"}, "paths": {"output_dir": "build/out"}})
    assert (named.source_root, named.output_dir) == (repository, repository / "build" / "out")
    assert "`source.root`" in failure(elsewhere, {**document, "source": {"root": "nowhere"}}).message


def test_all_problems_are_told_at_once_each_at_its_place(tmp_path: Path) -> None:
    steps = [f"s/{name}" for name in ("unnamed", "misnamed", "half", "broken", "bare", "unlisted")]
    document = simple(tmp_path, *steps)
    folder = tmp_path / STEPS / "s"
    (folder / "unnamed/step.toml").write_text('# a comment\n[step]\nname = "x"\n')
    (folder / "misnamed/step.toml").write_text('[step]\nname = "x"\nid = "s/other"\n')
    (folder / "half/step.py").unlink()
    (folder / "broken/config/tiny.yaml").write_text("run:\n  env: {\n")
    (folder / "bare/config/tiny.yaml").unlink()
    (folder / "bare/step.toml").write_text("[step\n")
    del document["step_execution_images"]["s/unlisted"]  # type: ignore[attr-defined]
    document["workflow"] = {"stages": [f"{step}:tiny" for step in steps] + ["s/unnamd:tiny", "no target"]}
    told = failure(tmp_path, {**document, "dependencies": {"s/half": ["s/gone:tiny"]}})
    for expected in (
        "unnamed/step.toml:2: `step` has no `id`, expected `s/unnamed`",
        "misnamed/step.toml:3: `step.id` is `s/other`, expected `s/misnamed`",
        "step `s/half` has no `step.py`",
        "broken/config/tiny.yaml:3: not valid YAML",
        "step `s/bare` has no config `tiny`",
        "bare/step.toml:1: not valid TOML",
        "`step_execution_images`: step `s/unlisted` has no entry",
        "there is no step `s/unnamd`",
        "`dependencies.s/half[0]`: there is no step `s/gone`",
        "airgap.yaml:10: `workflow.stages[7]`: `no target` is not a target",
    ):
        assert expected in told.message
    assert len(told.failures) == 10
    assert "close matches: `s/unnamed`" in told.message


def test_output_may_not_be_the_catalogue_itself(tmp_path: Path) -> None:
    document = simple(tmp_path, "a", paths={"output_dir": "."})
    assert "contains the catalogue itself" in failure(tmp_path, document).message


def test_a_lock_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    document = simple(tmp_path, "a", source={"lock": "other.lock"})
    assert "`source.lock`" in failure(tmp_path, document).message


def test_steps_and_package_may_be_called_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "steps" / "a"
    folder.mkdir(parents=True)
    (folder / "step.py").write_text("from minicat.steps.common import x\nimport tabulate\n")
    (tmp_path / "steps" / "common.py").write_text("import yaml\n")
    (folder / "step.toml").write_text('[step]\nid = "a"\n')
    document = airgap({"img": "base:1"}, {"a": "img"}, source={"steps": "steps", "package": "minicat.steps"})
    document["workflow"] = {"stages": ["a"]}
    found = plan(tmp_path, document)
    assert found.steps[0].module == "minicat.steps.a.step"
    assert [(item.module, item.origin) for item in found.steps[0].candidates] == [
        ("tabulate", "step"),
        ("yaml", "catalogue"),
    ]


def test_the_built_in_example_plans(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "src" / "airferry" / "example"
    found = make_plan(load_config(example / "airgap.yaml"))
    assert [step.target.spec for step in found.steps] == [
        "data_prep/pack:tiny",
        "sft/bigram:tiny",
        "eval/perplexity:tiny",
    ]
    assert found.output_dir == example / "out"
    assert found.lock_path == example / "catalogue" / "requirements.txt"
    modules = {(item.module, item.origin) for group in found.groups for item in group.candidates}
    assert ("tabulate", "step") in modules
    assert {str(platform) for platform in found.platforms} == {"linux/amd64", "linux/arm64"}
