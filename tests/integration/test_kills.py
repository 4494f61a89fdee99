"""Killed at any boundary, a build or a load leaves nothing broken, and a rerun ends where an undisturbed run does."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from registries import RegistryProcess, run_registry

from airferry.bundle.verify import verify_bundle
from airferry.engine.driver import open_engine
from airferry.errors import RegistryError
from airferry.host import files
from airferry.host.installation import shipped
from airferry.oci.closure import read_closure
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.sink import RegistrySink
from airferry.registry.source import RegistrySource
from near_side import PROGRAM, REFERENCE, NearSide, make_near_side, temporaries
from oci_images import make_bundle
from running import processes, wait_for
from static_bases import write_static_base

DRIVER = Path(__file__).parents[1] / "kill_driver.py"
SAMPLE = 8
KILLED = -signal.SIGKILL
PAUSE_S = "97.53"


@functools.cache
def driver() -> subprocess.Popen[str]:
    """Start what runs airferry for these tests."""
    return subprocess.Popen([sys.executable, DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def _driver_ends() -> Iterator[None]:
    yield
    driver().communicate()
    driver.cache_clear()


def drive(
    number: int, log: Path, *arguments: str, folder: Path, how: signal.Signals = signal.SIGKILL
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run airferry in a child that gets a signal at a boundary; return how it ended and the boundaries it passed."""
    texts = [log.with_name(f"{log.name}.{stream}") for stream in ("stdout", "stderr")]
    asked = {
        "number": number,
        "signal": int(how),
        "log": str(log),
        "arguments": arguments,
        "folder": str(folder),
        "environment": dict(os.environ),
        "stdout": str(texts[0]),
        "stderr": str(texts[1]),
    }
    talking = driver()
    assert talking.stdin is not None and talking.stdout is not None
    talking.stdin.write(json.dumps(asked) + "\n")
    talking.stdin.flush()
    ended = int(talking.stdout.readline())
    done = subprocess.CompletedProcess(arguments, ended, *(text.read_text() for text in texts))
    return done, log.read_text().splitlines()


def kind(boundary: str) -> str:
    """Return a boundary's name without what differs from one to the next of its kind."""
    return re.sub(r"sha256:[0-9a-f]+|[0-9a-f]{12,}|[0-9a-f-]{36}", "X", boundary)


def sample(boundaries: Sequence[str], count: int) -> list[int]:
    """Choose boundaries, counted from 1: the first of each kind, and of those a spread."""
    first: dict[str, int] = {}
    for number, name in enumerate(boundaries, 1):
        first.setdefault(kind(name), number)
    numbers = sorted(first.values())
    step = max(1.0, len(numbers) / count)
    return sorted({numbers[int(position * step)] for position in range(min(count, len(numbers)))})


