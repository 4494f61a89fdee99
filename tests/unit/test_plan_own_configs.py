"""A customer's own config: found as Nemotron's loader finds it, named, and laid out so that it works where it goes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry.api import Selection
from airferry.config import load_config
from airferry.config.yaml_edit import replace_texts
from airferry.errors import ConfigurationError
from airferry.near.rehearse import targets as rehearsal
from airferry.plan.models import Plan
from airferry.plan.planner import make_plan, render_plan
from airferry.plan.step_config import StepConfigReader
from catalogues import STEPS, airgap, mounting, write_airgap, write_step

LM = "https://example.com/org/Megatron-LM.git@abc,/opt/megatron-lm"
BRIDGE = "https://example.com/org/Bridge@main,/opt/Bridge"


def lay_out(root: Path, *stages: str, **more: Any) -> Path:
    """Write a catalogue with the step `sft/a` into `root/cat` and a plan of its own into `root/work`."""
    write_step(root / "cat", "sft/a", configs={"tiny": "defaults: default\na: 1\n", "default": mounting(LM)})
    document = airgap({"img": "base:1"}, {"sft/a": "img"}, source={"root": str(root / "cat")}, **more)
    document["workflow"] = {"stages": list(stages)}
    return write_airgap(root / "work", document)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def plan(config: Path, **options: Any) -> Plan:
    return make_plan(load_config(config), **options)


def laid_out(made: Plan) -> dict[str, str]:
    """Return what travels, by name, of files that are not where they were."""
    return {item.name: item.data.decode() for item in made.config_files if item.data is not None}


def read_where_it_goes(made: Plan, into: Path) -> dict[str, Any]:
    """Lay the configs of a plan out as they travel, without the host's own ones, and read the only target's."""
    shutil.copytree(made.source_root, into)
    for item in made.config_files:
        write(into / item.name, (item.data or item.source.read_bytes()).decode())
    (step,) = made.steps
    assert step.config_name is not None
    read = StepConfigReader().read(into / step.config_name)
    return {"overlays": [overlay.target for overlay in read.overlays], "mounts": len(read.mounts)}


def test_an_own_config_is_a_target_like_any_other(tmp_path: Path) -> None:
    config = lay_out(tmp_path, "sft/a:configs/mine.yaml")
    tiny = f"../../cat/{STEPS}/sft/a/config/tiny.yaml"
    text = f"# ours\ndefaults: {tiny}  # theirs\nmodel: '${{auto_mount:git+{BRIDGE}}}'\n"
    write(tmp_path / "work/configs/mine.yaml", text)
    made = plan(config)
    (step,) = made.steps
    assert step.target.spec == "sft/a:mine"
    assert [overlay.target for overlay in made.groups[0].overlays] == ["/opt/megatron-lm", "/opt/Bridge"]
    assert made.groups[0].targets == ("sft/a:mine",)
    document = made.to_document()
    assert document["workflow"]["stages"] == ["sft/a:mine"]
    assert document["targets"][0]["config"] == f"{STEPS}/sft/a/config/mine.yaml"
    assert laid_out(made) == {f"{STEPS}/sft/a/config/mine.yaml": text.replace(tiny, "tiny.yaml")}
    assert read_where_it_goes(made, tmp_path / "far") == {"overlays": ["/opt/megatron-lm", "/opt/Bridge"], "mounts": 1}


def test_files_that_it_inherits_from_outside_travel_with_it(tmp_path: Path) -> None:
    config = lay_out(tmp_path, "sft/a:mine.yaml")
    write(tmp_path / "work/mine.yaml", "defaults:\n- shared/site\n- other/site.yaml\n- _self_\nb: 1\n")
    write(tmp_path / "work/shared/site.yaml", f"defaults: {tmp_path}/cat/{STEPS}/sft/a/config/default.yaml\n")
    write(tmp_path / "work/other/site.yaml", "run: {env: {nodes: 2}}\n")
    made = plan(config)
    below = f"{STEPS}/sft/a/inherited/mine"
    assert laid_out(made) == {
        f"{below}/site.yaml": "defaults: ../../config/default.yaml\n",
        f"{below}/site-2.yaml": "run: {env: {nodes: 2}}\n",
        f"{STEPS}/sft/a/config/mine.yaml": "defaults:\n"
        "- ../inherited/mine/site.yaml\n- ../inherited/mine/site-2.yaml\n- _self_\nb: 1\n",
    }
    assert read_where_it_goes(made, tmp_path / "far")["overlays"] == ["/opt/megatron-lm"]


def test_no_path_of_the_host_enters_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same config, named and inheriting in other ways from other places, gives the same plan and the same files."""
    made: list[Plan] = []
    for place, stage, base in (
        ("one", "sft/a:mine.yaml", f"../cat/{STEPS}/sft/a/config/tiny"),
        ("two/deeper", "sft/a:{work}/configs/mine.yaml", f"../../cat/{STEPS}/sft/a/config/tiny.yaml"),
        ("three", "sft/a:../elsewhere/mine.yml", "{root}/cat/" + f"{STEPS}/sft/a/config/tiny.yaml"),
    ):
        root = tmp_path / place
        config = lay_out(root, "sft/a:tiny")
        text = stage.format(work=root / "work")
        path = Path(os.path.normpath(root / "work" / text.partition(":")[2]))
        write(path, f"defaults: {base.format(root=root)}\nb: 1\n")
        monkeypatch.chdir(root / "work")
        made.append(plan(config, targets=[text]))
    documents = {render_plan(item.to_document()) for item in made}
    assert len(documents) == 1
    assert str(tmp_path) not in documents.pop()
    assert len({str(laid_out(item)) for item in made}) == 1


