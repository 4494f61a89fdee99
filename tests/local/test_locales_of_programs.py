"""The program in every locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from airferry import cli
from airferry.near.assemble.context import tracked_digest
from near_side import commit_all

SOURCE = Path(cli.__file__).parents[2]
NAMES = ("sm\u00f8r.txt", os.fsdecode(b"na\xffme"))


# a locale that is not installed counts as `C`
LOCALES: tuple[dict[str, str], ...] = (
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX"},
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": "xx_YY.ISO-8859-9"},
    {"LC_ALL": "C", "PYTHONUTF8": "0"},
    {"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


# `main`, but what it starts says how it was started
STARTED = """
import os, sys, types
def main():
    print([sys.getfilesystemencoding(), sys.flags.no_user_site, *map(os.fsencode, sys.argv[1:])])
sys.modules["airferry.cli.app"] = types.SimpleNamespace(main=main)
from airferry.cli import main
main()
"""


DIGEST = """
import sys, types
def main():
    from pathlib import Path
    from airferry.near.assemble.context import tracked_digest
    print(tracked_digest(Path(sys.argv[1]), excluded=[]))
sys.modules["airferry.cli.app"] = types.SimpleNamespace(main=main)
from airferry.cli import main
main()
"""


def started(script: str, *arguments: str | Path, locale: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), **locale}
    # an option of the interpreter stays as well
    return subprocess.Popen([sys.executable, "-s", "-c", script, *arguments], env=environment, stdout=subprocess.PIPE)


def test_the_program_runs_in_utf8_mode_with_its_arguments_in_every_locale() -> None:
    arguments = (*NAMES, "", "a\nb", "-X", "utf8=0")
    children = [started(STARTED, *arguments, locale=locale) for locale in LOCALES]
    expected = f"{['utf-8', 1, *map(os.fsencode, arguments)]}\n".encode()
    assert [child.communicate(timeout=60)[0] for child in children] == [expected] * len(LOCALES)


def test_every_committed_file_is_in_the_launcher_in_every_locale(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text(json.dumps(name), encoding="utf-8")
    commit_all(tmp_path)
    everything = tracked_digest(tmp_path, excluded=[])
    answer, _ = started(DIGEST, tmp_path, locale=LOCALES[-1]).communicate(timeout=60)
    assert answer.decode().strip() == everything
    (tmp_path / NAMES[0]).unlink()
    assert tracked_digest(tmp_path, excluded=[]) != everything
