"""What configs and profiles install at start: listed in the plan, each with what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airferry.config import load_config
from airferry.host.canonical import plain_data
from airferry.near.describe import describe_plan
from airferry.plan.code.installs import bake_lines, module_of
from airferry.plan.inventory import is_held, parse_inventory, render_inventory
from airferry.plan.models import JobPath, Plan, PlanWarning
from airferry.plan.planner import make_plan
from catalogues import airgap, write_airgap, write_step

CONFIG = "src/nemotron/steps/a/config/tiny.yaml"


def plan(root: Path, config: str, *, env_file: str | None = None, **image: Any) -> Plan:
    write_step(root, "a", configs={"tiny": config})
    if env_file is not None:
        (root / "env.toml").write_text(env_file)
    return make_plan(load_config(write_airgap(root, airgap({"i": {"base_image": "base:1", **image}}, {"a": "i"}))))


def installs(made: Plan) -> list[PlanWarning]:
    return [warning for warning in made.warnings if warning.kind == "install"]


def starting(*commands: str) -> str:
    lines = "".join(f"      - {command}\n" for command in commands)
    return f"run:\n  env:\n    startup_commands:\n{lines}"


def test_each_command_of_a_config_is_listed_with_its_place_and_the_lines_to_write(tmp_path: Path) -> None:
    made = plan(
        tmp_path, starting("pip install -q cosmos-xenna protobuf", "apt-get install -y libsndfile1", "ulimit -n 9")
    )
    pip, apt = installs(made)
    assert (pip.place, pip.targets) == (f"{CONFIG}:4", ("a:tiny",))
    assert pip.message == "`startup_commands`: when the job starts, pip installs `cosmos-xenna`, `protobuf`"
    assert pip.hint == "write below `execution_images.i`: `required_imports: [cosmos_xenna, google.protobuf]`"
    assert apt.message == "`startup_commands`: when the job starts, the system's package manager installs `libsndfile1`"
    assert apt.hint == "install it in a `containerfile:` of `execution_images.i`, or choose a `base_image` that has it"
    assert "pip installs" in "\n".join(describe_plan(made))


def test_a_version_needs_a_requirement_and_what_the_image_asks_for_is_kept(tmp_path: Path) -> None:
    made = plan(tmp_path, starting("python -m pip install data-designer==0.5.5 odd-one"), required_imports=["tqdm"])
    (found,) = installs(made)
    assert found.hint == (
        "write below `execution_images.i`: `required_imports: [tqdm, data_designer, odd_one]` and `requirements: "
        "{data_designer: data-designer==0.5.5, odd_one: odd-one}` (if `odd_one` is the module's name)"
    )


def test_what_the_hint_says_helps(tmp_path: Path) -> None:
    image = {"required_imports": ["data_designer"], "requirements": {"data_designer": "data-designer==0.5.5"}}
    (found,) = installs(plan(tmp_path, starting("pip install data-designer==0.5.5"), **image))
    assert found.message.endswith("; the image gets it by `required_imports`")
    assert found.hint.startswith("nothing to bake in; `run.env.startup_commands=[]`")


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        (
            "bash /opt/setup.sh",
            "cannot tell what `bash /opt/setup.sh` installs: it runs the file `/opt/setup.sh`",
            "check it",
        ),
        ("pip install $X", "`$X` is known only at run time", "check it"),
        ("curl -O https://h/x", "`curl` downloads", "`overlays:`"),
        ("pip install -e /opt/Curator", "pip installs `/opt/Curator`", "`env: {PYTHONPATH: FOLDER}`"),
        (
            "pip install git+https://h/x",
            "pip installs `git+https://h/x`",
            "`requirements: {MODULE: NAME @ git+URL@COMMIT}`",
        ),
        ("conda install ffmpeg", "conda installs `ffmpeg`", "`containerfile:`"),
        (
            "python -m nemotron.steps._bootstrap.curator_runtime --profile x -- python -m y --config {config}",
            "makes an environment by pip",
            "start the step without it, `run_command: python -m y --config {config}`",
        ),
    ],
)
def test_what_else_commands_do(tmp_path: Path, command: str, message: str, hint: str) -> None:
    (found,) = installs(plan(tmp_path, starting(f"'{command}'")))
    assert message in found.message
    assert hint in found.hint


def test_sections_and_profiles_are_listed_once_for_all_that_say_the_same(tmp_path: Path) -> None:
    config = (
        "sections:\n  base: {pip_extras: [typer, rich]}\n  one:\n    startup_commands: [pip install omegaconf]\n"
        "  two:\n    startup_commands: [pip install omegaconf]\n"
    )
    env_file = "[wandb]\nentity='x'\n[slurm]\nstartup_commands = ['pip install omegaconf']\n"
    extras, commands = installs(plan(tmp_path, config, env_file=env_file))
    assert extras.message == "`pip_extras`: when the job starts, pip installs `typer`, `rich`"
    assert (commands.place, commands.also) == (f"{CONFIG}:4", (f"{CONFIG}:6", f"{tmp_path}/env.toml:4"))
    assert "below the image of the steps that use it" in commands.hint


def test_profiles_that_cannot_be_read_are_said_and_stop_nothing(tmp_path: Path) -> None:
    (found,) = installs(plan(tmp_path, "a: 1\n", env_file="[a\n"))
    assert "its profiles cannot be read" in found.message
    lines = describe_plan(plan(tmp_path / "again", "a: 1\n", env_file="[a\n"))
    assert not [line for line in lines if line.strip() == "steps"]


def test_an_editable_install_that_needs_no_network_leads_to_its_folder(tmp_path: Path) -> None:
    made = plan(tmp_path, starting("pip install --no-deps --no-build-isolation -e /opt/Curator"))
    assert made.steps[0].job_path == JobPath(folders=("/opt/Curator", "/opt/Curator/src"))
    isolated = plan(tmp_path / "again", starting("pip install -e /opt/Curator"))
    assert isolated.steps[0].job_path == JobPath()


def test_no_secret_of_a_command_is_shown(tmp_path: Path) -> None:
    (found,) = installs(plan(tmp_path, starting("pip install git+https://me:s3cr3t@host/x")))
    assert "s3cr3t" not in str(plain_data(found))


def test_configs_that_say_nothing_are_silent(tmp_path: Path) -> None:
    assert installs(plan(tmp_path, "run: {env: {startup_commands: [], pip_extras: []}}\n")) == []


@pytest.mark.parametrize(
    ("distribution", "module"),
    [
        ("PyYAML", "yaml"),
        ("protobuf", "google.protobuf"),
        ("cosmos_xenna", "cosmos_xenna"),
        ("attrs", "attrs"),
        ("a-b", "a_b"),
    ],
)
def test_modules_of_distributions(distribution: str, module: str) -> None:
    assert module_of(distribution) == module


def test_a_plan_takes_the_lines_as_they_are_printed(tmp_path: Path) -> None:
    lines = bake_lines(["data-designer[x]>=1,<2", "protobuf"]).replace("`", "").split(" and ")
    text = "".join(f"    {line}\n" for line in lines)
    path = write_airgap(tmp_path, f"execution_images:\n  i:\n    base_image: b\n{text}")
    image = load_config(path).execution_images["i"]
    assert image.required_imports == ("data_designer", "google.protobuf")
    assert image.requirements == {"data_designer": "data-designer[x]<2,>=1"}


def test_inventories() -> None:
    text = render_inventory({"Zeta.One": "1.0", "alpha": "2.0+cu12"})
    assert text == "alpha==2.0+cu12 zeta-one==1.0"
    held = parse_inventory(text)
    assert [
        is_held(item, held) for item in ("zeta_one", "ZETA-one>=1", "zeta-one==2", "alpha==2.0", "gone", "a b")
    ] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    assert parse_inventory("") == {}
