"""A baked checkout satisfies an import only if something leads to it; otherwise that is said, with what to write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airferry.config import load_config
from airferry.errors import BuildError
from airferry.near.bases.fetch import BaseImage
from airferry.near.lock.job_modules import (
    JobModules,
    RefusedImports,
    job_modules,
    path_inputs,
    refuse_unreached,
    steps_of,
)
from airferry.near.probe.answers import ProbeResult
from airferry.near.probe.static import static_probe
from airferry.oci.documents import IMAGE_MANIFEST, ImageConfig, descriptor_of
from airferry.oci.platform import parse_platform
from airferry.plan.models import GroupPlan, Plan
from airferry.plan.planner import make_plan
from catalogues import airgap, mounting, write_airgap, write_step
from layer_tars import Item, folder, view_of

AMD64 = parse_platform("linux/amd64")
CURATOR = "https://example.com/org/Curator.git@abc,/opt/Curator"
SITE = "usr/local/lib/python3.12/site-packages"
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + (62).to_bytes(2, "little") + bytes(3000)
PYTHON = [
    Item(
        "usr/local/bin/python3.12", value=ELF + b"\x003.12.4\0PyInit_posix\0PyInit__struct\0PyInit_time\0", mode=0o755
    ),
    Item("usr/local/bin/python", value=ELF + b"\x003.12.4\0PyInit_posix\0PyInit__struct\0PyInit_time\0", mode=0o755),
    Item("usr/local/lib/python3.12/os.py", value="import posix\n"),
    Item("usr/local/lib/python3.12/site.py", value="# site-packages\n"),
    folder("usr/local/lib/python3.12/lib-dynload"),
    Item("lib/x86_64-linux-gnu/libc.so.6", value=ELF + b"\0GNU C Library stable release version 2.39.\0"),
    folder(SITE),
]


class Side:
    """A catalogue with a step that imports what only a checkout holds, and a base."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = root / "checkout"
        for name in ("nemo_curator/__init__.py", "nemo_curator/pipeline/__init__.py"):
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        self.catalogue = root / "catalogue"

    def step(self, name: str = "a", *, source: str = "", config: str | None = None) -> None:
        imports = "import yaml\nfrom nemo_curator.pipeline import Pipeline\nimport nemo_curator\n"
        write_step(self.catalogue, name, source=imports + source, configs={"tiny": config or mounting(CURATOR)})

    def plan(self, *, steps: Iterable[str] = ("a",), **image: Any) -> Plan:
        document = airgap({"curator": {"base_image": "base:1", **image}}, dict.fromkeys(steps, "curator"))
        document["platforms"] = ["linux/amd64"]
        return make_plan(load_config(write_airgap(self.catalogue, document)))

    def base(self, *, env: Mapping[str, str] | None = None) -> BaseImage:
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": [f"{key}={value}" for key, value in (env or {}).items()]},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
        data = json.dumps(document).encode()
        manifest = descriptor_of(data, IMAGE_MANIFEST)
        return BaseImage(
            "base:1", None, AMD64, manifest.digest, manifest, ImageConfig.model_validate(document), data, ()
        )

    def ask(self, plan: Plan, *items: Item, env: Mapping[str, str] | None = None) -> tuple[JobModules, RefusedImports]:
        (group,) = plan.groups
        base = self.base(env=env)
        trees = {overlay.target: self.tree for overlay in group.overlays}
        yaml_there = Item(f"{SITE}/yaml.py")

        def probe(modules: Sequence[str], variables: Mapping[str, str], mounts: Mapping[str, Path]) -> ProbeResult:
            view = view_of([*PYTHON, yaml_there, *items]).mounted(mounts)
            return static_probe(view, base.config, modules=modules, python=None, platform=AMD64, variables=variables)

        found = job_modules(group, steps_of(plan, group), base=base, trees=trees, probe=probe)
        return found, RefusedImports(group, base, found.unreached)


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path)


def refusal(refused: RefusedImports) -> BuildError:
    with pytest.raises(BuildError) as caught:
        refuse_unreached([refused], lambda overlay: f"place of {overlay.repo}")
    return caught.value


def statuses(found: JobModules) -> set[str]:
    return {found.probe.modules[name].status for name in ("nemo_curator", "nemo_curator.pipeline")}


