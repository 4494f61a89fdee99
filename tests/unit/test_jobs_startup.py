"""What jobs install at start, compared with what their image holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airferry.bundle.manifest import OverlayEntry
from airferry.bundle.receipt import Receipt
from airferry.config import SiteProfile
from airferry.jobs.check import Checked, run_check
from airferry.jobs.findings import Finding
from airferry.jobs.rules.site import RegistryImage
from airferry.plan.catalogue import catalogue_at
from airferry.plan.env_profiles import read_env_file
from catalogues import STEPS, write_step
from loaded_receipts import PINNED, loaded_receipt

HELD = {"linux/amd64": "omegaconf==2.3.0 protobuf==5.29.1 typer==0.15.1"}


def receipt(distributions: dict[str, str]) -> Receipt:
    return loaded_receipt(
        "a:tiny",
        name="trainer-1",
        distributions=distributions,
        overlays=(OverlayEntry(repo="Curator", url="https://h/Curator.git", ref="main", target="/opt/Curator"),),
        env={"PYTHONPATH": "/opt/Curator:/opt/tools:${PYTHONPATH}"},
    )


def findings(
    root: Path,
    config: str,
    *,
    held: dict[str, str] | None = None,
    env_file: str | None = None,
    images: Any = None,
    **site: Any,
) -> list[Finding]:
    write_step(root, "a", configs={"tiny": config})
    profile = None
    if env_file is not None:
        (root / "env.toml").write_text(env_file)
        profile = read_env_file(root / "env.toml")
    checked = Checked(
        catalogue_at(root, steps=STEPS),
        SiteProfile.model_validate({"executors": ["kubernetes"], "platform": "linux/amd64", **site}),
        receipt=receipt(HELD if held is None else held),
        env_file=profile,
        profile="base" if profile else None,
        submission={"USER": "me"},
    )
    return list(run_check(checked, images or {}).findings)


def startup(root: Path, config: str, **more: Any) -> list[Finding]:
    return [finding for finding in findings(root, config, **more) if finding.kind == "startup"]


def paths(root: Path, config: str, **more: Any) -> list[Finding]:
    return [finding for finding in findings(root, config, **more) if "takes the place of the image's" in finding.text]


def starting(command: str) -> str:
    return f"run:\n  env:\n    startup_commands: ['{command}']\n"


@pytest.mark.parametrize(
    ("command", "level", "text", "fix"),
    [
        (
            "pip install omegaconf protobuf",
            "note",
            "is in the image, so pip does not ask an index",
            "run.env.startup_commands=[]",
        ),
        (
            "pip install omegaconf cosmos-xenna",
            "block",
            "`cosmos-xenna` is not in the image, and pip installs it when the job starts",
            "build `trainer-1` with `required_imports: [cosmos_xenna]`; then run.env.startup_commands=[]",
        ),
        (
            "pip install tqdm==4.60 gone omegaconf==2.4",
            "block",
            "`tqdm==4.60`, `gone` are not in the image, and pip installs them when the job starts",
            "build `trainer-1` with `required_imports: [tqdm, gone]` and `requirements: {gone: gone, tqdm: "
            "tqdm==4.60}` (if `gone` is the module's name); then run.env.startup_commands=[]",
        ),
        (
            "pip install omegaconf==2.4",
            "block",
            "the image has `omegaconf` 2.3.0, and pip installs `omegaconf==2.4` when the job starts",
            "run the step with the versions in the image, or choose a base that has the "
            "others: run.env.startup_commands=[]",
        ),
        (
            "pip install -U omegaconf",
            "block",
            "is in the image, but pip still asks an index for a newer version",
            "run.env.startup_commands=[]",
        ),
        (
            "apt-get install -y libsndfile1",
            "block",
            "installs `libsndfile1` by apt when the job starts",
            "have it in the base, or install it in a `containerfile:` of the image; then run.env.startup_commands=[]",
        ),
        ("git clone https://h/x", "block", "downloads when the job starts", "run.env.startup_commands=[]"),
        ("pip install -r x.txt", "block", "downloads when the job starts", "run.env.startup_commands=[]"),
        (
            "bash /opt/x.sh",
            "note",
            "cannot tell what it installs when the job starts: it runs the file `/opt/x.sh`",
            "run.env.startup_commands=[]",
        ),
        (
            "pip install -e /opt/x",
            "block",
            "installs `/opt/x` when the job starts, and pip fetches what builds it",
            "an image with `env: {PYTHONPATH: FOLDER}`; then run.env.startup_commands=[]",
        ),
    ],
)
def test_each_command_is_compared_with_the_image(tmp_path: Path, command: str, level: str, text: str, fix: str) -> None:
    (found,) = startup(tmp_path, starting(command))
    assert (found.level, found.text, found.fix) == (level, text, fix)
    assert (found.key, found.value) == ("run.env.startup_commands[0]", command)


@pytest.mark.parametrize("command", ["pip install --no-deps --no-build-isolation -e /opt/x", "ulimit -n 9"])
def test_what_needs_nothing_from_outside_is_no_finding(tmp_path: Path, command: str) -> None:
    assert startup(tmp_path, starting(command)) == []


def test_without_an_inventory_nothing_is_said_to_be_there(tmp_path: Path) -> None:
    (found,) = startup(tmp_path, starting("pip install omegaconf"), held={})
    assert (found.level, found.text) == ("block", "downloads when the job starts")


def test_an_index_inside_serves_pip_and_nothing_else(tmp_path: Path) -> None:
    mirrors = {"packages": "https://pypi.site/simple"}
    (found,) = startup(tmp_path, starting("pip install gone && apt install x"), mirrors=mirrors)
    assert "`x` by apt" in found.text


def test_only_what_all_platforms_of_the_site_hold_counts(tmp_path: Path) -> None:
    both = {**HELD, "linux/arm64": "omegaconf==2.3.0"}
    (found,) = startup(tmp_path, starting("pip install omegaconf typer"), held=both)
    assert found.level == "note"
    (found,) = startup(tmp_path / "again", starting("pip install omegaconf typer"), held=both, platform=None)
    assert "`typer` is not in the image" in found.text


def test_profiles_are_compared_and_sections_for_other_images_are_not(tmp_path: Path) -> None:
    env_file = "[base]\npip_extras = ['typer', 'gone']\nstartup_commands = ['ulimit -n 9', 'pip install protobuf']\n"
    config = "sections: {x: {startup_commands: [pip install omegaconf]}}\n"
    found = {item.key: item for item in startup(tmp_path, config, env_file=env_file)}
    assert found["base.pip_extras"].text == "`gone` is not in the image, and pip installs it when the job starts"
    assert (found["base.pip_extras"].level, found["base.pip_extras"].line) == ("warn", 2)
    assert (found["base.startup_commands.1"].level, found["base.startup_commands.1"].line) == ("note", 3)
    section = found["sections.x.startup_commands[0]"]
    assert (section.text, section.fix) == ("downloads when the job starts", "sections.x.startup_commands=[]")


def test_a_step_is_started_without_the_bootstrap(tmp_path: Path) -> None:
    command = "python -m nemotron.steps._bootstrap.curator_runtime --profile x -- python -m y --config {config}"
    (found,) = startup(tmp_path, f"run: {{env: {{run_command: '{command}'}}}}\n")
    assert found.fix == "run.env.run_command='python -m y --config {config}'"


SLURM = "[base]\nexecutor = 'slurm'\n[base.env_vars]\nPYTHONPATH = '{}'\n"


def test_a_profile_that_takes_the_path_of_the_image_away_blocks(tmp_path: Path) -> None:
    (found,) = paths(tmp_path, "a: 1\n", env_file=SLURM.format("/nemo_run/code/src"))
    assert (found.level, found.key, found.line) == ("block", "base.env_vars.PYTHONPATH", 4)
    assert found.text == "takes the place of the image's, which has `/opt/Curator`, `/opt/tools` as well"
    assert found.fix == "run.env.env_vars.PYTHONPATH=/opt/Curator:/opt/tools:/nemo_run/code/src"


def test_what_is_no_checkout_only_warns(tmp_path: Path) -> None:
    (found,) = paths(tmp_path, "a: 1\n", env_file=SLURM.format("/nemo_run/code/src:/opt/Curator/"))
    assert (found.level, found.fix) == (
        "warn",
        "run.env.env_vars.PYTHONPATH=/opt/tools:/nemo_run/code/src:/opt/Curator",
    )


def test_a_profile_of_the_site_counts_as_well(tmp_path: Path) -> None:
    site = {"executors": ["kubernetes"], "profiles": {"p": {"executor": "kubernetes", "env": {"PYTHONPATH": "/x"}}}}
    (found,) = paths(tmp_path, "a: 1\n", **site)
    assert (found.level, found.key) == ("block", "run.env.env_vars.PYTHONPATH")


@pytest.mark.parametrize(
    "config", ["a: 1\n", "run: {env: {env_vars: {PYTHONPATH: '/opt/Curator:/opt/tools:/nemo_run/code/src'}}}\n"]
)
def test_what_the_fix_says_helps(tmp_path: Path, config: str) -> None:
    kept = "/nemo_run/code/src" if "run:" in config else "/opt/tools:/opt/Curator:/x"
    assert paths(tmp_path, config, env_file=SLURM.format(kept)) == []


def test_no_variable_of_a_profile_takes_nothing_away(tmp_path: Path) -> None:
    assert paths(tmp_path, "a: 1\n", env_file="[base]\nexecutor = 'slurm'\n") == []


def test_the_image_in_the_registry_counts_where_it_was_asked(tmp_path: Path) -> None:
    images = {PINNED: RegistryImage(found=True, environment={"PYTHONPATH": "/opt/Curator:/opt/of-the-base"})}
    (found,) = paths(tmp_path, "a: 1\n", env_file=SLURM.format("/x"), images=images)
    assert "`/opt/Curator`, `/opt/of-the-base`" in found.text