def test_names_are_unique_and_come_from_file_and_content_alone(tmp_path: Path) -> None:
    config = lay_out(tmp_path, "sft/a:x/tiny.yaml", "sft/a:x/mine.yaml", "sft/a:y/mine.yaml", "sft/a:z/mine.yaml")
    for folder in "xyz":
        for name in ("tiny", "mine"):
            write(tmp_path / f"work/{folder}/{name}.yaml", f"a: {'x' if folder == 'z' else folder}\n")
    specs = [step.target.spec for step in plan(config).steps]
    # x and z say the same, so they are one target; `tiny` is the catalogue's
    assert len(specs) == 3 and all(spec.count("-") == 1 for spec in specs)
    assert [spec.partition("-")[0] for spec in specs] == ["sft/a:tiny", "sft/a:mine", "sft/a:mine"]
    alone = plan(config, targets=[f"sft/a:{tmp_path / 'work' / 'y' / 'mine.yaml'}"])
    assert [step.target.spec for step in alone.steps] == ["sft/a:mine"]


def test_a_path_to_a_config_of_the_step_is_that_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lay_out(tmp_path, "sft/a:tiny", f"sft/a:../cat/{STEPS}/sft/a/config/tiny.yaml")
    assert [step.target.spec for step in plan(config).steps] == ["sft/a:tiny"]
    monkeypatch.chdir(tmp_path / "cat")
    made = plan(config, targets=[f"sft/a:{STEPS}/sft/a/config/default.yaml"])
    assert made.steps[0].target.spec == "sft/a:default" and not laid_out(made)


def test_paths_start_at_the_current_folder_or_at_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lay_out(tmp_path, "sft/a:mine.yaml")
    write(tmp_path / "work/mine.yaml", "a: 1\n")
    write(tmp_path / "here/mine.yaml", mounting(BRIDGE))
    monkeypatch.chdir(tmp_path / "here")
    assert not plan(config).overlays
    assert [overlay.target for overlay in plan(config, targets=["sft/a:mine.yaml"]).overlays] == ["/opt/Bridge"]


def test_dependencies_may_name_own_configs(tmp_path: Path) -> None:
    config = lay_out(tmp_path, "sft/b:tiny", dependencies={"sft/b": ["sft/a:mine.yaml"]})
    write_step(tmp_path / "cat", "sft/b")
    document = yaml.safe_load(config.read_text())
    document["step_execution_images"]["sft/b"] = "img"
    write_airgap(tmp_path / "work", document)
    write(tmp_path / "work/mine.yaml", "a: 1\n")
    assert [step.target.spec for step in plan(config).steps] == ["sft/a:mine", "sft/b:tiny"]


def test_a_link_inherits_from_where_it_lies(tmp_path: Path) -> None:
    """As for Nemotron's loader, which joins the path as given."""
    config = lay_out(tmp_path, "sft/a:mine.yaml")
    write(tmp_path / "store/1234", "defaults: base.yaml\n")
    (tmp_path / "work/mine.yaml").symlink_to(tmp_path / "store/1234")
    write(tmp_path / "work/base.yaml", mounting(BRIDGE))
    assert [overlay.target for overlay in plan(config).overlays] == ["/opt/Bridge"]


