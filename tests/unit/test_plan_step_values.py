"""Values of step configs: what each resolves to, against which environment, and where it stands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airferry.errors import ConfigurationError
from airferry.plan.step_config import StepConfigReader, split_mounts
from airferry.plan.step_values import StepValue, read_step_values, resolve_texts, variables_of

BASE = """\
root: ${oc.env:ROOT,/default}
paths: {data: "${root}/data", out: "${oc.env:OUT}"}
nested: ${oc.env:A,${oc.env:B,deep}}/x
nothing: ${oc.env:NONE,null}
empty: "${oc.env:EMPTY,''}"
mount: ${auto_mount:git+https://g/x.git@main,/opt/x}
artifact: ${art:model,path}/tokenizer
selected: ${oc.select:no.such,fallback}
tree: ${paths}
cycle: {a: "${cycle.b}", b: "${cycle.a}"}
list: [1, "${root}"]
prose: |
  Say ${nothing.at.all} and ${oc.env:NEVER}.
must: ???
"""


def read(folder: Path, environment: dict[str, str], **configs: str) -> dict[str, StepValue]:
    for name, text in configs.items():
        (folder / f"{name}.yaml").write_text(text)
    last = list(configs)[-1]
    values = read_step_values(StepConfigReader(), folder / f"{last}.yaml", environment=environment)
    return {value.name: value for value in values.values}


def test_values_are_resolved_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", "/of/this/process")
    values = read(tmp_path, {"B": "set"}, base=BASE)
    assert {name: value.value for name, value in values.items() if value.problem is None} == {
        "root": "/default",
        "paths.data": "/default/data",
        "nested": "set/x",
        "nothing": None,
        "empty": "",
        "mount": "<git+https://g/x.git@main,/opt/x>",
        "artifact": "<artifact>/tokenizer",
        "selected": "fallback",
        "tree": None,
        "list[0]": 1,
        "list[1]": "/default",
        "prose": "Say ${nothing.at.all} and ${oc.env:NEVER}.\n",
    }
    assert values["paths.out"].problem == "the environment variable `OUT` is not set"
    assert values["must"].problem == "has no value and no default"
    assert values["cycle.a"].problem and values["cycle.b"].problem
    assert values["artifact"].is_artifact and not values["root"].is_artifact
    assert values["nested"].variables == (("A", True), ("B", True))
    assert values["prose"].variables == ()
    assert os.environ["ROOT"] == "/of/this/process"


def test_each_value_stands_where_the_strongest_file_says_it(tmp_path: Path) -> None:
    over = "defaults: base\nlist: [2]\npaths:\n  data: /own\n"
    values = read(tmp_path, {"OUT": "/o"}, base=BASE, over=over)
    places = {name: (values[name].file.name, values[name].line) for name in ("paths.data", "paths.out", "list[0]")}
    assert places == {"paths.data": ("over.yaml", 4), "paths.out": ("base.yaml", 2), "list[0]": ("over.yaml", 2)}
    assert "list[1]" not in values and values["paths.out"].value == "/o"
    assert "defaults" not in values


def test_what_cannot_be_merged_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="inherits from `gone`"):
        read(tmp_path, {}, over="defaults: gone\n")
    with pytest.raises(ConfigurationError, match="circular inheritance between configs"):
        read(tmp_path, {}, a="defaults: b\n", b="defaults: a\n")
    with pytest.raises(ConfigurationError, match="OmegaConf cannot read it: token recognition error"):
        read(tmp_path, {}, d="a: ${b c}\n")
    with pytest.raises(ConfigurationError, match=r"c.yaml:2: not valid YAML"):
        read(tmp_path, {}, c="a: [\n")


def test_a_flat_mapping_is_resolved_as_far_as_it_goes() -> None:
    texts = {"a": "${oc.env:X}/y", "b": "${oc.env:NONE}", "c": 1}
    assert resolve_texts(texts, environment={"X": "x"}) == {"a": "x/y", "b": "${oc.env:NONE}", "c": "1"}


def test_mounts_are_split() -> None:
    overlays, others = split_mounts(["${auto_mount:git+https://g/x.git@main,/opt/x}", "/a:/b", {"path": "/c"}])
    assert [(item.repo, item.ref, item.target) for item in overlays] == [("x", "main", "/opt/x")]
    assert others == ("/a:/b", {"path": "/c"})
    with pytest.raises(ValueError, match="is not an overlay"):
        split_mounts(["${auto_mount:git+x@y,/z"])


VARIABLE_PARTS = ["${oc.env:", "A", "B_1", ",", "}", "${", ":", "'", "\\", " ", "x"]


@given(
    st.text(alphabet="${}:,oc.envAB_ /'\"\\", max_size=40)
    | st.lists(st.sampled_from(VARIABLE_PARTS), max_size=12).map("".join)
)
@example("${oc.env:A}/${oc.env:B_1,x}")
def test_no_text_makes_reading_variables_or_resolving_fail(text: str) -> None:
    assert all(name and f"${{oc.env:{name}" in text.replace(" ", "") for name, _default in variables_of(text))
    assert isinstance(resolve_texts({"a": text}, environment={"A": "1"})["a"], str)
