"""What can be known early is told early, all of it at once, at its place in the user's files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from airferry.api import Selection, lock, plan
from airferry.config import ArchiveBase, LayoutBase, load_config
from airferry.errors import (
    AirferryError,
    BuildError,
    ConfigurationError,
    HostError,
    IntegrityError,
    RegistryError,
    combined,
)
from airferry.events import silent
from airferry.near.bases.fetch import BaseCache
from airferry.near.failures import base_place, map_all, requirement_places
from airferry.near.lock import resolve
from airferry.near.lock.additions import resolve_additions
from airferry.near.lock.closure import WheelSupply
from airferry.near.lock.job_modules import JobModules
from airferry.near.wheels.store import WheelStore
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import parse_buildable_platform, parse_platform
from airferry.plan.models import Candidate
from airferry.plan.planner import make_plan
from airferry.registry.failures import TransientRegistryError
from airferry.rootfs.modules import ModuleAnswer
from catalogues import airgap, mounting, write_airgap, write_step
from folder_pip import FolderPip
from oci_images import put_image, put_index
from scripted_registry import ScriptedRegistry
from wheel_factory import make_group, make_probe

AMD64, ARM64 = parse_platform("linux/amd64"), parse_platform("linux/arm64")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "REGISTRIES_CONFIG_PATH", "CONTAINERS_REGISTRIES_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def in_git(folder: Path) -> None:
    subprocess.run(["git", "init", "-q", folder], check=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("linux/amd", "unsupported platform `linux/amd`, did you mean `linux/amd64`?"),
        ("linux/arm46", "unsupported platform `linux/arm46`, did you mean `linux/arm64`?"),
        ("windows/amd64", "unsupported platform `windows/amd64`, did you mean `linux/amd64`?"),
        ("darwin/arm64", "did you mean `linux/arm64`?"),
        ("linux/z80", "unsupported platform `linux/z80`; supported are `linux/386`, `linux/amd64`"),
        ("linux/arm64/v7", "unsupported platform `linux/arm64/v7`, did you mean `linux/arm64`?"),
        ("linux/s390x/v1", "unsupported platform `linux/s390x/v1`, did you mean `linux/s390x`?"),
        ("linux-amd64", "expected `os/architecture[/variant]`, did you mean `linux/amd64`?"),
        ("x", "`x` is not a platform"),
    ],
)
def test_platforms_that_there_are_not_are_refused_with_the_nearest(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_buildable_platform(text)
    assert told in caught.value.message
    path = write_airgap(tmp_path, f"workflow: {{stages: [a]}}\nplatforms:\n  - linux/amd64\n  - {text}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    assert f"{path}:4: `platforms[1]`: " in caught.value.message and told in caught.value.message
    with pytest.raises(ConfigurationError, match="`--platform`: "):
        plan(Selection(write_airgap(tmp_path / "b", "workflow: {stages: [a]}\n"), platforms=(text,)))


@pytest.mark.parametrize("text", ["linux/amd64", "linux/aarch64", "linux/arm/v6", "LINUX/ARM64/v8", "linux/amd64/v3"])
def test_platforms_that_there_are_pass(text: str) -> None:
    assert parse_buildable_platform(text) == parse_platform(text)


def test_variants_that_bases_may_be_made_for_are_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_buildable_platform("linux/amd64/v9")
    expected = "supported variants: `linux/amd64/v2`, `linux/amd64/v3`, `linux/amd64/v4`"
    assert caught.value.hint == expected


def fails(error: AirferryError | None) -> int:
    if error is not None:
        raise error
    return 1


def test_failures_are_told_together_each_with_its_way_out() -> None:
    assert map_all(fails, [None, None], jobs=2) == [1, 1]
    one = BuildError("one", hint="do", detail=1)
    with pytest.raises(BuildError) as caught:
        map_all(fails, [None, one, BuildError("one")], jobs=1)
    assert caught.value is one, "what is alone stays what it is"
    several = [one, None, TransientRegistryError("two", hint="wait"), ConfigurationError("three")]
    with pytest.raises(BuildError) as caught:
        map_all(fails, several, jobs=3)
    assert caught.value.message == "one\n  hint: do\ntwo\n  hint: wait\nthree"
    assert caught.value.hint is None
    both = combined(
        [TransientRegistryError("a", hint="h"), combined([RegistryError("b", hint="h"), RegistryError("c")])]
    )
    assert (type(both), both.message, both.hint) == (RegistryError, "a\nb\nc", "h")


@pytest.mark.parametrize("kind", [HostError, IntegrityError])
def test_faults_of_the_host_and_of_bytes_end_it_at_once(kind: type[AirferryError]) -> None:
    with pytest.raises(kind, match="at once"):
        map_all(fails, [BuildError("one"), kind("at once"), BuildError("two")], jobs=1)


def test_all_bases_and_refs_that_cannot_be_had_are_one_error_before_anything_is_fetched(
    registry: ScriptedRegistry, home: Path
) -> None:
    in_git(home)
    store = LayoutStore.create(home / "layout")
    put_image(store, [{"a": b"b"}])
    index = put_index(store, [put_image(store, [{"a": b"b"}], platform="linux/amd64")[0]])
    store.write_index([index.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": "x"}})])
    (home / "repository").mkdir()
    url = (home / "repository").as_uri()
    for name in ("one", "two", "three", "four"):
        write_step(home, f"s/{name}", configs={"tiny": mounting(f"{url}@main,/opt/r") if name == "four" else "a: 1\n"})
    document = airgap(
        {
            "one": f"{registry.address}/team/absent:1",
            "two": "oci:nowhere:x",
            "three": "oci:layout:x",
            "four": f"{registry.address}/team/other:2",
        },
        {f"s/{name}": name for name in ("one", "two", "three", "four")},
        platforms=["linux/amd64", "linux/arm64"],
        launcher_image={"base_image": f"{registry.address}/team/launcher:3"},
    )
    config = write_airgap(home, document)
    lines = config.read_text().splitlines()
    with pytest.raises(AirferryError) as caught:
        lock(Selection(config, stages=("build-execution-images", "build-launcher-image")))
    told = caught.value.message
    for part, why in [
        ("team/absent:1", "was answered with 404"),
        ("oci:nowhere:x", "does not exist"),
        ("oci:layout:x", "has no image for `linux/arm64`"),
        ("team/other:2", "was answered with 404"),
        ("team/launcher:3", "was answered with 404"),
    ]:
        number = next(number for number, line in enumerate(lines, 1) if line.endswith(part))
        assert any(line.startswith(f"{config}:{number}: ") and why in line for line in told.splitlines()), part
    step = home / "src/nemotron/steps/s/four/config/tiny.yaml"
    assert f"{step}:" in told and "is a Git repository that you may read" in told
    assert registry.count("GET", "/blobs/") == 0
    assert not list((home / "out").glob("*.lock.yaml"))


def test_a_faulty_registries_conf_is_told_once_and_by_itself(registry: ScriptedRegistry, home: Path) -> None:
    in_git(home)
    conf = home / "home/.config/containers/registries.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text('[[registry]]\nlocation = "http://a"\n')
    for name in ("one", "two"):
        write_step(home, f"s/{name}", configs={"tiny": "a: 1\n"})
    images = {name: f"{registry.address}/team/{name}:1" for name in ("one", "two")}
    document = airgap(images, {f"s/{name}": name for name in images}, platforms=["linux/amd64"])
    with pytest.raises(ConfigurationError) as caught:
        lock(Selection(write_airgap(home, document)))
    (line,) = caught.value.message.splitlines()
    assert line.startswith(f"{conf}:2: ")


@pytest.mark.parametrize("by_config", [True, False])
def test_a_commit_of_an_overlay_that_is_gone_is_told_with_its_line(home: Path, by_config: bool) -> None:
    in_git(home)
    subprocess.run(["git", "init", "-q", home / "repository"], check=True)
    overlay = f"{(home / 'repository').as_uri()}@{'1' * 40},/opt/r"
    store = LayoutStore.create(home / "layout")
    image, _layers = put_image(store, [{"a": b"b"}], platform="linux/amd64")
    store.write_index([image.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": "x"}})])
    write_step(home, "s/one", configs={"tiny": mounting(overlay) if by_config else "a: 1\n"})
    images = {"one": {"base_image": "oci:layout:x", **({} if by_config else {"overlays": [f"git+{overlay}"]})}}
    config = write_airgap(home, {**airgap({}, {"s/one": "one"}, platforms=["linux/amd64"]), "execution_images": images})
    path = home / "src/nemotron/steps/s/one/config/tiny.yaml" if by_config else config
    with pytest.raises(BuildError) as caught:
        lock(Selection(config, stages=("build-execution-images",)))
    line = next(number for number, line in enumerate(path.read_text().splitlines(), 1) if "1" * 40 in line)
    assert caught.value.message.startswith(f"{path}:{line - (not by_config)}: ")
    assert f"has no commit `{'1' * 40}`" in caught.value.message


def test_requirements_have_their_lines(home: Path) -> None:
    in_git(home)
    write_step(home, "s/one")
    named = {"thing": "thing==1", "other": "other==2"}
    images = {"one": {"base_image": "a.invalid/b:1", "requirements": named}}
    document = {**airgap({}, {"s/one": "one"}), "execution_images": images}
    config = write_airgap(home, {**document, "launcher_image": {"requirements": {"more": "more==3"}}})
    lines = {line.strip(): f"{config}:{number}" for number, line in enumerate(config.read_text().splitlines(), 1)}
    made = make_plan(load_config(config))
    expected = {"thing": lines["thing: thing==1"], "other": lines["other: other==2"]}
    assert requirement_places(made, made.groups[0]) == expected
    assert made.launcher is not None
    assert requirement_places(made, made.launcher) == {"more": lines["more: more==3"]}


def test_the_launchers_default_base_is_named_as_such(registry: ScriptedRegistry, home: Path) -> None:
    in_git(home)
    write_step(home, "s/one")
    conf = home / "home/.config/containers/registries.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{registry.address}/hub"\n')
    config = write_airgap(home, airgap({"one": "a.invalid/b"}, {"s/one": "one"}))
    with pytest.raises(RegistryError) as caught:
        lock(Selection(config, stages=("build-launcher-image",)))
    default = f"{config}: `launcher_image.base_image` is not set, and its default is `python:3.12-slim`: "
    assert any(line.startswith(default) for line in caught.value.message.splitlines())
    assert "set `launcher_image.base_image` to a base that this host can pull" in (
        caught.value.message + str(caught.value.hint)
    )
    assert registry.count("GET", "/v2/hub/library/python/manifests/3.12-slim") == 1


def test_the_place_of_a_base_is_that_of_an_image_of_the_plan(home: Path) -> None:
    """An image on the same base that no step of the plan runs in has no part in it."""
    in_git(home)
    write_step(home, "s/one")
    base = "a.invalid/b:1"
    images = {"unused": base, "one": "a.invalid/c:1"}
    config = write_airgap(home, airgap(images, {"s/one": "one"}, launcher_image={"base_image": base}))
    unused, launcher = (n for n, line in enumerate(config.read_text().splitlines(), 1) if line.endswith(base))
    assert "unused" in config.read_text().splitlines()[unused - 2]
    assert base_place(make_plan(load_config(config)), base) == f"{config}:{launcher}"
    config = write_airgap(home, airgap({"unused": "python:3.12-slim", "one": base}, {"s/one": "one"}))
    assert base_place(make_plan(load_config(config)), "python:3.12-slim") is None


def test_a_source_that_is_not_a_git_repository_is_told_before_any_registry_is_asked(
    registry: ScriptedRegistry, home: Path
) -> None:
    write_step(home, "s/one")
    document = airgap({"one": f"{registry.address}/a:1"}, {"s/one": "one"}, source={"root": "."})
    config = write_airgap(home, document)
    line = config.read_text().splitlines().index("  root: .") + 1
    with pytest.raises(ConfigurationError, match="not in a Git repository") as caught:
        lock(Selection(config))
    assert caught.value.message.startswith(f"{config}:{line}: ")
    assert registry.calls == []


def test_what_all_images_lack_is_one_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, registry: ScriptedRegistry
) -> None:
    """Each image is looked at on each platform, though the first one fails, and no wheel is fetched."""
    in_git(home)
    asked: list[str] = []

    def refuse(_group: object, *, base: str, platform: object, **_: object) -> None:
        asked.append(f"{base} {platform}")
        raise BuildError(f"`{base}` for {platform} lacks it", hint="another base")

    monkeypatch.setattr(resolve, "refuse_missing", refuse)
    monkeypatch.setattr(resolve.Resolver, "_ask", lambda *_: JobModules(None))  # type: ignore[arg-type]
    monkeypatch.setattr(resolve.Resolver, "_additions", lambda *_: pytest.fail("a wheel would be fetched"))
    for name in ("one", "two"):
        store = LayoutStore.create(home / name)
        children = [put_image(store, [{name: b"b"}], platform=str(item))[0] for item in (AMD64, ARM64)]
        index = put_index(store, children)
        store.write_index([index.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": "x"}})])
        write_step(home, f"s/{name}")
    document = airgap({"one": "oci:one:x", "two": "oci:two:x"}, {"s/one": "one", "s/two": "two"})
    config = write_airgap(home, {**document, "platforms": ["linux/amd64", "linux/arm64"]})
    with pytest.raises(BuildError) as caught:
        lock(Selection(config, stages=("build-execution-images",)))
    assert len(asked) == len(caught.value.message.splitlines()) == 4
    assert caught.value.hint == "another base"


@pytest.mark.parametrize("archive", [False, True])
def test_an_image_of_one_platform_is_refused_for_others_before_its_layers_are_read(
    home: Path, archive: bool, make_archive: Callable[[Path], Path]
) -> None:
    store = LayoutStore.create(home / "layout")
    descriptor, (layer,) = put_image(store, [{"a": b"b"}], platform="linux/amd64")
    store.write_index([descriptor.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": "x"}})])
    path = make_archive(home / "layout") if archive else home / "layout"
    base = (
        ArchiveBase(path=path, written=str(path))
        if archive
        else LayoutBase(path=path, reference="x", written=str(path))
    )
    cache = BaseCache(home / "cache", open_registry=lambda reference: pytest.fail(str(reference)), emit=silent)
    with pytest.raises(ConfigurationError, match="is for `linux/amd64`, not for `linux/arm64`"):
        cache.find(base, [AMD64, ARM64], locked=None)
    with pytest.raises(ConfigurationError) as caught:
        cache.find(base, [parse_platform("linux/amd64/v3")], locked=None)
    assert "`linux/amd64` also runs on `linux/amd64/v3`" in (caught.value.hint or "")
    assert cache.find(base, [parse_platform("linux/amd64/v1")], locked=None)
    assert not cache.store.has_blob(layer.descriptor)
    found = cache.find(base, [AMD64], locked=None)
    assert not cache.store.has_blob(layer.descriptor)
    assert json.loads(cache.fetch(found).images[AMD64].config_bytes)["architecture"] == "amd64"


@pytest.fixture
def make_archive() -> Callable[[Path], Path]:
    """Return what packs a layout folder into a tar."""

    def pack(folder: Path) -> Path:
        path = folder.with_suffix(".tar")
        subprocess.run(["tar", "-C", folder, "-cf", path, "."], check=True)
        return path

    return pack


def test_a_commit_of_a_requirement_that_is_gone_is_told_with_its_line(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", repository], check=True)
    missing = ModuleAnswer(status="missing", missing="x")
    named = {"thing": f"thing @ git+{repository.as_uri()}@{'1' * 40}"}
    with pytest.raises(BuildError, match=rf"^airgap\.yaml:9: .* has no commit `{'1' * 40}`"):
        resolve_additions(
            make_group([Candidate("thing.part", "step", "steps/a/step.py", 7)], named=named, pip_no_deps=True),
            probe=make_probe(modules={"thing.part": missing}),
            base="b",
            platform=AMD64,
            supply=WheelSupply(None, WheelStore(tmp_path / "cache", FolderPip(emit=silent, folder=tmp_path))),
            named_at={"thing": "airgap.yaml:9"},
        )
