"""Run the fuzzer; see scripts/fuzz."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from parsers import Parser, named  # noqa: E402
from worker import Row, run_cases  # noqa: E402


def main() -> int:
    """Run what was asked for, print the tables, and return 1 if there is a fault."""
    asked = argparse.ArgumentParser(prog="scripts/fuzz", description="Feed damaged documents to every parser.")
    asked.add_argument("parser", nargs="*", help="only parsers whose names contain one of these texts")
    asked.add_argument("--cases", type=int, default=1_000_000, help="cases in process, all parsers together")
    asked.add_argument("--commands", type=int, default=10_000, help="cases through the whole command")
    asked.add_argument("--seed", type=int, default=1, help="another seed, other cases")
    asked.add_argument("--keep", type=Path, help="a folder for the smallest case of each fault")
    asked.add_argument("--list", action="store_true", help="list the parsers")
    options = asked.parse_args()
    chosen = named(options.parser)
    if options.list:
        print("\n".join(parser.name for parser in chosen))
        return 0
    began = time.monotonic()
    rows = [*_parsers(chosen, options), *_commands(options)]
    print(_table(rows))
    faults = _faults(rows, options.keep)
    cases = sum(row.cases for row in rows)
    print(f"\n{cases:,} cases, seed {options.seed}, {time.monotonic() - began:.0f} s: {faults} faults")
    return 1 if faults else 0


def _parsers(chosen: list[Parser], options: argparse.Namespace) -> list[Row]:
    rows = []
    whole = sum(parser.share for parser in chosen)
    for parser in chosen:
        count = round(options.cases * parser.share / whole)
        if count:
            rows.append(run_cases(parser.name, parser.make, count=count, number=options.seed))
            _say(rows[-1])
    return rows


def _commands(options: argparse.Namespace) -> list[Row]:
    if not options.commands:
        return []
    # what these import takes a second
    from commands import COMMANDS

    rows = []
    wanted = [text.lower() for text in options.parser]
    chosen = [row for row in COMMANDS if not wanted or any(text in row[0].lower() for text in wanted)]
    whole = sum(share for _name, _make, share in chosen)
    for name, make, share in chosen:
        count = round(options.commands * share / whole)
        if count:
            rows.append(run_cases(name, make, count=count, number=options.seed))
            _say(rows[-1])
    return rows


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
