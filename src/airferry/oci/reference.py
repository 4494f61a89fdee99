"""Image references: OCI distribution-spec, "Pulling manifests", and the short forms that Docker made common."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from airferry.errors import UsageError
from airferry.oci.digest import is_digest

DEFAULT_REGISTRY = "docker.io"
_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:.]+\])"
    r"(?::[0-9]{1,5})?"
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# a digest that is cut off stays a digest
_LOGIN = re.compile(r"(?P<before>(?:[a-z+-]+://)?)[^/@\s]+@(?P<host>(?!sha(?:256|384|512):)(?:localhost|[^/@]*[.:/]))")
MAX_NAME_CHARACTERS = 255
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Reference:
    """A registry host (with port), a repository, and a tag, a digest or both."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        text = self.name
        if self.tag:
            text += f":{self.tag}"
        if self.digest:
            text += f"@{self.digest}"
        return text

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What is asked of the registry: the digest if there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def with_digest(self, digest: str) -> Reference:
        """Return the same repository pinned to a digest, without tag."""
        return replace(self, tag=None, digest=digest)


def parse_reference(text: str, *, default_registry: str = DEFAULT_REGISTRY) -> Reference:
    """Return the reference that `text` names, short forms completed as Docker completes them.

    `python:3.12` is `docker.io/library/python:3.12`; with neither tag nor digest the tag is `latest`. A `docker://`
    in front is dropped.

    Raises:
        UsageError: it is not a reference.
    """
    expect_no_login(text)
    rest = text.removeprefix("docker://").strip()
    rest, at, digest = rest.partition("@")
    if at and not is_digest(digest):
        raise UsageError(
            f"`{text}`: `{digest}` is not a digest, expected `sha256:` and 64 lower-case hex digits",
            hint="copy it whole, as `crane digest` and `skopeo inspect` print it",
        )
    first, slash, remainder = rest.partition("/")
    has_host = bool(slash) and ("." in first or ":" in first or first == "localhost" or first.startswith("["))
    registry, path = (first, remainder) if has_host else (default_registry, rest)
    repository, colon, tag = path.rpartition(":")
    if not colon:
        repository, tag = path, ""
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    if not _is_host(registry):
        raise UsageError(
            f"`{text}`: `{registry}` is not a registry host",
            hint="write HOST or HOST:PORT, as `registry.example.com:5000`",
        )
    if not _REPOSITORY.fullmatch(repository) or len(registry) + 1 + len(repository) > MAX_NAME_CHARACTERS:
        hint = "lower-case letters, digits and `.`, `_`, `__`, `-` between them, parts separated by `/`"
        if _REPOSITORY.fullmatch(repository.lower()):
            hint = f"registries take no upper-case letters there: give the name that it has, as `{repository.lower()}`"
        raise UsageError(f"`{text}`: `{repository}` is not a repository name", hint=hint)
    if colon and not _TAG.fullmatch(tag):
        raise UsageError(
            f"`{text}`: `{tag}` is not a tag",
            hint="letters, digits, `_`, `.` and `-`, at most 128, not beginning with `.` or `-`",
        )
    if not colon and not at:
        tag = "latest"
    return Reference(registry, repository, tag or None, digest if at else None)


def expect_no_login(text: str) -> None:
    """Check that a text that was typed for a place in a registry names no user there.

    Raises:
        UsageError: it does; the message leaves out what stands before the host.
    """
    if (found := _LOGIN.match(text)) is not None:
        shown = f"{found['before']}***@{text[found.start('host') :]}"
        raise UsageError(
            f"`{shown}`: a user or password before the host is not taken",
            hint="log in with `airferry login HOST`, which asks for the password: other users can see command lines, "
            "and shells keep them",
        )


def split_place(text: str) -> tuple[str, str]:
    """Return path and name of what follows `oci:` or `oci-archive:`, `PATH[:NAME][@DIGEST]`; a digest is the name."""
    before, _, digest = text.rpartition("@")
    is_pinned = bool(before) and is_digest(digest)
    path, _, name = (before if is_pinned else text).partition(":")
    return path, digest if is_pinned else name


def _is_host(text: str) -> bool:
    """Tell whether a text is a host with or without port, which a URL can hold: brackets hold an IPv6 address."""
    if not _HOST.fullmatch(text):
        return False
    host, colon, port = text.rpartition(":") if re.search(r":[0-9]+$", text) else (text, "", "")
    if colon and int(port) > MAX_PORT:
        return False
    try:
        return not host.startswith("[") or bool(ipaddress.IPv6Address(host.strip("[]")))
    except ValueError:
        return False


def without_port(registry: str) -> str:
    """Return the host of a registry. The last part of an IPv6 address, which is in brackets, is not a port."""
    return re.sub(r":[0-9]+$", "", registry)


def is_loopback(registry: str) -> bool:
    """Tell whether a registry host (with or without port) is on this machine's loopback interface."""
    host = without_port(registry)
    return host in ("localhost", "[::1]", "::1") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None
