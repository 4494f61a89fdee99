"""Fit a line to a table by least squares."""

import argparse
import csv
import json
from pathlib import Path

import yaml


def main() -> None:
    """Read the config and the table that it names, and write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    config = yaml.safe_load(parser.parse_args().config.read_text(encoding="utf-8"))
    with Path(config["table"]).open(newline="", encoding="utf-8") as stream:
        points = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(stream)]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    model = Path(config["model"])
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_text(json.dumps({"slope": slope, "intercept": mean_y - slope * mean_x}) + "\n", encoding="utf-8")
    print(f"fitted slope {slope:.3f}")


if __name__ == "__main__":
    main()
