"""A base is run for what its files leave open, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from airferry.engine.driver import Engine
from airferry.errors import HostError
from airferry.events import Event, Notice
from airferry.host import process
from airferry.near.bases.fetch import BaseImage
from airferry.near.probe.answers import MARK
from airferry.near.probe.ask import BaseProbe, ProbeChoice
from airferry.near.probe.knowledge import Knowledge
from airferry.oci.platform import parse_platform
from airferry.rootfs.modules import ModuleAnswer
from airferry.rootfs.python import StaticallyUnknown
from wheel_factory import make_probe

AMD64 = parse_platform("linux/amd64")
BASE = cast(BaseImage, SimpleNamespace(name="base:1", manifest=SimpleNamespace(digest="sha256:" + "a" * 64)))
OPEN = ModuleAnswer(status="unknown", missing="maybe", doubt="`/x/hook.pth` runs code")
PRESENT = ModuleAnswer(status="present")


class FakeKnowledge:
    """Answers as its files would; without modules, they do not tell of the interpreter."""

    def __init__(self, modules: dict[str, ModuleAnswer] | None) -> None:
        self.modules = modules

    def probe(self, base: BaseImage, platform: object, *, modules: Iterable[str], **rest: object) -> Any:
        if self.modules is None:
            raise StaticallyUnknown("`/usr/bin/python3` is not a Python binary")
        return make_probe(modules={name: self.modules[name] for name in modules})


class FakeEngine:
    """Says that everything it is asked for is there."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def import_base(self, store: Path, digest: str, *, platform: object) -> None:
        assert digest == BASE.manifest.digest

    def run(self, image: str, argv: list[str], *, streams: process.Streams, **rest: object) -> Any:
        stdin = streams.stdin or b""
        self.requests.append(stdin)
        names = [name for name in ("maybe", "here", "torch") if f'"{name}"'.encode() in stdin]
        return SimpleNamespace(stdout=f"{MARK}{make_probe(modules=dict.fromkeys(names, PRESENT)).to_json()}\n".encode())


def no_engine() -> Engine:
    raise HostError("there is neither Buildah nor Podman")


def ask(
    modules: dict[str, ModuleAnswer] | None,
    engine: Callable[[], Any],
    *,
    choice: ProbeChoice = "auto",
    needed: Iterable[str] = ("here", "maybe"),
) -> tuple[dict[str, str], list[str]]:
    events: list[Event] = []
    probe = BaseProbe(cast(Knowledge, FakeKnowledge(modules)), engine, Path("/store"), choice, events.append)
    answer = probe.ask(BASE, AMD64, python=None, modules=["here", "maybe", "torch"], needed=list(needed))
    told = [event.text for event in events if isinstance(event, Notice)]
    return {name: found.status for name, found in answer.modules.items()}, told


def test_files_that_tell_all_open_no_engine() -> None:
    answers, told = ask({"here": PRESENT, "maybe": PRESENT, "torch": OPEN}, no_engine)
    assert answers == {"here": "present", "maybe": "present", "torch": "unknown"}
    assert told == []


def test_only_what_is_needed_and_open_is_asked_for() -> None:
    engine = FakeEngine()
    answers, told = ask({"here": PRESENT, "maybe": OPEN, "torch": OPEN}, lambda: engine)
    assert answers == {"here": "present", "maybe": "present", "torch": "unknown"}
    assert told == ["base `base:1` for linux/amd64 is run to check `maybe`"]
    (request,) = engine.requests
    assert b'"modules": ["maybe"]' in request


@pytest.mark.parametrize(("choice", "notices"), [("auto", 1), ("static", 0)])
def test_what_nobody_can_be_asked_for_stays_open(choice: ProbeChoice, notices: int) -> None:
    answers, told = ask({"here": PRESENT, "maybe": OPEN, "torch": OPEN}, no_engine, choice=choice)
    assert answers["maybe"] == "unknown"
    assert len(told) == notices
    assert all("`maybe`" in text and "neither Buildah nor Podman" in text for text in told)


def test_an_interpreter_that_files_do_not_tell_of_is_run_for_everything() -> None:
    engine = FakeEngine()
    answers, told = ask(None, lambda: engine)
    assert answers == dict.fromkeys(["here", "maybe", "torch"], "present")
    assert told == ["base `base:1` for linux/amd64 must be run to probe it: `/usr/bin/python3` is not a Python binary"]
    with pytest.raises(StaticallyUnknown):
        ask(None, lambda: engine, choice="static")


def test_run_asks_no_files() -> None:
    engine = FakeEngine()
    answers, told = ask(None, lambda: engine, choice="run")
    assert (len(answers), told, len(engine.requests)) == (3, [], 1)
