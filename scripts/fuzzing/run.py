"""Run the fuzzer; see scripts/fuzz."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from parsers import named  # noqa: E402
from worker import WAIT_S, Row, Running, Target  # noqa: E402


def main() -> int:
    """Run what was asked for, print the tables, and return 1 if there is a fault."""
    asked = argparse.ArgumentParser(prog="scripts/fuzz", description="Feed damaged documents to every parser.")
    asked.add_argument("parser", nargs="*", help="only parsers whose names contain one of these texts")
    asked.add_argument("--cases", type=int, default=1_000_000, help="cases in process, all parsers together")
    asked.add_argument("--commands", type=int, default=10_000, help="cases through the whole command")
    asked.add_argument("--seed", type=int, default=1, help="another seed, other cases")
    asked.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parsers and commands at the same time")
    asked.add_argument("--keep", type=Path, help="a folder for the smallest case of each fault")
    asked.add_argument("--list", action="store_true", help="list the parsers")
    options = asked.parse_args()
    parsers, commands = _chosen(options)
    if options.list:
        print("\n".join(name for name, _make, _share in (*parsers, *commands)))
        return 0
    began = time.monotonic()
    work = [*_counted(parsers, options.cases), *_counted(commands, options.commands)]
    rows = _run_all(work, number=options.seed, jobs=max(1, options.jobs))
    print(_table(rows))
    faults = _faults(rows, options.keep)
    cases = sum(row.cases for row in rows)
    print(f"\n{cases:,} cases, seed {options.seed}, {time.monotonic() - began:.0f} s: {faults} faults")
    return 1 if faults else 0


Entry = tuple[str, Callable[[], Target], float]
Work = tuple[str, Callable[[], Target], int]


def _chosen(options: argparse.Namespace) -> tuple[list[Entry], list[Entry]]:
    parsers = [(parser.name, parser.make, parser.share) for parser in named(options.parser)]
    if not options.commands:
        return parsers, []
    # what these import takes a second
    from commands import COMMANDS

    wanted = [text.lower() for text in options.parser]
    return parsers, [row for row in COMMANDS if not wanted or any(text in row[0].lower() for text in wanted)]


def _counted(entries: list[Entry], cases: int) -> list[Work]:
    """Share the cases out, to the last one."""
    whole = sum(share for _name, _make, share in entries)
    work, given, shared = [], 0, 0.0
    for name, make, share in entries:
        shared += share
        count = round(cases * shared / whole) - given
        given += count
        if count:
            work.append((name, make, count))
    return work


def _run_all(work: list[Work], *, number: int, jobs: int) -> list[Row]:
    """Run all, several at the same time; the rows are in the order of the work, whatever ends first."""
    rows: dict[int, Row] = {}
    running: dict[int, Running] = {}
    waiting = list(enumerate(work))
    while waiting or running:
        while waiting and len(running) < jobs:
            place, (name, make, count) = waiting.pop(0)
            running[place] = Running(name, make, count=count, number=number)
        time.sleep(WAIT_S)
        for place, one in list(running.items()):
            if (row := one.row()) is not None:
                rows[place] = row
                del running[place]
                _say(row)
    return [rows[place] for place in range(len(work))]


def _say(row: Row) -> None:
    each = row.seconds / row.cases * 1000 if row.cases else 0.0
    print(
        f"{row.name}: {row.cases} cases, {each:.2f} ms each, {len(row.faults)} kinds of fault",
        file=sys.stderr,
        flush=True,
    )


def _table(rows: list[Row]) -> str:
    lines = ["| Parser | Cases | Refused | Accepted | Slowest | Memory | Faults |", "|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        faults = sum(count for count, _data in row.faults.values())
        lines.append(
            f"| {row.name} | {row.cases:,} | {row.refused:,} | {row.accepted:,} | {row.slowest_s * 1000:.0f} ms "
            f"| +{row.grown_mib:.0f} MiB | {faults} |"
        )
    whole = (sum(row.cases for row in rows), sum(row.refused for row in rows), sum(row.accepted for row in rows))
    slowest, grown = (max((getattr(row, key) for row in rows), default=0) for key in ("slowest_s", "grown_mib"))
    faults = sum(count for row in rows for count, _data in row.faults.values())
    lines.append(
        "| **all** | "
        + " | ".join(f"{number:,}" for number in whole)
        + f" | {slowest * 1000:.0f} ms | +{grown:.0f} MiB | {faults} |"
    )
    return "\n".join(lines)


def _faults(rows: list[Row], keep: Path | None) -> int:
    kinds = [(row.name, what, count, bytes.fromhex(data)) for row in rows for what, (count, data) in row.faults.items()]
    if not kinds:
        return 0
    folder = keep or Path(tempfile.mkdtemp(prefix="airferry-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    print("\nFaults:\n")
    for number, (name, what, count, data) in enumerate(kinds, start=1):
        path = folder / f"{number}.case"
        path.write_bytes(data)
        print(f"- {name}: {what} ({count} times); the smallest case is `{path}`: {data[:120]!r}")
    return sum(count for _name, _what, count, _data in kinds)


if __name__ == "__main__":
    sys.exit(main())
