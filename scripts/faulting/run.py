"""Run the fault injector; see scripts/faults."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integration"), str(ROOT / "src")]

from interruptions import INTERRUPTIONS  # noqa: E402
from network import Tally, in_own_folders, network_faults  # noqa: E402
from registry import CLASSES, KINDS  # noqa: E402

from airferry.host import files  # noqa: E402

# an interruption's cases are run by as many processes at most
PARTS = 8


def main() -> int:
    """Run what was asked for, print the tables, and return 1 if something went wrong."""
    asked = argparse.ArgumentParser(prog="scripts/faults", description="Put faults into loads and builds.")
    asked.add_argument("only", nargs="*", help="only classes of requests or interruptions whose names contain this")
    asked.add_argument("--kinds", type=int, help="only the first kinds of network faults")
    asked.add_argument("--every", type=int, default=1, help="only every n-th boundary of kills and full disks")
    asked.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="classes and parts at the same time")
    asked.add_argument("--list", action="store_true", help="list classes, kinds and interruptions")
    options = asked.parse_args()
    if options.list:
        print("\n".join([*CLASSES, *INTERRUPTIONS, *(kind.name for kind in KINDS)]))
        return 0

    def chosen(names: list[str]) -> list[str]:
        wanted = [text.lower() for text in options.only]
        return [name for name in names if not wanted or any(text in name.lower() for text in wanted)]

    began = time.monotonic()
    tasks = [Task(name, slice(None), options.kinds) for name in chosen(list(CLASSES))]
    parts = [slice(number * options.every, None, PARTS * options.every) for number in range(PARTS)]
    tasks += [Task(name, part) for name in chosen(list(INTERRUPTIONS)) for part in parts]
    with tempfile.TemporaryDirectory(prefix="airferry-faults-") as name:
        rows = _run_all(tasks, Path(name), jobs=max(1, options.jobs))
    print(table(rows))
    wrong = [text for row in rows for text in row.wrong]
    cases = sum(row.cases for row in rows)
    print(f"\n{cases:,} cases, {time.monotonic() - began:.0f} s: {len(wrong)} wrong")
    for text in wrong:
        print(f"- {text}")
    return 1 if wrong else 0


@dataclass(frozen=True)
class Task:
    """What a process is given: a class of requests, or a part of the cases of an interruption."""

    name: str
    part: slice
    kinds: int | None = None

    def run(self, folder: Path) -> Tally:
        """Run the cases in folders of their own."""
        in_own_folders(files.ensure_directory(folder))
        if self.name in CLASSES:
            (row,) = network_faults(folder / "network", classes=[self.name], kinds=self.kinds)
        else:
            row = INTERRUPTIONS[self.name](self.name, folder / "interrupted", self.part)
        return row


def _run_all(tasks: list[Task], folder: Path, *, jobs: int) -> list[Tally]:
    """Run all tasks, some at the same time, and return a row for each name, in their order."""
    rows: dict[str, Tally] = {task.name: Tally(task.name) for task in tasks}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        started = {pool.submit(task.run, folder / str(number)): task for number, task in enumerate(tasks)}
        for done in as_completed(started):
            row = done.result()
            add(rows[row.name], row)
            print(f"{row.name}: {row.cases} cases, {len(row.wrong)} wrong", file=sys.stderr, flush=True)
            print("".join(f"  {text}\n" for text in row.wrong), end="", file=sys.stderr, flush=True)
    return list(rows.values())


def add(whole: Tally, row: Tally) -> None:
    """Add what became of the cases of a row."""
    whole.cases += row.cases
    whole.finished += row.finished
    whole.wrong += row.wrong
    whole.slowest_s = max(whole.slowest_s, row.slowest_s)
    for code, count in row.codes.items():
        whole.codes[code] = whole.codes.get(code, 0) + count


def table(rows: list[Tally]) -> str:
    """Return the rows as Markdown."""
    lines = ["| Fault in | Cases | Went well | Refused (7) | Refused (6) | Other ends | Reruns that finish | Wrong |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in [*rows, _sum(rows)]:
        other = sum(count for code, count in row.codes.items() if code not in (0, 6, 7))
        counts = [
            row.cases,
            row.codes.get(0, 0),
            row.codes.get(7, 0),
            row.codes.get(6, 0),
            other,
            row.finished,
            len(row.wrong),
        ]
        lines.append(f"| {row.name} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return "\n".join(lines)


def _sum(rows: list[Tally]) -> Tally:
    whole = Tally("**all**")
    for row in rows:
        add(whole, row)
    return whole


if __name__ == "__main__":
    sys.exit(main())
