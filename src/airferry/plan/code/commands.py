"""What shell commands install, read from their text. Nothing is run, and no variable or substitution is expanded.

A command that is not understood is said to be unknown; it is never taken for a harmless one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from packaging.requirements import Requirement

from airferry.host.parsing import short_numbers

Manager = Literal["pip", "apt", "conda", "npm", "download", "unknown"]

BOOTSTRAP = "._bootstrap."
"""A part of the name of the catalogue's modules that make an environment by pip and start a step in it."""

MAX_COMMAND_CHARACTERS = 64 * 1024
MAX_NESTING = 5
_SEPARATORS = frozenset({";", "&&", "||", "|", "&", "|&", "(", ")", "\n", ";;"})
_KEYWORDS = frozenset({"if", "then", "elif", "else", "while", "until", "do", "!", "{", "}", "fi", "done", "time"})
# programs that start another one, with those of their options that take a value
_STARTERS = {
    "sudo": "-u -g -h -p -C -D -R -T",
    "env": "-u -C",
    "nice": "-n",
    "ionice": "-c -n",
    "timeout": "-s -k",
    "nohup": "",
    "exec": "-a",
    "command": "",
    "stdbuf": "-i -o -e",
    "xargs": "-n -P -I -d -a",
}
_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
# options that take a value, of pip and uv, of apt and its like, of conda
_PIP_OPTIONS = (
    "-r --requirement -c --constraint -e --editable -i --index-url --extra-index-url -f --find-links -t --target "
    "--platform --python-version --implementation --abi --root --prefix --src --upgrade-strategy -C --config-settings "
    "--global-option --install-option --no-binary --only-binary --progress-bar --root-user-action --report --group "
    "--python -p --index --default-index --torch-backend --index-strategy --keyring-provider --overrides --override "
    "--build-constraints --exclude-newer --link-mode --refresh-package --reinstall-package --upgrade-package -P "
    "--no-build-package --no-binary-package --extra --log --proxy --retries --timeout --exists-action --trusted-host "
    "--cert --client-cert --cache-dir --use-feature --use-deprecated --with --with-editable --with-requirements "
    "--project --directory --from"
)
_APT_OPTIONS = "-o --option -t --target-release --default-release -c --config-file -a --host-architecture"
_CONDA_OPTIONS = "-n --name -p --prefix -c --channel --file --solver"
_PIP_VALUES = frozenset(_PIP_OPTIONS.split())
_APT_VALUES, _CONDA_VALUES = frozenset(_APT_OPTIONS.split()), frozenset(_CONDA_OPTIONS.split())
_INSTALLERS: dict[str, tuple[Manager, frozenset[str]]] = {
    **dict.fromkeys(("apt-get", "apt", "aptitude"), ("apt", _APT_VALUES)),
    **dict.fromkeys(("dnf", "yum", "microdnf", "zypper", "apk", "tdnf"), ("apt", _APT_VALUES)),
    **dict.fromkeys(("conda", "mamba", "micromamba"), ("conda", _CONDA_VALUES)),
    **dict.fromkeys(("npm", "yarn", "pnpm"), ("npm", frozenset())),
}
_INSTALLING = frozenset({"install", "add", "i", "reinstall", "build-dep"})
_DOWNLOADERS = frozenset({"curl", "wget", "aria2c", "huggingface-cli", "hf", "gsutil", "aws", "rclone", "ngc"})
_OTHER_INSTALLERS = frozenset(
    {"poetry", "pdm", "pipenv", "pixi", "cargo", "gem", "go", "rustup", "brew", "snap", "flatpak"}
)
# an installer in the arguments of a program that may start it: `su -c`, `flock`, `srun`, `python -c`
# and, after it, what it does; two patterns, as one would look for the second behind each of many of the first
_INSTALLER_WITHIN = re.compile(
    r"(?<![\w.-])(?:pip[\d.]*|uv|apt|apt-get|dnf|yum|microdnf|apk|conda|mamba|micromamba|npm)\s"
)
_INSTALLS = re.compile(r"(?<=\s)(?:install|add|sync)(?![\w.-])")
_PRINTERS = frozenset({"echo", "printf", "#", ":"})
_OF_ENVIRONMENTS = ("/activate", "activate")


@dataclass(frozen=True, slots=True)
class StartInstall:
    """What one simple command installs when a job starts.

    `names` are requirements of pip, or packages of another manager, as written; `folders` are local ones that pip
    installs from, `others` its addresses and archives. `unknown` says what its text does not tell.
    """

    manager: Manager
    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    unknown: str = ""
    command: str = ""


def installs_of(command: str) -> tuple[StartInstall, ...]:
    """Return what a shell command installs or downloads, in its order; nothing for one that is known to do neither."""
    if len(command) > MAX_COMMAND_CHARACTERS:
        return (
            StartInstall(
                "unknown", unknown=f"it has more than {MAX_COMMAND_CHARACTERS} characters", command=command[:80]
            ),
        )
    return tuple(_of_text(command, 0))


