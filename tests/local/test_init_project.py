"""`airferry init`: a plan for steps that are there, or for two new ones; all of it or nothing, and no file is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import typer

from airferry import api
from airferry.cli.app import run
from airferry.config import BootstrapBase, load_config
from airferry.errors import ConfigurationError, HostError, UsageError
from airferry.host import files
from airferry.plan.models import Plan
from airferry.plan.planner import make_plan
from airferry.start.bases import last_base
from catalogues import STEPS, write_step
from near_side import git
from next_steps import next_commands

PAGE = Path(__file__).parents[2] / "docs" / "your-own-catalogue.md"
NANO = "nvcr.io/nvidia/nemo:25.11.nemotron_3_nano"
WRITTEN = [
    ".gitignore",
    "airgap.yaml",
    "src/acme/steps/data/table/config/default.yaml",
    "src/acme/steps/data/table/step.py",
    "src/acme/steps/data/table/step.toml",
    "src/acme/steps/train/line/config/default.yaml",
    "src/acme/steps/train/line/step.py",
    "src/acme/steps/train/line/step.toml",
]


@pytest.fixture(autouse=True)
def here(unsettled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("AIRFERRY_CONFIG", raising=False)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def plan_of(folder: Path, **more: Any) -> Plan:
    return make_plan(load_config(folder / "airgap.yaml"), **more)


def image_step(root: Path, step_id: str, image: str, **more: Any) -> None:
    configs = {"default": f"run:\n  env:\n    container_image: {image}\n"}
    write_step(root, step_id, configs=configs, **more)


def bases(plan: Plan) -> dict[str, str]:
    return {spec: group.base_image.key for group in plan.groups for spec in group.targets}


# --- a new catalogue --------------------------------------------------------------------------------------------------


def test_a_new_catalogue_has_two_steps_that_plan_and_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "acme"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [f"acme/{name}" for name in WRITTEN]
    assert names(here / "acme") == WRITTEN
    # tests/integration/test_program_pages.py runs the page
    first, then, *_ = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert first == "airferry init acme\n"
    assert next_commands(shown.err) == next_commands("Next:\n" + indent(then, "  "))
    plan = plan_of(here / "acme")
    assert [step.target.spec for step in plan.steps] == ["data/table:default", "train/line:default"]
    assert plan.steps[1].module == "acme.steps.train.line.step" and plan.launcher is None and not plan.warnings
    (base,) = {group.base_image for group in plan.groups}
    assert isinstance(base, BootstrapBase) and "python3-yaml" in base.packages
    for step in plan.steps:
        subprocess.run([sys.executable, step.step_py, "--config", step.config_path or ""], check=True, cwd=here)
    assert abs(json.loads((here / "output" / "model.json").read_text())["slope"] - 3) < 0.1


def test_a_base_that_was_asked_for_gets_what_the_steps_need_on_it(here: Path) -> None:
    made = api.init_project(here / "acme", choices=api.ProjectChoices(base="python:3.12-slim"))
    assert set(bases(plan_of(here / "acme")).values()) == {"python:3.12-slim"} and made.unnamed == ()
    (image,) = load_config(here / "acme/airgap.yaml").execution_images.values()
    assert image.requirements.keys() == {"yaml"}


def test_a_layout_is_found_from_the_folder_of_the_plan(here: Path) -> None:
    api.init_project(here / "acme", choices=api.ProjectChoices(base="oci:bases/python:3.12"))
    assert load_config(here / "acme/airgap.yaml").execution_images["python"].base_image.path == here / "bases/python"


def test_a_folder_with_other_files_keeps_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "README.md").write_text("mine")
    (here / ".gitignore").write_text("mine too")
    (here / "src").mkdir()
    (here / "src" / "other.py").write_text("1")
    assert run(["init", "--name", "acme"]) == 0
    assert (here / "README.md").read_text() == "mine" and (here / ".gitignore").read_text() == "mine too"
    assert names(here) == sorted([*WRITTEN, "README.md", "src/other.py"])
    assert "`.gitignore` is there and stays as it is: add `/out/` to it" in capsys.readouterr().err


def test_git_is_begun_only_where_the_folder_is_in_no_repository(here: Path) -> None:
    git(here, "init", "--quiet")
    made = api.init_project(here, choices=api.ProjectChoices(package="acme"))
    assert next(iter(made.commands)) == "git add .gitignore airgap.yaml src"


def test_json_says_what_was_written_and_a_dry_run_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "acme", "--dry-run", "--json"]) == 0
    foreseen = json.loads(capsys.readouterr().out)
    assert list(here.iterdir()) == [] and foreseen["dry_run"] and foreseen["written"] == WRITTEN
    assert run(["init", "acme", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {**foreseen, "dry_run": False} and shown.err == ""
    assert [item["target"] for item in foreseen["targets"]] == ["data/table:default", "train/line:default"]
    assert foreseen["next"][0] == "cd acme" and foreseen["new_catalogue"]


def test_a_host_that_cannot_make_a_userland_is_told_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, said in ((None, True), (Path("/usr/bin/mmdebstrap"), False)):
        monkeypatch.setattr("airferry.start.choices.find_program", lambda _name, path=path: path)
        notes = api.init_project(here / "acme", dry_run=True).notes
        assert any("`mmdebstrap`" in note for note in notes) == said
        chosen = api.ProjectChoices(base="python:3.12-slim")
        assert api.init_project(here / "acme", choices=chosen, dry_run=True).notes == ()


def test_quiet_prints_the_files_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "acme", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and len(shown.out.splitlines()) == len(WRITTEN)


# --- a catalogue that is there ----------------------------------------------------------------------------------------


def test_nemotron_gets_the_plan_that_airferry_ships_for_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_step(here, "sft/megatron_bridge", "nvcr.io/nvidia/nemo:26.04")
    (here / STEPS / "sft/megatron_bridge/config/tiny.yaml").write_text(
        f"defaults: default\nrun: {{env: {{container_image: {NANO}}}}}\n"
    )
    for step in ("data_prep/sft_packing", "sdg/data_designer", "optimize/modelopt/prune"):
        write_step(here, step)
    image_step(here, "own/step", "'${oc.env:IMAGE,registry.example/own:1}'")
    assert run(["init"]) == 0
    assert "+ sft/megatron_bridge:tiny" in capsys.readouterr().err
    plan = plan_of(here)
    assert [step.target.spec for step in plan.steps] == ["data_prep/sft_packing:tiny", "sft/megatron_bridge:tiny"]
    assert not plan.warnings and plan.launcher is not None
    ids = ("sdg/data_designer:tiny", "optimize/modelopt/prune:tiny", "own/step:default")
    others = plan_of(here, targets=ids)
    assert bases(others) == {
        "sdg/data_designer:tiny": NANO,
        "optimize/modelopt/prune:tiny": "nvcr.io/nvidia/nemo:26.02",
        "own/step:default": "registry.example/own:1",
    }
    config = load_config(here / "airgap.yaml")
    assert config.execution_images["nemo-data-designer"].required_imports == ("data_designer",)
    assert config.execution_images["nemo-modelopt"].overlays[0].target == "/opt/Model-Optimizer"
    assert config.source.root == Path() and config.source.is_nemotron


def foreign(root: Path, steps: str, *ids: str) -> None:
    """Write steps into a folder that is not Nemotron's."""
    for step_id in ids:
        write_step(root / "made", step_id, configs={"small": "a: 1\n"})
    (root / steps).parent.mkdir(parents=True, exist_ok=True)
    (root / "made" / STEPS).rename(root / steps)


