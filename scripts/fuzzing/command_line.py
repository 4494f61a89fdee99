"""Runs `airferry` in this process, as often as asked, and tells a refusal from a bug.

What does not differ from one run of a command to the next is done once: importing, and making the command line, which
takes five times as long as `verify` takes for a small bundle.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer.main
import yaml
from worker import Target

from airferry.cli import app
from airferry.registry.retry import RetryPolicy

CODES = frozenset({0, 2, 3, 4, 5, 6, 7, 8})
# until the process ends
RUNNING = contextlib.ExitStack()


class Refused(Exception):
    """A command ended with one of its documented errors."""


@functools.cache
def _prepare() -> None:
    """Make the command line once, let no retry wait, and no host be found but this one."""
    command = typer.main.get_command(app.app)
    app.app = command  # type: ignore[assignment]
    RetryPolicy.pause = lambda *_arguments, **_options: None  # type: ignore[method-assign]
    find = socket.getaddrinfo

    def find_here(host: Any, *more: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return find(host, *more, **options)

    socket.getaddrinfo = find_here


def airferry(*arguments: str) -> tuple[int, str]:
    """Run a command and return its exit code and what it wrote; a bug is an AssertionError."""
    _prepare()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = app.run(list(arguments))
    said = out.getvalue() + err.getvalue()
    assert code in CODES, f"exit code {code} of {arguments[0]}: {said[-300:]}"
    assert "Traceback" not in said and "bug:" not in said, f"a bug in {arguments[0]}: {said[-300:]}"
    obeyed = [letter for letter in said if (ord(letter) < 32 and letter not in "\n\t") or 127 <= ord(letter) < 160]
    assert not obeyed, f"{arguments[0]} writes {obeyed[0]!r}"
    return code, said


def judged(code: int, said: str = "") -> None:
    """Raise where a command refused."""
    if code not in (0, 8):
        raise Refused(f"exit code {code}: {said}")


STEP = "src/nemotron/steps/sft/one"


def files_target(
    names: Sequence[str],
    *arguments: str,
    prepare: Callable[[], None],
    cleared: Sequence[str] = (),
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> Target:
    """Return what runs a command where one of some files is another; the first byte of a case is its number."""
    prepare()
    original = {name: Path(name).read_bytes() for name in names}

    def parse(case: bytes) -> None:
        name = names[case[0] % len(names)] if case else names[0]
        Path(name).write_bytes(case[1:])
        for folder in cleared:
            shutil.rmtree(folder, ignore_errors=True)
        before()
        try:
            code, said = airferry(*arguments)
            after()
            judged(code, said)
        finally:
            Path(name).write_bytes(original[name])

    begin = []
    for number, name in enumerate(names):
        # as JSON too, which is changed by its structure
        also = {as_json(original[name])} if name.endswith((".yaml", ".json")) else set()
        begin += [bytes([number]) + data for data in {original[name]} | also]
    return Target(parse, sorted(begin), also=(Refused,), prefix=1)


def as_json(document: bytes) -> bytes:
    """Return a YAML document as JSON; anything but a mapping of plain keys stays as it is."""
    try:
        return json.dumps(yaml.safe_load(document), default=str).encode()
    except (yaml.YAMLError, TypeError):
        return document
