"""Run the fault injector; see scripts/faults."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integration"), str(ROOT / "src")]

from interruptions import INTERRUPTIONS  # noqa: E402
from network import Tally, in_own_folders, network_faults  # noqa: E402
from registry import CLASSES, KINDS  # noqa: E402


def main() -> int:
    """Run what was asked for, print the tables, and return 1 if something went wrong."""
    asked = argparse.ArgumentParser(prog="scripts/faults", description="Put faults into loads and builds.")
    asked.add_argument("only", nargs="*", help="only classes of requests or interruptions whose names contain this")
    asked.add_argument("--kinds", type=int, help="only the first kinds of network faults")
    asked.add_argument("--every", type=int, default=1, help="only every n-th boundary of kills and full disks")
    asked.add_argument("--list", action="store_true", help="list classes, kinds and interruptions")
    options = asked.parse_args()
    if options.list:
        print("\n".join([*CLASSES, *INTERRUPTIONS, *(kind.name for kind in KINDS)]))
        return 0

    def chosen(names: list[str]) -> list[str]:
        wanted = [text.lower() for text in options.only]
        return [name for name in names if not wanted or any(text in name.lower() for text in wanted)]

    began = time.monotonic()
    rows: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="airferry-faults-") as name:
        folder = Path(name)
        in_own_folders(folder)
        if classes := chosen(list(CLASSES)):
            rows += network_faults(folder / "network", classes=classes, kinds=options.kinds)
        for what in chosen(list(INTERRUPTIONS)):
            rows.append(INTERRUPTIONS[what](what, folder / "interrupted", options.every))
            print(f"{what}: {rows[-1].cases} cases", file=sys.stderr, flush=True)
    print(table(rows))
    wrong = [text for row in rows for text in row.wrong]
    cases = sum(row.cases for row in rows)
    print(f"\n{cases:,} cases, {time.monotonic() - began:.0f} s: {len(wrong)} wrong")
    for text in wrong:
        print(f"- {text}")
    return 1 if wrong else 0


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
        whole.cases += row.cases
        whole.finished += row.finished
        whole.wrong += row.wrong
        for code, count in row.codes.items():
            whole.codes[code] = whole.codes.get(code, 0) + count
    return whole


if __name__ == "__main__":
    sys.exit(main())
