"""What long work says while it runs: a stream of typed events.

The library never prints; a use case takes an `Emit` and calls it. Only the command line knows the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A named part of the work begins."""

    stage: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A named part of the work ended well. `reused` says that nothing had to be done."""

    stage: str
    elapsed_s: float
    reused: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """A task advanced. `unit` is `bytes` or what is counted; `total` is None where it is not known."""

    task: str
    done: int
    total: int | None
    unit: str = "bytes"


@dataclass(frozen=True, slots=True)
class CommandRun:
    """A child process starts; `command` can be replayed in a shell, secrets masked."""

    command: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that an operator wants to know; `details` only where more is asked for."""

    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that an operator should act on, though the work goes on."""

    text: str
    hint: str | None = None


Event = StageStarted | StageFinished | Progress | CommandRun | Notice | Warned
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """Drop every event."""