@pytest.mark.parametrize(
    ("steps", "package"), [("python/acme/steps", "acme.steps"), ("src/acme/steps", "acme.steps"), ("steps", "steps")]
)
def test_any_folder_of_steps_is_recognised_by_their_ids(here: Path, steps: str, package: str) -> None:
    foreign(here / "repository", steps, "train/tree", "data/get")
    (here / "repository" / "venv" / "steps").mkdir(parents=True)
    (here / "repository" / "venv" / "pyvenv.cfg").touch()
    (here / "repository" / "venv" / "steps" / "step.toml").write_text('[step]\nid = "steps"\n')
    made = api.init_project(here, choices=api.ProjectChoices(source=Path("repository"), targets=("train/tree",)))
    assert (made.steps, made.package, made.is_new) == (steps, package, False)
    plan = plan_of(here)
    assert [step.target.spec for step in plan.steps] == ["train/tree:small"]
    assert plan.source_root == here / "repository" and plan.launcher is None
    text = (here / "airgap.yaml").read_text()
    assert "root: repository\n" in text and "    # - data/get:small\n" in text
    (here / "airgap.yaml").write_text(text.replace("# - ", "- "))
    assert len(plan_of(here).steps) == 2


def test_a_package_begins_at_its_topmost_init(here: Path) -> None:
    foreign(here, "code/acme/steps", "train/tree")
    for folder in ("code/acme", "code/acme/steps"):
        (here / folder / "__init__.py").touch()
    assert api.init_project(here).package == "acme.steps"
    assert plan_of(here).steps[0].module == "acme.steps.train.tree.step"


