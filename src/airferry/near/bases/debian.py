"""Debian userlands as base images, made by an ordinary user with mmdebstrap and no image registry.

`extract` fetches packages through mmdebstrap (apt resolves and verifies them) and composes the tree itself, so that it
takes seconds for every CPU; `minbase` lets mmdebstrap configure the packages, under emulation for a foreign CPU.
Packages are kept in the cache under their SHA-256: a userland whose versions are all pinned and cached needs no
network.
"""

from __future__ import annotations

import re
import shlex
import urllib.parse
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from airferry.config import BootstrapBase
from airferry.engine.program import MMDEBSTRAP_HINT, explain
from airferry.errors import BuildError, HostError
from airferry.events import Emit, StageFinished, StageStarted, silent
from airferry.host import clock, files, process
from airferry.host.canonical import canonical_json
from airferry.host.locks import own_scratch
from airferry.near.bases.userland import compose, read_package
from airferry.near.tls_said import tls_trouble
from airferry.oci.documents import IMAGE_CONFIG, IMAGE_MANIFEST, Descriptor, PlatformDocument
from airferry.oci.layers import Compression, compress_layer
from airferry.oci.layout import LayoutStore
from airferry.oci.normalise import normalise_layer
from airferry.oci.platform import Platform
from airferry.oci.ports import BLOCK_BYTES
from airferry.oci.tar import TarReader
from airferry.wording import counted, some_of

