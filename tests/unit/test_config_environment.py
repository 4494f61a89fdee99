"""`env:` of images: what it may hold, and how it goes over the variables of a base."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.config import load_config
from airferry.config.environment import MAX_VALUE, MAX_VARIABLES
from airferry.errors import ConfigurationError
from airferry.near.assemble.direct import with_env
from catalogues import write_airgap


def problem(folder: Path, line: str, *, image: str = "execution_images:\n  a:\n    base_image: b\n") -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_config(write_airgap(folder, f"{image}    env:\n      GOOD: here\n      {line}\n"))
    (found,) = caught.value.fields["problems"]
    return str(found).removeprefix(f"{folder}/")


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE"])
def test_what_keeps_jobs_offline_cannot_be_taken_back(tmp_path: Path, name: str) -> None:
    found = problem(tmp_path, f"{name}: 0")
    assert found.startswith(f"airgap.yaml:6: `execution_images.a.env.{name}`: ")
    assert f"`{name}` is set by airferry, so that jobs stay offline" in found
    assert "run.env.env_vars" in found


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "NGC_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "db_password",
        "MY_SECRET",
    ],
)
def test_secrets_are_refused_by_name(tmp_path: Path, name: str) -> None:
    found = problem(tmp_path, f"{name}: x")
    assert "is named like a secret" in found and "site.profiles.NAME.provides" in found


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("LD_PRELOAD: /x.so", "changes what starts before a step"),
        ("PYTHONSTARTUP: /x.py", "changes what starts before a step"),
        ("PYTHONHOME: /x", "changes what starts before a step"),
        ("https_proxy: http://proxy:3128", "names a proxy of this network"),
        ("AIRFERRY_X: x", "are reserved"),
        ("'A B': x", "is not the name of an environment variable"),
        ("A=B: x", "is not the name of an environment variable"),
        ("URL: https://me:secret@host/", "the value looks like a secret"),
        ("A: $HOME/x", "begins `${NAME}`"),
        ("A: ${HOME", "begins `${NAME}`"),
        ("A: true", "expected text"),
        ("A: [1]", "expected text"),
        ('A: "one\\ntwo"', "one line of printable text"),
        (f"A: {'x' * (MAX_VALUE + 1)}", f"{MAX_VALUE} characters at most"),
        ("PATH: /opt/bin", "drops the base's programs"),
        ("PYTHONPATH: opt/Curator", "`opt/Curator` is not an absolute path"),
    ],
)
def test_what_an_image_does_not_take(tmp_path: Path, line: str, reason: str) -> None:
    found = problem(tmp_path, line)
    assert reason in found
    assert found.startswith("airgap.yaml:")


def test_there_are_not_too_many(tmp_path: Path) -> None:
    lines = "\n      ".join(f"V{number}: x" for number in range(MAX_VARIABLES))
    assert f"at most {MAX_VARIABLES} variables" in problem(tmp_path, lines)


def test_the_launcher_takes_the_same_and_keeps_its_catalogue(tmp_path: Path) -> None:
    image = "x-here:\nlauncher_image:\n    tag: a\n"
    assert "is named like a secret" in problem(tmp_path, "HF_TOKEN: x", image=image)
    assert "drops the catalogue" in problem(tmp_path, "PYTHONPATH: /opt/x", image=image)
    config = load_config(write_airgap(tmp_path, {"launcher_image": {"env": {"PYTHONPATH": "/opt/x:${PYTHONPATH}"}}}))
    assert config.launcher_image is not None
    assert config.launcher_image.env == {"PYTHONPATH": "/opt/x:${PYTHONPATH}"}


@pytest.mark.parametrize("line", ["C:", "C: null", "C: ~"])
def test_a_variable_without_a_value_is_refused(tmp_path: Path, line: str) -> None:
    found = problem(tmp_path, line)
    assert found.startswith('airgap.yaml:6: `execution_images.a.env.C`: the variable has no value; write `""`')


@pytest.mark.parametrize(
    "document",
    [
        {"launcher_image": {"env": {"C": None}}},
        {"rehearsal": {"env": {"C": None}}},
        {"rehearsal": {"steps": {"env": {"env": {"C": None}}}}},
        {"site": {"registry": "r:5000/x", "profiles": {"env": {"executor": "slurm", "env": {"C": None}}}}},
    ],
)
def test_every_env_refuses_a_variable_without_a_value(tmp_path: Path, document: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"env\.C`: the variable has no value"):
        load_config(write_airgap(tmp_path, document))


def test_an_env_without_variables_is_the_same_as_none(tmp_path: Path) -> None:
    images = {"env": {"base_image": "b", "tag": None, "env": None}}
    config = load_config(write_airgap(tmp_path, {"execution_images": images, "rehearsal": {"steps": {"env": None}}}))
    assert config.execution_images["env"].env == {}


def test_names_that_only_resemble_secrets_are_taken(tmp_path: Path) -> None:
    env = {"TOKENIZERS_PARALLELISM": "false", "MAX_TOKENS": 8, "KEYBOARD": "us", "OMP_NUM_THREADS": 8, "EMPTY": ""}
    image = {"base_image": "b", "env": env}
    config = load_config(write_airgap(tmp_path, {"execution_images": {"a": image}}))
    assert config.execution_images["a"].env == {**env, "MAX_TOKENS": "8", "OMP_NUM_THREADS": "8"}


@pytest.mark.parametrize(
    ("value", "base", "expected"),
    [
        ("/opt/x", ["PYTHONPATH=/base"], "/opt/x"),
        ("/opt/x:${PYTHONPATH}", ["PYTHONPATH=/base:/more"], "/opt/x:/base:/more"),
        ("/opt/x:${PYTHONPATH}", [], "/opt/x"),
        ("${PYTHONPATH}:/opt/x", ["PYTHONPATH="], "/opt/x"),
        ("/a:${PYTHONPATH}:/b", [], "/a:/b"),
        ("${ROOT}/x:$$literal", ["ROOT=/r"], "/r/x:$literal"),
    ],
)
def test_references_are_to_the_variables_of_the_base(value: str, base: list[str], expected: str) -> None:
    merged = with_env([*base, "LAST=1"], {"PYTHONPATH": value})
    assert f"PYTHONPATH={expected}" in merged
    assert len([line for line in merged if line.startswith("PYTHONPATH=")]) == 1


def test_a_base_without_path_has_the_one_that_engines_give_it() -> None:
    assert with_env([], {"PATH": "/opt/bin:${PATH}"}) == [
        "PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    ]


def test_without_env_nothing_changes() -> None:
    assert with_env(["A=1", "A=2"], {}) == ["A=1", "A=2"]
