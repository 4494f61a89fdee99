"""Every kind of network fault in every class of requests of a load: once, and for as long as the load runs."""

from __future__ import annotations

import http.server
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from registry import CLASSES, KINDS, Kind, WatchedRegistry, reset, status

from airferry.bundle.artifacts import REQUIREMENTS_ARTIFACT, ArtifactFile, put_artifact
from airferry.bundle.manifest import ArtifactEntry, BundleManifest, ToolEntry, describe_image, describe_platform
from airferry.bundle.seal import seal
from airferry.errors import AirferryError
from airferry.far.load import load
from airferry.host import clock, files
from airferry.oci.layout import LayoutStore
from airferry.registry.client import ClientOptions
from airferry.registry.credentials import Credential
from airferry.registry.profile import RegistryProfile, write_profile
from airferry.registry.retry import RetryPolicy
from oci_images import make_image, put_image, put_index
from scripted_registry import Exchange, Fault, times

CHUNK_BYTES = 256 * 1024
ONCE, ALWAYS = "once", "always"
OPTIONS = ClientOptions(
    plain_http=True,
    jobs=2,
    connect_timeout_s=10.0,
    # a busy machine is not a fault
    read_timeout_s=5.0,
    retry=RetryPolicy(attempts=3, sleep=lambda _: None),
    lookup=lambda _registry, _repository: Credential("user", "secret"),
)


@dataclass
class Tally:
    """What became of the cases of one row."""

    name: str
    cases: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    finished: int = 0
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def ended(self, code: int) -> None:
        """Note an exit code."""
        self.cases += 1
        self.codes[code] = self.codes.get(code, 0) + 1


@dataclass(frozen=True)
class Cargo:
    """A bundle, and the tags that it sets where nothing is in the way."""

    path: Path
    root: str
    tags: frozenset[str] = frozenset()


def make_cargo(path: Path) -> Cargo:
    """Seal a bundle of two images that share a layer, with an artifact that refers to one, and a layer for chunks."""
    store = LayoutStore.create(path)
    index, entry = make_image(store)
    shared = {"shared": b"the same on both" * 1000}
    noise = {"noise": random.Random(1).randbytes(CHUNK_BYTES * 2 + 1000)}
    child, results = put_image(store, [shared, noise])
    other = put_index(store, [child])
    reference = "registry.example/team/other:1.0"
    described = {"linux/amd64": describe_platform(store, child, layers=results, base_layers=1)}
    second = describe_image(
        other, name="other", role="execution", image=reference, reference=reference, platforms=described
    )
    artifact = put_artifact(
        store,
        REQUIREMENTS_ARTIFACT,
        contents=[ArtifactFile("requirements.txt", "text/plain", b"a==1\n")],
        subject=index,
    )
    listed = ArtifactEntry(
        title="requirements.txt",
        artifact_type=REQUIREMENTS_ARTIFACT,
        digest=artifact.digest,
        size_bytes=artifact.size,
        subject=index.digest,
    )
    manifest = BundleManifest(
        workflow={"stages": ["sft/tiny:default"]},
        build_stages=("validate",),
        images=(entry, second),
        artifacts=(listed,),
        compression="zstd",
        tool=ToolEntry(airferry="0"),
    )
    sealed = seal(store, {entry.reference: index, reference: other}, artifacts=[artifact], manifest=manifest)
    return Cargo(path, sealed.root)


