"""Command lines of the program, each in a process of its own; what they load is loaded once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

PROGRAM = """
import json, os, sys
import airferry.cli.app
{preload}
from airferry.cli import main

codes = []
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        sys.argv[1:] = arguments
        main()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with open(int(sys.argv[2]), "w") as told:
    json.dump(codes, told)
"""


def run_commands(
    commands: Sequence[Sequence[str]], *, preload: str = "", **options: Any
) -> tuple[list[int], subprocess.CompletedProcess[bytes]]:
    """Run command lines after each other, and return their exit codes and what all of them printed.

    `preload` is an import of what most of them load; `options` are those of `subprocess.run`.
    """
    told, tells = os.pipe()
    argv = [sys.executable, "-c", PROGRAM.format(preload=preload), json.dumps(commands), str(tells)]
    with os.fdopen(told) as codes:
        try:
            ended = subprocess.run(argv, pass_fds=[tells], check=True, timeout=60, **options)
        finally:
            os.close(tells)
        return json.load(codes), ended