def extras_of(names: Iterable[str]) -> StartInstall:
    """Return what a list of distributions installs that a job gives to pip."""
    words = list(names)
    return replace(_installed(words), command=shlex.join(["pip", "install", *words]))


def _of_text(text: str, depth: int) -> Iterator[StartInstall]:
    if depth > MAX_NESTING:
        yield StartInstall("unknown", unknown="it nests shells", command=text[:80])
        return
    try:
        words = list(_words(text))
    except ValueError:
        yield StartInstall("unknown", unknown="its quotes are unbalanced", command=text)
        return
    simple: list[str] = []
    for word in [*words, ";"]:
        if word not in _SEPARATORS:
            simple.append(word)
            continue
        for found in _of_simple(simple, depth):
            yield found if found.command else replace(found, command=shlex.join(simple))
        simple = []


def _words(text: str) -> Iterator[str]:
    """Yield the words and operators of a text as a POSIX shell splits them; comments and redirections are left out."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    words = list(lexer)
    index = 0
    while index < len(words):
        word = words[index]
        following = words[index + 1] if index + 1 < len(words) else ""
        if word.startswith("#"):
            while index < len(words) and "\n" not in words[index]:
                index += 1
            continue
        if set(word) <= set("<>&") and set(word) & set("<>"):
            index += 2
            continue
        if not (word.isdigit() and following and set(following) <= set("<>&") and set(following) & set("<>")):
            # operators that touch come as one word
            yield ";" if set(word) <= set(";&|()\n") and word not in _SEPARATORS else word
        index += 1


def _of_simple(words: Sequence[str], depth: int) -> Iterator[StartInstall]:
    """Yield what a command without operators installs."""
    given, words = words, _without_prefixes(words)
    if not words:
        return
    if " " in words[0]:  # of `env -S`
        yield from _of_text(words[0], depth + 1)
        return
    if "xargs" in given[: len(given) - len(words)]:
        for found in _of_program(words, depth):
            yield replace(found, unknown=found.unknown or "`xargs` extends its arguments at run time")
        return
    yield from _of_program(words, depth)


def _of_program(words: Sequence[str], depth: int) -> Iterator[StartInstall]:
    program, arguments = words[0].rpartition("/")[2], words[1:]
    if program in _SHELLS or program == "eval":
        yield from _of_shell(program, arguments, depth)
    elif program in ("source", "."):
        if arguments and not arguments[0].endswith(_OF_ENVIRONMENTS):
            yield StartInstall("unknown", unknown=f"it runs the file `{arguments[0]}`")
    elif (program.startswith("pip") and program[3:].replace(".", "").isdigit()) or program == "pip":
        yield from _of_pip(arguments)
    elif program.startswith("python"):
        yield from _of_python(arguments, depth)
    elif program == "uv":
        yield from _of_uv(arguments)
    elif program in ("uvx", "pipx", "easy_install"):
        rest = arguments[1:] if program == "pipx" and arguments[:1] in (["install"], ["run"]) else arguments
        yield _installed(rest[:1] if program == "uvx" else rest)
    elif program in _INSTALLERS:
        yield from _of_installer(*_INSTALLERS[program], arguments)
    elif program in _DOWNLOADERS or (program == "git" and {"clone", "fetch", "pull", "submodule"} & set(arguments)):
        yield StartInstall("download", names=(program,))
    else:
        yield from _of_other(program, words)


def _of_other(program: str, words: Sequence[str]) -> Iterator[StartInstall]:
    """Yield what is unknown of a program that is not followed; nothing where its words name no installer."""
    if "$" in words[0] or "`" in words[0] or words[0].endswith(".sh"):
        yield StartInstall("unknown", unknown=f"it runs `{words[0]}`")
    elif program in _OTHER_INSTALLERS and _INSTALLING & set(words):
        yield StartInstall("unknown", unknown=f"`{program}` installs")
    elif program not in _PRINTERS and _installs_within(" ".join(words)):
        yield StartInstall("unknown", unknown=f"`{program}` starts another command")


def _without_prefixes(words: Sequence[str]) -> list[str]:
    """Return a command without keywords of the shell, assignments and programs that only start another one."""
    rest = list(words)
    while rest:
        name, equals, _ = rest[0].partition("=")
        if rest[0] in _KEYWORDS or (equals and name.isidentifier()):
            rest.pop(0)
        elif rest[0].rpartition("/")[2] in _STARTERS:
            program = rest.pop(0).rpartition("/")[2]
            taking = _STARTERS[program].split()
            while rest and rest[0].startswith("-"):
                option = rest.pop(0)
                if option in taking and rest:
                    rest.pop(0)
            if program == "timeout" and rest:
                rest.pop(0)
        else:
            break
    return rest


def _of_shell(program: str, arguments: Sequence[str], depth: int) -> Iterator[StartInstall]:
    if program == "eval":
        yield from _of_text(" ".join(arguments), depth + 1)
        return
    for index, argument in enumerate(arguments):
        if argument.startswith("-") and not argument.startswith("--") and "c" in argument:
            for text in arguments[index + 1 : index + 2]:
                yield from _of_text(text, depth + 1)
            return
        if not argument.startswith("-"):
            yield StartInstall("unknown", unknown=f"it runs the file `{argument}`")
            return
    yield StartInstall("unknown", unknown="it runs the output of another command")


def _of_python(arguments: Sequence[str], depth: int) -> Iterator[StartInstall]:
    for index, argument in enumerate(arguments):
        if argument == "-m":
            module, rest = "".join(arguments[index + 1 : index + 2]), arguments[index + 2 :]
            if module == "pip":
                yield from _of_pip(rest)
            elif module == "uv":
                yield from _of_uv(rest)
            elif BOOTSTRAP in module:
                yield StartInstall("pip", unknown=f"`{module}` makes an environment by pip")
                yield from _of_simple(rest[rest.index("--") + 1 :] if "--" in rest else (), depth)
            return
        if argument == "-c" and _installs_within(" ".join(arguments[index + 1 : index + 2])):
            yield StartInstall("unknown", unknown="its Python code starts another command")
        if not argument.startswith("-") or argument == "-c":
            return


def _of_uv(arguments: Sequence[str]) -> Iterator[StartInstall]:
    words = [word for word in arguments if not word.startswith("-")]
    match words[:2]:
        case ["pip", "install" | "sync"]:
            start = arguments.index(words[1])
            if words[1] == "sync":
                yield StartInstall("pip", unknown="its packages are in a file: " + " ".join(arguments[start + 1 :]))
            else:
                yield _installed(arguments[start + 1 :])
        case ["tool", "install" | "run"]:
            yield _installed(arguments[arguments.index(words[1]) + 1 :][:1])
        case ["add", *_]:
            yield _installed(arguments[arguments.index("add") + 1 :])
        case ["sync" | "lock", *_]:
            yield StartInstall("pip", unknown="its packages are those of a project")
        case ["run", *_]:
            extra = [arguments[index + 1] for index, word in enumerate(arguments[:-1]) if word == "--with"]
            yield StartInstall("pip", names=tuple(extra), unknown="its packages are those of a project")


def _of_pip(arguments: Sequence[str]) -> Iterator[StartInstall]:
    index = 0
    while index < len(arguments) and arguments[index].startswith("-"):
        index += 2 if arguments[index] in _PIP_VALUES else 1
    if arguments[index : index + 1] in (["install"], ["download"], ["wheel"]):
        yield _installed(arguments[index + 1 :])


def _installed(arguments: Sequence[str]) -> StartInstall:
    """Return what pip's arguments after `install` name."""
    names: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    unknown: list[str] = []
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("-"):
            _sort_in(option + equals + value, names, folders, others, unknown)
            continue
        if not equals and option in _PIP_VALUES:
            value = rest.pop(0) if rest else ""
        if option in ("-e", "--editable"):
            _sort_in(value, names, folders, others, unknown, local=True)
        elif option in ("-r", "--requirement"):
            unknown.append(f"its packages are in the file `{value}`" if value else f"`{option}` names no file")
    return StartInstall("pip", tuple(names), tuple(folders), tuple(others), "; ".join(dict.fromkeys(unknown)))


