"""Cases through the whole command: `airferry` in this process, on bundles and files that were changed.

A case is the number of a file, flags, and the file's content. With a flag, the bundle is sealed again over the change,
so that digests are right and the root is the attacker's own; `--root` is then that root, as for a hostile near side.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from worker import Target

from airferry.cli.app import run
from airferry.oci.documents import parse_index, parse_manifest
from catalogues import airgap, write_airgap, write_step
from oci_images import REFERENCE, make_bundle
from scripted_registry import ScriptedRegistry, run_scripted
from travelling_catalogue import make_travelling_bundle, receipt_of, write_catalogue

CODES = frozenset({0, 2, 3, 4, 5, 6, 7, 8})
RESEALED, MOVED, GONE, LINKED = 1, 2, 4, 8
MAX_SEED_BYTES = 32 * 1024
# until the process ends
RUNNING = contextlib.ExitStack()


class Refused(Exception):
    """A command ended with one of its documented errors."""


def airferry(*arguments: str) -> tuple[int, str]:
    """Run a command and return its exit code and what it wrote; a bug is an AssertionError."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
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


class Changed:
    """A folder with a bundle of which one file is another."""

    def __init__(self, original: Path) -> None:
        self.folder = Path.cwd() / "out"
        self._files = {
            path.relative_to(original).as_posix(): path.read_bytes()
            for path in sorted(original.rglob("*"))
            if path.is_file()
        }
        self.names = sorted(self._files)

    def seeds(self, *flags: int) -> list[bytes]:
        """Return the small files as cases."""
        sizes = ((number, self._files[name]) for number, name in enumerate(self.names))
        return [bytes([number, flag]) + data for number, data in sizes if len(data) < MAX_SEED_BYTES for flag in flags]

    def write(self, case: bytes) -> str:
        """Write the bundle with the change of a case, and return its root."""
        name = self.names[case[0] % len(self.names)] if case else self.names[0]
        flags = case[1] if len(case) > 1 else 0
        changed = {**self._files, name: case[2:]}
        if flags & RESEALED and name.startswith("blobs/"):
            name = _reseal(changed, name)
        if flags & GONE and flags & MOVED:
            del changed[name]
        elif flags & MOVED:
            changed[f"{name}.x"] = changed.pop(name)
        shutil.rmtree(self.folder, ignore_errors=True)
        for place, data in changed.items():
            path = self.folder / "bundle" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if flags & LINKED and name in changed:
            path = self.folder / "bundle" / name
            path.rename(self.folder / "elsewhere")
            path.symlink_to(self.folder / "elsewhere")
        return "sha256:" + hashlib.sha256(changed.get("index.json", b"")).hexdigest()


def _reseal(files: dict[str, bytes], name: str) -> str:
    """Give a changed blob its digest, and whatever names it too, up to the index; return its name."""
    waiting, became = [name], {}
    for _ in range(40):
        if not waiting:
            break
        place = waiting.pop()
        if place not in files:
            continue
        data = files.pop(place)
        before, after = place.rpartition("/")[2], hashlib.sha256(data).hexdigest()
        became[place] = f"blobs/sha256/{after}"
        files[became[place]] = data
        if before == after:
            continue
        for other in [other for other, content in files.items() if before.encode() in content]:
            files[other] = _renamed(files[other], before, after, len(data))
            if other.startswith("blobs/"):
                waiting.append(other)
    while became.get(name, name) != name:
        name = became[name]
    return name


def _renamed(document: bytes, before: str, after: str, size: int) -> bytes:
    changed = document.replace(before.encode(), after.encode())
    try:
        value = json.loads(changed)
    except (ValueError, RecursionError):
        return changed
    stack = [value]
    while stack:
        item = stack.pop()
        stack += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if isinstance(item, dict) and item.get("digest") == f"sha256:{after}":
            item["size"] = size
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


# --- what is run ------------------------------------------------------------------------------------------------------


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

    return Target(parse, changed.seeds(*flags), also=(Refused,))


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

    return Target(parse, changed.seeds(0, RESEALED), also=(Refused,))


