"""Where pulls go: `registries.conf` and its drop-ins, read as Podman, Buildah and skopeo read them.

Follows containers-registries.conf(5) and containers-registries.conf.d(5) in their versions 1 and 2, and where these
leave something open, `pkg/sysregistriesv2` of containers/image 5. Aliases and search registries have no part in it: a
short name is one of Docker Hub, on any host. Reads files and asks no registry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airferry.errors import ConfigurationError, HostError, UsageError
from airferry.host import files
from airferry.host.parsing import Malformed, parse_toml
from airferry.oci.reference import Reference, parse_reference

MAX_REGISTRIES_CONF_BYTES = 1024 * 1024
MAX_DROP_INS = 1000
SYSTEM_FOLDER = Path("/etc/containers")
# Podman and Buildah look at both; the first one wins, and one that is empty counts as unset
VARIABLES = ("CONTAINERS_REGISTRIES_CONF", "REGISTRIES_CONFIG_PATH")

PullFromMirror = Literal["", "all", "digest-only", "tag-only"]
_HEADER = re.compile(r"\s*\[(\[)?([^\]\[]*)\]")
_KEY = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""")
_SEPARATORS = ":/@"
_KEYS_OF_VERSION_2 = (
    *("registry", "unqualified-search-registries", "credential-helpers", "short-name-mode", "aliases"),
    "additional-layer-store-auth-helper",
)
_KeyPath = tuple[str | int, ...]


