"""`uv.lock` is read as uv reads it: locks of many shapes, made by uv here, against what `uv export` says of them."""

from __future__ import annotations

import itertools
import shutil
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from uv import find_uv_bin

from airferry.host import process
from airferry.near.probe.answers import cpython_markers
from airferry.plan.locks.catalogue import CatalogueLock, read_catalogue_lock
from airferry.plan.locks.packages import GitSource, LocalSource, LockedPackage
from wheel_factory import make_wheel, sha256, source_distribution

TARGETS = list(itertools.product(("x86_64", "aarch64"), ("3.11.2", "3.13.0")))
REPOSITORY = "https://git.example/tools/fromgit.git"
HEAD = '[project]\nname = "catalogue"\nversion = "0.1"\nrequires-python = ">=3.11"\n'
FACTS = tuple[str, str | None, frozenset[str], str]

SHAPES: dict[str, dict[str, str]] = {
    "overrides and constraints": {
        "pyproject.toml": HEAD
        + 'dependencies = ["asks-new", "leaf", "liar"]\n[tool.uv]\noverride-dependencies = ["hub>=0.34,<1.0"]\n'
        'constraint-dependencies = ["leaf<2"]\nexclude-dependencies = ["never"]\n'
        '[[tool.uv.dependency-metadata]]\nname = "liar"\nversion = "1.0"\nrequires-dist = ["other"]\n',
    },
    "extras and groups": {
        "pyproject.toml": HEAD
        + 'dependencies = ["with-extras[fast]"]\n[project.optional-dependencies]\nslow = ["with-extras[slow]"]\n'
        'all = ["catalogue[slow]", "leaf"]\n[dependency-groups]\ndev = ["dev-tool"]\n'
        'docs = [{include-group = "dev"}, "leaf<2"]\n',
    },
    "conflicts": {
        "pyproject.toml": HEAD
        + 'dependencies = ["leaf"]\n[project.optional-dependencies]\ncpu = ["hub<1", "other"]\ngpu = ["hub>=1"]\n'
        '[dependency-groups]\nold = ["leaf<2"]\nnew = ["leaf>=2"]\n[tool.uv]\n'
        'conflicts = [[{extra = "cpu"}, {extra = "gpu"}], [{group = "old"}, {group = "new"}]]\n',
    },
    "forks": {
        "pyproject.toml": HEAD
        + "dependencies = [\"leaf<2 ; python_version < '3.12'\", \"leaf>=2 ; python_version >= '3.12'\", "
        "\"hub<1 ; platform_machine == 'x86_64'\", \"hub>=1 ; platform_machine != 'x86_64'\", "
        "\"other ; sys_platform == 'win32'\", \"asks-new ; platform_machine == 'aarch64'\"]\n"
    },
    "a workspace with a root project": {
        "pyproject.toml": HEAD + 'dependencies = ["member"]\n[tool.uv.sources]\nmember = {workspace = true}\n'
        '[tool.uv.workspace]\nmembers = ["packages/*"]\n',
        "packages/member/pyproject.toml": '[project]\nname = "member"\nversion = "1"\nrequires-python = ">=3.11"\n'
        'dependencies = ["leaf"]\n[project.optional-dependencies]\nfast = ["hub"]\n',
        "packages/lonely/pyproject.toml": '[project]\nname = "lonely"\nversion = "1"\nrequires-python = ">=3.11"\n'
        'dependencies = ["other"]\n',
    },
    "a workspace without a root project": {
        "pyproject.toml": '[tool.uv.workspace]\nmembers = ["packages/*"]\n[dependency-groups]\ntools = ["dev-tool"]\n',
        "packages/one/pyproject.toml": '[project]\nname = "one"\nversion = "1"\nrequires-python = ">=3.11"\n'
        'dependencies = ["leaf<2", "two[extra]"]\n[tool.uv.sources]\ntwo = {workspace = true}\n',
        "packages/two/pyproject.toml": '[project]\nname = "two"\nversion = "1"\nrequires-python = ">=3.11"\n'
        '[project.optional-dependencies]\nextra = ["hub"]\n',
    },
    "Git, addresses, paths and source distributions": {
        "pyproject.toml": HEAD + 'dependencies = ["fromgit", "fromurl", "frompath", "fromfolder", "only-source"]\n'
        f'[tool.uv.sources]\nfromgit = {{git = "{REPOSITORY}", subdirectory = "python/lib", tag = "v1"}}\n'
        'fromurl = {url = "@INDEX@/files/fromurl-1.0-py3-none-any.whl"}\n'
        'frompath = {path = "wheels/frompath-1.0-py3-none-any.whl"}\nfromfolder = {path = "folder"}\n',
        "folder/pyproject.toml": '[project]\nname = "fromfolder"\nversion = "1"\ndependencies = ["leaf"]\n',
    },
    "the same version from two registries": {
        "pyproject.toml": HEAD + 'dependencies = ["hub"]\n[tool.uv.sources]\nhub = [\n'
        '{index = "first", marker = "platform_machine == \'x86_64\'"},\n'
        '{index = "second", marker = "platform_machine != \'x86_64\'"}]\n'
        '[[tool.uv.index]]\nname = "first"\nurl = "@INDEX@/simple"\nexplicit = true\n'
        '[[tool.uv.index]]\nname = "second"\nurl = "@INDEX@/second"\nexplicit = true\n',
    },
}


