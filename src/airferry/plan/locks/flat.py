"""Lock files that list what to install and carry no dependency graph: `pylock.toml` and `requirements.txt`.

See PEP 751 for the first; the second must pin every requirement to one version, as `pip-compile` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from airferry.errors import ConfigurationError
from airferry.host.parsing import short_numbers, url_path
from airferry.plan.locks.packages import (
    GitSource,
    IndexSource,
    LocalSource,
    LockedDependency,
    LockedFile,
    LockedPackage,
    LockedSource,
    UrlSource,
)


def pylock_packages(entries: Iterable[Mapping[str, Any]], lines: Iterable[int]) -> list[LockedPackage]:
    """Read the packages of a `pylock.toml`; `lines` are those on which they begin.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: they are not what PEP 751 says.
    """
    return [_pylock_package(item, line) for item, line in zip(entries, lines, strict=True)]


def _pylock_package(item: Mapping[str, Any], line: int) -> LockedPackage:
    source: LockedSource = IndexSource()
    if "vcs" in item:
        vcs = item["vcs"]
        source = GitSource(vcs.get("url") or vcs["path"], vcs["commit-id"], vcs.get("subdirectory"))
    elif "archive" in item:
        source = (
            UrlSource(item["archive"]["url"])
            if "url" in item["archive"]
            else LocalSource(item["archive"]["path"], "path")
        )
    elif "directory" in item:
        source = LocalSource(item["directory"]["path"])
    entries = [*item.get("wheels", ()), *(item[kind] for kind in ("sdist", "archive") if kind in item)]
    locked = [
        LockedFile(
            entry.get("name") or _file_name(entry.get("url") or entry.get("path") or ""),
            "sha256:" + entry["hashes"]["sha256"],
        )
        for entry in entries
        if "sha256" in entry.get("hashes", {})
    ]
    return LockedPackage(
        name=canonicalize_name(item["name"]),
        version=item.get("version"),
        source=source,
        files=tuple(locked),
        dependencies=tuple(
            LockedDependency(canonicalize_name(entry["name"])) for entry in item.get("dependencies", ())
        ),
        markers=(item["marker"],) if "marker" in item else (),
        line=line,
    )


def _file_name(address: str) -> str | None:
    return PurePosixPath(unquote(url_path(address))).name or None


_HASH = re.compile(r"--hash[= ](sha256:[0-9a-f]{64})\b")
_ANY_HASH = re.compile(r"--hash[= ]\S+")


def read_requirements(path: Path, text: str) -> Iterable[LockedPackage]:
    """Read a `requirements.txt` whose requirements are all pinned.

    Raises:
        ConfigurationError: one is not, or it refers to other files.
    """
    for line, entry in _logical_lines(text):
        if entry.startswith("-"):
            if re.match(r"(-r|-c|-e|--requirement|--constraint|--editable)\b", entry):
                raise ConfigurationError(
                    f"{path}:{line}: `{entry}`: a lock file must be self-contained",
                    hint="write all pins into one file, for example with `pip-compile --generate-hashes`",
                )
            continue
        try:
            requirement = Requirement(short_numbers(_ANY_HASH.sub("", entry).strip()))
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{path}:{line}: `{entry}` is not a valid requirement: {error}",
                hint="write it as `NAME==VERSION`, for example with `pip-compile --generate-hashes`",
            ) from error
        pins = [item.version for item in requirement.specifier if item.operator in ("==", "===")]
        if not requirement.url and (len(pins) != 1 or pins[0].endswith(".*")):
            raise ConfigurationError(
                f"{path}:{line}: `{requirement}` is not pinned to one version",
                hint="pin it, for example with `pip-compile --generate-hashes`",
            )
        yield LockedPackage(
            name=canonicalize_name(requirement.name),
            version=pins[0] if pins else None,
            source=_requirement_source(requirement.url),
            files=tuple(LockedFile(None, digest) for digest in _HASH.findall(entry)),
            markers=(str(requirement.marker),) if requirement.marker else (),
            line=line,
        )


def _requirement_source(url: str | None) -> LockedSource:
    if url is None:
        return IndexSource()
    if not url.startswith("git+"):
        return UrlSource(url)
    address, _, fragment = url.removeprefix("git+").partition("#")
    subdirectory = dict(part.partition("=")[::2] for part in fragment.split("&") if part).get("subdirectory")
    address, _, commit = address.rpartition("@")
    return GitSource(address, commit, subdirectory)


def _logical_lines(text: str) -> Iterable[tuple[int, str]]:
    """Return each requirement with the line it begins on, continued lines joined, comments dropped."""
    held, first = "", 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        first = first or number
        held = f"{held} {line.removesuffix(chr(92)).strip()}".strip()
        if not line.endswith("\\"):
            if held:
                yield first, held
            held, first = "", 0
    if held:
        yield first, held
