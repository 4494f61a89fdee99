"""The man pages as the program itself describes them. Run by a test, which compares or, if asked, writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from airferry import __version__
from airferry.cli.examples import EXAMPLES, explain_variables, page_name
from cli_reference import commands, environment_names, is_group, is_option, placeholder, program

EXIT_CODES = (
    (0, "success"),
    (1, "a bug in airferry"),
    (2, "usage"),
    (3, "configuration: a file that you wrote"),
    (4, "environment: what the host lacks"),
    (5, "build"),
    (6, "integrity: bytes are not what a digest says"),
    (7, "registry"),
    (8, "a check found something"),
)
FILES = (
    ("airgap.yaml", "What to carry."),
    ("airgap.lock.yaml", "What was pinned."),
    ("out/bundle", "What is carried: an OCI image layout."),
    ("site.yaml", "What the far side is like."),
)


def render() -> dict[str, str]:
    """Return the man pages in roff, by the names of their files: one of the program, and one of each command."""
    group = program()
    below = [(path, command) for path, command in commands(group) if not is_group(command)]
    pages = {"airferry.1": _program_page(group, below)}
    return pages | {f"{page_name(path)}.1": _command_page(path, command, below) for path, command in below}


def _program_page(group: Any, below: list[tuple[tuple[str, ...], Any]]) -> str:
    lines = [
        *_head("airferry"),
        "airferry \\- carry container images, and everything that goes with them, across an air gap",
        ".SH SYNOPSIS",
        ".B airferry",
        "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(group.help),
        ".SH OPTIONS",
        *_options(group),
        ".SH COMMANDS",
    ]
    for path, command in below:
        lines += [".TP", f"\\fB{_escape(page_name(path))}\\fR(1)", _line(_first_sentence(command))]
    lines += [".SH ENVIRONMENT"]
    for name in sorted(environment_names()):
        lines += [".TP", f".B {_escape(name)}", "Sets the option that names it."]
    lines += [
        ".TP",
        ".B NO_COLOR",
        "Turns colors off.",
        ".SH SHELL COMPLETION",
        "\\fBairferry \\-\\-install\\-completion\\fR installs it for the shell that runs it,",
        "\\fBairferry \\-\\-show\\-completion\\fR prints it. bash, zsh and fish.",
        *_exit_status(),
        ".SH FILES",
    ]
    for name, meaning in FILES:
        lines += [".TP", f".B {_escape(name)}", meaning]
    return "\n".join(lines) + "\n"


def _command_page(path: tuple[str, ...], command: Any, below: list[tuple[tuple[str, ...], Any]]) -> str:
    words = " ".join(("airferry", *path))
    arguments = [item for item in command.params if not is_option(item)]
    shown = " ".join(f"\\fI{_escape(placeholder(item))}\\fR" for item in arguments)
    lines = [
        *_head(page_name(path)),
        f"{_escape(page_name(path))} \\- {_escape(_first_sentence(command).rstrip('.'))}",
        ".SH SYNOPSIS",
        f"\\fB{_escape(words)}\\fR [\\fIOPTIONS\\fR] {shown}".rstrip(),
        ".SH DESCRIPTION",
        *_paragraphs(command.help),
    ]
    if arguments:
        lines.append(".SH ARGUMENTS")
        for item in arguments:
            lines += [".TP", f"\\fI{_escape(placeholder(item))}\\fR", _line(getattr(item, "help", None) or "")]
    lines += [".SH OPTIONS", *_options(command), ".SH EXAMPLES"]
    for line, meaning in EXAMPLES[path]:
        lines += [".PP", _line(f"{meaning[0].upper()}{meaning[1:]}:")]
        lines += [".PP", ".nf", ".RS 4", _escape(line), ".RE", ".fi"]
    for text in explain_variables([line for line, _ in EXAMPLES[path]]):
        lines += [".PP", _line(text)]
    lines += [*_exit_status(), ".SH SEE ALSO"]
    related = [other for other, _ in below if other != path and _panel(other) == _panel(path)]
    pages = ["airferry", *(page_name(other) for other in related)]
    lines.append(", ".join(f"\\fB{_escape(name)}\\fR(1)" for name in pages))
    return "\n".join(lines) + "\n"


def _panel(path: tuple[str, ...]) -> str:
    return str(program().commands[path[0]].rich_help_panel)


def _head(name: str) -> list[str]:
    return [
        '.\\" Generated from the program.',
        f'.TH {_escape(name.upper())} 1 "" "airferry {__version__}" "User Commands"',
        # a name that is hyphenated at the end of a line cannot be searched for
        ".nh",
        ".SH NAME",
    ]


def _exit_status() -> list[str]:
    lines = [".SH EXIT STATUS"]
    for code, meaning in EXIT_CODES:
        lines += [".TP", f".B {code}", meaning]
    return lines


def _first_sentence(command: Any) -> str:
    text = " ".join(Text.from_markup(command.help or "").plain.split())
    return text.partition(". ")[0].rstrip(".") + "."


def _options(command: Any) -> list[str]:
    lines = []
    for item in command.params:
        if is_option(item) and not item.hidden:
            names = ", ".join(f"\\fB{_escape(name)}\\fR" for name in (*item.opts, *item.secondary_opts))
            value = "" if item.is_flag else f" \\fI{_escape(item.metavar)}\\fR"
            lines += [".TP", names + value, _line(f"{item.help or ''}{_more(item)}")]
    return lines


def _more(item: Any) -> str:
    """Return what else there is to know of an option: the default, the variable that sets it."""
    text = " Required." if item.required else ""
    if isinstance(item.show_default, str):
        text += f" Default: {item.show_default}."
    elif isinstance(item.default, str | int | Path) and not isinstance(item.default, bool):
        text += f" Default: {item.default}."
    return text + (f" Variable: {item.envvar}." if isinstance(item.envvar, str) else "")


def _paragraphs(markup: str | None) -> list[str]:
    paragraphs = Text.from_markup(markup or "").plain.strip().split("\n\n")
    return [line for number, text in enumerate(paragraphs) for line in ([".PP"] if number else []) + [_line(text)]]


def _line(text: str) -> str:
    line = _escape(" ".join(text.split()))
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
