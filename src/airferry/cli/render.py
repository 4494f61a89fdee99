"""What a person sees: progress and notices on stderr, data on stdout, errors with their hint.

The only module that knows the terminal. `NO_COLOR`, a pipe instead of a terminal, and `--quiet` are honoured. rich is
loaded when something is shown, as most of what scripts call shows nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from airferry.errors import AirferryError, HostError
from airferry.events import CommandRun, Event, Notice, StageFinished, StageStarted, Warned
from airferry.events import Progress as Progressed
from airferry.host import clock
from airferry.wording import size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_INTERVAL_S = 10.0
SHOWN_TAIL_LINES = 15


def escape(text: str) -> str:
    """Return text so that rich shows it as it is."""
    from rich.markup import escape as escaped

    return escaped(text)


def seconds(elapsed_s: float) -> str:
    """Return a duration as a person reads it."""
    if elapsed_s < 60:
        return f"{elapsed_s:.1f} s"
    return f"{int(elapsed_s // 60)} min {int(elapsed_s % 60)} s"


class Reporter:
    """Renders events. Safe to call from several threads."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, debug: bool = False) -> None:
        """Prepare for stderr: a live display on a terminal, plain lines elsewhere."""
        self.quiet = quiet
        self.verbose = verbose
        self.debug = debug
        self._lock = threading.Lock()
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}

    @cached_property
    def console(self) -> Console:
        """What writes to stderr."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def display(self) -> Iterator[Reporter]:
        """Show a live display while the block runs, if stderr is a terminal and nobody asked for quiet."""
        if self.quiet or not self.console.is_terminal:
            yield self
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        with progress:
            self._live = progress
            try:
                yield self
            finally:
                self._live = None
                self._tasks.clear()

    def __call__(self, event: Event) -> None:
        """Render one event."""
        if self.quiet:
            return
        with self._lock:
            self._render(event)

    def _render(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._begin(event)
        elif isinstance(event, StageFinished):
            self._finish(event)
        elif isinstance(event, Progressed):
            self._advance(event)
        elif isinstance(event, Warned):
            self._line(f"[yellow]warning:[/] {escape(event.text)}")
            if event.hint:
                self._line(f"         {escape(event.hint)}")
        elif isinstance(event, Notice):
            more = "; `--verbose` lists them" if event.details and not self.verbose else ""
            self._line(escape(event.text + more))
            for line in event.details if self.verbose else ():
                self._line(f"  {escape(line)}")
        elif isinstance(event, CommandRun) and self.debug:
            self._line(f"[dim]$ {escape(event.command)}[/]")

    def _begin(self, event: StageStarted) -> None:
        detail = f" {event.detail}" if event.detail else ""
        if self._live is None:
            self._line(f"[bold]{escape(event.stage)}[/]{escape(detail)} …")
            return
        self._tasks[event.stage] = self._live.add_task(escape(event.stage), total=None, amount=escape(event.detail))

    def _finish(self, event: StageFinished) -> None:
        detail = f": {event.detail}" if event.detail else ""
        how = "unchanged" if event.reused else seconds(event.elapsed_s)
        if self._live is not None and event.stage in self._tasks:
            self._live.remove_task(self._tasks.pop(event.stage))
        self._line(f"[green]✓[/] {escape(event.stage)}{escape(detail)} ({how})")

    def _advance(self, event: Progressed) -> None:
        counted = event.unit == "bytes"
        amount = size_text(event.done) if counted else f"{event.unit} {event.done}"
        if event.total is not None:
            amount += f" of {size_text(event.total) if counted else event.total}"
        finished = event.unit == "bytes" and event.total is not None and event.done >= event.total
        if self._live is not None:
            if finished:
                if event.task in self._tasks:
                    self._live.remove_task(self._tasks.pop(event.task))
                return
            if event.task not in self._tasks:
                self._tasks[event.task] = self._live.add_task(escape(event.task), total=event.total, amount=amount)
            self._live.update(self._tasks[event.task], completed=event.done, total=event.total, amount=amount)
            return
        now = clock.monotonic_s()
        last = self._last_line.setdefault(event.task, now)
        if now - last >= PLAIN_INTERVAL_S:
            self._last_line[event.task] = now
            self._line(f"  {escape(event.task)}: {amount}")

    def _line(self, text: str) -> None:
        target = self._live.console if self._live is not None else self.console
        target.print(text)

    def say(self, text: str) -> None:
        """Tell the operator something, in rich's markup, on stderr, unless quiet was asked for."""
        if not self.quiet:
            self.console.print(text)

    def error(self, error: AirferryError) -> None:
        """Show an error and what can be done about it, always on stderr, quiet or not."""
        self.console.print(f"[bold red]error:[/] {escape(error.message)}")
        tail = () if "\n" in error.message else error.tail
        for line in tail[-SHOWN_TAIL_LINES:]:
            self.console.print(f"  [dim]|[/] {escape(line)}")
        if error.hint:
            self.console.print(f"[bold]hint:[/]  {escape(error.hint)}")


def data(text: str) -> None:
    """Write data to stdout, and nothing else. Ends the program where nobody reads on.

    Raises:
        HostError: it cannot be written.
    """
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        raise HostError(f"cannot write to standard output: {error.strerror}") from error
