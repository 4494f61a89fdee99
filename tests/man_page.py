"""docs/airferry.1 as the program itself describes it. Run by a test, which compares or, if asked, writes it."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from airferry import __version__
from cli_reference import commands, environment_names, is_group, is_option, placeholder, program


def render() -> str:
    """Return the man page in roff."""
    group = program()
    lines = [
        '.\\" Generated from the program.',
        f'.TH AIRFERRY 1 "" "airferry {__version__}" "User Commands"',
        ".SH NAME",
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
    for path, command in commands(group):
        if not is_group(command):
            lines += _command(path, command)
    lines += [".SH ENVIRONMENT"]
    for name in sorted(environment_names()):
        lines += [".TP", f".B {_escape(name)}", "Sets the option of that name."]
    lines += [
        ".TP",
        ".B NO_COLOR",
        "Turns colors off.",
        ".SH SHELL COMPLETION",
        "\\fBairferry \\-\\-install\\-completion\\fR installs it for the shell that runs it,",
        "\\fBairferry \\-\\-show\\-completion\\fR prints it. bash, zsh and fish.",
        ".SH FILES",
        ".TP",
        ".B airgap.yaml",
        "What to carry.",
        ".TP",
        ".B out/bundle",
        "What is carried: an OCI image layout.",
    ]
    return "\n".join(lines) + "\n"


def _command(path: tuple[str, ...], command: Any) -> list[str]:
    arguments = [item for item in command.params if not is_option(item)]
    shown = " ".join(f"\\fI{_escape(placeholder(item))}\\fR" for item in arguments)
    lines = [f".SS airferry {_escape(' '.join(path))} {shown}".rstrip(), *_paragraphs(command.help)]
    return lines + _options(command)


def _options(command: Any) -> list[str]:
    lines = []
    for item in command.params:
        if is_option(item) and not item.hidden:
            names = ", ".join(f"\\fB{_escape(name)}\\fR" for name in (*item.opts, *item.secondary_opts))
            value = "" if item.is_flag else f" \\fI{_escape(item.metavar)}\\fR"
            lines += [".TP", names + value, _line(item.help or "")]
    return lines


def _paragraphs(markup: str | None) -> list[str]:
    paragraphs = Text.from_markup(markup or "").plain.strip().split("\n\n")
    return [line for number, text in enumerate(paragraphs) for line in ([".PP"] if number else []) + [_line(text)]]


def _line(text: str) -> str:
    line = _escape(" ".join(text.split()))
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
