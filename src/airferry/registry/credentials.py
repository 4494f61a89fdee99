"""Credentials where Podman and Docker keep them. Reads and writes their files; nothing of it is ever logged.

Looked at, in this order: `REGISTRY_AUTH_FILE` (alone, where it is set), `$XDG_RUNTIME_DIR/containers/auth.json`,
`$XDG_CONFIG_HOME/containers/auth.json`, `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airferry.errors import ConfigurationError, HostError, RegistryError, UsageError
from airferry.host import files, process
from airferry.host.parsing import Malformed, parse_json
from airferry.oci.reference import DEFAULT_REGISTRY

MAX_CREDENTIALS_BYTES = 1024 * 1024
HELPER_TIMEOUT_S = 60.0
IDENTITY_TOKEN_USER = "<token>"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Credential:
    """A user and password, or an identity token. The secrets do not show in its representation."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header for basic authentication."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


Lookup = Callable[[str, str], Credential | None]


def find_credential(registry: str, repository: str) -> Credential | None:
    """Return the credential for a repository, the one kept under the longest matching name, or None.

    Raises:
        ConfigurationError: a file is damaged.
        HostError: a file cannot be read.
        RegistryError: the helper that is configured for this registry fails.
    """
    for path in credential_files():
        document = _read(path)
        found = _from_document(document, registry, repository) if document else None
        if found is not None:
            return found
    return None


def credential_files() -> list[Path]:
    """Return the files in which credentials are looked for, existing or not, first one first."""
    if chosen := os.environ.get("REGISTRY_AUTH_FILE"):
        return [Path(chosen)]
    docker, home, config = os.environ.get("DOCKER_CONFIG"), files.home_directory(), _config_home()
    docker_home = Path(docker) if docker else home / ".docker" if home is not None else None
    return [
        _runtime_file(),
        *([config / "containers" / "auth.json"] if config is not None else []),
        *([docker_home / "config.json"] if docker_home is not None else []),
    ]


def store_credential(registry: str, username: str, *, password: str) -> Path:
    """Keep a credential in Podman's file, readable by its owner alone, and return the file's path. Atomic.

    Raises:
        UsageError: the user name cannot be stored.
        ConfigurationError: the file that is there is damaged.
        HostError: it cannot be written.
    """
    if ":" in username or not username:
        raise UsageError(
            f"`{username}` cannot be a user name: it must be there and have no `:`",
            hint="pass it with `--username`, as the registry knows it",
        )
    path = _writable_file()
    document = _read(path) or {}
    secret = base64.b64encode(f"{username}:{password}".encode()).decode()
    auths = {**_mapping(document, "auths"), registry: {"auth": secret}}
    _write(path, {**document, "auths": auths})
    return path


def remove_credential(registry: str) -> list[Path]:
    """Remove a registry's credential from every file that holds it, and return those files. Idempotent.

    Raises:
        ConfigurationError: a file is damaged.
        HostError: a file cannot be written.
    """
    changed = []
    for path in credential_files():
        document = _read(path)
        if not document:
            continue
        auths = _mapping(document, "auths")
        kept = {key: value for key, value in auths.items() if _normalised(key) != registry}
        if len(kept) < len(auths):
            _write(path, {**document, "auths": kept})
            changed.append(path)
    return changed


def _runtime_file() -> Path:
    runtime = process.runtime_directory()
    folder = runtime / "containers" if runtime is not None else Path("/run/containers") / str(os.getuid())
    return folder / "auth.json"


def _config_home() -> Path | None:
    chosen, home = os.environ.get("XDG_CONFIG_HOME"), files.home_directory()
    return Path(chosen) if chosen else home / ".config" if home is not None else None


