"""Overlays and mounts of step configs, with what they inherit."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from airferry.errors import ConfigurationError
from airferry.plan.step_config import StepConfigReader, _lay_over, _NotPlainError
from airferry.plan.step_values import read_step_values
from catalogues import mounting

ONE = "https://example.com/one.git@v1,/opt/one"
TWO = "https://example.com/two@v2,/opt/two"


def write(tmp_path: Path, **files: str) -> StepConfigReader:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return StepConfigReader()


def targets(reader: StepConfigReader, path: Path) -> list[str]:
    return [overlay.target for overlay in reader.read(path).overlays]


def test_overlays_are_found_in_values_and_not_in_comments(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        a="# ${auto_mount:git+https://example.com/no@v1,/opt/no}\n"
        "model: {path: '${auto_mount:git+" + TWO + "}'}\n"
        "run:\n  env:\n    mounts:\n      - ${auto_mount:git+" + ONE + "}  # ${auto_mount:git+" + TWO + "}\n"
        "      - '${auto_mount: git+" + TWO + " }'\n      - /data:/data\n",
    )
    found = reader.read(tmp_path / "a.yaml")
    assert [(item.repo, item.url, item.ref, item.target) for item in found.overlays] == [
        ("two", "https://example.com/two", "v2", "/opt/two"),
        ("one", "https://example.com/one.git", "v1", "/opt/one"),
    ]
    assert len(found.mounts) == 3


def test_what_a_config_inherits_counts_unless_it_says_otherwise(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        default=mounting(ONE),
        inherits="defaults: default\niterations: 1\n",
        by_list="defaults: [default.yaml, _self_]\nmodel: '${auto_mount:git+" + TWO + "}'\n",
        cleared="defaults: default.yaml\nrun: {env: {mounts: []}}\n",
        nothing="defaults: default.yaml\nrun: null\n",
        replaced="defaults: default.yaml\n" + mounting(TWO),
        twice="defaults: inherits\n",
    )
    expected = {
        "inherits": ["/opt/one"],
        "by_list": ["/opt/one", "/opt/two"],
        "cleared": [],
        "nothing": [],
        "replaced": ["/opt/two"],
        "twice": ["/opt/one"],
    }
    assert {name: targets(reader, tmp_path / f"{name}.yaml") for name in expected} == expected


def test_values_are_not_resolved(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        default="run: {env: {mounts: ['${oc.env:NOWHERE_TO_BE_FOUND}:/data']}}\n",
        tiny="defaults: default\nrun: {env: {nodes: '${missing.key}'}}\n",
    )
    assert reader.read(tmp_path / "tiny.yaml").mounts == ("${oc.env:NOWHERE_TO_BE_FOUND}:/data",)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("git+https://example.com/one,/opt/one", "has no `@REF`"),
        ("git+ssh://git@example.com/one,/opt/one", "has no `@REF`"),
        ("git+https://example.com/one@v1", "has no target"),
        ("git+https://example.com/one@v1,opt/one", "is not an absolute path"),
        ("https://example.com/one@v1,/opt/one", "is not an overlay"),
        ("git+https://example.com/one@${ref},/opt/one", "is not an overlay"),
    ],
)
def test_wrong_overlays_are_told_at_file_and_line(tmp_path: Path, spec: str, reason: str) -> None:
    reader = write(tmp_path, default="a: 1\nb:\n  - '${auto_mount:" + spec + "}'\n", tiny="defaults: default\n")
    with pytest.raises(ConfigurationError, match=r"default\.yaml:3: `b\[0\]`") as caught:
        reader.read(tmp_path / "tiny.yaml")
    assert reason in caught.value.message
    assert caught.value.hint is not None and "git+URL@REF,TARGET" in caught.value.hint


def test_two_overlays_of_one_config_may_not_want_one_target(tmp_path: Path) -> None:
    reader = write(tmp_path, a=mounting(ONE, "https://example.com/other@v1,/opt/one"), b=mounting(ONE, ONE))
    with pytest.raises(ConfigurationError, match="two overlays use the target `/opt/one`"):
        reader.read(tmp_path / "a.yaml")
    assert targets(reader, tmp_path / "b.yaml") == ["/opt/one"]


def test_configs_that_inherit_from_each_other_are_refused(tmp_path: Path) -> None:
    reader = write(tmp_path, a="defaults: b\n", b="defaults: a\n")
    with pytest.raises(ConfigurationError, match="circular inheritance"):
        reader.read(tmp_path / "a.yaml")


def test_a_missing_base_config_is_told_at_file_and_line(tmp_path: Path) -> None:
    reader = write(tmp_path, a="x: 1\ndefaults: gone\n")
    with pytest.raises(ConfigurationError, match=r"a\.yaml:2: `defaults`: .*gone\.yaml` is missing"):
        reader.read(tmp_path / "a.yaml")


def test_defaults_of_another_kind_are_left_alone(tmp_path: Path) -> None:
    reader = write(tmp_path, a="defaults: [{override: x}]\n" + mounting(ONE), empty="# nothing\n")
    assert targets(reader, tmp_path / "a.yaml") == ["/opt/one"]
    assert targets(reader, tmp_path / "empty.yaml") == []


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "a: 1\na: 2\n"])
def test_configs_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    reader = write(tmp_path, a=text)
    with pytest.raises(ConfigurationError, match=r"a\.yaml:[123]: "):
        reader.read(tmp_path / "a.yaml")


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    reader = write(tmp_path, default=mounting(ONE), a="defaults: default\nrun: {bad: '${unclosed'}\n")
    with pytest.raises(ConfigurationError, match="cannot be merged"):
        reader.read(tmp_path / "a.yaml")


LEAVES = st.none() | st.booleans() | st.integers() | st.sampled_from(["a", "${oc.env:A,b}", "x ${run.y} z"])
TREES = st.recursive(
    LEAVES, lambda below: st.lists(below, max_size=2) | st.dictionaries(st.sampled_from("abc"), below, max_size=3)
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@given(parts=st.lists(MAPPINGS, min_size=2, max_size=3))
def test_the_quick_way_to_merge_agrees_with_omegaconf(parts: list[dict[str, Any]]) -> None:
    try:
        quick = reduce(_lay_over, parts)
    except _NotPlainError:
        return
    assert quick == OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.create, parts)), resolve=False)


def test_what_says_that_a_value_is_missing_leaves_the_inherited_one(tmp_path: Path) -> None:
    reader = write(tmp_path, default=mounting(ONE), a="defaults: default\nrun: {env: {mounts: '???'}}\n")
    assert targets(reader, tmp_path / "a.yaml") == ["/opt/one"]


@pytest.mark.parametrize(("below", "above"), [("run: {env: {a: 1}}", "run: [b]"), ("run: [b]", "run: {env: {a: 1}}")])
@pytest.mark.parametrize("mark", ["", "${auto_mount:git+https://h/x.git@v1,/opt/x}"])
def test_a_list_that_inherits_from_a_mapping_is_an_error_of_the_config(
    tmp_path: Path, below: str, above: str, mark: str
) -> None:
    (tmp_path / "base.yaml").write_text(f"{below}\n")
    (tmp_path / "tiny.yaml").write_text(f"defaults: base.yaml\n{above}\nb: ['{mark}']\n")
    reader = StepConfigReader()
    assert targets(reader, tmp_path / "tiny.yaml") == (["/opt/x"] if mark else [])
    with pytest.raises(ConfigurationError, match=r"tiny\.yaml: OmegaConf cannot read it: Cannot merge"):
        read_step_values(reader, tmp_path / "tiny.yaml", environment={})
