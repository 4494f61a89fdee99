"""List the steps of this catalogue: what the launcher image's `ferrysteps` command does."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python < 3.11 cannot read step.toml; ids are the folders' names
    tomllib = None

STEPS = Path(__file__).parent


def steps() -> list[dict[str, object]]:
    """Return id, name and what is consumed and produced, for each step."""
    found = []
    for path in sorted(STEPS.glob("*/*/step.toml")):
        step_id = path.parent.relative_to(STEPS).as_posix()
        entry: dict[str, object] = {"id": step_id}
        if tomllib is not None:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
            entry["name"] = data["step"]["name"]
            entry["consumes"] = [item["type"] for item in data.get("consumes", [])]
            entry["produces"] = [item["type"] for item in data.get("produces", [])]
        found.append(entry)
    return found


def main() -> int:
    """Print the steps as a table or as JSON."""
    parser = argparse.ArgumentParser(prog="ferrysteps")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.json:
        print(json.dumps(steps()))
        return 0
    from tabulate import tabulate

    print(tabulate(steps(), headers="keys"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
