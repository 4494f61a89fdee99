"""The real pip behind the cache of wheels: what it chooses and builds, how often it is started, and its stand-in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from airferry.config import load_config
from airferry.engine.preflight import Check
from airferry.errors import BuildError, IntegrityError
from airferry.events import CommandRun, Event, Notice, silent
from airferry.host import files, process
from airferry.near.lock.additions import resolve_environment
from airferry.near.lock.closure import WheelSupply
from airferry.near.reach import ask_all
from airferry.near.wheels.folder import wheelhouse
from airferry.near.wheels.pip import NoDistribution, Pip, WheelTarget, wheel_target
from airferry.near.wheels.store import Pin, WheelStore
from airferry.plan.locks.catalogue import read_catalogue_lock
from airferry.plan.planner import make_plan
from catalogues import airgap, write_airgap, write_step
from folder_pip import FolderPip
from wheel_factory import make_probe, make_wheel, sha256, source_distribution

AMD64 = wheel_target(make_probe().python)
ARM64 = wheel_target(make_probe(machine="aarch64", libc=("glibc", "2.28")).python)


def store(cache: Path, index: Path) -> WheelStore:
    return WheelStore(cache, Pip(("--no-index", f"--find-links={index}")))


# --- the stand-in answers as pip does -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels and a source that differ in platform, Python and version."""
    folder = tmp_path_factory.mktemp("shelf")
    make_wheel(folder, "pure", "1.0")
    make_wheel(folder, "pure", "2.0")
    make_wheel(folder, "pure", "3.0rc1")
    make_wheel(folder, "future", "1.0")
    make_wheel(folder, "future", "2.0", requires_python=">=3.12")
    for tag in ("manylinux_2_17_aarch64", "manylinux_2_28_aarch64", "manylinux_2_35_aarch64", "manylinux_2_17_x86_64"):
        make_wheel(folder, "native", "1.0", tag=f"cp311-cp311-{tag}")
    make_wheel(folder, "native", "2.0", tag="cp311-cp311-manylinux_2_35_aarch64")
    for name in ("older", "pinned", "beyond"):
        make_wheel(folder, name, "1.0")
        make_wheel(folder, name, "2.0")
    make_wheel(folder, "newest", "1.0", tag="cp311-cp311-manylinux_2_17_aarch64")
    make_wheel(folder, "newest", "2.0", tag="cp311-cp311-manylinux_2_35_aarch64")
    make_wheel(folder, "below", "1.0", tag="cp311-cp311-manylinux_2_17_aarch64")
    make_wheel(folder, "refused", "1.0", tag="cp311-cp311-win_amd64")
    make_wheel(folder, "foreign", "1.0", tag="cp311-cp311-win_amd64")
    source_distribution(folder, name="onlysource", tag="py3-none-any")
    return folder


ANY = ("pure", "future", "native", "foreign", "absent", "onlysource")
CHOSEN = ("older<2", "newest==2.0", "beyond==9", "below<1")


@pytest.mark.parametrize("target", [AMD64, ARM64], ids=["amd64", "arm64"])
def test_the_stand_in_downloads_what_pip_does(shelf: Path, tmp_path: Path, target: WheelTarget) -> None:
    hashed = {"pinned==1.0": {sha256(shelf / "pinned-1.0-py3-none-any.whl"), "1" * 64}, "refused==1.0": {"1" * 64}}
    asked = {**hashed, **{name: set[str]() for name in (*ANY, *CHOSEN)}}
    answers = []
    for name, pip in (("pip", Pip(("--no-index", f"--find-links={shelf}"))), ("folder", FolderPip(folder=shelf))):
        into = tmp_path / name
        into.mkdir()
        missing = pip.download(asked, target, into=into)
        answers.append((missing, sorted(path.name for path in into.glob("*.whl"))))
    assert answers[0] == answers[1]
    lacking = {item.requirement for item in answers[0][0]}
    assert lacking >= {"beyond==9", "below<1", "foreign", "refused==1.0", "absent", "onlysource"}
    assert lacking.isdisjoint({"pure", "future", "older<2", "pinned==1.0"})
    assert {"older-1.0-py3-none-any.whl", "pinned-1.0-py3-none-any.whl"} <= set(answers[0][1])


