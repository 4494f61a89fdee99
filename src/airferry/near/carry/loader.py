"""The loader that travels in a bundle: airferry's own wheels for the far side, and a script that installs them.

One artifact with one layer, a plain tar, which a person can unpack with `tar` alone. What is in it depends on the
plan's file, on airferry's version and on the lock file of its dependencies, which ships with it: not on this host.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from airferry import __version__
from airferry.bundle.artifacts import TOOL_ARTIFACT, TOOL_CONTENT, ArtifactFile, artifact_is_whole, put_artifact
from airferry.bundle.manifest import ArtifactEntry, LoaderEntry, LockEntry
from airferry.config.models import LoaderChoice
from airferry.errors import AirferryError, HostError
from airferry.events import Emit, StageFinished, StageStarted
from airferry.host import clock, files
from airferry.host.canonical import inputs_digest
from airferry.host.installation import EXTRAS, PACKAGE, shipped
from airferry.host.journal import Journal
from airferry.host.locks import Thing, making
from airferry.host.records import Records, as_noted
from airferry.near.wheels.pack import Wheel, write_wheel
from airferry.near.wheels.pip import WheelTarget
from airferry.near.wheels.store import Pin, WheelStore
from airferry.oci.documents import Descriptor
from airferry.oci.layout import LayoutStore
from airferry.oci.platform import Platform
from airferry.oci.tar import DIRECTORY, END_OF_ARCHIVE, TarEntry, entry_blocks

FAR_SIDE_LOCK = "far-side.lock"
LOADER_ACTION = "loader"
LOADER_FILE = "airferry-loader.tar"
FOLDER = "airferry-loader"
SHIPPED_BESIDE = ("containerfiles", "airgap.yaml")
OLDEST_GLIBC = (2, 28)
LEAVE_OUT = "`loader: false` in airgap.yaml leaves airferry itself out of the bundle"


@dataclass(frozen=True, slots=True)
class CarriedLoader:
    """The loader of a bundle: its entries in the manifest, and its artifact."""

    entry: LoaderEntry
    artifact: tuple[ArtifactEntry, Descriptor]
    lock: LockEntry


def carry_loader(
    choice: LoaderChoice,
    platforms: Sequence[Platform],
    store: LayoutStore,
    *,
    journal: Journal,
    wheels: WheelStore,
    scratch: Path,
    emit: Emit,
) -> CarriedLoader:
    """Put the loader for the chosen Pythons and platforms into a layout. Idempotent; the same inputs, the same bytes.

    What the journal says already exists is not made again. Wheels that were fetched once come from the cache,
    without network.

    Raises:
        BuildError: a wheel cannot be found.
        IntegrityError: a wheel is not what the lock says.
        HostError: the installation of airferry is incomplete.
    """
    started_s = clock.monotonic_s()
    lock = shipped(f"near/carry/{FAR_SIDE_LOCK}")
    targets = [_target(python, platform) for python in choice.pythons for platform in choice.platforms or platforms]
    names = ", ".join(sorted(map(_name, targets)))
    with files.scratch_directory(scratch) as folder:
        own = own_wheel(folder)
        inputs = {
            "own": files.file_sha256(own),
            "lock": files.file_sha256(lock),
            "script": files.file_sha256(_install_script()),
            "targets": sorted(map(str, targets)),
        }
        if (known := _known(journal, inputs, store)) is not None:
            emit(StageFinished(LOADER_ACTION, 0.0, detail=names, reused=True))
            return _carried(known, store, lock, targets)
        emit(StageStarted(LOADER_ACTION))
        archive = folder / LOADER_FILE
        _write_archive(archive, own, _environments(lock, targets, wheels))
        descriptor = put_artifact(store, TOOL_ARTIFACT, contents=[ArtifactFile(LOADER_FILE, TOOL_CONTENT, archive)])
    journal.record(LOADER_ACTION, inputs, descriptor.model_dump(by_alias=True, exclude_none=True))
    emit(StageFinished(LOADER_ACTION, clock.monotonic_s() - started_s, detail=names))
    return _carried(descriptor, store, lock, targets)


def expected_loader_bytes(choice: LoaderChoice, platforms: Sequence[Platform], cache: Path) -> int | None:
    """Return how large the loader's wheels are, or None where they are not in the cache yet."""
    text = shipped(f"near/carry/{FAR_SIDE_LOCK}").read_text(encoding="utf-8")
    found: dict[Path, int] = {}
    records = Records(cache / "loader")
    for target in [_target(python, item) for python in choice.pythons for item in choice.platforms or platforms]:
        known = _known_wheels(records.recall(_resolution_key(text, target)))
        if not known:
            return None
        for name, sha256 in known:
            path = cache / "wheels" / sha256 / name
            if not path.is_file():
                return None
            found[path] = path.stat().st_size
    return sum(found.values())