BOOTSTRAP_S = 3600.0
# What every userland needs to be a base: a shell, the C library's tools, users, and certificates.
IMPLIED_PACKAGES = (
    "base-files",
    "base-passwd",
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "debianutils",
    "findutils",
    "grep",
    "libc-bin",
    "sed",
    "tar",
)
PATH_OF_IMAGE = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES = {"386": "i386", "arm": "armhf", "ppc64le": "ppc64el"}
_ARCHIVES = "/var/cache/apt/archives"
_MINBASE_DROPPED = (
    "dev/*",
    "etc/apt/preferences.d/airferry",
    "etc/apt/sources.list",
    "etc/hostname",
    "etc/resolv.conf",
    "run/*",
    "tmp/*",
    "var/cache/apt/*.bin",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/log/*",
)
_NO_SUCH_PACKAGE = re.compile(r"Unable to locate package (\S+)|Package '?([^' ]+)'? has no installation candidate")


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """A userland as an uncompressed tar, and all packages in it with their versions, sorted by name."""

    tar: Path
    packages: dict[str, str]
    reused: bool


def bootstrap_stage(base: BootstrapBase, platform: Platform) -> str:
    """Return what progress calls the making of a userland."""
    return f"bootstrap {base.suite} {platform}"


def debian_architecture(platform: Platform) -> str:
    """Return Debian's word for the architecture of a platform."""
    return _ARCHITECTURES.get(platform.architecture, platform.architecture)


def bootstrap(
    base: BootstrapBase,
    *,
    platform: Platform,
    into: Path,
    cache: Path,
    epoch_s: int,
    pins: Mapping[str, str] | None = None,
    emit: Emit = silent,
) -> BootstrapResult:
    """Write the userland that `base` describes as an uncompressed tar to the file `into`, atomically.

    The same package versions, platform and `epoch_s` give the same bytes with `extract`; with `minbase` as far as the
    packages' own scripts do. `pins` maps every package of an earlier result to its version. `cache` keeps packages;
    several processes may share it. `reused` in the result says that nothing was fetched.

    Raises:
        HostError: mmdebstrap is not installed or cannot work here.
        BuildError: a package does not exist, or not in its pinned version any more.
    """
    started = clock.monotonic_s()
    stage = bootstrap_stage(base, platform)
    emit(StageStarted(stage))
    store = PackageCache(cache / "debs" / f"{base.suite}-{debian_architecture(platform)}")
    debs = store.find(pins) if pins and base.variant == "extract" else None
    reused = debs is not None
    with own_scratch(cache / "bootstrap") as folder:
        job = _Job(base, platform, folder, pins or {}, epoch_s, emit)
        if base.variant == "minbase":
            packages = _configure(job, into)
        else:
            debs = debs or _fetch(job, store)
            packages = {package.name: package.version for package in map(read_package, debs)}
    _check_pins(packages, pins, base=base)
    if debs is not None:
        _write(compose(debs, epoch_s=epoch_s), into)
    emit(StageFinished(stage, clock.monotonic_s() - started, reused, counted(len(packages), "package")))
    return BootstrapResult(into, dict(sorted(packages.items())), reused)


def store_userland(
    result: BootstrapResult,
    *,
    base: BootstrapBase,
    platform: Platform,
    epoch_s: int,
    store: LayoutStore,
    compression: Compression | None = None,
) -> Descriptor:
    """Store a userland as an image of one layer in a layout and return its manifest's descriptor. Deterministic."""
    with result.tar.open("rb") as stream:
        layer = compress_layer(stream, compression=compression or Compression(), into=store)
    created = clock.rfc3339(epoch_s)
    config = {
        "architecture": platform.architecture,
        "config": {"Cmd": ["/bin/bash"], "Env": [f"PATH={PATH_OF_IMAGE}"], "WorkingDir": "/"},
        "created": created,
        "history": [{"created": created, "created_by": f"airferry bootstrap {base.suite} {base.variant}"}],
        "os": platform.os,
        "rootfs": {"diff_ids": [layer.diff_id], "type": "layers"},
        **({"variant": platform.variant} if platform.variant else {}),
    }
    manifest = {
        "config": store.put_bytes(canonical_json(config), IMAGE_CONFIG),
        "layers": [layer.descriptor],
        "mediaType": IMAGE_MANIFEST,
        "schemaVersion": 2,
    }
    dumped = {key: _dump(value) for key, value in manifest.items()}
    described = PlatformDocument(architecture=platform.architecture, os=platform.os, variant=platform.variant or None)
    return store.put_bytes(canonical_json(dumped), IMAGE_MANIFEST, platform=described)


def _dump(value: object) -> object:
    if isinstance(value, Descriptor):
        return value.model_dump(by_alias=True, exclude_none=True)
    return [_dump(item) for item in value] if isinstance(value, list) else value


class PackageCache:
    """Packages that were fetched, as `<name>_<version>_<architecture>.<sha256>.deb` in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which need not exist."""
        self._folder = folder

    def find(self, pins: Mapping[str, str]) -> list[Path] | None:
        """Return the files of all pinned packages, each checked against its SHA-256, or None if one is missing."""
        if not self._folder.is_dir():
            return None
        present: dict[tuple[str, str], Path] = {}
        for path in sorted(self._folder.glob("*.deb")):
            parts = path.name.split("_")
            if len(parts) == 3:
                present[parts[0], urllib.parse.unquote(parts[1])] = path
        found = [present.get(pin) for pin in sorted(pins.items())]
        if any(path is None or not _is_intact(path) for path in found):
            return None
        return [path for path in found if path is not None]

    def add(self, deb: Path) -> Path:
        """Move a fetched package into the cache, durably, and return its path there. Idempotent."""
        files.ensure_directory(self._folder)
        final = self._folder / f"{deb.stem}.{files.file_sha256(deb)}.deb"
        if final.is_file() and final.stat().st_size == deb.stat().st_size:
            return final
        with files.atomic_file(final) as target, deb.open("rb") as source:
            while block := source.read(BLOCK_BYTES):
                target.write(block)
        return final


def _is_intact(path: Path) -> bool:
    return path.stem.rpartition(".")[2] == files.file_sha256(path)


def _write(parts: Iterable[bytes], into: Path) -> None:
    with files.atomic_file(into) as stream:
        for block in parts:
            stream.write(block)


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of mmdebstrap, and the folder that it may fill."""

    base: BootstrapBase
    platform: Platform
    folder: Path
    pins: Mapping[str, str]
    epoch_s: int
    emit: Emit

    def __str__(self) -> str:
        return f"`{self.base.suite}` for `{self.platform}`"


def _fetch(job: _Job, store: PackageCache) -> list[Path]:
    debs = files.ensure_directory(job.folder / "debs")
    # with `--include`, mmdebstrap would unpack what it downloads; only the packages are wanted, and nothing is started
    # in the tree, which needs no mounts then
    apt = 'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes --download-only install --'
    arguments = [
        "--variant=extract",
        "--format=null",
        "--skip=chroot/mount",
        f"--extract-hook={apt} {shlex.join(_included(job.base))}",
    ]
    arguments.append(f"--extract-hook=sync-out {_ARCHIVES} {shlex.quote(str(debs))}")
    _mmdebstrap(job, arguments, target=Path("/dev/null"))
    return [store.add(deb) for deb in sorted(debs.glob("*.deb"))]


def _configure(job: _Job, into: Path) -> dict[str, str]:
    tar = job.folder / "userland.tar"
    included = f"--include={','.join(_included(job.base))}"
    _mmdebstrap(job, ["--variant=minbase", "--format=tar", included], target=tar)
    with tar.open("rb") as stream:
        packages = _read_status(TarReader(stream, what="the userland"))
    with tar.open("rb") as stream:
        _write(normalise_layer(stream, epoch_s=job.epoch_s, drop=_MINBASE_DROPPED), into)
    return packages


def _read_status(reader: TarReader) -> dict[str, str]:
    for entry in reader:
        if entry.path == "var/lib/dpkg/status":
            text = b"".join(reader.content()).decode("utf-8", "replace")
            stanzas = [dict(re.findall(r"^([A-Za-z-]+): *(.*)$", part, re.M)) for part in text.split("\n\n")]
            installed = (part for part in stanzas if part.get("Status", "").endswith(" installed"))
            return {part["Package"]: part["Version"] for part in installed}
    raise BuildError(
        "the userland has no `var/lib/dpkg/status`", hint="check that `suite:` and `mirror:` name a Debian archive"
    )


def _included(base: BootstrapBase) -> list[str]:
    return sorted({*IMPLIED_PACKAGES, *base.packages})


def _mmdebstrap(job: _Job, arguments: Sequence[str], *, target: Path) -> None:
    program = process.find_program("mmdebstrap")
    if program is None:
        raise HostError("`mmdebstrap` was not found, but a base image must be bootstrapped", hint=MMDEBSTRAP_HINT)
    preferences = job.folder / "preferences"
    pinned = sorted(job.pins.items())
    preferences.write_text(
        "".join(f"Package: {name}\nPin: version {at}\nPin-Priority: 1001\n\n" for name, at in pinned),
        encoding="utf-8",
    )
    base = job.base
    argv = [str(program), "--mode=unshare", *arguments]
    argv += [f"--architectures={debian_architecture(job.platform)}", f"--components={','.join(base.components)}"]
    argv += ["--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr", '--aptopt=Acquire::Languages "none"']
    argv += ['--setup-hook=mkdir -p "$1/etc/apt/preferences.d"']
    argv += [f"--setup-hook=upload {shlex.quote(str(preferences))} /etc/apt/preferences.d/airferry"]
    argv += [base.suite, str(target), *mmdebstrap_mirrors(base, platform=job.platform)]
    # It works as a subordinate user, who can enter neither a cache nor a home that is this user's alone.
    environment = {"SOURCE_DATE_EPOCH": str(job.epoch_s), "TMPDIR": str(files.temporary_directory())}
    try:
        process.run(argv, timeout_s=BOOTSTRAP_S, environment=environment, emit=job.emit)
    except process.ProcessFailed as failure:
        raise _translated(failure, what=f"cannot bootstrap {job}") from failure


def _translated(failure: process.ProcessFailed, *, what: str) -> BuildError | HostError:
    lines = [line for line in failure.tail if line.strip()]
    for found in filter(None, map(_NO_SUCH_PACKAGE.search, lines)):
        name = found[1] or found[2]
        return BuildError(
            f"{what}: the suite has no package `{name}` for this platform",
            hint="check `packages:` of the base; the archive area that contains it may be missing under `components:`",
            package=name,
        )
    shown = "".join(f"\n  | {line}" for line in lines[-8:])
    if explained := explain(lines, in_temporary=True):
        return HostError(f"{what}: {explained[0]}{shown}", hint=explained[1])
    text = "\n".join(lines)
    if re.search(r"NO_PUBKEY|not signed|keyring|signatures? (could|couldn't)", text):
        hint = "install the keyring of that distribution: `sudo apt-get install debian-archive-keyring ubuntu-keyring`"
        return HostError(f"{what}: cannot verify the signature of its archive{shown}", hint=hint)
    where = "under `mirror:` of the base, or in `/etc/apt/sources.list`"
    ca = "install it in `/usr/local/share/ca-certificates/` as `NAME.crt`, then `sudo update-ca-certificates`"
    plain = "http://" if "http://" in text else ""
    if trouble := tls_trouble(text, url=plain, where=where, ca=ca):
        return BuildError(f"{what}: the package mirror cannot be used: {trouble[0]}{shown}", hint=trouble[1])
    if re.search(r"Could not (resolve|connect)|Temporary failure|Connection (refused|timed out)|404 +Not Found", text):
        return BuildError(f"{what}: the package mirror does not answer{shown}", hint="check `mirror:` and the network")
    return BuildError(
        f"{what}{shown or ': no message'}",
        hint="read the lines above; `airferry --debug` shows the command, to be run by hand without its hooks",
    )


def _check_pins(packages: Mapping[str, str], pins: Mapping[str, str] | None, *, base: BootstrapBase) -> None:
    if not pins:
        return
    names = sorted({*packages, *pins})
    differing = [name for name in names if packages.get(name) != pins.get(name)]
    if differing:
        shown = [f"`{n}` locked {pins.get(n, 'absent')}, found {packages.get(n, 'absent')}" for n in differing]
        raise BuildError(
            f"the mirror of `{base.suite}` does not have the locked versions: {some_of(shown, 5)}",
            hint="run `airferry lock --update`, or set a mirror that keeps old versions under `mirror:`",
            packages=differing,
        )


def mmdebstrap_mirrors(base: BootstrapBase, *, platform: Platform, apt: Path = Path("/etc/apt")) -> list[str]:
    """Return what mmdebstrap is given as mirrors: the base's own, else the host's for that suite, else nothing.

    Without any, mmdebstrap takes the distribution's default. The host's own serve only the host's architecture,
    unless they are Debian's, whose archive holds all.
    """
    if base.mirror:
        return [base.mirror]
    lines = []
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            text = path.read_text(encoding="utf-8", errors="replace")
            parse = _one_line_sources if path.suffix == ".list" else _deb822_sources
            lines += list(parse(text, base.suite, base.components))
    if not platform.matches_host() and not all("debian" in line for line in lines):
        return []
    return lines


def _one_line_sources(text: str, suite: str, components: Sequence[str]) -> Generator[str, None, None]:
    for line in text.splitlines():
        found = re.fullmatch(r"deb +(\[[^]]*\] +)?(\S+) +(\S+) +([^#]+?)(#.*)?", line.strip())
        if found and _belongs(found[3], suite):
            kept = [part for part in found[4].split() if part in components]
            if kept:
                yield f"deb {found[1] or ''}{found[2]} {found[3]} {' '.join(kept)}"


def _deb822_sources(text: str, suite: str, components: Sequence[str]) -> Generator[str, None, None]:
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", plain):
        fields = {key.lower(): value.strip() for key, value in re.findall(r"^([A-Za-z-]+): *(.*)$", stanza, re.M)}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        kept = [part for part in fields.get("components", "").split() if part in components]
        signed = fields.get("signed-by", "")
        option = f"[signed-by={signed}] " if signed.startswith("/") else ""
        for uri in fields.get("uris", "").split():
            for name in fields.get("suites", "").split():
                if kept and _belongs(name, suite):
                    yield f"deb {option}{uri} {name} {' '.join(kept)}"


def _belongs(name: str, suite: str) -> bool:
    return name in (suite, f"{suite}-updates", f"{suite}-security")