def test_bases_come_from_the_nearest_containerfile_where_configs_name_none(here: Path) -> None:
    foreign(here, "steps", "train/tree", "data/get", "data/put")
    (here / "Dockerfile").write_text(
        "ARG TAG=1\nFROM docker.io/a/build:1 AS build\nFROM registry.example/run:${TAG} AS run\nRUN true\nFROM run\n"
    )
    (here / "steps/data/Containerfile").write_text("FROM --platform=linux/amd64 registry.example/data:2\n")
    (here / "steps/data/put/Containerfile").write_text("FROM scratch\n")
    made = api.init_project(here)
    data = "registry.example/data:2"
    assert bases(plan_of(here)) == {
        "data/get:small": data,
        "data/put:small": data,
        "train/tree:small": "registry.example/run:1",
    }
    assert made.unnamed == () and "# as in Dockerfile:3\n" in (here / "airgap.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("FROM a:1", ("a:1", 1)),
        ("# FROM x\n\nfrom a:1 as b\nFROM c:${X:-2}\n", ("c:2", 4)),
        ("FROM scratch\n", ("", 1)),
        ("ARG A=x\nARG B=$A/y\nFROM $B:1\n", ("x/y:1", 3)),
        ("", ("", 0)),
        ("FROM\n", ("", 0)),
    ],
)
def test_the_base_of_a_containerfile_is_that_of_its_last_stage(text: str, base: tuple[str, int]) -> None:
    assert last_base(text) == base


def types(here: Path, step_id: str, *tables: str) -> None:
    """Add what a step consumes and produces: `KEY TYPE`, and `optional` behind it."""
    with (here / "steps" / step_id / "step.toml").open("a") as stream:
        for key, kind, *more in map(str.split, tables):
            stream.write(f'[[{key}]]\ntype = "{kind}"\n' + "required = false\n" * len(more))


def test_a_step_comes_after_the_only_one_that_produces_what_it_consumes(here: Path) -> None:
    foreign(here, "steps", "a/get", "b/train", "c/tune", "d/check", "e/export")
    types(here, "a/get", "produces table", "consumes report optional")
    types(here, "b/train", "consumes table", "produces model")
    types(here, "c/tune", "consumes model", "consumes table", "produces model")
    types(here, "d/check", "consumes model", "consumes table", "produces report")
    types(here, "e/export", "consumes nothing-makes-it", "consumes report")
    with (here / "steps/a/get/step.toml").open("a") as stream:
        stream.write('[[consumes]]\ntype = 1\n[[consumes]]\nname = "x"\n')
    api.init_project(here, choices=api.ProjectChoices(targets=("e/export",)))
    assert load_config(here / "airgap.yaml").dependencies == {
        "b/train": ("a/get:small",),
        "c/tune": ("b/train:small", "a/get:small"),
        "d/check": ("a/get:small",),
        "e/export": ("d/check:small",),
    }
    assert [step.target.step_id for step in plan_of(here).steps] == ["a/get", "d/check", "e/export"]


def test_steps_that_need_each_other_are_in_no_circle(here: Path) -> None:
    foreign(here, "steps", "a/one", "a/three", "a/two")
    types(here, "a/one", "consumes c", "produces a")
    types(here, "a/two", "consumes a", "produces b")
    types(here, "a/three", "consumes b", "produces c")
    api.init_project(here)
    assert len(load_config(here / "airgap.yaml").dependencies) == 2
    assert len(plan_of(here).steps) == 3


