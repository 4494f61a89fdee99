"""`airgap.lock.yaml`: pinned bases, commits and versions, so that a build can be repeated.

Models, reading, writing and differences. Resolves nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from airferry.config.document import KeyPath, read_yaml
from airferry.config.fields import DebianPackage, Text
from airferry.errors import ConfigurationError
from airferry.host import files
from airferry.host.yaml import render_yaml
from airferry.oci.digest import Digest, digest_of
from airferry.plan.locks.packages import GitSource
from airferry.plan.models import GroupPlan
from airferry.wording import counted

LOCK_FILE = "airgap.lock.yaml"
LOCK_VERSION = 2  # 1 did not say which distributions a base holds, nor addresses of files
OLDEST_VERSION = 1
_HEADER = "# Written by `airferry lock`. Keep it with the configuration; change it with `airferry lock --update`.\n"
_RELOCK = "run `airferry lock` again"

# these go into files that apt and pip read line by line
DebianVersion = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+~:-]+$")]
DistributionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
# below the folder of its digest in the cache, whose damaged ones are removed with their folder
WheelFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._!+-]{0,254}$")]
DistributionVersion = Annotated[str, Field(pattern=r"^[A-Za-z0-9.!+_-]+$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]


SignatureTag = Annotated[str, Field(pattern=r"^sha256-[0-9a-f]{64}\.(sig|att|sbom)$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LockedBasePlatform(_Model):
    """A base for one platform: its manifest, and the packages that a bootstrap consists of."""

    manifest: Digest
    packages: dict[DebianPackage, DebianVersion] = {}


class LockedBase(_Model):
    """A base image. `index` is the digest that its reference had; a bootstrap has none.

    `attached` is what belongs to a base that is carried as it came: the digest of each artifact, under the tag that
    cosign gave it or under the digest itself. None where it was not looked for.
    """

    kind: Literal["registry", "layout", "archive", "bootstrap"]
    index: Digest | None = None
    platforms: dict[str, LockedBasePlatform] = {}
    attached: dict[SignatureTag | Digest, Digest] | None = None


class LockedOverlay(_Model):
    """The commit that a ref of a Git repository pointed at."""

    commit: Commit


class LockedGit(_Model):
    """The commit that a wheel was built of."""

    url: str
    commit: Commit
    subdirectory: str | None = None


class LockedAddition(_Model):
    """A distribution to install: its wheel by name and digest, and the modules that it was added for.

    `modules` are empty for one that only another addition requires. `address` is where the file is, if not in the
    package index: a URL, or a path relative to the catalogue's lock.
    """

    name: DistributionName
    version: DistributionVersion
    file: WheelFile
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    modules: tuple[str, ...] = ()
    source: LockedGit | None = None
    address: str = ""

    @property
    def git_source(self) -> GitSource | None:
        """The commit to build the wheel of, where it comes from Git."""
        return GitSource(self.source.url, self.source.commit, self.source.subdirectory) if self.source else None


class LockedPlatform(_Model):
    """An interpreter of a base on one platform, what it lacks, and what is added to it.

    `inputs` is the digest of all that this depends on: where it no longer matches, the entry is out of date. `python`
    is the interpreter's path in the image; the fields after it say which wheels suit it. `distributions` are those that
    the base holds, see `inventory`.
    """

    inputs: Digest
    python: Text
    python_version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+(\.[0-9]+)?$")]
    abi: str = ""
    libc: str = ""
    libc_version: str = ""
    machine: str = ""
    missing: tuple[str, ...] = ()
    missing_core: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    additions: tuple[LockedAddition, ...] = ()
    distributions: Annotated[str, Field(max_length=1 << 20)] = ""


class LockedGroup(_Model):
    """A group, for each of its platforms."""

    platforms: dict[str, LockedPlatform] = {}


class LockedLauncher(_Model):
    """The launcher's environment, for each of its platforms."""

    platforms: dict[str, LockedPlatform] = {}


class Lockfile(_Model):
    """The whole of `airgap.lock.yaml`. Bases are under their key, overlays under `url@ref`, groups under their name."""

    schema_version: StrictInt = LOCK_VERSION
    bases: dict[str, LockedBase] = {}
    overlays: dict[str, LockedOverlay] = {}
    groups: dict[str, LockedGroup] = {}
    launcher: LockedLauncher | None = None

    def noted(self) -> list[dict[str, str]]:
        """Return the notes of all entries as plain data: `image` (a group, or `launcher`), `platform` and `text`."""
        named = [(name, group.platforms) for name, group in sorted(self.groups.items())]
        if self.launcher is not None:
            named.append(("launcher", self.launcher.platforms))
        return [
            {"image": name, "platform": platform, "text": text}
            for name, platforms in named
            for platform, entry in sorted(platforms.items())
            for text in entry.notes
        ]


def group_digest(group: GroupPlan) -> str:
    """Return the digest of what a group asks its base for; a locked group with another one is out of date.

    It covers the candidates that may be installed, with their origins, and the image's words on how to.
    """
    wanted = [[item.module, item.origin] for item in group.candidates if item.origin != "reported"]
    asked: list[object] = [sorted(wanted), sorted(group.requirements.items()), group.pip_no_deps, group.python]
    if group.env:
        asked.append(sorted(group.env.items()))
    return digest_of(json.dumps(asked, separators=(",", ":")).encode())


