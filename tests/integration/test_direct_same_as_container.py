"""A direct image is to its users what a container build would have left: compared file by file, by what runs in it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry.api import BuildOutcome
from airferry.bundle.manifest import ImageEntry
from airferry.engine.driver import ContainerOptions, Volume, open_engine
from airferry.errors import BuildError
from airferry.events import Event, Notice
from airferry.host.canonical import canonical_json
from airferry.near import session
from airferry.near.wheels.store import WheelStore
from airferry.oci.documents import (
    IMAGE_CONFIG,
    IMAGE_MANIFEST,
    REF_NAME,
    Manifest,
    parse_image_config,
    parse_index,
    parse_manifest,
)
from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.tar import DIRECTORY, SYMLINK, TarEntry, entry_blocks
from debian_bases import AMD64
from near_side import REFERENCE, TARGET, NearSide, answer_from_the_index, commit_all, make_near_side
from pulled_images import pull_from_layout
from static_bases import elf
from wheel_factory import make_wheel, sha256, wheel_of

SITE = "/usr/local/lib/python3.11/dist-packages"
LAUNCHER_BASES = ("debian", "venv")
ENVIRONMENT = "/workspace/Nemotron/.venv"
# what a container of an image says of it: all its files, the texts of some, what pip finds, what a script prints
LOOK = r"""
import hashlib, json, os, stat, subprocess, sys
# one process for both calls, as starting pip takes longer than they do
PIP = '''
import runpy, sys
sys.path[0] = sys.argv[1]
for call in (["list", "--format", "json"], ["check"]):
    sys.argv = ["pip", *call]
    try:
        runpy.run_module("pip", run_name="__main__")
    except SystemExit as end:
        assert not end.code, (call, end.code)
    print("--")
'''
python, pip, code, *texts = sys.argv[1:]
found = {}
skipped = {"proc", "sys", "dev", "run", "tmp"}
for folder, folders, names in os.walk("/"):
    if folder == "/":
        folders[:] = [name for name in folders if name not in skipped]
    for name in folders + names:
        path = os.path.join(folder, name)
        if path in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname"):
            continue
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        content = ""
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            with open(path, "rb") as stream:
                content = hashlib.sha256(stream.read()).hexdigest()
        time = status.st_mtime if stat.S_ISREG(kind) else 0
        found[path] = [oct(status.st_mode), status.st_uid, status.st_gid, time, content]

