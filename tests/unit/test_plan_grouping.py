"""Groups: who shares an image, in which order, and under which name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airferry.config import load_config
from airferry.errors import ConfigurationError
from airferry.oci.platform import host, parse_platform
from airferry.plan.grouping import tag_with_suffix, tar_with_suffix
from airferry.plan.models import Plan
from airferry.plan.planner import make_plan, render_plan, write_plan
from catalogues import airgap, expected_suffix, mounting, write_airgap, write_step
from examples import examples

LM = "https://example.com/org/Megatron-LM.git@abc,/opt/megatron-lm"
BRIDGE = "https://example.com/org/Bridge@feature/x,/opt/Bridge"


def plan(root: Path, document: dict[str, Any], **options: Any) -> Plan:
    return make_plan(load_config(write_airgap(root, document)), **options)


def failure(root: Path, document: dict[str, Any]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        plan(root, document)
    return caught.value


def test_one_image_keeps_its_names_and_several_join_theirs(tmp_path: Path) -> None:
    for step in ("a", "b", "c"):
        write_step(tmp_path, step)
    images = {"z-img": {"base_image": "base:1", "required_imports": ["data_designer"]}, "m.img": "base:1", "own": "o:2"}
    found = plan(tmp_path, airgap(images, {"a": "z-img", "b": "own", "c": "m.img"}))
    joined, own = found.groups
    suffix = expected_suffix("base:1")
    assert joined.name == f"m.img-z-img-{suffix}"
    assert joined.tag == f"nemotron-customizer-m.img-z-img-airgap-{suffix}:latest"
    assert joined.tar == f"execution-m.img-z-img-image-{suffix}.tar"
    assert joined.steps == ("a", "c")
    assert joined.required_imports == ("data_designer",)
    assert own.name == f"own-{expected_suffix('o:2')}"
    assert own.tag == f"nemotron-execution-own-{expected_suffix('o:2')}:airgap"
    assert own.tar == f"execution-own-{expected_suffix('o:2')}.tar"
    assert dict(found.step_images) == {"a": joined.tag, "b": own.tag, "c": joined.tag}


def test_overlays_part_groups_and_enter_the_suffix_in_the_order_found(tmp_path: Path) -> None:
    write_step(tmp_path, "a", configs={"tiny": mounting(LM, BRIDGE, mounts=["/data:/data"])})
    write_step(tmp_path, "b", configs={"tiny": mounting(BRIDGE, LM)})
    write_step(tmp_path, "c")
    found = plan(tmp_path, airgap({"i": "base:1"}, {"a": "i", "b": "i", "c": "i"}))
    assert [group.steps for group in found.groups] == [("a", "b"), ("c",)]
    assert found.groups[0].name == f"i-{expected_suffix('base:1', [LM, BRIDGE])}"
    assert [overlay.repo for overlay in found.groups[0].overlays] == ["Megatron-LM", "Bridge"]
    document = found.to_document()
    mounts = document["persistent_assets"]["mounts_from_configs"]
    assert mounts[2] == "/data:/data"
    assert len(mounts) == 3, "two steps mount the same checkouts"


def test_overlays_of_an_image_come_after_the_steps(tmp_path: Path) -> None:
    write_step(tmp_path, "a", configs={"tiny": mounting(LM)})
    write_step(tmp_path, "b")
    image = {"base_image": "base:1", "overlays": ["git+" + BRIDGE, "git+" + LM]}
    found = plan(tmp_path, airgap({"i": image}, {"a": "i", "b": "i"}))
    assert [group.name for group in found.groups] == [f"i-{expected_suffix('base:1', [LM, BRIDGE])}"]
    assert found.groups[0].targets == ("a:tiny", "b:tiny")


def test_two_configs_of_one_step_are_two_targets(tmp_path: Path) -> None:
    write_step(tmp_path, "a", configs={"tiny": mounting(LM), "default": "x: 1\n"})
    write_step(tmp_path, "b")
    document = airgap({"i": "base:1"}, {"a": "i", "b": "i"})
    found = plan(tmp_path, document, targets=["a:tiny,b:tiny,a:default"])
    with_overlay, without = found.groups
    assert (with_overlay.targets, without.targets) == (("a:tiny",), ("b:tiny", "a:default"))
    assert dict(found.step_images) == {"a:tiny": with_overlay.tag, "b": without.tag, "a:default": without.tag}
    same = plan(tmp_path, document, targets=["b:tiny,a:default,a"])
    assert same.groups[0].steps == ("b", "a")
    assert same.groups[0].targets == ("b:tiny", "a:default", "a")
    assert list(same.step_images) == ["b", "a"]


def test_images_that_disagree_on_platforms_or_dependencies_are_kept_apart(tmp_path: Path) -> None:
    for step in ("a", "b", "c"):
        write_step(tmp_path, step)
    images = {
        "i": {"base_image": "base:1", "platforms": ["linux/amd64", "linux/arm64"]},
        "j": {"base_image": "base:1", "platform": "linux/arm64"},
        "k": {"base_image": "base:1", "platforms": ["linux/arm64", "linux/amd64"], "pip_no_deps": False},
    }
    document = airgap(images, {"a": "i", "b": "j", "c": "k"})
    names = [group.name for group in plan(tmp_path, document).groups]
    assert names == [
        f"i-{expected_suffix('base:1')}",
        f"j-{expected_suffix('base:1', platforms=['linux/arm64'], pip_no_deps=True)}",
        f"k-{expected_suffix('base:1', platforms=['linux/arm64', 'linux/amd64'], pip_no_deps=False)}",
    ]
    forced = plan(tmp_path, document, platforms=[parse_platform("linux/amd64")])
    assert [group.image_names for group in forced.groups] == [("i", "j"), ("k",)]


def test_images_that_differ_in_env_are_kept_apart_and_the_first_keeps_its_suffix(tmp_path: Path) -> None:
    for step in ("a", "b", "c", "d"):
        write_step(tmp_path, step)
    env = {"PYTHONPATH": "/opt/Curator", "A": 1}
    images = {
        "i": {"base_image": "base:1", "platform": "linux/amd64"},
        "j": {"base_image": "base:1", "platform": "linux/amd64", "env": env},
        "k": {"base_image": "base:1", "platform": "linux/amd64", "env": dict(reversed(env.items()))},
        "l": {"base_image": "base:1", "platform": "linux/arm64"},
    }
    document = airgap(images, {"a": "i", "b": "j", "c": "k", "d": "l"})
    found = plan(tmp_path, document)
    written = {"A": "1", "PYTHONPATH": "/opt/Curator"}
    common = {"platforms": ["linux/amd64"], "pip_no_deps": True}
    assert [group.name for group in found.groups] == [
        f"i-{expected_suffix('base:1')}",
        f"j-k-{expected_suffix('base:1', **common, env=written)}",
        f"l-{expected_suffix('base:1', platforms=['linux/arm64'], pip_no_deps=True)}",
    ]
    groups = found.to_document()["execution_groups"]
    assert [group["env"] for group in groups] == [{}, written, {}]
    first = plan(tmp_path, document, targets=["b"])
    assert first.groups[0].name == f"j-{expected_suffix('base:1')}"


def test_platforms_come_from_the_command_line_the_image_the_file_then_the_host(tmp_path: Path) -> None:
    write_step(tmp_path, "a")
    document = airgap({"i": "base:1"}, {"a": "i"})
    assert plan(tmp_path, document).groups[0].platforms == (host(),)
    document["platforms"] = ["linux/s390x"]
    found = plan(tmp_path, document)
    assert [str(platform) for platform in found.groups[0].platforms] == ["linux/s390x"]
    assert found.launcher is not None and found.launcher.platforms == found.groups[0].platforms
    document["execution_images"]["i"]["platform"] = "linux/arm64"
    assert [str(platform) for platform in plan(tmp_path, document).platforms] == ["linux/arm64", "linux/s390x"]
    chosen = (parse_platform("linux/amd64"),)
    assert plan(tmp_path, document, platforms=chosen).platforms == chosen


def test_a_base_that_is_a_mapping_enters_the_suffix_as_json(tmp_path: Path) -> None:
    write_step(tmp_path, "a")
    base = {"bootstrap": {"suite": "bookworm", "packages": ["python3-minimal"]}}
    found = plan(tmp_path, airgap({"i": {"base_image": base}}, {"a": "i"}))
    key = '{"bootstrap":{"packages":["python3-minimal"],"suite":"bookworm"}}'
    assert found.groups[0].name == f"i-{expected_suffix(key)}"
    assert found.to_document()["execution_groups"][0]["base_image"] == base


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"execution_images": {"i": {"base_image": "b"}}}, "step `a` has no entry"),
        ({"step_execution_images": {"a": "j"}}, "there is no image `j` under `execution_images`"),
    ],
)
def test_a_step_without_image_is_refused(tmp_path: Path, document: dict[str, Any], message: str) -> None:
    write_step(tmp_path, "a")
    error = failure(tmp_path, {"workflow": {"stages": ["a:tiny"]}, **document})
    assert message in error.message and "airgap.yaml:" in error.message
    assert error.hint


@pytest.mark.parametrize(("key", "kind"), [("tag", "tag"), ("tar", "archive name")])
def test_two_images_of_one_name_are_refused(tmp_path: Path, key: str, kind: str) -> None:
    write_step(tmp_path, "a", configs={"tiny": mounting(LM)})
    suffix = expected_suffix("base:1", [LM])
    document = airgap({"i": {"base_image": "base:1", key: "x"}}, {"a": "i"}, launcher_image={key: f"x-{suffix}"})
    error = failure(tmp_path, document)
    assert f"have the same {kind}" in error.message
    assert "the launcher image" in error.message


def test_a_short_and_a_long_form_of_one_tag_are_the_same(tmp_path: Path) -> None:
    write_step(tmp_path, "a")
    tag = f"docker.io/library/x-{expected_suffix('base:1')}:latest"
    document = airgap({"i": {"base_image": "base:1", "tag": "x"}}, {"a": "i"}, launcher_image={"tag": tag})
    assert "have the same tag" in failure(tmp_path, document).message


def test_a_name_that_podman_refuses_is_refused(tmp_path: Path) -> None:
    write_step(tmp_path, "a")
    document = airgap({"i": {"base_image": "base:1", "tag": "my__image:1"}}, {"a": "i"})
    assert "refuse a layout with this name" in failure(tmp_path, document).message


def test_overlays_that_want_one_target_are_refused(tmp_path: Path) -> None:
    write_step(tmp_path, "a", configs={"tiny": mounting(LM)})
    image = {"base_image": "base:1", "overlays": ["git+https://example.com/other@1,/opt/megatron-lm/"]}
    error = failure(tmp_path, airgap({"i": image}, {"a": "i"}))
    assert "two overlays use the target `/opt/megatron-lm/`" in error.message
    assert "airgap.yaml:" in error.message and "`execution_images.i.overlays`" in error.message
    assert "`a:tiny`" in error.message


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [
        ("python", "/opt/venv/bin/python", "/usr/bin/python3"),
        ("containerfile", "A", "B"),
        ("requirements", {"m": "one"}, {"m": "two"}),
    ],
)
def test_images_of_one_group_may_not_contradict_each_other(tmp_path: Path, key: str, first: Any, second: Any) -> None:
    write_step(tmp_path, "a")
    write_step(tmp_path, "b")
    images = {"i": {"base_image": "base:1", key: first}, "j": {"base_image": "base:1", key: second}}
    error = failure(tmp_path, airgap(images, {"a": "i", "b": "j"}))
    assert f"`execution_images.j.{key}" in error.message


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("name", "name-S"),
        ("name:1", "name-S:1"),
        ("host:5000/a/name", "host:5000/a/name-S"),
        ("host:5000/a/name:1", "host:5000/a/name-S:1"),
        ("host:5000/name:1@sha256:0", "host:5000/name-S:1@sha256:0"),
        ("name@sha256:0", "name-S@sha256:0"),
    ],
)
def test_the_suffix_goes_before_the_tag(tag: str, expected: str) -> None:
    assert tag_with_suffix(tag, "S") == expected


def test_the_suffix_goes_before_the_last_extension() -> None:
    assert tar_with_suffix("a.tar", "S") == "a-S.tar"
    assert tar_with_suffix("d/a.tar.gz", "S") == "d/a.tar-S.gz"
    assert tar_with_suffix("a", "S") == "a-S"


STEPS = ("s/a", "s/b", "s/c", "t/d", "t/e")
CONFIGS = {"none": (), "lm": (LM,), "bridge": (BRIDGE,), "both": (LM, BRIDGE), "reverse": (BRIDGE, LM)}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("catalogue")
    for step in STEPS:
        write_step(root, step, configs={name: mounting(*overlays) for name, overlays in CONFIGS.items()})
    return root


@examples(60)
@given(
    targets=st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from(sorted(CONFIGS))), min_size=1, max_size=8, unique=True
    ),
    bases=st.fixed_dictionaries({name: st.sampled_from(["base:1", "base:2"]) for name in ("i", "j", "k")}),
    images=st.fixed_dictionaries({step: st.sampled_from(["i", "j", "k"]) for step in STEPS}),
)
def test_grouping_is_what_a_few_independent_lines_say(
    catalogue: Path, targets: list[tuple[str, str]], bases: dict[str, str], images: dict[str, str]
) -> None:
    expected: dict[tuple[str, frozenset[str]], dict[str, Any]] = {}
    for step, config in targets:
        base, overlays = bases[images[step]], CONFIGS[config]
        group = expected.setdefault((base, frozenset(overlays)), {"overlays": overlays, "targets": [], "names": set()})
        group["targets"].append(f"{step}:{config}")
        group["names"].add(images[step])
    specs = [f"{step}:{config}" for step, config in targets]
    found = plan(catalogue, airgap(bases, images), targets=specs)
    assert [(group.name, list(group.targets)) for group in found.groups] == [
        ("-".join(sorted(group["names"])) + "-" + expected_suffix(base, group["overlays"]), group["targets"])
        for (base, _), group in expected.items()
    ]
    assert sorted(target for group in found.groups for target in group.targets) == sorted(specs)


def test_the_document_has_the_manifests_keys_and_no_path_of_this_host(tmp_path: Path) -> None:
    write_step(tmp_path, "a", configs={"tiny": mounting(LM)}, source="import tabulate\n")
    found = plan(tmp_path, airgap({"i": "base:1"}, {"a": "i"}))
    document = found.to_document()
    assert set(document) == {
        "schema_version",
        "workflow",
        "build_stages",
        "output_dir",
        "targets",
        "execution_groups",
        "launcher_image",
        "persistent_assets",
        "step_execution_images",
    }
    assert document["targets"] == [
        {
            "target": "a:tiny",
            "step_py": "src/nemotron/steps/a/step.py",
            "step_toml": "src/nemotron/steps/a/step.toml",
            "config": "src/nemotron/steps/a/config/tiny.yaml",
            "module": "nemotron.steps.a.step",
        }
    ]
    (group,) = document["execution_groups"]
    assert group["selected_image"] == group["tag"] == document["step_execution_images"]["a"]
    assert group["candidate_imports"] == ["tabulate"]
    assert document["persistent_assets"]["baked_repo_overlays"] == group["repo_overlays"]
    text = render_plan(document)
    assert str(tmp_path) not in text
    assert "&id" not in text
    write_plan(document, tmp_path / "out" / "airgap-plan.yaml")
    assert (tmp_path / "out" / "airgap-plan.yaml").read_text() == text


def test_planning_writes_nothing(tmp_path: Path) -> None:
    write_step(tmp_path, "a")
    path = write_airgap(tmp_path, airgap({"i": "base:1"}, {"a": "i"}))
    before = sorted(tmp_path.rglob("*"))
    make_plan(load_config(path))
    assert sorted(tmp_path.rglob("*")) == before