def read_lockfile(path: Path) -> Lockfile | None:
    """Read a lock file, or return None if there is none.

    Raises:
        ConfigurationError: it is newer than this airferry, or not what `write_lockfile` writes.
    """
    if not path.exists():
        return None
    document = read_yaml(path)
    value = document.value
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path}:1: not a lock file: expected a mapping", hint=_RELOCK, path=str(path))
    version = value.get("schema_version")
    if isinstance(version, int) and version > LOCK_VERSION:
        raise document.error(
            ("schema_version",),
            f"the lock file has version {version}, this version of airferry reads version {LOCK_VERSION}",
            hint="use the version of airferry that wrote it, or a newer one",
        )
    if not isinstance(version, int) or isinstance(version, bool) or version < OLDEST_VERSION:
        raise document.error(("schema_version",), f"expected {LOCK_VERSION}, found `{version}`", hint=_RELOCK)
    try:
        return Lockfile.model_validate({**value, "schema_version": LOCK_VERSION})
    except ValidationError as error:
        problems: list[str] = []
        for item in error.errors(include_url=False):
            key: KeyPath = item["loc"]
            problems.append(document.problem(key, item["msg"]))
        raise ConfigurationError("\n".join(problems), hint=_RELOCK, path=str(path)) from error


def render_lockfile(lockfile: Lockfile) -> str:
    """Return a lock file's text: sorted keys, no default values, the same for the same content."""
    document = lockfile.model_dump(mode="json", exclude_defaults=True)
    document["schema_version"] = lockfile.schema_version
    return _HEADER + render_yaml(document, sort_keys=True, width=1000)


def write_lockfile(lockfile: Lockfile, path: Path) -> None:
    """Write a lock file atomically; an equal one is left alone.

    Raises:
        HostError: the folder is not writable, or the disk is full.
    """
    files.write_text(path, render_lockfile(lockfile))


def differences(old: Lockfile | None, new: Lockfile) -> list[str]:
    """Return what changed from one lock to another, a line each, sorted; empty if nothing did.

    The packages of a bootstrap are listed where it was there before, and counted where it is new or gone: there are
    dozens, and the lock has them.
    """
    earlier = old or Lockfile()
    before, after = _facts(earlier), _facts(new)
    packages, later = _packages(earlier), _packages(new)
    for where in packages.keys() | later.keys():
        if where in packages and where in later:
            before |= {f"{where}, package {name}": version for name, version in packages[where].items()}
            after |= {f"{where}, package {name}": version for name, version in later[where].items()}
        else:
            facts, listed = (before, packages[where]) if where in packages else (after, later[where])
            facts[where] += f", {counted(len(listed), 'package')}"
    lines: list[str] = []
    for what in sorted(before.keys() | after.keys()):
        if what not in before:
            lines.append(f"+ {what}: {after[what]}")
        elif what not in after:
            lines.append(f"- {what}: {before[what]}")
        elif before[what] != after[what]:
            lines.append(f"~ {what}: {before[what]} → {after[what]}")
    return lines


def _facts(lockfile: Lockfile) -> dict[str, str]:
    facts: dict[str, str] = {}
    for key, base in lockfile.bases.items():
        if base.index:
            facts[f"base `{key}`"] = base.index
        for name, digest in (base.attached or {}).items():
            facts[f"base `{key}`, artifact {name}"] = digest
        for platform, entry in base.platforms.items():
            facts[f"base `{key}` for {platform}"] = entry.manifest
    for key, overlay in lockfile.overlays.items():
        facts[f"overlay `{key}`"] = overlay.commit
    for name, group in lockfile.groups.items():
        for platform, found in group.platforms.items():
            facts[f"group {name} for {platform}, interpreter"] = _interpreter(found)
            if found.missing:
                facts[f"group {name} for {platform}, missing"] = ", ".join(found.missing)
            facts |= _addition_facts(f"group {name} for {platform}", found.additions)
    for platform, environment in (lockfile.launcher.platforms if lockfile.launcher else {}).items():
        facts[f"launcher for {platform}, interpreter"] = _interpreter(environment)
        facts |= _addition_facts(f"launcher for {platform}", environment.additions)
    return facts


def _packages(lockfile: Lockfile) -> dict[str, dict[str, str]]:
    """Return the packages of each base that consists of some, by how facts call it."""
    return {
        f"base `{key}` for {platform}": dict(entry.packages)
        for key, base in lockfile.bases.items()
        for platform, entry in base.platforms.items()
        if entry.packages
    }


def _interpreter(found: LockedPlatform) -> str:
    libc = f"{found.libc} {found.libc_version}".strip()
    return ", ".join(part for part in (f"Python {found.python_version} at {found.python}", libc) if part)


def _addition_facts(where: str, additions: Iterable[LockedAddition]) -> dict[str, str]:
    return {f"{where}, addition {item.name}": f"{item.version} ({item.file}, {item.sha256[:12]})" for item in additions}
