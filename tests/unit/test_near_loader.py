"""The loader in a bundle: airferry's own wheel, the lock of what it needs, and where `airgap.yaml` leaves it out."""

from __future__ import annotations

import re
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airferry.config import load_config
from airferry.config.models import LoaderChoice
from airferry.errors import BuildError, ConfigurationError
from airferry.events import silent
from airferry.host import files
from airferry.host.installation import shipped
from airferry.host.journal import Journal
from airferry.near.carry import loader
from airferry.near.carry.loader import carry_loader, own_wheel, read_pins
from airferry.near.wheels.pack import read_wheel
from airferry.near.wheels.store import WheelStore
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_platform
from folder_pip import FolderPip

ROOT = Path(__file__).parents[2]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    return {pin.key: (pin.specifier, pin.hashes) for pin in read_pins(path.read_text())}


def test_the_far_side_s_lock_is_a_part_of_the_whole_lock() -> None:
    whole, part = pinned(ROOT / "requirements.lock"), pinned(shipped("near/carry/far-side.lock"))
    assert part and {name: whole[name] for name in part} == part
    assert all(hashes for _version, hashes in part.values())


def test_what_setup_installs_for_a_quickstart_is_a_part_of_the_whole_lock() -> None:
    whole, part = pinned(ROOT / "requirements.lock"), pinned(ROOT / "requirements-runtime.lock")
    assert {name: whole[name] for name in part} == part
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    assert closure([*PROJECT["dependencies"], *extras, "editables", "hatchling"]) == part.keys()


def closure(requirements: Iterable[str]) -> set[str]:
    """Return what these need, by what is installed here, on the oldest Python that airferry runs on."""
    oldest = {"extra": "", "python_version": "3.11", "python_full_version": "3.11.0"}
    waiting, seen = list(requirements), set()
    while waiting:
        wanted = Requirement(waiting.pop())
        key = canonicalize_name(wanted.name)
        if key not in seen and (wanted.marker is None or wanted.marker.evaluate(oldest)):
            seen.add(key)
            waiting += metadata.requires(key) or ()
    return seen


def test_the_far_side_takes_in_what_airferry_and_serve_need_and_nothing_else() -> None:
    part = pinned(shipped("near/carry/far-side.lock"))
    assert closure([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serve"]]) == part.keys()
    for line in PROJECT["optional-dependencies"]["near"]:
        assert canonicalize_name(Requirement(line).name) not in part


def test_the_page_on_security_says_why_of_each_distribution() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    section = page.partition("## What the far side takes in\n")[2].partition("\n## ")[0]
    named = [name for row in re.findall(r"^\| (`[^|]+) \|", section, re.M) for name in re.findall(r"`([^`]+)`", row)]
    part, base = pinned(shipped("near/carry/far-side.lock")), closure(PROJECT["dependencies"])
    assert sorted(named) == sorted(part)
    assert section.startswith(f"\n{len(part)} Python distributions") and f"extra: {len(base)} distributions" in section
    serve_only = {
        name for line in section.splitlines() if "`serve` only" in line for name in re.findall(r"`([\w-]+)`", line)
    }
    assert serve_only - {"serve", "htpasswd"} == part.keys() - base


def test_no_lock_names_an_index() -> None:
    for lock in (ROOT / "requirements.lock", ROOT / "requirements-runtime.lock", shipped("near/carry/far-side.lock")):
        assert not re.search(r"[a-z]+://|--(extra-)?index-url|--trusted-host|--find-links", lock.read_text())


def test_pins_are_read_with_their_hashes() -> None:
    text = (
        "# made by hand\none==1.0 \\\n    --hash=sha256:"
        + "a" * 64
        + " \\\n    --hash=sha256:"
        + "b" * 64
        + "\ntwo==2\n"
    )
    one, two = read_pins(text)
    assert (one.name, one.specifier, one.hashes) == ("one", "==1.0", frozenset({"a" * 64, "b" * 64}))
    assert (two.name, two.specifier, two.hashes) == ("two", "==2", frozenset())


def test_our_own_wheel_is_whole_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    one = own_wheel(folders[0])
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    two = own_wheel(folders[1])
    assert one.read_bytes() == two.read_bytes()
    wheel = read_wheel(one, sha256=files.file_sha256(one))
    assert wheel.name == "airferry" and any(line.startswith("pydantic") for line in wheel.requires)
    with zipfile.ZipFile(one) as archive:
        names = archive.namelist()
        record = archive.read(next(name for name in names if name.endswith("RECORD"))).decode()
    for name in (
        "cli/app.py",
        "airgap.yaml",
        "containerfiles/Containerfile.launcher",
        "near/carry/far-side.lock",
        "example/airgap.yaml",
    ):
        assert f"airferry/{name}" in names
    assert len(names) == len(set(names)) and not [name for name in names if name.endswith(".pyc")]
    assert {line.partition(",")[0] for line in record.splitlines()} == set(names)


def test_our_own_wheel_names_its_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requires = [
        f'{line}; extra == "{name}"' for name, lines in PROJECT["optional-dependencies"].items() for line in lines
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: [*PROJECT["dependencies"], *requires])
    path = own_wheel(tmp_path)
    with zipfile.ZipFile(path) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    assert re.findall(r"^Provides-Extra: (.*)$", text, re.M) == sorted(PROJECT["optional-dependencies"])
    assert set(re.findall(r"^Requires-Dist: (.*)$", text, re.M)) == {*PROJECT["dependencies"], *requires}


def test_without_an_index_the_error_says_how_to_do_without(tmp_path: Path) -> None:
    wheels = WheelStore(tmp_path / "cache", FolderPip(folder=tmp_path))
    with pytest.raises(BuildError, match="the loader for the far side cannot be made") as caught:
        carry_loader(
            LoaderChoice(),
            [parse_platform("linux/amd64")],
            LayoutStore.create(tmp_path / "bundle"),
            journal=Journal(tmp_path / "journal.yaml"),
            wheels=wheels,
            scratch=tmp_path / "scratch",
            emit=silent,
        )
    assert "`loader: false`" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text", ["loader: {pythons: ['3.10']}", "loader: {pythons: []}", "loader: maybe", "loader: true"]
)
def test_a_loader_that_cannot_be_is_refused_at_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "airgap.yaml").write_text(f"# a plan\n{text}\n")
    with pytest.raises(ConfigurationError, match=r"airgap.yaml:2: `loader"):
        load_config(tmp_path / "airgap.yaml")


def test_a_loader_can_be_left_out_or_chosen(tmp_path: Path) -> None:
    path = tmp_path / "airgap.yaml"
    path.write_text("loader: false\n")
    assert load_config(path).loader is False
    path.write_text("loader: {pythons: ['3.11', '3.12'], platforms: [linux/arm64]}\n")
    assert load_config(path).loader == LoaderChoice(
        pythons=("3.11", "3.12"), platforms=(parse_platform("linux/arm64"),)
    )
    path.write_text("{}\n")
    assert load_config(path).loader == LoaderChoice()


def test_the_script_is_the_one_in_the_archive() -> None:
    assert loader.FOLDER in (shipped("containerfiles") / "install-airferry.sh").read_text()