def test_the_stand_in_finds_the_hashes_and_sources_that_pip_does(shelf: Path, tmp_path: Path) -> None:
    source = shelf / "onlysource-1.0.tar.gz"
    for name, pip in (("pip", Pip(("--no-index", f"--find-links={shelf}"))), ("folder", FolderPip(folder=shelf))):
        with pytest.raises(IntegrityError, match=r"`pure.* has SHA-256"):
            pip.download({"pure==1.0": {"1" * 64}}, AMD64, into=tmp_path)
        with pytest.raises(IntegrityError, match=r"`onlysource.* has SHA-256"):
            pip.unpack_sources({"onlysource==1.0": ["1" * 64]}, into=tmp_path / name / "refused")
        asked = {"onlysource==1.0": [sha256(source)], "onlysource==2.0": [], "absent": []}
        found = pip.unpack_sources(asked, into=tmp_path / name)
        folder = found.pop("onlysource==1.0")
        assert isinstance(folder, Path) and (folder / "backend.py").is_file()
        assert list(found.values()) == [NoDistribution("onlysource==2.0", ("1.0",)), NoDistribution("absent")]


# --- how often pip is started ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 8])
def test_three_processes_serve_however_many_pins_lack_a_wheel(tmp_path: Path, count: int) -> None:
    index = tmp_path / "index"
    names = [f"lacking{number}" for number in range(count)]
    for name in names:
        make_wheel(index, name, "1.0", tag="cp311-cp311-win_amd64")
    for number in range(3):
        make_wheel(index, f"there{number}", "1.0")
    started: list[Event] = []
    pip = Pip(("--no-index", f"--find-links={index}"), emit=started.append)
    pins = [*(Pin(name, "==1.0") for name in names), *(Pin(f"there{number}") for number in range(3))]
    with pytest.raises(BuildError) as caught:
        WheelStore(tmp_path / "cache", pip).fetch(pins, AMD64)
    assert all(f"`{name}==1.0` has no wheel" in caught.value.message for name in names)
    assert sum(isinstance(event, CommandRun) for event in started) == 2, "no source is looked for"
    started.clear()
    with pytest.raises(BuildError) as caught:
        WheelStore(tmp_path / "cache", pip).fetch([*pins, *(Pin(f"absent{name}") for name in names)], AMD64)
    assert all(f"`absent{name}` was not found" in caught.value.message for name in names)
    assert sum(isinstance(event, CommandRun) for event in started) == 3


def test_pins_with_and_without_hashes_are_asked_for_in_one_process(tmp_path: Path) -> None:
    hashed = make_wheel(tmp_path / "index", "hashed", "1.0")
    make_wheel(tmp_path / "index", "free", "1.0")
    started: list[Event] = []
    pip = Pip(("--no-index", f"--find-links={tmp_path / 'index'}"), emit=started.append)
    pins = [Pin("hashed", "==1.0", hashes=frozenset({sha256(hashed)})), Pin("free")]
    found = WheelStore(tmp_path / "cache", pip).fetch(pins, AMD64)
    assert [wheel.name for wheel in found] == ["hashed", "free"]
    assert sum(isinstance(event, CommandRun) for event in started) == 1


# --- what pip chooses, refuses and builds ---------------------------------------------------------------------------