def test_steps_that_name_no_image_get_the_base_that_was_asked_for_or_debian(here: Path) -> None:
    foreign(here, "steps", "train/tree")
    choices = api.ProjectChoices(base="python:3.12-slim")
    assert api.init_project(here, choices=choices, dry_run=True).images["train/tree:small"][1] == "python:3.12-slim"
    made = api.init_project(here)
    assert made.unnamed == ("train/tree:small",) and "a Debian userland is their base" in made.notes[0]
    assert isinstance(load_config(here / "airgap.yaml").execution_images["python"].base_image, BootstrapBase)


def test_the_repository_and_its_commit_are_named_without_a_password(here: Path) -> None:
    foreign(here / "repository", "steps", "train/tree")
    repository = here / "repository"
    git(repository, "init", "--quiet")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "x")
    git(repository, "remote", "add", "origin", "https://me:secret@git.example/acme.git")
    made = api.init_project(here, choices=api.ProjectChoices(source=repository))
    assert made.origin == f"https://git.example/acme.git at {git(repository, 'rev-parse', 'HEAD')}"
    assert f"# Written by `airferry init` for {made.origin}\n" in (here / "airgap.yaml").read_text()


def test_text_of_a_repository_is_data(here: Path) -> None:
    """Neither what its configuration names as programs is run, nor does a name in it begin a key of the plan."""
    repository = here / "a: b #c\nd"
    foreign(repository, "steps", "train/tree")
    git(repository, "init", "--quiet")
    git(repository, "remote", "add", "origin", "https://git.example/x\nloader: false\n\x1b[2J")
    for key in ("core.fsmonitor", "core.pager", "core.editor", "alias.rev-parse", "diff.external"):
        git(repository, "config", key, f"!touch {here}/run; touch {here}/run")
    (repository / "Dockerfile").write_text("FROM registry.example/x:1\n")
    (repository / "steps/train/tree/config/small.yaml").write_text(
        'run: {env: {container_image: "registry.example/y:1\\nloader: false"}}\n'
    )
    api.init_project(here / "plan", choices=api.ProjectChoices(source=repository))
    text = (here / "plan/airgap.yaml").read_text()
    assert "\x1b" not in text and not [line for line in text.splitlines() if line.startswith("loader")]
    config = load_config(here / "plan/airgap.yaml")
    assert config.loader is not False and config.execution_images["x"].base_image.key == "registry.example/x:1"
    assert plan_of(here / "plan").source_root == repository and not (here / "run").exists()


def test_what_is_not_a_complete_step_is_named_and_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign(here, "steps", "train/tree", "train/half", "odd name/step")
    (here / "steps/train/half/step.py").unlink()
    assert run(["init", "--steps", "steps"]) == 0
    shown = capsys.readouterr().err
    assert "! train/half  step `train/half` has no `step.py`" in shown and "odd name/step" in shown
    assert [step.target.spec for step in plan_of(here).steps] == ["train/tree:small"]


# --- bad input --------------------------------------------------------------------------------------------------------


def _a_plan(here: Path) -> None:
    (here / "airgap.yaml").write_text("workflow: {}\n")


def _a_file_in_the_way(here: Path) -> None:
    (here / "src/acme/steps/train").mkdir(parents=True)
    (here / "src/acme/steps/train/line").write_text("mine")


def _a_file_for_a_folder(here: Path) -> None:
    (here / "src").write_text("mine")


def _a_file(here: Path) -> None:
    (here / "acme").write_text("mine")


def _steps_in_two_places(here: Path) -> None:
    foreign(here, "one", "train/tree")
    foreign(here, "two", "train/tree")


def _steps_at_the_root(here: Path) -> None:
    foreign(here / "below", "steps", "train/tree")
    (here / "below/steps/train").rename(here / "train")
    (here / "below/steps").rmdir()


def _a_wrong_id(here: Path) -> None:
    foreign(here, "steps", "train/tree")
    (here / "steps/train/tree/step.toml").write_text('[step]\nid = "train/bush"\n')


def _steps(here: Path) -> None:
    foreign(here, "steps", "train/tree")


