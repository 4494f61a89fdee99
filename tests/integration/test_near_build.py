"""Real builds: what is in the bundle, that other tools read it, and that the same lock gives the same root."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from airferry.api import BuildOutcome, verify
from airferry.bundle.manifest import MANIFEST_FILE, BundleManifest, ImageEntry, PlatformEntry
from airferry.engine.driver import ContainerOptions, open_engine
from airferry.errors import ConfigurationError, UsageError
from airferry.events import Event, Notice
from airferry.host import files, process
from airferry.host.threads import parallel_map
from airferry.near import session
from airferry.oci.documents import DOCKER_MANIFEST_LIST, parse_index, parse_manifest
from airferry.oci.entries import names_of
from airferry.oci.layout import LayoutStore
from debian_bases import AMD64, ARM64, DebianBase
from near_side import (
    TARGET,
    NearSide,
    added_files,
    answer_from_the_index,
    commit_all,
    config_of,
    git,
    make_near_side,
    snapshot,
    temporaries,
)
from pulled_images import pull_from_layout

OFFLINE = {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "HF_DATASETS_OFFLINE=1", "WANDB_MODE=offline"}
STATE = "airgap-build-state.yaml"
NON_ASCII = "fl\u00f8de.txt"
NOT_OURS = "`tracked.txt` is not part of the bundle"


@dataclass(frozen=True)
class Built:
    """A whole plan, built once for many tests."""

    side: NearSide
    outcome: BuildOutcome
    cache: Path

    @property
    def store(self) -> LayoutStore:
        return LayoutStore.open(self.outcome.bundle, read_only=True)

    @property
    def manifest(self) -> BundleManifest:
        assert self.outcome.manifest is not None
        return self.outcome.manifest

    def image(self, beginning: str) -> ImageEntry:
        (found,) = (image for image in self.manifest.images if image.image.startswith(beginning))
        return found

    def on_amd64(self, beginning: str) -> PlatformEntry:
        return self.image(beginning).platforms["linux/amd64"]


@pytest.fixture
def side(side: NearSide, monkeypatch: pytest.MonkeyPatch) -> NearSide:
    """A near side whose builds in this process start no pip. `built` is made with the real one."""
    answer_from_the_index(side, monkeypatch)
    return side


def own_config(folder: Path, catalogue: str) -> Path:
    """Write a customer's own config for `train/run` that inherits from the catalogue and from a file next to it."""
    folder.mkdir()
    (folder / "site.yaml").write_text("run: {env: {nodes: 2}}\n")
    tiny = f"{catalogue}/src/nemotron/steps/train/run/config/tiny.yaml"
    (folder / "mine.yaml").write_text(f"defaults: [{tiny}, site]\na: 7\n")
    return folder / "mine.yaml"