@contextmanager
def running(registry: WatchedRegistry) -> Iterator[WatchedRegistry]:
    """Run a registry on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Exchange,), {"registry": registry}))
    server.daemon_threads = True
    registry.address = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()


def load_once(cargo: Cargo, registry: WatchedRegistry, receipt: Path) -> tuple[int, str]:
    """Load, and return the exit code with the message; a bug is raised."""
    try:
        load(cargo.path, to=f"{registry.address}/x", root=cargo.root, receipt=receipt, options=OPTIONS)
    except AirferryError as error:
        return error.exit_code, error.message
    return 0, ""


def network_faults(folder: Path, *, classes: list[str], kinds: int | None = None) -> list[Tally]:
    """Put every kind of fault into every class of requests, and return a row for each class."""
    cargo = make_cargo(folder / "bundle")
    with running(WatchedRegistry()) as registry:
        prepare(registry)
        code, message = load_once(cargo, registry, folder / "receipt.yaml")
        assert code == 0, message
        seen = {name for name, fits in CLASSES.items() if any(fits(call) for call in registry.calls)}
        cargo = Cargo(cargo.path, cargo.root, frozenset(registry.tags()))
    # what a load that goes well asks for none of: its faults need another one first
    assert seen >= CLASSES.keys() - {"GET session", "DELETE session"}, CLASSES.keys() - seen
    rows = []
    for name in classes:
        row = Tally(name)
        for kind in KINDS[:kinds]:
            for mode in (ONCE, ALWAYS):
                _case(row, cargo, kind, mode, folder)
        rows.append(row)
    return rows


def prepare(registry: WatchedRegistry) -> None:
    """Let uploads of more than 256 KiB go in chunks."""
    probed_at = clock.rfc3339(clock.now_s())
    profile = RegistryProfile(registry=registry.address, probed_at=probed_at, largest_request_bytes=CHUNK_BYTES)
    write_profile(profile)


def provoked(name: str) -> list[Fault]:
    """Return the faults without which a load sends no request of a class."""
    if name == "GET session":
        later = times(
            1, lambda call: call.method == "PATCH" and "262144-" in call.headers.get("Content-Range", ""), reset
        )
        return [later]
    if name == "DELETE session":
        return [times(2, CLASSES["PUT blob"], status(400))]
    return []


def _case(row: Tally, cargo: Cargo, kind: Kind, mode: str, folder: Path) -> None:
    what = f"{row.name}, {kind.name}, {mode}"
    receipt = folder / "receipt.yaml"
    receipt.unlink(missing_ok=True)
    matches = CLASSES[row.name]
    with running(WatchedRegistry()) as registry:
        prepare(registry)
        registry.faults += [*provoked(row.name), times(1 if mode == ONCE else 1 << 30, matches, kind.fault)]
        began = time.monotonic()
        try:
            code, message = load_once(cargo, registry, receipt)
        except Exception as error:
            row.ended(1)
            row.wrong.append(f"{what}: {type(error).__name__}: {error}")
            return
        row.slowest_s = max(row.slowest_s, time.monotonic() - began)
        row.ended(code)
        if (wrong := _wrong_code(row, kind, mode, code)) is not None:
            row.wrong.append(f"{what}: {wrong}: {message}")
        if not any(matches(call) for call in registry.calls):
            row.wrong.append(f"{what}: no such request was sent")
        if ends := _ends_sessions(row, kind, mode):
            _expect_closed(row, what, registry)
        registry.faults.clear()
        time.sleep(0.01)
        code, message = load_once(cargo, registry, receipt)
        if code or set(registry.tags()) != cargo.tags:
            row.wrong.append(f"{what}: the rerun ends with {code}: {message or sorted(registry.tags())}")
        else:
            row.finished += 1
        if registry.early or registry.incomplete():
            row.wrong.append(f"{what}: tags of what is not there: {registry.early or registry.incomplete()}")
        if ends:
            _expect_closed(row, f"{what}, after the rerun", registry, resumable=False)


def _ends_sessions(row: Tally, kind: Kind, mode: str) -> bool:
    """Tell whether a session can be ended: not where the registry refuses to, or every try fails."""
    return row.name != "DELETE session" or (mode == ONCE and kind.transient)


def _wrong_code(row: Tally, kind: Kind, mode: str, code: int) -> str | None:
    # what makes a load end sessions is a refusal, after which it ends in any event
    if kind.transient and mode == ONCE and code and row.name != "DELETE session":
        return f"exit code {code} after a fault that was over"
    if code not in ((0, 6, 7) if kind.lies else (0, 7)):
        return f"exit code {code}"
    return None


def _expect_closed(row: Tally, what: str, registry: WatchedRegistry, *, resumable: bool = True) -> None:
    """Note sessions that were left open, but for those that a later load goes on with."""
    journals = files.cache_directory().glob("loads/*/uploads.json") if resumable else ()
    kept = {
        part
        for path in journals
        for entry in json.loads(path.read_text()).values()
        for part in _parts(entry["location"])
    }
    left = set(registry.sessions) - registry.untold - kept
    if left:
        row.wrong.append(f"{what}: {len(left)} upload sessions are left open")


def _parts(location: str) -> set[str]:
    return set(location.partition("?")[0].split("/"))


def in_own_folders(folder: Path) -> None:
    """Let airferry keep what it keeps below a folder."""
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "AIRFERRY_CACHE"):
        os.environ[variable] = str(files.ensure_directory(folder / variable.lower()))
