"""A near side in a folder: a catalogue and an overlay in Git, a package index of files, a base of two layers."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from airferry.api import BuildOptions, BuildOutcome, LockOutcome, Selection, build, lock
from airferry.bundle.manifest import PlatformEntry
from airferry.events import Emit, silent
from airferry.host import files
from airferry.host.canonical import canonical_json
from airferry.near import session
from airferry.oci.codecs import inflate
from airferry.oci.documents import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    parse_image_config,
    parse_manifest,
)
from airferry.oci.layers import Compression, LayerChecks, compress_layer, layer_kind, recompress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.ports import blocks
from catalogues import write_airgap, write_step
from debian_bases import DebianBase
from folder_pip import FolderPip
from oci_images import layer_tar
from wheel_factory import make_wheel, sha256

REFERENCE = "base:1"
TARGET = "/opt/thing"
IDENTITY = ["-c", "user.name=ferry", "-c", "user.email=ferry@example.org"]
PROGRAM = [sys.executable, "-c", "from airferry.cli import main; main()"]


def git(folder: Path, *arguments: str) -> str:
    """Run Git in a folder and return what it printed."""
    done = subprocess.run(["git", "-C", folder, *IDENTITY, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit_all(folder: Path, message: str = "change") -> str:
    """Commit everything in a folder, a repository or not yet one, and return the commit."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def make_base(debian: DebianBase, path: Path, *, filler_bytes: int = 0, last: bytes | None = None) -> Path:
    """Write a layout with an index for both platforms: Debian in gzip, a layer with something at the overlay's target,
    and a config with a user and a variable of its own. A filler is a file of noise in a layer without compression;
    `last` is the tar of another layer."""
    source, store = LayoutStore.open(debian.layout, read_only=True), LayoutStore.create(path)
    gzip = Compression("gzip", 1)
    children = []
    for descriptor in debian.manifests.values():
        manifest = parse_manifest(source.read_bytes(descriptor))
        config = parse_image_config(source.read_bytes(manifest.config)).model_dump(by_alias=True, exclude_none=True)
        layers = []
        for layer, diff_id in zip(manifest.layers, config["rootfs"]["diff_ids"], strict=True):
            with source.open_blob(layer) as stream:
                made = recompress_layer(stream, layer, checks=LayerChecks(diff_id), compression=gzip, into=store)
            layers.append(made)
        content = {"opt/thing/stale.txt": b"replaced", "opt/keep.txt": b"kept"}
        layers.append(compress_layer(io.BytesIO(layer_tar(content)), compression=gzip, into=store))
        if filler_bytes:
            noise = io.BytesIO(layer_tar({"opt/noise": os.urandom(filler_bytes)}))
            layers.append(compress_layer(noise, compression=Compression("none"), into=store))
        if last is not None:
            layers.append(compress_layer(io.BytesIO(last), compression=gzip, into=store))
        config["rootfs"]["diff_ids"] = [layer.diff_id for layer in layers]
        made_here = {"created": config["created"], "created_by": "test"}
        config["history"] = [*config["history"], *[made_here] * (len(layers) - len(manifest.layers))]
        config["config"] = {**config["config"], "User": "1000", "Env": [*config["config"]["Env"], "FROM_BASE=1"]}
        document = Manifest(
            schema_version=2,
            media_type=IMAGE_MANIFEST,
            config=store.put_bytes(canonical_json(config), IMAGE_CONFIG),
            layers=[layer.descriptor for layer in layers],
        )
        child = store.put_bytes(canonical_json(document), IMAGE_MANIFEST)
        children.append(child.annotated(platform=descriptor.platform))
    index = Index(schema_version=2, media_type=IMAGE_INDEX, manifests=children)
    top = store.put_bytes(canonical_json(index), IMAGE_INDEX)
    store.write_index([top.annotated(annotations={REF_NAME: REFERENCE})])
    return path


