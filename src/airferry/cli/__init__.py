"""The command line: parse, call one use case, render. The only importer of typer and rich."""

from airferry.cli.app import main

__all__ = ["main"]
