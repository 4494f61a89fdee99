"""The program `airferry`: global options, the order of the commands, and what becomes of errors."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

import airferry
from airferry.cli import assets, building, bundles, catalogue, completion, history, jobs, registries, rehearse, serving
from airferry.cli.helps import improve_help
from airferry.cli.pipes import code_of_pipes, outlive_readers
from airferry.cli.render import Reporter, data_line, escape_what_python_writes
from airferry.errors import AirferryError, HostError
from airferry.host import files, process

PROGRAM = "airferry"
INTERRUPTED = 130
# alone, or short ones in one word (`-qv`)
_GLOBAL_SWITCH = re.compile(r"--quiet|--verbose|--debug|-[qv]+")
# no room, no right, a medium that fails, limits of this host, and paths of the user's that no system takes
HOST_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EMLINK, errno.EOPNOTSUPP),
    *(errno.ENOLCK, errno.ENOSYS, errno.EXDEV),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR),
}
HELP = """Carry container images, and everything that goes with them, across an air gap.

Near side: [bold]doctor[/], [bold]plan[/], [bold]lock[/], [bold]rehearse[/], [bold]build[/], then carry the folder over.
Far side: [bold]site init[/], [bold]login[/], [bold]verify[/], [bold]load --jobs[/]. No registry yet: [bold]serve[/].
Jobs: [bold]check[/], then run the submit commands that [bold]load --jobs[/] wrote.
Start with [bold]quickstart[/]: it runs the whole job on a built-in example; or with [bold]init[/], for your own steps.

Exit codes: 0 success, 1 a bug in airferry, 2 usage, 3 configuration,
4 environment, 5 build, 6 integrity, 7 registry, 8 a check found something.
"""

app = typer.Typer(
    name=PROGRAM,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
building.register(app)
rehearse.register(app)
bundles.register(app)
history.register(app)
serving.register(app)
assets.register(app)
registries.register(app)
jobs.register(app)
catalogue.register(app)
improve_help(app)


def _show_version(value: bool) -> None:
    if value:
        data_line(f"airferry {airferry.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", envvar="AIRFERRY_QUIET", help="Print the result and errors only; never prompt."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", envvar="AIRFERRY_VERBOSE", help="List details instead of counts.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="AIRFERRY_DEBUG", help="Show commands and tracebacks.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Set up what all commands share."""
    context.obj = Reporter(quiet=quiet, verbose=verbose, debug=debug)


def main() -> None:
    """Run the program and exit with the documented code."""
    # pydantic would search all installed packages for plugins at start, which takes longer than a short command
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    # the terminal or the login that started the command is gone; under `nohup` it goes on
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)
    outlive_readers()
    escape_what_python_writes()
    # names of files may be no text, and the terminal's encoding may lack a character: neither ends a command
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    asked = completion.is_asked(os.environ)
    try:
        code = completion.answer(os.environ, lambda: run([])) if asked else run(sys.argv[1:])
    except Interrupted:
        # a second signal, while the first one or an error was being told
        code = INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # taking apart all that was loaded takes longer than many a command, and the kernel does it at once
    os._exit(code_of_pipes(code))


class Interrupted(BaseException):
    """A signal asked the program to end; typer handles `KeyboardInterrupt` itself."""


def _interrupt(_signal: int, _frame: object) -> None:
    """End children in all threads, so that those threads end as well, and unwind."""
    process.end_all()
    raise Interrupted


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Errors are shown on stderr."""
    reporter = Reporter(debug=_wants_debug(arguments))
    try:
        app(_global_first(arguments), prog_name=PROGRAM)
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except AirferryError as error:
        reporter.trace()
        reporter.error(error)
        return error.exit_code
    except (Interrupted, KeyboardInterrupt):
        reporter.interrupted()
        return INTERRUPTED
    except OSError as error:
        reporter.trace()
        # a path that its file system does not take; without one, it is ours
        if error.errno not in HOST_ERRORS and not (error.errno in (errno.EINVAL, errno.EILSEQ) and error.filename):
            return _show_bug(reporter, error)
        if error.filename is None:
            reporter.error(HostError(f"cannot go on: {error.strerror}", hint=files.os_error_hint(error)))
        else:
            reporter.error(files.translate_os_error(error, doing="use", path=Path(str(error.filename))))
        return HostError.exit_code
    except MemoryError:
        reporter.trace()
        reporter.error(
            HostError("the host has too little memory", hint="rerun with fewer `--jobs`, or on a larger host")
        )
        return HostError.exit_code
    except Exception as error:
        reporter.trace()
        return _show_bug(reporter, error)


def _global_first(arguments: list[str]) -> list[str]:
    """Return a command line with the global switches in front of the command, wherever they were typed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before = arguments[:end]
    switches = [word for word in before if _GLOBAL_SWITCH.fullmatch(word)]
    return [*switches, *(word for word in before if not _GLOBAL_SWITCH.fullmatch(word)), *arguments[end:]]


def _wants_debug(arguments: list[str]) -> bool:
    """Tell whether tracebacks are asked for, before typer parses the command line: that may fail."""
    if "--debug" in arguments[: arguments.index("--") if "--" in arguments else None]:
        return True
    # the words that click takes for true
    return os.environ.get("AIRFERRY_DEBUG", "").strip().lower() in ("1", "true", "t", "yes", "y", "on")


def _show_bug(reporter: Reporter, error: Exception) -> int:
    reporter.bug(error)
    return AirferryError.exit_code