@pytest.mark.parametrize(
    ("files", "said", "hint"),
    [
        (
            {},
            "airgap.yaml:3: `workflow.stages[0]`: config `mine.yaml` for step `sft/a`",
            "close matches: `tiny`",
        ),
        (
            {"mine.yaml": "a: 1\ndefaults: bsae\n", "base.yaml": "a: 1\n"},
            "mine.yaml:2: `defaults`: the config inherits from `bsae`, and",
            "did you mean `base.yaml`?",
        ),
        (
            {"mine.yaml": "defaults: base\n", "base.yaml": "x: 1\ndefaults: [mine.yaml]\n"},
            "mine.yaml:1: `defaults`: circular inheritance between configs",
            "remove one",
        ),
        ({"mine.yaml": "defaults: base\n", "base.yaml": "a: [1\nb: 2\n"}, "base.yaml:2: not valid YAML", "brackets"),
        ({"mine.yaml": "defaults: base\n", "base.yaml": "- 1\n"}, "base.yaml:1: expected a mapping", ""),
        (
            {"mine.yaml": "defaults: base\n", "base.yaml": "a: 1\nhub: {token: hf_" + "a" * 30 + "}\n"},
            "base.yaml:2: `hub.token`: looks like a secret",
            "${oc.env:NAME}",
        ),
        ({"mine.yaml": "a: " + "x" * (4 << 20)}, "mine.yaml:1: larger than 4 MiB", "refer to them by path"),
        (
            {
                "mine.yaml": "defaults: [b, b]\n",
                **{f"{x}.yaml": f"defaults: [{y}, {y}]\n" for x, y in zip("bcdefgh", "cdefghi", strict=True)},
                "i.yaml": "a: 1\n",
            },
            "more than 200 files",
            "",
        ),
    ],
    ids=["missing", "missing default", "circle", "not YAML", "a list", "a secret", "too big", "too many"],
)
def test_what_is_wrong_is_told_with_file_and_line(files: dict[str, str], said: str, hint: str, tmp_path: Path) -> None:
    config = lay_out(tmp_path, "sft/a:mine.yaml")
    for name, text in files.items():
        write(tmp_path / "work" / name, text)
    with pytest.raises(ConfigurationError) as caught:
        plan(config)
    assert said in caught.value.message and caught.value.exit_code == 3
    assert hint in (caught.value.hint or "")


def test_a_path_from_the_wrong_folder_is_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lay_out(tmp_path, "sft/a:tiny")
    write(tmp_path / "cat/deploy/mine.yaml", "a: 1\n")
    monkeypatch.chdir(tmp_path)
    for text, hint in (
        ("sft/a:deploy/mine.yaml", f"write `sft/a:{tmp_path}/cat/deploy/mine.yaml`"),
        ("sft/a:tiny.yaml", "the step's own config of that name is `sft/a:tiny`"),
        ("sft/a:work", "refer to your own config by its path"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            plan(config, targets=[text])
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# é\ndefaults: a  # why\nb: 1\n", "# é\ndefaults: new.yaml  # why\nb: 1\n"),
        ("\ufeffdefaults: 'a'\n", "\ufeffdefaults: new.yaml\n"),
        ('b: ü\r\ndefaults: [x, "a"]\r\n', "b: ü\r\ndefaults: [x, new.yaml]\r\n"),
        ("defaults: >-\n  a\nb: 1\n", None),
        ("x: &d a\ndefaults: *d\n", None),
        ("base: &b {defaults: a}\n<<: *b\n", None),
    ],
)
def test_texts_are_replaced_and_all_else_stays(text: str, expected: str | None) -> None:
    key = ("defaults", 1) if "[x" in text else ("defaults",)
    found = replace_texts(text.encode(), {key: "new.yaml"}, Path("a.yaml")).decode()
    assert expected is None or found == expected
    wanted = yaml.safe_load(text)
    wanted["defaults"] = ["x", "new.yaml"] if "[x" in text else "new.yaml"
    assert yaml.safe_load(found) == wanted


def test_a_rehearsal_takes_an_own_config_by_its_path_or_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lay_out(tmp_path, "sft/a:mine.yaml", "sft/a:tiny")
    write(tmp_path / "work/mine.yaml", "a: 1\n")
    write(tmp_path / "here/mine.yaml", "a: 2\n")
    monkeypatch.chdir(tmp_path / "here")
    for name, folder in (("sft/a:mine.yaml", "here"), ("sft/a:mine", "work")):
        first = next(rehearsal._plans(Selection(config=config, targets=(name,)), (name,)))
        (target,) = (step.target for step in first.steps if step.target.path is not None)
        assert (target.spec, target.path) == ("sft/a:mine", tmp_path / folder / "mine.yaml")
        assert "sft/a:mine" in first.groups[0].targets
