"""The command line: parse, call one use case, render. The only importer of typer and rich."""

import gc

GARBAGE_THRESHOLD = 50_000

__all__ = ["main"]


def main() -> None:
    """Run the program and exit with the documented code."""
    # what is loaded stays: looking for garbage in it as often as Python does takes a fifth of a short command's time
    gc.set_threshold(GARBAGE_THRESHOLD)
    from airferry.cli.app import main as run

    run()