@pytest.fixture(scope="module")
def built(near_base: Path, near_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """A launcher, an image with addition and overlay, and one that lacks nothing, with archives."""
    side = make_near_side(tmp_path_factory.mktemp("built") / "near", near_base)
    image = side.document["execution_images"]["py"]
    own = own_config(side.root / "own", "../catalogue")
    for repository in (side.catalogue, side.thing):
        (repository / NON_ASCII).write_text("cream\n")
        git(repository, "add", NON_ASCII)
        git(repository, "commit", "--quiet", "--message", "add a name that is not ASCII")
    side.write(
        workflow={"name": "tests", "stages": ["train/run:tiny", "bare/nothing:tiny", f"train/run:{own}"]},
        step_execution_images={"train/run": "py", "bare/nothing": "bare"},
        execution_images={"py": image, "bare": {**image, "tag": "bare:1", "tar": "bare.tar"}},
        archives=True,
        docker_twin=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFERRY_CACHE", str(near_cache))
        for name, value in side.environment.items():
            patch.setenv(name, value)
        yield Built(side, side.build(), near_cache)


def test_an_execution_image_is_offline_and_keeps_what_its_base_says(built: Built) -> None:
    settings = config_of(built.store, built.on_amd64("py"))["config"]
    assert set(settings["Env"]) >= OFFLINE | {"FROM_BASE=1"}
    assert settings["User"] == "1000"
    assert str(built.side.root) not in json.dumps(settings)


def test_an_overlay_replaces_what_was_at_its_target_and_brings_no_git(built: Built) -> None:
    added = added_files(built.store, built.on_amd64("py"))
    inside = TARGET.lstrip("/")
    assert added[f"{inside}/thing.py"] == b"ANSWER = 42\n"
    assert added[f"{inside}/{NON_ASCII}"] == b"cream\n"
    assert f"{inside}/stale.txt" not in added
    opaque = f"{inside}/.wh..wh..opq" in added or f"{inside}/.wh.stale.txt" in added
    assert opaque, "what the base had there is hidden"
    for image in built.manifest.images:
        names = added_files(built.store, image.platforms["linux/amd64"])
        assert not [name for name in names if ".git" in Path(name).parts]


def test_the_catalogue_is_in_the_launcher_alone_without_secrets_and_output(built: Built) -> None:
    for name in ("py", "bare"):
        added = added_files(built.store, built.on_amd64(name))
        assert not [path for path in added if "step.py" in path or path.startswith("workspace")]
        assert not [path for path in added if path.startswith(("run/", "tmp/", "root/", "var/cache"))]
    carried = added_files(built.store, built.on_amd64("launcher"))
    workspace = "workspace/Nemotron"
    assert f"{workspace}/src/nemotron/steps/train/run/step.py" in carried
    assert f"{workspace}/pyproject.toml" in carried
    assert carried[f"{workspace}/{NON_ASCII}"] == b"cream\n"
    step = f"{workspace}/src/nemotron/steps/train/run"
    assert carried[f"{step}/config/mine.yaml"] == b"defaults: [tiny.yaml, ../inherited/mine/site.yaml]\na: 7\n"
    assert carried[f"{step}/inherited/mine/site.yaml"] == b"run: {env: {nodes: 2}}\n"
    assert str(built.side.root).encode() not in (built.side.out / "airgap-manifest.yaml").read_bytes().replace(
        built.side.thing.as_uri().encode(), b""
    ).replace(str(built.side.base).encode(), b"")
    for name in (".env", "env.toml", "untracked.txt", "out/tracked.txt"):
        assert f"{workspace}/{name}" not in carried
    assert not [path for path, data in carried.items() if data and b"SECRET" in data]


def test_what_was_added_can_be_imported_from_the_bundle_without_network(built: Built) -> None:
    code = (
        "import os, sys, ferry_addition, thing; print(ferry_addition.VERSION, thing.ANSWER, "
        "len(os.listdir(sys.argv[1])), open('/opt/keep.txt').read())"
    )
    with open_engine(built.cache / "engine") as engine:
        image = pull_from_layout(engine, built.outcome.bundle, built.image("py").reference, platform=AMD64)
        done = engine.run(
            image,
            ["/usr/bin/python3", "-B", "-c", code, TARGET],
            platform=AMD64,
            options=ContainerOptions(env={"PYTHONPATH": TARGET}),
        )
        assert done.text == "1.0 42 2 kept\n"
        image = pull_from_layout(engine, built.outcome.bundle, built.image("launcher").reference, platform=AMD64)
        code = (
            "import importlib.metadata as m, nemotron.steps; print(m.version('nemotron'), m.version('ferry-addition'))"
        )
        done = engine.run(image, ["/workspace/Nemotron/.venv/bin/python", "-c", code], platform=AMD64)
        assert done.text.split() == ["1", "1.0"]


def test_layers_have_one_compression_and_keep_the_bases_diff_ids_and_digests(
    built: Built, near_base: Path, debian_base: DebianBase
) -> None:
    base = LayoutStore.open(near_base, read_only=True)
    index = parse_index(base.read_bytes(base.resolve("base:1")))
    child = next(item for item in index.manifests if item.platform and item.platform.architecture == "amd64")
    originals = [layer.digest for layer in parse_manifest(base.read_bytes(child)).layers]
    for image in built.manifest.images:
        entry = image.platforms["linux/amd64"]
        manifest = parse_manifest(
            built.store.blob_path(entry.digest).read_bytes(), what=f"the manifest of {image.name}"
        )
        assert {layer.media_type for layer in manifest.layers} == {"application/vnd.oci.image.layer.v1.tar+zstd"}
        assert [layer.original_digest for layer in entry.layers[:2]] == originals
        assert [layer.from_base for layer in entry.layers] == [True, True] + [False] * (len(entry.layers) - 2)
        diff_ids = config_of(built.store, entry)["rootfs"]["diff_ids"]
        assert diff_ids == [layer.diff_id for layer in entry.layers]
        assert diff_ids[0] == debian_base.diff_ids(AMD64)[0]
        assert entry.base_digest == child.digest
        assert manifest.annotations and manifest.annotations["org.opencontainers.image.base.digest"] == child.digest


def test_a_group_that_lacks_nothing_brings_no_file(built: Built) -> None:
    bare = built.on_amd64("bare")
    assert not [path for path, data in added_files(built.store, bare).items() if data is not None]
    assert bare.additions == ()
    assert set(config_of(built.store, bare)["config"]["Env"]) >= OFFLINE
    group = next(group for group in built.manifest.execution_groups if group.image_names == ("bare",))
    assert (group.requirements_path, group.repo_overlays_path) == (None, None)
    assert not (built.side.out / f"requirements-{group.name}.txt").exists()


def test_each_blob_is_there_once_and_named(built: Built) -> None:
    report = verify(built.side.out, root=built.outcome.root)
    report.raise_if_wrong()
    assert report.root_verified and report.images == 3 and report.beside == (NOT_OURS,)
    shared = {layer.digest for layer in built.on_amd64("py").layers if layer.from_base}
    assert shared == {layer.digest for layer in built.on_amd64("launcher").layers if layer.from_base}
    assert len(built.store.stored_digests()) == report.blobs


def test_each_image_has_a_docker_twin_of_the_same_platforms(built: Built) -> None:
    listed = {name: item for item in built.store.read_index().manifests for name in names_of(item)}
    for image in built.manifest.images:
        assert image.docker_twin is not None and image.docker_twin.reference == f"{image.reference}-docker"
        twin = listed[image.docker_twin.reference]
        assert (twin.media_type, twin.digest) == (DOCKER_MANIFEST_LIST, image.docker_twin.digest)
        children = parse_index(built.store.read_bytes(twin)).manifests
        assert [child.digest for child in children] == [entry.digest for entry in image.platforms.values()]


def test_what_nemotrons_users_know_lies_beside_the_bundle(built: Built) -> None:
    out = built.side.out
    (group,) = (group for group in built.manifest.execution_groups if group.image_names == ("py",))
    assert (out / f"requirements-{group.name}.txt").read_text().startswith("ferry-addition==1.0 --hash=sha256:")
    overlays = json.loads((out / f"repo-overlays-{group.name}.json").read_text())
    assert overlays[0]["commit"] == git(built.side.thing, "rev-parse", "HEAD")
    beside = yaml.safe_load((out / "airgap-manifest.yaml").read_text())
    assert beside["root"] == built.outcome.root
    assert beside["step_execution_images"]["train/run"] == group.selected_image
    assert beside["saved_images"][0]["layout"] == "bundle"
    assert str(built.side.root) not in (out / "airgap-manifest.yaml").read_text().replace(
        built.side.thing.as_uri(), ""
    ).replace(f"oci:{built.side.base}", "")


def test_archives_are_what_podman_loads(built: Built, require_tool: Callable[[str], Path], tmp_path: Path) -> None:
    podman = require_tool("podman")
    saved = {item.name: item for item in built.manifest.saved_images}
    assert all(item.tar and (built.side.out / item.tar).is_file() for item in saved.values())
    entry = next(item for item in saved.values() if item.image.startswith("bare"))
    assert entry.tar is not None
    archive = built.side.out / entry.tar
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == (entry.sha256 or "").removeprefix("sha256:")
    with tempfile.TemporaryDirectory() as short:
        storage = ["--root", tmp_path / "root", "--runroot", short, "--storage-driver", "vfs"]
        done = process.run([podman, *storage, "load", "--input", archive], timeout_s=120)
        assert entry.reference.split("/")[-1] in done.text
        process.run([podman, *storage, "unshare", "rm", "-rf", tmp_path / "root"], timeout_s=60)


def test_other_tools_read_the_bundle(built: Built, require_tool: Callable[[str], Path], tmp_path: Path) -> None:
    skopeo = require_tool("skopeo")
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    image = built.image("py")
    source = f"oci:{built.outcome.bundle}:{image.reference}"
    shown = json.loads(process.run([skopeo, "--policy", policy, "inspect", source], timeout_s=60).text)
    assert shown["Digest"] == image.platforms["linux/amd64"].digest or shown["Digest"] == image.digest
    copied = tmp_path / "copied"
    process.run([skopeo, "--policy", policy, "copy", "--all", source, f"oci:{copied}:x"], timeout_s=120)
    assert LayoutStore.open(copied).resolve("x").digest == image.digest


def test_podman_pulls_from_the_bundle_too(built: Built, require_tool: Callable[[str], Path]) -> None:
    require_tool("podman")
    with open_engine(built.cache / "engine", engine="podman") as engine:
        image = pull_from_layout(engine, built.outcome.bundle, built.image("bare").reference, platform=AMD64)
        done = engine.run(image, ["cat", "/opt/keep.txt"], platform=AMD64)
        assert done.text == "kept"


def test_a_second_run_reuses_all_and_opens_no_engine(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the engine was opened")

    monkeypatch.setenv("AIRFERRY_CACHE", str(built.cache))
    monkeypatch.setattr(session, "open_engine", refuse)
    before = snapshot(built.side.out)
    stamp = (built.side.out / STATE).stat().st_mtime_ns
    again = built.side.build(locked=True)
    assert (again.root, again.reused) == (built.outcome.root, 3)
    assert snapshot(built.side.out) == before
    assert (built.side.out / STATE).stat().st_mtime_ns == stamp


def test_the_same_lock_gives_the_same_root_anywhere(
    built: Built, near_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builds at once in a cold cache, in another locale, with other settings of much that a host sets."""
    side = built.side
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tmp").mkdir(parents=True)
    clone = elsewhere / "clone"
    git(elsewhere, "clone", "--quiet", str(side.catalogue), "clone")
    git(clone, "rm", "--quiet", "out/tracked.txt")
    source = {"root": str(clone), "lock": str(clone / "requirements.txt")}
    stages = [*side.document["workflow"]["stages"][:-1], f"train/run:{own_config(elsewhere / 'own', str(clone))}"]
    document = {**side.document, "workflow": {"name": "tests", "stages": stages}, "source": source}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        out, config = elsewhere / name, elsewhere / f"{name}.yaml"
        out.mkdir()
        (out / "airgap.lock.yaml").write_bytes((side.out / "airgap.lock.yaml").read_bytes())
        config.write_text(yaml.safe_dump({**document, "paths": {"output_dir": str(out)}}, sort_keys=False))
        return side.run(
            *["build", "--config", str(config), "--locked", "--jobs", "1", "--json"],
            TMPDIR=str(elsewhere / "tmp"),
            AIRFERRY_CACHE=str(elsewhere / "cache"),
            LC_ALL="tr_TR.ISO-8859-9",
            PYTHONUTF8="0",
            LANG="de_DE.UTF-8",
            TZ="Asia/Kathmandu",
            PYTHONHASHSEED="7",
        )

    names = ["out", "another-out"]
    old = os.umask(0o077)
    try:
        runs = parallel_map(run, names, jobs=2)
    finally:
        os.umask(old)
    for name, done in zip(names, runs, strict=True):
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["reused"] == 0
        assert {image["reference"]: image["digest"] for image in answer["images"]} == {
            image.reference: image.digest for image in built.manifest.images
        }
        assert (elsewhere / name / MANIFEST_FILE).read_text() == (side.out / MANIFEST_FILE).read_text()
        assert answer["root"] == built.outcome.root
    assert list((elsewhere / "tmp").iterdir()) == []
    assert temporaries(elsewhere / "cache") == []
    assert list((elsewhere / "cache" / "locks").iterdir()) == []


def test_two_platforms_stand_under_one_index(side: NearSide, near_cache: Path) -> None:
    side.write(platforms=["linux/arm64", "linux/amd64"])
    outcome = side.build()
    assert outcome.manifest is not None
    image = next(image for image in outcome.manifest.images if image.role == "execution")
    index = parse_index(side.store().blob_path(image.digest).read_bytes())
    assert [str(child.platform.architecture) for child in index.manifests if child.platform] == ["amd64", "arm64"]
    assert [child.digest for child in index.manifests] == [
        image.platforms[name].digest for name in ("linux/amd64", "linux/arm64")
    ]
    with open_engine(near_cache / "engine") as engine:
        found = pull_from_layout(engine, outcome.bundle, image.reference, platform=ARM64)
        code = "import platform, ferry_addition; print(platform.machine())"
        assert engine.run(found, ["/usr/bin/python3", "-c", code], platform=ARM64).text.strip() == "aarch64"


@pytest.mark.parametrize("kind", ["gzip", "preserve"])
def test_the_compression_is_the_one_asked_for(side: NearSide, near_base: Path, kind: str) -> None:
    side.write(compression=kind)
    outcome = side.build()
    assert outcome.manifest is not None
    entry = outcome.manifest.images[-1].platforms["linux/amd64"]
    assert {layer.media_type for layer in entry.layers} == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    for layer in entry.layers[:2]:
        kept = LayoutStore.open(near_base).blob_path(layer.original_digest or layer.digest)
        assert kept.is_file()
        if kind == "preserve":
            assert side.store().blob_path(layer.digest).read_bytes() == kept.read_bytes()
    verify(side.out).raise_if_wrong()


def test_a_base_from_an_archive_is_the_base_that_went_into_it(
    side: NearSide, require_tool: Callable[[str], Path], tmp_path: Path
) -> None:
    skopeo = require_tool("skopeo")
    layout = f"oci:{side.base}:base:1"
    archives = {name: f"oci-archive:{tmp_path}/{name}.tar:base:1" for name in ("whole", "arm64")}
    process.run([skopeo, "copy", "--quiet", "--all", layout, archives["whole"]], timeout_s=120)
    process.run([skopeo, "copy", "--quiet", "--override-arch", "arm64", layout, archives["arm64"]], timeout_s=120)
    image = side.document["execution_images"]["py"]
    side.write(platforms=["linux/amd64", "linux/arm64"])
    first = side.build()
    side.write(execution_images={"py": {**image, "base_image": archives["whole"]}})
    side.lock()
    second = side.build()
    assert first.manifest is not None and second.manifest is not None
    one, two = (
        next(item for item in made.images if item.role == "execution") for made in (first.manifest, second.manifest)
    )
    assert one.reference != two.reference, "where a base comes from is a part of the name"
    for platform, entry in one.platforms.items():
        assert [layer.digest for layer in two.platforms[platform].layers] == [layer.digest for layer in entry.layers]
    before = snapshot(side.out, but=["airgap-plan.yaml", ".airferry.lock"])
    side.write(execution_images={"py": {**image, "base_image": archives["arm64"]}})
    with pytest.raises(
        ConfigurationError, match=r"airgap\.yaml:\d+: base `oci-archive:.*is for `linux/arm64`, not for `linux/amd64`"
    ):
        side.lock()
    assert snapshot(side.out, but=["airgap-plan.yaml", ".airferry.lock"]) == before


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_locked_refuses_to_write_a_lock(side: NearSide) -> None:
    with pytest.raises(ConfigurationError, match="`--locked` forbids") as caught:
        side.build(locked=True)
    assert caught.value.hint == "run `airferry lock`"
    assert not (side.out / "airgap.lock.yaml").exists()


def test_a_plan_that_outgrew_its_lock_is_refused_and_the_lock_adds_what_is_missing(side: NearSide) -> None:
    first = side.build()
    lock_path = side.out / "airgap.lock.yaml"
    before = yaml.safe_load(lock_path.read_text())
    side.write(workflow={"name": "tests", "stages": ["train/run:tiny", "prep/pack:tiny"]})
    kept = snapshot(side.out, but=["airgap-plan.yaml"])
    with pytest.raises(ConfigurationError, match="the lock file does not cover") as caught:
        side.build()
    assert "airferry lock" in (caught.value.hint or "")
    assert snapshot(side.out, but=["airgap-plan.yaml"]) == kept
    changes = side.lock().changes
    after = yaml.safe_load(lock_path.read_text())
    assert changes and all("second-addition" in line or "py-" in line for line in changes)
    for name, group in before["groups"].items():
        assert after["groups"][name] == group
    assert side.lock().changes == ()
    second = side.build(locked=True)
    assert second.reused == 2
    assert {image.reference: image.digest for image in first.images}.items() <= {
        image.reference: image.digest for image in second.images
    }.items()


def test_a_step_that_imports_more_rebuilds_its_group_alone(side: NearSide) -> None:
    side.write(workflow={"name": "tests", "stages": ["train/run:tiny", "prep/pack:tiny"]})
    first = side.build()
    step = side.catalogue / "src/nemotron/steps/train/run/step.py"
    step.write_text(step.read_text() + "import second_addition\n")
    with pytest.raises(ConfigurationError, match="does not cover"):
        side.build()
    side.lock()
    second = side.build()
    assert second.manifest is not None
    assert second.reused == 1, "the launcher carries the step, so it is built again as well"
    one, other = ({image.name: image.digest for image in outcome.images} for outcome in (first, second))
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {
        "launcher",
        next(group.name for group in second.manifest.execution_groups if group.repo_overlays),
    }
    assert temporaries(side.out) == []
    verify(side.out, root=second.root).raise_if_wrong()


def test_files_of_images_that_the_plan_lost_go_when_it_is_sealed(side: NearSide) -> None:
    side.write(workflow={"name": "tests", "stages": ["train/run:tiny", "prep/pack:tiny"]}, archives=True)
    first = side.build()
    assert first.manifest is not None and verify(side.out).beside == (NOT_OURS,)
    (group,) = (group for group in first.manifest.execution_groups if group.repo_overlays)
    (other,) = (group for group in first.manifest.execution_groups if not group.repo_overlays)
    lost = [group.tar, f"requirements-{group.name}.txt", f"repo-overlays-{group.name}.json"]
    assert all((side.out / name).is_file() for name in lost)
    overlays = side.out / lost[2]
    overlays.write_text(overlays.read_text() + " ")
    second = side.build(targets=("prep/pack:tiny",))
    assert [name for name in lost if (side.out / name).exists()] == [lost[2]], "what was edited stays"
    assert (side.out / other.tar).is_file() and second.reused == 2
    report = verify(side.out, root=second.root)
    assert report.ok and report.beside == (f"`{lost[2]}` is not part of the bundle", NOT_OURS)


def test_a_branch_that_moved_is_followed_by_an_update_alone(side: NearSide) -> None:
    side.write(workflow={"name": "tests", "stages": ["train/run:tiny", "prep/pack:tiny"]})
    first = side.build()
    (side.thing / "thing.py").write_text("ANSWER = 43\n")
    commit = commit_all(side.thing)
    same = side.build()
    assert (same.root, same.reused) == (first.root, 3)
    assert side.lock().changes == ()
    name = f"{side.thing.as_uri()}@main"
    changes = side.lock(update=True, names=[name]).changes
    assert any(commit[:12] in line for line in changes), changes
    moved = side.build()
    assert (moved.reused, moved.root != first.root) == (2, True)
    assert moved.manifest is not None
    contents = [added_files(side.store(), image.platforms["linux/amd64"]) for image in moved.manifest.images]
    assert [found["opt/thing/thing.py"] for found in contents if "opt/thing/thing.py" in found] == [b"ANSWER = 43\n"]

    (side.thing / "thing.py").write_text("ANSWER = 44\n")
    commit = commit_all(side.thing)
    events: list[Event] = []
    again = side.build(update=[name], emit=events.append)
    said = [event.text for event in events if isinstance(event, Notice)]
    assert any(commit[:12] in text for text in said), said
    assert (again.reused, again.root != moved.root) == (2, True)
    assert side.lock().changes == (), "the lock was written"


def test_what_killed_runs_left_in_the_cache_is_cleared(side: NearSide, near_cache: Path) -> None:
    side.lock()
    name = f"{files.TEMPORARY_PREFIX}left"
    folders = (
        "facts",
        "layers",
        "layers/blobs/sha256",
        "layers/records",
        "loader",
        "wheels",
        "compiled",
        "bases",
        "bootstrap/debs/x",
    )
    for folder in folders:
        files.ensure_directory(near_cache / folder)
        (near_cache / folder / name).write_text("half")
    side.lock()
    assert [folder for folder in folders if (near_cache / folder / name).exists()] == []


def test_an_update_of_something_unknown_names_what_there_is(side: NearSide) -> None:
    side.lock()
    before = snapshot(side.out)
    with pytest.raises(UsageError, match="the lock file has no entry `git`") as caught:
        side.lock(update=True, names=["git"])
    assert "`" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="--update"):
        side.lock(names=["x"])
    with pytest.raises(UsageError, match="the lock file has no entry `git`"):
        side.build(update=["git"])
    with pytest.raises(UsageError, match="`--update` exclude each other"):
        side.build(locked=True, update=["launcher"])
    assert snapshot(side.out, but=["airgap-plan.yaml"]) == before


def test_a_state_file_of_nemotrons_runner_is_left_alone(side: NearSide) -> None:
    side.out.mkdir(exist_ok=True)
    foreign = b"validate: done\nbuild-execution-images:\n  py: done\n"
    (side.out / STATE).write_bytes(foreign)
    first = side.build()
    assert (side.out / STATE).read_bytes() == foreign
    assert side.build().reused == 2
    assert (side.out / f"airferry-{STATE}").is_file()
    assert (side.out / STATE).read_bytes() == foreign
    assert first.root


def test_stages_stop_where_they_say(side: NearSide) -> None:
    outcome = side.build(stages=("discover-execution-deps",))
    assert outcome.root is None and (side.out / "airgap.lock.yaml").is_file()
    assert not (side.out / "bundle").exists()
    outcome = side.build(stages=("build-execution-images",))
    assert outcome.root is None and outcome.reused == 0
    side.lock()
    outcome = side.build()
    assert outcome.root is not None and outcome.reused == 1