@dataclass
class NearSide:
    """One user's folder. `document` is the plan, which `write` writes."""

    root: Path
    base: Path
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def catalogue(self) -> Path:
        return self.root / "catalogue"

    @property
    def thing(self) -> Path:
        """The repository of the overlay."""
        return self.root / "thing"

    @property
    def index(self) -> Path:
        """The folder of wheels that stands for a package index."""
        return self.root / "index"

    @property
    def out(self) -> Path:
        return self.catalogue / "out"

    @property
    def config(self) -> Path:
        return self.catalogue / "airgap.yaml"

    @property
    def environment(self) -> dict[str, str]:
        """What makes pip use the folder of wheels, and nothing else."""
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}

    def selection(self, **more: Any) -> Selection:
        return Selection(config=self.config, **more)

    def write(self, **changes: Any) -> None:
        """Write the plan, with top-level keys changed."""
        self.document = {**self.document, **changes}
        write_airgap(self.catalogue, self.document)

    def build(
        self,
        *,
        locked: bool = False,
        update: Sequence[str] = (),
        engine: str = "auto",
        jobs: int | None = None,
        emit: Emit = silent,
        **more: Any,
    ) -> BuildOutcome:
        options = BuildOptions(engine=engine, jobs=jobs)
        return build(self.selection(**more), locked=locked, update=update, options=options, emit=emit)

    def lock(self, **more: Any) -> LockOutcome:
        return lock(self.selection(), **more)

    def run(self, *arguments: str, check: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the program in a subprocess, in the catalogue."""
        return subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.catalogue,
            env={**os.environ, **self.environment, **environment},
            check=check,
            capture_output=True,
            text=True,
        )

    def store(self) -> LayoutStore:
        return LayoutStore.open(self.out / "bundle", read_only=True)

    def write_lock(self, **versions: str) -> None:
        """Write the catalogue's lock, a hash-pinned requirements.txt, over wheels that are made for it."""
        lines = []
        for name, version in versions.items():
            wheel = make_wheel(self.index, name.replace("_", "-"), version)
            lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{sha256(wheel)}\n")
        (self.catalogue / "requirements.txt").write_text("".join(lines))


def answer_from_the_index(side: NearSide, patch: pytest.MonkeyPatch) -> None:
    """Let the near side's folder of wheels answer in this process, as starting pip takes longer than a small build."""
    patch.setattr(session, "Pip", functools.partial(FolderPip, folder=side.index))


def make_near_side(root: Path, base: Path, *, builder: str = "direct") -> NearSide:
    """Lay out a near side whose plan is a launcher and one step with an addition and an overlay."""
    side = NearSide(root, base)
    side.thing.mkdir(parents=True)
    (side.thing / "thing.py").write_text("ANSWER = 42\n")
    commit_all(side.thing)
    source = "import json\nimport ferry_addition\nimport thing\n"
    mount = f"${{auto_mount:git+{side.thing.as_uri()}@main,{TARGET}}}"
    mounted = yaml.safe_dump({"run": {"env": {"mounts": [mount]}}})
    write_step(side.catalogue, "train/run", source=source, configs={"tiny": mounted, "plain": "a: 1\n"})
    write_step(side.catalogue, "bare/nothing", source="import json\n")
    write_step(side.catalogue, "prep/pack", source="import second_addition\n")
    (side.catalogue / "pyproject.toml").write_text('[project]\nname = "nemotron"\nversion = "1"\n')
    (side.catalogue / ".gitignore").write_text("untracked.txt\nout/\n.env\nenv.toml\n")
    side.write_lock(ferry_addition="1.0", second_addition="2.0")
    for name in (".env", "env.toml", "out/tracked.txt"):
        path = side.catalogue / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("SECRET=1\n")
    commit_all(side.catalogue)
    (side.catalogue / "untracked.txt").write_text("not Git's\n")
    image = {"base_image": f"oci:{base}:{REFERENCE}", "python": "/usr/bin/python3"}
    side.write(
        workflow={"name": "tests", "stages": ["train/run:tiny"]},
        source={"lock": "requirements.txt"},
        platforms=["linux/amd64"],
        builder=builder,
        loader=False,
        launcher_image={**image, "tag": "launcher:1", "tar": "launcher.tar", "packages": []},
        step_execution_images=dict.fromkeys(["train/run", "bare/nothing", "prep/pack"], "py"),
        execution_images={"py": {**image, "tag": "py:1", "tar": "py.tar", "env": {"PYTHONPATH": TARGET}}},
    )
    return side


def config_of(store: LayoutStore, entry: PlatformEntry) -> dict[str, Any]:
    """Return the config of an image for one platform."""
    path = store.blob_path(entry.config_digest)
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def added_files(store: LayoutStore, entry: PlatformEntry) -> dict[str, bytes | None]:
    """Return what an image adds to its base: regular files with their bytes, all else with None."""
    found: dict[str, bytes | None] = {}
    for layer in entry.layers:
        if layer.from_base:
            continue
        descriptor = Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size_bytes)
        with store.open_blob(descriptor) as stream:
            data = b"".join(inflate(blocks(stream), layer_kind(layer.media_type), what="a layer"))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                found[member.name.rstrip("/")] = content.read() if content else None
    return found


def snapshot(folder: Path, *, but: Sequence[str] = ()) -> dict[str, str]:
    """Return the digest of every file of a folder, links by what they say."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file() and name not in but:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def temporaries(*folders: Path) -> list[Path]:
    """Return what killed writers left anywhere below folders; a lock's file is meant to stay."""
    found = [path for folder in folders for path in folder.rglob(f"{files.TEMPORARY_PREFIX}*")]
    return [path for path in found if path.name != ".airferry.lock"]
