"""Which plans named targets are rehearsed by."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.errors import ConfigurationError
from airferry.near.planning import Selection
from airferry.near.rehearse import targets as rehearsal
from catalogues import airgap, mounting, write_airgap, write_step

OVERLAY = "https://git.example.org/tool@main,/opt/tool"


@pytest.fixture
def selection(tmp_path: Path) -> Selection:
    """A plan of three images: `a` and `b` share one by different names, `c` has an overlay, `d` another base."""
    for step in ("a", "b", "c", "d", "e"):
        configs = {"tiny": mounting(OVERLAY), "big": mounting(OVERLAY)} if step == "c" else None
        write_step(tmp_path, step, configs=configs)
    images = {"one": "base:1", "two": "base:1", "other": "base:2"}
    document = airgap(images, {"a": "one", "b": "two", "c": "one", "d": "other"})
    document["step_execution_images"]["e"] = "other"
    document["dependencies"] = {"e": ["d:tiny"]}
    return Selection(config=write_airgap(tmp_path, document), stages=rehearsal.REHEARSED_STAGES)


def plans(selection: Selection, *names: str) -> list[list[tuple[str, tuple[str, ...]]]]:
    made = rehearsal._plans(Selection(selection.config, targets=names, stages=selection.stages), names)
    return [[(group.name.rpartition("-")[0], group.targets) for group in plan.groups] for plan in made]


def test_without_names_it_is_the_files_plan(selection: Selection) -> None:
    assert plans(selection) == [[("one-two", ("a:tiny", "b:tiny")), ("one", ("c:tiny",)), ("other", ("d:tiny",))]]


def test_named_targets_of_the_file_keep_their_images_names_and_alone_stay(selection: Selection) -> None:
    first, second = plans(selection, "a:tiny")
    assert first == [("one-two", ("a:tiny", "b:tiny"))], "as `airferry build` names the image"
    assert second == [("one", ("a:tiny",))], "as `airferry build --target a:tiny` names it"
    assert plans(selection, "a", "d:tiny")[0] == [("one-two", ("a:tiny", "b:tiny")), ("other", ("d:tiny",))]


def test_targets_that_are_not_in_the_file_are_planned_as_build_does(selection: Selection) -> None:
    assert plans(selection, "c:big") == [[("one", ("c:big",))]]
    assert plans(selection, "e:tiny") == [[("other", ("d:tiny", "e:tiny"))]], "in one image with what it depends on"
    with pytest.raises(ConfigurationError, match="there is no step `f`"):
        plans(selection, "f")
