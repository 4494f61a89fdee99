"""What a rehearsal puts on Python's path: what the job has there, and no checkout of its own accord."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airferry.config import load_config
from airferry.engine.driver import ContainerOptions
from airferry.host import process
from airferry.near.rehearse.stage import HOOK, RehearsalFolders, Scene
from airferry.oci.platform import host
from airferry.plan.planner import make_plan
from catalogues import airgap, mounting, write_airgap, write_step

CURATOR = "https://example.com/org/Curator.git@abc,/opt/Curator"
CODE = "/workspace/Nemotron/src"


class Captured(Exception):
    """Ends a run whose arguments are known."""


class Engine:
    """Takes down what it is asked to run."""

    def __init__(self) -> None:
        self.env: dict[str, str] = {}
        self.request: dict[str, Any] = {}

    def run(self, image: str, argv: Any, *, options: ContainerOptions, streams: process.Streams, **_more: Any) -> None:
        self.env, self.request = dict(options.env), json.loads(streams.stdin or b"{}")
        raise Captured


def asked(
    root: Path, *, source: str = "", config: str = "", image_path: str = "", env: dict[str, str] | None = None
) -> Engine:
    write_step(root, "a", source=f"import nemo_curator\n{source}", configs={"tiny": config or mounting(CURATOR)})
    document = airgap({"i": "base:1"}, {"a": "i"}, rehearsal={"env": env or {}})
    made = make_plan(load_config(write_airgap(root, document)))
    scene = Scene(
        step=made.steps[0],
        group=made.groups[0],
        platform=host(),
        image=None,  # type: ignore[arg-type]
        python="python3",
        choice=made.config.rehearsal.for_target("a", "a:tiny"),
        command=(),
        config="",
        workspace="/workspace/Nemotron",
        path=CODE,
        modules=("nemo_curator",),
    )
    engine = Engine()
    (root / "scratch").mkdir()
    with pytest.raises(Captured):
        RehearsalFolders(root / "scratch", root, scene, image_path).import_modules(engine, "image")  # type: ignore[arg-type]
    return engine


def test_a_checkout_is_not_put_on_the_path(tmp_path: Path) -> None:
    engine = asked(tmp_path)
    assert engine.env["PYTHONPATH"] == f"{HOOK}:{CODE}"
    assert engine.request["path"] == [CODE]
    assert "Curator" not in json.dumps(engine.request)


def test_the_image_the_config_and_the_steps_code_put_what_they_put_in_the_job(tmp_path: Path) -> None:
    assert asked(tmp_path / "1", image_path="/opt/Curator").env["PYTHONPATH"] == f"{HOOK}:{CODE}:/opt/Curator"
    config = mounting(CURATOR).replace("  env:\n", "  env:\n    env_vars: {PYTHONPATH: '/opt/Curator:'}\n")
    by_config = asked(tmp_path / "2", config=config, image_path="/opt/of-the-image")
    assert by_config.env["PYTHONPATH"] == f"{HOOK}:{CODE}:/opt/Curator"
    added = asked(tmp_path / "3", source="import sys\nsys.path.insert(0, '/opt/Curator')\n")
    assert added.request["path"] == [CODE, "/opt/Curator"]


def test_a_variable_of_the_rehearsal_takes_the_place_of_the_images(tmp_path: Path) -> None:
    engine = asked(tmp_path, image_path="/opt/of-the-image", env={"PYTHONPATH": "/opt/Curator"})
    assert engine.env["PYTHONPATH"] == f"{HOOK}:{CODE}:/opt/Curator"
