"""Cases through the whole command: `airferry` in this process, on bundles and files that were changed.

What does not differ from one run of a command to the next is done once: importing, and making the command line, which
takes five times as long as `verify` takes for a small bundle. All files lie in memory. For a hostile near side, a
bundle is sealed again over the change, and `--root` is that root.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer.main
import yaml
from changed import GONE, LINKED, MAX_SEED_BYTES, MOVED, PREFIX, RESEALED, Changed
from table import checksummed
from worker import Target

from airferry.bundle.receipt import Receipt, write_receipt
from airferry.cli import app
from airferry.host import files
from airferry.near import session
from airferry.oci.documents import REF_NAME, parse_index, parse_manifest
from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from airferry.registry.retry import RetryPolicy
from catalogues import airgap, write_airgap, write_step
from checked_catalogue import write_checked_catalogue
from folder_pip import FolderPip
from layer_tars import tar_of
from oci_images import REFERENCE, make_bundle, put_manifest
from scripted_registry import Exchange, ScriptedRegistry, run_scripted
from static_bases import python_of
from travelling_catalogue import make_travelling_bundle, write_catalogue
from wheel_factory import make_wheel, sha256

CODES = frozenset({0, 2, 3, 4, 5, 6, 7, 8})
# until the process ends
RUNNING = contextlib.ExitStack()


class Refused(Exception):
    """A command ended with one of its documented errors."""


@functools.cache
def _prepare() -> None:
    """Make the command line once, and let no retry wait."""
    command = typer.main.get_command(app.app)
    app.app = command  # type: ignore[assignment]
    RetryPolicy.pause = lambda *_arguments, **_options: None  # type: ignore[method-assign]


def airferry(*arguments: str) -> tuple[int, str]:
    """Run a command and return its exit code and what it wrote; a bug is an AssertionError."""
    _prepare()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = app.run(list(arguments))
    said = out.getvalue() + err.getvalue()
    assert code in CODES, f"exit code {code} of {arguments[0]}: {said[-300:]}"
    assert "Traceback" not in said and "bug:" not in said, f"a bug in {arguments[0]}: {said[-300:]}"
    obeyed = [letter for letter in said if (ord(letter) < 32 and letter not in "\n\t") or 127 <= ord(letter) < 160]
    assert not obeyed, f"{arguments[0]} writes {obeyed[0]!r}"
    return code, said


def judged(code: int, said: str = "") -> None:
    """Raise where a command refused."""
    if code not in (0, 8):
        raise Refused(f"exit code {code}: {said}")


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


def load_target(*more: str) -> Target:
    """Return what loads a changed bundle: no tag may stand for what is not there."""
    original = Path.cwd() / "original"
    make_bundle(original)
    changed = Changed(original)
    registry = RUNNING.enter_context(run_scripted())

    def parse(case: bytes) -> None:
        root = changed.write(case)
        _empty(registry)
        code, said = airferry(*_load(changed.folder, registry, root), *more)
        missing = incomplete_tags(registry)
        assert not missing, f"a tag without {missing}"
        assert not registry.sessions, "an open session"
        assert code == 0 or not tags_of(registry), f"tags after exit code {code}: {said[-300:]}"
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


# --- registries -------------------------------------------------------------------------------------------------------


def _load(bundle: Path, registry: ScriptedRegistry, root: str) -> list[str]:
    # one after the other, so that the same case is about the same request each time
    arguments = ["load", str(bundle), "--to", f"{registry.address}/x", "--root", root, "--parallel", "1"]
    return [*arguments, "--receipt", str(Path.cwd() / "r.yaml")]


def _empty(registry: ScriptedRegistry) -> None:
    """Let a registry hold nothing, and airferry know nothing of it."""
    registry.blobs.clear(), registry.manifests.clear(), registry.sessions.clear(), registry.calls.clear()
    for name in ("loads", "registries"):
        shutil.rmtree(Path(os.environ["AIRFERRY_CACHE"], name), ignore_errors=True)


def tags_of(registry: ScriptedRegistry) -> list[str]:
    """Return the tags, each as `REPOSITORY@TAG`."""
    return [key for key in registry.manifests if ":" not in key.rpartition("@")[2]]


def incomplete_tags(registry: ScriptedRegistry) -> list[str]:
    """Return what tags stand for and the registry does not hold."""
    missing: list[str] = []
    for key in tags_of(registry):
        repository = key.rpartition("@")[0]
        data, kind = registry.manifests[key]
        waiting = [(data, kind)]
        while waiting:
            data, kind = waiting.pop()
            if "index" in kind or "list" in kind:
                for child in parse_index(data).manifests:
                    held = registry.manifests.get(f"{repository}@{child.digest}")
                    missing += [] if held else [f"{repository}@{child.digest}"]
                    waiting += [held] if held else []
            else:
                manifest = parse_manifest(data)
                missing += [
                    blob.digest for blob in (manifest.config, *manifest.layers) if blob.digest not in registry.blobs
                ]
    return missing


ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\n\r\n"
    b'{"schemaVersion":2,"manifests":[]}',
    b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm="http://127.0.0.1:1/token",service="s"\r\n\r\n',
    b"HTTP/1.1 202 Accepted\r\nLocation: /v2/x/blobs/uploads/1?_state=2\r\nRange: 0-20\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 Elsewhere\r\nLocation: /v2/x/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 201 Created\r\nDocker-Content-Digest: sha256:" + b"0" * 64 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 206 Part\r\nContent-Range: bytes 5-20/21\r\nContent-Length: 16\r\n\r\n" + b"x" * 16,
    b'HTTP/1.1 403 No\r\nContent-Type: application/json\r\n\r\n{"errors":[{"code":"DENIED","message":"no"}]}',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
)


def answered_target(*arguments: str, most: int) -> Target:
    """Return what runs a command while a registry answers a request with the case, one of them or all that follow.

    The first byte is the number of the request, an odd second one says that all that follow are meant.
    """
    original = Path.cwd() / "original"
    root = make_bundle(original).root
    registry = RUNNING.enter_context(run_scripted())
    whole = {**{word: word for word in arguments}, "REGISTRY": registry.address}
    whole |= {"IMAGE": f"docker://{registry.address}/x/{REFERENCE.partition('/')[2]}"}
    judged(*airferry(*_load(original, registry, root)))
    blobs, manifests = dict(registry.blobs), dict(registry.manifests)

    def parse(case: bytes) -> None:
        _empty(registry)
        shutil.rmtree("copied", ignore_errors=True)
        loads = arguments[0] == "load"
        if not loads:
            registry.blobs.update(blobs), registry.manifests.update(manifests)
        first, lasting, answer = (case[0] if case else 0) % most, len(case) > 1 and case[1] % 2, case[2:]

        def fault(exchange: Exchange) -> bool:
            if exchange.call.number != first and not (lasting and exchange.call.number > first):
                return False
            exchange.read_body()
            exchange.wfile.write(answer)
            exchange.close_connection = True
            return True

        registry.faults[:] = [fault]
        code, said = airferry(*(_load(original, registry, root) if loads else [whole[word] for word in arguments]))
        # a registry that goes on to say what is not so cannot be known
        if loads and not lasting:
            missing = incomplete_tags(registry)
            assert not missing, f"a tag without {missing}"
        judged(code, said)

    seeds = [bytes([number, 0]) + answer for answer in ANSWERS for number in range(0, most, 3)]
    # the first one is what goes well: a request that is never sent
    return Target(parse, [bytes([most - 1, 0]) + ANSWERS[5], *seeds], also=(Refused,), prefix=PREFIX)


# --- files ------------------------------------------------------------------------------------------------------------


def files_target(
    names: Sequence[str],
    *arguments: str,
    prepare: Callable[[], None],
    seeds: Mapping[str, Sequence[bytes]] | None = None,
    cleared: Sequence[str] = (),
) -> Target:
    """Return what runs a command where one of some files is another; the first byte of a case is its number."""
    prepare()
    original = {name: Path(name).read_bytes() for name in names}

    def parse(case: bytes) -> None:
        name = names[case[0] % len(names)] if case else names[0]
        Path(name).write_bytes(case[1:])
        for folder in cleared:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            judged(*airferry(*arguments))
        finally:
            Path(name).write_bytes(original[name])

    begin = [
        bytes([number]) + data
        for number, name in enumerate(names)
        for data in (*([] if name.endswith((".yaml", ".json")) else [original[name]]), *(seeds or {}).get(name, ()))
    ]
    for number, name in enumerate(names):
        if name.endswith((".yaml", ".json")):
            # as JSON too, which is changed by its structure
            begin += [bytes([number]) + data for data in {original[name], as_json(original[name])}]
    return Target(parse, sorted(begin), also=(Refused,), prefix=1)


def as_json(document: bytes) -> bytes:
    """Return a YAML document as JSON; what is no mapping of plain keys as it is."""
    try:
        return json.dumps(yaml.safe_load(document), default=str).encode()
    except (yaml.YAMLError, TypeError):
        return document


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


STEP = "src/nemotron/steps/sft/one"
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


# --- builds -----------------------------------------------------------------------------------------------------------

PACKAGE = "added_package"


def _near_side(base: Path) -> None:
    """Write a catalogue of one step that needs a package, on a base, and let a folder stand for the index."""
    write_step(Path.cwd(), "sft/one", configs={"tiny": "a: 1\n"}, source=f"import json, {PACKAGE}\n")
    Path("pyproject.toml").write_text('[project]\nname = "nemotron"\nversion = "1"\ndependencies = ["a>1"]\n')
    image = {"base_image": f"oci:{base}:base:1", "python": "/usr/bin/python3"}
    document = airgap({"img": image}, {"sft/one": "img"}, platforms=["linux/amd64"], source={"lock": "lock.txt"})
    write_airgap(Path.cwd(), {**document, "builder": "direct", "loader": False, "launcher_image": False})
    index = files.ensure_directory(Path.cwd() / "index")
    _pin(make_wheel(index, PACKAGE.replace("_", "-"), "1.0"))
    session.Pip = functools.partial(FolderPip, folder=index)  # type: ignore[misc,assignment]


def _pin(wheel: Path) -> None:
    Path("lock.txt").write_text(f"{PACKAGE.replace('_', '-')}==1.0 --hash=sha256:{sha256(wheel)}\n")


def _build() -> None:
    for name in ("out", "home/bases", "home/probes"):
        shutil.rmtree(name, ignore_errors=True)
    judged(*airferry("build", "--jobs", "1"))


def _write_base(path: Path) -> None:
    """Write a base whose layer is a plain tar, so that what is changed in it is read."""
    store = LayoutStore.create(path)
    layers = [compress_layer(io.BytesIO(tar_of(python_of("usr"))), compression=Compression("none"), into=store)]
    store.write_index([put_manifest(store, layers).annotated(annotations={REF_NAME: "base:1"})])


def build_base_target() -> Target:
    """Return what builds on a changed base."""
    original = Path.cwd() / "original"
    _write_base(original)
    changed = Changed(original)
    _near_side(changed.folder / "bundle")

    def parse(case: bytes) -> None:
        changed.write(case)
        _build()

    def repair(case: bytes) -> bytes:
        return case[:PREFIX] + checksummed(case[PREFIX:])

    return Target(parse, changed.seeds(0, RESEALED), repair=repair, also=(Refused,), prefix=PREFIX)


def build_wheel_target() -> Target:
    """Return what builds with a changed wheel, whose hash the catalogue's lock names."""
    from packages import rezipped

    base = Path.cwd() / "base"
    _write_base(base)
    _near_side(base)
    (wheel,) = Path("index").iterdir()

    def parse(case: bytes) -> None:
        wheel.write_bytes(case)
        _pin(wheel)
        _build()

    return Target(parse, [wheel.read_bytes()], repair=rezipped, also=(Refused,))


def build_files_target() -> Target:
    """Return what builds from a changed catalogue."""
    base = Path.cwd() / "base"
    _write_base(base)
    target = files_target(
        ["lock.txt", "airgap.yaml", "pyproject.toml", f"{STEP}/step.py", f"{STEP}/config/tiny.yaml"],
        *("build", "--jobs", "1"),
        prepare=partial(_near_side, base),
        cleared=["out"],
    )
    return target


def build_notes_target() -> Target:
    """Return what builds again where the journal or a record of the cache says something else."""
    base = Path.cwd() / "base"
    _write_base(base)
    _near_side(base)
    judged(*airferry("build", "--jobs", "1"))
    cache = Path(os.environ["AIRFERRY_CACHE"])
    found = [path for path in sorted(cache.rglob("*.json")) if path.stat().st_size < MAX_SEED_BYTES]
    names = [path.relative_to(Path.cwd()).as_posix() for path in found if "blobs" not in path.parts]
    names += ["out/airgap-build-state.yaml", "out/airgap.lock.yaml"]
    return files_target(names, "build", "--jobs", "1", prepare=lambda: None)


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
