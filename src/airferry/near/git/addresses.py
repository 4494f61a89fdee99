"""Addresses of Git repositories: what a plan may name, and where the user's own Git configuration leads from there.

What a plan, or a repository that it names, says is bounded: https, ssh, git and file addresses and paths, and nothing
that climbs with `..`. Where `url.….insteadOf` leads is the user's decision, within what this module lets Git use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from airferry.errors import BuildError
from airferry.host import files, process

ASK_TIMEOUT_S = 60.0
_NETWORK_PROTOCOLS = ("https", "http", "ssh", "git")
_TRANSPORT_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*::")
_SCP_LIKE = re.compile(r"[^/]+:(?!//)")


@dataclass(frozen=True, slots=True)
class GitAddress:
    """A repository's address as it is written, and as Git uses it once the user's configuration was applied."""

    written: str
    used: str
    file_allowed: bool

    def __str__(self) -> str:
        shown = f"`{redact(self.written)}`"
        return shown if self.used == self.written else f"{shown} (`{redact(self.used)}` by `insteadOf`)"

    @property
    def is_local(self) -> bool:
        """Tell whether Git reads from this host, by a path or a `file` address."""
        return is_local(self.used)

    @property
    def protocols(self) -> str:
        """The protocols that Git may use for it, for `GIT_ALLOW_PROTOCOL`."""
        return ":".join([*_NETWORK_PROTOCOLS, *(["file"] if self.is_local and self.file_allowed else [])])

    @property
    def secrets(self) -> tuple[str, ...]:
        """User names and passwords in it, which must not be shown."""
        found = [_authority(url).rpartition("@")[0] for url in (self.written, self.used) if "://" in url]
        return tuple(secret for secret in found if secret)


def read_address(url: str) -> GitAddress:
    """Return the address of a repository, with what the user's and the system's Git configuration make of it.

    Asks Git, which reads files only.

    Raises:
        BuildError: it is not an address of a Git repository.
    """
    written = remote_address(url)
    # outside of any repository, so that no repository's own configuration counts
    outside = Path("/")
    argv = ["git", "ls-remote", "--get-url", "--", written]
    done = process.run(argv, timeout_s=ASK_TIMEOUT_S, cwd=outside)
    used = done.text.rstrip("\n") or written
    allowed = True
    if used != written:
        argv = ["git", "config", "--get", "protocol.file.allow"]
        allowed = process.run(argv, timeout_s=ASK_TIMEOUT_S, cwd=outside, check=False).text.strip() != "never"
    return GitAddress(written, used, allowed)


def remote_address(url: str) -> str:
    """Return the address that Git gets: a path is made absolute; what could be an option or a helper is refused.

    Raises:
        BuildError: it is not an address of a Git repository.
    """
    if not url or url.startswith("-") or _TRANSPORT_HELPER.match(url) or any(ord(c) < 32 for c in url):
        raise BuildError(
            f"`{redact(url)}` is not an address of a Git repository",
            hint="give an https, ssh, git or file address, or a path",
        )
    if is_local(url):
        return url if url.startswith("file://") else str(files.expand_home(Path(url)).absolute())
    # an address of another host that the user's configuration turns into a path must stay below that path
    if ".." in re.split(r"[/\\:]", unquote(url)):
        raise BuildError(
            f"`{redact(url)}` is not an address of a Git repository: it contains `..`",
            hint="write the full path of the repository",
        )
    return url


def submodule_address(url: str, address: str) -> str:
    """Return a submodule's address; one that begins with `./` or `../` is relative to its parent's.

    Raises:
        BuildError: it points above its parent's host.
    """
    if not address.startswith(("./", "../")):
        return address
    base, separator = remote_address(url).rstrip("/"), "/"
    while address.startswith(("./", "../")):
        if address.startswith("../"):
            cut = max(base.rfind("/"), base.rfind(":"))
            if cut <= 0:
                raise BuildError(
                    f"the submodule address `{address}` points above `{redact(url)}`",
                    url=redact(url),
                    hint="write the whole address in `.gitmodules` of that repository",
                )
            base, separator, address = base[:cut], base[cut], address[3:]
        else:
            address = address[2:]
    return f"{base}{separator}{address}"


def is_local(url: str) -> bool:
    """Tell whether an address is a path or a `file` address."""
    return url.startswith("file://") or not ("://" in url or _SCP_LIKE.match(url))


def redact(url: str) -> str:
    """Return a repository's address without user name and password."""
    authority = _authority(url)
    return url.replace(authority, authority.rpartition("@")[2], 1) if "@" in authority else url


def _authority(url: str) -> str:
    """Return user, host and port of an address with `://`, empty for others; of one that is not a URL as well, for Git
    tells what is wrong with that, and its password must show nowhere."""
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
