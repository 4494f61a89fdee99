"""`doctor` asks what a build would ask: registries by way of mirrors, Git hosts, the package index."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from airferry.api import Selection, doctor
from airferry.config import load_config
from airferry.engine.preflight import Check
from airferry.errors import ConfigurationError
from airferry.events import Event, Notice, Warned
from airferry.host.canonical import canonical_json
from airferry.near.reach import ask_all
from airferry.near.wheels.pip import Pip
from airferry.oci.documents import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    PlatformDocument,
)
from airferry.plan.planner import make_plan
from catalogues import airgap, mounting, write_airgap, write_step
from scripted_registry import ScriptedRegistry, sha256

COMMIT = "0123456789" * 4
CHILD = Descriptor(
    media_type=IMAGE_MANIFEST,
    digest=sha256(b""),
    size=0,
    platform=PlatformDocument(os="linux", architecture="amd64"),
)
INDEX = canonical_json(Index(schema_version=2, media_type=IMAGE_INDEX, manifests=[CHILD]))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "REGISTRIES_CONFIG_PATH", "CONTAINERS_REGISTRIES_CONF", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Pip, "ask_index", lambda self, timeout_s: "answers")
    return tmp_path


def asked(home: Path, document: dict[str, object], events: list[Event] | None = None) -> dict[str, Check]:
    plan = make_plan(load_config(write_airgap(home, document)))
    return {check.name: check for check in ask_all(plan, emit=(events if events is not None else []).append)}


def test_each_question_has_a_line_and_each_failure_a_way_out(registry: ScriptedRegistry, home: Path) -> None:
    conf = home / "home/.config/containers/registries.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(
        f'[[registry]]\nprefix = "nvcr.invalid"\nlocation = "{registry.address}/cache"\ninsecure = true\n'
        '[[registry]]\nlocation = "docker.io"\nblocked = true\n'
    )
    (home / "home/.gitconfig").write_text(f'[url "{home}/"]\n  insteadOf = https://git.invalid/\n')
    repository = home / "repository"
    subprocess.run(["git", "init", "-q", "-b", "main", repository], check=True)
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", repository, *author, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    for target in ("1", sha256(INDEX)):
        registry.manifests[f"cache/nvidia/nemo@{target}"] = (INDEX, IMAGE_INDEX)
    configs = {
        f"s/{number}": {"tiny": mounting(f"https://git.invalid/{overlay},/opt/{number}")}
        for number, overlay in enumerate(
            ("repository@main", f"repository@{COMMIT}", "repository@mian", f"absent@{COMMIT}")
        )
    }
    for step_id, config in configs.items():
        write_step(home, step_id, configs=config)
    images = {"one": "nvcr.invalid/nvidia/nemo:1", "two": f"{registry.address}/a/b:1"}
    document = airgap(
        images, {step_id: "one" if step_id == "s/0" else "two" for step_id in configs}, platforms=["linux/amd64"]
    )
    events: list[Event] = []
    checks = asked(home, document, events)
    assert list(checks) == [
        "source of the launcher",
        f"base {registry.address}/a/b:1",
        "base nvcr.invalid/nvidia/nemo:1",
        "base python:3.12-slim",
        *(name for name in checks if name.startswith("Git ")),
        "package index",
    ]
    assert len(checks) == 9
    assert {name for name, check in checks.items() if check.status == "ok"} == {
        "base nvcr.invalid/nvidia/nemo:1",
        "Git https://git.invalid/repository@main",
        f"Git https://git.invalid/repository@{COMMIT}",
        "package index",
    }
    assert all(check.hint for check in checks.values() if check.status == "fail")
    assert (
        checks["base nvcr.invalid/nvidia/nemo:1"].detail
        == f"{sha256(INDEX)} from `{registry.address}/cache/nvidia/nemo`"
    )
    assert f"{conf}:7: pulls from `docker.io/library/python` are blocked" in checks["base python:3.12-slim"].detail
    assert checks[f"base {registry.address}/a/b:1"].detail == "there is no such image"
    assert "`main`" in str(checks["Git https://git.invalid/repository@mian"].hint)
    assert str(home / "absent") in checks[f"Git https://git.invalid/absent@{COMMIT}"].detail
    assert len([event for event in events if isinstance(event, Warned)]) == 1
    assert not [event for event in events if isinstance(event, Notice)]


def test_a_base_is_fine_only_if_it_has_each_platform(registry: ScriptedRegistry, home: Path) -> None:
    """An index says it, of a single image its config does; a base on this host is looked at as well."""
    address = registry.address
    config = b'{"architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
    registry.blobs[sha256(config)] = config
    described = Descriptor(media_type=IMAGE_CONFIG, digest=sha256(config), size=len(config))
    single = canonical_json(Manifest(schema_version=2, media_type=IMAGE_MANIFEST, config=described, layers=[]))
    for name, data, media_type in (("index", INDEX, IMAGE_INDEX), ("single", single, IMAGE_MANIFEST)):
        for target in ("1", sha256(data)):
            registry.manifests[f"team/{name}@{target}"] = (data, media_type)
    images = {"one": f"{address}/team/index:1", "two": f"{address}/team/single:1", "three": "oci:nowhere:x"}
    for name in images:
        write_step(home, f"s/{name}")
    document = airgap(
        images, {f"s/{name}": name for name in images}, platforms=["linux/amd64", "linux/arm64"], launcher_image=False
    )
    checks = asked(home, document)
    failing = [checks[f"base {base}"] for base in images.values()]
    assert [check.status for check in failing] == ["fail"] * 3
    assert "has no image for `linux/arm64`" in failing[0].detail and failing[0].hint == "it has `linux/amd64`"
    assert "`linux/arm64`" in failing[1].detail and "linux/amd64" in failing[1].detail
    assert "does not exist" in failing[2].detail
    document["platforms"] = ["linux/arm64"]
    assert asked(home, document)[f"base {address}/team/single:1"].status == "ok"


def test_a_catalogue_that_is_not_found_is_one_failed_check_of_the_host(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr("airferry.near.doctor.checks", lambda **_: [Check("git", "ok", "git 2", "")])
    config = write_airgap(home, airgap({"one": "a.invalid/b"}, {"s/one": "one"}))
    report = doctor(Selection(config))
    assert [(check.name, check.status) for check in report.checks] == [("git", "ok"), ("catalogue", "fail")]
    assert report.checks[1].detail.startswith("no steps folder")
    assert "--source DIR" in report.checks[1].hint and not report.planned
    told = doctor(Selection(config, source=home / "absent")).checks[1].detail
    assert told == f"`{home / 'absent'}` has no steps folder `src/nemotron/steps`"
    config.write_text("workflow: 1\n")
    with pytest.raises(ConfigurationError, match="`workflow`: expected a mapping"):
        doctor(Selection(config))
