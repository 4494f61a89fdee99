"""Run mutmut over a group of modules with the tests that are for them, and compare what survives with what is accepted.

Started by scripts/mutants. Each group gets a copy of the sources and the unit tests below `.mutants`, so that nothing
here changes the checkout. A change that mypy refuses counts as caught, as scripts/test runs mypy; so does one that
makes tests run out of time, which is told apart. Texts of errors and hints are not changed: tests read those that
matter. mutmut leaves functions with decorators, properties among them, and module-level code alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORK = ROOT / ".mutants"
CAUGHT = ("killed", "caught by type check", "timeout")
TESTS = ("tests/unit", "tests/local")
COPIED = ("src", *TESTS, "containerfiles", "docs", "scripts", "airgap.yaml", "README.md", "LICENSE")
# lines that hold nothing but words for a reader, or say which words an error gets
WORDS = (
    r"^\s*raise ",
    r"hint=",
    r"fix=",
    r"^\s*(text|reason|hint|fix) = ",
    r'^\s*return f?"[^"]* [^"]*"$',
    r'^\s*\+? ?f?"[^"]* [^"]*"[,)]*$',
    r"^\s*what=",
    r' what=f?"',
)
MYPY = ("mypy", "--output", "json", "--follow-imports", "silent", "--cache-dir", str(WORK / "mypy"))
MYPY_BLIND = ("--disable-error-code", "unused-ignore", "--disable-error-code", "misc")


@dataclass(frozen=True)
class Group:
    """Modules, and the tests that are for them."""

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Mutant:
    """A change of one function: the lines that went and those that came, without their indentation."""

    function: str
    status: str
    was: str
    now: str


@dataclass
class Accepted:
    """A survivor that needs no test, or a kind of them, and why. Patterns are those of shells."""

    function: str
    reason: str
    was: str = "*"
    now: str = "*"
    used: bool = False

    def fits(self, mutant: Mutant) -> bool:
        """Tell whether this is about a mutant; brackets in patterns stand for themselves."""
        pairs = ((self.function, mutant.function), (self.was, mutant.was), (self.now, mutant.now))
        return all(fnmatch.fnmatchcase(text, pattern.replace("[", "[[]")) for pattern, text in pairs)


def main() -> int:
    """Run what is asked for; 1 if anything survives that is not accepted."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("groups", nargs="*", help="groups of scripts/mutation/groups.toml; all without one")
    parser.add_argument("--again", action="store_true", help="show the results of the last run again")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    options = parser.parse_args()
    known = read_groups()
    if wrong := sorted(set(options.groups) - known.keys()):
        parser.error(f"no such group: {', '.join(wrong)} (there are {', '.join(known)})")
    accepted = [Accepted(**entry) for entry in tomllib.loads((HERE / "accepted.toml").read_text())["accepted"]]
    fresh = False
    for name in options.groups or known:
        group = known[name]
        if not options.again:
            run_mutmut(group, jobs=options.jobs)
        fresh |= report(group, accepted)
    if not options.groups:
        for entry in accepted:
            if not entry.used:
                print(f"accepted.toml: nothing survives any more as {entry.function}: {entry.now}")
    return int(fresh)


def read_groups() -> dict[str, Group]:
    """Return the groups by name."""
    document = tomllib.loads((HERE / "groups.toml").read_text())
    return {name: Group(name, tuple(entry["modules"]), tuple(entry["tests"])) for name, entry in document.items()}


def run_mutmut(group: Group, *, jobs: int) -> None:
    """Copy what the tests need, and let mutmut run; its own words go to a file.

    Raises:
        SystemExit: mutmut did not come to its end.
    """
    folder = WORK / group.name
    shutil.rmtree(folder, ignore_errors=True)
    for name in COPIED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, target)
    for path in (ROOT / "tests").glob("*.py"):
        shutil.copy2(path, folder / "tests" / path.name)
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + "\n" + settings(group))
    log = WORK / f"{group.name}.log"
    print(f"{group.name}: running; see {log.relative_to(ROOT)}", flush=True)
    with log.open("wb") as stream:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs)]
        ended = subprocess.run(command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    if ended.returncode != 0:
        raise SystemExit(f"{group.name}: mutmut ended with {ended.returncode}; see {log}")


def settings(group: Group) -> str:
    """Return what mutmut is to do, for the copy's pyproject.toml."""
    values = {
        "source_paths": ["src"],
        "only_mutate": list(group.modules),
        "do_not_mutate_patterns": list(WORDS),
        "pytest_add_cli_args": ["--timeout=120"],
        "pytest_add_cli_args_test_selection": [f"tests/{name}" for name in group.tests],
        "also_copy": [name for name in COPIED if name not in ("src", *TESTS)],
        "type_check_command": [*MYPY, *MYPY_BLIND],
        # so that a busy machine is not taken for an infinite loop
        "timeout_constant": 5.0,
        "use_git_change_detection": False,
    }
    return "[tool.mutmut]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def report(group: Group, accepted: Iterable[Accepted]) -> bool:
    """Print what became of the mutants of a group; return whether some survive without being accepted."""
    unseen: list[Mutant] = []
    counts: dict[str, Counter[str]] = {}
    entries = list(accepted)
    for module, mutant in mutants_of(group):
        count = counts.setdefault(module, Counter())
        count["all"] += 1
        count[mutant.status] += 1
        if mutant.status in CAUGHT:
            continue
        fitting = [entry for entry in entries if entry.fits(mutant)]
        for entry in fitting:
            entry.used = True
        if fitting:
            count["accepted"] += 1
        else:
            unseen.append(mutant)
            count["unseen"] += 1
    for module, count in counts.items():
        matter = count["all"] - count["accepted"]
        share = 100 * (matter - count["unseen"]) / matter if matter else 100.0
        print(
            f"{module}: {count['all']} mutants, {count['killed']} killed, {count['caught by type check']} refused by "
            f"mypy, {count['timeout']} out of time, {count['accepted']} accepted, {count['unseen']} to look at: "
            f"{share:.1f} % of those that matter are caught"
        )
    for mutant in unseen:
        print(f"\n{mutant.function} ({mutant.status})\n- {mutant.was}\n+ {mutant.now}")
    return bool(unseen)


def mutants_of(group: Group) -> Iterator[tuple[str, Mutant]]:
    """Yield each mutant of the last run with its module."""
    folder = WORK / group.name
    here = Path.cwd()
    os.chdir(folder)
    try:
        for meta in sorted(Path("mutants").rglob("*.py.meta")):
            path = meta.relative_to("mutants").with_suffix("")
            for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
                status = status_by_exit_code[code]
                was, now = ("", "") if status in CAUGHT else changed(get_diff_for_mutant(name, path=path))
                yield str(path), Mutant(function_of(name), status, was, now)
    finally:
        os.chdir(here)


def function_of(name: str) -> str:
    """Return `package.module.Class.function` for mutmut's name of a mutant."""
    name = re.sub(r"__mutmut_\d+$", "", name)
    return re.sub(r"\.x(_|ǁ)", ".", name).replace("ǁ", ".")


def changed(diff: str) -> tuple[str, str]:
    """Return the lines that a diff takes away and those that it adds, each as one text."""
    lines = [line for line in diff.splitlines() if line[:3] not in ("---", "+++")]
    gone, come = ([line[1:].strip() for line in lines if line[:1] == sign] for sign in "-+")
    return " ".join(gone), " ".join(come)


if __name__ == "__main__":
    sys.exit(main())
