"""Help that ends with examples, and shows flags as flags, without the type `<bool>` that Typer prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from airferry.cli.examples import EXAMPLES, explain_variables, page_name
from airferry.cli.render import data_line

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Command(TyperCommand):
    def get_params(self, context: Any) -> Any:
        return _without_type(super().get_params(context))

    def format_help(self, context: Any, formatter: Any) -> None:
        super().format_help(context, formatter)
        path = tuple(context.command_path.split()[1:])
        # not as Typer's epilog, which folds lines: an example that is folded cannot be copied
        shown = [" Examples:"]
        for line, meaning in EXAMPLES[path]:
            shown += [f"   {line}", f"       {meaning}"]
        shown += [f"   {text}" for text in explain_variables([line for line, _ in EXAMPLES[path]])]
        shown += ["", " `--quiet`, `--verbose` and `--debug` may stand before or after the command."]
        for text in (*shown, f" Manual: man {page_name(path)}", ""):
            data_line(text)


class _Group(TyperGroup):
    def get_params(self, context: Any) -> Any:
        return _without_type(super().get_params(context))


def _without_type(parameters: Iterable[Any]) -> list[Any]:
    found = list(parameters)
    for parameter in found:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return found


def improve_help(app: typer.Typer) -> None:
    """Do so for all commands of a program, `--help` and what Typer adds included. To be called once all are there."""
    app.info.cls = _Group
    for command in app.registered_commands:
        command.cls = _Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            improve_help(group.typer_instance)