def _nothing(here: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "words", "code", "said"),
    [
        (_a_plan, "", 2, "airgap.yaml` already exists, and nothing is overwritten"),
        (_a_file_in_the_way, "--name acme", 2, "nothing is overwritten: `src/acme/steps/train/line`"),
        (_a_file_for_a_folder, "--name acme", 2, "nothing is overwritten: `src`"),
        (_a_file, "acme", 2, "acme` is not a folder"),
        (_steps_in_two_places, "", 3, "has several folders of steps: `one`, `two`"),
        (_steps_at_the_root, "", 3, "is the folder of the steps itself"),
        (_a_wrong_id, "", 3, "it has no `step.toml` whose `id` its folder's path ends in; looked at `"),
        (_a_wrong_id, "--steps steps", 3, "no step of"),
        (_steps, "--target train/treee", 3, "close matches: `train/tree`"),
        (_steps, "--target train/tree:smal", 3, "close matches: `small`"),
        (_steps, "--target a:b:c", 3, "`a:b:c` is not a target"),
        (_steps, "--steps elsewhere", 3, "has no steps folder `elsewhere`"),
        (_steps, "--steps ..", 2, "expected a folder below the root of the catalogue"),
        (_steps, "--name acme", 2, "`--name acme` is for a new catalogue"),
        (_steps, "--base 'a b'", 2, "`--base`: `a b`: "),
        (_steps, "--source elsewhere", 2, "`--source elsewhere`: there is no such folder"),
        (_nothing, "acme --target train/tree", 2, "`--target train/tree`: "),
        (_nothing, "acme --source .", 3, "has no steps: no folder below it has a `step.toml`"),
        (_nothing, "acme --naem x", 2, "No such option: --naem (Possible options: --base, --name)"),
        (_nothing, "acme --force", 2, "No such option"),
        (_nothing, "2024", 2, "the folder's name makes no Python package: `2024`"),
        (_nothing, "acme --name class", 2, "`--name class`: it is a keyword of Python"),
        (_nothing, "acme --name json", 2, "a module of Python's standard library has this name"),
        (_nothing, "acme --name nemotron", 2, "`nemotron` is another program's package"),
        (_nothing, "acme --name A-b", 2, "expected small letters, digits and `_`"),
        (_nothing, "acme --name é", 2, "expected small letters, digits and `_`"),
        (_nothing, f"acme --name {'a' * 61}", 2, "it has 61 characters, the limit is 60"),
    ],
)
def test_bad_input_is_an_error_with_a_way_out_and_nothing_is_written(
    prepare: Callable[[Path], None],
    words: str,
    code: int,
    said: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    prepare(here)
    before = {name: (here / name).read_bytes() for name in names(here)}
    assert run(["init", *shlex.split(words)]) == code
    shown = capsys.readouterr()
    assert said in " ".join(shown.err.split()) and "Traceback" not in shown.err and shown.out == ""
    assert {name: (here / name).read_bytes() for name in names(here)} == before


@pytest.mark.parametrize(
    ("mark", "way"), [("airgap.yaml", "run the commands in"), (f"{STEPS}/x", "--source"), ("step.toml", "--source")]
)
def test_a_folder_inside_another_project_is_refused(here: Path, mark: str, way: str) -> None:
    git(here, "init", "--quiet")
    (here / mark).parent.mkdir(parents=True, exist_ok=True)
    (here / mark).touch()
    with pytest.raises(UsageError, match="is inside another project") as raised:
        api.init_project(here / "docs" / "new")
    assert way in (raised.value.hint or "") and not (here / "docs").exists()


def test_a_plan_may_lie_inside_the_catalogue_that_it_names(here: Path) -> None:
    git(here, "init", "--quiet")
    image_step(here, "train/tree", NANO)
    api.init_project(here / "deploy" / "airgap", choices=api.ProjectChoices(source=here))
    assert plan_of(here / "deploy/airgap").source_root == here


def test_a_project_without_a_repository_may_lie_below_another_plan(here: Path) -> None:
    _a_plan(here)
    assert api.init_project(here / "acme").is_new


@pytest.mark.parametrize("made_before", [False, True])
def test_a_full_disk_leaves_the_folder_as_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch, made_before: bool
) -> None:
    if made_before:
        (here / "acme/src").mkdir(parents=True)
    before = sorted(here.rglob("*"))
    for good in range(60):
        left = [good]

        def full(what: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files, "boundary", full)
        try:
            api.init_project(here / "acme")
        except HostError as error:
            assert "No space left" in error.message and sorted(here.rglob("*")) == before
        else:
            break
    assert good > len(WRITTEN) and names(here / "acme") == WRITTEN


