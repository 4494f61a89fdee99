"""Which command lines fetch something from outside, and what. Pure: words in, values out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from airferry.host.parsing import Malformed, split_url
from airferry.plan.code.commands import installs_of
from airferry.plan.code.values import UNKNOWN, Words, split_words

FetchKind = Literal["git", "install", "hub", "download"]
URL = re.compile(r"(https?|ssh|git|ftp|hf|s3|gs)://|git@")
_ASSIGNED = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
_PREFIXES = frozenset({"env", "sudo", "nice", "nohup", "exec", "time", "command", "xargs", "then", "do", "else", "&&"})
_PYTHON = re.compile(r"python[0-9.]*")
_MAX_COMMANDS = 50
_GIT_VALUES = frozenset({"-C", "-c", "--git-dir", "--work-tree", "--namespace"})
_OPTION_VALUES = frozenset(
    {"-b", "--branch", "--depth", "-o", "--origin", "-c", "--config", "--reference", "-j", "--jobs", "--filter"}
    | {"-O", "-P", "--output", "--output-document", "--directory-prefix", "-H", "--header", "-X", "-u", "--user"}
    | {"--dest", "-d", "--local-dir", "--repo-type", "--revision", "--cache-dir", "--token", "--include", "--exclude"}
)
_UPDATES = (("fetch",), ("pull",), ("ls-remote",), ("remote", "update"), ("submodule", "update"), ("lfs", "pull"))
_INSTALLERS = frozenset(
    {"pip", "uv", "uvx", "apt", "apt-get", "apk", "dnf", "microdnf", "yum", "conda", "mamba", "micromamba", "npm"}
    | {"yarn", "pnpm"}
)
_OFFLINE = frozenset({"--no-index", "--dry-run", "--offline", "--no-sync"})
_DOWNLOADS: dict[str, tuple[str, ...]] = {
    "gdown": (),
    "aria2c": (),
    "kaggle": ("datasets", "download"),
    "gsutil": ("cp",),
    "docker": ("pull",),
    "podman": ("pull",),
    "singularity": ("pull",),
    "apptainer": ("pull",),
    "dvc": ("pull",),
}
PROGRAMS = frozenset({"git", "wget", "curl", "huggingface-cli", "hf", "modelscope", *_INSTALLERS, *_DOWNLOADS})
"""Every program that fetches. Code that names none of them runs none of them."""


@dataclass(frozen=True, slots=True)
class CommandFetch:
    """What a command fetches. `what` is an address, names of packages, or nothing where it does not show.

    `certain` is False where that depends on what is there when the command runs, or on what does not show.
    """

    kind: FetchKind
    program: str
    what: str = ""
    certain: bool = True


def commands_of(text: str) -> Iterator[Words]:
    """Return the commands of a shell's line or script, each as words."""
    for number, part in enumerate(re.split(r"\n|&&|\|\||[;|&()]", text)):
        if number < _MAX_COMMANDS and (words := split_words(part)):
            yield words


def fetches_of(words: Words, *, depth: int = 0) -> Iterator[CommandFetch]:
    """Return what a command fetches, that of the shell's script in it included."""
    rest = _without_prefixes(words)
    if not rest or depth > 3:
        return
    program = (rest[0] or "").rpartition("/")[2]
    if program in _SHELLS and (script := _script_of(rest)):
        for command in commands_of(script):
            yield from fetches_of(command, depth=depth + 1)
        return
    if _is_python(rest[0], program) and "-m" in rest[1:4]:
        rest = rest[rest.index("-m") + 1 :]
        program = (rest[0] or "") if rest else ""
    elif rest[0] is None and rest[1:2] == ["pip"]:
        program = "uv"  # the program is in a variable, and `pip` is a command of no other
    found = _judged(program, rest[1:])
    if found is not None:
        yield found


def is_outside(address: str) -> bool:
    """Tell whether an address leads to another host, as far as it shows."""
    if not URL.match(address):
        return False
    try:
        host = (split_url(address).hostname or "") if "://" in address else "git"
    except Malformed:
        return True
    return bool(host) and host not in ("localhost", "::1", "0.0.0.0") and not host.startswith(("127.", UNKNOWN))


def _judged(program: str, arguments: Words) -> CommandFetch | None:
    if program == "git":
        return _git(arguments)
    if program in _INSTALLERS or re.fullmatch(r"pip[0-9.]*", program):
        return _installed(program, arguments)
    if program in ("wget", "curl"):
        return _loaded(program, arguments)
    if program in ("huggingface-cli", "hf", "modelscope"):
        verb, rest = _verb(arguments)
        return CommandFetch("hub", program, _first(rest)) if verb == "download" else None
    if program in _DOWNLOADS:
        plain = [word for word in arguments if not (word or "").startswith("-")]
        verbs = _DOWNLOADS[program]
        if tuple(plain[: len(verbs)]) == verbs and (program != "gsutil" or any((w or "")[:3] == "gs:" for w in plain)):
            return CommandFetch("download", program, _first(plain[len(verbs) :]))
    return None


