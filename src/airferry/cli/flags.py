"""Help that shows flags as flags, without the type `<bool>` that recent versions of Typer print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Command(TyperCommand):
    def get_params(self, context: Any) -> Any:
        return _without_type(super().get_params(context))


class _Group(TyperGroup):
    def get_params(self, context: Any) -> Any:
        return _without_type(super().get_params(context))


def _without_type(parameters: Iterable[Any]) -> list[Any]:
    found = list(parameters)
    for parameter in found:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return found


def show_flags_as_flags(app: typer.Typer) -> None:
    """Do so for all commands of a program, `--help` and what Typer adds included. To be called once all are there."""
    app.info.cls = _Group
    for command in app.registered_commands:
        command.cls = _Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            show_flags_as_flags(group.typer_instance)