def _sort_in(
    word: str, names: list[str], folders: list[str], others: list[str], unknown: list[str], *, local: bool = False
) -> None:
    if "$" in word or "`" in word or "{" in word:
        unknown.append(f"`{word}` is known only at run time")
    elif "://" in word or word.startswith("git+") or word.endswith((".whl", ".tar.gz", ".zip")):
        others.append(word)
    elif local or word.startswith(("/", "./", "../", "~")) or word in (".", ".."):
        folders.append(word.partition("[")[0])
    else:
        try:
            names.append(str(Requirement(short_numbers(word))))
        except ValueError:
            unknown.append(f"`{word}` is not a requirement")


def _of_installer(manager: Manager, values: frozenset[str], arguments: Sequence[str]) -> Iterator[StartInstall]:
    rest = list(arguments)
    words: list[str] = []
    while rest:
        word = rest.pop(0)
        if word in values:
            del rest[:1]
        elif not word.startswith("-"):
            words.append(word)
    if words and words[0] in _INSTALLING | {"ci"}:
        known = tuple(word for word in words[1:] if "$" not in word and "`" not in word)
        left = [word for word in words[1:] if word not in known]
        unknown = "; ".join(f"`{word}` is known only at run time" for word in left)
        yield StartInstall(manager, known, unknown=unknown or ("" if known else "its packages are in a file"))


def _installs_within(text: str) -> bool:
    found = _INSTALLER_WITHIN.search(text)
    return found is not None and _INSTALLS.search(text, found.end()) is not None
