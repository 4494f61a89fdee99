"""Runs Git, with settings that leave no room for what a repository or a user's configuration might run.

Which repositories, and what for, is for `driver` and `history`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airferry.errors import BuildError
from airferry.events import Emit, silent
from airferry.host import process
from airferry.host.parsing import url_host, url_path
from airferry.near.git.addresses import GitAddress, read_address, redact
from airferry.near.tls_said import tls_trouble
from airferry.wording import shell_word

FETCH_TIMEOUT_S = 3600.0
_LEAVING = ("fetch", "ls-remote")
_UNREADABLE = re.compile(r"unable to read ([0-9a-f]{40,64})")
_REFUSED = re.compile(r"transport '([^']*)' not allowed")
# large files pass in blocks, and are not held in memory as a whole
STREAMED = "core.bigFileThreshold=1m"
# The user's configuration is read, since credential helpers, proxies and rewritten addresses live there; these
# settings win over it.
_SETTINGS = (
    STREAMED,
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.fsmonitor=false",
    "core.autocrlf=false",
    "core.symlinks=true",
    "core.fileMode=true",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "fetch.recurseSubmodules=false",
    "submodule.recurse=false",
    "fetch.parallel=1",
    # what is fetched stays the pack that it came as: taking it apart compresses every file again
    "fetch.unpackLimit=1",
    "gc.auto=0",
    "maintenance.auto=false",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
    "protocol.ext.allow=never",
)


class DamagedRepository(BuildError):
    """A repository lacks objects that its commits name."""


@dataclass(frozen=True, slots=True)
class WorkTree:
    """The folder that a Git command reads and writes files in, and the index in the place of the repository's own."""

    folder: Path
    index: Path | None = None


def run_git(
    argv: Sequence[str],
    *,
    url: str,
    repository: Path | None = None,
    checkout: WorkTree | None = None,
    timeout_s: float = FETCH_TIMEOUT_S,
    emit: Emit = silent,
    doing: str = "read",
) -> process.Completed:
    """Run Git with settings that leave no room for what a repository or a user's configuration might run.

    Only `fetch` and `ls-remote` may leave the process, by the protocols that the repository's address takes.

    Raises:
        BuildError: it failed.
    """
    done, address = _run(argv, url=url, repository=repository, checkout=checkout, timeout_s=timeout_s, emit=emit)
    if done.returncode != 0:
        raise _git_error(done, address, url=url, doing=doing)
    return done


def try_git(argv: Sequence[str], *, url: str, repository: Path, checkout: WorkTree | None = None) -> process.Completed:
    """Run Git as `run_git` does; its exit code is the caller's to judge."""
    return _run(argv, url=url, repository=repository, checkout=checkout, timeout_s=FETCH_TIMEOUT_S, emit=silent)[0]


def _run(
    argv: Sequence[str],
    *,
    url: str,
    repository: Path | None,
    checkout: WorkTree | None,
    timeout_s: float,
    emit: Emit,
) -> tuple[process.Completed, GitAddress | None]:
    command = ["git", "--no-replace-objects"]
    for setting in _SETTINGS:
        command += ["-c", setting]
    if repository is not None:
        command += [f"--git-dir={repository}"]
    if checkout is not None:
        command += [f"--work-tree={checkout.folder}"]
    address = read_address(url) if argv[0] in _LEAVING else None
    done = process.run(
        [*command, *argv],
        timeout_s=timeout_s,
        environment={
            "GIT_TERMINAL_PROMPT": "0",
            "GCM_INTERACTIVE": "never",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": address.protocols if address else "",
            "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes"),
            **({"GIT_INDEX_FILE": str(checkout.index)} if checkout and checkout.index else {}),
        },
        # a repository that the current folder lies in has no part in this
        cwd=checkout.folder if checkout else Path("/"),
        check=False,
        emit=emit,
        streams=process.Streams(secrets=address.secrets if address else ()),
    )
    return done, address


def _tls_trouble(said: str, address: GitAddress) -> tuple[str, str] | None:
    host = url_host(redact(address.used))
    return tls_trouble(
        said,
        url=address.used,
        where="in the address, or lead there with `git config --global url.NEW.insteadOf OLD`",
        ca=f"`git config --global http.https://{host}/.sslCAInfo FILE`",
    )


def _git_error(done: process.Completed, address: GitAddress | None, *, url: str, doing: str) -> BuildError:
    """Return the error for what Git said last, with the way out where it is known."""
    said = [line for line in done.tail if line.startswith(("fatal: ", "error: ", "ERROR: "))] or list(done.tail)
    reason = said[0] if said else "no message"
    kind, everything = BuildError, "\n".join(done.tail)
    hint = "check the address and your credentials: `git ls-remote` must work with it without prompting"
    if missing := _UNREADABLE.search(everything):
        kind = DamagedRepository
        reason = f"it lacks the object `{missing.group(1)}`"
        hint = "a clone made with `--filter` is incomplete: make the mirror with `git clone --mirror`"
    elif "dubious ownership" in everything and address is not None:
        folder = shell_word(url_path(address.used) if "://" in address.used else address.used)
        hint = f"it belongs to another user; if you trust it: `git config --global --add safe.directory {folder}`"
    elif address is not None and not address.is_local and (trouble := _tls_trouble(everything, address)):
        reason, hint = f"{trouble[0]} ({reason})", trouble[1]
    elif address is not None and (refused := _REFUSED.search(everything)):
        hint = (
            f"your Git configuration sets `protocol.file.allow = never`, and rewrites the address to `{address.used}`"
            if refused.group(1) == "file" and not address.file_allowed
            else "only https, http, ssh, git and file addresses are used; see `git config --get-regexp url`"
        )
    elif address is not None and address.is_local:
        hint = f"check that `{redact(address.used)}` is a Git repository that you may read"
    return kind(f"cannot {doing} {address or f'`{redact(url)}`'}: {reason}", hint=hint, url=redact(url), tail=done.tail)