# --- builds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Yard:
    """A near side whose build is undisturbed once: its root, and the boundaries that it passed."""

    side: NearSide
    cache: Path
    root: str = ""
    boundaries: tuple[str, ...] = ()

    def clear(self) -> None:
        """Start over, with all but the engine's storage cold."""
        files.remove_tree(self.side.out)
        for path in self.cache.iterdir():
            if not path.is_symlink():
                files.remove_tree(path)

    def drive(
        self, number: int, how: signal.Signals = signal.SIGKILL
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        log = self.cache.parent / "log"
        return drive(number, log, "build", "--jobs", "1", "--json", folder=self.side.catalogue, how=how)

    def check(self) -> None:
        """Finish what was interrupted and see that it ends as the undisturbed run did, with nothing left over."""
        done, _boundaries = self.drive(0)
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["root"] == self.root
        verify_bundle(self.side.out / "bundle", root=self.root).raise_if_wrong()
        assert temporaries(self.side.out, self.cache) == []
        if not (self.cache / "engine").exists():
            return
        with open_engine(self.cache / "engine") as engine:
            assert engine.storage.containers() == []
            assert [name for name in engine.images() if "airferry/" in name] == []
            assert list(engine.storage.temporary.iterdir()) == []


def make_yard(folder: Path, base: Path, *, builder: str, engine: Path | None = None, launcher: bool = True) -> Yard:
    side = make_near_side(folder / "near", base, builder=builder)
    if not launcher:
        side.write(launcher_image=False)
    cache = files.ensure_directory(folder / "cache")
    if engine is not None:
        (cache / "engine").symlink_to(files.ensure_directory(engine))
    with pytest.MonkeyPatch.context() as patch:
        done, boundaries = in_its_environment(Yard(side, cache), patch).drive(0)
    assert done.returncode == 0, done.stderr
    return Yard(side, cache, yaml.safe_load(done.stdout)["root"], tuple(boundaries))


@pytest.fixture
def yard(direct_yard: Yard, monkeypatch: pytest.MonkeyPatch) -> Yard:
    """Images are assembled directly."""
    return in_its_environment(direct_yard, monkeypatch)


@pytest.fixture
def container_yard(buildah_yard: Yard, monkeypatch: pytest.MonkeyPatch) -> Yard:
    """Images are built in Buildah's containers."""
    return in_its_environment(buildah_yard, monkeypatch)


def in_its_environment(yard: Yard, patch: pytest.MonkeyPatch) -> Yard:
    patch.setenv("AIRFERRY_CACHE", str(yard.cache))
    for name, value in yard.side.environment.items():
        patch.setenv(name, value)
    return yard


@pytest.fixture(scope="module")
def direct_yard(tmp_path_factory: pytest.TempPathFactory) -> Yard:
    """A yard on a small base: what a boundary protects does not depend on sizes, and each kill starts from nothing."""
    folder = tmp_path_factory.mktemp("yard")
    return make_yard(folder, write_static_base(folder / "base", REFERENCE), builder="direct")


@pytest.fixture(scope="module")
def buildah_yard(near_base: Path, near_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Yard:
    folder = tmp_path_factory.mktemp("container-yard")
    return make_yard(folder, near_base, builder="buildah", engine=near_cache / "engine")


@pytest.fixture
def execution_yard(
    near_base: Path, near_cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Yard:
    """An execution image alone is built, in a container of Buildah."""
    made = make_yard(
        tmp_path_factory.mktemp("execution-yard"),
        near_base,
        builder="buildah",
        engine=near_cache / "engine",
        launcher=False,
    )
    return in_its_environment(made, monkeypatch)


def check_kinds(yard: Yard) -> None:
    kinds = {kind(name) for name in yard.boundaries}
    for name in (
        "airgap.lock.yaml",
        "airgap-build-state.yaml",
        "airgap-manifest.yaml",
        "index.json",
        "airgap-plan.yaml",
    ):
        assert {f"fsync {name}", f"rename {name}", f"fsync folder of {name}"} <= kinds
    assert {"fsync X", "rename X", "fsync folder of X"} <= kinds, "blobs"


def test_a_build_passes_boundaries_of_every_kind(yard: Yard) -> None:
    check_kinds(yard)


@pytest.mark.slow
def test_a_build_in_containers_passes_boundaries_of_every_kind(container_yard: Yard) -> None:
    check_kinds(container_yard)


def kill_and_finish(yard: Yard, number: int) -> None:
    yard.clear()
    done, boundaries = yard.drive(number)
    assert done.returncode == KILLED, f"boundary {number} of {len(yard.boundaries)}: {done.stderr}"
    assert len(boundaries) == number
    yard.check()


def kill_again_and_again(yard: Yard) -> None:
    yard.clear()
    kills = 0
    while (done := yard.drive(25)[0]).returncode == KILLED:
        kills += 1
        assert kills < 30, "it gets on each time"
    assert done.returncode == 0, done.stderr
    assert kills >= 2
    yard.check()


def test_a_build_that_is_killed_at_some_boundaries_is_finished_by_a_rerun(yard: Yard) -> None:
    for number in sample(yard.boundaries, SAMPLE):
        kill_and_finish(yard, number)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_build_that_is_killed_at_any_boundary_is_finished_by_a_rerun(yard: Yard) -> None:
    for number in range(1, len(yard.boundaries) + 1):
        kill_and_finish(yard, number)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_build_in_containers_that_is_killed_at_any_boundary_is_finished_by_a_rerun(container_yard: Yard) -> None:
    for number in range(1, len(container_yard.boundaries) + 1):
        kill_and_finish(container_yard, number)


def test_a_build_that_is_killed_again_and_again_ends_in_the_same_root(yard: Yard) -> None:
    kill_again_and_again(yard)


@pytest.mark.slow
def test_a_build_in_containers_that_is_killed_again_and_again_ends_in_the_same_root(container_yard: Yard) -> None:
    kill_again_and_again(container_yard)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_interrupted_says_how_to_go_on_and_leaves_nothing_half_done(
    yard: Yard, how: signal.Signals
) -> None:
    yard.clear()
    done, _boundaries = yard.drive(len(yard.boundaries) // 2, how)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and "rerun" in done.stderr
    assert temporaries(yard.side.out, yard.cache) == []
    yard.check()


def end_in_the_middle_of_a_run(yard: Yard, how: signal.Signals, code: int, containerfile: Path) -> None:
    """Build with a RUN that takes its time, and end the build while it runs."""
    text = (shipped("containerfiles") / "Containerfile.execution").read_text()
    document = yard.side.document
    slow = {**document["execution_images"]["py"], "containerfile": str(containerfile)}
    containerfile.write_text(text.replace("USER ${BASE_USER}", f"RUN sleep {PAUSE_S}\nUSER ${{BASE_USER}}"))
    try:
        yard.side.write(execution_images={"py": slow})
        child = subprocess.Popen(
            [*PROGRAM, "build"],
            cwd=yard.side.catalogue,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: processes(f"sleep {PAUSE_S}") or child.poll() is not None)
        os.killpg(child.pid, how)
        _stdout, stderr = child.communicate(timeout=60)
        assert child.returncode == code, stderr
        if how != signal.SIGKILL:
            assert "Traceback" not in stderr and "rerun" in stderr
            assert processes(f"sleep {PAUSE_S}") == []
            assert temporaries(yard.side.out, yard.cache) == []
        wait_for(lambda: not processes(f"sleep {PAUSE_S}"))
    finally:
        yard.side.write(execution_images=document["execution_images"])


def test_a_build_that_is_killed_and_then_interrupted_in_the_middle_of_a_run(
    execution_yard: Yard, tmp_path: Path
) -> None:
    execution_yard.clear()
    for how, code in ((signal.SIGKILL, KILLED), (signal.SIGINT, 130)):
        end_in_the_middle_of_a_run(execution_yard, how, code, tmp_path / "Containerfile")
    execution_yard.check()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, KILLED), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_build_that_ends_in_the_middle_of_a_run(
    container_yard: Yard, how: signal.Signals, code: int, tmp_path: Path
) -> None:
    container_yard.clear()
    end_in_the_middle_of_a_run(container_yard, how, code, tmp_path / "Containerfile")
    container_yard.check()


# --- loads ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, require_tool: Callable[[str], Path]
) -> Iterator[RegistryProcess]:
    require_tool("docker-registry")
    with run_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def load_arguments(bundle: Path, registry: RegistryProcess, name: str) -> list[str]:
    receipt = bundle.parent / f"{name}.yaml"
    return [
        "--quiet",
        "load",
        str(bundle),
        "--to",
        f"{registry.address}/{name}",
        "-j",
        "1",
        "--receipt",
        str(receipt),
    ]


def check_tags(registry: RegistryProcess, name: str) -> int:
    """See that whatever a tag points at is whole in the registry, and return how many tags there are."""
    with RegistryClient(registry.address, options=ClientOptions()) as client:
        source = RegistrySource(client, f"{name}/team/trainer")
        try:
            top = source.resolve("1.0")
        except RegistryError:
            return 0
        sink = RegistrySink(client, source.repository)
        assert [blob for blob in read_closure(source, top).blobs.values() if not sink.has_blob(blob)] == []
        return 1


def kill_loads(registry: RegistryProcess, folder: Path, choose: Callable[[list[str]], list[int]]) -> None:
    bundle = folder / "bundle"
    sealed = make_bundle(bundle)
    done, boundaries = drive(0, folder / "log", *load_arguments(bundle, registry, "whole"), folder=folder)
    assert done.returncode == 0, done.stderr
    expected = yaml.safe_load((folder / "whole.yaml").read_text())
    assert any(name.startswith("tag ") for name in boundaries)
    for number in choose(boundaries):
        name = f"kill{number}"
        arguments = load_arguments(bundle, registry, name)
        done, _seen = drive(number, folder / "log", *arguments, folder=folder)
        assert done.returncode == KILLED, done.stderr
        check_tags(registry, name)
        done, _seen = drive(0, folder / "log", *arguments, folder=folder)
        assert done.returncode == 0, done.stderr
        assert check_tags(registry, name) == 1
        receipt = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert receipt["bundle_root"] == sealed.root
        assert [image["digest"] for image in receipt["images"]] == [image["digest"] for image in expected["images"]]
        assert sorted(path.name for path in folder.iterdir() if name in path.name) == [f"{name}.yaml"]
    verify_bundle(bundle, root=sealed.root).raise_if_wrong()


def test_a_load_that_is_killed_at_some_boundaries_is_finished_by_a_rerun(
    registry: RegistryProcess, tmp_path: Path
) -> None:
    kill_loads(registry, tmp_path, lambda boundaries: sample(boundaries, SAMPLE))


@pytest.mark.slow
def test_a_load_that_is_killed_at_any_boundary_is_finished_by_a_rerun(
    registry: RegistryProcess, tmp_path: Path
) -> None:
    kill_loads(registry, tmp_path, lambda boundaries: list(range(1, len(boundaries) + 1)))