def load_target() -> Target:
    """Return what loads a changed bundle: no tag may stand for what is not there."""
    original = Path.cwd() / "original"
    make_bundle(original)
    changed = Changed(original)
    registry = RUNNING.enter_context(run_scripted())

    def parse(case: bytes) -> None:
        root = changed.write(case)
        registry.blobs.clear(), registry.manifests.clear(), registry.sessions.clear(), registry.calls.clear()
        shutil.rmtree(os.environ["AIRFERRY_CACHE"] + "/loads", ignore_errors=True)
        code, said = airferry(
            "load", str(changed.folder), "--to", f"{registry.address}/x", "--root", root, "--receipt", "r.yaml"
        )
        missing = incomplete_tags(registry)
        assert not missing, f"a tag without {missing}"
        assert not registry.sessions, "an open session"
        assert code == 0 or not tags_of(registry), f"tags after exit code {code}: {said[-300:]}"
        judged(code, said)

    return Target(parse, changed.seeds(0, RESEALED), also=(Refused,))


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


def file_target(
    name: str, seeds: Callable[[], Sequence[bytes]], *arguments: str, prepare: Callable[[], None] | None = None
) -> Target:
    """Return what runs a command on a changed file in the current folder."""
    if prepare is not None:
        prepare()
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)

    def parse(case: bytes) -> None:
        path.write_bytes(case)
        judged(*airferry(*arguments))

    return Target(parse, seeds(), also=(Refused,))


def _catalogue() -> None:
    write_step(Path.cwd(), "sft/one", source="import torch, json\n")
    write_airgap(Path.cwd(), _airgap())


def _airgap() -> dict[str, Any]:
    return airgap(
        {"img": "registry.example/base:1"},
        {"sft/one": "img"},
        platforms=["linux/amd64"],
        site={"executors": ["kubernetes"]},
    )


def _both(document: Any) -> list[bytes]:
    return [yaml.safe_dump(document).encode(), json.dumps(document).encode()]


STEP = "src/nemotron/steps/sft/one"
CONFIG = {"run": {"env": {"nodes": 1, "mounts": ["${auto_mount:git+https://h/x.git@v1,/opt/x}"]}}, "a": "${oc.env:X,y}"}
CODE = (
    b"import os, sys, torch\nfrom nemotron.x import y\nsys.path.append(os.environ['Z'])\nos.system('pip install b')\n"
)


def _receipts() -> list[bytes]:
    document = receipt_of("sha256:" + "0" * 64).to_yaml()
    return [document, json.dumps(yaml.safe_load(document), default=str).encode()]


def _site() -> None:
    Path("site.yaml").write_text("executors: [kubernetes]\nregistry: hub.site:5000/airgap\n")
    _catalogue()


def commands() -> Iterator[tuple[str, Callable[[], Target], float]]:
    """Yield each command, what runs it, and its share of the cases."""
    yield "`verify --root`", partial(bundle_target, "verify", "OUT", "--root", "ROOT"), 3
    yield "`verify`", partial(bundle_target, "verify", "OUT", flags=(0, RESEALED, MOVED, LINKED, MOVED | GONE)), 1.5
    yield "`verify --json`", partial(bundle_target, "verify", "OUT", "--json"), 0.5
    yield "`report`", partial(bundle_target, "report", "OUT", "--root", "ROOT"), 1
    yield "`load --root`", load_target, 2
    yield "`copy` to a layout", partial(bundle_target, "copy", "LAYOUT", "oci:copied:x"), 0.2
    yield (
        "`catalogue extract`",
        partial(catalogue_target, "catalogue", "extract", "OUT", "extracted", "--root", "ROOT"),
        1,
    )
    yield (
        "`plan`, airgap.yaml",
        partial(file_target, "airgap.yaml", lambda: _both(_airgap()), "plan", prepare=_catalogue),
        1,
    )
    yield (
        "`plan`, a step's config",
        partial(file_target, f"{STEP}/config/tiny.yaml", lambda: _both(CONFIG), "plan", prepare=_catalogue),
        0.7,
    )
    yield (
        "`plan`, a step's code",
        partial(file_target, f"{STEP}/step.py", lambda: [CODE, b"import a\n"], "plan", prepare=_catalogue),
        0.7,
    )
    yield (
        "`plan`, step.toml",
        partial(
            file_target,
            f"{STEP}/step.toml",
            lambda: [b'[step]\nid = "sft/one"\nname = "x"\n'],
            "plan",
            prepare=_catalogue,
        ),
        0.3,
    )
    yield (
        "`overlays`, the receipt",
        partial(
            file_target,
            "airgap-receipt.yaml",
            _receipts,
            "overlays",
            "airgap-receipt.yaml",
            "--source",
            ".",
            prepare=_site,
        ),
        0.5,
    )


COMMANDS = list(commands())