def test_a_better_wheel_that_came_later_does_not_displace_the_locked_one(tmp_path: Path) -> None:
    locked = make_wheel(tmp_path / "index", "pure", "1.0")
    page = tmp_path / "pure.html"
    better = make_wheel(tmp_path / "index", "pure", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    links = [f'<a href="{path.as_uri()}#sha256={sha256(path)}">{path.name}</a>' for path in (locked, better)]
    page.write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
    wheels = WheelStore(tmp_path / "cache", Pip(("--no-index", f"--find-links={page}")))
    assert wheels.fetch([Pin("pure", "==1.0")], AMD64)[0].filename == better.name
    pin = Pin("pure", "==1.0", filename=locked.name, sha256=sha256(locked))
    assert wheels.fetch([pin], AMD64)[0].filename == locked.name


def test_a_distribution_without_a_wheel_is_built_when_it_is_pure_and_that_is_said_once(tmp_path: Path) -> None:
    index = tmp_path / "index"
    source = source_distribution(index, name="onlysource", tag="py3-none-any")
    make_wheel(index, "pure", "1.0")
    pins = [Pin("onlysource", "==1.0", hashes=frozenset({sha256(source)})), Pin("pure")]
    events: list[Event] = []
    wheels = WheelStore(tmp_path / "cache", Pip(("--no-index", f"--find-links={index}")), events.append)
    found = wheels.fetch(pins, ARM64)
    assert (found[0].filename, found[0].origin, found[1].origin) == (
        "onlysource-1.0-py3-none-any.whl",
        "source",
        "index",
    )
    # nothing of the first build is left to take
    files.remove_tree(wheels.folder)
    again = wheels.fetch(pins, AMD64)
    assert again[0].sha256 == found[0].sha256, "a build is the same on every host"
    said = [event.text for event in events if isinstance(event, Notice)]
    assert said == ["`onlysource==1.0` has no wheel; it was built from its source on this host"], "once for all images"


def test_a_source_that_builds_a_native_wheel_is_refused(tmp_path: Path) -> None:
    source_distribution(tmp_path / "index", name="native", tag="cp311-cp311-linux_x86_64")
    with pytest.raises(BuildError, match="only runs on this host") as caught:
        store(tmp_path / "cache", tmp_path / "index").fetch([Pin("native")], ARM64)
    assert "requirements:" in (caught.value.hint or "")


def test_an_index_that_does_not_answer_is_no_missing_distribution(tmp_path: Path) -> None:
    pip = Pip(("--isolated", "--index-url=http://user:secret@127.0.0.1:9/simple", "--retries=1", "--timeout=2"))
    with pytest.raises(BuildError, match="did not answer") as caught:
        WheelStore(tmp_path, pip).fetch([Pin("anything")], AMD64)
    assert "secret" not in f"{caught.value} {caught.value.fields}"


def test_the_wheelhouse_installs_with_the_packed_pip(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", "pure", "1.0", requires=["not-there"])
    wheels = store(tmp_path / "cache", tmp_path / "index")
    found = wheels.fetch([Pin("pure")], AMD64)
    pip = wheels.pip_wheel((3, 12, 0))
    assert wheels.pip_wheel((3, 12, 0)) == pip
    context = tmp_path / "context"
    listing = wheelhouse(found, context, pip=pip)
    assert listing.read_text() == f"pure==1.0 --hash=sha256:{found[0].sha256}\n"
    assert (context / found[0].filename).stat().st_ino == found[0].path.stat().st_ino, "linked, not copied"
    environment = tmp_path / "environment"
    process.run([sys.executable, "-m", "venv", "--without-pip", environment], timeout_s=60)
    install = ["install", "--no-index", "--find-links", context, "--require-hashes", "--no-deps", "-r", listing]
    process.run([environment / "bin" / "python", context / pip.name / "pip", *install], timeout_s=120)
    answer = process.run([environment / "bin" / "python", "-c", "import pure; print(pure.VERSION)"], timeout_s=60)
    assert answer.text == "1.0\n"
    wheelhouse([], context)
    assert sorted(path.name for path in context.iterdir()) == ["requirements.txt"]


def test_a_source_with_another_hash_is_never_unpacked(tmp_path: Path) -> None:
    source_distribution(tmp_path / "index", name="onlysource", tag="py3-none-any")
    pin = Pin("onlysource", "==1.0", hashes=frozenset({"2" * 64}))
    with pytest.raises(IntegrityError, match="onlysource"):
        store(tmp_path / "cache", tmp_path / "index").fetch([pin], ARM64)


def test_files_at_addresses_and_paths_of_the_lock_are_taken(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "elsewhere", "frompath", "1.0")
    source = source_distribution(tmp_path / "elsewhere", name="onlysource", tag="py3-none-any")
    (tmp_path / "uv.lock").write_text(
        'version = 1\n[[package]]\nname = "p"\nversion = "1"\nsource = { virtual = "." }\n'
        'dependencies = [{ name = "frompath" }, { name = "onlysource" }]\n'
        '[[package]]\nname = "frompath"\nversion = "1.0"\nsource = { path = "elsewhere/' + wheel.name + '" }\n'
        f'wheels = [{{ filename = "{wheel.name}", hash = "sha256:{sha256(wheel)}" }}]\n'
        f'[[package]]\nname = "onlysource"\nversion = "1.0"\nsource = {{ url = "{source.as_uri()}" }}\n'
        f'sdist = {{ hash = "sha256:{sha256(source)}" }}\n'
    )
    lock = read_catalogue_lock(tmp_path / "uv.lock")
    found = resolve_environment(probe=make_probe(), supply=WheelSupply(lock, store(tmp_path / "cache", tmp_path)))
    assert [f"{item.wheel.name}=={item.wheel.version}" for item in found.additions] == [
        "frompath==1.0",
        "onlysource==1.0",
    ]
    assert [item.address for item in found.locked()] == [f"elsewhere/{wheel.name}", source.as_uri()]
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(IntegrityError):
        resolve_environment(probe=make_probe(), supply=WheelSupply(lock, store(tmp_path / "other", tmp_path)))


def test_the_index_is_asked_as_pip_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_step(tmp_path, "s/one")
    plan = make_plan(load_config(write_airgap(tmp_path, airgap({"one": "oci:nowhere:x"}, {"s/one": "one"}))))

    def asked() -> Check:
        return next(check for check in ask_all(plan, emit=silent) if check.name == "package index")

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert asked().detail == "answers, but does not have `pip`"
    (tmp_path / "pip-99.9-py3-none-any.whl").write_bytes(b"")
    assert asked().detail == "answers"
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@127.0.0.1:9/simple")
    check = asked()
    assert check.status == "fail" and "Connection refused" in check.detail
    assert "secret" not in f"{check.detail} {check.hint}"
