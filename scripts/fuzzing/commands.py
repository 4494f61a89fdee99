"""Cases through the whole command, on bundles and files that were changed: the table, and what its entries run.

For a hostile near side, a bundle is sealed again over the change, and `--root` is that root. All files lie in memory.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from build_commands import build_base_target, build_files_target, build_notes_target, build_wheel_target
from changed import GONE, LINKED, MOVED, PREFIX, RESEALED, Changed
from command_line import STEP, Refused, airferry, files_target, judged
from registry_commands import answered_target, load_target, login_target, rollback_target
from table import checksummed
from worker import Target

from airferry.assets.manifest import MODELPACK_ARTIFACT, MODELPACK_FILEPATH
from airferry.bundle.manifest import ArtifactEntry, BundleManifest, ToolEntry
from airferry.bundle.receipt import Receipt, write_receipt
from airferry.bundle.seal import seal
from airferry.host import files
from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from catalogues import airgap, write_airgap, write_step
from checked_catalogue import write_checked_catalogue
from layer_tars import Item, link, tar_of
from oci_images import REFERENCE, make_bundle, put_model_pack
from travelling_catalogue import make_travelling_bundle, write_catalogue

RAW = "application/vnd.cncf.model.weight.v1.raw"
TAR = "application/vnd.cncf.model.weight.v1.tar"
PACKED = [Item("a", value="x"), Item("b/c", value="y"), link("l", "b/c")]

# --- bundles ----------------------------------------------------------------------------------------------------------


def bundle_target(*arguments: str, flags: Sequence[int] = (0, RESEALED)) -> Target:
    """Return what runs a command on a changed bundle; `OUT` and `ROOT` stand for its folder and root."""
    original = Path.cwd() / "original"
    make_bundle(original, twins=True)
    changed = Changed(original)

    def parse(case: bytes) -> None:
        values = {
            "ROOT": changed.write(case),
            "OUT": str(changed.folder),
            "LAYOUT": f"oci:{changed.folder}/bundle:{REFERENCE}",
        }
        judged(*airferry(*(values.get(word, word) for word in arguments)))

    return Target(parse, changed.seeds(*flags), also=(Refused,), prefix=PREFIX)


def catalogue_target(*arguments: str) -> Target:
    """Return what runs a command on a changed bundle that carries a catalogue."""
    original = Path.cwd() / "original"
    make_travelling_bundle(write_catalogue(Path.cwd() / "root"), original)
    changed = Changed(original)

    def parse(case: bytes) -> None:
        root = changed.write(case)
        shutil.rmtree("extracted", ignore_errors=True)
        values = {"ROOT": root, "OUT": str(changed.folder)}
        code, said = airferry(*(values.get(word, word) for word in arguments))
        assert not Path("../escaped").exists()
        judged(code, said)

    return Target(parse, changed.seeds(0, RESEALED), also=(Refused,), prefix=PREFIX)


def archive_target() -> Target:
    """Return what copies from a changed archive."""
    make_bundle(Path.cwd() / "original")
    judged(*airferry("copy", f"oci:original:{REFERENCE}", f"oci-archive:made.tar:{REFERENCE}"))
    seed = Path("made.tar").read_bytes()

    def parse(case: bytes) -> None:
        Path("changed.tar").write_bytes(case)
        shutil.rmtree("copied", ignore_errors=True)
        judged(*airferry("copy", f"oci-archive:changed.tar:{REFERENCE}", "oci:copied:x"))

    return Target(parse, [seed], repair=checksummed, also=(Refused,))


def pack_target() -> Target:
    """Return what unpacks a packed asset of a changed bundle."""
    original = Path.cwd() / "original"
    store = LayoutStore.create(original)
    packed = compress_layer(io.BytesIO(tar_of(PACKED)), compression=Compression("none"), into=store)
    annotations = {MODELPACK_FILEPATH: "d"}
    layers = [
        store.put_bytes(b"weights", RAW, annotations={MODELPACK_FILEPATH: "w/a.bin"}),
        packed.descriptor.model_copy(update={"media_type": TAR, "annotations": annotations}),
    ]
    pack = put_model_pack(store, layers).model_copy(update={"artifact_type": MODELPACK_ARTIFACT})
    entry = ArtifactEntry(title="nano", artifact_type=MODELPACK_ARTIFACT, digest=pack.digest, size_bytes=pack.size)
    manifest = BundleManifest(
        workflow={"stages": []}, build_stages=(), artifacts=(entry,), compression="zstd", tool=ToolEntry(airferry="0")
    )
    seal(store, {}, artifacts=[pack], manifest=manifest)
    changed = Changed(original)

    def parse(case: bytes) -> None:
        root = changed.write(case)
        shutil.rmtree("unpacked", ignore_errors=True)
        around = set(Path.cwd().iterdir())
        code, said = airferry("assets", "unpack", str(changed.folder), "unpacked", "--root", root)
        assert set(Path.cwd().iterdir()) <= around | {Path.cwd() / "unpacked"}, "something next to the asset"
        judged(code, said)

    def repair(case: bytes) -> bytes:
        return case[:PREFIX] + checksummed(case[PREFIX:])

    return Target(parse, changed.seeds(0, RESEALED), repair=repair, also=(Refused,), prefix=PREFIX)


# --- files ------------------------------------------------------------------------------------------------------------


def _catalogue() -> None:
    write_step(
        Path.cwd(), "sft/one", configs={"tiny": yaml.safe_dump(CONFIG)}, source="import torch, json\n" + CODE.decode()
    )
    write_airgap(Path.cwd(), _airgap())


def _airgap() -> dict[str, Any]:
    return airgap(
        {"img": "registry.example/base:1"},
        {"sft/one": "img"},
        platforms=["linux/amd64"],
        site={"executors": ["kubernetes"]},
    )


CONFIG = {"run": {"env": {"nodes": 1, "mounts": ["${auto_mount:git+https://h/x.git@v1,/opt/x}"]}}, "a": "${oc.env:X,y}"}
CODE = b"import os, sys\nfrom nemotron.x import y\nsys.path.append(os.environ['Z'])\nos.system('pip install b')\n"
SITE = (
    "executors: [kubernetes, {kind: slurm-pyxis, version: 4.0, profile: p}]\nregistry: hub.site:5000/airgap\n"
    "mounts: [/lustre/data, {path: /lustre/out, mode: rw}]\nmirrors: {huggingface: https://hub.site}\n"
)
ENV = '[p]\nexecutor = "slurm"\nmounts = ["/lustre/data:/data"]\n[p.env]\nHF_HOME = "/lustre/data/hf"\n'


def _site() -> None:
    Path("site.yaml").write_text(SITE)
    Path("env.toml").write_text(ENV)
    write_checked_catalogue(Path.cwd())
    write_receipt(loaded_receipt(), Path("airgap-receipt.yaml"))


def loaded_receipt() -> Receipt:
    """Return the receipt of a load of an image for a step, with what the step mounts, and of a base for a mirror."""
    common = {"digest": "sha256:" + "d" * 64, "platforms": ["linux/amd64"]}
    overlay = {"repo": "Bridge", "url": "https://github.com/NVIDIA/Bridge.git", "ref": "0123abc"}
    overlay |= {"target": "/opt/Bridge", "commit": "0" * 40}
    names = (("trainer", "execution", "trainer:airgap", "trainer"), ("nvcr.io/n/m:1", "base", "nvcr.io/n/m:1", "n/m"))
    images = [
        {**common, "name": name, "role": role, "image": image, "reference": f"hub.site:5000/airgap/{at}:1"}
        | {"pinned": f"hub.site:5000/airgap/{at}@{common['digest']}", "overlays": [overlay] if at == name else []}
        for name, role, image, at in names
    ]
    document = {
        "bundle_root": "sha256:" + "0" * 64,
        "root_verified": True,
        "registry": "hub.site:5000/airgap",
        "loaded_at": "2026-01-01T00:00:00Z",
        "airferry": "0",
        "images": images,
        "steps": {"sft/one": images[0]["pinned"]},
        "targets": ["sft/one:tiny"],
    }
    return Receipt.model_validate(document)


def _recorded() -> None:
    staged = files.ensure_directory(Path("Data"))
    (staged / "a").write_bytes(b"x" * 1000)
    (staged / "b").symlink_to("a")
    judged(*airferry("assets", "record", "Data", "-o", "m.jsonl"))


def commands() -> Iterator[tuple[str, Callable[[], Target], float]]:
    """Yield each command, what runs it, and its share of the cases."""
    yield "`verify --root`", partial(bundle_target, "verify", "OUT", "--root", "ROOT"), 3
    yield "`verify`", partial(bundle_target, "verify", "OUT", flags=(0, RESEALED, MOVED, LINKED, MOVED | GONE)), 1.5
    yield "`verify --json`", partial(bundle_target, "verify", "OUT", "--json"), 0.5
    yield "`report`", partial(bundle_target, "report", "OUT", "--root", "ROOT"), 1
    yield "`report --html`", partial(bundle_target, "report", "OUT", "--html", "r.html", "--root", "ROOT"), 0.5
    yield "`load --root`", load_target, 2
    yield "`load --dry-run`", partial(load_target, "--dry-run"), 0.3
    yield "`copy` to a layout", partial(bundle_target, "copy", "LAYOUT", "oci:copied:x"), 0.5
    yield "`copy` from an archive", archive_target, 0.5
    extract = ("catalogue", "extract", "OUT", "extracted", "--root", "ROOT")
    yield "`catalogue extract`", partial(catalogue_target, *extract), 1
    yield "`assets unpack`", pack_target, 0.5
    yield "`load --rollback`, the receipt", rollback_target, 0.5
    yield "`copy`, the credentials file", login_target, 0.3
    yield "`load`, answers of the registry", partial(answered_target, "load", most=45), 2
    yield "`copy`, answers of the registry", partial(answered_target, "copy", "IMAGE", "oci:copied:x", most=9), 1
    yield (
        "`registry probe`, answers of the registry",
        partial(answered_target, "registry", "probe", "REGISTRY", most=40),
        0.3,
    )
    yield "`plan`, airgap.yaml", partial(files_target, ["airgap.yaml"], "plan", prepare=_catalogue), 1
    step = [f"{STEP}/config/tiny.yaml", f"{STEP}/step.py", f"{STEP}/step.toml"]
    yield "`plan`, a step's config, code and step.toml", partial(files_target, step, "plan", prepare=_catalogue), 1
    receipt = ["airgap-receipt.yaml", "site.yaml", f"{STEP}/config/tiny.yaml"]
    yield (
        "`overlays`: receipt, site profile, a step's config",
        partial(
            files_target,
            receipt,
            "overlays",
            "airgap-receipt.yaml",
            "--source",
            ".",
            "--site",
            "site.yaml",
            prepare=_site,
            cleared=["airgap-overlays"],
        ),
        1,
    )
    yield (
        "`check`: receipt, site profile, env.toml, a step's config and code",
        partial(
            files_target,
            [*receipt, "env.toml", f"{STEP}/step.py", f"{STEP}/step.toml"],
            *("check", "airgap-receipt.yaml", "--source", ".", "--site", "site.yaml", "--env-file", "env.toml"),
            *("--profile", "p", "--no-registry", "--target", "sft/one:tiny"),
            prepare=_site,
        ),
        1,
    )
    yield (
        "`mirrors`, the receipt",
        partial(
            files_target,
            ["airgap-receipt.yaml"],
            "mirrors",
            "airgap-receipt.yaml",
            prepare=_site,
            cleared=["airgap-mirrors"],
        ),
        0.5,
    )
    yield (
        "`assets verify`, the manifest",
        partial(files_target, ["m.jsonl"], "assets", "verify", "m.jsonl", "Data", prepare=_recorded),
        0.5,
    )
    yield "`build`, a base", build_base_target, 0.7
    yield "`build`, a wheel", build_wheel_target, 0.5
    yield "`build`, lock, airgap.yaml and files of the catalogue", build_files_target, 0.5
    yield "`build` again, journal, records and airgap.lock.yaml", build_notes_target, 0.5


COMMANDS = list(commands())
