"""The command line: parse, call one use case, render. The only importer of typer and rich."""

import gc
import sys

GARBAGE_THRESHOLD = 50_000
SWITCH_INTERVAL_S = 0.0005

__all__ = ["main"]


def main() -> None:
    """Run the program and exit with the documented code."""
    # what is loaded stays: looking for garbage in it as often as Python does takes a fifth of a short command's time
    gc.set_threshold(GARBAGE_THRESHOLD)
    # threads that carry blocks need the interpreter for moments, and wait this long for one that computes
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    from airferry.cli.app import main as run

    run()
