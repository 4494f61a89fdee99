"""What a person sees: progress and notices on stderr, data on stdout, errors with their hint.

The only module that knows the terminal, and so the place that keeps text of others from commanding it: in all that is
shown, on both streams, characters that a terminal obeys are escaped, and markup of others is plain text. `NO_COLOR`, a
pipe instead of a terminal, and `--quiet` are honoured. rich is loaded when something is shown, as most of what scripts
call shows nothing.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from airferry.errors import AirferryError, HostError, UsageError
from airferry.events import CommandRun, Event, Notice, StageFinished, StageStarted, Warned
from airferry.events import Progress as Progressed
from airferry.host import clock
from airferry.wording import SHORTEST_WORD, comment_line, cut_middle, on_one_line, shortened, size_text, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

PLAIN_INTERVAL_S = 10.0
SHOWN_TAIL_LINES = 15
# a name in a foreign index may have megabytes
MAX_MESSAGE_CHARACTERS = 50_000
# from so many columns on, a live row has a bar of so many, and the time; in fewer it has name and amount alone
BAR_COLUMNS = ((100, 24), (60, 8))
ELAPSED_COLUMNS = len("0:00:00")
# a terminal that is narrower gets lines of this width, which it wraps
LEAST_COLUMNS = 20
# of names in columns; a longer one has a line for itself
WIDEST_COLUMN = 28
_NEW_LINE = re.compile(r"\n(?! )")
# a word; what is in backquotes is to be typed, and so is one word
_WORD = re.compile(r"(?:[^\s`]|`[^`\n]*`)+|\S+")
# `  base       Debian …`: what the lines after the first are below of
_LABEL = re.compile(r" *\S+(?: \S+)* {2,}(?=\S)")


def escape(text: str) -> str:
    """Return text so that rich shows it as it is, and a terminal obeys none of it."""
    from rich.markup import escape as escaped

    return escaped(visible(text))


def _indented(text: str) -> str:
    """Return text for rich so that none of its lines but the first begins where ours do: no `hint:` is forged."""
    if len(text) > MAX_MESSAGE_CHARACTERS:
        text = f"{text[:MAX_MESSAGE_CHARACTERS]}… ({len(text) - MAX_MESSAGE_CHARACTERS} more characters)"
    return escape(_NEW_LINE.sub("\n  ", text))


def seconds(elapsed_s: float) -> str:
    """Return a duration as a person reads it."""
    if elapsed_s < 60:
        return f"{elapsed_s:.1f} s"
    return f"{int(elapsed_s // 60)} min {int(elapsed_s % 60)} s"


def in_lines(text: Text, columns: int, *, hanging: int, indent: int | None = None) -> Text:
    """Return text with line breaks between words, so that a terminal of that width breaks none.

    What is to be typed, in backquotes or bold, is never broken, nor is a word that is longer than a line: a terminal
    that wraps those copies them as one line. Lines after the first begin `hanging` columns further right, or at
    `indent`, so none passes for a line that we began.
    """
    from rich.text import Text

    made = []
    for number, line in enumerate(text.split("\n", allow_blank=True)):
        lead = len(line.plain) - len(line.plain.lstrip(" "))
        hanging = min(hanging, 2) if number else hanging
        deep = min(lead + hanging, columns // 2) if indent is None else indent
        cuts = _cuts(line, columns - deep, columns - lead)
        first, *rest = line.divide(cuts)
        made.append(first)
        for piece in rest:
            made[-1].rstrip()
            made.append(Text(" " * deep) + piece)
    return Text("\n").join(made)


def _cuts(line: Text, columns: int, first: int) -> list[int]:
    """Return where a line breaks: `first` columns are left after its indentation, `columns` in each line after that."""
    from rich.cells import cell_len

    typed = [(span.start, span.end) for span in line.spans if "bold" in str(span.style)]
    cuts: list[int] = []
    taken, end = 0, None
    for word in _WORD.finditer(line.plain):
        gap = 0 if end is None else cell_len(line.plain[end : word.start()])
        width = cell_len(word[0])
        inside = any(start < word.start() < stop for start, stop in typed)
        following = next((stop for start, stop in typed if start == word.start()), word.end())
        whole = max(width, cell_len(line.plain[word.start() : following]))
        room = columns if cuts else first
        # what fits into no line is broken by the terminal anyway: it gets a line where it would begin far to the right
        if end is not None and not inside and taken + gap + whole > room and (whole <= columns or taken > room // 3):
            cuts.append(word.start())
            taken = width
        else:
            taken += gap + width
        end = word.end()
    return cuts


def _in_comments(text: str, columns: int | None) -> list[str]:
    """Return text as comments of the shell: each line of it is one, or a paste of several would run the rest."""
    if columns is None:
        return [comment_line(text)]
    room = max(columns, LEAST_COLUMNS) - len("# ")
    return [comment_line(line) for line in textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)]


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

        # without `emoji=False`, `:x:` in a name or a path becomes a picture
        return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    @contextmanager
    def display(self) -> Iterator[Reporter]:
        """Show a live display while the block runs, if stderr is a terminal and quiet was not requested."""
        if self.quiet or not self.console.is_terminal:
            yield self
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        name, amount = (TextColumn(shown, markup=False) for shown in ("{task.description}", "{task.fields[amount]}"))
        bar = (BarColumn(bar_width=self._bar_columns), amount, TimeElapsedColumn()) if self._bar_columns else (amount,)
        progress = Progress(SpinnerColumn(), name, *bar, console=self.console, transient=True)
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
            self._line(f"[yellow]warning:[/] {_indented(event.text)}", hanging=len("warning: "))
            if event.hint:
                self._line(f"         {_indented(event.hint)}", hanging=0)
        elif isinstance(event, Notice):
            more = "; `--verbose` lists them" if event.details and not self.verbose else ""
            self._line(_indented(event.text + more))
            for line in event.details if self.verbose else ():
                self._line(f"  {_indented(line)}")
        elif isinstance(event, CommandRun) and self.debug:
            self._console.print(f"[dim]$ {_indented(event.command)}[/]")

    def _begin(self, event: StageStarted) -> None:
        detail = f" {event.detail}" if event.detail else ""
        if self._live is None:
            self._line(f"[bold]{_indented(event.stage)}[/]{_indented(detail)} …")
            return
        amount = self._fitting(event.detail, taken=self.console.width // 2)
        name = self._row_name(event.stage, amount)
        self._tasks[event.stage] = self._live.add_task(on_one_line(name), total=None, amount=on_one_line(amount))

    def _finish(self, event: StageFinished) -> None:
        detail = f": {event.detail}" if event.detail else ""
        how = "unchanged" if event.reused else seconds(event.elapsed_s)
        if self._live is not None and event.stage in self._tasks:
            self._live.remove_task(self._tasks.pop(event.stage))
        said = self._fitting(f"{event.stage}{detail}", taken=len(f"✓  ({how})"))
        self._line(f"[green]✓[/] {_indented(said)} ({how})")

    def _advance(self, event: Progressed) -> None:
        counted = event.unit == "bytes"
        amount = size_text(event.done) if counted else f"{event.unit} {event.done}"
        if event.total is not None:
            amount += f" of {size_text(event.total) if counted else event.total}"
        amount = on_one_line(amount)
        finished = event.unit == "bytes" and event.total is not None and event.done >= event.total
        if self._live is not None:
            if finished:
                if event.task in self._tasks:
                    self._live.remove_task(self._tasks.pop(event.task))
                return
            if event.task not in self._tasks:
                self._tasks[event.task] = self._live.add_task("", total=event.total, amount=amount)
            name = on_one_line(self._row_name(event.task, amount))
            task = self._tasks[event.task]
            self._live.update(task, description=name, completed=event.done, total=event.total, amount=amount)
            return
        now = clock.monotonic_s()
        last = self._last_line.setdefault(event.task, now)
        if now - last >= PLAIN_INTERVAL_S:
            self._last_line[event.task] = now
            self._line(f"  {_indented(event.task)}: {escape(amount)}")

    @property
    def _bar_columns(self) -> int:
        return next((bar for least, bar in BAR_COLUMNS if self.console.width >= least), 0)

    def _fitting(self, text: str, *, taken: int) -> str:
        """Return what is shown next to amounts and times: in full in logs and with `--verbose`, else shortened."""
        if self.verbose or not self.console.is_terminal:
            return text
        return shortened(text, self.console.width - taken)

    def _row_name(self, name: str, amount: str) -> str:
        """Return the name in a live row, which has one line: rich would cut its end and crowd the amount out."""
        taken = len("⠋ ") + len(amount) + 1
        if self._bar_columns:
            taken += self._bar_columns + ELAPSED_COLUMNS + 2
        if self.verbose:
            return name
        return cut_middle(self._fitting(name, taken=taken), max(self.console.width - taken, SHORTEST_WORD // 2))

    @property
    def _console(self) -> Console:
        return self._live.console if self._live is not None else self.console

    @property
    def may_ask(self) -> bool:
        """Whether someone is there to be asked: on a terminal, and not with `--quiet`."""
        return not self.quiet and sys.stdin.isatty() and sys.stderr.isatty()

    def _line(self, markup: str, *, hanging: int = 2) -> None:
        """Print a line of ours, with line breaks between words on a terminal; in a pipe and a log it stays one."""
        console = self._console
        if console.is_terminal:
            text = console.render_str(markup, emoji=False, highlight=False)
            console.print(in_lines(text, max(console.width, LEAST_COLUMNS), hanging=hanging))
        else:
            console.print(markup)

    def complain(self, markup: str, *values: object, hanging: int = 2) -> None:
        """Tell what failed on stderr, as `say` does, quiet or not: an error follows that names it alone."""
        self._line(markup.format(*(escape(on_one_line(str(value))) for value in values)), hanging=hanging)

    def say(self, markup: str, *values: object, hanging: int = 2) -> None:
        """Tell the operator something on stderr, unless quiet was asked for.

        The first argument is a literal in rich's markup; `{}` in it stands for the values, which are shown as they are,
        each on one line: a line feed of others begins no line, which could pass for one of ours. A terminal gets line
        breaks between words, see `in_lines`.
        """
        if not self.quiet:
            self.complain(markup, *values, hanging=hanging)

    def copyable(self, text: str, *, indent: int = 0) -> None:
        """Show what is copied, such as a command line, as one line: a terminal that wraps it copies it so, too."""
        if not self.quiet:
            self.console.print(" " * indent + escape(text))

    def next(self, *steps: tuple[str, str], where: str = "") -> None:
        """Say what to do next, unless quiet was asked for: each command line to paste, below what it is for.

        The only place that does: with `--json` no command calls it. `where` says where the commands are to be run. The
        block is a script: what a command is for is a comment of the shell.
        """
        if steps:
            self.say("[bold]Next{}:[/]", f", {where}" if where else "")
        for purpose, command in steps:
            for line in _in_comments(purpose, self.console.width - 2 if self.console.is_terminal else None):
                self.say("  [dim]{}[/]", line)
            self.copyable(command, indent=2)

    def interrupted(self) -> None:
        """Say that a signal ended the command."""
        self.console.print("interrupted; rerun the same command to continue")

    def bug(self, error: Exception) -> None:
        """Show an error that airferry did not raise on purpose."""
        self._line(f"[bold red]bug:[/] {type(error).__name__}: {escape(str(error))}")
        self.console.print("Report this bug with the output of a rerun with `--debug`.")

    def trace(self) -> None:
        """Show the traceback of the error that is being handled, where `--debug` asks for it."""
        if self.debug:
            sys.stderr.write(visible(traceback.format_exc()))

    def error(self, error: AirferryError) -> None:
        """Show an error and what can be done about it, always on stderr, quiet or not."""
        self._line(f"[bold red]error:[/] {_indented(error.message)}", hanging=len("error: "))
        tail = () if "\n" in error.message else error.tail
        for line in tail[-SHOWN_TAIL_LINES:]:
            self._line(f"  [dim]|[/] {_indented(line)}")
        if hint := error.hint or error.advice:
            self._line(f"[bold]hint:[/]  {_indented(hint)}", hanging=len("hint:  "))


def escape_what_python_writes() -> None:
    """Have Python escape what it writes to stderr by itself: errors of threads and destructors, and warnings."""

    def of_thread(failed: threading.ExceptHookArgs) -> None:
        lines = traceback.format_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
        sys.stderr.write(visible("".join(lines)))

    def of_destructor(failed: sys.UnraisableHookArgs) -> None:
        lines = traceback.format_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
        sys.stderr.write(visible(f"{failed.err_msg or 'error ignored in'}: {failed.object!r}\n{''.join(lines)}"))

    def of_warning(message: Warning | str, *_where: object, **_more: object) -> None:
        sys.stderr.write(visible(f"warning: {message}\n"))

    threading.excepthook = of_thread
    sys.unraisablehook = of_destructor
    warnings.showwarning = of_warning


def ask_line(question: str, *, needed: bool = False, hidden: bool = False) -> str:
    """Ask on the terminal and return the answer; unless one is `needed`, an empty one stands for the default.

    Raises:
        UsageError: the input ended.
    """
    import typer

    try:
        if needed:
            return str(typer.prompt(question, err=True, hide_input=hidden))
        return str(typer.prompt(question, default="", show_default=False, err=True)).strip()
    except typer.Abort as error:
        sys.stderr.write("\n")
        raise UsageError("the input ended before all was answered", hint="options take the place of answers") from error


def data(text: str) -> None:
    """Write data to stdout, and nothing else.

    Characters that a terminal obeys are escaped as in JSON: a pipe often ends at one, and a log is read on one later.

    Raises:
        HostError: it cannot be written.
    """
    try:
        shown = visible(text)
        sys.stdout.write(shown if shown.endswith("\n") else shown + "\n")
        sys.stdout.flush()
    except OSError as error:
        raise HostError(
            f"cannot write to standard output: {error.strerror}",
            hint="check what reads it: a full disk, or a program that ended",
        ) from error


def data_line(*lines: str) -> None:
    """Write lines of data to stdout, see `data`: a line feed of others does not begin a line of ours.

    Raises:
        HostError: they cannot be written.
    """
    data("\n".join(map(on_one_line, lines)))


def _columns() -> int | None:
    """Return how wide the terminal is that stdout is, None where it is a pipe or a file."""
    return max(shutil.get_terminal_size().columns, LEAST_COLUMNS) if sys.stdout.isatty() else None


def data_text(*lines: str) -> None:
    """Write lines for people to stdout: on a terminal broken between words, below the text that follows a label.

    Raises:
        HostError: they cannot be written.
    """
    columns = _columns()
    if columns is None:
        data_line(*lines)
        return
    from rich.text import Text

    made = []
    for line in map(on_one_line, lines):
        label = _LABEL.match(line)
        indent = label.end() if label and label.end() <= columns // 2 else None
        made.append(in_lines(Text(line), columns, hanging=2, indent=indent).plain)
    data("\n".join(made))


def data_commands(*lines: str) -> None:
    """Write command lines and comments of the shell to stdout: a command as it is, a comment in lines that fit.

    Raises:
        HostError: they cannot be written.
    """
    columns = _columns()
    shown = [_in_comments(line.removeprefix("# "), columns) if line.startswith("# ") else [line] for line in lines]
    data_line(*(line for group in shown for line in group))


def data_items(*items: Sequence[str]) -> None:
    """Write items to stdout, a line each, as `a  b`: on a terminal that is too narrow, parts go whole to further lines.

    Raises:
        HostError: they cannot be written.
    """
    columns = _columns()
    if columns is None:
        data_line(*("  ".join(item) for item in items))
        return
    from rich.cells import cell_len

    lines = []
    for first, *rest in ([on_one_line(part) for part in item] for item in items):
        lines.append(first)
        for part in rest:
            # what is longer than a line is broken by the terminal, wherever it begins
            if cell_len(part) + 4 > columns or cell_len(lines[-1]) % columns + 2 + cell_len(part) <= columns:
                lines[-1] += f"  {part}"
            else:
                lines.append(f"    {part}")
    data("\n".join(lines))


def data_rows(rows: Sequence[Sequence[str]]) -> None:
    """Write rows of data to stdout: for a terminal in columns, the last of them wrapped; else a line each, as `a  b`.

    A cell that is longer than its column, such as a media type, has a line for itself, whole.

    Raises:
        HostError: they cannot be written.
    """
    columns = _columns()
    if columns is None:
        data_line(*("  ".join(filter(None, row)) for row in rows))
        return
    from rich.cells import cell_len
    from rich.text import Text

    most = min(columns // 3, WIDEST_COLUMN)
    safe = [[on_one_line(cell) for cell in row] for row in rows]
    widths = [min(most, max(map(cell_len, column))) for column in list(zip(*safe, strict=True))[:-1]]
    lines = []
    for *cells, last in safe:
        line = ""
        for cell, start, width in zip(
            cells, accumulate(widths, lambda a, b: a + b + 2, initial=0), widths, strict=False
        ):
            line += " " * (start - cell_len(line)) + cell
            if cell_len(cell) > width:
                lines.append(line)
                line = ""
        start = sum(widths) + 2 * len(widths)
        line += " " * (start - cell_len(line))
        lines.append(in_lines(Text(line + last), columns, hanging=0, indent=start).plain.rstrip())
    data("\n".join(lines))
