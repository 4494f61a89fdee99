"""Candidates: what steps import, read from their source."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from airferry.config import load_config
from airferry.errors import ConfigurationError
from airferry.plan.catalogue import Catalogue, find_step, parse_target
from airferry.plan.code.imports import ImportScanner
from airferry.plan.code.modules import CORE_MODULES, WELL_KNOWN, distribution_for, is_core
from airferry.plan.planner import make_plan
from catalogues import STEPS, airgap, mounting, write_airgap, write_step


def candidates(root: Path, step: str = "a") -> dict[str, tuple[str, str]]:
    catalogue = Catalogue(root, root / STEPS, "nemotron.steps")
    found = ImportScanner(catalogue).candidates(find_step(catalogue, parse_target(step)))
    return {item.module: (item.origin, item.place.removeprefix(f"{STEPS}/")) for item in found}


def write_module(root: Path, name: str, text: str) -> None:
    path = root / "src" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_steps_own_imports_count_at_any_depth(tmp_path: Path) -> None:
    write_step(
        tmp_path,
        "a",
        source="""from __future__ import annotations
import os, yaml
from typing import TYPE_CHECKING
import ruamel.yaml
from google.protobuf import message
from google import protobuf, auth
if TYPE_CHECKING:
    import never
else:
    import otherwise
def main():
    import torch.nn as nn
    try:
        from tabulate import tabulate
    except ImportError:
        class Inner:
            import fallback
""",
    )
    assert candidates(tmp_path) == {
        "yaml": ("step", "a/step.py:2"),
        "ruamel.yaml": ("step", "a/step.py:4"),
        "google.protobuf": ("step", "a/step.py:5"),
        "google.auth": ("step", "a/step.py:6"),
        "otherwise": ("step", "a/step.py:10"),
        "torch.nn": ("step", "a/step.py:12"),
        "tabulate": ("step", "a/step.py:14"),
        "fallback": ("step", "a/step.py:17"),
    }


def test_files_of_the_step_count_like_the_step_itself(tmp_path: Path) -> None:
    write_step(
        tmp_path,
        "a",
        source="import helper\nfrom .inner import deep\nfrom nemotron.steps.a.named import x\n",
        files={
            "helper.py": "def f():\n    import tabulate\n",
            "inner/__init__.py": "",
            "inner/deep.py": "from .. import sibling\n",
            "sibling.py": "import xxhash\n",
            "named.py": "import orjson\n",
            "unused.py": "import never\n",
        },
    )
    assert candidates(tmp_path) == {
        "tabulate": ("step", "a/helper.py:2"),
        "xxhash": ("step", "a/sibling.py:1"),
        "orjson": ("step", "a/named.py:1"),
    }


def test_of_the_catalogue_only_what_always_runs_counts(tmp_path: Path) -> None:
    write_step(tmp_path, "a", source="def main():\n    from nemotron.kit import run\n    from runspec import loader\n")
    write_module(tmp_path, "nemotron/__init__.py", "import packed\n")
    write_module(
        tmp_path,
        "nemotron/kit.py",
        """import sys
import omegaconf
from . import deeper
import yaml, late
if sys.platform == "linux":
    import conditional
try:
    import optional
except ImportError:
    import instead
else:
    import after_optional
try:
    import guarded
except ValueError:
    pass
finally:
    import at_last
class Settings:
    import in_class
def main():
    import late, lazy
    import nemotron.never