def test_a_kill_between_two_files_leaves_no_plan(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "acme").mkdir()
    order: list[str] = []
    publish = files.publish

    def noted(temporary: Path, path: Path) -> None:
        if not any(part.startswith(files.TEMPORARY_PREFIX) for part in path.parts):
            order.append(path.relative_to(here / "acme").as_posix())
        publish(temporary, path)

    monkeypatch.setattr(files, "publish", noted)
    api.init_project(here / "acme")
    assert order == [".gitignore", "src", "airgap.yaml"]


def test_what_appears_meanwhile_is_not_overwritten(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "acme").mkdir()
    monkeypatch.setattr(files, "boundary", lambda _what: (here / "acme/airgap.yaml").write_text("mine"))
    with pytest.raises(UsageError, match="appeared meanwhile"):
        api.init_project(here / "acme")
    assert names(here / "acme") == ["airgap.yaml"] and (here / "acme/airgap.yaml").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_may_not_be_written_to_is_an_error_of_the_host(here: Path) -> None:
    (here / "acme").mkdir(mode=0o555)
    for dry_run in (True, False):
        with pytest.raises(HostError, match="Permission denied"):
            api.init_project(here / "acme", dry_run=dry_run)
        with pytest.raises(HostError, match="Permission denied"):
            api.init_project(here / "acme/below", dry_run=dry_run)


def test_a_config_that_cannot_be_read_leaves_its_step_to_the_plan(here: Path) -> None:
    image_step(here, "train/tree", "a: [")
    assert api.init_project(here).images["train/tree:default"] == ("python", "")
    with pytest.raises(ConfigurationError, match=r"default\.yaml"):
        plan_of(here)


# --- on a terminal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Stand for a terminal whose user gives these answers, and return the questions as they are asked."""

    def answering(*answers: str) -> list[str]:
        asked: list[str] = []
        given = list(answers)

        def answer(question: str, **_options: object) -> str:
            asked.append(question)
            return given.pop(0)

        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        monkeypatch.setattr("typer.prompt", answer)
        return asked

    return answering


def test_a_plan_of_the_catalogue_itself_is_named(here: Path) -> None:
    foreign(here / "repository", "steps", "train/tree")
    choices = api.ProjectChoices(source=here / "repository", base="python:3.12-slim")
    assert not any("has a plan" in note for note in api.init_project(here / "first", choices=choices).notes)
    (here / "repository" / "airgap.yaml").write_text("source: {root: .}\n")
    (note,) = (note for note in api.init_project(here / "second", choices=choices).notes if "has a plan" in note)
    assert f"`airferry plan --config {here}/repository/airgap.yaml`" in note


def test_a_terminal_is_asked_for_what_no_option_says(
    here: Path, terminal: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = terminal("class", "acme", "")
    assert run(["init", "2024"]) == 0
    assert [question.partition(" (")[0] for question in asked] == [
        "Python package of the steps",
        "Python package of the steps",
        "Base image of steps that name none",
    ]
    assert "`--name class`: it is a keyword of Python" in capsys.readouterr().err
    assert names(here / "2024") == WRITTEN
    asked = terminal()
    assert run(["init", "other", "--name", "other", "--base", "python:3.12-slim"]) == 0 and asked == []
    assert run(["init", "third", "--yes"]) == 0 and run(["init", "fourth", "--json"]) == 0 and asked == []


def test_an_input_that_ends_is_an_error_of_the_user(
    here: Path,
    terminal: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ended(*_words: object, **_options: object) -> str:
        raise typer.Abort

    terminal()
    monkeypatch.setattr("typer.prompt", ended)
    monkeypatch.setattr(api, "reach_registry", lambda *_, **__: None)
    assert run(["init", "acme"]) == run(["site", "init"]) == run(["login", "registry.example"]) == 2
    assert "the input ended before all was answered" in capsys.readouterr().err and list(here.iterdir()) == []


def test_a_terminal_is_asked_which_of_the_steps_to_carry(here: Path, terminal: Callable[..., list[str]]) -> None:
    foreign(here, "steps", "train/tree", "data/get")
    asked = terminal("data/got", "data/get", "python:3.12-slim")
    assert run(["init"]) == 0
    assert len(asked) == 3
    plan = plan_of(here)
    assert [step.target.spec for step in plan.steps] == ["data/get:small"]
    assert set(bases(plan).values()) == {"python:3.12-slim"}
