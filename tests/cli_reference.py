"""The command line as the program itself describes it: for docs/cli.md, and for finding out what documents promise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from airferry.cli.app import app

TITLE = "# Command line\n\nGenerated from the program; `airferry COMMAND --help` shows the same.\n"

# what each command prints to stdout without `--json`, quiet or not, when it succeeds
PRINTED = {
    "doctor": "nothing: the exit code is 0 if no check failed; checks that fail go to stderr",
    "init": "the files that were written, one a line",
    "plan": "what a build would make, and what it would take",
    "lock": "what changed in the lock, one a line, or `nothing changed`",
    "rehearse": "a line for each step and platform, and below it one for each outbound connection",
    "build": "a line for each image (reference, digest, platforms, size), then `bundle PATH` and `root DIGEST`",
    "schema": "the JSON Schema",
    "quickstart": "what was done, in a few lines",
    "verify": "the findings, one a line; nothing if there are none. With `--root`, exit code 0 says that the bundle is "
    "the one that was signed for",
    "report": "the report, unless `--html` or `--text` names a file",
    "load": "the commands that submit each step, one a line; with `--dry-run` what would be sent and tagged",
    "history": "two lines for each load",
    "serve": "a line for each image (reference, digest), before the first request is answered",
    "catalogue extract": "the folder",
    "assets record": "the manifest and its digest",
    "assets verify": "the findings, one a line; nothing if there are none",
    "assets unpack": "the folder",
    "login": "nothing",
    "logout": "nothing",
    "copy": "the destination and the digest",
    "registry probe": "a line for each fact",
    "site init": "nothing",
    "overlays": "the commands that submit each step, one a line",
    "mirrors": "a line for each image (original name, place in the registry, digest)",
    "check": "the findings, one a line where stdout is not a terminal; with `--fixes` what to type",
}
_PRINTED_TEXT = """\
Results go to stdout, all else to stderr: progress, notes, warnings, what to do next, errors. `--quiet`, `--verbose` and
`--debug` may stand before or after the command. With `--quiet` stderr has errors alone, and stdout the same as without;
nothing is asked, so options must say all. `--json` prints the result as JSON instead.
"""


@cache
def program() -> Any:
    """Return the whole command line: it takes long to put together, and nobody changes it."""
    return typer.main.get_command(app)


def is_group(command: Any) -> bool:
    """Tell whether a command only holds others."""
    return hasattr(command, "commands")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that name it, groups before what is in them."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if is_group(command):
            yield from commands(command, (*path, name))


def options(command: Any) -> set[str]:
    """Return every spelling of every option of a command."""
    found = {"--help", "-h"}
    for parameter in command.params:
        if is_option(parameter):
            found.update([*parameter.opts, *parameter.secondary_opts])
    return found


def is_option(parameter: Any) -> bool:
    """Tell options from arguments."""
    return bool(parameter.opts[0].startswith("-"))


def environment_names() -> set[str]:
    """Return the environment variables that set options."""
    every = [program(), *(command for _path, command in commands(program()))]
    names = {parameter.envvar for command in every for parameter in command.params}
    return {name for name in names if isinstance(name, str)}


def render() -> str:
    """Return docs/cli.md."""
    group = program()
    parts = [TITLE, *_section((), group)]
    for path, command in commands(group):
        parts += _section(path, command)
    parts += ["## What is printed\n", _PRINTED_TEXT]
    parts += ["| Command | On stdout |", "|---|---|"]
    parts += [
        f"| `{' '.join(path)}` | {_cell(PRINTED[' '.join(path)])} |"
        for path, command in commands(group)
        if not is_group(command)
    ]
    parts.append("")
    return "\n".join(parts)


def _section(path: tuple[str, ...], command: Any) -> list[str]:
    words = " ".join(("airferry", *path))
    arguments = [item for item in command.params if not is_option(item)]
    named = [item for item in command.params if is_option(item) and not item.hidden]
    usage = " ".join([words, "[OPTIONS]", *map(placeholder, arguments)])
    if is_group(command):
        usage += " COMMAND …"
    lines = [f"## `{words}`\n", f"{Text.from_markup(command.help or '').plain.strip()}\n", f"```text\n{usage}\n```\n"]
    if arguments:
        lines += ["| Argument | Meaning |", "|---|---|"]
        lines += [f"| `{placeholder(item)}` | {_cell(getattr(item, 'help', None))} |" for item in arguments]
        lines.append("")
    if named:
        lines += ["| Option | Takes | Default | Environment | Meaning |", "|---|---|---|---|---|"]
        lines += [_row(item) for item in named]
        lines.append("")
    return lines


def placeholder(argument: Any) -> str:
    """Return an argument as a line of usage shows it."""
    assert argument.metavar, f"`{argument.name}` has no metavar"
    name = f"{argument.metavar}…" if argument.nargs == -1 else argument.metavar
    return name if argument.required else f"[{name}]"


def _row(option: Any) -> str:
    spellings = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default = ""
    if isinstance(option.show_default, str):
        default = f"`{option.show_default}`"
    elif isinstance(option.default, str | int | Path) and not isinstance(option.default, bool):
        default = f"`{option.default}`"
    environment = f"`{option.envvar}`" if isinstance(option.envvar, str) else ""
    needed = " Required." if option.required else ""
    return f"| {spellings} | {_takes(option)} | {default} | {environment} | {_cell(option.help)}{needed} |"


def _takes(option: Any) -> str:
    if option.is_flag:
        return ""
    assert option.metavar, f"`{option.opts[0]}` has no metavar"
    return f"`{_cell(option.metavar)}`" + (", repeatable" if option.multiple else "")


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