""",
    )
    write_module(tmp_path, "nemotron/deeper.py", "import pydantic\n")
    write_module(tmp_path, "nemotron/never.py", "import unreachable\n")
    write_module(tmp_path, "runspec/__init__.py", "from runspec.other import *\n")
    write_module(tmp_path, "runspec/other.py", "import runspec\nimport rich.console\n")
    write_module(tmp_path, "runspec/loader.py", "with open('x') as f:\n    import fsspec\nfor _ in (): import looped\n")
    found = candidates(tmp_path)
    by_origin = {
        origin: sorted(module for module, (kind, _) in found.items() if kind == origin)
        for origin in ("catalogue", "reported", "step")
    }
    assert by_origin == {
        "catalogue": sorted(
            [
                "packed",
                "omegaconf",
                "yaml",
                "late",
                "guarded",
                "at_last",
                "in_class",
                "pydantic",
                "rich.console",
                "fsspec",
            ]
        ),
        "reported": sorted(["conditional", "optional", "instead", "after_optional", "lazy", "looped"]),
        "step": [],
    }
    assert found["yaml"][1] == "src/nemotron/kit.py:4"


def test_a_step_that_is_no_python_is_refused_at_its_line(tmp_path: Path) -> None:
    write_step(tmp_path, "a", source="import os\ndef (:\n")
    with pytest.raises(ConfigurationError, match=r"step\.py:2: not valid Python"):
        candidates(tmp_path)


def test_the_strongest_origin_of_a_group_counts(tmp_path: Path) -> None:
    write_step(tmp_path, "a", source="import nemotron.kit\n")
    write_step(tmp_path, "b", source="\nimport both, own\n")
    write_module(tmp_path, "nemotron/kit.py", "import both\nimport named\n")
    image = {"base_image": "base:1", "required_imports": ["named"]}
    document = airgap({"i": image}, {"a": "i", "b": "i"})
    (group,) = make_plan(load_config(write_airgap(tmp_path, document))).groups
    places = {item.module: (item.origin, item.place) for item in group.candidates}
    assert places["both"] == ("step", f"{STEPS}/b/step.py:2")
    assert places["own"][0] == "step"
    origin, place = places["named"]
    assert origin == "required" and place.startswith("airgap.yaml:")


def test_names_are_never_guessed() -> None:
    lock = {"left-pad", "pyyaml", "my-module"}
    assert distribution_for("yaml", lock=lock, requirements={}) == "pyyaml"
    assert distribution_for("PIL.Image", lock=None, requirements={}) == "pillow"
    assert distribution_for("left_pad.sub", lock=lock, requirements={}) == "left-pad"
    assert distribution_for("google.protobuf.message", lock=None, requirements={}) == "protobuf"
    assert distribution_for("google", lock=None, requirements={}) is None
    assert distribution_for("unheard_of", lock=lock, requirements={}) is None
    mine = {"yaml": "my-yaml==1.0", "unheard_of": "heard>=2"}
    assert distribution_for("yaml.reader", lock=lock, requirements=mine) == "my-yaml==1.0"
    assert distribution_for("unheard_of", lock=lock, requirements=mine) == "heard>=2"


def test_what_belongs_to_the_base_is_in_no_map() -> None:
    assert is_core("torch.nn") and is_core("nemo") and not is_core("nemo_curator")
    assert not {module.partition(".")[0] for module in WELL_KNOWN} & CORE_MODULES
    assert not set(WELL_KNOWN.values()) & CORE_MODULES


def test_what_two_hundred_steps_share_is_read_once_by_each_analysis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(tmp_path, "nemotron/__init__.py", "")
    write_module(tmp_path, "nemotron/kit.py", "import yaml\n" + "def f():\n    import lazy\n" * 200)
    images = {f"image{n}": f"base:{n}" for n in range(8)}
    steps: dict[str, str] = {}
    for number in range(200):
        step = f"family{number % 13}/step{number}"
        overlay = f"https://example.com/repo{number % 3}.git@v1,/opt/repo"
        write_step(
            tmp_path,
            step,
            configs={"default": mounting(overlay), "tiny": "defaults: default.yaml\nrun: {env: {nodes: 1}}\n"},
            source=f"from nemotron.kit import f\nimport module{number}\n",
        )
        steps[step] = f"image{number % 8}"
    config = load_config(write_airgap(tmp_path, airgap(images, steps)))
    shared: list[object] = []
    parse = ast.parse

    def counting(source: Any, *arguments: Any, **named: Any) -> Any:
        if b"import lazy" in (source.encode() if isinstance(source, str) else source):
            shared.append(source)
        return parse(source, *arguments, **named)

    monkeypatch.setattr(ast, "parse", counting)
    found = make_plan(config)
    assert len(found.steps) == 200 and len(found.groups) == 24
    assert 1 <= len(shared) <= 3