def output(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout

listed, checked, _ = output(python, "-c", PIP, pip).split("--\n")
print(json.dumps({
    "files": found,
    "texts": {name: open(name).read() for name in texts},
    "listed": json.loads(listed),
    "checked": checked,
    "said": output("sh", "-c", code),
}))
"""


def folder(name: str, *, mode: int = 0o755, gid: int = 0) -> TarEntry:
    return TarEntry(name + "/", type=DIRECTORY, mode=mode, gid=gid)


def link(name: str, target: str) -> TarEntry:
    return TarEntry(name, type=SYMLINK, mode=0o777, link_name=target)


def text(name: str, content: str, *, mode: int = 0o644) -> tuple[TarEntry, bytes]:
    return TarEntry(name, size=len(content.encode()), mode=mode), content.encode()


@dataclass(frozen=True)
class Base:
    """What a layer puts onto Debian, and which interpreter of it gets the additions."""

    entries: tuple[TarEntry | tuple[TarEntry, bytes], ...]
    python: str
    site: str


VENV = (
    folder("opt"),
    folder("opt/venv"),
    folder("opt/venv/bin"),
    folder("opt/venv/lib"),
    folder("opt/venv/lib/python3.11"),
    folder("opt/venv/lib/python3.11/site-packages"),
    link("opt/venv/lib64", "lib"),
    link("opt/venv/bin/python3", "/usr/bin/python3"),
    link("opt/venv/bin/python", "python3"),
    text("opt/venv/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11.2\n"),
)
STALE = (folder("opt"), folder("opt/thing"), text("opt/thing/stale.txt", "replaced"))
BASES = {
    "debian": Base(STALE, "/usr/bin/python3", SITE),
    "venv": Base((*VENV, *STALE[1:]), "/opt/venv/bin/python", "/opt/venv/lib/python3.11/site-packages"),
    # folders that hand on their group, behind links
    "odd": Base(
        (
            folder("srv"),
            folder("srv/local"),
            folder("srv/local/lib", mode=0o2775, gid=50),
            folder("srv/local/lib/python3.11", mode=0o2775, gid=50),
            folder("srv/local/lib/python3.11/dist-packages", mode=0o2775, gid=50),
            link("usr/local", "../srv/local"),
            link("opt", "srv"),
        ),
        "/usr/bin/python3",
        SITE,
    ),
}


def write_base(near_base: Path, path: Path, base: Base) -> Path:
    """Write a layout with the first layer of the near side's base, for amd64, and one that holds the entries."""
    source, store = LayoutStore.open(near_base, read_only=True), LayoutStore.create(path)
    index = parse_index(source.read_bytes(source.resolve(REFERENCE)))
    child = next(item for item in index.manifests if item.platform and item.platform.architecture == "amd64")
    manifest = parse_manifest(source.read_bytes(child))
    config = parse_image_config(source.read_bytes(manifest.config)).model_dump(by_alias=True, exclude_none=True)
    debian = manifest.layers[0]
    with source.open_blob(debian) as stream:
        store.put_blob(debian, stream)

    def tar() -> Any:
        for item in base.entries:
            entry, data = item if isinstance(item, tuple) else (item, b"")
            yield from entry_blocks(entry, [data])
        yield bytes(1024)

    made = compress_layer(tar(), compression=Compression("gzip", 1), into=store)
    config["rootfs"]["diff_ids"] = [config["rootfs"]["diff_ids"][0], made.diff_id]
    config["history"] = config["history"][:1] + config["history"][-1:]
    document = Manifest(
        schema_version=2,
        media_type=IMAGE_MANIFEST,
        config=store.put_bytes(canonical_json(config), IMAGE_CONFIG),
        layers=[debian, made.descriptor],
    )
    top = store.put_bytes(canonical_json(document), IMAGE_MANIFEST)
    store.write_index([top.annotated(annotations={REF_NAME: REFERENCE})])
    return path


def lay_out(side: NearSide, base: Path, python: str) -> None:
    """Make the near side's additions rich: scripts, data, headers, a compiled module's mode, one from Git."""
    wheel = wheel_of(
        side.index,
        "ferry-addition",
        "1.0",
        {
            "ferry_addition/__init__.py": b"VERSION = '1.0'\ndef main():\n    print('ran', VERSION)\n",
            "ferry_addition/native.so": b"\x7fELF not really",
            "ferry_addition/text.txt": b"text\n",
            "ferry_addition-1.0.data/scripts/ferry-script": b"#!python\nprint('script')\n",
            "ferry_addition-1.0.data/scripts/ferry-shell": b"#!/bin/sh\necho shell\n",
            "ferry_addition-1.0.data/data/share/ferry/data.txt": b"data\n",
            "ferry_addition-1.0.data/headers/ferry.h": b"#define FERRY\n",
            "ferry_addition-1.0.dist-info/entry_points.txt": b"[console_scripts]\nferry-run = ferry_addition:main\n",
        },
        executable=("ferry_addition/native.so", "ferry_addition-1.0.data/scripts/ferry-script"),
    )
    (side.catalogue / "requirements.txt").write_text(f"ferry-addition==1.0 --hash=sha256:{sha256(wheel)}\n")
    (side.thing / "tool").mkdir()
    (side.thing / "tool" / "run.sh").write_text("#!/bin/sh\n")
    (side.thing / "tool" / "run.sh").chmod(0o755)
    (side.thing / "tool" / "again").symlink_to("run.sh")
    (side.thing / "thing.py").write_text("ANSWER = 42\n")
    commit_all(side.thing)
    commit_all(side.catalogue)
    base_image = f"oci:{base}:{REFERENCE}"
    image = {**side.document["execution_images"]["py"], "base_image": base_image, "python": python}
    image["env"] = {"PYTHONPATH": f"{TARGET}:${{PYTHONPATH}}", "OMP_NUM_THREADS": 8}
    launcher = {**side.document["launcher_image"], "base_image": base_image, "python": "/usr/bin/python3"}
    side.write(execution_images={"py": image}, launcher_image=launcher, loader=False)


@dataclass(frozen=True)
class Inside:
    """What a container of an image says."""

    files: dict[str, list[Any]]
    texts: dict[str, str]
    listed: list[dict[str, str]]
    checked: str
    said: str


@dataclass(frozen=True)
class BothWays:
    """A launcher and an execution image that were built with an engine and directly, from one lock."""

    side: NearSide
    cache: Path
    outcomes: dict[str, BuildOutcome]
    documents: dict[str, dict[str, Any]]

    def images(self, role: str) -> list[tuple[Path, ImageEntry]]:
        """Return the bundle and the image of a role: the container's, then the one assembled directly."""
        found = []
        for builder in ("buildah", "direct"):
            manifest = self.outcomes[builder].manifest
            assert manifest is not None
            (image,) = (image for image in manifest.images if image.role == role)
            found.append((self.outcomes[builder].bundle, image))
        return found

    def look_inside(self, role: str, python: str, *, texts: list[str], code: str, path: str) -> list[Inside]:
        pip = WheelStore(self.cache).pip_wheel((3, 11, 2))
        argv = ["/usr/bin/python3", "-c", LOOK, python, f"/run/{pip.name}", code, *texts]
        options = ContainerOptions(
            [Volume(pip, f"/run/{pip.name}")], env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
        )
        found = []
        with open_engine(self.cache / "engine") as engine:
            for bundle, image in self.images(role):
                local = pull_from_layout(engine, bundle, image.reference, platform=AMD64)
                found.append(Inside(**json.loads(engine.run(local, argv, platform=AMD64, options=options).text)))
        return found


def build_both_ways(side: NearSide, cache: Path) -> BothWays:
    both = BothWays(side, cache, {}, {})
    lock: bytes | None = None
    for builder in ("buildah", "direct"):
        side.write(builder=builder, paths={"output_dir": f"out-{builder}"})
        both.documents[builder] = side.document
        out = side.catalogue / f"out-{builder}"
        if lock is not None:
            out.mkdir()
            (out / "airgap.lock.yaml").write_bytes(lock)
        notices: list[Event] = []
        both.outcomes[builder] = side.build(emit=notices.append)
        assert not [event for event in notices if isinstance(event, Notice) and "engine" in event.text]
        lock = (out / "airgap.lock.yaml").read_bytes()
    return both


@pytest.fixture(scope="module")
def both_ways(near_base: Path, near_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BothWays]:
    """Return a function that builds on a base of `BASES`, once."""

    @functools.cache
    def build(name: str) -> BothWays:
        side, base = make_near_side(tmp_path_factory.mktemp(name) / "near", near_base), BASES[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIRFERRY_CACHE", str(near_cache))
            for key, value in side.environment.items():
                patch.setenv(key, value)
            answer_from_the_index(side, patch)
            lay_out(side, write_base(near_base, side.root / "base", base), base.python)
            if name not in LAUNCHER_BASES:
                side.write(launcher_image=False)
            return build_both_ways(side, near_cache)

    return build


def test_what_a_container_build_made_is_reused_and_no_engine_is_opened(
    both_ways: Callable[[str], BothWays], near_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the engine was opened")

    both = both_ways("debian")
    monkeypatch.setenv("AIRFERRY_CACHE", str(near_cache))
    for key, value in both.side.environment.items():
        monkeypatch.setenv(key, value)
    both.side.write(**both.documents["buildah"])
    monkeypatch.setattr(session, "open_engine", refuse)
    again = both.side.build(locked=True)
    assert (again.root, again.reused) == (both.outcomes["buildah"].root, 2)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (one.get(key), other.get(key))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    }


@pytest.mark.parametrize("name", sorted(BASES))
def test_an_execution_image_is_the_same_file_by_file(name: str, both_ways: Callable[[str], BothWays]) -> None:
    base = BASES[name]
    info = f"{base.site}/ferry_addition-1.0.dist-info"
    scripts = "/opt/venv/bin" if name == "venv" else "/usr/local/bin"
    found = both_ways(name).look_inside(
        "execution",
        base.python,
        texts=[f"{info}/RECORD", f"{info}/INSTALLER", f"{scripts}/ferry-run"],
        code=f"{scripts}/ferry-run && {scripts}/ferry-script && {base.python} -c 'import thing; print(thing.ANSWER)'",
        path=TARGET,
    )
    container, ours = found
    changed = differences(container.files, ours.files)
    expected = {f"{info}/INSTALLER", f"{info}/RECORD", f"{scripts}/ferry-run"}
    if name == "odd":
        expected = {path.replace("/usr/local", "/srv/local") for path in expected}
    assert set(changed) == expected, "the installer's own name, what follows from it, and its template of a script"
    for path in expected:
        one, other = changed[path]
        assert one[:4] == other[:4], f"mode, owner and time of `{path}`"
    assert (container.texts[f"{info}/INSTALLER"], ours.texts[f"{info}/INSTALLER"]) == ("pip\n", "airferry\n")
    scripts_of = [inside.texts[f"{scripts}/ferry-run"] for inside in found]
    assert [script.splitlines()[0] for script in scripts_of] == [f"#!{base.python}"] * 2
    rows = [{line.split(",")[0]: line for line in inside.texts[f"{info}/RECORD"].splitlines()} for inside in found]
    assert set(differences(*rows)) == {
        "ferry_addition-1.0.dist-info/INSTALLER",
        next(key for key in rows[0] if key.endswith("bin/ferry-run")),
    }
    assert container.listed == ours.listed and {"name": "ferry-addition", "version": "1.0"} in ours.listed
    assert container.checked == ours.checked == "No broken requirements found.\n"
    assert container.said == ours.said == "ran 1.0\nscript\n42\n"


@pytest.mark.parametrize("name", LAUNCHER_BASES)
def test_a_launcher_is_the_same_file_by_file(name: str, both_ways: Callable[[str], BothWays]) -> None:
    code = (
        f"cd / && . {ENVIRONMENT}/bin/activate && ferry-run && deactivate && "
        "python -c 'import sys; print(sys.prefix)' && "
        "python -c 'import ferry_addition, nemotron.steps, importlib.metadata as m; print(m.version(\"nemotron\"))'"
    )
    found = both_ways(name).look_inside(
        "launcher",
        f"{ENVIRONMENT}/bin/python",
        texts=[f"{ENVIRONMENT}/pyvenv.cfg"],
        code=code,
        path="/workspace/Nemotron/src",
    )
    container, ours = found
    changed = differences(container.files, ours.files)
    packages = f"{ENVIRONMENT}/lib/python3.11/site-packages"
    assert set(changed) == {
        f"{packages}/ferry_addition-1.0.dist-info/INSTALLER",
        f"{packages}/ferry_addition-1.0.dist-info/RECORD",
        f"{packages}/nemotron-1.dist-info/INSTALLER",
        f"{packages}/nemotron-1.dist-info/RECORD",
        f"{ENVIRONMENT}/bin/ferry-run",
        # one script for POSIX shells is written, none for other shells
        f"{ENVIRONMENT}/bin/activate",
        f"{ENVIRONMENT}/bin/activate.csh",
        f"{ENVIRONMENT}/bin/activate.fish",
        f"{ENVIRONMENT}/bin/Activate.ps1",
        # the plan is in the catalogue, and says which builder it wants
        "/workspace/Nemotron/airgap.yaml",
    }
    assert container.texts == ours.texts
    assert container.listed == ours.listed
    assert container.said == ours.said


def test_the_configs_agree_but_for_history_and_what_an_engine_adds(both_ways: Callable[[str], BothWays]) -> None:
    both = both_ways("debian")
    for role in ("launcher", "execution"):
        configs = []
        for bundle, image in both.images(role):
            store = LayoutStore.open(bundle, read_only=True)
            digest = image.platforms["linux/amd64"].config_digest
            configs.append(yaml.safe_load(store.blob_path(digest).read_text()))
        settings = [dict(config.pop("config")) for config in configs]
        for chosen in settings:
            chosen["Env"] = sorted(chosen["Env"])
            if role == "execution":
                assert {f"PYTHONPATH={TARGET}", "OMP_NUM_THREADS=8"} <= set(chosen["Env"])
        labels = [settings_of.pop("Labels") for settings_of in settings]
        assert {key: value for key, value in labels[0].items() if not key.startswith("io.buildah")} == labels[1]
        assert settings[0] == settings[1]
        assert "ferry-addition" in configs[1]["history"][-1]["created_by"] or role == "launcher"
        for config in configs:
            config.pop("history"), config.pop("rootfs")
        assert configs[0] == configs[1]


SITE_1 = f"{SITE.lstrip('/')}/second_addition-1.0.dist-info"
OWN_CONTAINERFILE = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN true\n"


def with_containerfile(side: NearSide) -> Base:
    (side.catalogue / "Own.containerfile").write_text(OWN_CONTAINERFILE)
    side.document["execution_images"]["py"]["containerfile"] = "Own.containerfile"
    return BASES["debian"]


def with_conflict(side: NearSide) -> Base:
    """Let an addition ask for a newer version of what the base has, and the plan for giving it that."""
    first = make_wheel(side.index, "ferry-addition", "1.0", requires=["second-addition>=2"])
    second = make_wheel(side.index, "second-addition", "2.0")
    lines = [
        f"{name} --hash=sha256:{sha256(wheel)}\n"
        for name, wheel in (("ferry-addition==1.0", first), ("second-addition==2.0", second))
    ]
    (side.catalogue / "requirements.txt").write_text("".join(lines))
    side.document["execution_images"]["py"]["pip_no_deps"] = False
    metadata = "Metadata-Version: 2.1\nName: second-addition\nVersion: 1.0\n"
    record = "second_addition-1.0.dist-info/METADATA,,\nsecond_addition-1.0.dist-info/RECORD,,\n"
    folders = [folder("/".join(SITE_1.split("/")[:count])) for count in range(3, SITE_1.count("/") + 2)]
    entries = (*folders, text(f"{SITE_1}/METADATA", metadata), text(f"{SITE_1}/RECORD", record))
    return Base((*STALE, *entries), "/usr/bin/python3", SITE)


def with_two_versions(side: NearSide) -> Base:
    library = text("usr/lib/libpython3.11.so.1.0", elf("3.11.9").decode("latin-1"))
    return Base((*STALE, library), "/usr/bin/python3", SITE)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (with_containerfile, "it has its own Containerfile, `Own.containerfile`"),
        (with_conflict, "an older `second-addition` of the base would have to be uninstalled first"),
        (with_two_versions, "shows several versions of Python 3.11"),
    ],
)
def test_auto_takes_an_engine_where_files_do_not_suffice_and_says_why(
    arrange: Callable[[NearSide], Base],
    reason: str,
    side: NearSide,
    near_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = arrange(side)
    write_base(near_base, side.root / "base", base)
    side.document["execution_images"]["py"] |= {
        "base_image": f"oci:{side.root / 'base'}:{REFERENCE}",
        "python": base.python,
    }
    commit_all(side.catalogue)
    answer_from_the_index(side, monkeypatch)
    side.write(builder="auto", build_stages=["build-execution-images"])
    events: list[Event] = []
    side.build(emit=events.append)
    told = [
        event.text for event in events if isinstance(event, Notice) and "is built with a container engine" in event.text
    ]
    assert len(told) == 1 and reason in told[0], told
    side.write(builder="direct")
    with pytest.raises(BuildError, match="cannot be assembled directly") as caught:
        side.build()
    assert reason in caught.value.message and "builder: auto" in (caught.value.hint or "")


def test_podman_serves_where_there_is_no_buildah_and_builds_the_same(
    both_ways: Callable[[str], BothWays],
    require_tool: Callable[[str], Path],
    near_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_tool("podman")
    both = both_ways("debian")
    by_buildah = both.outcomes["buildah"]
    both.side.write(**both.documents["buildah"])
    monkeypatch.setenv("AIRFERRY_CACHE", str(near_cache))
    programs = tmp_path / "programs"
    programs.mkdir()
    for path in Path("/usr/bin").iterdir():
        if path.name != "buildah":
            (programs / path.name).symlink_to(path)
    done = both.side.run("build", "--json", PATH=str(programs))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["reused"] == 0
    assert [image["digest"] for image in answer["images"]] == [image.digest for image in by_buildah.images]
    manifest = yaml.safe_load((by_buildah.output / "airgap-manifest.yaml").read_text())
    assert manifest["tool"]["versions"]["engine"].startswith("podman ")
    with open_engine(near_cache / "engine", engine="podman") as engine:
        found = pull_from_layout(engine, by_buildah.bundle, answer["images"][-1]["reference"], platform=AMD64)
        code = "import ferry_addition; print(ferry_addition.VERSION)"
        assert engine.run(found, ["/usr/bin/python3", "-c", code], platform=AMD64).text.strip() == "1.0"