def _git(arguments: Words) -> CommandFetch | None:
    index = 0
    while index < len(arguments) and (arguments[index] or "").startswith("-"):
        index += 2 if arguments[index] in _GIT_VALUES else 1
    verbs, rest = arguments[index : index + 2], arguments[index + 1 :]
    if verbs[:1] == ["clone"]:
        plain = _plain(rest)
        address = next((word for word in plain if word and URL.match(word)), None)
        if address is None and plain and plain[0] and not plain[0].startswith(UNKNOWN):
            return None  # from a folder of this host
        known = address is not None and not address.startswith(UNKNOWN)
        outside = address is None or is_outside(address)
        return CommandFetch("git", "git clone", address or "", known) if outside else None
    for update in _UPDATES:
        if tuple(verbs[: len(update)]) == update:
            return CommandFetch("git", " ".join(("git", *update)), certain=False)
    return None


def _installed(program: str, arguments: Words) -> CommandFetch | None:
    """Judge what installs as commands of profiles are judged; what does not show stands as a variable."""
    if _OFFLINE & set(arguments):
        return None
    written = [word if word is not None and UNKNOWN not in word else "$UNKNOWN" for word in arguments]
    text = " ".join([program, *(word if word == "$UNKNOWN" else shlex.quote(word) for word in written)])
    found = next((item for item in installs_of(text) if item.manager != "download"), None)
    if found is None:
        return None
    named = [*found.names, *found.others]
    if not named and {"--no-build-isolation", "--no-deps"} <= set(arguments):
        return None
    verb = next((word for word in arguments if word and not word.startswith("-")), "")
    shown = (
        f"{program} {verb}" if program == "uv" else "pip" if found.manager == "pip" and program != "uvx" else program
    )
    # from a folder, pip still fetches what builds it; a name in a variable may be one, and `uv run` may find all there
    files = any(word in ("-r", "--requirement", "--requirements") for word in arguments)
    certain = bool(named) or files or (program == "uv" and verb in ("sync", "lock", "add"))
    return CommandFetch("install", shown, " ".join(named), certain=certain)


def _loaded(program: str, arguments: Words) -> CommandFetch | None:
    plain = _plain(arguments)
    addresses = [word for word in plain if word and URL.match(word)]
    if addresses:
        outside = [word for word in addresses if is_outside(word)]
        return CommandFetch("download", program, outside[0]) if outside else None
    if any(word is None or word.startswith(UNKNOWN) for word in plain):
        return CommandFetch("download", program, certain=False)
    bare = [word for word in plain if word and re.match(r"[\w-]+(\.[\w-]+)+/", word)]
    return CommandFetch("download", program, bare[0]) if bare else None


def _verb(arguments: Words) -> tuple[str | None, Words]:
    """Return the first argument that is not an option, and all that follow it."""
    for index, word in enumerate(arguments):
        if word is None or not word.startswith("-"):
            return word, arguments[index + 1 :]
    return None, []


def _plain(arguments: Words) -> Words:
    """Return the arguments that are neither options nor the values of those that take one."""
    found: Words = []
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word is not None and word.startswith("-"):
            index += 1 if word in _OPTION_VALUES else 0
        else:
            found.append(word)
        index += 1
    return found


def _first(arguments: Words) -> str:
    return next((word for word in _plain(arguments) if word), "")


def _script_of(words: Words) -> str:
    """Return the script that a shell gets by `-c`, its options being written in one word or several."""
    for index, word in enumerate(words[1:5], start=1):
        if word and re.fullmatch(r"-[a-z]*c", word):
            return (words[index + 1] or "") if index + 1 < len(words) else ""
    return ""


def _is_python(word: str | None, program: str) -> bool:
    return word is None or UNKNOWN in word or _PYTHON.fullmatch(program) is not None


def _without_prefixes(words: Sequence[str | None]) -> Words:
    """Return a command without what stands in front of it: variables, `env`, `sudo`, `timeout 60`."""
    rest = list(words)
    while rest:
        first = rest[0]
        if first == "timeout" and len(rest) > 2:
            rest = rest[1:]
            while rest and (rest[0] or "-").startswith("-"):
                rest = rest[1:]
            rest = rest[1:]
        elif first is not None and (first in _PREFIXES or _ASSIGNED.fullmatch(first)):
            rest = rest[1:]
            while rest and first in _PREFIXES and (rest[0] or "").startswith("-"):
                rest = rest[1:]
        else:
            break
    return rest