def _known(journal: Journal, inputs: Mapping[str, Any], store: LayoutStore) -> Descriptor | None:
    known = as_noted(journal.result(LOADER_ACTION, inputs), Descriptor.model_validate)
    return known if known is not None and artifact_is_whole(store, known) else None


def _environments(lock: Path, targets: Sequence[WheelTarget], wheels: WheelStore) -> dict[str, list[Wheel]]:
    try:
        return {_name(target): _wheels(lock, target, wheels) for target in targets}
    except AirferryError as error:
        raise error.at(
            "the loader for the far side cannot be made",
            hint=f"{error.hint}; or: {LEAVE_OUT}" if error.hint else LEAVE_OUT,
        ) from error


def _carried(descriptor: Descriptor, store: LayoutStore, lock: Path, targets: Sequence[WheelTarget]) -> CarriedLoader:
    (layer,) = store.read_manifest(descriptor).manifest.layers
    return CarriedLoader(
        entry=LoaderEntry(
            archive=str(store.blob_path(layer.digest).relative_to(store.path.parent)),
            digest=layer.digest,
            size_bytes=layer.size,
            environments=tuple(sorted(map(_name, targets))),
        ),
        artifact=(
            ArtifactEntry(
                title=LOADER_FILE,
                artifact_type=TOOL_ARTIFACT,
                digest=descriptor.digest,
                size_bytes=descriptor.size,
            ),
            descriptor,
        ),
        lock=LockEntry(path=FAR_SIDE_LOCK, sha256=files.file_sha256(lock)),
    )


def _install_script() -> Path:
    return shipped("containerfiles") / "install-airferry.sh"


def read_pins(text: str) -> list[Pin]:
    """Return what a lock of exact versions with hashes pins, in its order."""
    joined = text.replace("\\\n", " ")
    pins = []
    for line in joined.splitlines():
        if match := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)", line):
            hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
            pins.append(Pin(match[1], f"=={match[2]}", hashes=hashes))
    return pins


def own_wheel(into: Path) -> Path:
    """Write airferry itself as a wheel into a folder and return its path.

    Made from the files that run now, installed or a source tree, without any build tool; see PEP 427.
    """
    stem = f"airferry-{__version__}"
    info = f"{stem}.dist-info"
    try:
        requires = sorted(metadata.requires("airferry") or ())
    except metadata.PackageNotFoundError as error:
        raise HostError("airferry is not installed", hint="install it with pip, or run `scripts/setup`") from error
    described = ["Metadata-Version: 2.1", "Name: airferry", f"Version: {__version__}", "Requires-Python: >=3.11"]
    described += [f"Provides-Extra: {extra}" for extra in sorted(EXTRAS)]
    described += [f"Requires-Dist: {line}" for line in requires]
    members: dict[str, bytes] = {
        **{f"airferry/{name}": path.read_bytes() for name, path in _own_files()},
        f"{info}/METADATA": ("\n".join(described) + "\n").encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: airferry\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\nairferry = airferry.cli:main\n",
    }
    return write_wheel(into / f"{stem}-py3-none-any.whl", members, info=info)