def _writable_file() -> Path:
    if chosen := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(chosen)
    if process.runtime_directory() is not None:
        return _runtime_file()
    config = _config_home()
    if config is None:
        raise HostError(
            f"the user with ID {os.getuid()} has no home folder on this host, so there is no place for credentials",
            hint="name a file for them in the environment variable `REGISTRY_AUTH_FILE`, or set `HOME`",
        )
    return config / "containers" / "auth.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_file():
            return None
    except OSError:
        return None
    data = files.read_bounded(path, limit_bytes=MAX_CREDENTIALS_BYTES)
    if not data.strip():
        return {}
    try:
        document = parse_json(data)
    except Malformed as error:
        raise ConfigurationError(
            f"credentials file `{path}` is not valid JSON", hint="fix it, or remove it and log in again"
        ) from error
    if not isinstance(document, dict):
        raise ConfigurationError(
            f"credentials file `{path}` is not a JSON object", hint="fix it, or remove it and log in again"
        )
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    files.write_bytes(path, json.dumps(document, indent="\t").encode(), mode=0o600)


def _mapping(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _normalised(key: str) -> str:
    """Return a key of `auths` as host and path: Docker writes some as URLs."""
    name = key.partition("://")[2] or key
    name = name.rstrip("/")
    for suffix in ("/v1", "/v2"):
        name = name.removesuffix(suffix)
    return DEFAULT_REGISTRY if name in ("index.docker.io", "registry-1.docker.io") else name


def _names(registry: str, repository: str) -> Iterator[str]:
    """Yield the names under which a credential may be kept, longest first."""
    parts = [part for part in repository.split("/") if part]
    for count in range(len(parts), -1, -1):
        yield "/".join([registry, *parts[:count]])


def _from_document(document: dict[str, Any], registry: str, repository: str) -> Credential | None:
    helpers = {_normalised(key): value for key, value in _mapping(document, "credHelpers").items()}
    helper = helpers.get(registry)
    if isinstance(helper, str) and helper:
        return _ask_helper(helper, registry, required=True)
    entries = {_normalised(key): (key, value) for key, value in _mapping(document, "auths").items()}
    store = document.get("credsStore")
    for name in _names(registry, repository):
        key, entry = entries.get(name, ("", None))
        found = _from_entry(entry)
        if found is None and key and isinstance(store, str) and store:
            found = _ask_helper(store, key, required=True)
        if found is not None:
            return found
    if isinstance(store, str) and store:
        return _ask_helper(store, registry, required=False)
    return None


def _from_entry(entry: object) -> Credential | None:
    if not isinstance(entry, dict):
        return None
    identity = entry.get("identitytoken")
    username, password = entry.get("username"), entry.get("password")
    secret = entry.get("auth")
    if isinstance(secret, str) and secret:
        try:
            username, _, password = base64.b64decode(secret).decode().rstrip("\0").partition(":")
        except ValueError:
            return None
    if isinstance(identity, str) and identity:
        return Credential(username if isinstance(username, str) else "", identity_token=identity)
    if isinstance(username, str) and username and isinstance(password, str):
        return Credential(username, password)
    return None


def _ask_helper(name: str, server: str, *, required: bool) -> Credential | None:
    """Return what a credential helper holds for a server. A store that was set up for all registries may be absent."""
    program = f"docker-credential-{name}"
    if not _HELPER_NAME.fullmatch(name):
        raise ConfigurationError(
            f"`{name}` is not a valid credential helper name",
            hint="correct `credHelpers` or `credsStore` in `~/.docker/config.json`, or in `REGISTRY_AUTH_FILE`",
        )
    try:
        done = process.run(
            [program, "get"], timeout_s=HELPER_TIMEOUT_S, streams=process.Streams(stdin=server.encode()), check=False
        )
    except HostError as error:
        if not required:
            return None
        raise RegistryError(
            f"credential helper `{program}`, which is configured for `{server}`, was not found",
            hint="install it, or run `airferry login`",
        ) from error
    if done.returncode != 0:
        if "not found" in (done.text + " ".join(done.tail)).lower() or not required:
            return None
        raise RegistryError(
            f"credential helper `{program}` failed with exit code {done.returncode} for `{server}`",
            hint="try it manually: `echo SERVER | " + program + " get`",
        )
    try:
        answer = parse_json(done.stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (Malformed, KeyError, TypeError):
        # the answer holds a secret: neither it nor the parser's message may be shown
        raise RegistryError(
            f"credential helper `{program}` returned an invalid answer for `{server}`",
            hint="try it manually: `echo SERVER | " + program + " get`",
        ) from None
    if username == IDENTITY_TOKEN_USER:
        return Credential("", identity_token=str(secret))
    return Credential(str(username), str(secret))
