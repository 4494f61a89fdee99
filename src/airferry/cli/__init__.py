"""The command line: parse, call one use case, render. The only importer of typer and rich."""

import gc
import os
import signal
import sys

GARBAGE_THRESHOLD = 50_000
SWITCH_INTERVAL_S = 0.0005
UTF8_MODE = ["-X", "utf8"]

__all__ = ["main"]


def main() -> None:
    """Run the program and exit with the documented code."""
    # Ctrl-C while the program is loaded: nothing is done yet, and a traceback would be all that it left
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_closed_streams()
    if sys.getfilesystemencoding() != "utf-8":
        _restart_in_utf8_mode()
    # what is loaded stays: looking for garbage in it as often as Python does takes a fifth of a short command's time
    gc.set_threshold(GARBAGE_THRESHOLD)
    # threads that carry blocks need the interpreter for moments, and wait this long for one that computes
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # plugins of pydantic are looked for in the metadata of all packages, and this program has none
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from airferry.cli.app import main as run

    run()


def _open_closed_streams() -> None:
    """Lead standard streams that were closed (`>&-`) nowhere: the next files to be opened would get their numbers.

    What a library or a child process prints would then be written into a blob.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _restart_in_utf8_mode() -> None:
    """Start this program again, in this process, with Python's UTF-8 mode on; return where that is not possible.

    Names of files are bytes, and images and bundles hold those bytes. Python decodes them by the locale, which in
    `tr_TR.ISO-8859-9` makes other names of them, and the mode cannot be changed once Python runs (PEP 540).
    """
    # of several `-X utf8` the first counts: where that is ours, a restart changes nothing. A script that was read from
    # standard input cannot be read again
    if sys.orig_argv[1:3] == UTF8_MODE or not sys.executable or sys.argv[0] in ("", "-"):
        return
    try:
        # the arguments as the kernel keeps them: not every multi-byte encoding of Python's is that of the C library
        with open("/proc/self/cmdline", "rb") as stream:  # noqa: PTH123 (pathlib would be loaded for this alone)
            arguments = stream.read().split(b"\0")[1:-1]
    except OSError:
        arguments = [os.fsencode(argument) for argument in sys.orig_argv[1:]]
    os.execv(sys.executable, [os.fsencode(word) for word in (sys.executable, *UTF8_MODE)] + arguments)