def _own_files() -> Iterator[tuple[str, Path]]:
    """Yield the files of the package, and those that a source tree keeps next to it and a wheel inside it."""
    roots = {"": PACKAGE, **{name: shipped(name) for name in SHIPPED_BESIDE}}
    for prefix, root in roots.items():
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                inside = path.relative_to(root).as_posix()
                name = "/".join(part for part in (prefix, inside) if part not in ("", "."))
                if prefix or not name.startswith(tuple(f"{beside}/" for beside in SHIPPED_BESIDE)):
                    yield name, path


def _target(python: str, platform: Platform) -> WheelTarget:
    major, minor = (int(part) for part in python.split("."))
    return WheelTarget((major, minor, 0), f"cp{major}{minor}", "glibc", OLDEST_GLIBC, platform.machine)


def _name(target: WheelTarget) -> str:
    return f"{target.abi}-{target.machine}"


def _wheels(lock: Path, target: WheelTarget, store: WheelStore) -> list[Wheel]:
    """Return the wheels that a lock pins for a target; which files these are is remembered in the cache."""
    text = lock.read_text(encoding="utf-8")
    records, key = Records(store.cache / "loader"), _resolution_key(text, target)
    doing = f"fetching the loader's wheels for {_name(target)}"
    with making(store.cache, Thing.LOADER_WHEELS, inputs_digest(key), doing=doing, emit=store.emit):
        if known := _known_wheels(records.recall(key)):
            wheels = [store.find(name, sha256) for name, sha256 in known]
            if all(wheels):
                return [wheel for wheel in wheels if wheel is not None]
        found = store.fetch(read_pins(text), target)
        records.remember(key, {"wheels": [[wheel.filename, wheel.sha256] for wheel in found]})
    return found


def _resolution_key(lock_text: str, target: WheelTarget) -> dict[str, str]:
    return {"lock": lock_text, "target": str(target)}


def _known_wheels(record: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return name and SHA-256 of each wheel that a record names; none where there is no record of that form."""
    found = (record or {}).get("wheels")
    if not isinstance(found, list):
        return []
    pairs = [tuple(item) for item in found if isinstance(item, list) and len(item) == 2]
    return [(str(name), str(sha256)) for name, sha256 in pairs]


def _write_archive(path: Path, own: Path, environments: Mapping[str, Sequence[Wheel]]) -> None:
    """Write the tar: the script, its list of digests, and each wheel once."""
    wheels = {wheel.filename: wheel.path for found in environments.values() for wheel in found} | {own.name: own}
    lists = {
        f"environments/{name}": "".join(
            f"{item}\n" for item in sorted([own.name, *(wheel.filename for wheel in found)])
        )
        for name, found in environments.items()
    }
    contents: dict[str, bytes | Path] = {
        "install": _install_script().read_bytes(),
        **{name: text.encode() for name, text in lists.items()},
        **{f"wheels/{name}": source for name, source in wheels.items()},
    }
    sums = "".join(f"{_sha256(contents[name])}  {name}\n" for name in sorted(contents))
    contents["SHA256SUMS"] = sums.encode()
    folders = [FOLDER, f"{FOLDER}/environments", f"{FOLDER}/wheels"]
    with path.open("wb") as stream:
        for folder in folders:
            entry = TarEntry(f"{folder}/", type=DIRECTORY, mode=0o755, mtime_s=clock.DEFAULT_EPOCH_S)
            stream.writelines(entry_blocks(entry))
        for name in sorted(contents):
            content = contents[name]
            data = content if isinstance(content, bytes) else content.read_bytes()
            mode = 0o755 if name == "install" else 0o644
            entry = TarEntry(f"{FOLDER}/{name}", size=len(data), mode=mode, mtime_s=clock.DEFAULT_EPOCH_S)
            stream.writelines(entry_blocks(entry, [data]))
        stream.write(END_OF_ARCHIVE)


def _sha256(content: bytes | Path) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else files.file_sha256(content)
