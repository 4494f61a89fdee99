"""What a plain build takes over of earlier rehearsals, and how it says what no longer fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airferry.errors import ConfigurationError
from airferry.events import Event, StageFinished
from airferry.host.journal import Journal
from airferry.near.assemble import context
from airferry.near.rehearse import run as rehearsing
from airferry.near.rehearse.run import Earlier, Rehearsal

FOUND = {"ending": {}, "attempts": [], "missing": [], "output": ""}


class Yard:
    """Two targets in one image, and a journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "state.yaml")
        self.said: list[Event] = []
        session: Any = SimpleNamespace(emit=self.said.append, cache=folder)
        plan: Any = SimpleNamespace(output_dir=folder, source_root=folder)
        self.rehearsal = Rehearsal(session, plan, None, store=None, journal=self.journal)  # type: ignore[arg-type]
        self.scenes = [scene("one"), scene("two")]
        self.rehearsal._scenes = lambda _images, _targets: self.scenes  # type: ignore[method-assign,assignment]

    def tried(self, *scenes: Any, code: str = "sha256:code") -> None:
        for item in scenes:
            self.journal.record(item.stage, self.rehearsal._inputs(item, code), FOUND)

    def earlier(self) -> Earlier | None:
        return self.rehearsal.earlier({})


def scene(name: str, **changed: object) -> Any:
    return SimpleNamespace(
        stage=f"rehearse {name}:tiny linux/amd64",
        image=SimpleNamespace(manifest=SimpleNamespace(digest="sha256:image")),
        command=("python", "step.py"),
        choice=SimpleNamespace(env=changed.get("env", {})),
        step=SimpleNamespace(job_path=None),
        modules=(),
        limit_s=60.0,
    )


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    monkeypatch.setattr(context, "plan_configs", lambda *_: {})
    monkeypatch.setattr(context, "tracked_digest", lambda *_, **__: "sha256:code")
    monkeypatch.setattr(rehearsing, "asdict", lambda _: {})
    monkeypatch.setattr(rehearsing, "_judge", lambda scene, _note, **_: SimpleNamespace(findings=scene.choice.env))
    return Yard(tmp_path)


def test_without_a_rehearsal_there_is_nothing_to_say(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "tracked_digest", lambda *_, **__: pytest.fail("read all code for nothing"))
    assert yard.earlier() is None


def test_what_was_tried_of_the_same_image_code_and_command_is_kept(yard: Yard) -> None:
    yard.tried(*yard.scenes)
    found = yard.earlier()
    assert found is not None and found.trouble == ""
    assert len(found.report.results) == 2
    assert not any(isinstance(item, StageFinished) for item in yard.said), "nothing was rehearsed"


def test_what_changed_or_was_never_tried_is_named(yard: Yard) -> None:
    yard.tried(yard.scenes[0])
    found = yard.earlier()
    assert found is not None and found.changed == ()
    assert found.trouble == "never run: `rehearse two:tiny linux/amd64`"
    yard.tried(yard.scenes[1], code="sha256:before")
    found = yard.earlier()
    assert found is not None and found.never == ()
    assert found.trouble == "image, code or command changed since `rehearse two:tiny linux/amd64`"


def test_findings_are_not_sealed_unasked(yard: Yard) -> None:
    yard.scenes = [scene("one", env={"wrong": "1"})]
    yard.tried(*yard.scenes)
    found = yard.earlier()
    assert found is not None and found.trouble == "it has 1 finding"


def test_outside_of_a_repository_nothing_tells_if_the_code_is_the_same(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untracked(*_: object, **__: object) -> str:
        raise ConfigurationError("no repository")

    monkeypatch.setattr(context, "tracked_digest", untracked)
    assert yard.earlier() is None
    (yard.folder / "airgap-rehearsal.json").write_text("{}")
    found = yard.earlier()
    assert found is not None and len(found.changed) == 2