class SharedFileError(ConfigurationError):
    """A file of the host that all images share is wrong: no place in the user's plan has a part in it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place that a rule names: where a prefix leads, and `file:line` of what says so."""

    location: str
    insecure: bool
    pull: PullFromMirror
    place: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A `[[registry]]`: what is asked for names that begin with its prefix."""

    prefix: str
    primary: Endpoint
    mirrors: tuple[Endpoint, ...] = ()
    blocked: bool = False
    mirror_by_digest_only: bool = False

    def endpoints(self, *, by_digest: bool) -> Iterator[Endpoint]:
        """Yield what is asked, in order: the mirrors that fit, then the location itself."""
        for mirror in self.mirrors:
            only = "digest-only" if self.mirror_by_digest_only else mirror.pull
            if only in ("", "all") or (only == "digest-only") == by_digest:
                yield mirror
        yield self.primary


@dataclass(frozen=True, slots=True)
class PullEndpoint:
    """A place to ask for a reference. `place` is `file:line` of what names it, `blocked` of what forbids it."""

    reference: Reference
    insecure: bool = False
    place: str | None = None
    blocked: str | None = None


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """The rules of all files, by prefix."""

    rules: Mapping[str, Rule] = field(default_factory=dict)

    def find(self, name: str) -> Rule | None:
        """Return the rule with the longest prefix of `HOST/REPOSITORY`, or None."""
        fitting = [prefix for prefix in self.rules if covered(name, prefix) is not None]
        return self.rules[max(fitting, key=len)] if fitting else None

    def endpoints(self, reference: Reference) -> list[PullEndpoint]:
        """Return where to ask for a reference, in order.

        A blocked registry may have mirrors: what is blocked is each place as it is asked, as with Podman.

        Raises:
            ConfigurationError: a location and the rest of the name give no repository.
        """
        rule = self.find(reference.name)
        if rule is None:
            return [PullEndpoint(reference)]
        found = []
        for endpoint in rule.endpoints(by_digest=reference.digest is not None):
            asked = _rewrite(reference, rule.prefix, endpoint)
            own = self.find(asked.name)
            blocked = own.primary.place if own is not None and own.blocked else None
            found.append(PullEndpoint(asked, endpoint.insecure, endpoint.place, blocked))
        return found


def read_registries_conf() -> RegistriesConf:
    """Read the files that count for this user; none of them has to be there, unless a variable names it.

    Raises:
        SharedFileError: a file cannot be read, is too large, or is wrong; each problem as `file:line: reason`.
    """
    main, folders = configuration_files()
    rules: dict[str, Rule] = {}
    if main is not None:
        rules.update(parse_registries_conf(_read(main), main))
    for path in _drop_ins(folders):
        rules.update(parse_registries_conf(_read(path), path, drop_in=True))
    return RegistriesConf(rules)


def configuration_files() -> tuple[Path | None, list[Path]]:
    """Return the main file, None if there is none, and the folders with drop-ins, existing or not, in their order.

    A file that a variable names stands in for the user's and the system's file; drop-ins count as without it. A file
    of the user makes those of the system count for nothing, drop-ins included.
    """
    own = _user_folder()
    everywhere = [SYSTEM_FOLDER / "registries.conf.d", *([own / "registries.conf.d"] if own is not None else [])]
    for variable in VARIABLES:
        if chosen := os.environ.get(variable):
            return Path(chosen), everywhere
    if own is not None and (own / "registries.conf").exists():
        return own / "registries.conf", everywhere[1:]
    system = SYSTEM_FOLDER / "registries.conf"
    return system if system.exists() else None, everywhere


def parse_registries_conf(data: bytes, path: Path, *, drop_in: bool = False) -> dict[str, Rule]:
    """Return the rules of a file by prefix; of two with one prefix, the first one counts.

    Raises:
        SharedFileError: all problems of the file, each as `file:line: reason`.
    """
    text, value = _parse_toml(data, path)
    lines = _Lines(path, text)
    try:
        document = _Document.model_validate(value)
    except ValidationError as error:
        raise lines.refusal((item["loc"], _reason(item)) for item in error.errors(include_url=False)) from error
    if document.registries.is_used:
        if drop_in:
            raise lines.refusal(
                [(("registries",), "a file in `registries.conf.d` must be of version 2: `[[registry]]`")]
            )
        if newer := [key for key in _KEYS_OF_VERSION_2 if key in value]:
            reason = f"`[registries.…]` is version 1 of the format, `{newer[0]}` is version 2; write all of it in one"
            raise lines.refusal([(("registries",), reason)])
        return _rules_of_version_1(document.registries, lines)
    return _rules(document.registry, lines)


def covered(name: str, prefix: str) -> int | None:
    """Return how many characters of `HOST/REPOSITORY` a prefix covers, or None if it is not a prefix of it.

    `*.example.com` covers any host below that domain. As in containers/image, `example.com` covers
    `example.com:5000/…` as well.
    """
    if prefix.startswith("*."):
        domain = prefix[1:]
        start = name.find(domain)
        if start < 0 or "/" in name[:start]:
            return None
        end = start + len(domain)
    else:
        if not name.startswith(prefix):
            return None
        end = len(prefix)
    return end if end == len(name) or name[end] in _SEPARATORS else None


class _Table(BaseModel):
    # types count as they are written, and keys of newer versions are passed over
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Mirror(_Table):
    location: str = ""
    insecure: bool = False
    pull_from_mirror: Annotated[PullFromMirror, Field(alias="pull-from-mirror")] = ""


class _Registry(_Mirror):
    prefix: str = ""
    blocked: bool = False
    mirror_by_digest_only: Annotated[bool, Field(alias="mirror-by-digest-only")] = False
    mirror: list[_Mirror] = []


class _Hosts(_Table):
    registries: list[str] = []


class _Version1(_Table):
    search: _Hosts = _Hosts()
    insecure: _Hosts = _Hosts()
    block: _Hosts = _Hosts()

    @property
    def is_used(self) -> bool:
        return any(hosts.model_fields_set for hosts in (self.search, self.insecure, self.block))


class _Document(_Table):
    registry: list[_Registry] = []
    registries: _Version1 = _Version1()


class _Lines:
    """Finds the lines of keys in a file, which the parser of TOML does not tell."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines: dict[_KeyPath, int] = {}
        at: _KeyPath = ()
        counts: dict[_KeyPath, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(line):
                at = self._table(header.group(2), counts, repeated=header.group(1) is not None)
                for depth in range(len(at), 0, -1):
                    self._lines.setdefault(at[:depth], number)
            elif key := _KEY.match(line):
                self._lines.setdefault((*at, key.group(1)), number)

    @staticmethod
    def _table(name: str, counts: dict[_KeyPath, int], *, repeated: bool) -> _KeyPath:
        """Return the path of a table whose header is read; one of a list gets its number."""
        parts = [part.strip().strip("\"'") for part in name.split(".")]
        at: _KeyPath = ()
        for index, part in enumerate(parts):
            at = (*at, part)
            if index == len(parts) - 1 and repeated:
                counts[at] = counts.get(at, -1) + 1
            if at in counts:
                at = (*at, counts[at])
        return at

    def place(self, key: _KeyPath) -> str:
        """Return `file:line` of a path of keys, or of the nearest parent that is found."""
        while key and key not in self._lines:
            key = key[:-1]
        return f"{self._path}:{self._lines[key]}" if key else str(self._path)

    def refusal(self, problems: Iterable[tuple[_KeyPath, str]]) -> SharedFileError:
        """Return the error for all problems of the file."""
        return SharedFileError(
            "\n".join(dict.fromkeys(f"{self.place(key)}: {reason}" for key, reason in problems)),
            hint="see `man 5 containers-registries.conf`; Podman, Buildah and skopeo read the same file",
            path=str(self._path),
        )


def _rules(tables: Sequence[_Registry], lines: _Lines) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    problems: list[tuple[_KeyPath, str]] = []
    settings: dict[str, tuple[bool, bool]] = {}
    for number, table in enumerate(tables):
        key: _KeyPath = ("registry", number)
        problems += [((*key, *below), reason) for below, reason in _problems(table)]
        location, prefix = table.location.rstrip("/"), (table.prefix or table.location).rstrip("/")
        chosen = (table.insecure, table.blocked)
        if settings.setdefault(location or prefix, chosen) != chosen:
            problems.append((key, f"`{location or prefix}` is listed twice with different `insecure` or `blocked`"))
        mirrors = tuple(
            Endpoint(
                mirror.location.rstrip("/"),
                mirror.insecure,
                mirror.pull_from_mirror,
                lines.place((*key, "mirror", position, "location")),
            )
            for position, mirror in enumerate(table.mirror)
        )
        place = lines.place((*key, "blocked" if table.blocked else "location"))
        primary = Endpoint(location, table.insecure, "", place)
        found.setdefault(prefix, Rule(prefix, primary, mirrors, table.blocked, table.mirror_by_digest_only))
    if problems:
        raise lines.refusal(problems)
    return found


def _problems(table: _Registry) -> Iterator[tuple[_KeyPath, str]]:
    """Yield what containers/image refuses in a `[[registry]]`, each with the key below it."""
    for name, text in (("location", table.location), ("prefix", table.prefix)):
        if text.startswith(("http://", "https://")):
            yield (name,), f"`{name}` is a name, not a URL: leave out `{text.partition('//')[0]}//`"
    if not table.prefix and not table.location:
        yield (), "`[[registry]]` has neither `prefix` nor `location`"
    elif not table.location and not table.prefix.startswith("*."):
        yield ("prefix",), f"`{table.prefix}` needs a `location`; only a prefix like `*.example.com` goes without"
    if table.prefix.startswith("*.") and any(character in table.prefix.rstrip("/") for character in _SEPARATORS):
        yield ("prefix",), f"`{table.prefix}`: a prefix with `*.` ends with the domain, as `*.example.com` does"
    if table.pull_from_mirror:
        yield ("pull-from-mirror",), "`pull-from-mirror` belongs in a `[[registry.mirror]]`"
    for position, mirror in enumerate(table.mirror):
        if not mirror.location.rstrip("/"):
            yield ("mirror", position), "`[[registry.mirror]]` has no `location`"
        if mirror.location.startswith(("http://", "https://")):
            yield ("mirror", position, "location"), "`location` is a name, not a URL: leave out its scheme"
        if table.mirror_by_digest_only and mirror.pull_from_mirror:
            key = ("mirror", position, "pull-from-mirror")
            yield key, "`pull-from-mirror` and the registry's `mirror-by-digest-only` exclude each other"


def _rules_of_version_1(tables: _Version1, lines: _Lines) -> dict[str, Rule]:
    problems: list[tuple[_KeyPath, str]] = []
    found: dict[str, Rule] = {}
    for name, hosts, change in (
        ("block", tables.block, partial(replace, blocked=True)),
        ("insecure", tables.insecure, None),
    ):
        key = ("registries", name, "registries")
        for text in hosts.registries:
            location = text.rstrip("/")
            if location.startswith(("http://", "https://")):
                problems.append((key, f"`{text}` is a URL, expected a host"))
            plain = Endpoint(location, False, "", lines.place(key))
            rule = found.get(location, Rule(location, plain))
            found[location] = change(rule) if change else replace(rule, primary=replace(rule.primary, insecure=True))
    if problems:
        raise lines.refusal(problems)
    return found


def _rewrite(reference: Reference, prefix: str, endpoint: Endpoint) -> Reference:
    """Return a reference with the endpoint's location in place of the prefix."""
    if not endpoint.location:
        return reference
    name = endpoint.location + reference.name[covered(reference.name, prefix) or 0 :]
    try:
        parsed = parse_reference(name)
    except UsageError:
        parsed = None
    if parsed is None or parsed.name != name:
        raise ConfigurationError(
            f"{endpoint.place}: location `{endpoint.location}` makes `{name}` of `{reference.name}`, "
            "which is not a repository in a registry",
            hint="a location begins with a host, which has a `.` or a port, or is `localhost`",
        )
    return replace(reference, registry=parsed.registry, repository=parsed.repository)


def _user_folder() -> Path | None:
    """Return the user's folder: that of XDG where it holds something of this, else the one that Podman 5 knows."""
    home = files.home_directory()
    chosen = os.environ.get("XDG_CONFIG_HOME")
    usual = home / ".config" / "containers" if home is not None else None
    own = Path(chosen) / "containers" if chosen else None
    names = ("registries.conf", "registries.conf.d")
    return own if own is not None and any((own / name).exists() for name in names) else usual or own


def _drop_ins(folders: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for folder in folders:
        # a folder that is a link is passed over, as by Podman
        if folder.is_symlink():
            continue
        try:
            entries = sorted(folder.iterdir())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SharedFileError(
                f"cannot read folder `{folder}`: {error.strerror}", hint="check its owner and mode"
            ) from error
        found += [path for path in entries if path.name.endswith(".conf") and not _is_folder(path)]
    if len(found) > MAX_DROP_INS:
        raise SharedFileError(
            f"more than {MAX_DROP_INS} files in {' and '.join(map(str, folders))}",
            hint="remove those that are not needed",
        )
    return found


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _read(path: Path) -> bytes:
    try:
        return files.read_bounded(path, limit_bytes=MAX_REGISTRIES_CONF_BYTES)
    except HostError as error:
        named = [name for name in VARIABLES if os.environ.get(name) == str(path)]
        hint = f"`{named[0]}` points to it: correct or unset that variable" if named else error.hint
        raise SharedFileError(error.message, hint=hint, path=str(path)) from error


def _parse_toml(data: bytes, path: Path) -> tuple[str, dict[str, Any]]:
    try:
        return data.decode("utf-8", "replace"), parse_toml(data)
    except Malformed as error:
        raise SharedFileError(
            f"{path}:{error.line}: not valid TOML: {error}",
            hint="Podman, Buildah and skopeo refuse this file as well",
            path=str(path),
            line=error.line,
        ) from error


def _reason(item: Any) -> str:
    expected = {
        "string_type": "expected text",
        "bool_type": "expected `true` or `false`",
        "list_type": "expected a list of tables or texts",
        "model_type": "expected a table",
        "model_attributes_type": "expected a table",
        "literal_error": "expected `all`, `digest-only` or `tag-only`",
    }
    name = next((part for part in reversed(item["loc"]) if isinstance(part, str)), "")
    return f"`{name}`: {expected.get(item['type'], item['msg'])}"
