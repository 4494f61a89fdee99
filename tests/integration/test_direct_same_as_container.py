"""A direct image is to its users what a container build would have left: compared file by file, by what runs in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry.bundle.manifest import BundleManifest
from airferry.engine.driver import ContainerOptions, Engine, Volume, open_engine
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
from near_side import REFERENCE, TARGET, NearSide, commit_all
from pulled_images import pull_from_layout
from static_bases import elf
from wheel_factory import make_wheel, sha256, wheel_of

SITE = "/usr/local/lib/python3.11/dist-packages"
LISTING = """
import hashlib, json, os, stat
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
print(json.dumps(found))
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
    "setgid": Base(
        (
            folder("usr/local/lib", mode=0o2775, gid=50),
            folder("usr/local/lib/python3.11", mode=0o2775, gid=50),
            folder("usr/local/lib/python3.11/dist-packages", mode=0o2775, gid=50),
        ),
        "/usr/bin/python3",
        SITE,
    ),
    "linked": Base(
        (
            folder("srv"),
            folder("srv/local"),
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
    image = {**side.document["execution_images"]["py"], "base_image": f"oci:{base}:{REFERENCE}", "python": python}
    image["env"] = {"PYTHONPATH": f"{TARGET}:${{PYTHONPATH}}", "OMP_NUM_THREADS": 8}
    launcher = {
        **side.document["launcher_image"],
        "base_image": f"oci:{base}:{REFERENCE}",
        "python": "/usr/bin/python3",
    }
    side.write(execution_images={"py": image}, launcher_image=launcher, loader=False)


@pytest.fixture
def open_near_engine(near_cache: Path) -> Callable[[], AbstractContextManager[Engine]]:
    return lambda: open_engine(near_cache / "engine")


@dataclass(frozen=True)
class Inside:
    """What containers of an image say."""

    files: dict[str, list[Any]]
    texts: dict[str, str]
    listed: list[dict[str, str]]
    checked: str
    said: str


def look_inside(
    engine: Engine, bundle: Path, reference: str, python: str, *, pip: Path, texts: list[str], code: str, path: str
) -> Inside:
    image = pull_from_layout(engine, bundle, reference, platform=AMD64)
    volumes = [Volume(pip, "/run/" + pip.name)]

    def run(*argv: str) -> str:
        return engine.run(
            image,
            argv,
            platform=AMD64,
            options=ContainerOptions(volumes, env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}),
        ).text

    reading = f"import json; print(json.dumps({{name: open(name).read() for name in {texts!r}}}))"
    return Inside(
        files=json.loads(run("/usr/bin/python3", "-c", LISTING)),
        texts=json.loads(run("/usr/bin/python3", "-c", reading)),
        listed=json.loads(run(python, f"/run/{pip.name}/pip", "list", "--format", "json")),
        checked=run(python, f"/run/{pip.name}/pip", "check"),
        said=run("sh", "-c", code),
    )


def built_both_ways(side: NearSide) -> tuple[BundleManifest, BundleManifest, dict[str, Path]]:
    """Build with an engine and directly, from one lock, and return both manifests."""
    manifests, bundles = [], {}
    lock: bytes | None = None
    for builder in ("buildah", "direct"):
        side.write(builder=builder, paths={"output_dir": f"out-{builder}"})
        out = side.catalogue / f"out-{builder}"
        if lock is not None:
            out.mkdir()
            (out / "airgap.lock.yaml").write_bytes(lock)
        notices: list[Event] = []
        outcome = side.build(emit=notices.append)
        assert not [event for event in notices if isinstance(event, Notice) and "engine" in event.text]
        assert outcome.manifest is not None
        lock = (out / "airgap.lock.yaml").read_bytes()
        manifests.append(outcome.manifest)
        bundles[builder] = outcome.bundle
    return manifests[0], manifests[1], bundles


def test_what_a_container_build_made_is_reused_and_no_engine_is_opened(
    side: NearSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the engine was opened")

    side.write(builder="buildah")
    first = side.build()
    monkeypatch.setattr(session, "open_engine", refuse)
    again = side.build(locked=True)
    assert (again.root, again.reused) == (first.root, 2)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (one.get(key), other.get(key))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    }


@pytest.mark.parametrize("name", sorted(BASES))
def test_an_execution_image_is_the_same_file_by_file(
    name: str, side: NearSide, near_base: Path, near_cache: Path, open_near_engine: Any
) -> None:
    base = BASES[name]
    lay_out(side, write_base(near_base, side.root / "base", base), base.python)
    side.write(build_stages=["build-execution-images", "save-images"])
    by_engine, direct, bundles = built_both_ways(side)
    info = f"{base.site}/ferry_addition-1.0.dist-info"
    scripts = "/opt/venv/bin" if name == "venv" else "/usr/local/bin"
    code = f"{scripts}/ferry-run && {scripts}/ferry-script && {base.python} -c 'import thing; print(thing.ANSWER)'"
    pip = WheelStore(near_cache).pip_wheel((3, 11, 2))
    texts = [f"{info}/RECORD", f"{info}/INSTALLER", f"{scripts}/ferry-run"]
    found = []
    with open_near_engine() as engine:
        for builder, manifest in (("buildah", by_engine), ("direct", direct)):
            reference = next(image.reference for image in manifest.images if image.role == "execution")
            found.append(
                look_inside(
                    engine, bundles[builder], reference, base.python, pip=pip, texts=texts, code=code, path=TARGET
                )
            )
    container, ours = found
    changed = differences(container.files, ours.files)
    expected = {f"{info}/INSTALLER", f"{info}/RECORD", f"{scripts}/ferry-run"}
    if name == "linked":
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


@pytest.mark.parametrize("kind", ["debian", "venv"])
def test_a_launcher_is_the_same_file_by_file(
    side: NearSide, near_base: Path, near_cache: Path, open_near_engine: Any, kind: str
) -> None:
    base = BASES[kind]
    lay_out(side, write_base(near_base, side.root / "base", base), base.python)
    side.write(build_stages=["build-launcher-image", "save-images"])
    by_engine, direct, bundles = built_both_ways(side)
    environment = "/workspace/Nemotron/.venv"
    pip = WheelStore(near_cache).pip_wheel((3, 11, 2))
    code = (
        f"cd / && . {environment}/bin/activate && ferry-run && deactivate && "
        "python -c 'import sys; print(sys.prefix)' && "
        "python -c 'import ferry_addition, nemotron.steps, importlib.metadata as m; print(m.version(\"nemotron\"))'"
    )
    texts = [f"{environment}/pyvenv.cfg"]
    found = []
    with open_near_engine() as engine:
        for builder, manifest in (("buildah", by_engine), ("direct", direct)):
            reference = next(image.reference for image in manifest.images if image.role == "launcher")
            python = f"{environment}/bin/python"
            found.append(
                look_inside(
                    engine,
                    bundles[builder],
                    reference,
                    python,
                    pip=pip,
                    texts=texts,
                    code=code,
                    path="/workspace/Nemotron/src",
                )
            )
    container, ours = found
    changed = differences(container.files, ours.files)
    packages = f"{environment}/lib/python3.11/site-packages"
    assert set(changed) == {
        f"{packages}/ferry_addition-1.0.dist-info/INSTALLER",
        f"{packages}/ferry_addition-1.0.dist-info/RECORD",
        f"{packages}/nemotron-1.dist-info/INSTALLER",
        f"{packages}/nemotron-1.dist-info/RECORD",
        f"{environment}/bin/ferry-run",
        # one script for POSIX shells is written, none for other shells
        f"{environment}/bin/activate",
        f"{environment}/bin/activate.csh",
        f"{environment}/bin/activate.fish",
        f"{environment}/bin/Activate.ps1",
        # the plan is in the catalogue, and says which builder it wants
        "/workspace/Nemotron/airgap.yaml",
    }
    assert container.texts == ours.texts
    assert container.listed == ours.listed
    assert container.said == ours.said


def test_the_configs_agree_but_for_history_and_what_an_engine_adds(side: NearSide, near_base: Path) -> None:
    lay_out(side, write_base(near_base, side.root / "base", BASES["debian"]), "/usr/bin/python3")
    side.write(build_stages=["build-launcher-image", "build-execution-images", "save-images"])
    by_engine, direct, bundles = built_both_ways(side)
    for one, other in zip(by_engine.images, direct.images, strict=True):
        configs = []
        for builder, image in (("buildah", one), ("direct", other)):
            store = LayoutStore.open(bundles[builder], read_only=True)
            digest = image.platforms["linux/amd64"].config_digest
            configs.append(yaml.safe_load(store.blob_path(digest).read_text()))
        settings = [dict(config.pop("config")) for config in configs]
        for chosen in settings:
            chosen["Env"] = sorted(chosen["Env"])
            if one.role == "execution":
                assert {f"PYTHONPATH={TARGET}", "OMP_NUM_THREADS=8"} <= set(chosen["Env"])
        labels = [settings_of.pop("Labels") for settings_of in settings]
        assert {key: value for key, value in labels[0].items() if not key.startswith("io.buildah")} == labels[1]
        assert settings[0] == settings[1]
        assert "ferry-addition" in configs[1]["history"][-1]["created_by"] or one.role == "launcher"
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
    arrange: Callable[[NearSide], Base], reason: str, side: NearSide, near_base: Path
) -> None:
    base = arrange(side)
    write_base(near_base, side.root / "base", base)
    side.document["execution_images"]["py"] |= {
        "base_image": f"oci:{side.root / 'base'}:{REFERENCE}",
        "python": base.python,
    }
    commit_all(side.catalogue)
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
