"""Images that configs name for their jobs, against the bases that the plan builds on."""

from __future__ import annotations

from pathlib import Path

import pytest

from airferry.config import load_config
from airferry.plan.models import PlanWarning
from airferry.plan.planner import make_plan
from catalogues import airgap, write_airgap, write_step

NEMO = "nvcr.io/nvidia/nemo:26.02"


def named(image: str) -> str:
    return f"run:\n  env:\n    nodes: 1\n    container_image: {image}\n"


def warnings(root: Path, *images: str, base: object = NEMO) -> tuple[PlanWarning, ...]:
    for index, image in enumerate(images):
        write_step(root, f"s{index}", configs={"tiny": named(image)})
    document = airgap({"img": base}, {f"s{index}": "img" for index in range(len(images))})
    return make_plan(load_config(write_airgap(root, document))).warnings


def test_another_image_is_a_warning_with_both_places(tmp_path: Path) -> None:
    (found,) = warnings(tmp_path, "nvcr.io/nvidia/nemo:26.04", "nvcr.io/nvidia/nemo:26.04", NEMO)
    assert found.kind == "image" and found.certain
    assert found.place == "src/nemotron/steps/s0/config/tiny.yaml:4"
    assert found.also == ("src/nemotron/steps/s1/config/tiny.yaml:4",)
    assert found.targets == ("s0:tiny", "s1:tiny")
    line = next(
        number for number, text in enumerate((tmp_path / "airgap.yaml").read_text().splitlines(), 1) if NEMO in text
    )
    assert "`nvcr.io/nvidia/nemo:26.04`" in found.message and f"`{NEMO}` (airgap.yaml:{line})" in found.message
    assert "`base_image: nvcr.io/nvidia/nemo:26.04`" in found.hint


@pytest.mark.parametrize(
    "image",
    [
        NEMO,
        "docker://nvcr.io/nvidia/nemo:26.02",
        "nvcr.io#nvidia/nemo:26.02",
        "mirror.example:5000/nvidia/nemo:26.02",
        '"${oc.env:IMAGE,nvcr.io/nvidia/nemo:26.02}"',
        '"${oc.env:IMAGE}"',
        "/lustre/images/nemo.sqsh",
        f"nvcr.io/nvidia/nemo@sha256:{'a' * 64}",
    ],
)
def test_the_same_image_or_one_that_cannot_be_told_is_none(tmp_path: Path, image: str) -> None:
    assert warnings(tmp_path, image) == ()


def test_a_default_of_a_variable_and_another_digest_are_compared(tmp_path: Path) -> None:
    found = warnings(tmp_path, '"${oc.env:IMAGE,nvcr.io/nvidia/nemo:26.04}"')
    assert "`nvcr.io/nvidia/nemo:26.04`" in found[0].message
    pinned = f"nvcr.io/nvidia/nemo@sha256:{'a' * 64}"
    other = f"nvcr.io/nvidia/nemo@sha256:{'b' * 64}"
    assert len(warnings(tmp_path / "digests", pinned, other, base=pinned)) == 1


def test_an_inherited_image_is_placed_where_it_is_written(tmp_path: Path) -> None:
    write_step(tmp_path, "s", configs={"default": named("other/image:1"), "tiny": "defaults: default\na: 1\n"})
    write_step(tmp_path, "t", configs={"default": named("other/image:1"), "tiny": f"defaults: default\n{named(NEMO)}"})
    document = airgap({"img": NEMO}, {"s": "img", "t": "img"})
    (found,) = make_plan(load_config(write_airgap(tmp_path, document))).warnings
    assert (found.place, found.targets) == ("src/nemotron/steps/s/config/default.yaml:4", ("s:tiny",))