def test_a_checkout_that_nothing_leads_to_is_told_with_the_line_to_write(side: Side) -> None:
    side.step()
    _found, refused = side.ask(side.plan())
    error = refusal(refused)
    assert error.message.splitlines()[1].strip() == (
        "src/nemotron/steps/a/step.py:2: `nemo_curator.pipeline` and 1 other module: only in the checkout at "
        f"`/opt/Curator` (place of Curator), image `{refused.name}`"
    )
    assert error.hint == "write below `execution_images.curator`: `env: {PYTHONPATH: /opt/Curator}`"


def test_what_the_hint_says_helps(side: Side) -> None:
    side.step()
    found, refused = side.ask(side.plan(env={"PYTHONPATH": "/opt/Curator"}))
    assert statuses(found) == {"present"}
    refuse_unreached([refused], lambda overlay: "")


def test_a_base_whose_own_files_lead_there_needs_nothing(side: Side) -> None:
    side.step()
    found, _refused = side.ask(side.plan(), Item(f"{SITE}/curator.pth", value="/opt/Curator\n"))
    assert (statuses(found), found.unreached) == ({"present"}, ())


def test_a_hook_that_is_not_understood_may_lead_there_so_that_nothing_is_claimed(side: Side) -> None:
    side.step()
    hook = [
        Item(f"{SITE}/hook.pth", value="import strange\n"),
        Item(f"{SITE}/strange.py", value="import sys\nsys.path.extend(places())\n"),
    ]
    found, _refused = side.ask(side.plan(), *hook)
    assert (statuses(found), found.unreached) == ({"unknown"}, ())


def test_an_editable_install_of_the_base_leads_there(side: Side) -> None:
    side.step()
    finder = "MAPPING: dict[str, str] = {'nemo_curator': '/opt/Curator/nemo_curator'}\nNAMESPACES = {}\n"
    line = "import __editable___nemo_curator_1_0_finder; __editable___nemo_curator_1_0_finder.install()\n"
    found, _refused = side.ask(
        side.plan(),
        Item(f"{SITE}/__editable___nemo_curator_1_0_finder.py", value=finder),
        Item(f"{SITE}/__editable__.nemo_curator-1.0.pth", value=line),
    )
    assert (statuses(found), found.unreached) == ({"present"}, ())


def test_python_path_of_the_base_is_kept_and_named_in_the_hint(side: Side) -> None:
    side.step()
    found, _refused = side.ask(side.plan(), env={"PYTHONPATH": "/opt/Curator"})
    assert found.unreached == ()
    _found, refused = side.ask(side.plan(), env={"PYTHONPATH": "/opt/other"})
    assert "`env: {PYTHONPATH: '/opt/Curator:${PYTHONPATH}'}`" in (refusal(refused).hint or "")
    found, _refused = side.ask(
        side.plan(env={"PYTHONPATH": "/opt/Curator:${PYTHONPATH}"}), env={"PYTHONPATH": "/opt/o"}
    )
    assert found.unreached == ()


def test_the_hint_keeps_what_env_holds_already(side: Side) -> None:
    side.step()
    _found, refused = side.ask(side.plan(env={"A": "1", "PYTHONPATH": "/opt/x"}))
    assert "`env: {A: '1', PYTHONPATH: '/opt/Curator:/opt/x'}`" in (refusal(refused).hint or "")


def test_python_path_of_a_config_takes_the_place_of_the_images(side: Side) -> None:
    config = mounting(CURATOR).replace("  env:\n", "  env:\n    env_vars: {PYTHONPATH: /opt/elsewhere}\n")
    side.step(config=config)
    _found, refused = side.ask(side.plan(env={"PYTHONPATH": "/opt/Curator"}))
    assert refusal(refused).hint == (
        "put `/opt/Curator:` in front of the `PYTHONPATH` that src/nemotron/steps/a/config/tiny.yaml:4 sets"
    )


def test_python_path_of_a_config_leads_there(side: Side) -> None:
    config = mounting(CURATOR).replace("  env:\n", "  env:\n    env_vars: {PYTHONPATH: /opt/Curator}\n")
    side.step(config=config)
    found, _refused = side.ask(side.plan())
    assert (statuses(found), found.unreached) == ({"present"}, ())