class _Quiet(SimpleHTTPRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a package index on loopback, and return its address."""
    root = tmp_path_factory.mktemp("index")
    wheels = root / "files"
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "leaf", version)
    make_wheel(wheels, "hub", "0.36.2", requires=["other"])
    for machine in ("x86_64", "aarch64"):
        make_wheel(wheels, "hub", "1.33.0", tag=f"cp311-abi3-manylinux_2_17_{machine}", requires=["leaf"])
    make_wheel(wheels, "other", "1.0")
    make_wheel(wheels, "never", "1.0")
    make_wheel(wheels, "dev-tool", "1.0", requires=["other ; python_version < '3.12'"])
    make_wheel(wheels, "liar", "1.0", requires=["nowhere-to-be-found"])
    make_wheel(wheels, "asks-new", "1.0", requires=["hub>=1.0.1", "never"])
    extras = ["hub ; extra == 'fast'", "other ; extra == 'slow'"]
    make_wheel(wheels, "with-extras", "1.0", requires=extras, extras=["fast", "slow"])
    make_wheel(wheels, "fromurl", "1.0", requires=["other"])
    source_distribution(wheels, name="only_source", tag="py3-none-any")
    make_wheel(root / "elsewhere", "hub", "1.33.0", requires=["other"])
    for page, folder in (("simple", "files"), ("second", "elsewhere")):
        for path in sorted((root / folder).iterdir()):
            name = path.name.split("-")[0].replace("_", "-")
            listing = root / page / name / "index.html"
            listing.parent.mkdir(parents=True, exist_ok=True)
            link = f'<a href="/{folder}/{path.name}#sha256={sha256(path)}">{path.name}</a>\n'
            listing.write_text((listing.read_text() if listing.exists() else "<!DOCTYPE html>\n") + link)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a Git repository with a project in a folder of it."""
    root = tmp_path_factory.mktemp("repository")
    project = root / "python" / "lib" / "pyproject.toml"
    project.parent.mkdir(parents=True)
    project.write_text('[project]\nname = "fromgit"\nversion = "3"\ndependencies = ["leaf"]\n')
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@t.example"]
    for argv in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["tag", "v1"]):
        process.run([*git, *argv], timeout_s=60)
    return root


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all catalogues: uv keeps next to them what it knows of the index and of this Python."""
    return tmp_path_factory.mktemp("catalogues")


def uv(argv: list[str], folder: Path, **environment: str) -> str:
    done = process.run(
        [find_uv_bin(), "--quiet", *argv],
        cwd=folder,
        # no configuration of the user's; the source distribution of this test wants an epoch
        environment={
            **{
                name: str(folder.parent / "uv") for name in ("HOME", "UV_CACHE_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
            },
            "SOURCE_DATE_EPOCH": "0",
            "UV_PYTHON": sys.executable,
            **environment,
        },
        timeout_s=120,
    )
    return done.text


def write(folder: Path, shape: Mapping[str, str], index: str, repository: Path) -> None:
    for name, text in shape.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("@INDEX@", index))
    make_wheel(folder / "wheels", "frompath", "1.0", requires=["leaf<2"])
    rewrite = {"GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": f"url.{repository}.insteadOf"}
    rewrite |= {"GIT_CONFIG_VALUE_0": REPOSITORY, "GIT_CONFIG_KEY_1": "protocol.file.allow"}
    uv(["lock", f"--default-index={index}/simple"], folder, GIT_CONFIG_VALUE_1="always", **rewrite)


def exported(folder: Path, scope: list[str]) -> list[dict[str, Any]]:
    argv = ["export", "--offline", "--frozen", "--format=pylock.toml", "--no-default-groups", *scope]
    return list(tomllib.loads(uv(argv, folder)).get("packages", []))


def exported_facts(packages: list[dict[str, Any]], environment: Mapping[str, str]) -> set[FACTS]:
    found = set()
    for item in packages:
        if "marker" in item and not Marker(item["marker"]).evaluate({"extra": "", **environment}):
            continue
        if item.get("directory", {}).get("path") != ".":
            found.add((item["name"], item.get("version"), _hashes(item), item.get("vcs", {}).get("commit-id", "")))
    return found


def _hashes(item: Mapping[str, Any]) -> frozenset[str]:
    single = [item[kind] for kind in ("sdist", "archive") if kind in item]
    return frozenset("sha256:" + entry["hashes"]["sha256"] for entry in [*item.get("wheels", []), *single])


def facts(package: LockedPackage) -> FACTS:
    commit = package.source.commit if isinstance(package.source, GitSource) else ""
    # uv tells no version of a folder
    is_folder = isinstance(package.source, LocalSource) and package.source.kind != "path"
    return package.name, None if is_folder else package.version, frozenset(package.hashes), commit


def locked(shelf: Path, shape: str, index: str, repository: Path) -> tuple[Path, CatalogueLock]:
    """Return the folder of a shape, which uv locks once, and its lock as it is read."""
    folder = shelf / shape
    if not folder.exists():
        folder.mkdir()
        write(folder, SHAPES[shape], index, repository)
    return folder, read_catalogue_lock(folder / "uv.lock")


@pytest.mark.parametrize("shape", SHAPES)
def test_what_an_environment_consists_of(shelf: Path, index: str, repository: Path, shape: str) -> None:
    folder, lock = locked(shelf, shape, index, repository)
    assert lock.graph is not None
    whole = set()
    for extras, groups in lock.graph.scopes():
        scope = [*(f"--extra={extra}" for extra in extras), *(f"--group={group}" for group in groups)]
        packages = exported(folder, scope)
        for machine, python in TARGETS:
            environment = cpython_markers(python, machine)
            ours = lock.all_for(environment, extras=extras, groups=groups)
            assert {facts(item) for item in ours} == exported_facts(packages, environment), (scope, machine, python)
            whole |= {item.name for item in ours}
    assert whole, "the shape locks something"


def test_rules_of_the_resolution_are_read(shelf: Path, index: str, repository: Path) -> None:
    folder, lock = locked(shelf, "overrides and constraints", index, repository)
    rules = lock.rules
    assert [str(item) for item in rules.overrides["hub"]] == ["hub<1.0,>=0.34"]
    assert [str(item) for item in rules.constraints["leaf"]] == ["leaf<2"]
    assert rules.excluded == {"never"}
    assert rules.requires("liar", "1.0", ["nowhere-to-be-found"]) == ("other",)
    assert rules.requires("liar", "2.0", ["own"]) == ("own",)
    found = lock.find("hub", cpython_markers("3.12.0", "x86_64"))
    assert found is not None and found.version == "0.36.2"
    assert (folder / "uv.lock").read_text().splitlines()[found.line] == 'name = "hub"'


def test_a_version_is_found_in_what_the_project_gets_by_default_then_in_its_extras(
    shelf: Path, index: str, repository: Path
) -> None:
    _folder, lock = locked(shelf, "conflicts", index, repository)
    environment = cpython_markers("3.12.0", "x86_64")
    default = {item.name: item.version for item in lock.all_for(environment)}
    found = {name: lock.find(name, environment) for name in ("leaf", "hub", "other")}
    assert {name: item.version for name, item in found.items() if item} == {**default, "hub": "0.36.2", "other": "1.0"}


def test_a_part_of_nemotrons_own_lock(shelf: Path) -> None:
    """The part of NVIDIA-NeMo/Nemotron's lock, at e27b371, that `nemo-run` and `huggingface-hub` need."""
    folder = shelf / "nemotron"
    shutil.copytree(Path(__file__).parent / "golden" / "nemotron-lock", folder)
    lock = read_catalogue_lock(folder / "uv.lock")
    packages = exported(folder, [])
    for machine, python in TARGETS:
        environment = cpython_markers(python, machine)
        assert {facts(item) for item in lock.all_for(environment)} == exported_facts(packages, environment)
    nemo_run, hub = (lock.find(name, environment) for name in ("nemo-run", "huggingface-hub"))
    assert nemo_run is not None and nemo_run.version == "0.10.0+a8425c9"
    commit = "a8425c9f11a45412e6d5338cecb1c014b0ecc0c4"
    assert nemo_run.source == GitSource("https://github.com/NVIDIA-NeMo/Run.git", commit)
    assert hub is not None and hub.version == "0.36.2"
    assert [str(item) for item in lock.rules.overrides["huggingface-hub"]] == ["huggingface-hub<1.0,>=0.34"]
