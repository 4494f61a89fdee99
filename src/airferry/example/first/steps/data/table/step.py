"""Write a table of points near a line."""

import argparse
import csv
import random
from pathlib import Path

import yaml


def main() -> None:
    """Read the config and write the table that it names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    config = yaml.safe_load(parser.parse_args().config.read_text(encoding="utf-8"))
    table = Path(config["table"])
    noise = random.Random(0)
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["x", "y"])
        rows.writerows([x, float(config["slope"]) * x + noise.gauss(0, 1)] for x in range(int(config["rows"])))
    print(f"wrote {config['rows']} rows to {table}")


if __name__ == "__main__":
    main()