def test_each_step_is_judged_by_its_own_path(side: Side) -> None:
    config = mounting(CURATOR).replace("  env:\n", "  env:\n    env_vars: {PYTHONPATH: /opt/Curator}\n")
    side.step("a", config=config)
    side.step("b")
    found, _refused = side.ask(side.plan(steps=("a", "b")))
    assert {item.step.target.spec for item in found.unreached} == {"b:tiny"}
    assert path_inputs(side.plan(steps=("a", "b")).steps) == [["/opt/Curator", False]]


def test_code_of_the_step_leads_there(side: Side) -> None:
    side.step(source="import sys\nsys.path.insert(0, '/opt/Curator')\n")
    found, _refused = side.ask(side.plan())
    assert (statuses(found), found.unreached, found.notes) == ({"present"}, (), ())


def test_code_that_only_runs_to_tell_is_noted_and_stops_nothing(side: Side) -> None:
    side.step(source="import sys\nsys.path.insert(0, somewhere())\n")
    found, _refused = side.ask(side.plan())
    assert (statuses(found), found.unreached) == ({"present"}, ())
    assert any(
        "whether src/nemotron/steps/a/step.py:5 puts it on Python's path is unknown" in note for note in found.notes
    )


def test_an_image_that_names_the_distribution_wants_that(side: Side) -> None:
    side.step()
    found, _refused = side.ask(side.plan(requirements={"nemo_curator": "nemo-curator==1.2"}))
    assert (statuses(found), found.unreached) == ({"missing"}, ())


def test_what_a_module_of_the_base_imports_from_a_checkout_counts_too(side: Side) -> None:
    write_step(side.catalogue, "a", source="import tool\n", configs={"tiny": mounting(CURATOR)})
    found, refused = side.ask(side.plan(), Item(f"{SITE}/tool.py", value="import nemo_curator\n"))
    assert [item.candidate.module for item in found.unreached] == ["tool"]
    assert "`env: {PYTHONPATH: /opt/Curator}`" in (refusal(refused).hint or "")


@pytest.mark.parametrize("part", ["src", "python", "lib"])
def test_a_package_below_the_root_is_led_to_where_it_begins(side: Side, part: str) -> None:
    (side.tree / part).mkdir()
    (side.tree / "nemo_curator").rename(side.tree / part / "nemo_curator")
    side.step()
    _found, refused = side.ask(side.plan())
    assert f"`env: {{PYTHONPATH: /opt/Curator/{part}}}`" in (refusal(refused).hint or "")


OWN_COPY = (Item(f"{SITE}/nemo_curator/__init__.py"), Item(f"{SITE}/nemo_curator/pipeline.py"))


def test_a_checkout_that_jobs_pass_over_is_noted(side: Side) -> None:
    side.step()
    for more in ((), (Item(f"{SITE}/curator.pth", value="/opt/Curator\n"),)):
        found, _refused = side.ask(side.plan(), *OWN_COPY, *more)
        (note,) = found.notes
        assert note == (
            "src/nemotron/steps/a/step.py:3: `nemo_curator` comes from the base and not from the checkout at "
            "`/opt/Curator`; to use the checkout, put `/opt/Curator` on `PYTHONPATH` (`env:` of the image)"
        )


def test_what_that_note_says_helps(side: Side) -> None:
    side.step()
    assert side.ask(side.plan(env={"PYTHONPATH": "/opt/Curator/"}), *OWN_COPY)[0].notes == ()
    assert side.ask(side.plan(), Item(f"{SITE}/curator.pth", value="/opt/Curator\n"))[0].notes == ()


def test_all_images_are_told_at_once(side: Side) -> None:
    side.step()
    _found, refused = side.ask(side.plan())
    image = refused.image
    assert isinstance(image, GroupPlan)
    with pytest.raises(BuildError) as caught:
        other = replace(refused, image=replace(image, name="other-1", image_names=("other",)))
        refuse_unreached([refused, other, refused], lambda overlay: "")
    assert len(caught.value.message.splitlines()) == 3
    assert "execution_images.curator" in (caught.value.hint or "") and "execution_images.other" in (
        caught.value.hint or ""
    )
